"""Image files that Pillow cannot write."""

import struct
import zlib

import numpy as np


def write_tiff(path, array, order="<", white=False, zipped=False, planes=False, more=()):
    """Writes a TIFF file of one strip, or of one per channel, as Pillow cannot.

    Args:
      path: the file.
      array: [h, w] or [h, w, 3] of any number type.
      order: of the bytes.
      white: whether the smallest value is white.
      zipped: whether pixels are compressed.
      planes: whether channels are kept one after the other.
      more: further tags, (tag, type, count, value), the value in the entry itself.
    """
    h, w, c = (*array.shape, 1)[:3]
    array = array.astype(array.dtype.newbyteorder(order)).reshape(h, w, c)
    strips = [array[..., i] for i in range(c)] if planes else [array]
    strips = [zlib.compress(strip.tobytes()) if zipped else strip.tobytes() for strip in strips]
    content, lists = bytearray(b"II*\0" if order == "<" else b"MM\0*") + bytes(4), {}

    def entry(tag, kind, values):
        size = {3: 2, 4: 4}[kind] * len(values)
        packed = struct.pack(f"{order}{len(values)}{'HI'[kind - 3]}", *values)
        if size > 4:
            at = len(content)
            content.extend(packed)
            packed = struct.pack(order + "I", at)
        lists[tag] = struct.pack(order + "HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")

    starts = []
    for strip in strips:
        starts.append(len(content))
        content += strip
    entry(256, 4, [w]), entry(257, 4, [h]), entry(258, 3, [8 * array.itemsize] * c)
    entry(259, 3, [8 if zipped else 1]), entry(262, 3, [2 if c == 3 else int(not white)])
    entry(273, 4, starts), entry(277, 3, [c]), entry(278, 4, [h])
    entry(279, 4, [len(strip) for strip in strips]), entry(284, 3, [1 + planes])
    entry(339, 3, [{"u": 1, "i": 2, "f": 3}[array.dtype.kind]] * c)
    for tag, kind, count, value in more:
        lists[tag] = struct.pack(order + "HHI", tag, kind, count) + value
    struct.pack_into(order + "I", content, 4, len(content))
    content += struct.pack(order + "H", len(lists))
    content += b"".join(lists[tag] for tag in sorted(lists)) + bytes(4)
    path.write_bytes(content)


def png16(array, *chunks):
    """A PNG file's content of uint16 [h, w, c]: grey, grey and opacity, RGB or RGBA."""
    h, w, c = array.shape
    rows = array.astype(">u2").reshape(h, -1).view(np.uint8)
    data = np.pad(rows, [(0, 0), (1, 0)]).tobytes()
    header = struct.pack(">IIBBBBB", w, h, 16, {1: 0, 2: 4, 3: 2, 4: 6}[c], 0, 0, 0)
    body = [png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", zlib.compress(data))]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*body, png_chunk(b"IEND", b"")])


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
