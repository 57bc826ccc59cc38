"""Files as users and attackers have them: each with what must become of it."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("animals", "empty", "things")


def picture(seed: int, *, width: int = 24, height: int = 18, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert("P" if mode == "PA" else mode).convert(mode)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(picture(100 + orientation), "JPEG", exif=exif)


def png(width: int, height: int, *, bits: int = 8, kind: int = 2, data: bytes = b"") -> bytes:
    """A PNG made by hand, of what no encoder would write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def black(width: int, height: int) -> bytes:
    """A small file of very many black pixels."""
    return png(width, height, bits=1, kind=0, data=zlib.compress(bytes((width // 8 + 1) * height)))


def readable() -> dict[str, bytes]:
    """Files that are pictures, by name."""
    files = {f"mode {mode}.png": encode(picture(1, mode=mode)) for mode in ("1", "L", "P", "LA", "RGBA", "RGB")}
    files |= {f"mode {mode}.jpg": encode(picture(2, mode=mode), "JPEG") for mode in ("L", "RGB", "CMYK")}
    files |= {
        f"mode {mode}.tif": encode(picture(3, mode=mode), "TIFF")
        for mode in ("1", "L", "P", "LA", "PA", "RGBA", "CMYK", "YCbCr", "RGB")
    }
    files |= {f"mode {mode}.bmp": encode(picture(4, mode=mode), "BMP") for mode in ("1", "L", "P", "RGB")}
    files |= {f"{orientation}.jpeg": turned(orientation) for orientation in range(1, 9)}
    frames = {"save_all": True, "append_images": [picture(6), picture(7)]}
    files |= {f"frames.{kind.lower()}": encode(picture(5), kind, **frames) for kind in ("GIF", "WEBP", "PNG", "TIFF")}
    deep = np.random.default_rng(8).integers(0, 65_536, (9, 7), dtype=np.uint16)
    files |= {f"16 bits.{kind.lower()}": encode(Image.fromarray(deep), kind) for kind in ("PNG", "TIFF")}
    rows = b"".join(b"\0" + bytes(range(k, k + 30)) for k in range(4))
    files["16 bits colour.png"] = png(5, 4, bits=16, data=zlib.compress(rows))
    files["transparent colour.png"] = encode(picture(9, mode="P"), transparency=3)
    files["progressive.jpg"] = encode(picture(10), "JPEG", progressive=True, quality=30)
    files |= {f"{width} x {height}.png": encode(picture(11, width=width, height=height)) for width, height in SIZES}
    files["1 pixel.jpg"] = encode(picture(12, width=1, height=1), "JPEG")
    files["1 pixel.gif"] = encode(picture(13, width=1, height=1), "GIF")
    files["a png in truth.jpg"] = encode(picture(14))
    files["a gif in truth.PNG"] = encode(picture(15), "GIF")
    files["a webp in truth.tiff"] = encode(picture(16), "WEBP")
    files["more after its end.jpg"] = encode(picture(17), "JPEG") + bytes(5000)
    files["broken exif.jpg"] = encode(picture(18), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xffnonsense")
    files["broken profile.png"] = encode(picture(19), icc_profile=b"no profile")
    return files | {f"{name}.png": encode(picture(20 + number)) for number, name in enumerate(NAMES)}


SIZES = [(1, 1), (1, 40), (20_000, 1), (1, 20_000), (20_000, 300)]
NAMES = [
    " spaces  around ", "'single' \"double\"", "new\nline", "tab\there", "中文 картинка صورة", "🦆", "%s %d {0}", "-rf",
    "$(touch gone); `ls` & *", "back\\slash", "[red]markup[bold]", "\u00e9", "e\u0301",
    "x" * 240, "two.dots", "#1?a=b", "~",
]  # fmt: skip


def unreadable() -> dict[str, tuple[bytes, str]]:
    """Files that are none: name -> bytes, and the reason that must be given."""
    files = {
        "empty.png": (b"", "the file is empty"),
        "empty.jpg": (b"", "the file is empty"),
        "32 bits.tif": (encode(Image.fromarray(np.zeros((3, 3), np.int32)), "TIFF"), "32-bit pixels"),
        "floats.tif": (encode(Image.fromarray(np.zeros((3, 3), np.float32)), "TIFF"), "32-bit pixels"),
        "said to be huge.png": (png(60_000, 60_000), "pixels"),
        "huge.png": (black(12_000, 12_000), "at most 89478485 pixels are decoded; it has 12000 x 12000"),
        "no pixels.png": (png(4, 4, data=zlib.compress(b"")), ""),
        "no width.png": (png(0, 4), ""),
        "no header.png": (b"\x89PNG\r\n\x1a\n", ""),
    }
    for name, data in {
        "text.jpg": b"hello", "page.jpg": b"<html>404 not found</html>", "zeros.png": bytes(2000),
        "noise.jpg": np.random.default_rng(0).bytes(2000), "svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "pdf.jpg": b"%PDF-1.7\n%%EOF", "program.gif": b"\x7fELF" + bytes(60), "object.png": pickle.dumps(print),
        "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n",
        "fractal.png": b"/* XPM */\nstatic char *x[] = {\"1 1 1 1\", \"a c red\", \"a\"};",
    }.items():  # fmt: skip
        files[name] = (data, "cannot identify image file")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("a.png", encode(picture(0)))
    files["archive.png"] = (archive.getvalue(), "cannot identify image file")
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"):
        whole = encode(picture(30, width=64, height=64), kind)
        for share in (2, 10):
            files[f"a part of {share}.{kind.lower()}"] = (whole[: len(whole) // share], "")
    damaged = bytearray(encode(picture(31, width=64, height=64)))
    damaged[len(damaged) // 2] ^= 0xFF
    files["one bit.png"] = (bytes(damaged), "")
    circle = b"II*\0\x08\0\0\0" + struct.pack("<HHHIIHHIII", 2, 256, 3, 1, 9, 257, 3, 1, 9, 8)
    files["circle.tif"] = (circle, "")
    jpeg = bytearray(encode(picture(32), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = b"\xff\xff\xff\xff"
    files["said to be huge.jpg"] = (bytes(jpeg), "pixels")
    return files


def put_others(root: Path) -> None:
    """What is passed over: no file, no picture by its name, or hidden; nothing of it may be waited for."""
    (root / "empty").mkdir()
    (root / "things" / "folder.jpg").mkdir()
    os.mkfifo(root / "things" / "pipe.jpg")
    (root / "things" / "itself.png").symlink_to("itself.png")
    (root / "things" / "nowhere.png").symlink_to("/no/such/file.png")
    (root / "things" / "up").symlink_to(root)
    (root / "things" / "device.png").symlink_to("/dev/zero")
    for name in (".hidden.png", "._mac.jpg", "Thumbs.db", "list.txt", "no suffix"):
        (root / "animals" / name).write_bytes(encode(picture(40)))


def put_corpus(root: Path) -> tuple[set[str], dict[str, str]]:
    """Write all of it, and some of it twice; gives the names of the rows, and of the others with their reason."""
    rows: set[str] = set()
    for folder in ("animals", "things"):
        (root / folder).mkdir(parents=True)
    for number, (name, data) in enumerate(readable().items()):
        own = f"{('animals', 'things')[number % 2]}/{name}"
        rows.add(own)
        (root / own).write_bytes(data)
    for folder in ("animals", "things"):
        rows.add(f"{folder}/again.png")
        (root / folder / "again.png").write_bytes(encode(picture(50)))
    bad = {f"things/bad/{name}": one for name, one in unreadable().items()}
    (root / "things" / "bad").mkdir()
    for name, (data, _) in bad.items():
        (root / name).write_bytes(data)
    put_others(root)
    return rows, {name: reason for name, (_, reason) in bad.items()}
