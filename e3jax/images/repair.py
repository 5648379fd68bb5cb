"""Image files without their metadata, for decoders that would fail on it.

Viewers show a picture whose metadata is damaged or large; what is kept here is what pixels need.
"""

import hashlib
import io
import re
import struct
import zlib

# The tags of TIFF files that pixels need, and their orientation.
_TIFF_TAGS = {256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322}
_TIFF_TAGS |= {323, 324, 325, 330, 332, 333, 334, 338, 339, 347, 512, 513, 514, 519, 520, 521}
_TIFF_TAGS |= {529, 530, 531, 532, 42113}


def strip_metadata(format: str, content: bytes) -> tuple[bytes, bytes] | None:
    """A file's content without metadata, and its EXIF data (b"" if there is none).

    None for formats other than JPEG, PNG, WebP and TIFF. Other damage stays.
    """
    known = {"JPEG": _jpeg, "PNG": _png, "WebP": _webp, "TIFF": _tiff}
    return known[format](content) if format in known else None


def _jpeg(content: bytes) -> tuple[bytes, bytes]:
    """Drops comments and all of applications' segments but the two that tell how colours are kept.

    Adds the marker of the end if it is all that is missing.
    """
    kept, exif, at = [b"\xff\xd8"], b"", 2
    while match := re.compile(rb"\xff+([^\0\xff])").search(content, at):
        marker, start = match[1][0], match.end()
        if marker == 1 or 0xD0 <= marker <= 0xD9:  # these stand alone
            at = start
            continue
        length = int.from_bytes(content[start : start + 2], "big")
        body = content[start + 2 : start + length]
        if marker == 0xDA:
            kept.append(content[match.end() - 2 :])
            break
        at = start + max(length, 2)
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            exif = exif or body
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or (
            (marker, body[:5]) in ((0xE0, b"JFIF\0"), (0xEE, b"Adobe")) and length >= 14
        ):
            kept.append(b"\xff" + content[start - 1 : at])
    whole = b"".join(kept)
    if b"\xff\xd9" not in kept[-1]:
        whole = whole.rstrip(b"\xff")
        if _has_all_pixels(whole):
            whole += b"\xff\xd9"
    return whole, exif


def _has_all_pixels(content: bytes) -> bool:
    """Whether a JPEG file without its end has all pixels: whatever comes next changes none."""
    from PIL import Image

    seen = set()
    for more in (b"", b"\x55" * 64):
        picture = Image.open(io.BytesIO(content + more + b"\xff\xd9"), formats=("JPEG",))
        seen.add(hashlib.sha256(picture.tobytes()).digest())
    return len(seen) == 1


def _png(content: bytes) -> tuple[bytes, bytes]:
    """Keeps the chunks that pixels need; the last may be cut short, and the end be missing."""
    kept, exif, at = [content[:8]], b"", 8
    while at + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, at)
        body = content[at + 8 : at + 8 + length]
        if name in (b"IHDR", b"PLTE", b"tRNS"):
            kept.append(content[at : at + 12 + length])
        elif name == b"IDAT":
            kept.append(_chunk(name, body))
        elif name == b"eXIf":
            exif = body
        elif name == b"IEND":
            break
        at += 12 + length
    return b"".join([*kept, _chunk(b"IEND", b"")]), exif


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _webp(content: bytes) -> tuple[bytes, bytes]:
    """Keeps the chunks of a still image; an animation is left without any."""
    chunks, at = {}, 12
    while at + 8 <= len(content):
        name, length = struct.unpack_from("<4sI", content, at)
        chunks.setdefault(name, content[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    names = [name for name in (b"VP8L", b"ALPH", b"VP8 ") if name in chunks]
    if b"ALPH" in names:
        chunks[b"VP8X"] = b"\x10" + chunks.get(b"VP8X", b"")[1:]  # only the flag of opacity
        names.insert(0, b"VP8X")
    body = b"WEBP" + b"".join(
        struct.pack("<4sI", name, len(chunks[name])) + chunks[name] + bytes(len(chunks[name]) % 2)
        for name in names
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body, chunks.get(b"EXIF", b"")


def _tiff(content: bytes) -> tuple[bytes, bytes]:
    """Adds a directory at the end that has only the tags of the first image that pixels need."""
    order = "<" if content[:2] == b"II" else ">"
    big = content[2:4] in (b"+\0", b"\0+")
    offset, count, size = ("Q", "Q", 20) if big else ("I", "H", 12)
    head = content[:8] if big else content[:4]
    (at,) = struct.unpack_from(order + offset, content, len(head))
    (entries,) = struct.unpack_from(order + count, content, at)
    at += struct.calcsize(order + count)
    listed = [content[i : i + size] for i in range(at, at + entries * size, size)]
    kept = [entry for entry in listed if _is_needed(order, entry)]
    content += bytes(len(content) % 2)
    directory = struct.pack(order + count, len(kept)) + b"".join(kept) + bytes(8)
    start = struct.pack(order + offset, len(content))
    return head + start + content[len(head) + len(start) :] + directory, b""


def _is_needed(order: str, entry: bytes) -> bool:
    if len(entry) < 12:
        return False
    tag, kind = struct.unpack_from(order + "HH", entry)
    return tag in _TIFF_TAGS and (tag != 274 or kind == 3)  # an orientation that is a number
