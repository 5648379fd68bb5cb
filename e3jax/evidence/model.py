"""The fitted model: everything that scores an image, as one immutable value.

It is fitted to a collection, saved as it is, and sent to other processes as it is.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from e3jax import choices, devices
from e3jax.collection import Reader
from e3jax.collection.lazy import AnyArray, LazyArray
from e3jax.devices import engines
from e3jax.errors import InputError
from e3jax.evidence import FEATURES, NETWORK, fusion, registered
from e3jax.evidence.fusion import Distribution
from e3jax.evidence.kind import Context, Measured
from e3jax.evidence.network import TrainedNetwork, pack, unpack
from e3jax.evidence.thresholds import Frequent
from e3jax.evidence.weights import collection_weights
from e3jax.images import memory
from e3jax.operations import OperationSet
from e3jax.work import locks

Inputs = Mapping[str, AnyArray]
_BLOCK = 4_096  # images of a large collection that are measured together


class Model(NamedTuple):
    """Everything that scores an image.

    Attributes:
      reader: how a picture becomes an array.
      evidence: by kind, what measuring it needs.
      weights: by kind, of its surprise in the score.
      distributions: by kind, of the collection; {} where the network's evidence is the score.
      frequent: images that were frequent in the collection.
    """

    reader: Reader
    evidence: dict[str, Any]
    weights: dict[str, float]
    distributions: dict[str, Distribution]
    frequent: Frequent

    @property
    def network(self) -> TrainedNetwork:
        """The network's part."""
        return self.evidence[NETWORK]

    def at(self, precision: str) -> "Model":
        """The model, its network computing at a precision."""
        network = self.network._replace(precision=precision)
        return self._replace(evidence=self.evidence | {NETWORK: network})


class Measurement(NamedTuple):
    """What a model's evidence says about n images.

    Attributes:
      evidence: by kind, float64 [n], larger = more outlying.
      view_entropies: float32 [n, k] in nats; of a large collection rounded to 8 bits, on disk.
    """

    evidence: dict[str, np.ndarray]
    view_entropies: AnyArray


class Explanation(NamedTuple):
    """Why images score as they do.

    Attributes:
      view_entropies: float [n, k] in nats, the entropy of each image under each operation.
      median: float [k], the fitted collection's median of each operation.
      num_operations: of those that the network tells apart, at least k.
      operation_set: the k operations.
      resize: how images became square.
      surprises: float [n] in nats by kind of evidence, see :mod:`e3jax.evidence.fusion`; {} where
        scores are the network's alone.
      reasons: str [n] by kind of evidence that can tell, what is unusual about each image.
    """

    view_entropies: AnyArray
    median: np.ndarray
    num_operations: int
    operation_set: OperationSet
    resize: str
    surprises: Mapping[str, AnyArray]
    reasons: Mapping[str, LazyArray] = {}


class Work(NamedTuple):
    """How the work of a fit is done.

    Attributes:
      folder: where it is kept; None: in memory.
      shard: (i, m): every m-th block from the i-th on is measured here, the others elsewhere.
      executor: measures blocks; None: this process.
    """

    folder: Path | None = None
    shard: tuple[int, int] = (1, 1)
    executor: Executor | None = None

    def locked(self) -> contextlib.AbstractContextManager:
        """Waits until no other process that shares the folder begins or trains."""
        if self.folder is None:
            return contextlib.nullcontext()
        self.folder.mkdir(parents=True, exist_ok=True)
        return locks.held(self.folder, "rank", wait=True)


HERE = Work()


def fit(
    key: jax.Array, inputs: Inputs, kinds: Sequence[str], reader: Reader, context: Context
) -> tuple[Model, dict[str, Measured]]:
    """Fits kinds of evidence to a collection.

    Args:
      key: of all randomness.
      inputs: of images that are all different, see :attr:`e3jax.collection.Collection.inputs`.
      kinds: names in :data:`e3jax.evidence.EVIDENCE`.
      reader: what the images were read with.
      context: of the training.

    Returns:
      A model without weights and distributions, see :func:`with_distributions`, and by kind what
      fitting has measured of all images.
    """
    parts, measured = {}, {}
    for name in kinds:
        # The training's key is the fit's own.
        kind = registered(name)
        part = kind.fit(
            key if name == NETWORK else devices.fold_in(key, 2), inputs[kind.input], context
        )
        parts[name] = part.model
        if part.measured:
            measured[name] = part.measured
    nothing = Frequent(inputs["images"][:0], np.empty(0))
    return Model(reader, parts, {}, {}, nothing), measured


def with_distributions(model: Model, evidence: Mapping[str, np.ndarray]) -> Model:
    """The model, with distributions and weights by the collection's evidence float64 [n]."""
    model = model._replace(weights=collection_weights(evidence))
    if len(model.evidence) == 1:
        return model
    distributions = {name: fusion.distribution(values) for name, values in evidence.items()}
    return model._replace(distributions=distributions)


