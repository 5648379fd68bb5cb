"""One image file becomes upright RGB pixels, or values of more than 8 bits.

No other program is started. Of a file's metadata only the orientation is used; where Pillow fails
on the rest, the file is read once more without it.
"""

import contextlib
import io
import os
from collections.abc import Sequence

from PIL import Image, UnidentifiedImageError

from e3jax.images import formats, repair
from e3jax.images.channels import is_high_depth
from e3jax.images.high_depth import HighDepthImage
from e3jax.images.high_depth_decoding import decode_high_depth
from e3jax.images.memory import in_flight
from e3jax.images.pillow import Shrink, bytes_of, open_picture, to_rgb

_REREAD = 1 << 28  # bytes of the largest file that is read without its metadata

Wanted = tuple[int, Shrink]
Decoded = Image.Image | HighDepthImage


class NotAnImage(ValueError):
    """A file's content is not an image of a format that is read; says why in a few words."""


def decode(source: str | os.PathLike | bytes | Image.Image, *wanted: Wanted) -> Sequence[Decoded]:
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
    if isinstance(source, Image.Image):
        return _convert(None, source, [shrink for _, shrink in wanted])
    with _opened(source) as file:
        try:
            return _decode(file, wanted)
        except MemoryError:
            raise
        except Exception as failure:
            error = failure.with_traceback(None)  # which holds on to the pixels
        file.seek(0)
        format = formats.format_of(file.read(formats.HEAD))
        if remedy := formats.remedy(format):
            raise NotAnImage(f"{format}: {remedy}")
        if results := _decode_without_metadata(format, file, wanted):
            return results
    if isinstance(error, UnidentifiedImageError):
        raise NotAnImage("not an image" + (f", though it starts as {format}" if format else ""))
    raise error


def _opened(
    source: str | os.PathLike | bytes,
) -> contextlib.AbstractContextManager[formats.OpenFile]:
    return io.BytesIO(source) if isinstance(source, bytes) else formats.open_regular(source)


def _decode_without_metadata(
    format: str, file: formats.OpenFile, wanted: Sequence[Wanted]
) -> list[Decoded]:
    """What `decode` returns for a file without its metadata; [] if that fails as well."""
    if file.seek(0, io.SEEK_END) > _REREAD:
        return []
    file.seek(0)
    try:
        if repaired := repair.strip_metadata(format, file.read()):
            content, exif = repaired
            return _decode(io.BytesIO(content), wanted, exif)
    except MemoryError:
        raise
    except Exception:  # the first error says more
        pass
    return []


def _decode(
    file: formats.OpenFile, wanted: Sequence[Wanted], exif: bytes | None = None
) -> list[Decoded]:
    results, left = {}, dict(enumerate(wanted))
    while left:
        side, _ = next(iter(left.values()))
        picture = open_picture(file, side)
        alike = list(left)
        if picture.format == "JPEG":  # whose size depends on the side
            sizes = {n: open_picture(file, s).size for n, (s, _) in left.items() if s != side}
            alike = [n for n in left if sizes.get(n, picture.size) == picture.size]
        with in_flight.hold(bytes_of(picture)):
            shrinks = [left.pop(number)[1] for number in alike]
            results.update(zip(alike, _convert(file, picture, shrinks, exif), strict=True))
            del picture
    return [results[number] for number in range(len(wanted))]


def _convert(
    file: formats.OpenFile | None,
    picture: Image.Image,
    shrinks: Sequence[Shrink],
    exif: bytes | None = None,
) -> Sequence[Decoded]:
    """What each of ``shrinks`` makes of a picture."""
    if is_high_depth(picture):
        return decode_high_depth(file, picture, shrinks, exif)
    upright = to_rgb(picture, exif)
    return [shrink(upright) for shrink in shrinks]
