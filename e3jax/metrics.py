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
    """Area under the precision-recall curve, by trapezoids, with inliers as the positives.

    As in the authors' program this is ``auc(recall, precision)``, not average precision.
    """
    return _aupr(scores, ~np.asarray(is_outlier, bool))


def aupr_out(scores: np.ndarray, is_outlier: np.ndarray) -> float:
    """As :func:`aupr_in`, with outliers as the positives and the scores negated."""
    return _aupr(-np.asarray(scores, float), np.asarray(is_outlier, bool))


def _aupr(scores: np.ndarray, positive: np.ndarray) -> float:
    precision, recall, _ = precision_recall_curve(positive, scores)
    return float(auc(recall, precision))
