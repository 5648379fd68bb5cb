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


def threshold(scores: np.ndarray, contamination) -> float:
    """The score above which images are outliers.

    Args:
      scores: float [n], larger = more outlying.
      contamination: the share of outliers, in (0, 0.5], as PyOD; "auto": median + 2.5 MAD (Leys et
        al. 2013), which flags few; or an object with PyThresh's ``eval(scores) -> labels``.
    """
    if isinstance(contamination, numbers.Real):
        return float(np.percentile(scores, 100 * (1 - contamination)))
    if contamination == "auto":
        middle = np.median(scores)
        return float(middle + _MADS * _MAD_FACTOR * np.median(np.abs(scores - middle)))
    inliers = scores[~np.asarray(contamination.eval(scores)).astype(bool)]
    return float(inliers.max() if len(inliers) else -np.inf)
