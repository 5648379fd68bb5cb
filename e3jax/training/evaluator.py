"""Evaluates a trained network on images and all of their views, in blocks."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from e3jax import devices, networks, operations
from e3jax.collection.lazy import AnyArray
from e3jax.images import to_unit


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
    evaluate: Callable[[jax.Array, tuple, np.ndarray], Any],
    side: int,
    operation_set: operations.OperationSet | None = None,
    *,
    mesh: Mesh | None = None,
    precision: str = "float32",
    inputs: Callable[[jax.Array, jax.Array, Any], jax.Array] = lambda x, index, extra: x,
    views_per_call: int | None = None,
    operation_indices: Sequence[int] | None = None,
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
      operation_indices: positions of the operations that are used; by default all.
    """
    mesh = mesh or devices.device_mesh()
    k = len(operation_set) if operation_set else 0
    module = networks.build(network, k or 1, devices.dtype(precision))
    labels, tables = np.arange(k, dtype=np.int32), operation_set
    if operation_set and operation_indices is not None:
        labels = np.array(operation_indices, np.int32)
        tables = operations.subset(operation_set, operation_indices)

    def evaluate_images(shared: Any, items: tuple[jax.Array, jax.Array]) -> Any:
        (tables, variables, extra), (images, index) = shared, items
        x = to_unit(images)
        views = [operations.all_views(tables, x)] if tables else []
        x = jnp.concatenate([x[:, None], *views], axis=1)
        seen = inputs(x, index, extra)
        outputs: Any = module.apply(variables, seen.reshape(-1, *x.shape[2:]), train=False)
        outputs = tuple(a.reshape(*x.shape[:2], *a.shape[1:]) for a in outputs)
        return evaluate(x, outputs, labels)

    on_cpu = devices.is_cpu(mesh)
    # One image at a time keeps a CPU's caches, and an image by itself waits for no other.
    views = views_per_call or (1792 if not on_cpu else 1 if tables else 128)
    together = max(views // (1 + len(labels)), 1)
    block = max(64 if on_cpu else 256 * mesh.size, mesh.size * together)
    mapped = devices.BatchMap(evaluate_images, mesh, block, together, precision)
    place_tables = functools.cache(lambda: devices.place(mesh, tables))

    def run(
        variables: Any,
        extra: Any,
        images: AnyArray,
        on_block: Callable[[int], None] = lambda done: None,
    ) -> Any:
        index = np.arange(len(images), dtype=np.int32)
        return mapped((place_tables(), variables, extra), (images, index), on_block)

    def program(variables: Any, channels: int, extra: Any = ()) -> devices.Program:
        image = jax.ShapeDtypeStruct((side, side, channels), np.uint8)
        return mapped.program((tables, variables, extra), (image, np.int32(0)))

    return Evaluator(run, program)
