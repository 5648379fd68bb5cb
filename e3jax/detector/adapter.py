"""E3Outlier with scikit-learn's contract: rows are flattened images, labels are -1 and 1."""

import math

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from e3jax.detector.estimator import E3Outlier
from e3jax.errors import warn


class E3OutlierDetector(OutlierMixin, BaseEstimator):
    """E3Outlier for scikit-learn: rows are flattened images, larger scores are more normal.

    For pipelines, ``GridSearchCV`` and all that calls ``OutlierMixin``. Everything else is that of
    :class:`E3Outlier`, at ``detector_`` after ``fit``.

    Args:
      image_shape: (h, w), (h, w, c) or (c, h, w) of a row, c 1 or 3. None: square and grey, or if
        the number of columns is three squares, RGB, its channels last or first, whichever is
        smoother, as a warning says; else rows are filled up with zeros to the next square.
      contamination, evidence, network, operations, steps, batch_size, image_size, value_range,
      random_state: see :class:`E3Outlier`.

    Attributes:
      detector_: the fitted :class:`E3Outlier`.
      offset_: ``decision_function(X) = score_samples(X) - offset_``, below 0 for outliers.
      image_shape_: shape of a row.
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
        X = np.asarray(validate_data(self, X, ensure_min_samples=2))
        parameters = self.get_params()
        del parameters["image_shape"]
        shape = _shape(X) if self.image_shape is None else self.image_shape
        self.detector_ = E3Outlier(**parameters).fit(self._filled(X, shape))
        self.image_shape_, self.offset_ = shape, -self.detector_.threshold_
        return self

    def fit_predict(self, X, y=None, **kwargs) -> np.ndarray:
        """``fit``, and 1 for inliers, -1 for outliers, int [n]; nothing is scored twice."""
        return np.where(self.fit(X).detector_.labels_ == 1, -1, 1)

    def score_samples(self, X) -> np.ndarray:
        """Minus the detector's scores [n] of rows, larger = more normal."""
        check_is_fitted(self, "detector_")
        X = np.asarray(validate_data(self, X, reset=False))
        return -self.detector_.decision_function(self._filled(X, self.image_shape_))

    def decision_function(self, X) -> np.ndarray:
        """``score_samples(X) - offset_``: below 0 for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X) -> np.ndarray:
        """1 for inliers, -1 for outliers, int [n]."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def _filled(self, X: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Images of rows, filled up with zeros if their shape was not given."""
        if self.image_shape is None:
            X = np.pad(X, ((0, 0), (0, math.prod(shape) - X.shape[1])))
        return _to_images(X, shape)


def _shape(X: np.ndarray) -> tuple[int, ...]:
    """The shape of rows [n, d] as ``image_shape=None`` has it."""
    side = math.isqrt(X.shape[1] // 3)
    if side**2 * 3 != X.shape[1]:
        side = math.isqrt(X.shape[1] - 1) + 1
        return side, side
    last, first = (side, side, 3), (3, side, side)
    shape = first if side > 1 and _roughness(X, first) < _roughness(X, last) else last
    warn(f"rows are taken to be images of shape {shape}: give image_shape to say otherwise")
    return shape


def _roughness(X: np.ndarray, shape: tuple[int, ...]) -> float:
    return float(np.abs(np.diff(_to_images(X, shape), axis=2)).mean())


def _to_images(X: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Rows [n, d] as images [n, h, w] or [n, h, w, c]; as floats if they are not bytes."""
    if X.dtype.kind not in "iu" or X.min() < 0 or X.max() > 255:
        X = X.astype(np.float64)
    if math.prod(shape) != X.shape[1]:
        raise ValueError(f"image_shape is {shape}, expected the shape of {X.shape[1]} columns")
    X = X.reshape(-1, *shape)
    is_first = len(shape) == 3 and shape[0] in (1, 3) and shape[2] not in (1, 3)
    return np.moveaxis(X, 1, -1) if is_first else X