def measure(
    model: Model,
    inputs: Inputs,
    context: Context,
    known: Mapping[str, Measured] | None = None,
    work: Work = HERE,
) -> Measurement | None:
    """Measures images; more than 20,000 block by block.

    Evidence of files takes no part where images are not files.

    Args:
      model: by :func:`fit`.
      inputs: of the images, see :attr:`e3jax.collection.Collection.inputs`.
      context: its store keeps the blocks.
      known: by kind, what fitting has measured of these images.
      work: who measures which blocks.

    Returns:
      The measurement; None as long as blocks of other shards are missing.

    Raises:
      InputError: the model was fitted with features and these images have none.
    """
    n, store = len(inputs["images"]), context.store
    if FEATURES in model.evidence and registered(FEATURES).input not in inputs:
        raise InputError(
            "the detector was fitted with features: give features of the same kind for these "
            "images, too"
        )
    if n <= choices.LARGE:
        return _measure(model, inputs, context, known or {})
    memory.trim()  # what was needed before
    names = [f"evidence{i:07d}" for i in range(math.ceil(n / _BLOCK))]
    shard, shards = work.shard
    # Once, unless somebody removes the folder meanwhile.
    while missing := [i for i in range(len(names)) if names[i] not in store]:
        mine = [i for i in missing if i % shards == shard - 1]
        if not mine:
            return None
        blocks = ((model, _block(inputs, i)) for i in mine)
        done = n - _BLOCK * len(missing)
        context.on_progress("scoring", max(done, 0), n)
        measured = engines.ordered_map(work.executor, _measure_block, blocks)
        for i, arrays in zip(mine, measured, strict=True):
            store[names[i]] = arrays
            done += _BLOCK
            context.on_progress("scoring", min(max(done, 0), n), n)
    evidence = {
        name: store.as_memmap(name, np.concatenate([store[block][name] for block in names]))
        for name in _measurable(model, inputs)
    }
    counts = [min(_BLOCK, n - start) for start in range(0, n, _BLOCK)]
    like = np.empty((0, len(model.network.median)), np.float32)
    convert = functools.partial(unpack, num_operations=model.network.num_operations)
    load = functools.partial(_entropies_of, store, names)
    return Measurement(evidence, LazyArray(load, counts, like, convert))


def _measurable(model: Model, inputs: Inputs) -> list[str]:
    return [name for name in model.evidence if registered(name).input in inputs]


def _block(inputs: Inputs, i: int) -> Inputs:
    return {name: array[i * _BLOCK : (i + 1) * _BLOCK] for name, array in inputs.items()}


def _measure(
    model: Model, inputs: Inputs, context: Context, known: Mapping[str, Measured]
) -> Measurement:
    measured = dict(known)
    for name in _measurable(model, inputs):
        if name not in known:
            kind = registered(name)
            measured[name] = kind.measure(model.evidence[name], inputs[kind.input], context)
    values = {name: of_kind.values for name, of_kind in measured.items()}
    return Measurement(values, measured[NETWORK].view_entropies)


def _measure_block(block: tuple[Model, Inputs]) -> dict[str, np.ndarray]:
    """The evidence about a block, by kind, and its views' entropies in 8 bits."""
    model, inputs = block
    evidence, entropies = _measure(model, inputs, Context(), {})
    return evidence | {"entropies": pack(entropies[:], model.network.num_operations)}


def _entropies_of(store: Any, names: Sequence[str], i: int) -> np.ndarray:
    return store[names[i]]["entropies"]


def score(model: Model, evidence: Mapping[str, np.ndarray]) -> np.ndarray:
    """Scores float64 [n] in nats, larger = more outlying: the weighted mean surprise.

    Of the network alone it is its evidence, the mean entropy.
    """
    if not model.distributions:
        return evidence[NETWORK]
    weights = {name: model.weights[name] for name in evidence}
    return fusion.weighted_mean(
        lambda name: model.distributions[name].surprise(evidence[name]), weights
    )


def explain(model: Model, measurement: Measurement, inputs: Inputs) -> Explanation:
    """Why the images of a measurement score as they do; what is long is computed where indexed."""
    surprises = {
        name: LazyArray([values].__getitem__, [len(values)], np.empty(0), distribution.surprise)
        for name, distribution in model.distributions.items()
        if (values := measurement.evidence.get(name)) is not None
    }
    reasons = {}
    for name in surprises:
        kind, rows = registered(name), inputs.get(registered(name).input)
        if kind.reasons and rows is not None:
            in_words = functools.partial(_in_words, kind.reasons, model.evidence[name])
            load = [rows].__getitem__
            reasons[name] = LazyArray(load, [len(rows)], np.empty(0, object), in_words)
    network = model.network
    return Explanation(
        view_entropies=measurement.view_entropies,
        median=network.median,
        num_operations=network.num_operations,
        operation_set=network.operation_set(),
        resize=model.reader.resize,
        surprises=surprises,
        reasons=reasons,
    )


def _in_words(reasons: Callable[[Any, Any], list[str]], part: Any, rows: Any) -> np.ndarray:
    return np.array(reasons(part, rows), object)
