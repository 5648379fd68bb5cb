"""What each operation is worth by itself, and other ways to fuse the operations' scores."""

import collections

import jax
import numpy as np
import pandas as pd
import scipy.stats
from paper.appendix import WHERE
from sweep.provenance import provenance

from e3jax import datasets, metrics, operations
from e3jax.datasets import contamination
from e3jax.evidence import NETWORK, Context, fit_and_measure, fusion
from e3jax.evidence.weights import collection_weights
from e3jax.methods import fused as fused_methods
from e3jax.training import fitting, rules
from e3jax.training.e3outlier import FACTORED

_RATIO = 0.1
# A training.
Case = collections.namedtuple("Case", WHERE)


def measure(data: datasets.Dataset, case: Case) -> tuple[list[dict], list[dict]]:
    """The rows of one training: one for each operation, and one for each way to fuse them."""
    size = case.max_images or None
    drawn = contamination.contaminate(
        data.images, data.labels, case.inlier_class, _RATIO, case.seed, max_images=size
    )
    config = FACTORED.quick_config()._replace(steps=case.steps)
    fitted = fitting.fit(jax.random.key(case.seed), drawn.images, FACTORED, config)
    scores, truth = fitting.score(fitted, drawn.images), drawn.is_outlier
    ne, operation_set = scores.rules["ne"], fitting.operation_set(config.operations, fitted.side)
    single = {
        "operation": operation_set.names,
        "family": operation_set.families,
        "auroc": [metrics.auroc(of_operation, truth) for of_operation in ne.T],
        "accuracy": scores.accuracy.mean(0),
        "agreement": agreements(ne),
    }
    ways = fused(ne, scores.weighted_mean(), operation_set.families)
    ways |= fewer_operations(drawn.images, ne)
    judged = {
        "way": list(ways),
        "auroc": [metrics.auroc(values, truth) for values in ways.values()],
        "aupr_out": [metrics.aupr_out(values, truth) for values in ways.values()],
    }
    return tuple(
        pd.DataFrame(case._asdict() | columns | provenance()).to_dict("records")
        for columns in (single, judged)
    )


def fused(ne: np.ndarray, by_spread: np.ndarray, families: tuple) -> dict[str, np.ndarray]:
    """Scores [n] of all operations together, by the way in which their scores [n, k] are fused."""
    agreement = agreements(ne)
    of_families = pd.DataFrame(ne.T).groupby(list(families), sort=False).mean().T
    return {
        "plain mean": ne.mean(1),
        "by spread": by_spread,
        "by agreement": ne @ agreement,
        "by spread and agreement": ne @ (agreement * rules.view_weights(ne)),
        "mean of surprises": -fusion.fuse_collection(dict(enumerate(-ne.T))),
        "median": np.median(ne, axis=1),
        **of_families.add_suffix(" alone"),
        "families' surprises": -fusion.fuse_collection(dict(-of_families)),
    }


def fewer_operations(images: np.ndarray, ne: np.ndarray) -> dict[str, np.ndarray]:
    """Scores by a part of the operations, of the network alone and fused as e3outlier+ does."""
    ways, kinds = {}, fused_methods.image_kinds()
    evidence = fit_and_measure(jax.random.key(0), {"images": images}, kinds, Context())
    for count in (6, 12, 24, 48, ne.shape[1]):
        part = ne[:, operations.evenly(ne.shape[1], count)]
        network = (part * rules.view_weights(part)).mean(1)
        ways[f"network, {count} operations"] = network
        both = evidence | {NETWORK: -network}
        scores = fusion.fuse_collection(both, collection_weights(both))
        ways[f"e3outlier+, {count} operations"] = -scores
    return ways


def agreements(scores: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each operation's scores [n, k] with the mean of all others: [k]."""
    others = scores.sum(1, keepdims=True) - scores
    pairs = zip(scores.T, others.T, strict=True)
    return np.array([scipy.stats.spearmanr(one, rest).statistic for one, rest in pairs])
