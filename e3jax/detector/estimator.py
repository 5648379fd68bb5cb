"""A detector with PyOD's contract, on arrays, files and folders: larger = more outlying."""

import contextlib
import functools
import logging
import math
import numbers
import pickle
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.special
import scipy.stats
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, check_random_state

from e3jax import devices, metrics, networks, operations, training
from e3jax.choices import EVIDENCE, FITS
from e3jax.collection import Collection, Reader, copies, read
from e3jax.collection.lazy import LazyArray
from e3jax.devices import runtime
from e3jax.errors import InputError
from e3jax.evidence import descriptors, fusion, health, thresholds
from e3jax.evidence.health import Health, HealthWarning
from e3jax.images import memory
from e3jax.report import ranking
from e3jax.training import fitting, rules, sampling
from e3jax.training.e3outlier import E3OUTLIER, FACTORED
from e3jax.training.method import Method
from e3jax.work import locks
from e3jax.work.progress import no_progress
from e3jax.work.store import Store, flat, nested, work_key

_log = logging.getLogger(__name__)
# For time budgets: the shortest useful training, the cost of a trained view in scored views, and an
# allowance for compiling.
_LEAST_STEPS, _TRAIN_COST, _COMPILE_SECONDS = 100, 3, 10
_SEEDS = np.iinfo(np.int32).max
# Images of a large collection: fewer operations score them, a sample says how, part by part.
LARGE, _SAMPLE, _PART = 20_000, 5_000, 4_096
_SCORED = 24
# Limits for collections of any size, set by the time they take; what more steps find is unmeasured.
_MOST_STEPS_CPU, _MOST_STEPS = 3_000, 100_000
_NOT_SAVED = {"evidence_", "view_entropies_", "alike_", "states_", "surprises_", "ranking_"}


