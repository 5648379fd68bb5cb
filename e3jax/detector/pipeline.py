"""The fit of a detector: read, take copies once, fit evidence and measure it, set a threshold."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from sklearn.utils.validation import check_random_state

from e3jax import choices, devices
from e3jax.collection import Collection, Unreadable, copies, read
from e3jax.collection.features import with_features
from e3jax.collection.lazy import AnyArray
from e3jax.detector import parameters
from e3jax.errors import InputError
from e3jax.evidence import model as models, thresholds
from e3jax.evidence.health import Health
from e3jax.evidence.model import Model, Work
from e3jax.evidence.weights import agreement
from e3jax.images import memory
from e3jax.report import decisions
from e3jax.work.progress import Progress
from e3jax.work.store import Store, work_key

_SEEDS = np.iinfo(np.int32).max


@dataclasses.dataclass(eq=False, repr=False, kw_only=True)
class Fitted:
    """The fitted attributes of :class:`e3jax.E3Outlier`, which see."""

    parameters_: dict[str, Any]
    model_: Model
    collection_: Collection
    copy_of_: np.ndarray
    near_copy_of_: np.ndarray
    evidence_: dict[str, np.ndarray]
    view_entropies_: AnyArray
    decision_scores_: np.ndarray
    remoteness_: np.ndarray
    threshold_: float
    health_: Health
    decisions_: np.ndarray


def fit(
    settings: dict[str, Any],
    X: Any,
    features: Any,
    decided: Any,
    work: Work,
    checkpoint: Callable[[Path], Any] | None,
    on_progress: Progress,
) -> tuple[Fitted | None, list[Store]]:
    """Fits a detector to a collection.

    Args:
      settings: parameters of the detector, all valid.
      X: the collection.
      features: of the user, see :func:`e3jax.collection.features.with_features`; None: nothing.
      decided: of the user, see :func:`e3jax.report.decisions.for_images`; None: nothing.
      work: where it is kept, and who measures what.
      checkpoint: see :class:`e3jax.evidence.Context`.
      on_progress: called as ``(stage, done, total)``.

    Returns:
      The fitted attributes, None as long as other shards have blocks to measure; and the stores of
      what was done.
    """
    budget = settings["time_budget"]
    deadline = None if budget is None else time.monotonic() + budget
    collection = read(X, parameters.reader(settings), least=2, on_progress=on_progress)
    stores = []
    if features is not None and settings["evidence"] == "all":
        collection, stores = with_features(collection, features, work.folder, on_progress)
    copy_of = copies.exact(collection.images, collection.digests)
    decided = decisions.for_images(decided, collection.ids)
    of_pictures = decisions.of_pictures(decided, copy_of)
    decided = np.where(decided == 0, of_pictures, decided)
    inputs, position = _once(collection.inputs, copy_of)
    learnt, is_learnt = _learnt(inputs, copy_of, of_pictures)
    with work.locked():
        store = Store(work.folder, work.folder and _name(settings, collection, decided))
        stores.append(store)
        key = _key(settings["random_state"], store)
        images = learnt["images"]
        context = parameters.context(settings, images, store, deadline, checkpoint, on_progress)
        kinds = parameters.kinds(settings, inputs)
        model, known = models.fit(key, learnt, kinds, collection.reader, context)
    known = known if is_learnt.all() else {}  # which is of all that are measured, or of none
    measurement = models.measure(model, inputs, context, known, work)
    if measurement is None:
        return None, stores
    memory.trim()  # of many images, temporary arrays are as large as what stays
    usual = {name: values[is_learnt] for name, values in measurement.evidence.items()}
    model = models.with_distributions(model, usual)
    values = _evaluated(model, measurement.evidence, usual, is_learnt)
    scores, remoteness = (of_inputs[position] for of_inputs in values)
    near_copy_of = near_copies(collection.images, copy_of, scores)
    once = copy_of == np.arange(len(copy_of))
    scores, limits = _lowered(scores, near_copy_of, once, of_pictures)
    remoteness, _ = _lowered(remoteness, near_copy_of, once, of_pictures)
    frequent = thresholds.frequent(collection.images, near_copy_of, limits)
    scores, remoteness = (decisions.bounded(v, decided) for v in (scores, remoteness))
    fitted = Fitted(
        parameters_=settings,
        model_=model._replace(frequent=frequent),
        collection_=_without_images(collection),
        copy_of_=store.as_memmap("copy_of", copy_of),
        near_copy_of_=store.as_memmap("near_copy_of", near_copy_of),
        evidence_=_of_all(measurement.evidence, position, store),
        view_entropies_=_taken(measurement.view_entropies, position),
        decision_scores_=store.as_memmap("scores", scores),
        remoteness_=store.as_memmap("remoteness", remoteness),
        threshold_=threshold(scores, settings["contamination"], remoteness, decided),
        health_=_health(model, scores, usual, remoteness[decided >= 0], collection.unreadable),
        decisions_=decided,
    )
    memory.trim()
    return fitted, stores


def threshold(
    scores: np.ndarray, contamination: Any, remoteness: np.ndarray, decided: np.ndarray
) -> float:
    """The :func:`e3jax.evidence.thresholds.threshold` of what is not decided to be junk."""
    kept = decided >= 0
    return thresholds.threshold(scores[kept], contamination, remoteness[kept])


def _learnt(
    inputs: dict[str, AnyArray], copy_of: np.ndarray, of_pictures: np.ndarray
) -> tuple[dict[str, AnyArray], np.ndarray]:
    """Inputs without those that do not belong, and which of the inputs these are, bool [m]."""
    m = len(inputs["images"])
    is_first = copy_of == np.arange(len(copy_of))
    is_learnt = of_pictures[is_first if is_first.sum() == m else slice(None)] >= 0
    if is_learnt.all():
        return inputs, is_learnt
    if is_learnt.sum() < 2:
        raise InputError(
            f"the decisions leave {is_learnt.sum()} of {m} pictures to learn from, expected at "
            "least 2: mark more of them as belonging"
        )
    rows = np.flatnonzero(is_learnt)
    return {name: _taken(array, rows) for name, array in inputs.items()}, is_learnt


def _evaluated(
    model: Model,
    evidence: Mapping[str, np.ndarray],
    usual: Mapping[str, np.ndarray],
    is_learnt: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and remoteness of all, [m] each, by a model with distributions of what is usual."""
    remoteness = np.zeros(len(is_learnt))
    remoteness[is_learnt] = thresholds.remoteness(usual, model.weights)
    return models.score(model, evidence), remoteness


