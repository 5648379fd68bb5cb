"""Scores of images under a trained network; smaller = more outlying in all three."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from e3jax import devices, networks, operations, training

SCORES = ("ne", "pl", "mp")
# Images whose views go through the network in one call, on an accelerator.
_TOGETHER = 16


class Scores(NamedTuple):
    """Of n images, in their order.

    Attributes:
      pl: float32 [n] in [0, 1], mean probability of the pseudo label (eq. 4).
      mp: float32 [n] in [1/k, 1], mean largest probability (eq. 5).
      ne: float32 [n] in [-log k, 0], mean negative entropy in nats (eq. 6).
      accuracy: float32 [n] in [0, 1], share of the k views whose operation was recognised.
      representation: float32 [n, d], the penultimate layer of the untransformed image.

    With ``per_operation=True`` the first four are [n, k].
    """

    pl: jax.Array
    mp: jax.Array
    ne: jax.Array
    accuracy: jax.Array
    representation: jax.Array


def health(scores: Scores, k: int) -> str:
    """Why these scores mean nothing, in one sentence; "" if they look sound.

    They do if they are finite, differ between images, and the network has learnt to recognise
    operations: pretext accuracy a tenth of the way from chance 1/k to 1.
    """
    values = np.stack([scores.ne, scores.pl, scores.mp])
    return values_health(values) or pretext_health(float(np.mean(scores.accuracy)), k)


def values_health(values: np.ndarray) -> str:
    """The part of :func:`health` that holds for any method's scores [..., n]."""
    if not np.isfinite(values).all():
        return "scores are not finite: training diverged, lower the learning rate"
    if np.ptp(values, axis=-1).min() == 0:
        return "all scores are the same: the images are identical or training failed"
    return ""


def pretext_health(accuracy: float, k: int) -> str:
    """The part of :func:`health` that needs only the pretext accuracy."""
    chance = 1 / k
    if accuracy < chance + 0.1 * (1 - chance):
        return (
            f"pretext accuracy {accuracy:.1%} is near chance ({chance:.1%}), so the scores mean "
            "little and may be inverted: train for more steps"
        )
    return ""


class Scorer:
    """``scorer(variables, images uint8 [n, h, w, c], on_block=...) -> Scores``.

    The scores are NumPy arrays, whole in every process if the mesh spans several.

    One jitted pass in evaluation mode (running statistics): an image's views go through the network
    with no statistics of other images, so its scores do not depend on its neighbours. One program
    scores any number of images; ``on_block(images done)`` is called after every block.

    Args:
      network_name: name or function for :func:`e3jax.networks.build`.
      operation_set: the K operations the network was trained on.
      mesh: devices to split the images over (default: all).
      precision: of the network, see :class:`e3jax.TrainConfig`.
      per_operation: keep the scores of every view instead of their mean.
      images_per_call: images a block, at least (default: 64 on a CPU, else 256 a device).
    """

    def __init__(
        self,
        network_name: str | Callable,
        operation_set: operations.OperationSet,
        mesh: Mesh | None = None,
        precision: str = "float32",
        per_operation: bool = False,
        images_per_call: int | None = None,
    ):
        mesh = mesh or devices.device_mesh()
        self._network = networks.build(network_name, len(operation_set), devices.dtype(precision))
        self._operations, self._per_operation = operation_set, per_operation
        on_cpu = devices.is_cpu(mesh)
        block = images_per_call or (64 if on_cpu else 256 * mesh.size)
        # One image at a time keeps a CPU's caches; an accelerator needs more to be busy.
        together = 1 if on_cpu else min(_TOGETHER, -(-block // mesh.size))
        self._map = devices.BatchMap(self._score, mesh, block, together, precision)
        self._tables = functools.cache(lambda: devices.place(mesh, operation_set))

    def _score(self, shared: Any, images: jax.Array) -> Scores:
        tables, variables = shared
        labels = jnp.arange(len(tables))
        images = training.to_unit(images)
        views = operations.all_views(tables, images)
        # The untransformed images ride along for their representation.
        together = jnp.concatenate([images[:, None], views], axis=1)
        logits, representation = self._network.apply(
            variables, together.reshape(-1, *images.shape[1:]), train=False
        )
        log_p = jax.nn.log_softmax(logits.reshape(*together.shape[:2], -1)[:, 1:])
        p = jnp.exp(log_p)
        # Where p underflows to 0, log_p is still finite: 0 log 0 = 0 without a special case.
        right = (log_p.argmax(-1) == labels).astype(jnp.float32)
        scores = (p[:, labels, labels], p.max(-1), (p * log_p).sum(-1), right)
        if not self._per_operation:
            scores = (s.mean(-1) for s in scores)
        return Scores(*scores, representation[:: len(labels) + 1])

    def __call__(
        self,
        variables: Any,
        images: np.ndarray,
        on_block: Callable[[int], None] = lambda done: None,
    ) -> Scores:
        return self._map((self._tables(), variables), images, on_block)

    def program(self, variables: Any, channels: int) -> devices.Program:
        """What a block runs, for variables or their shapes, on devices that may be absent."""
        side = self._operations.side
        image = jax.ShapeDtypeStruct((side, side, channels), np.uint8)
        return self._map.program((self._operations, variables), image)
