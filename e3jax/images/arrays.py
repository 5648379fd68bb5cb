"""Images as all other modules take them: one uint8 array.

Legend of shapes: ``n`` images, ``h w`` rows and columns, ``c`` channels (last).
"""

import numpy as np

from e3jax.errors import InputError
from e3jax.images.squares import (
    opaque,
    to_picture,
)

_SAMPLE = 1 << 16  # values of an image that are sorted


def checked(images, least: int = 2) -> np.ndarray:
    """Checks an array of images, and adds a channel axis if it has none.

    Args:
      images: uint8 [n, h, w] or [n, h, w, c], h = w even.
      least: smallest allowed n; training needs 2.

    Returns:
      uint8 [n, h, w, c]; it shares memory with ``images`` where NumPy allows it.

    Raises:
      InputError: wrong rank, dtype, number of images or side.

    >>> checked(np.zeros([5, 32, 32], np.uint8)).shape
    (5, 32, 32, 1)
    """
    images = _as_array(images)
    if images.ndim not in (3, 4):
        raise _unexpected(images, "shape", "[n, h, w] or [n, h, w, c]", "stack along a first axis")
    if images.dtype != np.uint8:
        action = "scale to that range and convert with .astype(np.uint8)"
        raise _unexpected(images, "dtype", "uint8 with values 0 to 255", action)
    if images.size == 0 or len(images) < least:
        action = "an outlier needs other images to differ from, so provide a larger collection"
        raise _unexpected(images, "shape", f"at least {least} non-empty images", action)
    h, w = images.shape[1:3]
    if h != w:
        action = "crop, resize or move the channel axis"
        raise _unexpected(images, "shape", "square ones, channels last ([n, h, w, c])", action)
    if h % 2:
        action = f"pad with pad_to(images, {h + 1}) or resize"
        raise _unexpected(images, "shape", "an even side (patch re-arranging halves it)", action)
    return images[..., None] if images.ndim == 3 else images


def to_unit(images):
    """Scales uint8 images to float32 in [-1, 1], the range that networks take."""
    return images.astype("float32") * (2 / 255) - 1


def to_uint8(images, value_range: tuple[float, float] | None = None) -> np.ndarray:
    """Converts an array of images of any common dtype to uint8 [n, h, w, c], c 1 or 3.

    Of 2 or 4 channels the last one is opacity, and images get a ground, see `opaque`. Opacities of
    floats range from 0 to 1, else as the colours do.

    Args:
      images: [n, h, w] or [n, h, w, c], c 1 to 4; integers from 0 to 255, booleans, or floats.
      value_range: the (smallest, largest) value of float images; values outside it are clipped.

    Raises:
      InputError: wrong shape or range, or values that are not finite.
    """
    images = _as_array(images)
    if images.ndim == 3 and images.shape[1] > 4 and 1 <= images.shape[2] <= 4:
        action = "for a single image, channels last, give image[None]"
        raise _unexpected(images, "shape", "[n, h, w] or [n, h, w, c]", action)
    bank = images[..., None] if images.ndim == 3 else images
    if bank.ndim != 4 or bank.shape[-1] > 4 or not bank.size:
        action = "stack them along a first axis, and move channels last"
        if images.ndim == 2:
            action += "; e3jax.E3OutlierDetector takes flattened rows"
        raise _unexpected(images, "shape", "[n, h, w] or [n, h, w, c] with c from 1 to 4", action)
    if not _has_alpha(bank):
        return _to_uint8(bank, value_range)
    colours, alpha = _to_uint8(bank[..., :-1], value_range), bank[..., -1:]
    is_unit = alpha.dtype.kind == "f" and -1e-3 <= alpha.min() and alpha.max() <= 1 + 1e-3
    alpha = _to_uint8(alpha, (0, 1) if is_unit else value_range)
    pictures = map(to_picture, np.concatenate([colours, alpha], axis=-1))
    flat = np.stack([np.asarray(opaque(picture)) for picture in pictures])
    return flat[..., : colours.shape[-1]]


def _has_alpha(bank: np.ndarray) -> bool:
    return bank.ndim == 4 and bank.shape[-1] in (2, 4)


def _to_uint8(bank: np.ndarray, value_range: tuple[float, float] | None) -> np.ndarray:
    """Converts [n, h, w, c] channel by channel."""
    kind = bank.dtype.kind
    if kind == "b":
        value_range = (0, 1)
    if kind in "bf":
        if not np.isfinite(bank).all():
            raise InputError("images have values that are not finite: replace or drop them")
        if value_range is None:
            raise InputError("images are floats of an unknown range: give value_range")
        lowest, highest = map(float, value_range)
        # In parts and in double precision, in which no range of narrower floats overflows.
        parts = (bank[i : i + 1024].astype(np.float64) for i in range(0, len(bank), 1024))
        unit = ((part - lowest) / (highest - lowest or 1) for part in parts)
        return np.concatenate([np.uint8((255 * part.clip(0, 1)).round()) for part in unit])
    if kind not in "iu" or bank.min() < 0 or bank.max() > 255:
        raise _unexpected(bank, "dtype", "integers from 0 to 255 or floats", "rescale them")
    return bank.astype(np.uint8, copy=False)


