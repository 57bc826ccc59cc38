"""Encoded images to pixels: whatever a file holds, 8-bit RGB comes out, or the reason why not."""

from __future__ import annotations

import hashlib
import io
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Pillow warns from here on (a file of some kilobytes can ask for gigabytes of pixels). docs/datasets.md names it.
MAX_PIXELS = 89_478_485
# Whatever a file is called. No others: of PostScript Pillow would make pixels by starting an interpreter.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "AVIF", "PPM")
HASH_DIGITS = 32  # 128 bits of the sha256 name an image


class UnreadableImage(ValueError):
    """The bytes are not an image that can be decoded; the message is the reason."""


class Probe(NamedTuple):
    """What is known of an image after decoding it once.

    Attributes:
        image: the name of its bytes, see `image_hash`.
        width: in pixels, upright; 0 when the image cannot be decoded.
        height: in pixels, upright; 0 when the image cannot be decoded.
        size: of the encoded bytes.
        reason: why it cannot be decoded; empty when it can.
    """

    image: str
    width: int
    height: int
    size: int
    reason: str


def image_hash(data: bytes) -> str:
    """The name of an encoded image: the first 32 hexadecimal digits of its sha256."""
    return hashlib.sha256(data).hexdigest()[:HASH_DIGITS]


def probe(data: bytes) -> Probe:
    """Decode an image once, and keep what a dataset index needs of it."""
    try:
        height, width, _ = decode(data).shape
    except UnreadableImage as error:
        return Probe(image_hash(data), width=0, height=0, size=len(data), reason=str(error))
    return Probe(image_hash(data), width=width, height=height, size=len(data), reason="")


def probe_all(images: list[bytes]) -> list[Probe]:
    """Probe several images."""
    return [probe(data) for data in images]


def decode(data: bytes) -> np.ndarray:
    """Decode an image: upright by its EXIF orientation, the first frame of an animation, alpha laid on white.

    Returns:
        Pixels, (H, W, 3) uint8, RGB, contiguous and writable. Of 16-bit grey the upper eight bits are kept.
    Raises:
        UnreadableImage: not an image, cut short, larger than MAX_PIXELS, or of 32-bit pixels.
    """
    if not data:
        raise UnreadableImage("the file is empty")
    try:
        with warnings.catch_warnings():
            # Pillow's remarks on EXIF and size; the size is checked below.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _require_size(image)
                upright = ImageOps.exif_transpose(image)
                return np.array(_to_rgb(upright), dtype=np.uint8, order="C")
    except (MemoryError, UnreadableImage):
        raise
    except UnidentifiedImageError:
        # Pillow's own words hold an address, other ones in every run.
        raise UnreadableImage(f"cannot identify image file: it is none of {', '.join(FORMATS)}") from None
    except Exception as error:
        # On damaged bytes Pillow's plugins raise nearly any class (OSError, SyntaxError, struct.error, ...).
        reason = " ".join(str(error).replace(repr(data), "").split())[:200]
        raise UnreadableImage(f"{type(error).__name__}: {reason}") from error


def encode_png(pixels: np.ndarray) -> bytes:
    """Pixels as a PNG: the same bytes for ever, so that the same pixels have the same row id wherever they come from.

    Args:
        pixels: (H, W) grey or (H, W, 3) RGB, uint8.
    """
    buffer = io.BytesIO()
    # Not compressed: the bytes depend on the pixels and on no version of zlib.
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def _require_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height}"
        raise UnreadableImage(f"at most {MAX_PIXELS} pixels are decoded; it has {size}")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips to 255, which turns most 16-bit pictures white.
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("I", "F"):
        raise UnreadableImage(f"32-bit pixels (mode {image.mode}) have no agreed range; save 8 or 16 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
