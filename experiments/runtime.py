"""What scripts share: settings before they first use a device, and how flags are read.

Importing e3jax, or this, sets nothing.
"""

import argparse

import jax

from e3jax.runtime import cores, cpu_devices, prepare

__all__ = ["cores", "cpu_devices", "positive", "start"]
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
    prepare()
    if distributed:
        _join(coordinator, num_processes, process_id)


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
