"""Fusion: one score from several kinds of evidence, none of which shares a scale with another.

Evidence becomes surprise, -log(share of the collection that is at least as outlying): the Savage
scores of its ranks (Savage 1956). Unlike mean ranks they emphasise the most confident evidence, and
unlike values they do not depend on the scale or the tail of any evidence.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

_MOST = 100_000  # values of a distribution


class Distribution(NamedTuple):
    """A collection's distribution of one kind of evidence.

    Attributes:
      values: float64 [m], in increasing order, different from each other.
      below: float64 [m] in (0, 1), the share of the collection below each, counting half of those
        that are equal.
    """

    values: np.ndarray
    below: np.ndarray

    def surprise(self, values: np.ndarray) -> np.ndarray:
        """Surprise in nats, float64 [n] in (0, log 2 N] for a collection of N images.

        It is interpolated between the collection's values, and does not rise beyond its largest.
        """
        return -np.log1p(-np.interp(values, self.values, self.below))


def distribution(values: np.ndarray) -> Distribution:
    """The distribution of evidence float [N], larger = more outlying.

    Of more than 100,000 values the 50,000 largest are kept, and as many of the others, evenly by
    their ranks: shares in between are off by at most 1 / 50,000.
    """
    ranked = np.sort(np.asarray(values, np.float64))
    values = ranked[np.append(True, ranked[1:] != ranked[:-1])]
    others = len(values) - _MOST // 2
    if others > _MOST // 2:
        kept = np.linspace(0, others - 1, _MOST // 2).astype(int)
        values = np.concatenate([values[kept], values[others:]])
    below = np.searchsorted(ranked, values) + np.searchsorted(ranked, values, "right")
    return Distribution(values, below / 2 / len(ranked))


def weighted_mean(values: Callable[[str], np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """The weighted mean of all kinds of evidence, float64 [n]; one at a time is in memory."""
    ranked = sorted(weights.items())
    total = sum(weight for _, weight in ranked)
    return np.asarray(sum(weight / total * values(name) for name, weight in ranked))


def fuse_collection(
    evidence: Mapping[str, np.ndarray], weights: Mapping[str, float] | None = None
) -> np.ndarray:
    """Scores of a collection by its own evidence: the mean surprise, float64 [N] in nats.

    Args:
      evidence: by kind, float [N], larger = more outlying.
      weights: by kind; equal ones if None.
    """

    def surprise(name: str) -> np.ndarray:
        return distribution(evidence[name]).surprise(evidence[name])

    return weighted_mean(surprise, weights or dict.fromkeys(evidence, 1.0))
