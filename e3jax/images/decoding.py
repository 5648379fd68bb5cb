"""One image file becomes upright RGB pixels, or values of more than 8 bits, and no program runs.

Of a file's metadata the orientation alone is used. Where Pillow fails on the rest, the file is read
once more without it.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import BinaryIO

from e3jax.images import formats, repair
from e3jax.images.memory import in_flight
from e3jax.images.pillow import (
    Shrink,
    bytes_of,
    open_picture,
    to_rgb,
    turned,
)
from e3jax.images.visible import (
    decode_high_depth,
    is_high_depth,
)

_REREAD = 1 << 28  # bytes of the largest file that is read without its metadata


class NotAnImage(ValueError):
    """What a file holds is no image of a format that is read; says why in a few words."""


def decode(source, *wanted: tuple[int, Shrink]) -> list:
    """Decodes an image and shrinks it in each wanted way.

    Args:
      source: a file's path or content, or an image of Pillow's.
      wanted: (side, shrink): the side in pixels that the image should have at least before it is
        shrunk, and the function that does so. JPEG files decode many times faster at a reduced
        size, which depends on the side.

    Returns:
      What each ``shrink`` made of the RGB image, or a `HighDepthImage`.

    Raises:
      Exception: of any type, as decoders raise for damaged files.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(source, Image.Image):
        return _convert(None, source, [shrink for _, shrink in wanted], None)
    with _opened(source) as file:
        try:
            return _decode(file, wanted)
        except MemoryError:
            raise
        except Exception as failure:
            error = failure.with_traceback(None)  # which holds on to the pixels
        file.seek(0)
        kind = formats.format_of(file.read(formats.HEAD))
        if remedy := formats.remedy(kind):
            raise NotAnImage(f"{kind}: {remedy}")
        if results := _decode_essentials(kind, file, wanted):
            return results
    if isinstance(error, UnidentifiedImageError):
        raise NotAnImage("not an image" + (f", though it starts as {kind}" if kind else ""))
    raise error


def _decode_essentials(kind: str, file: BinaryIO, wanted) -> list:
    """What `decode` returns for a file without its metadata; [] if that fails as well."""
    if file.seek(0, io.SEEK_END) > _REREAD:
        return []
    file.seek(0)
    try:
        if found := repair.strip_metadata(kind, file.read()):
            return _decode(io.BytesIO(found[0]), wanted, found[1])
    except MemoryError:
        raise
    except Exception:  # the first error says more
        pass
    return []


def _decode(file: BinaryIO, wanted, exif: bytes | None = None) -> list:
    results, left = {}, dict(enumerate(wanted))
    while left:
        side, _ = next(iter(left.values()))
        picture = open_picture(file, side)
        alike = list(left)
        if picture.format == "JPEG":  # which depends on the side
            others = {n: open_picture(file, s).size for n, (s, _) in left.items() if s != side}
            alike = [n for n in left if others.get(n, picture.size) == picture.size]
        with in_flight.hold(bytes_of(picture)):
            made = _convert(file, picture, [left.pop(number)[1] for number in alike], exif)
            del picture
        results.update(zip(alike, made, strict=True))
    return [results[number] for number in range(len(wanted))]


def _opened(source) -> contextlib.AbstractContextManager[BinaryIO]:
    return io.BytesIO(source) if isinstance(source, bytes) else formats.open_regular(source)


def _convert(file: BinaryIO | None, picture, shrinks: Sequence[Shrink], exif: bytes | None) -> list:
    """What each of ``shrinks`` makes of a picture."""
    if is_high_depth(picture):
        return decode_high_depth(file, picture, shrinks, exif)
    upright = to_rgb(turned(picture, exif))
    return [shrink(upright) for shrink in shrinks]