class E3Outlier(BaseEstimator):
    """Finds the images that do not belong, by learning from the collection alone (NeurIPS 2019).

    The contract is that of PyOD's detectors. Collections, ``X`` everywhere, are

    - arrays or tensors [n, h, w] or [n, h, w, c], c 1 or 3: uint8, or float in a stated or inferred
      range;
    - a folder (all images below it) or any iterable of files; what cannot be read is left out of
      ``fit``, listed in ``health_.unreadable``, and an error elsewhere;
    - a bank on disk, see :mod:`e3jax.collection.bank`, of which a part is in memory at a time;
    - any iterable of images, of Pillow's say, and data sets, see
    :func:`e3jax.collection.collecting.collect`.

    Args:
      contamination: share of outliers, in (0, 0.5], which sets the threshold and nothing else;
        "auto": as many as are two deviations above the median by the network and by the
        descriptors, which are few; or an object with PyThresh's ``eval(scores) -> labels``.
      evidence: what scores are made of. "all": half the network, trained by
        :func:`e3jax.training.losses.factored_supervision` as :func:`e3jax.training.losses.trimmed`
        trims it, half
        how far an image is from the collection by each of
        ``e3jax.evidence.descriptors.DESCRIPTORS``;
        "network": the paper's method.
      network: name or function for :func:`e3jax.networks.build`; "auto": "pwrn-10-2" on a CPU,
        "wrn-10-4" (the paper's) on an accelerator.
      operations: families of operations, "RA+IA+PR" or a part of it; or a sequence of
        :class:`e3jax.Operation` for images of ``image_size``.
      steps: length of the training; "auto": half an epoch over all views on a CPU, a whole one on
        an accelerator, and at least 433, so that small collections are learnt as well. The smallest
        take the paper's number of epochs, 3 for all operations: with more, outliers are learnt too.
        The largest take 3,000 steps on a CPU and 100,000 on an accelerator.
      score_operations: how many of the operations score an image, evenly over their kinds; "auto":
        all for up to 20,000 images, else 24.
      time_budget: approximate seconds that ``fit`` may take; the training is shortened to fit (not
        below 100 steps), so scores then depend on the machine. None: no limit.
      batch_size: views per step.
      image_size: even side in pixels to which all images are resized (Pillow, bicubic with
        antialiasing).
      resize: how images that are not square become so, see
      :class:`e3jax.collection.Reader`.
      value_range: (smallest, largest) value of float arrays; None infers it from those given to
        ``fit`` and says so in a warning.
      random_state: int, ``numpy.random.RandomState`` or None, the source of all randomness.
      on_progress: called as ``(stage, done, total)``; it may raise to end the fit.

    Attributes:
      decision_scores_: float [n] in nats, larger = more outlying: the mean surprise of all kinds of
        evidence (:mod:`e3jax.evidence.fusion`); of the network alone the images' entropy, minus NE
        (eq. 6).
      surprises_: by kind of evidence, float [n] in nats, how unusual each image of the collection
        is; empty for the network alone, and not saved with the detector.
      evidence_: by its kind, float [n], what the surprises follow from; not saved.
      view_entropies_: float [n, k] in nats, the entropy of each view of the collection; not saved
        with the detector. For more than 20,000 images it is rounded to 8 bits, and no array but
        indexed like one.
      median_entropies_: float [k], the collection's median for each operation.
      view_weights_: float [k], see :func:`e3jax.training.rules.view_weights`; 1 for the network
      alone.
      remoteness_: float [n], how far above the median each image of the collection is, in what
        "auto" asks of an outlier, see :func:`e3jax.evidence.thresholds.remoteness`.
      threshold_: images with larger scores are outliers.
      paths_: str [n], files of the collection; image numbers for arrays. Those of a bank stay on
        disk and are indexed like an array.
      health_: :class:`Health`; ``fit`` also warns if it is bad.
      value_range_: of float arrays; None otherwise.
      copy_of_: int [n], for each image of the collection its first exact copy, maybe itself. Copies
        are learnt and compared once. But what is frequent is usual: scores of images with many
        copies are lowered, see
        :func:`e3jax.evidence.thresholds.frequent_limits`.
      alike_: int [n], the same to the eye, see :func:`e3jax.collection.copies.near`; not saved. In
        large collections only the 20,000 most outlying images are compared.
      frequent_, frequent_limits_: images of which at least 1 % of the collection are copies, and
        what their scores are at most.
      states_: int64 [n, 4], the :class:`e3jax.work.files.FileState` of each file; None for arrays.
      file_scale_: what is black and white in files of more than 8 bits, here and in new ones.
      colour_: whether images are RGB, else grey.
      variables_, network_, steps_, precision_: the trained network, its name, its training steps
        and the precision of its products.
      parameters_: the parameters that ``fit`` used; ``set_params`` changes those of the next fit,
        and ``value_range`` at once.

    >>> detector = E3Outlier(contamination=0.05).fit("photos/")  # doctest: +SKIP
    >>> detector.paths_[detector.labels_ == 1]  # doctest: +SKIP
    """

    def __init__(
        self,
        contamination=0.1,
        evidence="all",
        network="auto",
        operations="RA+IA+PR",
        steps="auto",
        score_operations="auto",
        time_budget=None,
        batch_size=128,
        image_size=32,
        resize="squash",
        value_range=None,
        random_state=None,
        on_progress=no_progress,
    ):
        self.contamination = contamination
        self.evidence = evidence
        self.network = network
        self.operations = operations
        self.steps = steps
        self.score_operations = score_operations
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
        self._fit_aside(X, Work())
        return self

    def fit_in(self, folder, X, *, shard=(1, 1), each=map, checkpoint=None) -> bool:
        """``fit``, keeping what is done in a folder: after a stop the same call goes on from there.

        Several processes, also on other machines, may share the work on one folder; those of a job
        (``jax.distributed``) call ``fit`` instead.

        Args:
          folder: for what is done; ``ranking_`` needs it.
          X: the collection.
          shard: (i, m), scores every m-th part from the i-th on, and leaves the others to others.
          each: ``(function, arguments) -> results in order``, scores parts, see
            :mod:`e3jax.devices.engines`.
          checkpoint: :class:`e3jax.training.checkpoint.TrainCheckpoint`, if a training is to go
            on from where it was.

        Returns:
          Whether all parts are there, and so the detector is fitted.
        """
        return self._fit_aside(X, Work(Path(folder), shard, each, checkpoint))

    def _fit_aside(self, X, work: "Work") -> bool:
        began = time.monotonic()
        self.check_parameters()
        # On another one: whatever stops a fit leaves a fitted detector as it was.
        fitted = type(self)(**self.get_params(deep=False))
        fitted.parameters_ = fitted.get_params(deep=False)
        del fitted.parameters_["on_progress"]
        if not fitted._fit(X, began, work):
            return False
        self.__dict__ |= {name: v for name, v in vars(fitted).items() if name.endswith("_")}
        if self.health_.warning:
            warnings.warn(self.health_.warning, HealthWarning, stacklevel=3)
        return True

    def _fit(self, X, began: float, work: "Work") -> bool:
        collection = self._read(X, Reader(value_range=self.value_range), least=2)
        self.value_range_, self.colour_ = collection.reader.value_range, collection.reader.colour
        self.file_scale_, self.states_ = collection.reader.file_range, collection.states
        self.paths_, digests = collection.ids, collection.digests
        self.copy_of_ = copies.exact(collection.images, digests)
        # Copies are trained, counted and scored once; with one image alone nothing is learnt.
        first = np.flatnonzero(self._is_first)
        first = first if len(first) > 1 else np.arange(len(collection.images))
        pictures, n = collection.images, len(first)
        everywhere = slice(None)
        if n < len(collection.images):
            pictures = pictures[first] if _is_array(pictures) else pictures.take(first)
            everywhere = np.searchsorted(first, self.copy_of_)
        with work.alone():
            name = functools.partial(self._name_of_fit, collection.images.shape, digests)
            parts = self._open(work, name)
            del first, digests, name  # which take as much memory as what stays
            seed = np.int32(check_random_state(self.random_state).randint(_SEEDS))
            seed = devices.broadcast_from_first(
                parts.get_or_compute("seed", lambda: {"seed": seed})["seed"]
            )
            key = devices.key(seed[()])
            self._train(key, pictures, parts, work, began)
        if not self._listen(key, pictures, parts, work):
            return False
        memory.trim()  # of many images, temporary arrays are as large as what stays
        evidence, entropies = self.evidence_, self.view_entropies_
        self.scales_ = {name: fusion.scale(values) for name, values in evidence.items()}
        self.decision_scores_ = self._fuse(evidence)[everywhere]
        self.remoteness_ = thresholds.remoteness(evidence)[everywhere]
        if n < len(collection.images):
            self.evidence_ = {
                k: parts.as_memmap(f"{k}-all", evidence[k][everywhere]) for k in evidence
            }
            of = entropies.__getitem__ if _is_array(entropies) else entropies.take
            self.view_entropies_ = of(everywhere)
        self.alike_ = self._alike(collection.images, self.copy_of_, self.decision_scores_)
        self._lower_frequent(collection.images)
        for name in ("decision_scores_", "remoteness_", "copy_of_", "alike_"):
            setattr(self, name, parts.as_memmap(name, getattr(self, name)))
        self.health_ = self.health_._replace(
            spread=float(self.decision_scores_.std()), unreadable=collection.unreadable
        )
        self._set_threshold()
        memory.trim()
        return True

    def _lower_frequent(self, pictures) -> None:
        """Lowers the scores of images that are frequent, and keeps these for new copies of them."""
        limits = thresholds.frequent_limits(self.decision_scores_, self.alike_, self._is_first)
        kinds = np.flatnonzero((limits < np.inf) & (self.alike_ == np.arange(len(limits))))
        self.frequent_, self.frequent_limits_ = pictures[kinds], limits[kinds]
        self.decision_scores_ = np.minimum(self.decision_scores_, limits)
        limits = thresholds.frequent_limits(self.remoteness_, self.alike_, self._is_first)
        self.remoteness_ = np.minimum(self.remoteness_, limits)

    def _name_of_fit(self, shape: tuple[int, ...], digests: np.ndarray) -> str:
        """What names the work of a fit: all that it follows from."""
        parameters = dict(self.parameters_)
        del parameters["contamination"]  # which sets the threshold and nothing else
        return work_key(work="fit", images=shape, digests=digests, **parameters)

    def _open(self, work: "Work", name: Callable[[], str]) -> Store:
        """Where work of such a name is kept."""
        store = Store(work.folder, work.folder and name())
        self.stores_ = [*getattr(self, "stores_", ()), store]
        return store

    def forget_work(self) -> None:
        """Deletes what ``fit_in`` and ``rank_in`` kept of this detector's finished work."""
        for store in vars(self).pop("stores_", ()):
            store.forget()

    def _train(self, key, pictures, parts: Store, work: "Work", began: float) -> None:
        """Sets the network that is trained on pictures."""
        # Kept, for another machine that goes on would choose others.
        kept = parts.get_or_compute("config", lambda: self._resolved(pictures, began))
        network, precision = kept["network"].item(), kept["precision"].item()
        config = self._config(len(pictures))._replace(
            network=network, precision=precision, steps=int(kept["steps"])
        )

        def train() -> dict[str, np.ndarray]:
            options = {"on_progress": self.on_progress}
            with contextlib.ExitStack() as stack:
                if work.checkpoint:
                    state = work.checkpoint(parts.folder / "training")
                    options["checkpoint"] = stack.enter_context(contextlib.closing(state))
                fitted = fitting.fit(key, pictures, self._method, config, **options)
            return flat(devices.fetched(fitted.state.variables))

        name = network if isinstance(network, str) else getattr(network, "__name__", network)
        devices_used = runtime.describe_devices()
        _log.info(f"Device: {devices_used}, {name}, {config.steps} steps, {precision}")
        self.score_operations_ = self._scored(len(pictures))
        self.network_, self.steps_, self.precision_ = network, config.steps, precision
        trained = parts.get_or_compute("trained", train)
        self.variables_ = {"batch_stats": {}} | nested(trained)

    def _resolved(self, pictures, began: float) -> dict[str, np.ndarray]:
        """What of a training depends on this machine: its network, precision and length."""
        config = self._config(len(pictures))
        steps = np.int64(config.steps)
        if self.time_budget is not None:
            steps = self._affordable(config, pictures, began + self.time_budget)
        named = {"network": config.network, "precision": config.precision}
        return {name: np.array(value) for name, value in named.items()} | {"steps": steps}

    def _listen(self, key, pictures, parts: Store, work: "Work") -> bool:
        """Sets the evidence about pictures, and what it is made with; False if some is missing.

        Of more than 20,000 pictures 5,000 say how much each operation is to be heard.
        """
        n, few = len(pictures), pictures
        if n > LARGE:
            few = pictures[sampling.choose(devices.fold_in(key, 3), n, _SAMPLE)]

        def hear_few() -> dict[str, np.ndarray]:
            scores = self._score(few, "scoring" if n <= LARGE else "sampling")
            warning = np.array(health.check_fit(scores, self._k))
            accuracy = scores.accuracy.mean()
            entropies = ranking.view_entropies(scores)
            return {"entropies": entropies, "accuracy": accuracy, "warning": warning}

        heard = parts.get_or_compute("sample", hear_few)
        entropies = heard["entropies"]
        self.median_entropies_ = np.median(entropies, axis=0)
        self.references_, self.view_weights_ = {}, np.ones(entropies.shape[1])
        if self._used("evidence") == "all":
            self.references_ = descriptors.fit(devices.fold_in(key, 2), pictures)
            self.view_weights_ = rules.view_weights(entropies)
        self.health_ = Health(
            pretext_accuracy=float(heard["accuracy"]),
            chance=1 / self._k,
            spread=0.0,
            steps=self.steps_,
            unreadable=[],
            warning=str(heard["warning"]),
        )
        if n <= LARGE:
            self.evidence_ = self._evidence(entropies, pictures)
            self.view_entropies_ = entropies
            return True
        return self._listen_in_parts(pictures, parts, work)

    def _listen_in_parts(self, pictures, parts: Store, work: "Work") -> bool:
        """Sets the evidence about many pictures, of which a part is in memory at a time."""
        memory.trim()  # what was needed before
        n = len(pictures)
        starts = range(0, n, _PART)
        names = [f"evidence{i:07d}" for i in range(len(starts))]
        silently, (first, step) = self._bare(), work.shard
        # Once, unless somebody removes the folder meanwhile.
        while missing := [i for i in range(len(names)) if names[i] not in parts]:
            mine = [i for i in missing if i % step == first - 1]
            if not mine:
                return False
            calls = ((silently, pictures[starts[i] : starts[i] + _PART]) for i in mine)
            done = n - _PART * len(missing)
            self.on_progress("scoring", max(done, 0), n)
            for i, heard in zip(mine, work.each(_hear, calls), strict=True):
                parts[names[i]] = heard
                done += _PART
                self.on_progress("scoring", min(max(done, 0), n), n)
        kinds = [fusion.NETWORK, *self.references_]
        self.evidence_ = {
            k: parts.as_memmap(k, np.concatenate([parts[name][k] for name in names])) for k in kinds
        }
        counts = [min(_PART, n - start) for start in starts]
        like = np.empty((0, self.score_operations_), np.float32)
        self.view_entropies_ = LazyArray(
            functools.partial(_entropies_of, parts, names), counts, like, self._unpacked
        )
        return True

    def _bare(self) -> "E3Outlier":
        """A detector that scores as this one, to be sent to other processes."""
        names = "parameters_ network_ steps_ precision_ variables_ colour_ file_scale_ value_range_"
        names += " score_operations_ median_entropies_ view_weights_ references_"
        bare, names = type(self)(), names.split()
        bare.__dict__ |= {name: getattr(self, name) for name in names}
        bare.parameters_ = dict(bare.parameters_)
        return bare

    def _unpacked(self, entropies: np.ndarray) -> np.ndarray:
        """float32 of entropies that are kept as 0 to 255 for 0 to log k."""
        return np.float32(entropies) * np.float32(math.log(self._k) / 255)

    def _alike(self, pictures, copy_of: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """What images are copies of to the eye; of many only the most outlying are compared."""
        chosen = np.unique(copy_of)
        if len(chosen) > LARGE:
            chosen = np.sort(chosen[np.argpartition(scores[chosen], -LARGE)[-LARGE:]])
        alike = np.arange(len(copy_of))
        alike[chosen] = chosen[copies.near(pictures[chosen])]
        return alike[copy_of]

    @property
    def _is_first(self) -> np.ndarray:
        """Whether each image of the collection is no copy of one before it, bool [n]."""
        return self.copy_of_ == np.arange(len(self.copy_of_))

    def fit_predict(self, X, y=None) -> np.ndarray:
        """``fit``, and the labels of the collection, int [n]."""
        return self.fit(X).labels_

    def fit_predict_score(self, X, y, scoring="roc_auc_score") -> float:
        """``fit``, and how well the scores agree with the true labels y [n], 1 = outlier.

        Args:
          X: images.
          y: labels.
          scoring: "roc_auc_score", the AUROC; "prc_n_score", the share of outliers among the first
            n images, for n outliers.

        Raises:
          NotImplementedError: for another scoring.
        """
        if scoring not in ("roc_auc_score", "prc_n_score"):
            raise NotImplementedError(
                f"scoring is {scoring!r}, expected 'roc_auc_score' or 'prc_n_score'"
            )
        found, y = self.fit(X), np.asarray(y).astype(bool)
        if scoring == "roc_auc_score":
            return metrics.auroc(-found.decision_scores_, y)
        return float(y[found.ranking_.order[: y.sum()]].mean())

    def __getstate__(self) -> dict:
        """For pickle, which a progress bar does not survive."""
        state = super().__getstate__()
        try:
            pickle.dumps(self.on_progress)
        except Exception:  # of any type
            state = state | {"on_progress": no_progress}
        return state

    def __getattr__(self, name: str):
        if name in _NOT_SAVED and "decision_scores_" in vars(self):
            raise AttributeError(
                f"{name} is about the collection and not saved with a detector: fit again, or rank "
                "the collection with rank(X)"
            )
        if name in _NOT_SAVED:
            check_is_fitted(self, "decision_scores_")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def decision_function(self, X) -> np.ndarray:
        """Scores [n] of images, larger = more outlying; those of ``fit`` score as they did there.

        Raises:
          InputError: bad images; also if a single file cannot be read.
          sklearn.exceptions.NotFittedError: before ``fit``.
        """
        pictures = self._readable(X)
        return self._scores(self._heard(pictures)[0], pictures)

    def view_scores(self, X) -> rules.ViewScores:
        """The scores of all views by every rule, float [n, k] each, smaller = more outlying.

        They explain an image's score: which operations the network does not recognise on it.

        Raises:
          InputError, NotFittedError: see ``decision_function``.
        """
        return self._score(self._readable(X))

    @property
    def ranking_(self) -> ranking.Ranking:
        """The collection's :class:`Ranking`; not for a detector that was loaded."""
        check_is_fitted(self, "decision_scores_")
        evidence = (self.alike_, self.view_entropies_, self.decision_scores_, self.evidence_)
        left_out, scale = self.health_.unreadable, self.file_scale_
        return self._rank(self.paths_, *evidence, left_out, scale, self.states_)

    def rank(self, X) -> ranking.Ranking:
        """New images as a :class:`Ranking`; files that cannot be read are left out of it.

        Raises:
          InputError, NotFittedError: see ``decision_function``.
        """
        return self._rank_new(X, Work())

    def rank_in(self, folder, X, *, shard=(1, 1), each=map) -> ranking.Ranking | None:
        """``rank``, keeping what is done in a folder, as ``fit_in`` does and with its arguments.

        Returns:
          The ranking, which needs the folder; None as long as parts are missing.
        """
        return self._rank_new(X, Work(Path(folder), shard, each))

    def _rank_new(self, X, work: "Work") -> ranking.Ranking | None:
        collection = self.read(X)
        pictures, digests = collection.images, collection.digests
        if not (heard := self._heard(pictures, work, digests)):
            return None
        evidence, entropies = heard
        scores = self._scores(evidence, pictures)
        alike = self._alike(pictures, copies.exact(pictures, digests), scores)
        evidence = (alike, entropies, scores, evidence)
        scale, states = collection.reader.file_range, collection.states
        return self._rank(collection.ids, *evidence, collection.unreadable, scale, states)

    @property
    def surprises_(self) -> dict[str, np.ndarray]:
        return {name: found[:] for name, found in self._surprises(self.evidence_).items()}

    def _surprises(self, evidence: dict[str, np.ndarray]) -> dict[str, fusion.Surprises]:
        kinds = self.scales_ if self.references_ else ()
        return {name: fusion.Surprises(self.scales_[name], evidence[name]) for name in kinds}

    def _rank(self, paths, alike, entropies, scores, evidence, unreadable, scale, states):
        operation_set = self.operation_set()
        return ranking.Ranking(
            paths=paths,
            copy_of=alike,
            scores=scores,
            evidence=ranking.Evidence(
                entropies,
                self.median_entropies_,
                self._k,
                operation_set,
                self._used("resize"),
                self._surprises(evidence),
            ),
            threshold=self.threshold_,
            unreadable=unreadable,
            health=self.health_,
            file_scale=scale,
            states=states,
        )

    def predict(self, X, return_confidence=False):
        """Labels [n] of images, 1 = outlier, with their confidences if asked."""
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

    def predict_with_rejection(self, X, *args, **kwargs):
        """Labels [n] of images, -2 where a prediction is too unsure (Perini & Davis 2023).

        By PyOD's own code, which explains the parameters.

        Raises:
          ImportError: PyOD is not installed.
        """
        return _pyods_detector().predict_with_rejection(self, X, *args, **kwargs)

    def compute_rejection_stats(self, *args, **kwargs):
        """Rates and costs of ``predict_with_rejection``, which see."""
        return _pyods_detector().compute_rejection_stats(self, *args, **kwargs)

    def predict_confidence(self, X) -> np.ndarray:
        """How stable each prediction is if the collection were drawn again, in [0, 1].

        As PyOD, after Perini et al. 2020.
        """
        return self._confidence(self.decision_function(X))

    def set_contamination(self, contamination) -> "E3Outlier":
        """Moves the threshold, and so ``labels_``, without training again."""
        check_is_fitted(self, "decision_scores_")
        thresholds.check_contamination(contamination)
        self.contamination = contamination
        self.parameters_ = self.parameters_ | {"contamination": contamination}
        return self._set_threshold()

    def read(self, X) -> Collection:
        """Reads a collection as the detector sees it, and what is left out of it.

        Raises:
          InputError: bad images; no file can be read.
          sklearn.exceptions.NotFittedError: before ``fit``.
        """
        check_is_fitted(self, "decision_scores_")
        # A range that is given later is of these arrays, not of the fit.
        value_range = self.value_range_ if self.value_range is None else self.value_range
        known = Reader(colour=self.colour_, value_range=value_range, file_range=self.file_scale_)
        return self._read(X, known, least=1)

    def _read(self, X, reader: Reader, least: int) -> Collection:
        self._check_value_range()
        reader = reader._replace(side=self._used("image_size"), resize=self._used("resize"))
        return read(X, reader, least=least, on_progress=self.on_progress)

    def _readable(self, X) -> np.ndarray:
        """The images of a collection, all of which must be readable."""
        collection = self.read(X)
        collection.check_complete()
        return collection.images

    @property
    def _method(self) -> Method:
        return FACTORED if self._used("evidence") == "all" else E3OUTLIER

    def operation_set(self) -> operations.OperationSet:
        """The operations, compiled for ``image_size``; after ``fit`` those that scores use."""
        found = fitting.operation_set(self._operations, self._used("image_size"))
        return found if self._chosen is None else operations.subset(found, self._chosen)

    @property
    def _k(self) -> int:
        """The number of operations that are learnt."""
        return len(fitting.operation_set(self._operations, self._used("image_size")))

    @property
    def _chosen(self) -> tuple[int, ...] | None:
        """The operations that scores use, by their positions; None for all."""
        count = getattr(self, "score_operations_", self._k)
        return operations.evenly(self._k, count) if count < self._k else None

    def _scored(self, n: int) -> int:
        """How many operations scores of n images use."""
        wanted = self.score_operations
        if wanted == "auto":
            wanted = self._k if n <= LARGE else _SCORED
        return min(wanted, self._k)

    @property
    def _operations(self) -> str | tuple:
        """Hashable: programs are built by them."""
        names = self._used("operations")
        return names if isinstance(names, str) else tuple(names)

    def _used(self, parameter: str):
        """A parameter as ``fit`` used it, whatever ``set_params`` changed since."""
        return getattr(self, "parameters_", vars(self))[parameter]

    # --- Parameters and images ---------------------------------------------------------------

    def check_parameters(self) -> None:
        """Raises a ValueError, in one sentence, for parameters that ``fit`` would not take."""
        thresholds.check_contamination(self.contamination)
        for name in ("steps", "score_operations", "batch_size", "image_size"):
            value, automatic = getattr(self, name), name in ("steps", "score_operations")
            if (value == "auto" and automatic) or (_is_integer(value) and value > 0):
                continue
            raise ValueError(f"{name} is {value!r}, expected a positive integer")
        if self.time_budget is not None and not (
            isinstance(self.time_budget, numbers.Real) and self.time_budget > 0
        ):
            raise ValueError(f"time_budget is {self.time_budget!r}, expected seconds above 0")
        if self.image_size % 2 or self.image_size < 4:
            raise ValueError(f"image_size is {self.image_size}, expected an even number from 4")
        if self.evidence not in EVIDENCE:
            known = " or ".join(map(repr, EVIDENCE))
            raise ValueError(f"evidence is {self.evidence!r}, expected {known}")
        if self.network != "auto":
            networks.check_classifier(self.network)
        if self.resize not in FITS:
            raise ValueError(f"resize is {self.resize!r}, expected one of {', '.join(FITS)}")
        self._check_value_range()
        if not isinstance(self.operations, (str, Iterable)):
            raise ValueError(f"operations is {self.operations!r}, expected names or operations")
        try:
            check_random_state(self.random_state)
        except ValueError as error:
            raise ValueError(
                f"random_state is {self.random_state!r}, expected an integer from 0 to 2**32 - 1"
            ) from error
        operations.compile_operations(self._operations, self.image_size)

    def _check_value_range(self) -> None:
        if self.value_range is not None and not _is_range(self.value_range):
            raise ValueError(
                f"value_range is {self.value_range!r}, expected two numbers, the smaller first"
            )

    # --- Training and scores -----------------------------------------------------------------

    def _config(self, n: int) -> training.TrainConfig:
        on_cpu = devices.is_cpu(devices.device_mesh())
        config = training.quick_config()._replace(
            operations=self._operations, batch_size=self.batch_size
        )
        network, steps = self.network, self.steps
        if network == "auto":
            network = config.network if on_cpu else "wrn-10-4"
        if steps == "auto":
            epochs = 0.5 if on_cpu else 1.0
            least = min(config.steps, config._replace(steps=None).num_steps(n))
            most = _MOST_STEPS_CPU if on_cpu else _MOST_STEPS
            steps = max(least, min(math.ceil(epochs * n * config.k / self.batch_size), most))
        return config._replace(network=network, steps=int(steps))

    def _affordable(
        self, config: training.TrainConfig, pictures: np.ndarray, deadline: float
    ) -> np.ndarray:
        """As many steps as end before a deadline, going by the time that scoring takes."""
        untrained = fitting.fit(devices.key(0), pictures, self._method, config, until=0)
        variables = untrained.state.variables  # alone, so that it is the program of later scores
        untrained = fitting.restored(self._method, config, self.image_size, variables)
        few = np.resize(pictures[:64], (64, *pictures.shape[1:]))
        for _ in range(2):  # the first one compiles
            began = time.monotonic()
            fitting.score(untrained, few)
        seconds_per_view = (time.monotonic() - began) / (64 * config.k)
        views = len(pictures) * self._scored(len(pictures))
        left = deadline - time.monotonic() - seconds_per_view * views
        steps = (left - _COMPILE_SECONDS) / (_TRAIN_COST * seconds_per_view * config.batch_size)
        return devices.broadcast_from_first(np.int32(min(config.steps, max(steps, _LEAST_STEPS))))

    def _score(self, pictures: np.ndarray, stage: str = "scoring") -> rules.ViewScores:
        channels = 3 if self.colour_ else 1
        if pictures.shape[-1] != channels:
            raise InputError(
                f"images have {pictures.shape[-1]} channels, those of fit had {channels}: give "
                "images of the same kind"
            )
        config = training.quick_config()._replace(
            network=self.network_,
            operations=self._operations,
            steps=self.steps_,
            precision=self.precision_,
        )
        fitted = fitting.restored(self._method, config, self._used("image_size"), self.variables_)
        return fitting.score(
            fitted,
            pictures,
            on_progress=lambda _, done, total: self.on_progress(stage, done, total),
            operation_indices=self._chosen,
        )

    def _heard(self, pictures, work=None, digests=None) -> tuple[dict, np.ndarray] | None:
        """The evidence about new pictures, and the entropies of their views; None if some is left.

        Those of many pictures are kept in the work's folder.
        """
        if len(pictures) > LARGE:
            heard, work = self._bare(), work or Work()
            with work.alone():
                model = {k: v for k, v in vars(heard).items() if k.endswith("_")}
                del model["parameters_"]["contamination"]  # no score depends on it
                parts = self._open(work, lambda: work_key(work="rank", digests=digests, **model))
            heard.on_progress = self.on_progress
            if not heard._listen_in_parts(pictures, parts, work):
                return None
            return heard.evidence_, heard.view_entropies_
        entropies = ranking.view_entropies(self._score(pictures))
        return self._evidence(entropies, pictures), entropies

    def _evidence(self, entropies: np.ndarray, pictures: np.ndarray) -> dict[str, np.ndarray]:
        """Each kind of evidence, float64 [n], larger = more outlying."""
        of_network = {fusion.NETWORK: ranking.image_entropies(entropies, self.view_weights_)}
        if not self.references_:
            return of_network
        how = {"on_progress": self.on_progress}
        return of_network | descriptors.distances(self.references_, pictures, **how)

    def _fuse(self, evidence: dict[str, np.ndarray]) -> np.ndarray:
        """Scores."""
        if not self.references_:
            return evidence[fusion.NETWORK]
        surprises = self._surprises(evidence)
        return fusion.fuse(lambda name: surprises[name][:], surprises)

    def _scores(self, evidence: dict[str, np.ndarray], pictures) -> np.ndarray:
        """Scores of new images, lower for copies of what was frequent in the collection."""
        scores = np.array(self._fuse(evidence))
        for start in range(0, len(pictures) if len(self.frequent_) else 0, _PART):
            block, limits = pictures[start : start + _PART], scores[start : start + _PART]
            left = np.ones(len(block), bool)
            for image, limit in zip(self.frequent_, self.frequent_limits_, strict=True):
                near = left & copies.near_to(block, image)
                limits[near] = np.minimum(limits[near], limit)
                left &= ~near
        return scores

    # --- Thresholds ----------------------------------------------------------------------------

    def _set_threshold(self) -> "E3Outlier":
        self.threshold_ = thresholds.threshold(
            self.decision_scores_, self._used("contamination"), self.remoteness_
        )
        return self

    @property
    def labels_(self) -> np.ndarray:
        """Labels of the collection, int [n], 1 = outlier."""
        return self._label(self.decision_scores_)

    def _label(self, scores: np.ndarray) -> np.ndarray:
        return (scores > self.threshold_).astype(int)

    def _confidence(self, scores: np.ndarray) -> np.ndarray:
        n = len(self.decision_scores_)
        below = np.searchsorted(np.sort(self.decision_scores_), scores, side="right")
        share = self._used("contamination")
        if not isinstance(share, numbers.Real):
            share = self.labels_.mean()
        posterior = (1 + below) / (2 + n)
        outlier = 1 - scipy.stats.binom.cdf(n - int(n * share), n, posterior)
        return np.where(self._label(scores) == 1, outlier, 1 - outlier)


class Work(NamedTuple):
    """How the work of a fit is done, see :meth:`E3Outlier.fit_in`."""

    folder: Path | None = None
    shard: tuple[int, int] = (1, 1)
    each: Callable[[Callable, Iterable], Iterable] = map
    checkpoint: Any = None

    def alone(self) -> contextlib.AbstractContextManager:
        """Waits until no other process that shares the folder begins or trains."""
        if self.folder is None:
            return contextlib.nullcontext()
        self.folder.mkdir(parents=True, exist_ok=True)
        return locks.held(self.folder, "rank", wait=True)


def _hear(call: tuple) -> dict[str, np.ndarray]:
    """The evidence about a part of the pictures; of the views' entropies 8 bits."""
    detector, pictures = call
    entropies = ranking.view_entropies(detector._score(pictures))
    packed = np.uint8(np.rint(entropies * (255 / math.log(detector._k))))
    return detector._evidence(entropies, pictures) | {"entropies": packed}


def _entropies_of(parts: Store, names: list[str], i: int) -> np.ndarray:
    return parts[names[i]]["entropies"]


def _pyods_detector() -> type:
    try:
        from pyod.models.base import BaseDetector
    except ImportError as error:
        raise ImportError("predictions with rejection need PyOD: pip install pyod") from error
    return BaseDetector


def _is_integer(value) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_range(value) -> bool:
    try:
        lowest, highest = map(float, value)
    except (TypeError, ValueError):
        return False
    return math.isfinite(lowest) and math.isfinite(highest) and lowest < highest


def _is_array(item) -> bool:
    return isinstance(item, np.ndarray)
