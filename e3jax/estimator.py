"""Detectors with the contracts of PyOD and of scikit-learn, on arrays, files and folders.

E3Outlier speaks as PyOD does: larger scores are more outlying, labels are 0 and 1. It is the one
place where the paper's scores, which fall with outlyingness, change their sign.
E3OutlierDetector adapts it to scikit-learn: rows are flattened images, labels are -1 and 1.
"""

import functools
import math
import numbers
import os
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.special
import scipy.stats
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data

from e3jax import devices, images, operations, reading, scoring, training
from e3jax.images import InputError

_MAD_FACTOR, _MADS = 1.4826, 2.5
# Of a time budget: the least training worth its name, a training view in scored ones, and what the
# compiler takes.
_LEAST_STEPS, _TRAIN_COST, _COMPILE_SECONDS = 100, 3, 10
_SEEDS = np.iinfo(np.int32).max


class HealthWarning(UserWarning):
    """A detector's scores are likely to mean little."""


class Health(NamedTuple):
    """What there is to know of a fit before its scores are believed.

    Attributes:
      pretext_accuracy: share of views whose operation was recognised, in [0, 1].
      chance: what guessing would reach, 1 / k.
      spread: standard deviation of the scores, in nats.
      steps: of training.
      unreadable: files that were left out, :class:`e3jax.reading.Unreadable`.
      warning: what is wrong and what to do, in one sentence; "" if nothing is.
    """

    pretext_accuracy: float
    chance: float
    spread: float
    steps: int
    unreadable: list[reading.Unreadable]
    warning: str


