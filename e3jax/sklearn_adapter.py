"""E3Outlier with scikit-learn's contract: rows are flattened images, labels are -1 and 1."""

import math
import warnings

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from e3jax.estimator import E3Outlier


class E3OutlierDetector(OutlierMixin, BaseEstimator):
    """E3Outlier for scikit-learn: rows are flattened images, larger scores are more normal.

    For pipelines, ``GridSearchCV`` and all that calls ``OutlierMixin``. Everything else is that of
    :class:`E3Outlier`, at ``detector_`` after ``fit``.

    Args:
      image_shape: (h, w) or (h, w, c) of a row; None: square and grey, or if the number of columns
        is three squares, RGB; else rows are filled up with zeros to the next square.
      contamination, evidence, network, operations, steps, batch_size, image_size, value_range,
      random_state: see :class:`E3Outlier`.

    Attributes:
      detector_: the fitted :class:`E3Outlier`.
      offset_: ``decision_function(X) = score_samples(X) - offset_``, below 0 for outliers.
      n_features_in_: columns.

    >>> E3OutlierDetector(image_shape=(28, 28)).fit_predict(rows)  # doctest: +SKIP
    """

    def __init__(
        self,
        image_shape=None,
        contamination=0.1,
        evidence="all",
        network="auto",
        operations="RA+IA+PR",
        steps="auto",
        batch_size=128,
        image_size=32,
        value_range=None,
        random_state=None,
    ):
        self.image_shape = image_shape
        self.contamination = contamination
        self.evidence = evidence
        self.network = network
        self.operations = operations
        self.steps = steps
        self.batch_size = batch_size
        self.image_size = image_size
        self.value_range = value_range
        self.random_state = random_state

    def fit(self, X, y=None) -> "E3OutlierDetector":
        """Learns from rows [n, d]; ``y`` is ignored.

        Raises:
          ValueError: bad rows or parameters.
        """
        X = validate_data(self, X, ensure_min_samples=2)
        parameters = self.get_params()
        del parameters["image_shape"]
        with warnings.catch_warnings():  # rows are float as soon as they are validated
            warnings.filterwarnings("ignore", "float images")
            self.detector_ = E3Outlier(**parameters).fit(self._to_images(X))
        self.offset_ = -self.detector_.threshold_
        return self

    def score_samples(self, X) -> np.ndarray:
        """Minus the detector's scores [n] of rows, larger = more normal."""
        check_is_fitted(self, "detector_")
        X = validate_data(self, X, reset=False)
        return -self.detector_.decision_function(self._to_images(X))

    def decision_function(self, X) -> np.ndarray:
        """``score_samples(X) - offset_``: below 0 for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X) -> np.ndarray:
        """1 for inliers, -1 for outliers, int [n]."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def _to_images(self, X: np.ndarray) -> np.ndarray:
        X, shape = X.astype(np.float64), self.image_shape
        if shape is None:
            side, channels = math.isqrt(X.shape[1]), 1
            if math.isqrt(X.shape[1] // 3) ** 2 * 3 == X.shape[1]:
                side, channels = math.isqrt(X.shape[1] // 3), 3
            elif side**2 < X.shape[1]:
                side += 1
                X = np.pad(X, ((0, 0), (0, side**2 - X.shape[1])))
            shape = (side, side, channels)
        if math.prod(shape) != X.shape[1]:
            raise ValueError(f"image_shape is {shape}, expected the shape of {X.shape[1]} columns")
        return X.reshape(-1, *shape)
