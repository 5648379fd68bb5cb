"""One image file becomes upright RGB pixels, or values of more than 8 bits, and no program runs.

Of a file's metadata the orientation alone is used. Where Pillow fails on the rest, the file is read
once more without it.
"""

import contextlib
import ctypes
import io
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

from e3jax import essentials, kinds

# --- Values of more than 8 bits ------------------------------------------------------------------


class FileScale(NamedTuple):
    """The values that are black and white in all files of a collection of more than 8 bits.

    integers: of files of integers; None if there is none.
    floats:   of files of floats; None if there is none.
    """

    integers: tuple[float, float] | None = None
    floats: tuple[float, float] | None = None

    def filled(self, other: "FileScale") -> "FileScale":
        """What is not known here is taken from another scale."""
        return FileScale(*(a if a is not None else b for a, b in zip(self, other, strict=True)))

    def conflicts(self, other: "FileScale") -> list[tuple]:
        """The pairs of ranges that are known here and in another scale, and differ."""
        both = [pair for pair in zip(self, other, strict=True) if None not in pair]
        return [(ours, theirs) for ours, theirs in both if tuple(ours) != tuple(theirs)]

    @property
    def notes(self) -> list[str]:
        """One sentence for each range that is not the files' own."""
        what = (("integer", self.integers, (0, 65535)), ("float", self.floats, (0, 1)))
        return [
            f"{name} files of more than 8 bits are read from {found[0]:g} (black) to {found[1]:g} "
            "(white)"
            for name, found, own in what
            if found and tuple(found) != own
        ]


class Deep(NamedTuple):
    """A shrunk image of more than 8 bits, whose black and white are not known yet.

    values: float32 [h, w, c], c 1 or 3, times alpha.
    alpha:  float32 [h, w, 1], opacity; 0 in borders.
    inside: float32 [h, w, 1], 1, or 0 in borders.
    lowest, highest: extreme values of the file.
    are_floats: else integers.
    inverted: the smallest value is white.
    """

    values: np.ndarray
    alpha: np.ndarray
    inside: np.ndarray
    lowest: float
    highest: float
    are_floats: bool
    inverted: bool

    def to_uint8(self, scale: FileScale) -> np.ndarray:
        """Pixels, uint8 [h, w, 3]; values outside of the scale are clipped."""
        black, white = scale.floats if self.are_floats else scale.integers
        if self.inverted:
            black, white = white, black
        shades = (self.values - black * np.float64(self.alpha)) / ((white - black) or 1)
        pixels = 255 * (shades + self.inside - self.alpha)  # transparent is white
        return np.broadcast_to(np.uint8(pixels.clip(0, 255).round()), (*pixels.shape[:2], 3))


def common_scale(images: list[Deep]) -> FileScale:
    """The scale that images share.

    Integers from 0: the smallest of 8, 10, 12, 14 and 16 bits that holds them all. Floats: 0 to 1
    or 0 to 255, with a tolerance for rounding, if more than a quarter of that is used. Otherwise
    from the smallest to the largest value, which start at 0 for integers that are not negative.
    """
    ranges = []
    for are_floats in (False, True):
        of_kind = [image for image in images if image.are_floats == are_floats]
        if not of_kind:
            ranges.append(None)
            continue
        lowest = min(image.lowest for image in of_kind)
        highest = max(image.highest for image in of_kind)
        if are_floats:
            usual = [
                top
                for top in (1, 255)
                if -1e-3 * top <= lowest and top / 4 < highest <= 1.001 * top
            ]
        else:
            usual = [
                top for top in (255, 1023, 4095, 16383, 65535) if 0 <= lowest <= highest <= top
            ]
            lowest = min(lowest, 0)
        ranges.append((0, usual[0]) if usual else (float(lowest), float(highest)))
    return FileScale(*ranges)


# --- Memory --------------------------------------------------------------------------------------


class _Budget:
    """Bounds the bytes of pixels that all threads of the process hold at a time.

    A picture that is larger than all of it waits until it is alone.
    """

    def __init__(self, limit: int):
        self._limit, self._used = limit, 0
        self._changed, self._turn = threading.Condition(), threading.Lock()

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        with self._turn, self._changed:  # in turn, or small pictures would always pass large ones
            self._changed.wait_for(lambda: not self._used or self._used + size <= self._limit)
            self._used += size
        try:
            yield
        finally:
            if size > _TRIMMED:
                trim()
            with self._changed:
                self._used -= size
                self._changed.notify_all()


def trim() -> None:
    """Gives free memory back to the system, which glibc keeps for each thread."""
    with contextlib.suppress(Exception):  # other libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)


