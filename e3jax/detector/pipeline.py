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
from e3jax.evidence import model as models, thresholds
from e3jax.evidence.health import Health
from e3jax.evidence.model import Model, Work
from e3jax.evidence.weights import agreement
from e3jax.images import memory
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


def fit(
    settings: dict[str, Any],
    X: Any,
    features: Any,
    work: Work,
    checkpoint: Callable[[Path], Any] | None,
    on_progress: Progress,
) -> tuple[Fitted | None, list[Store]]:
    """Fits a detector to a collection.

    Args:
      settings: parameters of the detector, all valid.
      X: the collection.
      features: of the user, see :func:`e3jax.collection.features.with_features`; None: nothing.
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
    inputs, position = _once(collection.inputs, copy_of)
    images = inputs["images"]
    with work.locked():
        store = Store(work.folder, work.folder and _name(settings, collection))
        stores.append(store)
        key = _key(settings["random_state"], store)
        context = parameters.context(settings, images, store, deadline, checkpoint, on_progress)
        kinds = parameters.kinds(settings, inputs)
        model, known = models.fit(key, inputs, kinds, collection.reader, context)
    measurement = models.measure(model, inputs, context, known, work)
    if measurement is None:
        return None, stores
    memory.trim()  # of many images, temporary arrays are as large as what stays
    model = models.with_distributions(model, measurement.evidence)
    scores = models.score(model, measurement.evidence)[position]
    remoteness = thresholds.remoteness(measurement.evidence, model.weights)[position]
    near_copy_of = near_copies(collection.images, copy_of, scores)
    is_first = copy_of == np.arange(len(copy_of))
    limits = thresholds.frequent_limits(scores, near_copy_of, is_first)
    frequent = thresholds.frequent(collection.images, near_copy_of, limits)
    scores = np.minimum(scores, limits)
    limits = thresholds.frequent_limits(remoteness, near_copy_of, is_first)
    remoteness = np.minimum(remoteness, limits)
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
        threshold_=thresholds.threshold(scores, settings["contamination"], remoteness),
        health_=_health(model, scores, measurement.evidence, remoteness, collection.unreadable),
    )
    memory.trim()
    return fitted, stores


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


def _name(settings: Mapping[str, Any], collection: Collection) -> str:
    """What names the work of a fit: all that it follows from."""
    # The share of outliers sets the threshold and nothing else; features are among the inputs.
    no_part = ("contamination", "features")
    relevant = {name: value for name, value in settings.items() if name not in no_part}
    shape = collection.images.shape
    return work_key(work="fit", images=shape, inputs=collection.input_digests, **relevant)


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
