"""What programs set before they first use a device. Importing this sets nothing."""

import os
import warnings
from pathlib import Path

import jax

from e3jax import datasets

_MOST_CPU_DEVICES = 64  # the quick protocol's batch


def prepare() -> None:
    """Splits the CPU into devices and keeps compiled programs in the user's cache folder."""
    _split_cpu()
    _keep_compiled_programs(datasets.cache_folder() / "compiled")


def _split_cpu() -> None:
    """One device a core: XLA uses the cores of a machine better through a mesh than by itself.

    ``JAX_NUM_CPU_DEVICES`` says otherwise, and so does XLA's own flag for it.
    """
    asked = jax.config.jax_num_cpu_devices != -1
    if asked or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    jax.config.update("jax_num_cpu_devices", cpu_devices(cores()))


def cpu_devices(cores: int) -> int:
    """Into how many devices so many cores are split: a batch divides over them."""
    return min(1 << (cores.bit_length() - 1), _MOST_CPU_DEVICES)


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _keep_compiled_programs(folder: Path) -> None:
    """A second start compiles nothing. Only in a folder of ours: what lies there is executed."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to another user")
        folder.chmod(0o700)
    except OSError as error:
        warnings.warn(f"compiled programs are not kept: {error}", stacklevel=4)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # JAX's default of one second leaves out dozens of programs that take a second together.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
