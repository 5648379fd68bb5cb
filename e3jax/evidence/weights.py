"""Weights: how much each kind of evidence counts in a score."""

from collections.abc import Mapping

import numpy as np

from e3jax.evidence import registered
from e3jax.evidence.thresholds import deviations

_TAIL, _USUAL, _MOST = 0.05, 2.5, 4.0


def collection_weights(evidence: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The weight of each kind by what it says of the collection, float [n] each.

    It is the kind's own, and for one that is weighted by :func:`separation` that many times as
    much.
    """
    kinds = {name: registered(name) for name in evidence}
    return {
        name: kind.weight * (separation(evidence[name]) if kind.separated else 1)
        for name, kind in kinds.items()
    }


def separation(values: np.ndarray) -> float:
    """How far the most unusual images are from the others, in [0, 4]; about 1 is usual.

    It is the square of the mean over the largest 5 % of evidence, float [n], in 2.5
    :func:`e3jax.evidence.thresholds.deviations`. Chosen on the development folders.
    """
    count = max(round(_TAIL * len(values)), 1)
    tail = np.sort(deviations(values))[-count:].mean()
    return float(min(max(tail / _USUAL, 0) ** 2, _MOST))
