"""One image file becomes upright RGB pixels, or values of more than 8 bits, and no program runs.

Of a file's metadata the orientation alone is used. Where Pillow fails on the rest, the file is read
once more without it.
"""

import contextlib
import ctypes
import io
import math
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

from e3jax import essentials, kinds
from e3jax.images import (
    MOST,
    common_bulk,
    common_extremes,
    has_vanished,
    inner_extremes,
    is_near_white,
    opaque,
    sample_stride,
    strips,
)

# --- Values of more than 8 bits ------------------------------------------------------------------


class FileScale(NamedTuple):
    """The values that are black and white in all files of a collection of more than 8 bits.

    integers: of files of integers; None if there is none.
    floats:   of files of floats; None if there is none.
    clipped:  how many files of integers, and of floats, have values beyond.
    lacking:  how many files of integers, and of floats, have pixels without data.
    """

    integers: tuple[float, float] | None = None
    floats: tuple[float, float] | None = None
    clipped: tuple[int, int] = (0, 0)
    lacking: tuple[int, int] = (0, 0)

    def filled(self, other: "FileScale") -> "FileScale":
        """The scale of both collections; what is not known here is taken from the other."""
        ranges = (a if a is not None else b for a, b in zip(self[:2], other[:2], strict=True))
        return FileScale(*ranges, *map(tuple, np.add(self[2:], other[2:]).tolist()))

    def conflicts(self, other: "FileScale") -> list[tuple]:
        """The pairs of ranges that are known here and in another scale, and differ."""
        both = [pair for pair in zip(self[:2], other[:2], strict=True) if None not in pair]
        return [(ours, theirs) for ours, theirs in both if tuple(ours) != tuple(theirs)]

    @property
    def notes(self) -> list[str]:
        """Sentences on ranges that are not the files' own, and on values that are not seen."""
        usual, notes = (("integer", (0, 65535)), ("float", (0, 1))), []
        for (name, full), ends, *counts in zip(usual, self[:2], *self[2:], strict=True):
            clipped, lacking = (f", in {n} file{'s' * (n > 1)}" if n else "" for n in counts)
            if ends and (tuple(ends) != full or clipped):
                clipped = clipped and f", and values beyond are clipped{clipped}"
                notes.append(
                    f"{name} files of more than 8 bits are read from {ends[0]:g} (black) to "
                    f"{ends[1]:g} (white){clipped}"
                )
            if lacking:
                notes.append(f"pixels without data of {name} files are black{lacking}")
        return notes


class Deep(NamedTuple):
    """A shrunk image of more than 8 bits, whose black and white are not known yet.

    values:    float32 [h, w, c], c 1 or 3, times alpha.
    alpha:     float32 [h, w, 1], opacity; 0 in borders and where there are no data.
    inside:    float32 [h, w, 1], 1, or 0 in borders and where there are no data.
    lowest, highest: extreme values of the file, without isolated ones, see
      `e3jax.images.value_extremes`; NaN if all of it is transparent.
    bulk:     largest value without 1 % of all, isolated or not; NaN if all of it is transparent.
    outermost: float64 [2], extreme values, with isolated ones.
    moments:   float64 [3], sums over pixels and channels of the file of squares of opacities,
      times 1, values and their squares; 0 if all pixels are opaque.
    spread:   such a sum of squares of opacities' differences from their mean.
    shade:    a value: most of the opacity is at this one or nearer to white; NaN if all pixels are
      opaque or transparent.
    lacks_data: whether there are pixels without data.
    are_floats: else integers.
    inverted:  the smallest value is white.
    """

    values: np.ndarray
    alpha: np.ndarray
    inside: np.ndarray
    lowest: float
    highest: float
    bulk: float
    outermost: np.ndarray
    moments: np.ndarray
    spread: float
    shade: float
    lacks_data: bool
    are_floats: bool
    inverted: bool

    def to_uint8(self, scale: FileScale) -> np.ndarray:
        """Pixels, uint8 [h, w, 3], on a ground as `e3jax.images.opaque` chooses it.

        Values outside of the scale are clipped.
        """
        black, white = scale.floats if self.are_floats else scale.integers
        if self.inverted:
            black, white = white, black
        shades = (self.values - black * np.float64(self.alpha)) / ((white - black) or 1)
        opacity, values, squares = map(float, self.moments)
        difference = white**2 * opacity - 2 * white * values + squares
        is_white = is_near_white((self.shade - black) / ((white - black) or 1))
        unit = (white - black) ** 2
        if not has_vanished(difference, unit * opacity, unit * self.spread, is_white):
            shades = shades + self.inside - self.alpha  # transparent is white
        pixels = (255 * shades).clip(0, 255).round()
        return np.broadcast_to(np.uint8(pixels), (*pixels.shape[:2], 3))

    def is_clipped(self, scale: FileScale) -> bool:
        """Whether the file has values outside of the scale, beyond rounding of floats."""
        black, white = scale.floats if self.are_floats else scale.integers
        rounding = 1e-3 * (white - black) if self.are_floats else 0
        lowest, highest = self.outermost
        return bool(lowest < black - rounding or white + rounding < highest)


