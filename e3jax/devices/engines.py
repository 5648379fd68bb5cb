"""Engines: executors of :mod:`concurrent.futures`, which say where long work is done.

An engine does not know what it is used for, so a command may be stopped, and another engine go on.
"""

import collections
import contextlib
import functools
import importlib.util
import itertools
import logging
import os
import re
import signal
import socket
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import jax
from joblib.externals import loky

from e3jax.devices import programs, runtime
from e3jax.errors import InputError

# A process has one thread for linear algebra, as there is a process per core.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_IDLE_SECONDS = 300


def ordered_map(
    executor: Executor | None,
    function: Callable[[Any], Any],
    items: Iterable,
    ahead: int | None = None,
) -> Generator:
    """Yields ``function(item)`` for each item, in order, without taking all items at once.

    What has not begun is cancelled when one call fails or when the iterator is closed.

    Args:
      executor: calls the function; None: this thread does, one call after the other.
      function: for processes and other machines, one that can be imported by its name.
      items: taken only as they are needed, so it may be a generator of large arrays. A call takes
        several where the executor says so, see :class:`Ray`.
      ahead: calls under way at a time; default: twice the executor's workers.
    """
    if executor is None:
        yield from map(function, items)
        return
    together = getattr(executor, "together", 1)
    if together == 1:
        yield from _in_order(executor, function, items, ahead)
        return
    items = iter(items)
    groups = iter(lambda: list(itertools.islice(items, together)), [])
    several = functools.partial(_each, function)
    with contextlib.closing(_in_order(executor, several, groups, ahead)) as results:
        for group in results:
            yield from group


def _each(function: Callable[[Any], Any], items: list) -> list:
    return list(map(function, items))


def _in_order(
    executor: Executor, function: Callable[[Any], Any], items: Iterable, ahead: int | None
) -> Generator:
    # All executors of the standard library have it.
    ahead = ahead or 2 * executor._max_workers  # pyright: ignore[reportAttributeAccessIssue]
    futures = collections.deque()
    try:
        for item in items:
            futures.append(executor.submit(function, item))
            if len(futures) >= ahead:
                yield futures[0].result()
                futures.popleft()
        while futures:
            yield futures[0].result()
            futures.popleft()
    finally:
        if isinstance(executor, _Processes) and not all(future.done() for future in futures):
            executor.shutdown()  # a command that is stopped does not wait for what has begun
        for future in futures:
            future.cancel()


def local() -> Executor | None:
    """An executor of processes, one per core of this machine; None if there is only one core.

    All of them share their processes, which take a second to start, and end when they are idle.
    """
    return _Processes() if runtime.cores() > 1 else None


