"""Devices: the mesh that work is split over, arrays on it, and programs compiled for it.

A program on a mesh runs on every device, with that device's part of what is split over ``AXIS``.
Functions whose docstring begins with "Inside a program" are called there.
"""

import collections
import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from e3jax import runtime
from e3jax.errors import InputError

# The mesh has this one axis: images of a batch are split over it, everything else is replicated.
AXIS = "batch"
EVERYWHERE, SPLIT = PartitionSpec(), PartitionSpec(AXIS)
# By name: the dtype of convolutions, and the precision of products of float32 arrays. Without one,
# accelerators round the factors: to TensorFloat-32 on NVIDIA, to bfloat16 on TPUs.
_PRECISIONS = {
    "float32": (jnp.float32, "float32"),
    "tensorfloat32": (jnp.float32, "tensorfloat32"),
    "bfloat16": (jnp.bfloat16, "tensorfloat32"),
}
PRECISIONS = tuple(_PRECISIONS)
# Compiler options on GPUs. Before jax 0.12 fusions of Triton's products can abort the process on
# strided reads (openxla/xla#47381).
GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False} if jax.__version_info__ < (0, 12) else {}
# Blocks in flight, so that devices compute while earlier results are fetched.
_BLOCKS_AHEAD = 2
_KEYS = "threefry2x32"
# What programs here are written for. Left out is what they do not depend on: arrays of different
# rank are never broadcast silently, and every program has a precision of its own.
_SETTINGS = {
    "enable_x64": False,
    "numpy_dtype_promotion": "standard",
    "default_prng_impl": _KEYS,
    "threefry_partitionable": True,
    "default_device": None,
    "disable_jit": False,
    "debug_nans": False,  # the log of a step that was not done is NaN
    "debug_infs": False,
    "transfer_guard_host_to_device": "allow",
    "transfer_guard_device_to_device": "allow",
    "transfer_guard_device_to_host": "allow",
}


# --- JAX's settings ------------------------------------------------------------------------------


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """A context, and a decorator, in which JAX has the settings that e3jax is written for.

    The program that e3jax is part of may have chosen others. They hold outside: in its callbacks,
    after an error, and in its other threads.
    """
    with contextlib.ExitStack() as stack:
        for name, value in _SETTINGS.items():
            if getattr(jax.config, f"jax_{name}") not in (value, None):
                stack.enter_context(getattr(jax, name)(value))
        if _has_mesh():
            stack.enter_context(jax.set_mesh(None))
        yield


def _has_mesh() -> bool:
    """Whether :func:`jax.set_mesh` chose a mesh, outside a program that is being traced."""
    try:
        return not jax.sharding.get_mesh().empty
    except ValueError:
        return False


def with_settings(jitted: Callable) -> Callable:
    """A jitted function that is called, traced and lowered in :func:`settings`."""
    run = settings()(jitted)
    run.trace, run.lower = settings()(jitted.trace), settings()(jitted.lower)
    return run


# --- Keys ----------------------------------------------------------------------------------------


@settings()
def key(seed: Any) -> jax.Array:
    """The key of a seed, an integer: the same in every program that e3jax may be part of."""
    return jax.random.key(seed, impl=_KEYS)


@settings()
def fold_in(key: jax.Array, use: int) -> jax.Array:
    """The sub-key for a use."""
    return jax.random.fold_in(key, use)


def as_key(key: jax.Array) -> jax.Array:
    """A key of any kind and age, on no particular device, as one that programs here take.

    Raises:
      InputError: it is not a single key.
    """
    try:
        with jax.transfer_guard("allow"):
            kind = jax.random.key_impl(key)  # of words without a type it is the host program's
        with settings():
            is_typed = jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
            words = np.asarray(jax.random.key_data(key) if is_typed else key)
            single = jax.random.wrap_key_data(words, impl=kind)
    except TypeError:
        single = None
    if single is None or single.shape:
        raise InputError("the key is not one of JAX's, or several: give jax.random.key(0), say")
    return single


# --- Meshes --------------------------------------------------------------------------------------


def device_mesh(devices: list[jax.Device] | None = None) -> Mesh:
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
def from_first(tree: Any) -> Any:
    """Every process's tree of NumPy arrays, replaced by the first's, of the same shapes."""
    if jax.process_count() == 1:
        return tree
    # As bytes: what sums the processes' floats turns -0.0 into 0.0.
    tree = jax.tree.map(np.asarray, tree)
    content = jax.tree.map(lambda a: np.frombuffer(a.tobytes(), np.uint8), tree)
    content = multihost_utils.broadcast_one_to_all(content)
    return jax.tree.map(lambda a, b: b.view(a.dtype).reshape(a.shape), tree, content)