_TRIMMED = 1 << 26  # bytes
_in_flight = _Budget(1 << 29)
# Bytes per pixel: two copies of four bytes; decoders that hold copies of their own.
_COPIES, _HUNGRY = 8, {"WEBP": 24, "AVIF": 24, "HEIF": 24, "JXL": 24, "JPEG2000": 24}
_STRIP = 1 << 18  # pixels that are converted at a time
_REREAD = 1 << 28  # bytes of the largest file that is read without its metadata


# --- Decoding ------------------------------------------------------------------------------------

# Makes an upright image of Pillow's small, of mode RGB, L or F.
Shrink = Callable
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


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
      What each ``shrink`` made of the RGB image, or a `Deep`.

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
        kind = kinds.kind_of(file.read(kinds.HEAD))
        if remedy := kinds.remedy(kind):
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
        if found := essentials.of(kind, file.read()):
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
        picture = _open(file, side)
        alike = list(left)
        if picture.format == "JPEG":  # which depends on the side
            others = {n: _open(file, s).size for n, (s, _) in left.items() if s != side}
            alike = [n for n in left if others.get(n, picture.size) == picture.size]
        with _in_flight.hold(_bytes(picture)):
            made = _convert(file, picture, [left.pop(number)[1] for number in alike], exif)
            del picture
        results.update(zip(alike, made, strict=True))
    return [results[number] for number in range(len(wanted))]


def _opened(source) -> contextlib.AbstractContextManager[BinaryIO]:
    return io.BytesIO(source) if isinstance(source, bytes) else kinds.open_regular(source)


def _convert(file: BinaryIO | None, picture, shrinks: Sequence[Shrink], exif: bytes | None) -> list:
    """What each of ``shrinks`` makes of a picture."""
    if _is_deep(picture):
        return _deep(file, picture, shrinks, exif)
    upright = _to_rgb(_turned(picture, exif))
    return [shrink(upright) for shrink in shrinks]


def _open(file: BinaryIO, side: int):
    """Opens an image, whose pixels are not decoded yet."""
    from PIL import Image

    picture = Image.open(file, formats=kinds.formats())
    picture.draft("RGB", (2 * side, 2 * side))
    if picture.format == "TIFF" and picture.tile:
        _correct_tiff(picture)
    return picture


def _correct_tiff(picture) -> None:
    """Corrects how Pillow unpacks TIFF files of more than 8 bits, before they are decoded."""
    raw = _rawmode(picture)
    if picture.tile[0][0] == "libtiff":  # which has swapped the bytes already
        _set_rawmode(picture, lambda raw: re.sub(r"(\d)B", r"\1N", raw))
    elif len(raw) == 1 and 16 in picture.tag_v2.get(258, ()):  # one of several planes
        order = "B" if picture.tag_v2.prefix == b"MM" else "L"
        _set_rawmode(picture, lambda raw: f"{raw};16{order}")


def _rawmode(picture) -> str:
    """How pixels are stored in a file, e.g. "RGB;16B"; "" where the decoder alone knows."""
    if not getattr(picture, "tile", ()):  # none in memory
        return ""
    args = picture.tile[0][3]
    raw = args[0] if isinstance(args, tuple) and args else args
    return raw if isinstance(raw, str) else ""


def _set_rawmode(picture, change: Callable[[str], str]) -> None:
    tiles = []
    for tile in picture.tile:
        args = tile[3]
        new = change(args) if isinstance(args, str) else (change(args[0]), *args[1:])
        tiles.append(tile._replace(args=new))
    picture.tile = tiles


def _bytes(picture) -> int:
    """About as many bytes as decoding and converting a picture takes."""
    width, height = picture.size
    per_pixel = _HUNGRY.get(picture.format, _COPIES)
    if ";16" in _rawmode(picture):
        per_pixel += 12
    needed = width * height * per_pixel
    if picture.format == "JPEG" and picture.info.get("progressive"):
        (_, _, right, bottom), scale = picture.tile[0][1], picture.decoderconfig[0]
        needed += right * bottom * scale**2 * 6  # all coefficients, whatever the size
    return needed


def _turned(picture, exif: bytes | None = None):
    """Decodes an image and turns it upright, as it is if its orientation cannot be read."""
    picture.load()
    if (turn := _turn(picture, exif)) is None:
        return picture
    return picture.transpose(turn)


def _turn(picture, exif: bytes | None):
    from PIL import Image

    if picture.format == "TIFF":  # Pillow turns these itself
        return None
    if exif is None and not picture.info:  # no metadata, which Pillow takes longer to find out
        return None
    try:
        if exif is None:
            found = picture.getexif()
        else:
            found = Image.Exif()
            found.load(exif)
        return getattr(Image.Transpose, _TURNS[found[0x0112]])
    except Exception:  # damaged in any way, or there is none
        return None


