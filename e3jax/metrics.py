"""How well scores separate inliers from outliers. Labels are used here and nowhere else.

All metrics take ``scores`` float [n], smaller = more outlying, and ``is_outlier`` bool [n] with at
least one inlier and one outlier; all return a fraction in [0, 1], larger = better.
"""

import numpy as np
from sklearn.metrics import auc, precision_recall_curve, roc_auc_score


def auroc(scores: np.ndarray, is_outlier: np.ndarray) -> float:
    """Area under the ROC curve: how likely a random inlier scores above a random outlier."""
    return float(roc_auc_score(~np.asarray(is_outlier, bool), scores))


def aupr_in(scores: np.ndarray, is_outlier: np.ndarray) -> float:
    """Area under the precision-recall curve, with inliers as the positives.

    By trapezoids, as in the authors' program; that is not average precision.

    Args:
      scores: float [n], smaller = more outlying.
      is_outlier: bool [n], with at least one inlier and one outlier.

    Returns:
      A fraction in [0, 1], larger = better.

    Raises:
      ValueError: if scores are not finite.

    >>> aupr_in(np.array([0.1, 0.9, 0.8]), np.array([True, False, False]))
    1.0
    """
    return _aupr(scores, ~np.asarray(is_outlier, bool))


def aupr_out(scores: np.ndarray, is_outlier: np.ndarray) -> float:
    """As :func:`aupr_in`, with outliers as the positives and the scores negated."""
    return _aupr(-np.asarray(scores, float), np.asarray(is_outlier, bool))


def _aupr(scores: np.ndarray, positive: np.ndarray) -> float:
    precision, recall, _ = precision_recall_curve(positive, scores)
    return float(auc(recall, precision))
