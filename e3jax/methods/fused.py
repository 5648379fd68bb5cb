"""e3outlier+, the headline method: a network's evidence and that of descriptors, as one score."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from e3jax.evidence import EVIDENCE, NETWORK, Context, fit_and_measure, fusion
from e3jax.training.e3outlier import FACTORED
from e3jax.training.method import Evaluated, Method


def _names() -> list[str]:
    """All registered kinds of evidence of images that train no network."""
    return [name for name, kind in EVIDENCE.items() if kind.input == "images" and name != NETWORK]


def _measured(evaluated: Evaluated, names: Iterable[str]) -> dict[str, np.ndarray]:
    return fit_and_measure(evaluated.key, evaluated.images, names, Context(mesh=evaluated.mesh))


def _fused(evidence: dict[str, np.ndarray]) -> np.ndarray:
    """Scores, float64 [n] in nats, smaller = more outlying."""
    return -fusion.fuse_collection(evidence, {name: EVIDENCE[name].weight for name in evidence})


def _with_network(evaluated: Evaluated) -> np.ndarray:
    network = -evaluated.evaluation.weighted_mean("ne")
    return _fused({NETWORK: network} | _measured(evaluated, _names()))


def _constants(names: Iterable[str]) -> dict[str, Any]:
    return {"evidence": {name: EVIDENCE[name].weight for name in names}}


E3OUTLIER_PLUS = dataclasses.replace(
    FACTORED,
    scores={"e3outlier+": _with_network, **FACTORED.scores},
    constants=lambda: FACTORED.constants() | _constants(_names()),
)
# Without the network, and by shape only.
DESCRIPTORS = Method(
    scores={"descriptors": lambda evaluated: _fused(_measured(evaluated, _names()))},
    constants=lambda: _constants(_names()),
)
HOG_KNN = Method(
    scores={"hog-knn": lambda evaluated: _fused(_measured(evaluated, ["shape"]))},
    constants=lambda: _constants(["shape"]),
)
