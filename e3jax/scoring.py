"""Scores of images under a trained network; smaller = more outlying in all three."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from e3jax import networks, operations, training

SCORES = ("ne", "pl", "mp")


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


def make_scorer(
    network_name: str | Callable,
    operation_set: operations.OperationSet,
    mesh: jax.sharding.Mesh | None = None,
    dtype: str = "float32",
    per_operation: bool = False,
    images_per_call: int = 64,
) -> Callable[..., Scores]:
    """Builds ``score(variables, uint8 [n, h, w, c], on_block=...) -> Scores``.

    The scores are NumPy arrays, whole in every process if the mesh spans several.

    One jitted pass in evaluation mode (running statistics): an image's views go through the network
    together and with no other's, so its scores do not depend on its neighbours. The last block is
    filled up, so there is one shape. ``on_block(images done)`` is called after every block.

    Args:
      network_name: name or function for :func:`e3jax.networks.build`.
      operation_set: the K operations the network was trained on.
      mesh: devices to split the images over (default: all).
      dtype: compute dtype of the convolutions.
      per_operation: keep the scores of every view instead of their mean.
      images_per_call: images a call; a multiple of the number of devices.
    """
    mesh = mesh or training.device_mesh()
    network = networks.build(network_name, len(operation_set), jnp.dtype(dtype))
    labels = jnp.arange(len(operation_set))

    def score_image(tables: operations.OperationSet, variables: Any, image: jax.Array) -> Scores:
        image = training.to_unit(image)
        views = jax.vmap(operations.apply_operation, in_axes=(None, None, 0))(tables, image, labels)
        # The untransformed image rides along for its representation.
        logits, representation = network.apply(
            variables, jnp.concatenate([image[None], views]), train=False
        )
        log_p = jax.nn.log_softmax(logits[1:])
        p = jnp.exp(log_p)
        # Where p underflows to 0, log_p is still finite: 0 log 0 = 0 without a special case.
        right = (log_p.argmax(-1) == labels).astype(jnp.float32)
        scores = (p[labels, labels], p.max(-1), (p * log_p).sum(-1), right)
        if not per_operation:
            scores = (s.mean() for s in scores)
        return Scores(*scores, representation[0])

    def score_images(shared, images: jax.Array) -> Scores:
        return jax.lax.map(lambda image: score_image(*shared, image), images)

    score_blocks = in_blocks(score_images, mesh, images_per_call)
    tables = training.place(mesh, operation_set)

    def score(
        variables: Any, images: np.ndarray, on_block: Callable[[int], None] = lambda done: None
    ) -> Scores:
        return score_blocks((tables, variables), images, on_block)

    return score


def in_blocks(
    function: Callable[[Any, jax.Array], Any], mesh: jax.sharding.Mesh, images_per_call: int
) -> Callable[..., Any]:
    """Builds ``run(shared, images [n, ...], on_block=...) -> pytree of NumPy arrays [n, ...]``.

    Args:
      function: ``(shared, images [b, ...]) -> pytree`` of arrays [b, ...], every image by itself.
      mesh: devices to split a block's images over; they all have the whole of ``shared``.
      images_per_call: images a block; a multiple of the number of devices.
    """
    everywhere, split = PartitionSpec(), PartitionSpec(training.AXIS)

    def block(shared, images):
        # Gathered here and not on the host, which may see a part of the mesh's devices only.
        return training.gather_over_devices(function(shared, images))

    block = jax.jit(
        jax.shard_map(
            block,
            mesh=mesh,
            in_specs=(everywhere, split),
            out_specs=everywhere,
            check_vma=False,
        ),
        compiler_options=training.compiler_options(mesh, level=1),
    )

    def run(
        shared: Any, images: np.ndarray, on_block: Callable[[int], None] = lambda done: None
    ) -> Any:
        parts = []
        for start in range(0, len(images), images_per_call):
            part = np.asarray(images[start : start + images_per_call])
            missing = images_per_call - len(part)
            filled = np.pad(part, [(0, missing), (0, 0), (0, 0), (0, 0)])
            placed = training.place(mesh, filled, split)
            parts.append(jax.device_get(block(shared, placed)))
            on_block(start + len(part))
        return jax.tree.map(lambda *a: np.concatenate(a)[: len(images)], *parts)

    return run
