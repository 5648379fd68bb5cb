"""Scores: what a trained network says about images, in blocks; smaller = more outlying.

Legend: ``n`` images, ``k`` operations, ``b`` images that are computed together.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from e3jax import devices

# A view's score from its log-probabilities [..., k] and the index [...] of its own operation. Where
# a probability underflows to 0 its logarithm is still finite: 0 log 0 = 0 without a special case.
Rule = Callable[[jax.Array, jax.Array], jax.Array]


def pseudo_label_probability(log_p: jax.Array, operation: jax.Array) -> jax.Array:
    """PL: the probability of the pseudo label, in [0, 1] (eq. 4)."""
    return jnp.take_along_axis(jnp.exp(log_p), operation[..., None], axis=-1)[..., 0]


def maximum_probability(log_p: jax.Array, operation: jax.Array) -> jax.Array:
    """MP: the largest probability, in [1/k, 1] (eq. 5)."""
    return jnp.exp(log_p).max(-1)


def negative_entropy(log_p: jax.Array, operation: jax.Array) -> jax.Array:
    """NE: the negative entropy in nats, in [-log k, 0] (eq. 6)."""
    return (jnp.exp(log_p) * log_p).sum(-1)


RULES: dict[str, Rule] = {
    "ne": negative_entropy,
    "pl": pseudo_label_probability,
    "mp": maximum_probability,
}


class ViewScores(NamedTuple):
    """Scores of n images, in input order.

    Attributes:
      rules: float32 [n, k] by name of ``RULES``, the score of each view.
      accuracy: float32 [n, k], 1 where the operation was recognised, else 0.
      representation: float32 [n, d], the penultimate layer for the untransformed image.
    """

    rules: dict[str, Any]
    accuracy: Any
    representation: Any

    def mean(self, rule: str = "ne") -> np.ndarray:
        """Scores of the images by a rule: float64 [n], means over their views."""
        return self.rules[rule].mean(axis=1, dtype=np.float64)

    def weighted_mean(self, rule: str = "ne") -> np.ndarray:
        """The same, with each operation's weight as :func:`view_weights` gives it."""
        return (self.rules[rule] * view_weights(self.rules[rule])).mean(axis=1)


def view_weights(scores: np.ndarray) -> np.ndarray:
    """Weights of operations by which all are heard alike, float64 [k] of mean 1.

    They are the inverse of the median absolute deviation of a collection's scores [n, k], for a
    plain mean listens most to the operations whose scores vary most. No operation weighs more than
    ten times what an ordinary one does.
    """
    spread = scipy.stats.median_abs_deviation(scores, axis=0).astype(np.float64)
    weights = 1 / np.maximum(spread, max(0.1 * np.median(spread), 1e-9))
    return weights / weights.mean()


def view_scores(x: jax.Array, outputs: tuple, labels: np.ndarray) -> ViewScores:
    """An ``evaluate`` for :func:`make_evaluator`; outputs are logits and representation."""
    logits, representation = outputs
    log_p = jax.nn.log_softmax(logits[:, 1:])
    operation = jnp.broadcast_to(labels, log_p.shape[:2])
    recognised = (log_p.argmax(-1) == operation).astype(jnp.float32)
    rules = {name: rule(log_p, operation) for name, rule in RULES.items()}
    return ViewScores(rules, recognised, representation[:, 0])


def isolation_forest(key: Any, features: np.ndarray) -> np.ndarray:
    """Scores features [n, d] by scikit-learn's forest of 100 trees (Liu et al. 2008).

    On E3Outlier's representations it is the paper's SSD-IF, on an autoencoder's codes its CAE-IF.

    Returns:
      float [n] in [-1, 0), smaller = more outlying; all NaN if a feature is not finite.
    """
    from sklearn.ensemble import IsolationForest

    if not np.isfinite(features).all():
        return np.full(len(features), np.nan)
    with devices.settings():
        seed = int(jax.random.bits(devices.as_key(key)) >> 1)
    return IsolationForest(random_state=seed).fit(features).score_samples(features)
