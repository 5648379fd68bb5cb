"""The mesh that work is split over, and arrays on it."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from e3jax.devices import runtime
from e3jax.devices.configuration import settings
from e3jax.shapes import Shaped

# The mesh has this one axis: images of a batch are split over it, everything else is replicated.
AXIS = "batch"
EVERYWHERE, SPLIT = PartitionSpec(), PartitionSpec(AXIS)
# The smallest part of a batch that an accelerator's time is worth: below, its devices wait for
# each other in every batch normalisation.
_LEAST_VIEWS = 128
_UNKNOWN_MEMORY = 16 << 30  # of a device that does not tell
_BLOCK = 4096  # images that move to a device at a time


def device_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis over the given devices (default: all, of all processes of the job)."""
    devices = runtime.devices() if devices is None else devices
    return jax.make_mesh(
        (len(devices),), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,), devices=devices
    )


def part_for_batch(mesh: Mesh, batch_size: int) -> Mesh:
    """As many devices of a mesh as a batch divides over; the others stay idle.

    On accelerators each takes at least 128 of its views, unless the mesh spans processes.

    Raises:
      ValueError: if the mesh spans processes and the batch does not divide over all of it.
    """
    devices, least = list(mesh.devices.flat), 1 if is_cpu(mesh) else _LEAST_VIEWS
    if len({device.process_index for device in devices}) > 1:
        if batch_size % len(devices):
            raise ValueError(
                f"batch_size {batch_size} must be a multiple of the {len(devices)} devices of the "
                "job"
            )
        return mesh
    most = min(len(devices), max(batch_size // least, 1))
    used = max(d for d in range(1, most + 1) if batch_size % d == 0)
    return mesh if used == len(devices) else device_mesh(devices[:used])


def host_mesh(mesh: Mesh) -> Mesh:
    """A mesh of one CPU device of this process, which computes while others train.

    It is ``mesh`` itself where JAX was started without a CPU.
    """
    try:
        return device_mesh(jax.local_devices(backend="cpu")[:1])
    except RuntimeError:
        return mesh


def is_cpu(mesh: Mesh) -> bool:
    """Whether a mesh consists of CPU devices."""
    return mesh.devices.flat[0].platform == "cpu"


def describe(mesh: Mesh) -> str:
    """How many devices of which kind, e.g. "2 x cpu"."""
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}"


@settings()
def place(mesh: Mesh, tree: Any, spec: PartitionSpec = EVERYWHERE) -> Any:
    """Puts a pytree of arrays on a mesh, by default a copy on every device.

    The mesh may span processes: each process has the whole arrays and places the part of its own
    devices. Arrays that are already placed are returned as they are.
    """
    sharding = NamedSharding(mesh, spec)

    def put(a: Any) -> jax.Array:
        if isinstance(a, jax.Array) and a.sharding == sharding:
            return a
        a = np.asarray(a)
        return jax.make_array_from_callback(a.shape, sharding, lambda index: a[index])

    return jax.tree.map(put, tree)


@settings()
def copied(tree: Any) -> Any:
    """Copies of a pytree of arrays, on the same devices."""
    return jax.tree.map(lambda a: a.copy(), tree)


@settings()
def fetched(tree: Any) -> Any:
    """A pytree of arrays as NumPy arrays."""
    return jax.device_get(tree)


@settings()
def broadcast_from_first(tree: Any) -> Any:
    """Every process's tree of NumPy arrays, replaced by the first's, of the same shapes."""
    if jax.process_count() == 1:
        return tree
    # As bytes: what sums the processes' floats turns -0.0 into 0.0.
    tree = jax.tree.map(np.asarray, tree)
    content = jax.tree.map(lambda a: np.frombuffer(a.tobytes(), np.uint8), tree)
    content = multihost_utils.broadcast_one_to_all(content)
    return jax.tree.map(lambda a, b: b.view(a.dtype).reshape(a.shape), tree, content)


def fits(mesh: Mesh, nbytes: int) -> bool:
    """Whether so many bytes, split over a mesh, take at most a quarter of its devices' memory."""
    limit = runtime.memory_limit(mesh.local_devices[0]) or _UNKNOWN_MEMORY
    return 4 * nbytes <= limit * mesh.size


@settings()
def place_split(mesh: Mesh, images: Any) -> Shaped[jax.Array, "rows d"]:
    """Splits images [n, ...] over a mesh, as rows [n, d].

    They move a few thousand at a time, so those on a disk need not fit into the host's memory; n is
    rounded up to a multiple of the devices by rows of 0.
    """
    n, d = len(images), math.prod(images.shape[1:])
    count, parts = -(-n // mesh.size), []
    for i, device in enumerate(mesh.devices.flat):
        if device.process_index == jax.process_index():
            part = jnp.zeros((count, d), images.dtype, device=device)
            end = min((i + 1) * count, n)
            for start in range(i * count, end, _BLOCK):
                block = images[start : min(start + _BLOCK, end)]
                rows = jax.device_put(block.reshape(len(block), d), device)
                part = _written(part, rows, start - i * count)
            parts.append(part)
    sharding = NamedSharding(mesh, SPLIT)
    return jax.make_array_from_single_device_arrays((count * mesh.size, d), sharding, parts)


@functools.partial(jax.jit, donate_argnums=0)
def _written(whole: jax.Array, rows: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, rows, start, 0)


def shapes(mesh: Mesh, tree: Any, spec: PartitionSpec = EVERYWHERE) -> Any:
    """The shapes of what :func:`place` would return; the mesh's devices may be absent."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)
