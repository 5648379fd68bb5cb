"""The paper's contaminated set: inliers of one class mixed with outliers from the others.

Legend of shapes: ``n`` images, ``h w`` rows and columns, ``c`` channels (last).
"""

import math
import numbers
from typing import NamedTuple

import numpy as np

from e3jax.datasets import content_order
from e3jax.errors import InputError
from e3jax.images import checked


class Contaminated(NamedTuple):
    """Inliers of one class with outliers from the others, shuffled.

    images:     uint8 [n, h, w, c].
    is_outlier: bool [n], for evaluation only: nothing that trains, stops or scores may use it.
    ids:        int64 [n], each image's position in ``content_order``; for arrays that come from
                ``load``, which are in that order, simply an index into them.
    n_inliers, n_outliers: how many of each; their sum is n.
    """

    images: np.ndarray
    is_outlier: np.ndarray
    ids: np.ndarray
    n_inliers: int
    n_outliers: int


def contaminate(
    images: np.ndarray,
    labels: np.ndarray,
    inlier_class: int,
    ratio: float,
    seed: int,
    *,
    max_images: int | None = None,
    cut: int = 12_000,
) -> Contaminated:
    """Makes the paper's unlabelled collection: one class, contaminated with the others.

    The inliers are all N_in images of ``inlier_class``. The outliers are floor(N_in ρ / (1 - ρ))
    images drawn without replacement from all other classes pooled, so that their share of the
    whole set is ρ. All are then shuffled. A set of more than ``cut`` images is cut to ``cut`` after
    shuffling, which the paper does not mention but the authors' code does.

    The draw depends on the images, labels, class, ratio, seed and ``max_images``, but not on the
    order of the images.

    Args:
      images: uint8 [n, h, w, c] or [n, h, w].
      labels: int [n].
      inlier_class: a value of ``labels``.
      ratio: ρ, in (0, 0.5].
      seed: a non-negative integer.
      max_images: for small runs: first draws a subset of the inliers, as many as keep the whole set
        within ``max_images`` at the same ρ (500 at 10 %: 450 inliers and 50 outliers).

    Raises:
      InputError: an argument is wrong, or the set would have fewer than 2 inliers or 2 outliers.

    >>> images = np.random.default_rng(0).integers(0, 256, (200, 4, 4), np.uint8)
    >>> contaminate(images, np.arange(200) % 2, inlier_class=1, ratio=0.1, seed=0).n_outliers
    11
    """
    images, labels = checked(images), np.asarray(labels)
    _check_arguments(images, labels, inlier_class, ratio, seed)
    order = content_order(images, labels)
    is_outlier = labels[order] != inlier_class
    inliers, others = np.flatnonzero(~is_outlier), np.flatnonzero(is_outlier)
    n_inliers = _count_inliers(len(inliers), ratio, max_images)
    n_outliers = count_outliers(n_inliers, ratio)
    where = f"class {inlier_class} at outlier ratio {ratio:g}"
    if min(n_inliers, n_outliers) < 2:
        raise InputError(
            f"{where} has {n_inliers} inliers and {n_outliers} outliers, expected at least 2 each: "
            "increase the ratio or add images of the class"
        )
    if n_outliers > len(others):
        raise InputError(
            f"{where} needs {n_outliers} outliers, but the other classes have {len(others)} "
            "images: lower the ratio or set max_images"
        )

    # Draws differ between any two seeds, classes and ratios (in millionths).
    generator = np.random.default_rng([int(seed), int(inlier_class) % 2**32, round(ratio * 1e6)])
    if n_inliers < len(inliers):
        inliers = generator.choice(inliers, n_inliers, replace=False)
    outliers = generator.choice(others, n_outliers, replace=False)
    ids = generator.permutation(np.concatenate([inliers, outliers]))[:cut]
    count = int(is_outlier[ids].sum())
    return Contaminated(images[order[ids]], is_outlier[ids], ids, len(ids) - count, count)


def count_outliers(n_inliers: int, ratio: float) -> int:
    """The number of outliers that makes their share ``ratio``, rounded down."""
    # The tolerance is for 450 * 0.1 / 0.9, which is 49.99999999999999 in floating point.
    return math.floor(n_inliers * ratio / (1 - ratio) + 1e-9)


def _count_inliers(n_inliers: int, ratio: float, max_images: int | None) -> int:
    """The most inliers, at most n_inliers, whose set with outliers has at most max_images."""
    if max_images is None:
        return n_inliers
    fewest = max(2, math.ceil(2 * (1 - ratio) / ratio - 1e-9))  # with 2 outliers
    if max_images < (least := fewest + count_outliers(fewest, ratio)):
        raise InputError(
            f"max_images is {max_images}, expected at least {least}, which is 2 outliers at "
            f"ratio {ratio:g}: increase max_images or the ratio"
        )
    count = min(n_inliers, math.ceil((max_images + 1) * (1 - ratio)))
    while count + count_outliers(count, ratio) > max_images:
        count -= 1
    return count


def _check_arguments(images, labels, inlier_class, ratio, seed) -> None:
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise InputError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}, expected {len(images)} "
            "integers: provide one label per image"
        )
    if not all(isinstance(number, numbers.Integral) for number in (seed, inlier_class)) or seed < 0:
        raise InputError(
            f"seed is {seed!r} and inlier class is {inlier_class!r}, expected integers, the seed "
            "not negative: change them"
        )
    if not 0 < ratio <= 0.5:
        raise InputError(
            f"outlier ratio is {ratio}, expected more than 0 and at most 0.5: "
            "set the outliers' share of the whole set, for example 0.1 for 10 %"
        )
    if not np.any(labels == inlier_class):
        known = ", ".join(map(str, np.unique(labels)[:20]))
        raise InputError(f"no image has the inlier class {inlier_class}: choose one of {known}")
