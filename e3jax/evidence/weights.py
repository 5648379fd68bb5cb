"""Weights: how much each kind of evidence counts in a score."""

from collections.abc import Mapping

import numpy as np

from e3jax.evidence import fusion, registered
from e3jax.evidence.network import NETWORK
from e3jax.evidence.thresholds import deviations

_TAIL, _USUAL, _MOST = 0.05, 2.5, 4.0
_FIRST = 0.1  # share of a collection whose order is compared


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


def agreement(evidence: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> float | None:
    """How far the network and the other evidence agree on what is unusual, in nats.

    It is how much more surprising than on average the others find the most unusual tenth of either:
    0 if they have nothing to do with each other, 2.3 if they agree entirely. None without others.

    Args:
      evidence: of a collection by kind, float [n], larger = more outlying.
      weights: by kind.
    """
    others = {name: weight for name, weight in weights.items() if name != NETWORK}
    if not others:
        return None

    network = fusion.fuse_collection(evidence, {NETWORK: 1.0})
    rest = fusion.fuse_collection(evidence, others)
    count = max(round(_FIRST * len(rest)), 1)
    gains = [
        b[np.argsort(a)[-count:]].mean() - b.mean() for a, b in ((network, rest), (rest, network))
    ]
    return float(np.mean(gains))
