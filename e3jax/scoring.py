"""Scores: what a trained network says about images, in blocks; smaller = more outlying.

Legend: ``n`` images, ``k`` operations, ``b`` images that are computed together.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax.sharding import Mesh

from e3jax import devices, networks, operations
from e3jax.images import to_unit

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

    rules: dict[str, np.ndarray]
    accuracy: np.ndarray
    representation: np.ndarray

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


def view_scores(x: jax.Array, outputs: tuple, labels: jax.Array) -> ViewScores:
    """An ``evaluate`` for :func:`make_evaluator`; outputs are logits and representation."""
    logits, representation = outputs
    log_p = jax.nn.log_softmax(logits[:, 1:])
    operation = jnp.broadcast_to(labels, log_p.shape[:2])
    recognised = (log_p.argmax(-1) == operation).astype(jnp.float32)
    rules = {name: rule(log_p, operation) for name, rule in RULES.items()}
    return ViewScores(rules, recognised, representation[:, 0])


class Evaluator(NamedTuple):
    """A network in evaluation mode, in blocks of images.

    Attributes:
      run: ``(variables, extra, images uint8 [n, h, w, c], on_block) -> pytree`` of NumPy arrays
        [n, ...], whole in every process; ``on_block(images done)`` is called after each block.
      program: ``(variables, channels, extra) -> devices.Program``, the program of a block.
    """

    run: Callable[..., Any]
    program: Callable[..., devices.Program]


def make_evaluator(
    network: str | Callable,
    evaluate: Callable[[jax.Array, tuple, jax.Array], Any],
    side: int,
    operation_set: operations.OperationSet | None = None,
    *,
    mesh: Mesh | None = None,
    precision: str = "float32",
    inputs: Callable[[jax.Array, jax.Array, Any], jax.Array] = lambda x, index, extra: x,
    views_per_call: int | None = None,
    chosen: Sequence[int] | None = None,
) -> Evaluator:
    """Builds one jitted pass that sends each image and all of its views through the network.

    It uses running statistics, so an image's scores do not depend on the other images. One program
    serves any number of images.

    Args:
      network: name or function for :func:`e3jax.networks.build`.
      evaluate: ``(x [b, 1 + k, h, w, c], outputs, labels) -> pytree`` of float32 arrays [b, ...]: a
        summary of each image (first of its axis), its views, the network's outputs [b, 1 + k, ...],
        and the views' pseudo labels int32 [k].
      side: of the square images, in pixels.
      operation_set: the K operations; None evaluates only the images themselves (k = 0).
      mesh: devices to split the images over (default: all).
      precision: of products, see :class:`e3jax.TrainConfig`.
      inputs: ``(x, image index [b], extra) -> x``: what the network is applied to, if not x.
      views_per_call: on one device (default: on a CPU one image's, or 128 without operations; else
        1,792, which is 16 images of the paper's operations).
      chosen: positions of the operations that are used; by default all.
    """
    mesh = mesh or devices.device_mesh()
    tables = operation_set or ()
    network = networks.build(network, len(tables) or 1, devices.dtype(precision))
    labels = np.arange(len(tables), dtype=np.int32)
    if chosen is not None:
        labels, tables = np.array(chosen, np.int32), operations.subset(operation_set, chosen)

    def evaluate_some(shared: Any, some: tuple[jax.Array, jax.Array]) -> Any:
        (tables, variables, extra), (images, index) = shared, some
        x = to_unit(images)
        views = [operations.all_views(tables, x)] if len(tables) else []
        x = jnp.concatenate([x[:, None], *views], axis=1)
        seen = inputs(x, index, extra)
        outputs = network.apply(variables, seen.reshape(-1, *x.shape[2:]), train=False)
        outputs = tuple(a.reshape(*x.shape[:2], *a.shape[1:]) for a in outputs)
        return evaluate(x, outputs, labels)

    on_cpu = devices.is_cpu(mesh)
    # One image at a time keeps a CPU's caches, and an image alone waits for no other.
    views = views_per_call or (1792 if not on_cpu else 128 if not len(tables) else 1)
    together = max(views // (1 + len(tables)), 1)
    block = max(64 if on_cpu else 256 * mesh.size, mesh.size * together)
    mapped = devices.BatchMap(evaluate_some, mesh, block, together, precision)
    place_tables = functools.cache(lambda: devices.place(mesh, tables))

    def run(variables, extra, images, on_block=lambda done: None):
        index = np.arange(len(images), dtype=np.int32)
        return mapped((place_tables(), variables, extra), (images, index), on_block)

    def program(variables, channels, extra=()):
        image = jax.ShapeDtypeStruct((side, side, channels), np.uint8)
        return mapped.program((tables, variables, extra), (image, np.int32(0)))

    return Evaluator(run, program)


def isolation_forest(key: jax.Array, features: np.ndarray) -> np.ndarray:
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


def check_fit(scores: ViewScores, k: int | None = None) -> str:
    """Says in one sentence why these scores mean nothing; "" if they look sound.

    Sound scores are finite and differ between images, and the network has learnt to recognise k
    operations (default: those of the scores): its pretext accuracy is at least a tenth of the way
    from chance 1/k to 1.
    """
    k = k or scores.accuracy.shape[1]
    values = np.stack([scores.mean(rule) for rule in scores.rules])
    return check_scores(values) or check_accuracy(float(np.mean(scores.accuracy)), k)


def check_scores(values: np.ndarray) -> str:
    """The part of :func:`check_fit` that applies to any method's scores [..., n]."""
    if not np.isfinite(values).all():
        return "scores are not finite: training diverged, lower the learning rate"
    if np.ptp(values, axis=-1).min() == 0:
        return "all scores are the same: the images are identical or training failed"
    return ""


def check_accuracy(accuracy: float, k: int) -> str:
    """The part of :func:`check_fit` that needs only the pretext accuracy."""
    chance = 1 / k
    if accuracy < chance + 0.1 * (1 - chance):
        return (
            f"pretext accuracy {accuracy:.1%} is near chance ({chance:.1%}), so the scores mean "
            "little and may be inverted: train for more steps"
        )
    return ""
