"""Thresholds: from which score on an image counts as an outlier."""

import numbers

import numpy as np

_MAD_FACTOR, _MADS = 1.4826, 2.5


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


def threshold(scores: np.ndarray, contamination, deviations: np.ndarray) -> float:
    """The score above which images are outliers.

    Args:
      scores: float [n], larger = more outlying.
      contamination: the share of outliers, in (0, 0.5], as PyOD; "auto": as many images as are
        2.5 deviations above the median (Leys et al. 2013), which are few; or an object with
        PyThresh's ``eval(scores) -> labels``.
      deviations: float [n], see :func:`deviations`; of scores made of ranks, the mean of those of
        the evidence.
    """
    if isinstance(contamination, numbers.Real):
        return float(np.percentile(scores, 100 * (1 - contamination)))
    if contamination == "auto":
        count = int((deviations > _MADS).sum())
        highest = np.sort(scores)[-1 - min(count, len(scores) - 1)]
    else:
        inliers = ~np.asarray(contamination.eval(scores)).astype(bool)
        highest = scores.max(where=inliers, initial=-np.inf)
    outliers = scores > highest
    if not outliers.any() or outliers.all():
        return float(highest)
    # In the middle, so that rounding, on other devices say, moves no image across.
    return float((scores[~outliers].max() + scores[outliers].min()) / 2)
