"""e3outlier+, the headline method: a network's evidence and that of descriptors, as one score."""

import dataclasses
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from e3jax.collection import Reader, read
from e3jax.collection.features import with_features
from e3jax.evidence import EVIDENCE, FEATURES, NETWORK, Context, fit_and_measure, fusion
from e3jax.evidence.weights import collection_weights
from e3jax.training.e3outlier import FACTORED
from e3jax.training.method import Evaluated, Method
from e3jax.work.progress import no_progress


def image_kinds() -> list[str]:
    """All registered kinds of evidence of images that train no network."""
    return [name for name, kind in EVIDENCE.items() if kind.input == "images" and name != NETWORK]


def _measured(
    evaluated: Evaluated, names: Iterable[str], features: Path | None = None
) -> dict[str, np.ndarray]:
    inputs = {"images": evaluated.images}
    if features:
        collection = read(evaluated.images, Reader(evaluated.images.shape[1]))
        inputs = with_features(collection, features, None, no_progress)[0].inputs
    return fit_and_measure(evaluated.key, inputs, names, Context(mesh=evaluated.mesh))


def _fused(evidence: dict[str, np.ndarray]) -> np.ndarray:
    """Scores, float64 [n] in nats, smaller = more outlying."""
    return -fusion.fuse_collection(evidence, collection_weights(evidence))


def _with_network(evaluated: Evaluated, features: Path | None = None) -> np.ndarray:
    network = -evaluated.evaluation.weighted_mean("ne")
    names = image_kinds() + ([FEATURES] if features else [])
    return _fused({NETWORK: network} | _measured(evaluated, names, features))


def _constants(names: Iterable[str]) -> dict[str, Any]:
    return {"evidence": {name: EVIDENCE[name].weight for name in names}}


E3OUTLIER_PLUS = dataclasses.replace(
    FACTORED,
    scores={"e3outlier+": _with_network, **FACTORED.scores},
    constants=lambda: FACTORED.constants() | _constants(image_kinds()),
)
# Without the network, and by shape only.
DESCRIPTORS = Method(
    scores={"descriptors": lambda evaluated: _fused(_measured(evaluated, image_kinds()))},
    constants=lambda: _constants(image_kinds()),
)
HOG_KNN = Method(
    scores={"hog-knn": lambda evaluated: _fused(_measured(evaluated, ["shape"]))},
    constants=lambda: _constants(["shape"]),
)


def featured(features: Path) -> list[Method]:
    """Methods by a model of the user's: its features, and e3outlier+ with them.

    Args:
      features: the model, see :class:`e3jax.collection.features.Encoder`.
    """
    about = {"features": hashlib.sha256(features.read_bytes()).hexdigest()[:12]}

    def with_network(evaluated: Evaluated) -> np.ndarray:
        return _with_network(evaluated, features)

    def only_features(evaluated: Evaluated) -> np.ndarray:
        return _fused(_measured(evaluated, [FEATURES], features))

    plus = dataclasses.replace(
        E3OUTLIER_PLUS,
        scores={**E3OUTLIER_PLUS.scores, "e3outlier+features": with_network},
        constants=lambda: E3OUTLIER_PLUS.constants() | _constants([FEATURES]) | about,
    )
    return [
        plus,
        Method(
            scores={"features": only_features},
            constants=lambda: _constants([FEATURES]) | about,
        ),
    ]
