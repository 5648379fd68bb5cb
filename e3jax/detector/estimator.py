"""A detector with PyOD's contract, on arrays, files and folders: larger = more outlying."""

import pickle
from pathlib import Path

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from e3jax import devices
from e3jax.collection import Collection, copies, read
from e3jax.collection.features import with_features
from e3jax.collection.lazy import AnyArray
from e3jax.detector import parameters, pipeline
from e3jax.detector.contract import OutlierContract
from e3jax.errors import warn
from e3jax.evidence import FEATURES, Context, model as models, thresholds
from e3jax.evidence.health import HealthWarning
from e3jax.evidence.model import Measurement, Work
from e3jax.report.ranking import Ranking
from e3jax.training import rules
from e3jax.work.progress import no_progress
from e3jax.work.store import Store, work_key

_NOT_SAVED = ("evidence_", "view_entropies_", "near_copy_of_")


class E3Outlier(pipeline.Fitted, OutlierContract, BaseEstimator):
    """Finds the images that do not belong, by learning only from the collection (NeurIPS 2019).

    The contract is that of PyOD's detectors. Collections, ``X`` everywhere, are

    - arrays or tensors [n, h, w] or [n, h, w, c], c 1 or 3: uint8, or float in a stated or inferred
      range;
    - a folder (all images below it) or any iterable of files; what cannot be read is left out of
      ``fit``, listed in ``health_.unreadable``, and an error elsewhere;
    - a bank on disk, see :mod:`e3jax.collection.bank`, of which a part is in memory at a time;
    - any iterable of images, of Pillow's say, and data sets, see :func:`e3jax.collection.read`.

    Args:
      contamination: share of outliers, in (0, 0.5], which sets the threshold and nothing else;
        "auto": as many as are 2.5 deviations above the median by the network and by the other
        evidence, which are few; or an object with PyThresh's ``eval(scores) -> labels``.
      evidence: what scores are made of. "all": all of :data:`e3jax.evidence.EVIDENCE`, half the
        network as e3outlier+ trains it, half how far an image is from the collection by its
        descriptors, and of files their detail and facts besides; "network": the paper's method.
      features: vectors of the images that you have, or a model of yours that makes them, as further
        evidence: a file or vectors by path, see :func:`e3jax.collection.features.with_features`.
        None: nothing that was trained elsewhere takes part.
      rule: by which the network's views score, of :data:`e3jax.training.rules.RULES`.
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
      resize: how images that are not square become so, see :class:`e3jax.collection.Reader`.
      value_range: (smallest, largest) value of float arrays; None infers it from those given to
        ``fit`` and says so in a warning.
      precision: of the network's products: "float32" on every device; "tensorfloat32", to which
        accelerators round factors; "bfloat16", in which convolutions are computed; "auto": float32
        on CPUs, tensorfloat32 on GPUs, bfloat16 on TPUs. ``set_params`` changes that of new images'
        scores at once.
      random_state: int, ``numpy.random.RandomState`` or None, the source of all randomness.
      on_progress: called as ``(stage, done, total)``; it may raise to end the fit.

    Attributes:
      decision_scores_: float [n] in nats, larger = more outlying: the mean surprise of all kinds of
        evidence (:mod:`e3jax.evidence.fusion`); with the network only, the images' entropy, minus
        NE (eq. 6).
      threshold_: images with larger scores are outliers.
      health_: :class:`e3jax.evidence.health.Health`; ``fit`` also warns if it is bad.
      model_: :class:`e3jax.evidence.model.Model`, all that scores an image: how it is read, the
        trained network, references and distributions.
      evidence_: by kind, float [n], larger = more outlying; not saved with the detector.
      view_entropies_: float [n, k] in nats, the entropy of each view; not saved. For more than
        20,000 images it is rounded to 8 bits, stays on disk and is indexed like an array.
      remoteness_: float [n], how far above the median each image is, in deviations, see
        :func:`e3jax.evidence.thresholds.remoteness`.
      copy_of_: int [n], for each image its first exact copy, maybe itself. Copies are learnt and
        compared once. But what is frequent is usual: scores of images with many copies are
        lowered, see :func:`e3jax.evidence.thresholds.frequent_limits`.
      near_copy_of_: int [n], the same to the eye, see :func:`e3jax.collection.copies.near`; not
        saved. In large collections only the 20,000 most outlying images are compared.
      collection_: :class:`e3jax.collection.Collection`, without its images.
      decisions_: int8 [n], 1 of images that belong, -1 of those that do not, as decided for ``fit``
        about them or their exact copies, else 0.
      parameters_: the parameters that ``fit`` used; ``set_params`` changes those of the next fit,
        and ``value_range`` at once.

    >>> detector = E3Outlier(contamination=0.05).fit("photos/")  # doctest: +SKIP
    >>> detector.paths_[detector.labels_ == 1]  # doctest: +SKIP
    """

    def __init__(
        self,
        contamination=0.1,
        evidence="all",
        features=None,
        rule="ne",
        network="auto",
        operations="RA+IA+PR",
        steps="auto",
        score_operations="auto",
        time_budget=None,
        batch_size=128,
        image_size=32,
        resize="squash",
        value_range=None,
        precision="auto",
        random_state=None,
        on_progress=no_progress,
    ):
        self.contamination = contamination
        self.evidence = evidence
        self.features = features
        self.rule = rule
        self.network = network
        self.operations = operations
        self.steps = steps
        self.score_operations = score_operations
        self.time_budget = time_budget
        self.batch_size = batch_size
        self.image_size = image_size
        self.resize = resize
        self.value_range = value_range
        self.precision = precision
        self.random_state = random_state
        self.on_progress = on_progress

    def fit(self, X, y=None, features=None, decisions=None) -> "E3Outlier":
        """Learns from a collection and scores it; ``y`` is ignored.

        Args:
          X: the collection, see :func:`e3jax.collection.read`.
          y: ignored.
          features: of these images, instead of the parameter of that name.
          decisions: "belongs" or "does not belong" by paths or numbers of some images, or a file
            that the gallery saved. What does not belong takes no part in the training, in what
            images are compared with, and in the threshold; it is scored and always an outlier.
            What belongs never is one. Exact copies of a picture share its decision.

        Raises:
          InputError: bad images, files or decisions (a ValueError).
          ValueError: bad parameters.
        """
        self._fit(X, features, decisions, Work(), None)
        return self

    def fit_in(
        self,
        folder,
        X,
        *,
        features=None,
        decisions=None,
        shard=(1, 1),
        executor=None,
        checkpoint=None,
    ) -> bool:
        """``fit``, keeping what is done in a folder: after a stop the same call goes on from there.

        Several processes, also on other machines, may share the work on one folder; those of a job
        (``jax.distributed``) call ``fit`` instead.

        Args:
          folder: for what is done; ``ranking_`` needs it.
          X: the collection.
          features, decisions: see ``fit``.
          shard: (i, m), measures every m-th block from the i-th on, and no others.
          executor: a :class:`concurrent.futures.Executor` that measures blocks, see
            :mod:`e3jax.devices.engines`; None: this process.
          checkpoint: :class:`e3jax.training.checkpoint.TrainCheckpoint`, if a training is to go
            on from where it was.

        Returns:
          Whether all blocks are measured, and so the detector is fitted.
        """
        work = Work(Path(folder), shard, executor)
        return self._fit(X, features, decisions, work, checkpoint)

    def _fit(self, X, features, decisions, work: Work, checkpoint) -> bool:
        self.check_parameters()
        settings = self.get_params(deep=False)
        del settings["on_progress"]
        features = self.features if features is None else features
        fitted, stores = pipeline.fit(
            settings, X, features, decisions, work, checkpoint, self.on_progress
        )
        self._keep(*stores)
        if fitted is None:
            return False
        vars(self).update(vars(fitted))
        if self.health_.warning:
            warn(self.health_.warning, HealthWarning)
        return True

    def _keep(self, *stores: Store) -> None:
        # What is in memory need not be deleted, nor held.
        in_folders = [store for store in stores if store.folder]
        self._stores = [*vars(self).get("_stores", ()), *in_folders]

    def forget_work(self) -> None:
        """Deletes what ``fit_in`` and ``rank_in`` kept of this detector's finished work."""
        for store in vars(self).pop("_stores", ()):
            store.forget()

    def check_parameters(self) -> None:
        """Raises a ValueError, in one sentence, for parameters that ``fit`` would not take."""
        parameters.check(self.get_params(deep=False))

    def __getstate__(self):
        """For pickle, which a progress bar does not survive."""
        try:
            pickle.dumps(self.on_progress)
        except Exception:  # of any type
            return vars(self) | {"on_progress": no_progress}
        return super().__getstate__()

    def __getattr__(self, name: str):
        if name in _NOT_SAVED and "decision_scores_" in vars(self):
            raise AttributeError(
                f"{name} describes the collection and is not saved with a detector: fit again, or "
                "rank the collection with rank(X)"
            )
        if name in _NOT_SAVED:
            check_is_fitted(self, "decision_scores_")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def read(self, X, least: int = 1, features=None, folder: Path | None = None) -> Collection:
        """Reads a collection as the detector sees it, and what is left out of it.

        Other methods take the result as ``X``, which new images need whose features are given.

        Args:
          X: the collection.
          least: smallest allowed number of readable images.
          features: see ``fit``.
          folder: where features that a model makes are kept.

        Raises:
          InputError: bad images; no file can be read.
          sklearn.exceptions.NotFittedError: before ``fit``.
        """
        check_is_fitted(self, "decision_scores_")
        parameters.check_value_range(self.value_range)
        reader = self.model_.reader
        if self.value_range is not None:  # of these arrays, not of the fit
            reader = reader._replace(value_range=tuple(map(float, self.value_range)))
        collection = read(X, reader, least=least, on_progress=self.on_progress)
        features = self.features if features is None else features
        is_used = FEATURES in self.model_.evidence and collection.features is None
        if is_used and features is not None:
            collection, stores = with_features(collection, features, folder, self.on_progress)
            self._keep(*stores)
        return collection

    def decision_function(self, X) -> np.ndarray:
        """Scores [n] of images, larger = more outlying; those of ``fit`` score as they did there.

        But decisions about those are not known here.

        Raises:
          InputError: bad images; also if a single file cannot be read.
          sklearn.exceptions.NotFittedError: before ``fit``.
        """
        collection = self._readable(X)
        measurement = models.measure(self._model_here(), collection.inputs, self._context())
        assert measurement, "only a shard leaves blocks to others"
        return self._scores(collection.images, measurement)

    def view_scores(self, X) -> rules.ViewScores:
        """The scores of all views by every rule, float [n, k] each, smaller = more outlying.

        They explain an image's score: which operations the network does not recognise on it.

        Raises:
          InputError, NotFittedError: see ``decision_function``.
        """
        images = self._readable(X).images
        return self._model_here().network.view_scores(images, self._context(), "scoring")

    def _readable(self, X) -> Collection:
        """A collection of images all of which must be readable."""
        collection = self.read(X)
        collection.check_complete()
        return collection

    def _model_here(self) -> models.Model:
        """The model, at the precision that scores new images on this machine."""
        parameters.check_precision(self.precision)
        return self.model_.at(devices.resolved(self.precision))

    def _context(self, store: Store | None = None) -> Context:
        return Context(on_progress=self.on_progress, store=store or Store())

    def _scores(self, images: AnyArray, measurement: Measurement) -> np.ndarray:
        """Scores of new images, lower for copies of what was frequent in the collection."""
        scores = models.score(self.model_, measurement.evidence)
        return self.model_.frequent.lowered(scores, images)

    @property
    def paths_(self) -> AnyArray:
        """Files of the collection, str [n]; image numbers for arrays.

        Those of a bank stay on disk and are indexed like an array.
        """
        return self.collection_.ids

    @property
    def ranking_(self) -> Ranking:
        """The collection's :class:`Ranking`; not for a detector that was loaded."""
        check_is_fitted(self, "decision_scores_")
        measurement = Measurement(self.evidence_, self.view_entropies_)
        scores, near_copy_of = self.decision_scores_, self.near_copy_of_
        ranking = self._ranking(self.collection_, measurement, scores, near_copy_of)
        return ranking._replace(decisions=self.decisions_ if self.decisions_.any() else None)

    def rank(self, X) -> Ranking:
        """New images as a :class:`Ranking`; files that cannot be read are left out of it.

        Raises:
          InputError, NotFittedError: see ``decision_function``.
        """
        ranking = self._rank(X, Work())
        assert ranking, "only a shard leaves blocks to others"
        return ranking

    def rank_in(self, folder, X, *, shard=(1, 1), executor=None) -> Ranking | None:
        """``rank``, keeping what is done in a folder, as ``fit_in`` does and with its arguments.

        Returns:
          The ranking, which needs the folder; None as long as other shards have blocks to measure.
        """
        return self._rank(X, Work(Path(folder), shard, executor))

    def _rank(self, X, work: Work) -> Ranking | None:
        collection = self.read(X, folder=work.folder)
        images, store, model = collection.images, Store(), self._model_here()
        if work.folder:
            with work.locked():
                key = work_key(work="rank", inputs=collection.input_digests, model=model)
                store = Store(work.folder, key)
            self._keep(store)
        measurement = models.measure(model, collection.inputs, self._context(store), work=work)
        if measurement is None:
            return None
        scores = self._scores(images, measurement)
        near_copy_of = pipeline.near_copies(
            images, copies.exact(images, collection.digests), scores
        )
        return self._ranking(collection, measurement, scores, near_copy_of)

    def _ranking(self, collection, measurement, scores, near_copy_of) -> Ranking:
        return Ranking(
            paths=collection.ids,
            copy_of=near_copy_of,
            scores=scores,
            explanation=models.explain(self.model_, measurement, collection.inputs),
            threshold=self.threshold_,
            unreadable=collection.unreadable,
            health=self.health_,
            file_range=collection.reader.file_range,
            states=collection.states,
        )

    @property
    def surprises_(self) -> dict[str, np.ndarray]:
        """By kind of evidence, float [n] in nats, how unusual each image of the collection is.

        It is empty with ``evidence="network"``.
        """
        lazy = self.ranking_.explanation.surprises
        return {name: values[:] for name, values in lazy.items()}

    def set_contamination(self, contamination) -> "E3Outlier":
        """Moves the threshold, and so ``labels_``, without training again."""
        check_is_fitted(self, "decision_scores_")
        thresholds.check_contamination(contamination)
        self.contamination = contamination
        self.parameters_ = self.parameters_ | {"contamination": contamination}
        self.threshold_ = pipeline.threshold(
            self.decision_scores_, contamination, self.remoteness_, self.decisions_
        )
        return self