def common_scale(images: list[Deep], known: FileScale | None = None) -> FileScale:
    """The scale that images share, if it is not ``known``, and how many are clipped by it.

    Integers from 0: the smallest of 8, 10, 12, 14 and 16 bits that holds them all. Floats: 0 to 1
    or 0 to 255, with a tolerance for rounding, if more than a quarter of that is used. Otherwise
    from the smallest to the largest value, which start at 0 for integers that are not negative.
    Isolated values, and a few files that are unlike the others, do not count. For the bits of
    integers neither do values up to twice as large as these bits hold, if they are up to 1 %
    of a file, or in up to a quarter of five files or more.
    """
    groups = [[image for image in images if image.are_floats == are] for are in (False, True)]
    shared = FileScale(*(_range(group) if group else None for group in groups))
    scale = shared if known is None else FileScale(*known[:2]).filled(shared)
    return scale._replace(
        clipped=tuple(sum(image.is_clipped(scale) for image in group) for group in groups),
        lacking=tuple(sum(bool(image.lacks_data) for image in group) for group in groups),
    )


def _range(images: list[Deep]) -> tuple[float, float]:
    """The range that images, all of integers or all of floats, share."""
    extremes = np.array([(image.lowest, image.highest, image.bulk) for image in images])
    extremes = extremes[np.isfinite(extremes).all(axis=1)]
    extremes, bulks = extremes[:, :2], extremes[:, 2]
    lowest, highest = common_extremes(extremes) if len(extremes) else (0.0, 0.0)
    if images[0].are_floats:
        tops = [
            top for top in (1, 255) if -1e-3 * top <= lowest and top / 4 < highest <= 1.001 * top
        ]
    else:
        # A gap shows what takes more than twice, but depths differ by four times.
        bulk = common_bulk(extremes, bulks) if len(bulks) else 0.0
        depths = (255, 1023, 4095, 16383, 65535)
        tops = [
            top
            for top in depths
            if 0 <= lowest and (highest <= top or (bulk <= top and highest <= 2 * top < 65535))
        ]
        lowest = min(lowest, 0.0)
    return (0, tops[0]) if tops else (lowest, highest)


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


def _to_rgb(picture):
    """Converts an image of any mode of 8 bits to RGB; transparent ones get a ground."""
    if picture.has_transparency_data:
        return opaque(picture)
    if picture.mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


# --- Decoding more than 8 bits -------------------------------------------------------------------

# Of a box, the values of one channel, float64 [h, w].
_Channel = Callable[[tuple[int, int, int, int]], np.ndarray]
_GDAL_NODATA = 42113  # the tag of pixels without data
_HUGE = 1e37  # what is larger overflows when pixels are averaged in single precision
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
    data = _data(picture, channels)
    opacity = _product(alpha, data)
    turn = _turn(picture, exif)
    visible = _Visible(picture.size, len(channels))

    def shrunk(values: _Channel) -> list[np.ndarray]:
        plane = Image.new("F", picture.size)
        for box in strips(picture.size):
            plane.paste(Image.fromarray(np.float32(values(box))), box)
        plane = plane if turn is None else plane.transpose(turn)
        return [np.asarray(shrink(plane)) for shrink in shrinks]

    def weighted(channel: _Channel) -> _Channel:
        return lambda box: visible.add(channel(box), opacity and opacity(box))

    colours = [shrunk(weighted(channel)) for channel in channels]
    if data is None:
        # Rounding aside, 1 everywhere; what is 0 are borders.
        full = Image.new("L", picture.size, 255)
        full = full if turn is None else full.transpose(turn)
        inside = [np.float32(np.asarray(shrink(full))) / 255 for shrink in shrinks]
    else:
        inside = shrunk(data)
    alphas = inside if alpha is None else shrunk(opacity)
    extremes = visible.extremes()
    return [
        Deep(
            values=np.stack([colour[i] for colour in colours], axis=-1),
            alpha=alphas[i][..., None],
            inside=inside[i][..., None],
            lowest=extremes[0],
            highest=extremes[1],
            bulk=extremes[2],
            outermost=visible.outermost,
            moments=visible.moments,
            spread=visible.spread,
            shade=visible.shade(inverted),
            lacks_data=data is not None,
            are_floats=are_floats,
            inverted=inverted,
        )
        for i in range(len(shrinks))
    ]