def usual_range(extremes) -> tuple[float, float] | None:
    """Guesses the value range of float images: 0 to 1, -1 to 1, 0 to 255, else their own range.

    Values may lie outside a usual range by rounding, a thousandth of it. Those up to 255 must use
    more than half of it: images from 0 to 16 have their own range. A few images that are unlike
    the others do not count, see `common_extremes`.

    Args:
      extremes: float [n, 2], see `value_extremes`.

    Returns:
      None for numbers of other dtypes and for values that are not finite.
    """
    extremes = _as_array(extremes)
    if extremes.dtype.kind != "f" or not extremes.size or not np.isfinite(extremes).all():
        return None
    lowest, highest = common_extremes(extremes.reshape(-1, 2))
    for low, high in ((0.0, 1.0), (-1.0, 1.0), *[(0.0, 255.0)] * (highest > 127.5)):
        rounding = (high - low) / 1000
        if low - rounding <= lowest and highest <= high + rounding:
            return low, high
    return lowest, highest


def value_extremes(images: np.ndarray) -> np.ndarray:
    """The smallest and the largest value of each image, without isolated ones.

    Hot pixels and a few without data, say: at either end up to 1 % of an image's values are left
    out if the gap between them and the others is wider than the range of all others.

    Args:
      images: float [n, ...]; of [n, h, w, c] with opacities the colours count.

    Returns:
      float64 [n, 2]; NaN for images with values that are not finite.
    """
    rows = images[..., :-1] if _has_alpha(images) else np.atleast_1d(images)
    rows = rows.reshape(len(rows), -1)
    m = max((1 << 22) // rows.shape[1], 1)
    return np.concatenate([_value_extremes(rows[i : i + m]) for i in range(0, len(rows), m)])


def _value_extremes(rows: np.ndarray) -> np.ndarray:
    outer = np.stack([rows.min(axis=1), rows.max(axis=1)], axis=1).astype(np.float64)
    stride = sample_stride(rows.shape[1])
    sample = rows[:, ::stride].astype(np.float64)
    ends = inner_extremes(sample if stride == 1 else np.hstack([sample, outer]))
    return np.where(np.isfinite(outer).all(axis=1, keepdims=True), ends, np.nan)


def sample_stride(n: int) -> int:
    """Of n values each how many-th is looked at; odd, so that columns of pixels differ."""
    return n // _SAMPLE | 1


def inner_extremes(values: np.ndarray) -> np.ndarray:
    """As `value_extremes`, of values float64 [n, m] that include each image's extreme ones."""
    ordered = np.sort(values, axis=1)
    return _inner(ordered, ordered, -(-values.shape[1] // 100))


def common_extremes(extremes: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest value of images, without a few images unlike the others.

    At either end up to a quarter of the images is left out, if the gap between their values and
    the others' is wider than the range of all others, whose contrast would be less than half. Of
    four images or fewer all count. Images of a single value do not, if there are three others.

    Args:
      extremes: float64 [n, 2], finite.
    """
    lowest, highest = np.sort(np.float64(extremes)[_are_counted(extremes)], axis=0).T
    n = np.count_nonzero(extremes[:, 0] < extremes[:, 1])
    [[low, high]] = _inner(lowest[None], highest[None], _most_unlike(n))
    return float(low), float(high)


def common_bulk(extremes: np.ndarray, bulks: np.ndarray) -> float:
    """The largest of images' values [n], without a quarter of the images of `common_extremes`."""
    n = np.count_nonzero(extremes[:, 0] < extremes[:, 1])
    return float(np.sort(bulks[_are_counted(extremes)])[-1 - _most_unlike(n)])


def _are_counted(extremes: np.ndarray) -> np.ndarray:
    """Which images are not of a single value; all, if that leaves fewer than three."""
    are_varied = extremes[:, 0] < extremes[:, 1]
    return are_varied if are_varied.sum() > 2 else np.ones_like(are_varied)


def _most_unlike(n: int) -> int:
    """How many of n images may be unlike the others."""
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


def pad_to(images: np.ndarray, side: int) -> np.ndarray:
    """Pads [n, h, w, c] with zeros on all sides to [n, side, side, c].

    MNIST's 28 x 28 images become 32 x 32 with two black pixels on each side. Where the margin is
    odd, the extra pixel is on the right or at the bottom.

    Raises:
      InputError: the array does not have four axes, or an image is larger than ``side``.
    """
    images = _as_array(images)
    if images.ndim != 4 or max(images.shape[1:3]) > side:
        action = "choose a larger side, or crop or resize the images"
        raise _unexpected(images, "shape", f"[n, h, w, c] with h, w <= {side}", action)
    margins = [((side - length) // 2, (side - length + 1) // 2) for length in images.shape[1:3]]
    return np.pad(images, [(0, 0), *margins, (0, 0)])


def _unexpected(images: np.ndarray, what: str, expected: str, action: str) -> InputError:
    """Makes the error for images of the wrong shape or dtype."""
    return InputError(f"images have {what} {getattr(images, what)}, expected {expected}: {action}")


def _as_array(images) -> np.ndarray:
    try:
        return np.asarray(images)
    except ValueError as error:  # NumPy's message for a ragged list does not mention images
        raise InputError("images have different shapes: crop or resize them") from error