# (what is done: "reading", "training" or "scoring"; how much of it; of how much). It may raise.
Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Shows no progress."""


class E3Outlier(BaseEstimator):
    """Finds the images that do not belong, by learning from the collection alone (NeurIPS 2019).

    The contract is that of PyOD's detectors. Collections, ``X`` everywhere, are

    - arrays [n, h, w] or [n, h, w, c], c 1 or 3: uint8, or float in a stated or inferred range;
    - a folder (all images below it) or a list of files; what cannot be read is left out of ``fit``,
      listed in ``health_.unreadable``, and an error elsewhere.

    Args:
      contamination: share of outliers, in (0, 0.5], which sets the threshold and nothing else;
        "auto": median + 2.5 MAD of the scores (Leys et al. 2013), which flags few;
        or an object with PyThresh's ``eval(scores) -> labels``.
      network: name or function for :func:`e3jax.networks.build`; "auto": "wrn-10-1" on a CPU,
        "wrn-10-4" (the paper's) on an accelerator.
      operations: families of operations, "RA+IA+PR" or a part of it; or a sequence of
        :class:`e3jax.Operation` for images of ``image_size``.
      steps: of training; "auto": half an epoch over all views on a CPU, a whole one on an
        accelerator, and 433 at least, so that small collections are learnt as well.
      time_budget: seconds that ``fit`` may take, about; the training is shortened to it (not below
        100 steps), so that scores then depend on the machine. None: as long as it takes.
      batch_size: views a step.
      image_size: even side in pixels to which all images are resized (Pillow, bilinear with
        antialiasing).
      resize: how images that are not square become so, see :func:`e3jax.reading.read_files`.
      value_range: (smallest, largest) value of float arrays; None infers it from those given to
        ``fit`` and says so in a warning.
      random_state: int, ``numpy.random.RandomState`` or None, of all randomness.
      on_progress: called as ``(what, done, total)``; it may raise to end the fit.

    Attributes:
      decision_scores_: float [n] in [0, log k], the images' entropy in nats, larger = more
        outlying (minus NE, eq. 6).
      view_entropies_: float [n, k] in nats, of every view of the collection; not saved with the
        detector.
      median_entropies_: float [k], the collection's median of each operation.
      threshold_: images of larger scores are outliers.
      paths_: str [n], files of the collection; image numbers for arrays.
      health_: :class:`Health`, also warned of where it is bad.
      value_range_: of float arrays; None for others.
      colour_: whether images are RGB, else grey.
      variables_, network_, steps_: the trained network, its name, and the steps it took.

    >>> detector = E3Outlier(contamination=0.05).fit("photos/")  # doctest: +SKIP
    >>> detector.paths_[detector.labels_ == 1]  # doctest: +SKIP
    """

    def __init__(
        self,
        contamination=0.1,
        network="auto",
        operations="RA+IA+PR",
        steps="auto",
        time_budget=None,
        batch_size=64,
        image_size=32,
        resize="squash",
        value_range=None,
        random_state=None,
        on_progress=silent,
    ):
        self.contamination = contamination
        self.network = network
        self.operations = operations
        self.steps = steps
        self.time_budget = time_budget
        self.batch_size = batch_size
        self.image_size = image_size
        self.resize = resize
        self.value_range = value_range
        self.random_state = random_state
        self.on_progress = on_progress

    def fit(self, X, y=None) -> "E3Outlier":
        """Learns from a collection and scores it; ``y`` is ignored.

        Raises:
          InputError: bad images or files (a ValueError).
          ValueError: bad parameters.
        """
        began = time.monotonic()
        self._check_parameters()
        self.value_range_ = self._infer_range(X)
        self.colour_ = None  # as the collection is
        bank, unreadable, _ = self.read(X, least=2)
        self.colour_ = bank.images.shape[-1] == 3
        config = self._config(len(bank.images))
        if self.time_budget is not None:
            config = self._shorten(config, bank.images, began + self.time_budget)
        self.network_, self.steps_, self.paths_ = config.network, config.steps, bank.ids
        self.variables_ = self._train(config, bank.images)
        scores = self._score(bank.images)
        self.view_entropies_ = -scores.ne
        self.median_entropies_ = np.median(self.view_entropies_, axis=0)
        self.decision_scores_ = mean_entropy(self.view_entropies_)
        self.health_ = self._examine(scores, unreadable)
        if self.health_.warning:
            warnings.warn(self.health_.warning, HealthWarning, stacklevel=2)
        return self._set_threshold()

    def decision_function(self, X) -> np.ndarray:
        """Scores [n] of images, larger = more outlying; those of ``fit`` score as they did there.

        Raises:
          InputError: bad images; also if a single file cannot be read.
          sklearn.exceptions.NotFittedError: before ``fit``.
        """
        check_is_fitted(self, "decision_scores_")
        return mean_entropy(-self.view_scores(X).ne)

    def view_scores(self, X) -> scoring.Scores:
        """PL, MP, NE and accuracy of every view: float [n, k] each, smaller = more outlying.

        They say why an image scores as it does: which operations are not recognised on it.

        Raises:
          InputError, NotFittedError: as ``decision_function``.
        """
        check_is_fitted(self, "decision_scores_")
        bank, unreadable, _ = self.read(X)
        if unreadable:
            path, reason = unreadable[0]
            raise InputError(f"{path} cannot be read ({reason}): leave it out")
        channels = 3 if self.colour_ else 1
        if bank.images.shape[-1] != channels:
            raise InputError(
                f"images have {bank.images.shape[-1]} channels, those of fit had {channels}: give "
                "images of the same kind"
            )
        return self._score(bank.images)

    def predict(self, X, return_confidence=False):
        """0 or 1 = outlier for images [n]; with their confidences if asked."""
        scores = self.decision_function(X)
        found = self._label(scores)
        return (found, self._confidence(scores)) if return_confidence else found

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
        scores = self.decision_function(X)
        if method == "linear":
            lowest, span = self.decision_scores_.min(), np.ptp(self.decision_scores_)
            outlier = (scores - lowest) / max(span, 1e-30)
        elif method == "unify":
            z = (scores - self.decision_scores_.mean()) / max(self.decision_scores_.std(), 1e-30)
            outlier = scipy.special.erf(z / math.sqrt(2))
        else:
            raise ValueError(f"method is {method!r}, expected 'linear' or 'unify'")
        outlier = outlier.clip(0, 1)
        probability = np.column_stack([1 - outlier, outlier])
        return (probability, self._confidence(scores)) if return_confidence else probability

    def predict_confidence(self, X) -> np.ndarray:
        """How sure each prediction is if the collection were drawn again, in [0, 1].

        As PyOD, after Perini et al. 2020.
        """
        return self._confidence(self.decision_function(X))

    def set_contamination(self, contamination) -> "E3Outlier":
        """Moves the threshold, and so ``labels_``, without training anew."""
        check_is_fitted(self, "decision_scores_")
        _check_contamination(contamination)
        self.contamination = contamination
        return self._set_threshold()

    def read(self, X, least=1) -> reading.Collection:
        """A collection as the detector sees it: a bank of ``image_size``, and what is left out.

        Raises:
          InputError: bad images; fewer than ``least`` files can be read.
          sklearn.exceptions.NotFittedError: before ``fit``.
        """
        check_is_fitted(self, "colour_")
        if not _are_paths(X):
            array = images.to_uint8(X, self.value_range_)
            array = images.resize(array, self.image_size, self.resize)
            return reading.Collection(images.as_bank(array, least=least), [])
        closed = []
        if isinstance(X, (str, os.PathLike)):
            X, closed = reading.find_files(X)
        total = len(X)
        bank, unreadable, _ = reading.read_files(
            X,
            self.image_size,
            self.resize,
            self.colour_,
            least,
            lambda done: self.on_progress("reading", done, total),
        )
        return reading.Collection(bank, closed + unreadable)

    def operation_set(self) -> operations.OperationSet:
        """The operations, compiled for ``image_size``."""
        return _operation_set(*self._pretext())

    # --- Parameters and images ---------------------------------------------------------------

    def _check_parameters(self) -> None:
        _check_contamination(self.contamination)
        for name, automatic in (("steps", True), ("batch_size", False), ("image_size", False)):
            value = getattr(self, name)
            if (value == "auto" and automatic) or (_is_integer(value) and value > 0):
                continue
            raise ValueError(f"{name} is {value!r}, expected a positive integer")
        if self.time_budget is not None and not (
            isinstance(self.time_budget, numbers.Real) and self.time_budget > 0
        ):
            raise ValueError(f"time_budget is {self.time_budget!r}, expected seconds above 0")
        if self.image_size % 2 or self.image_size < 4:
            raise ValueError(f"image_size is {self.image_size}, expected an even number from 4")
        if self.resize not in images.FITS:
            raise ValueError(f"resize is {self.resize!r}, expected one of {', '.join(images.FITS)}")
        if self.value_range is not None and not _is_range(self.value_range):
            raise ValueError(
                f"value_range is {self.value_range!r}, expected two numbers, the smaller first"
            )

    def _pretext(self) -> tuple[str | tuple, int]:
        """The operations, hashable, and the side they are for: what programs are built by."""
        named = isinstance(self.operations, str)
        return self.operations if named else tuple(self.operations), self.image_size

    def _infer_range(self, X) -> tuple[float, float] | None:
        if self.value_range is not None:
            return tuple(map(float, self.value_range))
        found = None if _are_paths(X) else images.usual_range(X)
        if found:
            warnings.warn(
                f"float images are taken to range from {found[0]:g} to {found[1]:g}: give "
                "value_range to say otherwise",
                stacklevel=3,
            )
        return found

    # --- Training and scores -----------------------------------------------------------------

    def _config(self, n: int) -> training.TrainConfig:
        on_cpu = devices.is_cpu(devices.device_mesh())
        quick, k = training.quick_config(), len(self.operation_set())
        network, steps = self.network, self.steps
        if network == "auto":
            network = quick.network if on_cpu else "wrn-10-4"
        if steps == "auto":
            epochs = 0.5 if on_cpu else 1.0
            steps = max(quick.steps, math.ceil(epochs * n * k / self.batch_size))
        return quick._replace(network=network, steps=int(steps), batch_size=self.batch_size)

    def _shorten(
        self, config: training.TrainConfig, pictures: np.ndarray, deadline: float
    ) -> training.TrainConfig:
        """As many steps as fit before the deadline, by the time that some images' scores take."""
        k = len(self.operation_set())
        trainer = _trainer(config, *self._pretext())
        variables = trainer.init(jax.random.key(0), pictures.shape[-1]).variables
        score = _scorer(config.network, *self._pretext())
        few = np.resize(pictures, (64, *pictures.shape[1:]))
        for _ in range(2):  # the first one compiles
            began = time.monotonic()
            score(variables, few)
        seconds_a_view = (time.monotonic() - began) / (64 * k)
        left = deadline - time.monotonic() - seconds_a_view * len(pictures) * k
        steps = int((left - _COMPILE_SECONDS) / (_TRAIN_COST * seconds_a_view * config.batch_size))
        return config._replace(steps=min(config.steps, max(steps, _LEAST_STEPS)))

    def _train(self, config: training.TrainConfig, pictures: np.ndarray) -> Any:
        random = check_random_state(self.random_state)
        key = jax.random.key(random.randint(_SEEDS))
        trainer = _trainer(config, *self._pretext())
        bank = training.place_bank(trainer.mesh, pictures)

        def on_chunk(state: training.TrainState, log: training.StepLog) -> None:
            jax.block_until_ready(log.loss)
            self.on_progress("training", min(int(state.step), config.steps), config.steps)

        state = trainer.init(key, pictures.shape[-1])
        state = training.train(trainer, state, bank, len(pictures), config.steps, on_chunk)
        return jax.device_get(state.variables)

    def _score(self, pictures: np.ndarray) -> scoring.Scores:
        score = _scorer(self.network_, *self._pretext())
        total = len(pictures)
        return score(
            self.variables_, pictures, lambda done: self.on_progress("scoring", done, total)
        )

    def _examine(self, scores: scoring.Scores, unreadable: list[reading.Unreadable]) -> Health:
        k = len(self.operation_set())
        means = [views.mean(axis=1) for views in scores[:4]]
        return Health(
            pretext_accuracy=float(scores.accuracy.mean()),
            chance=1 / k,
            spread=float(self.decision_scores_.std()),
            steps=self.steps_,
            unreadable=unreadable,
            warning=scoring.health(scoring.Scores(*means, scores.representation), k),
        )

    # --- Thresholds ----------------------------------------------------------------------------

    def _set_threshold(self) -> "E3Outlier":
        scores = self.decision_scores_
        if isinstance(self.contamination, numbers.Real):
            self.threshold_ = float(np.percentile(scores, 100 * (1 - self.contamination)))
        elif self.contamination == "auto":
            middle = np.median(scores)
            mad = _MAD_FACTOR * np.median(np.abs(scores - middle))
            self.threshold_ = float(middle + _MADS * mad)
        else:
            labels = np.asarray(self.contamination.eval(scores)).astype(bool)
            inliers = scores[~labels]
            self.threshold_ = float(inliers.max() if len(inliers) else -np.inf)
        return self

    @property
    def labels_(self) -> np.ndarray:
        """Of the collection, int [n], 1 = outlier."""
        return self._label(self.decision_scores_)

    def _label(self, scores: np.ndarray) -> np.ndarray:
        return (scores > self.threshold_).astype(int)

    def _confidence(self, scores: np.ndarray) -> np.ndarray:
        n = len(self.decision_scores_)
        below = np.searchsorted(np.sort(self.decision_scores_), scores, side="right")
        share = self.contamination
        if not isinstance(share, numbers.Real):
            share = self.labels_.mean()
        posterior = (1 + below) / (2 + n)
        outlier = 1 - scipy.stats.binom.cdf(n - int(n * share), n, posterior)
        return np.where(self._label(scores) == 1, outlier, 1 - outlier)


def mean_entropy(entropies: np.ndarray) -> np.ndarray:
    """The scores of images [n] from the entropies of their views [n, k] (minus NE, eq. 6)."""
    return np.mean(entropies, axis=1, dtype=np.float64)


def _check_contamination(value) -> None:
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        if not 0 < value <= 0.5:
            raise ValueError(f"contamination is {value}, expected a number in (0, 0.5]")
    elif not (value == "auto" if isinstance(value, str) else hasattr(value, "eval")):
        raise ValueError(
            f"contamination is {value!r}, expected a number in (0, 0.5], 'auto' or an object of "
            "PyThresh"
        )


def _is_integer(value) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_range(value) -> bool:
    try:
        lowest, highest = map(float, value)
    except (TypeError, ValueError):
        return False
    return math.isfinite(lowest) and math.isfinite(highest) and lowest < highest


def _are_paths(X) -> bool:
    if isinstance(X, (str, os.PathLike)):
        return True
    return isinstance(X, (list, tuple)) and len(X) > 0 and isinstance(X[0], (str, os.PathLike))


_building = threading.RLock()  # building one program may ask for another


def _once(build: Callable) -> Callable:
    """Builds a program once for all detectors of a kind, also in several threads."""
    cached = functools.lru_cache(maxsize=8)(build)

    @functools.wraps(build)
    def locked(*args):
        with _building:
            return cached(*args)

    return locked


_operation_set = _once(operations.operation_set)


def _trainer(config: training.TrainConfig, names: str | tuple, side: int) -> training.Trainer:
    """One for trainings of all lengths."""
    return _any_trainer(config._replace(steps=None, epochs=None), names, side)


@_once
def _any_trainer(config: training.TrainConfig, names: str | tuple, side: int) -> training.Trainer:
    # Short enough for a prompt answer to Ctrl-C, long enough not to wait for the host.
    chunk = 10 if devices.is_cpu(devices.device_mesh()) else 200
    return training.make_trainer(config, _operation_set(names, side), chunk=chunk)


@_once
def _scorer(network: str | Callable, names: str | tuple, side: int) -> scoring.Scorer:
    operation_set = _operation_set(names, side)
    return scoring.Scorer(network, operation_set, per_operation=True)


class E3OutlierDetector(OutlierMixin, BaseEstimator):
    """E3Outlier for scikit-learn: rows are flattened images, larger scores are more normal.

    For pipelines, ``GridSearchCV`` and all that calls ``OutlierMixin``. Everything else is that of
    :class:`E3Outlier`, at ``detector_`` after ``fit``.

    Args:
      image_shape: (h, w) or (h, w, c) of a row; None: square and grey, or if the number of columns
        is three squares, RGB; else rows are filled up with zeros to the next square.
      contamination, network, operations, steps, batch_size, image_size, value_range, random_state:
        see :class:`E3Outlier`.

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
        network="auto",
        operations="RA+IA+PR",
        steps="auto",
        batch_size=64,
        image_size=32,
        value_range=None,
        random_state=None,
    ):
        self.image_shape = image_shape
        self.contamination = contamination
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
        """Negative entropies [n] of rows (NE, eq. 6), larger = more normal."""
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
