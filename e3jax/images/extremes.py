"""The smallest and largest values of images, without a few that are far from all others."""

import numpy as np

from e3jax.shapes import Float, Float64, Num

_SAMPLE = 1 << 16  # values of an image that are sorted
_VALUES = 1 << 22  # that are looked at together


def usual_range(extremes: Float[np.ndarray, "n 2"]) -> tuple[float, float] | None:
    """Guesses the value range of float images: 0 to 1, -1 to 1, 0 to 255, else their own range.

    Values may lie outside a usual range by rounding, a thousandth of it. Those up to 255 must use
    more than half of it: images from 0 to 16 have their own range. A few images that are unlike
    the others do not count, see `common_extremes`.

    Args:
      extremes: float [n, 2], see `value_extremes`.

    Returns:
      The values that are black and white; None for values that are not finite.
    """
    if not np.isfinite(extremes).all():
        return None
    lowest, highest = common_extremes(extremes)
    for low, high in ((0.0, 1.0), (-1.0, 1.0), *[(0.0, 255.0)] * (highest > 127.5)):
        rounding = (high - low) / 1000
        if low - rounding <= lowest and highest <= high + rounding:
            return low, high
    return lowest, highest


def value_extremes(images: Num[np.ndarray, "n ..."]) -> Float64[np.ndarray, "n 2"]:
    """The smallest and the largest value of each image, without isolated ones.

    Hot pixels and a few without data, say: at either end up to 1 % of an image's values are left
    out if the gap between them and the others is wider than the range of all others.

    Args:
      images: numbers [n, ...]; of [n, h, w, c] with opacities, c 2 or 4, the colours count.

    Returns:
      float64 [n, 2]; NaN for images with values that are not finite.
    """
    colours = images[..., :-1] if images.ndim == 4 and images.shape[-1] in (2, 4) else images
    rows = np.atleast_1d(colours).reshape(len(images), -1)
    count = max(_VALUES // rows.shape[1], 1)
    blocks = [rows[start : start + count] for start in range(0, len(rows), count)]
    return np.concatenate(list(map(_extremes_of_rows, blocks)))


def _extremes_of_rows(rows: np.ndarray) -> np.ndarray:
    outermost = np.stack([rows.min(axis=1), rows.max(axis=1)], axis=1).astype(np.float64)
    stride = sample_stride(rows.shape[1])
    sample = rows[:, ::stride].astype(np.float64)
    ends = inner_extremes(sample if stride == 1 else np.hstack([sample, outermost]))
    return np.where(np.isfinite(outermost).all(axis=1, keepdims=True), ends, np.nan)


def sample_stride(n: int) -> int:
    """The step between the values of an image of n values that are sorted.

    It is odd, so that the columns of pixels differ.
    """
    return n // _SAMPLE | 1


def inner_extremes(values: Float64[np.ndarray, "n m"]) -> Float64[np.ndarray, "n 2"]:
    """`value_extremes` [n, 2] of values float64 [n, m] that include each image's outermost ones."""
    ordered = np.sort(values, axis=1)
    return _inner(ordered, ordered, -(-values.shape[1] // 100))


def common_extremes(extremes: Float[np.ndarray, "n 2"]) -> tuple[float, float]:
    """The smallest and the largest value of images, without a few images unlike the others.

    At either end up to a quarter of the images is left out, if the gap between their values and
    the others' is wider than the range of all others, whose contrast would be less than half. Of
    four images or fewer all count. Images of a single value do not, if there are three others.

    Args:
      extremes: float64 [n, 2], finite.
    """
    lowest, highest = np.sort(extremes.astype(np.float64)[_are_counted(extremes)], axis=0).T
    n = int(np.count_nonzero(extremes[:, 0] < extremes[:, 1]))
    [[low, high]] = _inner(lowest[None], highest[None], _most_unlike(n))
    return float(low), float(high)


def common_bulk(extremes: Float[np.ndarray, "n 2"], bulks: Float[np.ndarray, " n"]) -> float:
    """The largest of images' values [n], without a quarter of the images of `common_extremes`."""
    n = int(np.count_nonzero(extremes[:, 0] < extremes[:, 1]))
    return float(np.sort(bulks[_are_counted(extremes)])[-1 - _most_unlike(n)])


def _are_counted(extremes: np.ndarray) -> np.ndarray:
    """Whether each image counts, bool [n]: not if it is of a single value and three are not."""
    are_varied = extremes[:, 0] < extremes[:, 1]
    return are_varied if are_varied.sum() > 2 else np.ones_like(are_varied)


def _most_unlike(n: int) -> int:
    """The number of n images that may be unlike the others."""
    return n // 4 if n > 4 else 0


def _inner(lowest: np.ndarray, highest: np.ndarray, count: int) -> np.ndarray:
    """Extremes [n, 2] of sorted values [n, m]; up to ``count`` at an end are left out by a gap."""
    count = min(count, (lowest.shape[1] - 1) // 2)
    low, high = lowest[:, count, None], highest[:, -1 - count, None]
    above = _inner_end(highest[:, -1 - count :], low)
    below = -_inner_end(-lowest[:, count::-1], -high)
    return np.hstack([below, above])


def _inner_end(values: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The last of sorted values [n, m] before a gap wider than all from ``start`` [n, 1] to it."""
    with np.errstate(over="ignore", invalid="ignore"):  # of values that are not finite
        is_gap = (np.diff(values) > values[:, :-1] - start) & (values[:, :1] > start)
    is_last = np.hstack([is_gap, np.ones_like(values[:, :1], bool)])
    return np.take_along_axis(values, is_last.argmax(axis=1)[:, None], axis=1)
