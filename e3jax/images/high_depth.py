"""Images of more than 8 bits, whose values wait for the range that a collection shares."""

from typing import NamedTuple

import numpy as np

from e3jax.images.arrays import common_bulk, common_extremes
from e3jax.images.squares import has_vanished, is_near_white


class ValueRange(NamedTuple):
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

    def filled(self, other: "ValueRange") -> "ValueRange":
        """The scale of both collections; what is not known here is taken from the other."""
        ranges = (a if a is not None else b for a, b in zip(self[:2], other[:2], strict=True))
        return ValueRange(*ranges, *map(tuple, np.add(self[2:], other[2:]).tolist()))

    def conflicts(self, other: "ValueRange") -> list[tuple]:
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


class HighDepthImage(NamedTuple):
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

    def to_uint8(self, scale: ValueRange) -> np.ndarray:
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

    def is_clipped(self, scale: ValueRange) -> bool:
        """Whether the file has values outside of the scale, beyond rounding of floats."""
        black, white = scale.floats if self.are_floats else scale.integers
        rounding = 1e-3 * (white - black) if self.are_floats else 0
        lowest, highest = self.outermost
        return bool(lowest < black - rounding or white + rounding < highest)


def common_range(images: list[HighDepthImage], known: ValueRange | None = None) -> ValueRange:
    """The scale that images share, if it is not ``known``, and how many are clipped by it.

    Integers from 0: the smallest of 8, 10, 12, 14 and 16 bits that holds them all. Floats: 0 to 1
    or 0 to 255, with a tolerance for rounding, if more than a quarter of that is used. Otherwise
    from the smallest to the largest value, which start at 0 for integers that are not negative.
    Isolated values, and a few files that are unlike the others, do not count. For the bits of
    integers neither do values up to twice as large as these bits hold, if they are up to 1 %
    of a file, or in up to a quarter of five files or more.
    """
    groups = [[image for image in images if image.are_floats == are] for are in (False, True)]
    shared = ValueRange(*(_range(group) if group else None for group in groups))
    scale = shared if known is None else ValueRange(*known[:2]).filled(shared)
    return scale._replace(
        clipped=tuple(sum(image.is_clipped(scale) for image in group) for group in groups),
        lacking=tuple(sum(bool(image.lacks_data) for image in group) for group in groups),
    )


def _range(images: list[HighDepthImage]) -> tuple[float, float]:
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