class _Visible:
    """What the values of a file's pixels that are not transparent tell, strip by strip."""

    def __init__(self, size: tuple[int, int], channels: int):
        self._count = size[0] * size[1] * channels
        self._stride, self._sample, self._weights = sample_stride(self._count), [], []
        self._opacity = 0.0
        self.outermost, self.moments = np.array([np.inf, -np.inf]), np.zeros(3)

    def add(self, values: np.ndarray, opacity: np.ndarray | None) -> np.ndarray:
        """Looks at values of a strip, and returns them times their opacities."""
        visible = values
        if opacity is not None:
            is_visible = opacity > 0
            values = np.where(is_visible, values, 0)  # what is not finite, times 0, is not 0
            visible, weights = values[is_visible], np.square(opacity)
            powers = (weights, weights * values, weights * np.square(values))
            self.moments += [power.sum() for power in powers]
            self._opacity += float(opacity.sum())
            self._weights.append(opacity[is_visible][:: self._stride].copy())
            values = values * opacity
        if visible.size:
            lowest, highest = self.outermost
            self.outermost = np.array([min(lowest, visible.min()), max(highest, visible.max())])
        self._sample.append(visible.ravel()[:: self._stride].copy())  # not all of the strip
        return values

    def extremes(self) -> tuple[float, float, float]:
        """Extreme values without isolated ones, and the largest without 1 % of all.

        NaN if all pixels are transparent.
        """
        sample = np.concatenate(self._sample)
        if not sample.size:
            return np.nan, np.nan, np.nan
        bulk = np.sort(sample)[-1 - len(sample) // 100]
        ends = [] if self._stride == 1 else [self.outermost]
        [[lowest, highest]] = inner_extremes(np.concatenate([sample, *ends])[None])
        return float(lowest), float(highest), float(bulk)

    @property
    def spread(self) -> float:
        """The sum of squares of opacities' differences from their mean."""
        return float(self.moments[0] - self._opacity**2 / self._count)

    def shade(self, inverted: bool) -> float:
        """The value at which or nearer to white most of the opacity is; NaN if all are opaque."""
        sample = np.concatenate(self._sample)
        if not self._weights or not sample.size:
            return np.nan
        order = np.argsort(sample if inverted else -sample)
        sums = np.cumsum(np.concatenate(self._weights)[order])
        return float(sample[order][np.searchsorted(sums, MOST * sums[-1], side="right")])


def _product(*channels: _Channel | None) -> _Channel | None:
    """The product of channels; None is 1 everywhere."""
    known = [channel for channel in channels if channel is not None]
    return (lambda box: math.prod(np.float64(channel(box)) for channel in known)) if known else None


def _data(picture, channels: Sequence[_Channel]) -> _Channel | None:
    """Where an image has data, 1 or 0; None if it has everywhere.

    Without data are pixels whose values are not finite, or huge, as the largest float is that often
    stands for no data, or what GDAL's tag says.

    Raises:
      ValueError: it has none.
    """
    absent = _absent_value(picture)
    if picture.mode != "F" and math.isnan(absent):
        return None

    def data(box) -> np.ndarray:
        planes = np.stack([channel(box) for channel in channels])
        return ((np.abs(planes) < _HUGE) & (planes != absent)).any(axis=0)

    shares = [data(box).mean() for box in strips(picture.size)]
    if not any(shares):
        raise ValueError("all pixels are not finite or without data")
    return None if min(shares) == 1 else data


def _absent_value(picture) -> float:
    """The value of pixels without data in a TIFF file, as GDAL writes it; NaN if it says none."""
    try:
        value = float(str(picture.tag_v2[_GDAL_NODATA]).strip(" \0"))
    except (AttributeError, KeyError, ValueError):
        return math.nan
    return float(np.float32(value)) if picture.mode == "F" else value


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
