"""PyOD's contract: labels, probabilities and confidences that follow from scores."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.special
import scipy.stats

from e3jax.evidence import thresholds


class OutlierContract:
    """What all of PyOD's detectors offer, for one with ``fit`` and ``decision_function``."""

    fit: Callable[..., Any]
    decision_function: Callable[..., np.ndarray]
    decision_scores_: np.ndarray
    threshold_: float
    parameters_: dict

    @property
    def labels_(self) -> np.ndarray:
        """Labels of the collection, int [n], 1 = outlier."""
        return self._label(self.decision_scores_)

    def fit_predict(self, X, y=None) -> np.ndarray:
        """``fit``, and the labels of the collection, int [n]."""
        return self.fit(X).labels_

    def predict(self, X, return_confidence=False):
        """Labels [n] of images, 1 = outlier, with their confidences if asked."""
        scores = self.decision_function(X)
        labels = self._label(scores)
        return (labels, self._confidence(scores)) if return_confidence else labels

    def predict_proba(self, X, method="linear", return_confidence=False):
        """Probabilities [n, 2] of being an inlier and an outlier.

        Args:
          X: images.
          method: "linear": the score between the smallest and the largest of ``fit``; "unify": its
            Gauss error function (Kriegel et al. 2011).
          return_confidence: also return ``predict_confidence(X)``.

        Raises:
          ValueError: for another method.
        """
        scores, known = self.decision_function(X), self.decision_scores_
        if method == "linear":
            outlier = (scores - known.min()) / max(np.ptp(known), 1e-30)
        elif method == "unify":
            z = (scores - known.mean()) / max(known.std(), 1e-30)
            outlier = scipy.special.erf(z / math.sqrt(2))
        else:
            raise ValueError(f"method is {method!r}, expected 'linear' or 'unify'")
        outlier = outlier.clip(0, 1)
        probability = np.column_stack([1 - outlier, outlier])
        return (probability, self._confidence(scores)) if return_confidence else probability

    def predict_confidence(self, X) -> np.ndarray:
        """How stable each prediction is if the collection were drawn again, in [0, 1].

        As PyOD, after Perini et al. 2020.
        """
        return self._confidence(self.decision_function(X))

    def predict_with_rejection(self, X, *args, **kwargs):
        """Labels [n] of images, -2 where a prediction is too unsure (Perini & Davis 2023).

        By PyOD's own code, which explains the parameters.

        Raises:
          ImportError: PyOD is not installed.
        """
        return _pyods_detector().predict_with_rejection(self, X, *args, **kwargs)

    def compute_rejection_stats(self, *args, **kwargs):
        """Rates and costs of ``predict_with_rejection``, see there."""
        return _pyods_detector().compute_rejection_stats(self, *args, **kwargs)

    def _label(self, scores: np.ndarray) -> np.ndarray:
        return (scores > self.threshold_).astype(int)

    def _confidence(self, scores: np.ndarray) -> np.ndarray:
        n = len(self.decision_scores_)
        below = np.searchsorted(np.sort(self.decision_scores_), scores, side="right")
        share = self.parameters_["contamination"]
        if not thresholds.is_number(share):
            share = self.labels_.mean()
        posterior = (1 + below) / (2 + n)
        outlier = 1 - scipy.stats.binom.cdf(n - int(n * share), n, posterior)
        return np.where(self._label(scores) == 1, outlier, 1 - outlier)


def _pyods_detector() -> type:
    try:
        from pyod.models.base import BaseDetector
    except ImportError as error:
        raise ImportError("predictions with rejection need PyOD: pip install pyod") from error
    return BaseDetector
