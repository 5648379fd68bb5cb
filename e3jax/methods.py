"""Methods: a network's loss, and the scores that follow from its outputs."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from e3jax import losses, scoring, training


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Method:
    """What one training learns, and the scores that follow. Methods are compared by identity.

    Attributes:
      loss: ``(outputs, batch, extra) -> (losses [b], extra)``, see :mod:`e3jax.losses`.
      evaluate: ``(x, outputs, labels) -> pytree``, see :func:`e3jax.scoring.make_evaluator`; its
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

    loss: losses.Loss
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


def _rule(name: str) -> Callable[[jax.Array, scoring.ViewScores], np.ndarray]:
    return lambda key, scores: scores.mean(name)


# E3Outlier as the paper has it: the first rule is its NE, and all are scores of the same training.
E3OUTLIER = Method(
    loss=losses.surrogate_supervision,
    evaluate=scoring.view_scores,
    scores={
        "e3outlier" if rule == "ne" else f"e3outlier-{rule}": _rule(rule) for rule in scoring.RULES
    }
    | {"ssd-if": lambda key, scores: scoring.isolation_forest(key, scores.representation)},
    paper_config=training.paper_config,
    quick_config=training.quick_config,
    metrics=losses.pretext_accuracy,
)

_TRIMMED = 0.1
# The network of e3outlier+, which learns more from each view, and nothing from images that look as
# if they did not belong.
FACTORED = dataclasses.replace(
    E3OUTLIER,
    loss=losses.trimmed(losses.factored_supervision, _TRIMMED),
    extra=losses.no_certainty,
    scores={"factored": lambda key, scores: scores.weighted_mean("ne")},
    constants={"trimmed": _TRIMMED},
)
