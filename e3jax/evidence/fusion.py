"""Fusion: one score from several kinds of evidence, none of which shares a scale with another.

Evidence becomes surprise, -log(share of the collection that is at least as outlying): the Savage
scores of its ranks (Savage 1956). Unlike mean ranks they listen to whoever is sure, and unlike
values they do not depend on the scale or the tail of any evidence.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

# Name of the network's evidence; all others are of descriptors.
NETWORK = "network"
_MOST = 100_000  # values of a scale


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
    return Scale(values, below / 2 / len(ranked))


def weights(names: Sequence[str]) -> dict[str, float]:
    """The weight of each kind of evidence: half for the network, half for all descriptors."""
    each = 1 / max(len(names) - (NETWORK in names), 1)
    share = {name: 1.0 if name == NETWORK else each for name in names}
    return {name: weight / sum(share.values()) for name, weight in share.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Surprises:
    """Surprises in nats of n images by one kind of evidence, computed where they are indexed.

    Attributes:
      scale: of the collection.
      evidence: float64 [n].
    """

    scale: Scale
    evidence: np.ndarray

    def __getitem__(self, index) -> np.ndarray:
        return self.scale.surprise(self.evidence[index])


def fuse(values: Callable[[str], np.ndarray], names: Iterable[str]) -> np.ndarray:
    """The weighted mean over all kinds of evidence, float64 [n], of which one at a time is made.

    Of surprises it is the score, in nats and about 1 on average.
    """
    return sum(weight * values(name) for name, weight in weights(sorted(names)).items())


def fuse_collection(evidence: Mapping[str, np.ndarray]) -> np.ndarray:
    """The scores of a collection by its own evidence, float64 [N] in nats."""
    return fuse(lambda name: scale(evidence[name]).surprise(evidence[name]), evidence)


def phrase(name: str) -> str:
    """What a kind of evidence says of an image that it finds unusual."""
    return "unusual views" if name == NETWORK else f"unusual {name}"
