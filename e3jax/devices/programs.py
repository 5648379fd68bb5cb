"""Devices: the mesh that work is split over, arrays on it, and programs compiled for it.

A program on a mesh runs on every device, with that device's part of what is split over ``AXIS``.
Functions whose docstring begins with "Inside a program" are called there.
"""

import contextlib
import functools
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from e3jax.devices import runtime
from e3jax.devices.configuration import with_settings
from e3jax.devices.mesh import EVERYWHERE, is_cpu

# By name: the dtype of convolutions, and the precision of products of float32 arrays. Without one,
# accelerators round the factors: to TensorFloat-32 on NVIDIA, to bfloat16 on TPUs.
_PRECISIONS = {
    "float32": (jnp.float32, "float32"),
    "tensorfloat32": (jnp.float32, "tensorfloat32"),
    "bfloat16": (jnp.bfloat16, "tensorfloat32"),
}
PRECISIONS = tuple(_PRECISIONS)
# What "auto" is: the fastest whose scores rank images as float32 does; on CPUs nothing is faster.
_BY_PLATFORM = {"gpu": "tensorfloat32", "cuda": "tensorfloat32", "tpu": "bfloat16"}
# On CPUs a loop may be split into tasks that overwrite what others have still to read, when no
# thread is free to do them at once: in training two networks side by side, gradients of the fourth
# step were off by 10 %. There is a device for each core, so nothing is lost.
_CPU_OPTIONS = {"xla_disable_hlo_passes": "cpu-parallel-task-assigner"}
# Compiler options on GPUs. Before jax 0.12 fusions of Triton's products can abort the process on
# strided reads (openxla/xla#47381).
GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False} if jax.__version_info__ < (0, 12) else {}


_DETERMINISTIC = "xla_gpu_deterministic_ops"


def make_deterministic() -> None:
    """Makes GPUs add in the same order each time, in all programs built from now on.

    They are slower then, and the same key gives the same numbers, as it always does on a CPU.
    """
    GPU_OPTIONS[_DETERMINISTIC] = True


def flags() -> str:
    """What XLA_FLAGS should be in another process, for the same."""
    return f"--{_DETERMINISTIC}=true" if _DETERMINISTIC in GPU_OPTIONS else ""


class Program(NamedTuple):
    """A jitted function and the shapes of its arguments, on devices that may be absent.

    Compile it with ``function.lower(*arguments).compile()`` or export it with ``jax.export``.
    """

    function: Callable
    arguments: tuple


def resolved(precision: str, platform: str | None = None) -> str:
    """A precision, where "auto" is replaced by what suits a platform.

    Args:
      precision: "auto" or one of ``PRECISIONS``.
      platform: "cpu", "gpu" or "tpu"; None: of the first device, which starts JAX.
    """
    if precision != "auto":
        return precision
    return _BY_PLATFORM.get(platform or runtime.devices()[0].platform, "float32")


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
        return {"xla_backend_optimization_level": level, **_CPU_OPTIONS}
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


_building = threading.RLock()  # two threads on the same devices would both build


def cached_program(build: Callable) -> Callable:
    """Decorates what is built, and so compiled, once for all work of a kind on the same devices."""
    cached = functools.lru_cache(maxsize=32)(build)

    @functools.wraps(build)
    def locked(*args):
        with _building:
            return cached(*args)

    return locked
