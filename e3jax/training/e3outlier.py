"""Methods: a network's loss, and the scores that follow from its outputs."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from e3jax import training
from e3jax.training import losses, rules
from e3jax.training.method import Method


def _rule(name: str) -> Callable[[jax.Array, rules.ViewScores], np.ndarray]:
    return lambda key, scores: scores.mean(name)


# E3Outlier as the paper has it: the first rule is its NE, and all are scores of the same training.
E3OUTLIER = Method(
    loss=losses.surrogate_supervision,
    evaluate=rules.view_scores,
    scores={
        "e3outlier" if rule == "ne" else f"e3outlier-{rule}": _rule(rule) for rule in rules.RULES
    }
    | {"ssd-if": lambda key, scores: rules.isolation_forest(key, scores.representation)},
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
    extra=losses.initial_certainty,
    scores={"factored": lambda key, scores: scores.weighted_mean("ne")},
    constants={"trimmed": _TRIMMED},
)
