"""Engines: where the parts of long work are done.

Each is ``(function, items) -> results in order``, like ``map``; it takes only a few items ahead. No
engine knows what it is used for, so a command may be stopped, and another engine go on.
"""

import collections
import importlib.util
import logging
import os
import re
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from e3jax.devices import runtime
from e3jax.errors import InputError

Each = Callable[[Callable[[Any], Any], Iterable], Iterable]


def processes(function: Callable[[Any], Any], items: Iterable) -> Iterator:
    """Calls a function in processes of its own, one per core; it must be known by its name."""
    import joblib

    parallel = joblib.Parallel(n_jobs=-1, return_as="generator", pre_dispatch="2*n_jobs")
    return parallel(joblib.delayed(function)(item) for item in items)


def on_ray(address: str | None = None) -> Each:
    """An engine whose calls are tasks of a Ray cluster, which does those of lost nodes again.

    Code and items travel, so nodes need only Python packages, and no shared file system. Tasks
    compute on CPUs, also on nodes with GPUs: of a network that was chosen for a GPU that is slow.

    Args:
      address: of the cluster, of which each task takes a CPU core; default: one on this machine.

    Raises:
      InputError: Ray is not installed, or there is no such cluster.
    """
    cluster = connect(address)
    import ray

    work = task(_on_worker, {"CPU": 1})
    ahead = 2 * max(int(cluster.get("CPU", 0)), 1)

    def each(function: Callable[[Any], Any], items: Iterable) -> Iterator:
        waiting = collections.deque()
        for item in items:
            waiting.append(work.remote(function, item))
            if len(waiting) >= ahead:
                yield ray.get(waiting.popleft())
        while waiting:
            yield ray.get(waiting.popleft())

    return each


def task(function: Callable, shares: dict[str, float], **options: Any):
    """A function as a task of Ray that takes such shares; ``options`` are further ones of Ray's."""
    import ray

    return ray.remote(
        num_cpus=shares.get("CPU", 1),
        num_gpus=shares.get("GPU", 0),
        resources={name: n for name, n in shares.items() if name == "TPU"},
        # Losses of its worker or node; a call that kills its worker must end, too.
        max_retries=3,
        runtime_env={"env_vars": environment(shares)},
        **options,
    )(function)


def _on_worker(function: Callable[[Any], Any], item: Any) -> Any:
    runtime.prepare()
    return function(item)


def connect(address: str | None, **code: Any) -> dict[str, float]:
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
    code["py_modules"] = [*importlib.util.find_spec("e3jax").submodule_search_locations]
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
        return {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 * gpus:.2f}"} if gpus < 1 else {}
    cores = max(int(shares["CPU"]), 1)
    parts = str(runtime.cpu_devices(cores))
    # NPROC is XLA's threads; rounding depends on them, so on every node the same.
    return {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": parts, "NPROC": str(cores)}
