"""Images of more than 8 bits, which wait for the range of values that their collection shares."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from e3jax.images.extremes import common_bulk, common_extremes
from e3jax.images.grounds import has_vanished, is_near_white
from e3jax.shapes import UInt8

Ends = tuple[float, float]  # the values that are black and white


class ValueRange(NamedTuple):
    """The values that are black and white in all files of a collection of more than 8 bits.

    Attributes:
      integers: of files of integers; None if there is none.
      floats: of files of floats; None if there is none.
      clipped: the numbers of files of integers, and of floats, that have values beyond.
      lacking: the numbers of files of integers, and of floats, that have pixels without data.
    """

    integers: Ends | None = None
    floats: Ends | None = None
    clipped: tuple[int, int] = (0, 0)
    lacking: tuple[int, int] = (0, 0)

    def filled(self, other: "ValueRange") -> "ValueRange":
        """The range of both collections; what is not known here is taken from the other."""
        clipped = _added(self.clipped, other.clipped)
        lacking = _added(self.lacking, other.lacking)
        integers, floats = self.integers or other.integers, self.floats or other.floats
        return ValueRange(integers, floats, clipped, lacking)

    def conflicts(self, other: "ValueRange") -> list[tuple[Ends, Ends]]:
        """The pairs of ends that are known here and in another range, and differ."""
        pairs = [(self.integers, other.integers), (self.floats, other.floats)]
        return [(a, b) for a, b in pairs if a and b and tuple(a) != tuple(b)]

    @property
    def notes(self) -> list[str]:
        """Sentences on ends that are not the usual ones, and on values that are not seen."""
        notes, names = [], {"integer": (0, 65535), "float": (0, 1)}
        known = zip(names, (self.integers, self.floats), self.clipped, self.lacking, strict=True)
        for name, ends, *counts in known:
            clipped, lacking = (f", in {n} file{'s' * (n > 1)}" if n else "" for n in counts)
            if ends and (tuple(ends) != names[name] or clipped):
                clipped = clipped and f", and values beyond are clipped{clipped}"
                notes.append(
                    f"{name} files of more than 8 bits are read from {ends[0]:g} (black) to "
                    f"{ends[1]:g} (white){clipped}"
                )
            if lacking:
                notes.append(f"pixels without data of {name} files are black{lacking}")
        return notes


def _added(a: Sequence[int], b: Sequence[int]) -> tuple[int, int]:
    return a[0] + b[0], a[1] + b[1]


class HighDepthImage(NamedTuple):
    """A shrunk image of more than 8 bits, whose black and white are not known yet.

    Attributes:
      values: float32 [h, w, c], c 1 or 3, times alpha.
      alpha: float32 [h, w, 1], opacity; 0 in borders and where there are no data.
      inside: float32 [h, w, 1], 1, or 0 in borders and where there are no data.
      lowest, highest: extreme values of the file, without isolated ones, see
        :func:`e3jax.images.value_extremes`; NaN if all of it is transparent.
      bulk: largest value without 1 % of all, isolated or not; NaN if all of it is transparent.
      outermost: float64 [2], extreme values, with isolated ones.
      moments: float64 [3], sums over pixels and channels of the file of squares of opacities,
        times 1, values and their squares; 0 if all pixels are opaque.
      spread: such a sum of squares of opacities' differences from their mean.
      shade: a value: most of the opacity is at this one or nearer to white; NaN if all pixels are
        opaque or transparent.
      lacks_data: whether there are pixels without data.
      are_floats: else integers.
      inverted: the smallest value is white.
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

    def to_uint8(self, value_range: ValueRange) -> UInt8[np.ndarray, "h w 3"]:
        """Pixels, uint8 [h, w, 3], on a ground as `e3jax.images.opaque` chooses it.

        Values outside the range are clipped.
        """
        black, white = self._ends(value_range)
        if self.inverted:
            black, white = white, black
        shades = (self.values - black * np.float64(self.alpha)) / ((white - black) or 1)
        opacity, values, squares = map(float, self.moments)
        difference = white**2 * opacity - 2 * white * values + squares
        is_white = is_near_white((self.shade - black) / ((white - black) or 1))
        unit = (white - black) ** 2
        if not has_vanished(difference, unit * opacity, unit * self.spread, is_white):
            shades = shades + self.inside - self.alpha  # transparent is white
        pixels = (255 * shades).clip(0, 255).round().astype(np.uint8)
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3))

    def is_clipped(self, value_range: ValueRange) -> bool:
        """Whether the file has values outside the range, beyond rounding of floats."""
        black, white = self._ends(value_range)
        rounding = 1e-3 * (white - black) if self.are_floats else 0
        lowest, highest = self.outermost
        return bool(lowest < black - rounding or white + rounding < highest)

    def _ends(self, value_range: ValueRange) -> Ends:
        ends = value_range.floats if self.are_floats else value_range.integers
        assert ends is not None, "a range of these images, see common_range"
        return ends


def common_range(images: Sequence[HighDepthImage], known: ValueRange | None = None) -> ValueRange:
    """The range that images share, where ``known`` has none, and how many are clipped by it.

    Integers from 0: the smallest of 8, 10, 12, 14 and 16 bits that holds them all. Floats: 0 to 1
    or 0 to 255, with a tolerance for rounding, if more than a quarter of that is used. Otherwise
    from the smallest to the largest value, which start at 0 for integers that are not negative.
    Isolated values, and a few files that are unlike the others, do not count. For the bits of
    integers neither do values up to twice as large as these bits hold, if they are up to 1 %
    of a file, or in up to a quarter of five files or more.
    """
    integers = [image for image in images if not image.are_floats]
    floats = [image for image in images if image.are_floats]
    shared = ValueRange(
        integers=_ends_of_integers(integers) if integers else None,
        floats=_ends_of_floats(floats) if floats else None,
    )
    shared = shared if known is None else ValueRange(known.integers, known.floats).filled(shared)
    groups = (integers, floats)
    return shared._replace(
        clipped=tuple(sum(image.is_clipped(shared) for image in group) for group in groups),
        lacking=tuple(sum(bool(image.lacks_data) for image in group) for group in groups),
    )


def _ends_of_integers(images: Sequence[HighDepthImage]) -> Ends:
    lowest, highest, bulk = _extremes(images)
    for top in (255, 1023, 4095, 16383, 65535):
        # A gap shows what takes more than twice, but depths differ by four times.
        is_rest_small = bulk <= top and highest <= 2 * top < 65535
        if 0 <= lowest and (highest <= top or is_rest_small):
            return 0, top
    return min(lowest, 0.0), highest


def _ends_of_floats(images: Sequence[HighDepthImage]) -> Ends:
    lowest, highest, _ = _extremes(images)
    for top in (1, 255):
        if -1e-3 * top <= lowest and top / 4 < highest <= 1.001 * top:
            return 0, top
    return lowest, highest


def _extremes(images: Sequence[HighDepthImage]) -> tuple[float, float, float]:
    """The lowest and highest value and the bulk of files; 0 if all are transparent."""
    ends = np.array([(image.lowest, image.highest, image.bulk) for image in images])
    ends = ends[np.isfinite(ends).all(axis=1)]
    if not len(ends):
        return 0.0, 0.0, 0.0
    return *common_extremes(ends[:, :2]), common_bulk(ends[:, :2], ends[:, 2])
