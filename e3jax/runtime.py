"""Settings that programs make before they first use a device. Importing this sets nothing."""

import contextlib
import os
import warnings
from pathlib import Path

import jax
import joblib

from e3jax.errors import InputError
from e3jax.files import cache_folder

_MOST_CPU_DEVICES = 64  # the quick protocol's batch size


def prepare() -> None:
    """Splits the CPU into devices and keeps compiled programs in the user's cache folder.

    There is one device per core, because XLA uses the cores of a machine better through a mesh than
    by itself. ``JAX_NUM_CPU_DEVICES`` and XLA's own flag take precedence, and so does JAX if it has
    started already.
    """
    chosen = jax.config.jax_num_cpu_devices != -1
    if not chosen and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # it has started
            jax.config.update("jax_num_cpu_devices", cpu_devices(cores()))
    _keep_compiled_programs(cache_folder() / "compiled")


def devices() -> list[jax.Device]:
    """All devices, of all processes of the job; starts JAX.

    Raises:
      InputError: JAX does not find the devices that the environment names.
      RuntimeError: the process was forked from one in which this was called: JAX would deadlock.
    """
    _started_in.add(os.getpid())
    if len(_started_in) > 1:
        raise RuntimeError(
            "this process was forked after e3jax had used JAX, which then deadlocks: start "
            "processes with multiprocessing's 'spawn' or 'forkserver', or fork first"
        )
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = (str(error) or "no such device was found").splitlines()[0]
        raise InputError(
            f"JAX cannot start on {jax.config.jax_platforms or 'any device'} ({reason}): unset or "
            "change JAX_PLATFORMS, or install what that device needs"
        ) from error


_started_in: set[int] = set()


def cpu_devices(cores: int) -> int:
    """The number of devices to split so many cores into: a power of two, which divides a batch."""
    return min(1 << (cores.bit_length() - 1), _MOST_CPU_DEVICES)


def cores() -> int:
    """The number of cores that this process may use: its affinity, and a container's quota."""
    return joblib.cpu_count()


def _keep_compiled_programs(folder: Path) -> None:
    """Caches compiled programs, so that a second start compiles nothing.

    JAX executes what the folder contains, so it must belong to this user and nobody else may write.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to another user")
        folder.chmod(0o700)
    except OSError as error:
        warnings.warn(f"compiled programs are not kept: {error}", stacklevel=4)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # JAX's default, one second, skips dozens of programs that take a second together.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
