"""Thresholds: from which score on an image counts as an outlier."""

import numbers
from collections.abc import Mapping

import numpy as np

from e3jax.evidence import fusion

_MAD_FACTOR = 1.4826
# Deviations that make an outlier (Leys et al. 2013): by evidence of one origin; by that of two.
_ALONE, _EACH = 2.5, 2.0
_FREQUENT = 0.01  # share of a collection


def check_contamination(value) -> None:
    """Raises a ValueError where :func:`threshold` would not know what to do."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
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
    apart = np.log(np.maximum(evidence, 1e-9))
    apart -= np.median(apart)
    apart /= max(_MAD_FACTOR * np.median(np.abs(apart), overwrite_input=True), 1e-30)
    return apart


def remoteness(evidence: Mapping[str, np.ndarray]) -> np.ndarray:
    """How far above the median each image is, float64 [n], in what "auto" asks of an outlier.

    That is 2.5 :func:`deviations` of the network's evidence alone; with descriptors, of which the
    mean counts, 2 of each, so that both have to find an image unusual.
    """
    descriptors = evidence.keys() - {fusion.NETWORK}
    network = deviations(evidence[fusion.NETWORK])
    if not descriptors:
        return network / _ALONE
    others = fusion.fuse(lambda name: deviations(evidence[name]), descriptors)
    return np.minimum(network, others) / _EACH


def threshold(scores: np.ndarray, contamination, remoteness: np.ndarray) -> float:
    """The score above which images are outliers.

    Args:
      scores: float [n], larger = more outlying.
      contamination: the share of outliers, in (0, 0.5], as PyOD; "auto": as many images as are
        remote, which are few; or an object with PyThresh's ``eval(scores) -> labels``.
      remoteness: float [n], see :func:`remoteness`; above 1 an image is remote.
    """
    if isinstance(contamination, numbers.Real):
        return float(np.percentile(scores, 100 * (1 - contamination)))
    if contamination == "auto":
        count = int((remoteness > 1).sum())
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
