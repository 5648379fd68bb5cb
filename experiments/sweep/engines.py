"""Where the runs of a sweep are done: threads of this process, a job of processes, or Ray.

An engine is an executor that gives each call devices of its own. Besides it has

  device: what it computes on, for people.
  at_once: runs in flight.
  window: runs that it should be given at a time, to be always busy.
  devices_each: of a run, if runs are in this process, so that they can report progress and keep
    unfinished trainings; otherwise 0.
  untrained: the executor of runs without a training, which use no accelerator.
  share: puts an array where all calls find it; what it returns stands for the array in ``submit``.

No engine knows results, so engines can take turns, or work at the same time, in one folder.
"""

import argparse
import os
import queue
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

from e3jax import devices
from e3jax.devices import engines, runtime


def prepare(args: argparse.Namespace) -> tuple[str, Callable[[int], Executor]]:
    """Starts what ``args`` name: JAX in this process, a job of processes, or a Ray cluster.

    Returns:
      What runs compute on ("cpu", "gpu" or "tpu"), and a function that makes the engine for a plan
      with so many trainings.

    Raises:
      ValueError: the job or the cluster cannot be joined.
    """
    if args.deterministic:
        devices.make_deterministic()
    if args.engine == "ray":
        cluster = _connect(args.ray_address)
        shares = dict(args.share or [(engines.best(cluster), 1)])
        return engines.platform(shares), lambda trainings: Ray(shares)
    runtime.prepare()
    if args.distributed:
        _join(args.coordinator, args.num_processes, args.process_id)
    wanted = args.runs_at_once
    return runtime.devices()[0].platform, lambda trainings: Local(_runs_at_once(wanted, trainings))


# --- This process ----------------------------------------------------------------------------


class Local(ThreadPoolExecutor):
    """Threads, each with a group of the devices, or of all devices of a job, as ``mesh``.

    Threads suffice: nearly all time is spent in XLA.
    """

    def __init__(self, at_once: int):
        super().__init__(at_once)
        everything, self.at_once, self.untrained = jax.devices(), at_once, self
        self.devices_each = each = max(len(everything) // at_once, 1)
        self.device = f"{each} x {everything[0].device_kind}"
        # One more is drawn meanwhile. The processes of a job do one run after the other.
        self.window = at_once + (jax.process_count() == 1)
        self._meshes = queue.SimpleQueue()
        for number in range(at_once):
            first = number * each % len(everything)
            self._meshes.put(devices.device_mesh(everything[first : first + each]))

    def submit(self, function: Callable, /, *args) -> Future:
        def on_free_devices():
            mesh = self._meshes.get()
            try:
                return function(*args, mesh=mesh)
            finally:
                self._meshes.put(mesh)

        return super().submit(on_free_devices)

    def share(self, array: np.ndarray) -> np.ndarray:
        return array


def _runs_at_once(wanted: int | str, trainings: int) -> int:
    """Runs in flight. Small ones use a machine better side by side than each split over it.

    "auto" depends on what was planned, not on what is left or in this shard: it decides over how
    many devices a batch is split, and a command that continues must give the same numbers.
    """
    count = jax.device_count()
    if jax.process_count() > 1:
        return 1
    if wanted == "auto":
        return max(n for n in range(1, count + 1) if count % n == 0 and n <= max(trainings, 1))
    if count % wanted and wanted % count:
        advice = f"give a number that divides {count}, or a multiple of it"
        raise ValueError(f"--runs-at-once {wanted} cannot share {count} devices evenly: {advice}")
    return wanted


def _join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins a job of processes."""
    try:
        # A process that failed alone waits a minute for the others before it leaves.
        jax.distributed.initialize(
            coordinator, num_processes, process_id, shutdown_timeout_seconds=60
        )
    except (ValueError, RuntimeError) as error:
        lost = f"cannot join the job at {coordinator}"
        if not coordinator:
            known = "give --coordinator, --num-processes and --process-id"
            lost = f"--distributed found no cluster environment: {known}"
        raise ValueError(f"{lost} ({error})") from error


# --- Ray -------------------------------------------------------------------------------------


class Ray(engines.Ray):
    """Tasks of a cluster. What a run returns is written where the command runs."""

    devices_each = 0

    def __init__(self, shares: dict[str, float]):
        super().__init__(shares)
        self.window = self.at_once + 64  # that wait, so that an autoscaler sees them
        amounts = " ".join(f"{name}={amount:g}" for name, amount in shares.items())
        self.device = f"{amounts} a run, of a Ray cluster with {self.nodes} node(s)"
        if not self.at_once:
            self.device += ", none of which has enough: runs wait for one"
        self.untrained = self if shares == {"CPU": 1} else Ray({"CPU": 1})


def _connect(address: str | None) -> dict[str, float]:
    """Joins a cluster, or starts one on this machine; returns what it has."""
    # This process computes nothing: a GPU that it touched would be short of memory.
    jax.config.update("jax_platforms", "cpu")
    # Under `ray job submit --working-dir` Ray would refuse the code that is sent here.
    os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return engines.connect(
        address, working_dir=str(Path(__file__).parents[1]), excludes=["__pycache__"]
    )
