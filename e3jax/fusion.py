"""Fusion: one score from several kinds of evidence, none of which shares a scale with another.

Evidence becomes surprise, -log(share of the collection that is at least as outlying): the Savage
scores of its ranks (Savage 1956). Unlike mean ranks they listen to whoever is sure, and unlike
values they do not depend on the scale or the tail of any evidence.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

# Name of the network's evidence; all others are of descriptors.
NETWORK = "network"


class Scale(NamedTuple):
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


def scale(values: np.ndarray) -> Scale:
    """The distribution of evidence float [N], larger = more outlying."""
    values, counts = np.unique(np.asarray(values, np.float64), return_counts=True)
    return Scale(values, (counts.cumsum() - counts / 2) / counts.sum())


def weights(names: Sequence[str]) -> dict[str, float]:
    """The weight of each kind of evidence: half for the network, half for all descriptors."""
    each = 1 / max(len(names) - (NETWORK in names), 1)
    share = {name: 1.0 if name == NETWORK else each for name in names}
    return {name: weight / sum(share.values()) for name, weight in share.items()}


def surprises(
    scales: Mapping[str, Scale], evidence: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Each kind of evidence as surprise, float64 [n] in nats."""
    return {name: scale.surprise(evidence[name]) for name, scale in scales.items()}


def fuse(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """The weighted mean over all kinds of evidence, float64 [n].

    Of surprises it is the score, in nats and about 1 on average.
    """
    return sum(weight * values[name] for name, weight in weights(sorted(values)).items())


def fuse_collection(evidence: Mapping[str, np.ndarray]) -> np.ndarray:
    """The scores of a collection by its own evidence, float64 [N] in nats."""
    return fuse(surprises({name: scale(values) for name, values in evidence.items()}, evidence))


def phrase(name: str) -> str:
    """What a kind of evidence says of an image that it finds unusual."""
    return "unusual views" if name == NETWORK else f"unusual {name}"
