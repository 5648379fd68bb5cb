"""The network's evidence: by default the entropy of its softmax, averaged over views (eq. 6)."""

import logging
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from e3jax import choices, devices, operations, training
from e3jax.collection.lazy import AnyArray
from e3jax.devices import runtime
from e3jax.errors import InputError
from e3jax.evidence import health
from e3jax.evidence.kind import Context, Fit, Kind, Measured
from e3jax.operations import OperationSet
from e3jax.training import fitting, rules, sampling
from e3jax.training.e3outlier import E3OUTLIER
from e3jax.work.store import Arrays, flat, nested

_log = logging.getLogger(__name__)
NETWORK = "network"
_SAMPLE = 5_000  # images of a large collection that are evaluated while the network is fitted


class TrainedNetwork(NamedTuple):
    """A network that tells operations apart, and what its entropies are compared with.

    Attributes:
      variables: its parameters and running statistics.
      network: its name, or the function that builds it.
      operations: those that it tells apart, by their families or one by one.
      operation_indices: those that score an image; None: all.
      side, channels: of its images.
      steps: of its training.
      precision: of its products, one of :data:`e3jax.devices.PRECISIONS`.
      rule: by which views score, of :data:`e3jax.training.rules.RULES`.
      median: float [k] in nats, the collection's median entropy of each scoring operation.
      weights: float [k], of mean 1, of the scoring operations.
      offset: from which scores are subtracted, so that evidence is positive.
      accuracy: share of the collection's views whose operation was recognised, in [0, 1].
      warning: why its scores may mean little, in one sentence; "" if they look sound.
    """

    variables: dict[str, Any]
    network: Any
    operations: str | tuple[operations.Operation, ...]
    operation_indices: tuple[int, ...] | None
    side: int
    channels: int
    steps: int
    precision: str
    rule: str
    median: np.ndarray = np.empty(0)
    weights: np.ndarray = np.empty(0)
    offset: float = 0.0
    accuracy: float = 0.0
    warning: str = ""

    @property
    def num_operations(self) -> int:
        """The number of operations that it tells apart."""
        return len(fitting.operation_set(self.operations, self.side))

    def operation_set(self) -> OperationSet:
        """The operations that score an image."""
        compiled = fitting.operation_set(self.operations, self.side)
        if self.operation_indices is None:
            return compiled
        return operations.subset(compiled, self.operation_indices)

    def view_scores(self, images: AnyArray, context: Context, stage: str) -> rules.ViewScores:
        """Scores of all views of images uint8 [n, h, w, c].

        Raises:
          InputError: the images have another number of channels.
        """
        if images.shape[-1] != self.channels:
            raise InputError(
                f"images have {images.shape[-1]} channels, those of fit had {self.channels}: give "
                "images of the same kind"
            )
        config = training.quick_config()._replace(
            network=self.network,
            operations=self.operations,
            steps=self.steps,
            precision=self.precision,
        )
        return fitting.score(
            fitting.restored(E3OUTLIER, config, self.side, self.variables),
            images,
            mesh=context.mesh,
            on_progress=lambda _, done, total: context.on_progress(stage, done, total),
            operation_indices=self.operation_indices,
        )

    def measured(self, scores: np.ndarray, view_entropies: np.ndarray) -> Measured:
        """The evidence that follows from scores by the rule and entropies of views, [n, k] each."""
        return Measured(self.offset - (scores * self.weights).mean(axis=1), view_entropies)


def _fit(key: jax.Array, images: AnyArray, context: Context) -> Fit:
    """Trains the network, and evaluates it on the collection or on 5,000 images of a large one."""
    n, side, _, channels = images.shape
    config = context.config
    mesh = context.mesh or devices.device_mesh()
    used = devices.part_for_batch(mesh, config.batch(n)).size
    steps = f"{config.num_steps(n):,} steps{f' on {used} of them' if used < mesh.size else ''}"
    _log.info(runtime.describe_work(config.network, steps, config.precision))
    trained = context.store.get_or_compute("trained", lambda: _train(key, images, context))
    model = TrainedNetwork(
        {"batch_stats": {}} | nested(trained),  # which a network need not have
        config.network,
        config.operations,
        _scoring(config.k, context.score_operations),
        side,
        channels,
        config.num_steps(n),
        config.precision,
        context.rule,
    )
    is_large = n > choices.LARGE
    sample = images[sampling.choose(devices.fold_in(key, 3), n, _SAMPLE)] if is_large else images

    def evaluate() -> Arrays:
        scores = model.view_scores(sample, context, "sampling" if is_large else "scoring")
        return {
            "scores": scores.rules[context.rule],
            "entropies": entropies_of(scores),
            "accuracy": scores.accuracy.mean(),
            "warning": np.array(health.check_fit(scores, config.k)),
        }

    sampled = context.store.get_or_compute("sample", evaluate)
    scores, entropies = sampled["scores"], sampled["entropies"]
    weights = rules.view_weights(scores) if context.equalised else np.ones(scores.shape[1])
    model = model._replace(
        median=np.median(entropies, axis=0),
        weights=weights,
        # Entropies start at 0; other rules' scores may have any range.
        offset=0.0 if context.rule == "ne" else float((scores * weights).mean(axis=1).max()),
        accuracy=float(sampled["accuracy"]),
        warning=str(sampled["warning"]),
    )
    return Fit(model, None if is_large else model.measured(scores, entropies))


def _train(key: jax.Array, images: AnyArray, context: Context) -> dict[str, np.ndarray]:
    folder, checkpoint = context.store.folder, context.checkpoint
    fitted = fitting.fit(
        key,
        images,
        context.method,
        context.config,
        mesh=context.mesh,
        checkpoint=checkpoint(folder / "training") if checkpoint and folder else None,
        on_progress=context.on_progress,
    )
    return flat(devices.fetched(fitted.state.variables))


def _scoring(k: int, count: int | None) -> tuple[int, ...] | None:
    """The positions of operations that score an image; None for all k."""
    return None if count is None or count >= k else operations.evenly(k, count)


def entropies_of(scores: rules.ViewScores) -> np.ndarray:
    """Entropies of views in nats, float32 [n, k] in [0, log k]: minus NE (eq. 6)."""
    return -scores.rules["ne"]


def _measure(model: TrainedNetwork, images: AnyArray, context: Context) -> Measured:
    scores = model.view_scores(images, context, "scoring")
    return model.measured(scores.rules[model.rule], entropies_of(scores))


def pack(view_entropies: np.ndarray, num_operations: int) -> np.ndarray:
    """Entropies in nats, rounded to 8 bits: 0 to 255 for 0 to log k."""
    return np.rint(view_entropies * (255 / math.log(num_operations))).astype(np.uint8)


def unpack(packed: np.ndarray, num_operations: int) -> np.ndarray:
    """The reverse of :func:`pack`, float32."""
    return packed.astype(np.float32) * np.float32(math.log(num_operations) / 255)


trained_network = Kind(fit=_fit, measure=_measure, model=TrainedNetwork, phrase="unusual views")
