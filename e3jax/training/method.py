"""Methods: a network's loss, and the scores that follow from its outputs."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from e3jax import training
from e3jax.training import batch


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Method:
    """What one training learns, and the scores that follow. Methods are compared by identity.

    Attributes:
      loss: ``(outputs, batch, extra) -> (losses [b], extra)``, see :mod:`e3jax.training.losses`.
      evaluate: ``(x, outputs, labels) -> pytree``, see
      :func:`e3jax.training.evaluator.make_evaluator`; its
        result for all images is the method's evaluation.
      scores: by name in tables, ``(key, evaluation) -> float [n]``, smaller = more outlying. The
        first name is the method's own.
      paper_config: ``grey -> TrainConfig``, the paper's training for grey or colour images.
      quick_config: ``() -> TrainConfig``, sized for a CPU; its constants are chosen on MNIST alone.
      metrics: of a batch, see :class:`e3jax.training.Objective`.
      constants: values that the scores depend on besides the config, by name.
      rounds: number of equal parts of a training.
      extra: ``images uint8 [n, h, w, c] -> pytree`` that ``TrainState.extra`` starts as.
      renew: ``evaluation -> extra``, called after every round; None leaves ``extra`` as it is.
      inputs: ``(x [..., h, w, c], image index [...], extra) -> x``: what the network is applied to.
    """

    loss: batch.Loss
    evaluate: Callable[[jax.Array, tuple, jax.Array], Any]
    scores: Mapping[str, Callable[[jax.Array, Any], np.ndarray]]
    paper_config: Callable[[bool], training.TrainConfig]
    quick_config: Callable[[], training.TrainConfig]
    metrics: Callable[..., dict[str, jax.Array]] = lambda outputs, batch: {}
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rounds: int = 1
    extra: Callable[[np.ndarray], Any] = lambda images: ()
    renew: Callable[[Any], Any] | None = None
    inputs: Callable[[jax.Array, jax.Array, Any], jax.Array] = lambda x, index, extra: x

    @property
    def name(self) -> str:
        return next(iter(self.scores))
