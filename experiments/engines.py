"""Where a sweep's runs are done: on this process's devices, or as tasks of a Ray cluster.

An engine has ``platform`` ("cpu", "gpu" or "tpu": what runs compute on), ``at_once`` (runs in
flight), ``device`` (for people), and::

    run_all(todo, dataset, meter, finish)

which does the runs and calls ``finish(run, data, outcome, bar)`` once for each, never for two at a
time. ``data`` has the labels of the run's set; ``outcome`` is a :class:`runs.Outcome`, or the
exception that ended the run (the others go on), or None where another process of the job has it.
What is finished is for ``finish`` to keep: no engine knows results, so they can take turns over one
results folder.
"""

import argparse
import concurrent.futures
import importlib.util
import logging
import os
import queue
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import live
import numpy as np
import progress
import runs
import runtime
import sweep
from rich.console import Console

from e3jax import contamination, datasets, devices, training

Finish = Callable[
    [sweep.Run, contamination.Contaminated, runs.Outcome | Exception | None, progress.Bar], None
]
# Losses of its worker or node that a run survives. A run that kills its worker ends, too.
_RETRIES = 3


class InProcess:
    """A thread for each run in flight, on its share of the devices of this process or of its job.

    Args:
      arguments: see benchmark.py.
      folder: where unfinished trainings are kept; None in all but the first process of a job.
    """

    def __init__(self, arguments: argparse.Namespace, folder: sweep.Folder | None):
        self.arguments, self.folder = arguments, folder
        if arguments.tensorboard:
            live.check()
        self.platform = jax.devices()[0].platform
        self.finishing = threading.Lock()

    def close(self) -> None:
        """Nothing to give back."""

    def split(self, trainings: int) -> None:
        """Splits the devices over the runs in flight of a plan with so many trainings."""
        self.at_once = self._runs_at_once(trainings)
        all_devices = jax.devices()
        size = max(len(all_devices) // self.at_once, 1)
        groups = (all_devices[i : i + size] for i in range(0, len(all_devices), size))
        self.meshes = [devices.device_mesh(group) for group in groups]
        self.device = f"{size} x {all_devices[0].device_kind}"

    def _runs_at_once(self, trainings: int) -> int:
        """Runs in flight. Small ones use a machine better side by side than each split over it.

        "auto" looks at what was planned, not at what is left or is this shard's: it decides over
        how many devices a batch is split, and a command that continues must give the same numbers.
        """
        asked, count = self.arguments.runs_at_once, jax.device_count()
        if jax.process_count() > 1:
            return 1
        if asked == "auto":
            fitting = (n for n in range(1, count + 1) if count % n == 0)
            return max(n for n in fitting if n <= max(trainings, 1))
        if count % asked and asked % count:
            raise ValueError(
                f"--runs-at-once {asked} cannot share {count} devices evenly: give a number that "
                f"divides {count}, or a multiple of it"
            )
        return asked

    def run_all(
        self,
        todo: Iterable[sweep.Run],
        dataset: datasets.Dataset,
        meter: progress.Meter,
        finish: Finish,
    ) -> None:
        """Every finished run is kept before its thread takes the next."""
        left = queue.SimpleQueue()
        for run in [*todo, *[None] * self.at_once]:
            left.put(run)

        def work_off(mesh: jax.sharding.Mesh) -> None:
            while run := left.get():
                bar = meter.start(run.title, runs.cost(dataset, run))
                data = runs.draw(dataset, run)
                outcome = self._do(run, data, mesh, bar)
                with self.finishing:  # matplotlib serves one thread at a time
                    finish(run, data, outcome, bar)

        with concurrent.futures.ThreadPoolExecutor(self.at_once) as threads:
            try:
                # Threads suffice: nearly all time is spent in XLA.
                meshes = (self.meshes[i % len(self.meshes)] for i in range(self.at_once))
                futures = [threads.submit(work_off, mesh) for mesh in meshes]
                for thread in concurrent.futures.as_completed(futures):
                    thread.result()
            except BaseException:
                meter.stopped.set()
                raise

    def _do(
        self,
        run: sweep.Run,
        data: contamination.Contaminated,
        mesh: jax.sharding.Mesh,
        bar: progress.Bar,
    ) -> runs.Outcome | Exception | None:
        if self.folder is None and not runs.TRAININGS[run.method].on_devices:
            return None
        task = runs.Task(
            run=run,
            images=data.images,
            mesh=mesh,
            bar=bar,
            # The other processes of a job have no folder and touch none.
            state=self.folder.checkpoint(run) if self.folder else run.name,
            save_seconds=60 * self.arguments.checkpoint_minutes,
            events=self._events(run, data) if self.arguments.tensorboard else None,
        )
        try:
            return runs.do(task)
        except Exception as error:
            # The processes of a job cannot know whether a run failed in all of them.
            if isinstance(error, progress.Stopped) or jax.process_count() > 1:
                raise
            return error

    def _events(
        self, run: sweep.Run, data: contamination.Contaminated
    ) -> Callable[[training.TrainConfig, int, int], live.EventFiles]:
        folder = Path(self.arguments.tensorboard, run.name) if self.folder else None
        return lambda config, k, count: live.EventFiles(folder, config, data, k, count)


class OnRay:
    """A task for each run, with its share of CPUs, GPUs or TPU chips declared; Ray schedules.

    Code and images travel with the sweep, so that nodes need Python packages alone: no shared
    file system, no data sets. A task keeps nothing: lost with its worker or node, it starts over
    elsewhere; what it returns is written where the command runs.
    """

    def __init__(self, arguments: argparse.Namespace):
        if importlib.util.find_spec("ray") is None:
            raise ValueError("--engine ray needs Ray: pip install ray")
        # This process computes nothing: a GPU that it touched would be short of memory.
        jax.config.update("jax_platforms", "cpu")
        self.ray = _connect(arguments.ray_address or os.environ.get("RAY_ADDRESS"))
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray sets its own
        self.share = dict(arguments.share or []) or _default_share(self.ray.cluster_resources())
        self.platform = _platform(self.share)
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        self.at_once = sum(_fitting(resources, self.share) for resources in nodes)
        amounts = " ".join(f"{name}={amount:g}" for name, amount in self.share.items())
        self.device = f"{amounts} a run, of a Ray cluster with {len(nodes)} node(s)"
        if not self.at_once:
            self.device += ", none of which has so much: runs wait for one"

    def close(self) -> None:
        """Leaves the cluster, which then ends what is in flight."""
        self.ray.shutdown()

    def split(self, trainings: int) -> None:
        """Nothing to do: shares are declared."""

    def run_all(
        self,
        todo: Iterable[sweep.Run],
        dataset: datasets.Dataset,
        meter: progress.Meter,
        finish: Finish,
    ) -> None:
        """All runs are Ray's from the start; results are kept as they come."""
        images, waiting = self.ray.put(dataset.images), {}

        def collect(timeout: float | None) -> None:
            done, _ = self.ray.wait(list(waiting), timeout=timeout)
            for reference in done:
                run, data = waiting.pop(reference)
                try:
                    outcome = self.ray.get(reference)
                except self.ray.exceptions.RayError as error:
                    outcome = error
                cost = runs.cost(dataset, run)
                bar = meter.start(run.title, cost)
                if cost:  # a whole run is what the estimate of the time that is left goes by
                    bar.advance(cost, "")
                finish(run, data, outcome, bar)

        for run in todo:
            data = runs.draw(dataset, run)
            waiting[self._submit(run, images, data.ids)] = run, data._replace(images=None)
            collect(timeout=0)  # drawing hundreds of sets takes minutes
        while waiting:
            collect(timeout=None)

    def _submit(self, run: sweep.Run, images, ids: np.ndarray):
        share = self.share if runs.TRAININGS[run.method].on_devices else {"CPU": 1}
        amounts, platform = {"CPU": 1, "GPU": 0} | share, _platform(share)
        task = self.ray.remote(
            num_cpus=amounts.pop("CPU"),
            num_gpus=amounts.pop("GPU"),
            resources=amounts,
            max_retries=_RETRIES,
            # A process keeps the accelerators that it saw first.
            max_calls=0 if platform == "cpu" else 1,
            runtime_env={"env_vars": _environment(share)},
        )(_on_worker)
        return task.remote(run, images, ids, platform)


Engine = InProcess | OnRay


def parse_share(text: str) -> tuple[str, float]:
    """For argparse: "GPU=0.5" as ("GPU", 0.5)."""
    name, _, amount = text.partition("=")
    try:
        if name in ("CPU", "GPU", "TPU") and float(amount) > 0:
            return name, float(amount)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no share: write CPU=2, GPU=1, GPU=0.5 or TPU=1")


def _connect(address: str | None):
    """Joins a cluster, or starts one on this machine; returns Ray."""
    # Under `ray job submit --working-dir` Ray would refuse the code that is sent here.
    os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    code = {
        "working_dir": str(Path(__file__).parent),
        "py_modules": [*importlib.util.find_spec("e3jax").submodule_search_locations],
        "excludes": ["__pycache__"],
    }
    try:
        # Where nothing listens Ray would wait for many minutes.
        if at := re.fullmatch(r"(?:ray://)?(.+):(\d+)", address or ""):
            socket.create_connection((at[1], int(at[2])), timeout=10).close()
        ray.init(address, runtime_env=code, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"no Ray cluster at {address or 'hand'}: {error}") from error
    return ray


def _default_share(resources: dict[str, float]) -> dict[str, float]:
    """One of the best that a cluster has."""
    return {next((name for name in ("GPU", "TPU") if resources.get(name)), "CPU"): 1}


def _platform(share: dict[str, float]) -> str:
    return next((name.lower() for name in ("GPU", "TPU") if name in share), "cpu")


def _fitting(resources: dict[str, float], share: dict[str, float]) -> int:
    """Runs that a node can do at a time."""
    return int(min(resources.get(name, 0) / amount for name, amount in share.items()))


def _environment(share: dict[str, float]) -> dict[str, str]:
    """What JAX in a worker must know before it starts: the devices of its share, and no others.

    Workers of other variables are other processes, so that none has the devices of another share.
    """
    if "TPU" in share:  # Ray tells libtpu which chips
        return {}
    if (gpus := share.get("GPU")) is not None:  # Ray tells CUDA which
        return {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 * gpus:.2f}"} if gpus < 1 else {}
    cores = max(int(share["CPU"]), 1)
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(runtime.cpu_devices(cores)),
        "NPROC": str(cores),  # XLA's threads; rounding depends on them, so on every node the same
    }


def _on_worker(run: sweep.Run, images: np.ndarray, ids: np.ndarray, platform: str) -> runs.Outcome:
    """A run in a worker, on all devices that it sees.

    ``images`` are the whole data set's, which a node has once in memory for all of its workers.
    """
    runtime.start()
    if jax.devices()[0].platform != platform:
        raise RuntimeError(f"JAX finds no {platform} in a worker: install JAX for it on all nodes")
    with progress.Meter(Console(quiet=True), 0, 1, 1) as meter:
        task = runs.Task(run, images[ids], devices.device_mesh(), meter.start("", 0))
        return runs.do(task)