class _Processes(Executor):
    """Joblib's processes, which start again where they were shut down."""

    def __init__(self):
        self._max_workers = runtime.cores()

    def _pool(self) -> Any:
        threads = {name: os.environ.get(name, "1") for name in _ONE_THREAD}
        return loky.get_reusable_executor(self._max_workers, timeout=_IDLE_SECONDS, env=threads)

    def submit(self, function: Callable, /, *args, **kwargs) -> Future:
        return self._pool().submit(function, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the processes, and whatever they do."""
        pool = self._pool()
        for process in list(pool._processes.values()):  # its `kill_workers` fails at times
            process.terminate()
        pool.shutdown(wait)


def on_ray(address: str | None = None, share: str = "CPU") -> "Ray":
    """An executor whose calls are tasks of a Ray cluster, which repeats those of lost nodes.

    Code and items travel, so nodes need only Python packages, and no shared file system.

    Args:
      address: of the cluster; default: one on this machine.
      share: what each task takes one of: "CPU", a core; "best", a GPU or TPU chip where the cluster
        has any.

    Raises:
      InputError: Ray is not installed, or there is no such cluster.
    """
    cluster = connect(address)
    return Ray({best(cluster) if share == "best" else share: 1})


def best(cluster: Mapping[str, float]) -> str:
    """The fastest kind of device that a cluster has: "GPU", "TPU" or "CPU"."""
    return next((name for name in ("GPU", "TPU") if cluster.get(name)), "CPU")


class Ray(Executor):
    """A Ray task per call, with its share of CPUs, GPUs or TPU chips declared; Ray schedules.

    A task keeps nothing: lost with its worker or node, it starts over elsewhere. The cluster is
    joined first, see :func:`connect`.

    Attributes:
      nodes: how many the cluster has.
      at_once: calls that it has room for now.
      platform: what a call computes on: "cpu", "gpu" or "tpu".
      together: items that a call should take; each call starts the accelerator anew.
    """

    def __init__(self, shares: dict[str, float]):
        import ray

        self._ray, self.platform = ray, platform(shares)
        self.together = 1 if self.platform == "cpu" else 8
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.nodes = len(nodes)
        room = [min(node.get(name, 0) / n for name, n in shares.items()) for node in nodes]
        self.at_once = sum(map(int, room))
        self._max_workers = max(self.at_once, 1)
        self._task = ray.remote(
            num_cpus=shares.get("CPU", 1),
            num_gpus=shares.get("GPU", 0),
            resources={name: n for name, n in shares.items() if name == "TPU"},
            # A process keeps the accelerators that it saw first.
            max_calls=0 if self.platform == "cpu" else 1,
            # Losses of its worker or node; a call that kills its worker must end, too.
            max_retries=3,
            runtime_env={"env_vars": environment(shares)},
        )(_on_worker)

    def submit(self, function: Callable, /, *args, **kwargs) -> Future:
        """Calls a function on a worker; a future that is cancelled ends the call."""
        reference = self._task.remote(self.platform, function, *args, **kwargs)
        future = reference.future()

        def cancel(future: Future) -> None:
            if future.cancelled() and self._ray.is_initialized():
                self._ray.cancel(reference)

        future.add_done_callback(cancel)
        return future

    def share(self, array: Any) -> Any:
        """Sends an array once to each node; what is returned stands for it in :meth:`submit`."""
        return self._ray.put(array)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leaves the cluster, which then ends what is in flight."""
        self._ray.shutdown()


def _on_worker(platform: str, function: Callable, /, *args, **kwargs) -> Any:
    """Does a call in a worker, on the devices that it sees."""
    runtime.prepare()
    if platform != "cpu" and jax.devices()[0].platform != platform:
        raise RuntimeError(f"JAX finds no {platform} in a worker: install JAX for it on all nodes")
    return function(*args, **kwargs)


def connect(address: str | None, **code: Any) -> Mapping[str, float]:
    """Joins a Ray cluster, or starts one on this machine; returns what it has.

    Args:
      address: of the cluster; default: RAY_ADDRESS, or none.
      code: what travels besides e3jax, as of Ray's ``runtime_env``.

    Raises:
      InputError: see :func:`on_ray`.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError("--engine ray needs Ray: pip install ray")
    import ray

    if ray.is_initialized():  # as for a bank before its ranking
        return ray.cluster_resources()
    address = address or os.environ.get("RAY_ADDRESS")
    code["py_modules"] = [str(Path(__file__).parents[1])]
    try:
        # Where nothing listens Ray would wait for many minutes.
        if at := re.fullmatch(r"(?:ray://)?(.+):(\d+)", address or ""):
            socket.create_connection((at[1], int(at[2])), timeout=10).close()
        ray.init(address, runtime_env=code, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"no Ray cluster at {address or 'hand'}: {error}") from error
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray sets its own
    return ray.cluster_resources()


def platform(shares: dict[str, float]) -> str:
    """What a task of these shares computes on: "cpu", "gpu" or "tpu"."""
    return next((name.lower() for name in ("GPU", "TPU") if name in shares), "cpu")


def environment(shares: dict[str, float]) -> dict[str, str]:
    """What JAX in a worker must know before it starts: the devices of its share, and no others.

    Workers of other variables are other processes, so that none has the devices of another share.
    """
    if "TPU" in shares:  # Ray tells libtpu which chips
        return {}
    if (gpus := shares.get("GPU")) is not None:  # Ray tells CUDA which
        flags = {"XLA_FLAGS": text} if (text := programs.flags()) else {}
        part = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 * gpus:.2f}"} if gpus < 1 else {}
        return flags | part
    cores = max(int(shares["CPU"]), 1)
    parts = str(runtime.cpu_devices(cores))
    # NPROC is XLA's threads; rounding depends on them, so on every node the same.
    return {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": parts, "NPROC": str(cores)}
