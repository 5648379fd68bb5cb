"""What scripts share: settings before they first use a device, and how flags are read.

Importing e3jax, or this, sets nothing.
"""

import argparse
import os
import warnings
from pathlib import Path

import jax

from e3jax import datasets

_MOST_CPU_DEVICES = 64  # the quick protocol's batch
# A process that failed alone waits so long for the others before it leaves.
_SHUTDOWN_SECONDS = 60


def start(
    distributed: bool = False,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Splits the CPU into devices, keeps compiled programs on disk, joins a job of processes.

    Args:
      distributed: this is one of several processes that run the same command. Slurm, Open MPI,
        Kubernetes and TPU pods tell the rest; elsewhere the other arguments do.
      coordinator: HOST:PORT of the first process.
      num_processes: of the job.
      process_id: of this process, 0 to num_processes - 1.

    Raises:
      ValueError: if the job cannot be joined.
    """
    _split_cpu()
    _keep_compiled_programs(datasets.cache_folder() / "compiled")
    if distributed:
        _join(coordinator, num_processes, process_id)


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
        warnings.warn(f"compiled programs are not kept: {error}", stacklevel=3)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # JAX's default of one second leaves out dozens of programs that take a second together.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, shutdown_timeout_seconds=_SHUTDOWN_SECONDS
        )
    except (ValueError, RuntimeError) as error:
        if coordinator is None:
            raise ValueError(
                "--distributed found no cluster that says which processes there are: give "
                f"--coordinator, --num-processes and --process-id ({error})"
            ) from error
        raise ValueError(f"no job of processes through {coordinator}: {error}") from error


def positive(text: str) -> int:
    """For argparse: an integer from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1: give a positive number")
    return number
