"""Whatever a file holds, 8-bit RGB comes out, or one reason why not."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from storage import images
from storage.images import UnreadableImage, decode, image_hash, probe

RED = (200, 30, 60)
# Of fixed pixels; another name would give users new row ids.
GREY_PNG, RGB_PNG = "63c4a267364871269d57085c9196f1ed", "9db5febc602fe12aabfee8281190f163"


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def striped(width: int = 6, height: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_rgb_comes_back_as_it_was(kind):
    pixels = striped()
    decoded = decode(encode(Image.fromarray(pixels), kind, **({"lossless": True} if kind == "WEBP" else {})))
    np.testing.assert_array_equal(decoded, pixels)
    assert decoded.dtype == np.uint8 and decoded.flags.c_contiguous and decoded.flags.writeable


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", mode) for mode in ("1", "L", "P", "LA", "RGBA")]
    + [("JPEG", mode) for mode in ("L", "YCbCr", "CMYK")]
    + [("TIFF", mode) for mode in ("1", "L", "P", "LA", "PA", "RGBA", "CMYK", "YCbCr")],
)
def test_every_mode_becomes_rgb(kind, mode):
    image = Image.new("RGB", (5, 3), RED).convert("P" if mode == "PA" else mode).convert(mode)
    data = encode(image, kind)
    assert Image.open(io.BytesIO(data)).mode == ("RGB" if (kind, mode) == ("JPEG", "YCbCr") else mode)
    np.testing.assert_allclose(decode(data).astype(int), np.array(image.convert("RGB")), atol=4)


def test_alpha_is_laid_on_white():
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    np.testing.assert_array_equal(decode(encode(image)), [[[255, 255, 255], [10, 20, 30]]])


def test_a_transparent_palette_colour_is_laid_on_white():
    image = Image.new("P", (2, 1), 0)
    image.putpalette([0, 0, 0, *RED])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(decode(encode(image, transparency=0)), [[[255, 255, 255], list(RED)]])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_upper_bits(kind):
    grey = np.array([[0, 255, 256, 40_000, 65_535]], dtype=np.uint16)
    decoded = decode(encode(Image.fromarray(grey), kind))
    np.testing.assert_array_equal(decoded[..., 0], [[0, 0, 1, 156, 255]])


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_pixels_are_refused(dtype):
    with pytest.raises(UnreadableImage, match="no agreed range; save 8 or 16 bits"):
        decode(encode(Image.fromarray(np.zeros((2, 2), dtype=dtype)), "TIFF"))


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})])
def test_the_first_frame_of_an_animation_is_taken(kind, options):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    np.testing.assert_array_equal(decode(data)[0, 0], [255, 0, 0])


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        # EXIF 2.3, tag 274: where the first row and the first column of the stored pixels lie.
        (1, lambda stored: stored),
        (2, lambda stored: stored[:, ::-1]),
        (3, lambda stored: stored[::-1, ::-1]),
        (4, lambda stored: stored[::-1]),
        (5, lambda stored: stored.swapaxes(0, 1)),
        (6, lambda stored: stored[::-1].swapaxes(0, 1)),
        (7, lambda stored: stored[::-1, ::-1].swapaxes(0, 1)),
        (8, lambda stored: stored[:, ::-1].swapaxes(0, 1)),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_every_exif_orientation_is_applied(orientation, upright, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = striped()
    data = encode(Image.fromarray(pixels), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(decode(data), upright(pixels))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (20_000, 2), (2, 20_000)])
def test_tiny_and_very_wide_pictures_are_pictures(size):
    assert decode(encode(Image.new("RGB", size, RED))).shape == (size[1], size[0], 3)


def test_no_file_makes_another_program_run():
    # Of PostScript, Pillow would ask Ghostscript for the pixels, whatever the file is called.
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"
    assert Image.open(io.BytesIO(postscript)).format == "EPS"
    with pytest.raises(UnreadableImage, match="cannot identify image file"):
        decode(postscript)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_pixels_survive_a_png_of_bytes_that_depend_on_them_alone(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = images.encode_png(pixels)
    np.testing.assert_array_equal(decode(data), pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2))
    assert image_hash(data) == {2: GREY_PNG, 3: RGB_PNG}[pixels.ndim]


def test_broken_exif_is_no_reason_to_lose_an_image():
    data = encode(Image.fromarray(striped()), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xffnonsense")
    assert decode(data).shape == (4, 6, 3)


def test_cut_and_foreign_bytes_are_unreadable_with_a_reason():
    jpeg = encode(Image.fromarray(striped(64, 64)), "JPEG")
    for data, reason in [
        (b"", "the file is empty"),
        (b"<html>not found</html>", "cannot identify image file"),
        (jpeg[: len(jpeg) // 2], "truncated"),
    ]:
        with pytest.raises(UnreadableImage, match=reason):
            decode(data)


def test_damaged_bytes_never_raise_anything_else():
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        good = encode(Image.fromarray(striped(32, 32)), kind)
        for _ in range(40):
            data = bytearray(good)
            for place in rng.integers(0, len(data), 4):
                data[place] = rng.integers(0, 256)
            try:
                assert decode(bytes(data)).ndim == 3
            except UnreadableImage as error:
                assert "\n" not in str(error) and len(str(error)) < 300


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for side in (10_000, 60_000):  # above what Graft decodes, above what Pillow opens
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        with pytest.raises(UnreadableImage, match=re.escape("pixels")):
            decode(bomb)


def test_the_limit_is_inclusive(monkeypatch):
    data = encode(Image.fromarray(striped()))
    monkeypatch.setattr(images, "MAX_PIXELS", 24)
    assert decode(data).shape == (4, 6, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 23)
    with pytest.raises(UnreadableImage, match="at most 23 pixels are decoded; it has 6 x 4"):
        decode(data)


def test_a_probe_knows_the_upright_size_or_the_reason():
    exif = Image.Exif()
    exif[0x0112] = 8
    data = encode(Image.fromarray(striped()), exif=exif)
    assert probe(data) == (image_hash(data), 4, 6, len(data), "")
    assert probe(b"") == (image_hash(b""), 0, 0, 0, "the file is empty")