def _strips(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Boxes that cover an image from top to bottom."""
    width, height = size
    rows = max(_STRIP // width, 1)
    for top in range(0, height, rows):
        yield 0, top, width, min(top + rows, height)


def _to_rgb(picture):
    """Converts an image of any mode of 8 bits to RGB; transparent pixels become white."""
    from PIL import Image

    if picture.has_transparency_data:
        opaque = Image.new("RGB", picture.size)
        for box in _strips(picture.size):
            strip = picture.crop(box).convert("RGBA")
            white = Image.new("RGBA", strip.size, "white")
            opaque.paste(Image.alpha_composite(white, strip).convert("RGB"), box)
        return opaque
    if picture.mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


# --- Decoding more than 8 bits -------------------------------------------------------------------

# Of a box, the values of one channel, float64 [h, w].
_Channel = Callable[[tuple[int, int, int, int]], np.ndarray]
# Colours of 16 bits, of which Pillow keeps the high bytes. Not premultiplied ones ("RGBa").
_COLOURS = re.compile(r"(RGB|RGBA|RGBX|LA|[RGBA]);16[BLN]")


def _is_deep(picture) -> bool:
    """Whether an image that is not decoded yet has values of more than 8 bits."""
    if picture.mode in ("RGB", "RGBA"):
        return _COLOURS.fullmatch(_rawmode(picture)) is not None
    return picture.mode.startswith(("I", "F"))


def _deep(file: BinaryIO, picture, shrinks: Sequence[Shrink], exif: bytes | None) -> list[Deep]:
    """Decodes an image of more than 8 bits, a channel and a strip at a time, and shrinks it."""
    from PIL import Image

    are_floats = picture.mode == "F"
    inverted = picture.format == "TIFF" and picture.tag_v2.get(262) == 0  # WhiteIsZero
    channels, alpha = _channels(file, picture)
    turn = _turn(picture, exif)
    extremes = []

    def shrunk(values: _Channel) -> list[np.ndarray]:
        plane = Image.new("F", picture.size)
        for box in _strips(picture.size):
            plane.paste(Image.fromarray(np.float32(values(box))), box)
        plane = plane if turn is None else plane.transpose(turn)
        return [np.asarray(shrink(plane)) for shrink in shrinks]

    def opaque(channel: _Channel) -> _Channel:
        def values(box):
            found = channel(box)
            extremes.extend((found.min(), found.max()))
            return found if alpha is None else found * alpha(box)

        return values

    colours = [shrunk(opaque(channel)) for channel in channels]
    # Rounding aside, 1 everywhere; what is 0 are borders.
    full = Image.new("L", picture.size, 255)
    full = full if turn is None else full.transpose(turn)
    inside = [np.float32(np.asarray(shrink(full))) / 255 for shrink in shrinks]
    alphas = inside if alpha is None else shrunk(alpha)
    if not np.isfinite(extremes).all():
        raise ValueError("pixels that are not finite")
    return [
        Deep(
            values=np.stack([colour[i] for colour in colours], axis=-1),
            alpha=alphas[i][..., None],
            inside=inside[i][..., None],
            lowest=float(min(extremes)),
            highest=float(max(extremes)),
            are_floats=are_floats,
            inverted=inverted,
        )
        for i in range(len(shrinks))
    ]


def _channels(file: BinaryIO, picture) -> tuple[list[_Channel], _Channel | None]:
    """Decodes an image of more than 8 bits; returns its colours, and its opacity if it has one."""
    raw = _rawmode(picture)
    if picture.mode.startswith(("I", "F")):
        found = [_grey(picture)]
    elif raw.startswith("LA"):  # four bytes, which are taken for four channels
        _set_rawmode(picture, lambda raw: "RGBA")
        bands = picture.split()
        found = [_joined(bands[0], bands[1]), _joined(bands[2], bands[3])]
    else:
        low = _open(file, 1)
        _set_rawmode(low, lambda raw: raw[:-1] + ("L" if raw[-1] == "B" else "B"))
        low.load()
        picture.load()
        found = [_joined(*bands) for bands in zip(picture.split(), low.split(), strict=True)]
    if len(found) in (2, 4):
        *found, opacity = found
        return found, lambda box: opacity(box) / 65535
    hidden = np.ravel(picture.info.get("transparency", ()))
    if len(hidden) != len(found):
        return found, None
    # The colour that a PNG file declares transparent.
    return found, lambda box: np.any(
        [channel(box) != value for channel, value in zip(found, hidden, strict=True)], axis=0
    )


def _grey(picture) -> _Channel:
    tags = getattr(picture, "tag_v2", {})
    unsigned = picture.mode == "I" and tags.get(258) == (32,) and tags.get(339, (1,)) == (1,)
    picture.load()

    def values(box):
        found = np.asarray(picture.crop(box))
        return np.float64(found.view(np.uint32) if unsigned else found)

    return values


def _joined(high, low) -> _Channel:
    return lambda box: 256.0 * np.asarray(high.crop(box)) + np.asarray(low.crop(box))