def _lowered(
    values: np.ndarray, near_copy_of: np.ndarray, once: np.ndarray, of_pictures: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values lowered to :func:`e3jax.evidence.thresholds.frequent_limits`, and these limits.

    What does not belong is not usual, however frequent.
    """
    is_junk = of_pictures < 0
    limits = thresholds.frequent_limits(values, near_copy_of, once & ~is_junk)
    limits[is_junk] = np.inf
    return np.minimum(values, limits), limits


def _key(random_state: Any, store: Store) -> jax.Array:
    """The key of all randomness, the same in all processes that share the work."""
    seed = np.int32(check_random_state(random_state).randint(_SEEDS))
    kept = store.get_or_compute("seed", lambda: {"seed": seed})["seed"]
    return devices.key(devices.broadcast_from_first(kept)[()])


def _once(
    inputs: dict[str, AnyArray], copy_of: np.ndarray
) -> tuple[dict[str, AnyArray], np.ndarray | slice]:
    """Inputs of the different images, and the position among them of each of the collection.

    Copies are trained, counted and scored once; but from a single image nothing is learnt.
    """
    first = np.flatnonzero(copy_of == np.arange(len(copy_of)))
    if len(first) in (1, len(copy_of)):
        return inputs, slice(None)
    different = {name: _taken(array, first) for name, array in inputs.items()}
    return different, np.searchsorted(first, copy_of)


def _taken(items: Any, index: np.ndarray | slice) -> Any:
    """Items of an array; of a lazy one they stay where they are."""
    if isinstance(items, np.ndarray) or isinstance(index, slice):
        return items[index] if isinstance(items, np.ndarray) else items
    return items.take(index)


def _of_all(
    evidence: Mapping[str, np.ndarray], position: np.ndarray | slice, store: Store
) -> dict[str, np.ndarray]:
    """By kind, what was measured once, for each image of the collection."""
    if isinstance(position, slice):
        return dict(evidence)
    return {k: store.as_memmap(f"{k}-all", values[position]) for k, values in evidence.items()}


def _name(settings: Mapping[str, Any], collection: Collection, decided: np.ndarray) -> str:
    """What names the work of a fit: all that it follows from."""
    # The share of outliers sets the threshold and nothing else; features are among the inputs.
    no_part = ("contamination", "features")
    relevant = {name: value for name, value in settings.items() if name not in no_part}
    relevant |= {"images": collection.images.shape, "inputs": collection.input_digests}
    return work_key(work="fit", decisions=decided, **relevant)


def near_copies(images: AnyArray, copy_of: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """For each image the first that it is a copy of to the eye, int [n].

    Of more than 20,000 different images the most outlying 20,000 are compared.
    """
    compared = np.unique(copy_of)
    if len(compared) > choices.LARGE:
        compared = np.sort(
            compared[np.argpartition(scores[compared], -choices.LARGE)[-choices.LARGE :]]
        )
    near = np.arange(len(copy_of))
    near[compared] = compared[copies.near(images[compared])]
    return near[copy_of]


def _without_images(collection: Collection) -> Collection:
    nothing = collection.digests[:0]
    return collection._replace(
        images=collection.images[:0], digests=nothing, features=None, thumbnails=None
    )


def _health(
    model: Model,
    scores: np.ndarray,
    evidence: Mapping[str, np.ndarray],
    remoteness: np.ndarray,
    unreadable: list[Unreadable],
) -> Health:
    network = model.network
    return Health(
        pretext_accuracy=network.accuracy,
        chance=1 / network.num_operations,
        spread=float(scores.std()),
        steps=network.steps,
        agreement=agreement(evidence, model.weights),
        outliers=thresholds.outliers_between(remoteness),
        unreadable=unreadable,
        warning=network.warning,
    )
