"""E3Outlier: the paper's training, and the one of e3outlier+."""

import dataclasses
from collections.abc import Callable

import numpy as np

from e3jax import training
from e3jax.training import losses, rules
from e3jax.training.method import Evaluated, Method


def _rule(name: str) -> Callable[[Evaluated], np.ndarray]:
    return lambda evaluated: evaluated.evaluation.mean(name)


def _forest(evaluated: Evaluated) -> np.ndarray:
    return rules.isolation_forest(evaluated.key, evaluated.evaluation.representation)


# E3Outlier as the paper has it: the first rule is its NE, and all are scores of the same training.
E3OUTLIER = Method(
    loss=losses.surrogate_supervision,
    evaluate=rules.view_scores,
    scores={
        "e3outlier" if rule == "ne" else f"e3outlier-{rule}": _rule(rule) for rule in rules.RULES
    }
    | {"ssd-if": _forest},
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
    scores={"factored": lambda evaluated: evaluated.evaluation.weighted_mean("ne")},
    constants=lambda: {"trimmed": _TRIMMED},
)
