"""Which files are images: by their endings and first bytes, and what would read the others."""

import contextlib
import functools
import importlib
import io
import os
import re
import stat
from typing import NamedTuple

from PIL import Image
from PIL.TiffImagePlugin import II, MM, OPEN_INFO

# What Pillow decodes by itself. Not EPS and WMF, which start or ask other programs, nor the stubs.
# TGA has no first bytes to be known by, so it is the last.
_PILLOW_FORMATS = tuple(
    """JPEG MPO PNG GIF WEBP TIFF BMP DIB AVIF JPEG2000 ICO CUR ICNS PPM PCX DCX DDS SGI QOI PSD
    SUN MSP FITS BLP FTEX FLI PIXAR XBM XPM PCD TGA""".split()
)
# Packages that add formats to Pillow: the format, and the function to call after the import.
_PLUGINS = {"pillow_heif": ("HEIF", "register_heif_opener"), "pillow_jxl": ("JXL", None)}
OpenFile = io.BufferedReader | io.BytesIO


class Format(NamedTuple):
    """A format of files.

    Attributes:
      start: a regular expression that matches how its files begin.
      endings: of its files, without dots, if Pillow cannot read them by itself.
      remedy: what to do about files that cannot be read; "" if Pillow reads them by itself.
      plugin_format: Pillow's name of the format if a package makes it readable, else "".
    """

    start: bytes
    endings: str = ""
    remedy: str = ""
    plugin_format: str = ""


_EXPORT = "export them as JPEG or PNG"
FORMATS = {
    "JPEG": Format(rb"\xff\xd8\xff"),
    "PNG": Format(rb"\x89PNG\r\n\x1a\n"),
    "GIF": Format(rb"GIF8[79]a"),
    "WebP": Format(rb"RIFF.{4}WEBP"),
    "BMP": Format(rb"BM.{4}\0{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"),
    "AVIF": Format(rb".{4}ftypavi[fs]"),
    "JPEG 2000": Format(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
    "PSD": Format(rb"8BPS\0\x01"),
    "raw": Format(
        rb".{4}ftypcrx |FUJIFILM|II(RO|RS|U\0)|MMOR|FOVb|II\*\0.{4}CR",
        "dng cr2 cr3 crw nef nrw arw srf sr2 orf rw2 raf pef srw x3f 3fr erf kdc dcr mrw mos iiq "
        "rwl raw gpr",
        _EXPORT,
    ),
    "TIFF": Format(rb"II[*+]\0|MM\0[*+]"),
    "HEIC": Format(
        rb".{4}ftyp(hei[cxms]|hev[cxms]|mif1|msf1)",
        "heic heif hif heics heifs",
        "pip install pillow-heif",
        "HEIF",
    ),
    "JPEG XL": Format(
        rb"\xff\x0a|\0\0\0\x0cJXL ", "jxl", "pip install pillow-jxl-plugin", "JXL"
    ),
    "SVG": Format(rb"\s*(<\?xml.{0,300}?|<!--.{0,300}?)*<svg", "svg svgz", _EXPORT),
    "PDF": Format(rb"%PDF", "pdf ai", _EXPORT),
    "EPS": Format(rb"%!PS|\xc5\xd0\xd3\xc6", "eps ps", _EXPORT),
    "metafile": Format(rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF", "wmf emf", _EXPORT),
    "OpenEXR": Format(rb"\x76\x2f\x31\x01", "exr", _EXPORT),
    "HDR": Format(rb"#\?R", "hdr", _EXPORT),
    "DICOM": Format(rb".{128}DICM", "dcm dicom", _EXPORT),
    "drawing": Format(rb"gimp xcf", "xcf kra ora clip afphoto sketch", _EXPORT),
    "archive": Format(rb"PK\x03\x04|Rar!|7z\xbc\xaf", "zip rar 7z tar tgz cbz", "unpack them"),
    "video": Format(
        rb".{4}ftyp|\x1a\x45\xdf\xa3|RIFF.{4}AVI |\0\0\x01\xba",
        "mov mp4 m4v avi mkv webm mpg mpeg mts m2ts 3gp wmv",
        "save frames of them as images",
    ),
    "web page": Format(rb"\s*(?i:<!doctype html|<html)"),
}  # fmt: skip
HEAD = 512  # bytes
OTHER_ENDINGS = {f".{end}": name for name, of in FORMATS.items() for end in of.endings.split()}
# Looked for in files of other endings, or of none; an archive or a page may be anything.
PICTURES = FORMATS.keys() - {"archive", "video", "web page", "PDF", "EPS"}


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read, including those of installed plug-ins."""
    Image.init()
    names = [name for name in _PILLOW_FORMATS if name in Image.OPEN]
    for package, (name, register) in _PLUGINS.items():
        with contextlib.suppress(ImportError):
            module = importlib.import_module(package)
            if register:
                getattr(module, register)()
            names.insert(0, name)  # before AVIF, which takes some of their files for its own
    _teach_tiff()
    return tuple(name for name in names if name in Image.OPEN)


def _teach_tiff() -> None:
    """Adds grey TIFF files of more than 8 bits to Pillow's table, which has half of them."""
    for prefix, b in ((II, ""), (MM, "B")):
        for photometric in (0, 1):
            for sample, bits, mode, raw in (
                (1, 16, f"I;16{b}", f"I;16{b}"),
                (2, 16, "I", f"I;16{b}S"),
                (1, 32, "I", f"I;32{b}"),
                (2, 32, "I", f"I;32{b}S"),
                (3, 32, "F", f"F;32{b}F"),
                (3, 64, "F", f"F;64{b}F"),
            ):
                key = (prefix, photometric, (sample,), 1, (bits,), ())
                OPEN_INFO.setdefault(key, (mode, raw))


@functools.cache
def endings() -> frozenset[str]:
    """Endings of the files that are read, lower case, with their dots."""
    known = {*readable_formats(), "MPO"}
    return frozenset(end for end, name in Image.registered_extensions().items() if name in known)


def format_of(head: bytes) -> str:
    """The format of a file by its first 512 bytes, a key of ``FORMATS``; "" if it is unknown."""
    matches = (name for name, of in FORMATS.items() if re.match(of.start, head, re.DOTALL))
    return next(matches, "")


def remedy(name: str) -> str:
    """What to do about files of a format, a key of ``FORMATS`` or ""; "" if they can be read."""
    of = FORMATS.get(name)
    return of.remedy if of and of.plugin_format not in readable_formats() else ""


def open_regular(path: str | os.PathLike) -> io.BufferedReader:
    """Opens a regular file for reading; the caller closes it.

    Nothing else is opened: a named pipe waits for a writer, and devices may do anything.

    Raises:
      OSError: there is no such file, it may not be read, or it is not a regular one.
    """
    _check_regular(path, os.stat(path).st_mode)
    no_wait = getattr(os, "O_NONBLOCK", 0)  # should it become a pipe in between
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | no_wait))  # noqa: SIM115
    try:
        _check_regular(path, os.fstat(file.fileno()).st_mode)
    except BaseException:
        file.close()
        raise
    return file


def _check_regular(path: str | os.PathLike, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(0, "is a directory" if stat.S_ISDIR(mode) else "not a regular file", path)
