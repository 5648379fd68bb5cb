"""Methods: a network's loss, and the scores that follow from its outputs."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from e3jax import training
from e3jax.training import batch


class Evaluated(NamedTuple):
    """What the scores of a collection follow from.

    Attributes:
      key: of what scores draw.
      images: uint8 [n, h, w, c].
      evaluation: what ``Method.evaluate`` gave for all images; None for a method without training.
      mesh: devices to use; None: all.
    """

    key: jax.Array
    images: np.ndarray
    evaluation: Any = None
    mesh: Mesh | None = None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Method:
    """What one training learns, and the scores that follow. Methods are compared by identity.

    Attributes:
      scores: by name in tables, ``Evaluated -> float [n]``, smaller = more outlying. The first name
        is the method's own.
      loss: ``(outputs, batch, extra) -> (losses [b], extra)``, see :mod:`e3jax.training.losses`;
        None: nothing is trained.
      evaluate: ``(x, outputs, labels) -> pytree``, see
        :func:`e3jax.training.evaluator.make_evaluator`; its result for all images is the method's
        evaluation.
      paper_config: ``grey -> TrainConfig``, the paper's training for grey or colour images.
      quick_config: ``() -> TrainConfig``, sized for a CPU; its constants are chosen on MNIST alone.
      metrics: of a batch, see :class:`e3jax.training.Objective`.
      constants: ``() -> dict``, what the scores depend on besides the config, by name.
      rounds: number of equal parts of a training.
      extra: ``images uint8 [n, h, w, c] -> pytree`` that ``TrainState.extra`` starts as.
      renew: ``evaluation -> extra``, called after every round; None leaves ``extra`` as it is.
      inputs: ``(x [..., h, w, c], image index [...], extra) -> x``: what the network is applied to.
    """

    scores: Mapping[str, Callable[[Evaluated], np.ndarray]]
    loss: batch.Loss | None = None
    evaluate: Callable[[jax.Array, tuple, np.ndarray], Any] = lambda x, outputs, labels: ()
    paper_config: Callable[[bool], training.TrainConfig] = lambda grey: training.TrainConfig()
    quick_config: Callable[[], training.TrainConfig] = training.TrainConfig
    metrics: Callable[..., dict[str, jax.Array]] = lambda outputs, batch: {}
    constants: Callable[[], dict[str, Any]] = dict
    rounds: int = 1
    extra: Callable[[Any], Any] = lambda images: ()
    renew: Callable[[Any], Any] | None = None
    inputs: Callable[[jax.Array, jax.Array, Any], jax.Array] = lambda x, index, extra: x

    @property
    def name(self) -> str:
        """That of the method's first scores."""
        return next(iter(self.scores))
