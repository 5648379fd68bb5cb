"""Thresholds: from which score on an image counts as an outlier."""

import numbers
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from e3jax.collection import copies
from e3jax.collection.lazy import AnyArray
from e3jax.evidence import fusion
from e3jax.evidence.network import NETWORK

_MAD_FACTOR = 1.4826
_REMOTE = 2.5  # deviations that make an outlier (Leys et al. 2013)
# The interval of the number of outliers: deviations of images that surely are; of those that may
# be; how many are for each of these; the share that cannot be ruled out. Chosen on MNIST and the
# development folders, with 0 to 30 % of outliers.
_SURE, _POSSIBLE, _EACH, _HIDDEN = 4.0, 1.0, 2, 0.1
_FREQUENT = 0.01  # share of a collection
_BLOCK = 4096  # images that are compared at a time


def is_number(value: Any) -> bool:
    """Whether a value is a real number, maybe NumPy's."""
    return isinstance(value, numbers.Real)


def check_contamination(value: Any) -> None:
    """Raises a ValueError where :func:`threshold` would not know what to do."""
    if is_number(value) and not isinstance(value, bool):
        if not 0 < value <= 0.5:
            raise ValueError(f"contamination is {value}, expected a number in (0, 0.5]")
    elif not (value == "auto" if isinstance(value, str) else hasattr(value, "eval")):
        raise ValueError(
            f"contamination is {value!r}, expected a number in (0, 0.5], 'auto' or an object of "
            "PyThresh"
        )


def deviations(evidence: np.ndarray) -> np.ndarray:
    """How far above the median each image is, float64 [n], in deviations as MAD estimates them.

    They are of the logarithm, because evidence, float [n] from 0, has a long tail without outliers.
    """
    logarithms = np.log(np.maximum(evidence, 1e-9))
    logarithms -= np.median(logarithms)
    deviation = np.median(np.abs(logarithms), overwrite_input=True)
    logarithms /= max(_MAD_FACTOR * deviation, 1e-30)
    return logarithms


def remoteness(
    evidence: Mapping[str, np.ndarray], weights: Mapping[str, float] | None = None
) -> np.ndarray:
    """How far above the median each image is, float64 [n], in :func:`deviations`.

    It is the smaller of the network's and the mean of the others, so that both have to find an
    image unusual; the network's where that is the only evidence.

    Args:
      evidence: by kind, float [n].
      weights: by kind; equal ones if None.
    """
    of_network = deviations(evidence[NETWORK])
    others = dict(weights or dict.fromkeys(evidence, 1.0))
    del others[NETWORK]
    if not others:
        return of_network
    of_others = fusion.weighted_mean(lambda name: deviations(evidence[name]), others)
    return np.minimum(of_network, of_others)


def outliers_between(remoteness: np.ndarray) -> tuple[int, int]:
    """Between how many and how many of a collection's images are likely outliers.

    At least those that are remote beyond doubt; at most twice as many as differ at all, and not
    less than a tenth, as outliers may look like the others. In test folders with up to a tenth of
    outliers it held in 43 of 44, with 30 % in 3 of 11.

    Args:
      remoteness: float [n], see :func:`remoteness`.
    """
    least = int((remoteness > _SURE).sum())
    most = max(_EACH * int((remoteness > _POSSIBLE).sum()), round(_HIDDEN * len(remoteness)))
    return least, min(most, len(remoteness))


def threshold(scores: np.ndarray, contamination: Any, remoteness: np.ndarray) -> float:
    """The score above which images are outliers.

    Args:
      scores: float [n], larger = more outlying.
      contamination: the share of outliers, in (0, 0.5], as PyOD; "auto": as many images as are
        remote, which are few; or an object with PyThresh's ``eval(scores) -> labels``.
      remoteness: float [n], see :func:`remoteness`; above 2.5 an image is remote.
    """
    if is_number(contamination):
        return float(np.percentile(scores, 100 * (1 - contamination)))
    if contamination == "auto":
        count = int((remoteness > _REMOTE).sum())
        highest = np.sort(scores)[-1 - min(count, len(scores) - 1)]
    else:
        inliers = ~np.asarray(contamination.eval(scores)).astype(bool)
        highest = scores.max(where=inliers, initial=-np.inf)
    outliers = scores > highest
    if not outliers.any() or outliers.all():
        return float(highest)
    # In the middle, so that rounding, on other devices say, moves no image across.
    return float((scores[~outliers].max() + scores[outliers].min()) / 2)


def frequent_limits(values: np.ndarray, copy_of: np.ndarray, once: np.ndarray) -> np.ndarray:
    """What scores of images that are frequent may be at most: frequent is usual.

    It is the quantile 1 - s of the different images' scores for an image that makes up a share s of
    all others, copies counted, from 1 % on. So a blank page that is half of a folder scores at most
    as the median picture does.

    Args:
      values: float [n], larger = more outlying.
      copy_of: int [n], the first image that each is a copy of, maybe itself.
      once: bool [n], the different images.

    Returns:
      float64 [n]; infinite where an image is not frequent.
    """
    count = np.bincount(copy_of, minlength=len(values))[copy_of]
    share, limits = (count - 1) / max(len(values) - 1, 1), np.full(len(values), np.inf)
    frequent = (count > 1) & (share >= _FREQUENT)
    if frequent.any():
        limits[frequent] = np.quantile(values[once], 1 - share[frequent])
    return limits


class Frequent(NamedTuple):
    """Images of which at least 1 % of a collection are copies: frequent is usual.

    Attributes:
      images: uint8 [f, h, w, c], the first of each.
      limits: float64 [f], what their scores are at most.
    """

    images: np.ndarray
    limits: np.ndarray

    def lowered(self, scores: np.ndarray, images: AnyArray) -> np.ndarray:
        """Scores float64 [n] of images, no higher than the limits of those they are copies of."""
        scores = np.array(scores)
        for start in range(0, len(images) if len(self.images) else 0, _BLOCK):
            block, limited = images[start : start + _BLOCK], scores[start : start + _BLOCK]
            left = np.ones(len(block), bool)
            for image, limit in zip(self.images, self.limits, strict=True):
                near = left & copies.near_to(block, image)
                limited[near] = np.minimum(limited[near], limit)
                left &= ~near
        return scores


def frequent(images: AnyArray, copy_of: np.ndarray, limits: np.ndarray) -> Frequent:
    """The images uint8 [n, h, w, c] whose :func:`frequent_limits` are finite, each kind once."""
    first = np.flatnonzero((limits < np.inf) & (copy_of == np.arange(len(limits))))
    return Frequent(images[first], limits[first])
