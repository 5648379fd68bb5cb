"""Decodes a picture of more than 8 bits, a channel and a strip at a time, and shrinks it."""

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from e3jax.images import formats
from e3jax.images.channels import Channel, both, data_mask, decoded_channels
from e3jax.images.extremes import inner_extremes, sample_stride
from e3jax.images.grounds import MOST, strips
from e3jax.images.high_depth import HighDepthImage
from e3jax.images.pillow import Shrink, orientation


def decode_high_depth(
    file: formats.OpenFile | None,
    picture: Image.Image,
    shrinks: Sequence[Shrink],
    exif: bytes | None,
) -> list[HighDepthImage]:
    """What each of ``shrinks`` makes of a picture of more than 8 bits, upright."""
    is_float = picture.mode == "F"
    inverted = isinstance(picture, TiffImageFile) and picture.tag_v2.get(262) == 0  # WhiteIsZero
    channels, alpha = decoded_channels(file, picture)
    data = data_mask(picture, channels)
    opacity = both(alpha, data) if alpha and data else alpha or data
    turn = orientation(picture, exif)
    visible = VisibleValues(picture.size, len(channels))

    def shrunk(plane: Image.Image) -> list[np.ndarray]:
        plane = plane if turn is None else plane.transpose(turn)
        return [np.asarray(shrink(plane)) for shrink in shrinks]

    def plane_of(values: Channel) -> Image.Image:
        plane = Image.new("F", picture.size)
        for box in strips(picture.size):
            plane.paste(Image.fromarray(np.float32(values(box))), box)
        return plane

    def weighted(channel: Channel) -> Channel:
        return lambda box: visible.add(channel(box), opacity and opacity(box))

    colours = [shrunk(plane_of(weighted(channel))) for channel in channels]
    if data is None:
        # Rounding aside, 1 everywhere; what is 0 are borders.
        full = Image.new("L", picture.size, 255)
        inside = [plane.astype(np.float32) / 255 for plane in shrunk(full)]
    else:
        inside = shrunk(plane_of(data))
    alphas = inside if alpha is None or opacity is None else shrunk(plane_of(opacity))
    lowest, highest, bulk = visible.extremes()
    image = functools.partial(
        HighDepthImage,
        lowest=lowest,
        highest=highest,
        bulk=bulk,
        outermost=visible.outermost,
        moments=visible.moments,
        spread=visible.spread,
        shade=visible.shade(inverted),
        lacks_data=data is not None,
        are_floats=is_float,
        inverted=inverted,
    )
    planes = zip(zip(*colours, strict=True), alphas, inside, strict=True)
    return [
        image(np.stack(values, axis=-1), opacities[..., None], insides[..., None])
        for values, opacities, insides in planes
    ]


class VisibleValues:
    """Statistics of the values of a file's pixels that are not transparent, strip by strip.

    Attributes:
      outermost, moments: see :class:`HighDepthImage`.
    """

    def __init__(self, size: tuple[int, int], channels: int):
        self._count = size[0] * size[1] * channels
        self._stride = sample_stride(self._count)
        self._sample, self._weights, self._opacity = [], [], 0.0
        self.outermost, self.moments = np.array([np.inf, -np.inf]), np.zeros(3)

    def add(self, values: np.ndarray, opacity: np.ndarray | None) -> np.ndarray:
        """Adds the values [h, w] of a strip, and returns them times their opacities."""
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
