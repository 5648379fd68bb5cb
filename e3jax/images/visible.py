"""Decodes images of more than 8 bits, a channel and a strip at a time."""

import math
import re
from collections.abc import Callable, Sequence
from typing import BinaryIO

import numpy as np

from e3jax.images.arrays import inner_extremes, sample_stride
from e3jax.images.high_depth import HighDepthImage
from e3jax.images.pillow import Shrink, open_picture, rawmode, set_rawmode, upright
from e3jax.images.squares import MOST, strips

# Of a box, the values of one channel, float64 [h, w].
Channel = Callable[[tuple[int, int, int, int]], np.ndarray]
_GDAL_NODATA = 42113  # the tag of pixels without data
HUGE = 1e37  # what is larger overflows when pixels are averaged in single precision
# Colours of 16 bits, of which Pillow keeps the high bytes. Not premultiplied ones ("RGBa").
_COLOURS = re.compile(r"(RGB|RGBA|RGBX|LA|[RGBA]);16[BLN]")


def is_high_depth(picture) -> bool:
    """Whether an image that is not decoded yet has values of more than 8 bits."""
    if picture.mode in ("RGB", "RGBA"):
        return _COLOURS.fullmatch(rawmode(picture)) is not None
    return picture.mode.startswith(("I", "F"))


def decode_high_depth(
    file: BinaryIO, picture, shrinks: Sequence[Shrink], exif: bytes | None
) -> list[HighDepthImage]:
    """Decodes an image of more than 8 bits, a channel and a strip at a time, and shrinks it."""
    from PIL import Image

    are_floats = picture.mode == "F"
    inverted = picture.format == "TIFF" and picture.tag_v2.get(262) == 0  # WhiteIsZero
    channels, alpha = _channels(file, picture)
    data = _data(picture, channels)
    opacity = _product(alpha, data)
    turn = upright(picture, exif)
    visible = Visible(picture.size, len(channels))

    def shrunk(values: Channel) -> list[np.ndarray]:
        plane = Image.new("F", picture.size)
        for box in strips(picture.size):
            plane.paste(Image.fromarray(np.float32(values(box))), box)
        plane = plane if turn is None else plane.transpose(turn)
        return [np.asarray(shrink(plane)) for shrink in shrinks]

    def weighted(channel: Channel) -> Channel:
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
        HighDepthImage(
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


class Visible:
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


def _product(*channels: Channel | None) -> Channel | None:
    """The product of channels; None is 1 everywhere."""
    known = [channel for channel in channels if channel is not None]
    return (lambda box: math.prod(np.float64(channel(box)) for channel in known)) if known else None


def _data(picture, channels: Sequence[Channel]) -> Channel | None:
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
        return ((np.abs(planes) < HUGE) & (planes != absent)).any(axis=0)

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


def _channels(file: BinaryIO, picture) -> tuple[list[Channel], Channel | None]:
    """Decodes an image of more than 8 bits; returns its colours, and its opacity if it has one."""
    raw = rawmode(picture)
    if picture.mode.startswith(("I", "F")):
        found = [_grey(picture)]
    elif raw.startswith("LA"):  # four bytes, which are taken for four channels
        set_rawmode(picture, lambda raw: "RGBA")
        bands = picture.split()
        found = [_joined(bands[0], bands[1]), _joined(bands[2], bands[3])]
    else:
        low = open_picture(file, 1)
        set_rawmode(low, lambda raw: raw[:-1] + ("L" if raw[-1] == "B" else "B"))
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


def _grey(picture) -> Channel:
    tags = getattr(picture, "tag_v2", {})
    unsigned = picture.mode == "I" and tags.get(258) == (32,) and tags.get(339, (1,)) == (1,)
    picture.load()

    def values(box):
        found = np.asarray(picture.crop(box))
        return np.float64(found.view(np.uint32) if unsigned else found)

    return values


def _joined(high, low) -> Channel:
    return lambda box: 256.0 * np.asarray(high.crop(box)) + np.asarray(low.crop(box))
