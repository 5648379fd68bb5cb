"""Damaged image files: real digits in each format, then bytes changed, cut, put in or left out."""

import io
import struct

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP")


def exif(rng) -> bytes:
    """EXIF data of several tags, one of them of a wrong type at times."""
    tags = Image.Exif()
    tags[0x0112] = int(rng.integers(1, 9))
    tags[0x010F], tags[0x0110], tags[0x0132] = "Maker", "Model", "2024:01:01 00:00:00"
    tags[0x011A] = tags[0x011B] = TiffImagePlugin.IFDRational(72, 1)
    tags[0x0128] = 2
    tags.get_ifd(0x8769)[0x829A] = TiffImagePlugin.IFDRational(1, 60)
    tags.get_ifd(0x8769)[0x927C] = bytes(rng.integers(0, 256, 40, np.uint8))
    return tags.tobytes()


def sound(image: np.ndarray, format: str, rng) -> bytes:
    """A sound file of a digit, uint8 [h, w], with metadata where the format has any."""
    options = {}
    if format in ("JPEG", "PNG", "WEBP"):
        options["exif"] = exif(rng)
    if format in ("JPEG", "PNG", "TIFF", "WEBP"):
        options["icc_profile"] = bytes(rng.integers(0, 256, 300, np.uint8))
    if format == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_text("comment", "words " * 20, zip=True)
    if format == "TIFF":
        options["compression"] = rng.choice(["raw", "tiff_adobe_deflate", "tiff_lzw"])
        options["description"] = "words " * 5
        options["dpi"] = (72, 72)
    if format in ("JPEG", "GIF"):
        options["comment"] = b"words " * 5
    mode = rng.choice(["L", "RGB"]) if format != "GIF" else "P"
    picture = Image.fromarray(np.kron(image, np.ones((3, 3), np.uint8))).convert(str(mode))
    content = io.BytesIO()
    picture.save(content, format, **options)
    return content.getvalue()


def damaged(content: bytes, rng, start: int = 0, end: int | None = None) -> bytes:
    """A copy with one to four changes between two positions."""
    found = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        last = min(len(found) if end is None else end, len(found))
        at = int(rng.integers(start, max(last, start + 1)))
        kind = rng.integers(0, 10) if end is None else rng.integers(0, 6)
        if kind < 3:
            found[at : at + 1] = bytes([rng.integers(0, 256)])
        elif kind < 5:
            found[at : at + 1] = bytes([found[at] ^ (1 << rng.integers(0, 8))]) if found else b""
        elif kind < 6:
            wide = rng.choice([0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF])
            number = struct.pack(rng.choice(["<I", ">I"]), wide)
            found[at : at + 4] = number[: len(found[at : at + 4])]
        elif kind < 7:
            del found[at:]
        elif kind < 8:
            del found[at : at + int(rng.integers(1, 30))]
        elif kind < 9:
            found[at:at] = bytes(rng.integers(0, 256, rng.integers(1, 30), np.uint8))
        else:
            found[at:at] = found[at : at + int(rng.integers(1, 60))]
    return bytes(found)


def metadata_of_jpeg(content: bytes) -> tuple[int, int]:
    """Where a JPEG file's metadata are: from after its start to before its first table."""
    return 2, content.index(b"\xff\xdb")
