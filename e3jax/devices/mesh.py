"""The mesh that work is split over, and arrays on it."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from e3jax.devices import runtime
from e3jax.devices.configuration import settings
from e3jax.shapes import Shaped

# The mesh has this one axis: images of a batch are split over it, everything else is replicated.
AXIS = "batch"
EVERYWHERE, SPLIT = PartitionSpec(), PartitionSpec(AXIS)


def device_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis over the given devices (default: all, of all processes of the job)."""
    devices = runtime.devices() if devices is None else devices
    return jax.make_mesh(
        (len(devices),), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,), devices=devices
    )


def part_for_batch(mesh: Mesh, batch_size: int) -> Mesh:
    """As many devices of a mesh as a batch divides over; the others stay idle.

    Raises:
      ValueError: if the mesh spans processes and the batch does not divide over all of it.
    """
    devices = list(mesh.devices.flat)
    used = max(d for d in range(1, len(devices) + 1) if batch_size % d == 0)
    if used == len(devices):
        return mesh
    if len({device.process_index for device in devices}) > 1:
        raise ValueError(
            f"batch_size {batch_size} must be a multiple of the {len(devices)} devices of the job"
        )
    return device_mesh(devices[:used])


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


@settings()
def place_split(mesh: Mesh, rows: Shaped[np.ndarray, "n d"]) -> Shaped[jax.Array, "rows d"]:
    """Splits rows [n, d] over a mesh, n rounded up to a multiple of its devices by rows of 0."""
    count = -(-len(rows) // mesh.size)

    def of_device(index: Any) -> np.ndarray:
        part = rows[index[0]]
        return np.pad(part, ((0, count - len(part)), (0, 0))) if len(part) < count else part

    shape, sharding = (count * mesh.size, rows.shape[1]), NamedSharding(mesh, SPLIT)
    return jax.make_array_from_callback(shape, sharding, of_device)


def shapes(mesh: Mesh, tree: Any, spec: PartitionSpec = EVERYWHERE) -> Any:
    """The shapes of what :func:`place` would return; the mesh's devices may be absent."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)