@settings()
def place_split(mesh: Mesh, rows: np.ndarray) -> jax.Array:
    """Splits rows [n, d] over a mesh, n rounded up to a multiple of its devices by rows of 0."""
    count = -(-len(rows) // mesh.size)

    def of_device(index: tuple[slice, ...]) -> np.ndarray:
        part = rows[index[0]]
        return np.pad(part, ((0, count - len(part)), (0, 0))) if len(part) < count else part

    shape, sharding = (count * mesh.size, rows.shape[1]), NamedSharding(mesh, SPLIT)
    return jax.make_array_from_callback(shape, sharding, of_device)


def shapes(mesh: Mesh, tree: Any, spec: PartitionSpec = EVERYWHERE) -> Any:
    """The shapes of what :func:`place` would return; the mesh's devices may be absent."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)


# --- Programs ---------------------------------------------------------------------------------


class Program(NamedTuple):
    """A jitted function and the shapes of its arguments, on devices that may be absent.

    Compile it with ``function.lower(*arguments).compile()`` or export it with ``jax.export``.
    """

    function: Callable
    arguments: tuple


def dtype(precision: str) -> Any:
    """The dtype of convolutions at a precision, "float32", "tensorfloat32" or "bfloat16".

    Raises:
      ValueError: for another precision.
    """
    if precision not in _PRECISIONS:
        raise ValueError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
    return _PRECISIONS[precision][0]


def products(precision: str) -> contextlib.AbstractContextManager:
    """A context for tracing functions: it sets the precision of products of float32 arrays."""
    return jax.default_matmul_precision(_PRECISIONS[precision][1])


def in_float32(function: Callable) -> Callable:
    """Decorates a function whose products must be full float32 on every device."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        with products("float32"):
            return function(*args, **kwargs)

    return run


def compiler_options(mesh: Mesh, level: int) -> dict[str, Any] | None:
    """Compiler options for a mesh.

    Args:
      mesh: of any platform; its devices need not be present.
      level: the CPU compiler's effort. Level 0 suits programs that run once: initial weights take 2
        instead of 12 seconds, nearly all of it in threefry. Level 1 compiles a train step in two
        thirds of the default level's time, and it runs as fast.
    """
    if is_cpu(mesh):
        return {"xla_backend_optimization_level": level}
    return GPU_OPTIONS if mesh.devices.flat[0].platform in ("gpu", "cuda") else None


def on_mesh(
    function: Callable,
    mesh: Mesh,
    precision: str,
    in_specs: Any = EVERYWHERE,
    out_specs: Any = EVERYWHERE,
    **options,
) -> Callable:
    """Jits a program on a mesh.

    Args:
      function: called on each device with its part of the arguments.
      mesh: the devices.
      precision: of products, one of ``PRECISIONS``.
      in_specs, out_specs: as of ``jax.shard_map``.
      options: of ``jax.jit``.
    """

    def program(*args):
        with products(precision):
            return function(*args)

    mapped = jax.shard_map(
        program, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    options["compiler_options"] = compiler_options(mesh, level=1)
    return with_settings(jax.jit(mapped, **options))


def run_once(function: Callable, mesh: Mesh) -> Callable:
    """Jits ``(array, static) -> pytree`` for a single call, such as initial weights.

    Every device of the mesh gets the whole result.
    """
    jitted = jax.jit(
        function,
        static_argnums=1,
        out_shardings=NamedSharding(mesh, EVERYWHERE),
        compiler_options=compiler_options(mesh, level=0),
    )
    return with_settings(jitted)


def mean_over_devices(tree: Any) -> Any:
    """Inside a program: averages float32 arrays over the devices, in one collective.

    On a CPU each collective blocks a thread of XLA's pool until the other devices arrive, and they
    need threads to arrive. Two collectives at once can therefore deadlock, so all collectives of a
    program form one chain, each depending on the one before.
    """
    return _in_one(jax.lax.pmean, tree)


def sum_over_devices(tree: Any) -> Any:
    """Inside a program: sums float32 arrays over the devices, see :func:`mean_over_devices`."""
    return _in_one(jax.lax.psum, tree)


def _in_one(collective: Callable, tree: Any) -> Any:
    flat, unflatten = jax.flatten_util.ravel_pytree(tree)
    return unflatten(collective(flat, AXIS))


def gather_over_devices(tree: Any) -> Any:
    """Inside a program: joins the float32 arrays [n, ...] of all devices.

    It takes one collective, see :func:`mean_over_devices`.
    """
    leaves, treedef = jax.tree.flatten(tree)
    n = len(leaves[0])
    rows = [leaf.reshape(n, -1) for leaf in leaves]
    ends = np.cumsum([row.shape[1] for row in rows])[:-1]
    whole = jax.lax.all_gather(jnp.concatenate(rows, axis=1), AXIS, tiled=True)
    parts = jnp.split(whole, ends, axis=1)
    return treedef.unflatten(
        part.reshape(-1, *leaf.shape[1:]) for part, leaf in zip(parts, leaves, strict=True)
    )


def rows_of_split(part: jax.Array, index: jax.Array) -> jax.Array:
    """Inside a program: the calling device's part of rows by their index [b] in a split array.

    Args:
      part: [m, d], the calling device's rows of what :func:`place_split` split.
      index: int32 [b], the same on all devices.

    Returns:
      [b / devices, d].
    """
    if jax.lax.axis_size(AXIS) == 1:
        return part[index]
    place = index - jax.lax.axis_index(AXIS) * len(part)
    is_here = (0 <= place) & (place < len(part))
    rows = jnp.where(is_here[:, None], part[place.clip(0, len(part) - 1)], 0)
    return jax.lax.psum_scatter(rows, AXIS, scatter_dimension=0, tiled=True)


def part_of_device(whole: jax.Array) -> jax.Array:
    """Inside a program: the calling device's part of an array that every device has."""
    part = len(whole) // jax.lax.axis_size(AXIS)
    return jax.lax.dynamic_slice_in_dim(whole, jax.lax.axis_index(AXIS) * part, part)


_building = threading.RLock()  # two threads on the same devices would both build


def built_once(build: Callable) -> Callable:
    """Decorates what is built, and so compiled, once for all work of a kind on the same devices."""
    cached = functools.lru_cache(maxsize=32)(build)

    @functools.wraps(build)
    def locked(*args):
        with _building:
            return cached(*args)

    return locked


class BatchMap:
    """Maps a function of a few items over any number of them, in blocks split over a mesh.

    Items are pytrees of arrays with a leading axis, such as images and their indices. All blocks
    have the same shape, so one program serves any number of items; in a block that is not full,
    only the items that exist are computed.

    Args:
      function: ``(shared, items [b, ...]) -> pytree`` of float32 arrays [b, ...]; it treats each
        item independently.
      mesh: devices to split each block over; every device has all of ``shared``.
      block: smallest number of items per block; it is rounded up to a multiple of ``together`` per
        device.
      together: items per call of ``function``.
      precision: of products, one of ``PRECISIONS``.
    """

    def __init__(self, function: Callable, mesh: Mesh, block: int, together: int, precision: str):
        self._function, self._mesh, self._together = function, mesh, together
        self._rows = -(-block // (mesh.size * together)) * together
        self._program = on_mesh(self._block, mesh, precision, (EVERYWHERE, SPLIT, EVERYWHERE))

    def _block(self, shared: Any, items: Any, count: jax.Array) -> Any:
        """Computes the items of one device; ``count`` of the block's items exist, dealt in turn."""
        together, devices = self._together, jax.lax.axis_size(AXIS)
        mine = (count + devices - 1 - jax.lax.axis_index(AXIS)) // devices

        def some(i: jax.Array, done: Any) -> Any:
            part = jax.tree.map(
                lambda a: jax.lax.dynamic_slice_in_dim(a, i * together, together), items
            )
            return jax.tree.map(
                lambda all, new: jax.lax.dynamic_update_slice_in_dim(all, new, i * together, 0),
                done,
                self._function(shared, part),
            )

        one = jax.eval_shape(self._function, shared, jax.tree.map(lambda a: a[:together], items))
        empty = jax.tree.map(lambda a: jnp.zeros((self._rows, *a.shape[1:]), a.dtype), one)
        done = jax.lax.fori_loop(0, (mine + together - 1) // together, some, empty)
        # Gathered here, because a host may see only some of the mesh's devices.
        return gather_over_devices(done)

    def __call__(
        self, shared: Any, items: Any, on_block: Callable[[int], None] = lambda done: None
    ) -> Any:
        """Returns a pytree of NumPy arrays [n, ...].

        ``on_block(items done)`` is called after each block. ``shared`` is placed once.
        """
        shared, n = place(self._mesh, shared), len(jax.tree.leaves(items)[0])
        devices, rows = self._mesh.size, self._rows
        under_way, parts = collections.deque(), []

        def dealt(start: int, a: np.ndarray) -> np.ndarray:
            filled = np.zeros((rows * devices, *a.shape[1:]), a.dtype)
            part = a[start : start + len(filled)]
            filled[: len(part)] = part
            return filled.reshape(rows, devices, *a.shape[1:]).swapaxes(0, 1).reshape(filled.shape)

        def undealt(a: np.ndarray) -> np.ndarray:
            return a.reshape(devices, rows, *a.shape[1:]).swapaxes(0, 1).reshape(a.shape)

        def fetch() -> None:
            parts.append(jax.tree.map(undealt, fetched(under_way.popleft())))
            on_block(min(len(parts) * devices * rows, n))

        for start in range(0, n, devices * rows):
            block = jax.tree.map(functools.partial(dealt, start), items)
            count = place(self._mesh, np.int32(min(devices * rows, n - start)))
            under_way.append(self._program(shared, place(self._mesh, block, SPLIT), count))
            if len(under_way) >= _BLOCKS_AHEAD:
                fetch()
        while under_way:
            fetch()
        return jax.tree.map(lambda *a: np.concatenate(a)[:n], *parts)

    def program(self, shared: Any, item: Any) -> Program:
        """The program of a block, for the shapes of ``shared`` and of one item."""
        count = self._rows * self._mesh.size
        block = jax.tree.map(lambda a: jax.ShapeDtypeStruct((count, *a.shape), a.dtype), item)
        whole = functools.partial(shapes, self._mesh)
        return Program(
            self._program, (whole(shared), shapes(self._mesh, block, SPLIT), whole(np.int32(0)))
        )
