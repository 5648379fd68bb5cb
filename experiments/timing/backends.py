"""Programs of the method as a worker measures them: what is common to them, and e3jax's own."""

import concurrent.futures
import functools
import itertools
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from e3jax import devices, images, operations, training
from e3jax.devices import runtime
from e3jax.training import fitting
from e3jax.training.e3outlier import E3OUTLIER

VIEWS_PER_CALL = 1024


class Backend:
    """A program of the method as a worker measures it.

    Subclasses provide ``make_NAME()`` for what is measured: a function that returns when its work
    is done, and how many views (or FLOP) that is.

    Args:
      on_cpu: on a CPU calls are short, as their work takes long and the clock is read between them.
      shape: of the random images uint8 [n, h, w, c].
    """

    def __init__(self, on_cpu: bool, shape: list[int]):
        self._imports = _resident_bytes()
        self.on_cpu, self.calls = on_cpu, {}
        self.steps, self.gemm_side = (4, 2048) if on_cpu else (200, 8192)
        self.images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        self.n, self.side, _, self.channels = shape

    def prepare(self, names: list[str]) -> dict[str, float]:
        """Builds what is measured; returns how much longer first calls take than later ones."""
        extra = {}
        for name in names:
            call, _ = self.calls[name] = getattr(self, f"make_{name}")()
            first, *later = (1 / rate(call, 1, seconds=0) for _ in range(3))
            extra[f"{name}_compile_seconds"] = max(first - statistics.median(later), 0.0)
        return extra

    def measure(self, name: str, seconds: float) -> dict[str, float]:
        return {f"{name}_views_per_second": rate(*self.calls[name], seconds)}

    def gemm(self) -> dict[str, float]:
        """Of a large matrix product."""
        call, flops = self.make_gemm()
        call()
        return {"gemm_flops": rate(call, flops, seconds=1)}

    def memory(self) -> dict[str, int]:
        """Bytes; 0 where they are unknown."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "imports_rss": self._imports,
            "peak_rss": peak * (1 if sys.platform == "darwin" else 1024),
            "resident": _resident_bytes(),
            "device_peak": self.device_peak(),
        }


def rate(call: Callable[[], Any], count: int, seconds: float) -> float:
    """Things per second, where a call does ``count`` of them; takes at least ``seconds``."""
    start, done = time.perf_counter(), 0
    while True:
        call()
        done += count
        if (elapsed := time.perf_counter() - start) >= seconds:
            return done / elapsed


def timed(**stages: Callable[[], Any]) -> dict[str, float]:
    """Does the stages one after the other; returns the seconds of each and of all."""
    seconds = {f"{name}_seconds": 1 / rate(do, 1, seconds=0) for name, do in stages.items()}
    return seconds | {"seconds": sum(seconds.values())}


def _resident_bytes() -> int:
    """Of this process now."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else 0


class Ours(Backend):
    """e3jax on all devices.

    Args:
      config: fields of a TrainConfig.
      shape: of the images.
      gpu_options: changes of what XLA is told on GPUs.
    """

    def __init__(self, config: dict, shape: list[int], gpu_options: dict | None = None):
        devices.GPU_OPTIONS.update(gpu_options or {})
        runtime.prepare()
        config["precision"] = devices.resolved(config["precision"])
        self.mesh, self.config = devices.device_mesh(), training.TrainConfig(**config)
        super().__init__(devices.is_cpu(self.mesh), shape)
        self.operation_set = operations.operation_set(self.config.operations, self.side)

    def hello(self) -> dict:
        about = {"device": devices.describe(self.mesh), "devices": self.mesh.size}
        about["precision"] = self.config.precision
        return about | {"platform": self.mesh.devices.flat[0].platform, "cores": runtime.cores()}

    def make_train(self, mesh: Any = None) -> tuple[Callable, int]:
        """A few steps, from where the last call stopped."""
        config = self.config
        objective = training.Objective(E3OUTLIER.loss, E3OUTLIER.metrics)
        parts = (config.network, objective, training.make_optimizer(config), self.side)
        options = {"batch_size": config.batch_size, "precision": config.precision}
        options |= {"steps_per_call": self.steps, "mesh": mesh or self.mesh}
        trainer = training.make_trainer(*parts, self.operation_set, **options)
        state = trainer.init(jax.random.key(0), self.channels)
        bank = training.place_bank(trainer.mesh, self.images)
        batches = trainer.batches(state, bank, self.n, itertools.repeat(self.steps))

        def call() -> None:
            nonlocal state
            # A training without end: its last step is never reached.
            state, _ = trainer.run_steps(state, next(batches), 2**31 - 1)
            jax.block_until_ready(state)

        return call, self.steps * config.batch_size

    def make_score(self) -> tuple[Callable, int]:
        key, config, mesh = jax.random.key(0), self.config, self.mesh
        start = fitting.fit(key, self.images, config=config, mesh=mesh, until=0)
        # On a CPU each device takes one image at a time, so few of them tell the same.
        size = max(min(8 if self.on_cpu else 256, self.n // mesh.size) * mesh.size, 1)
        # From the middle: in a small bank as in a large one, the first would stay in the cache.
        some = self.images[max(self.n - size, 0) // 2 :][:size]
        return lambda: fitting.score(start, some, mesh=mesh), size * config.k

    def make_views(self) -> tuple[Callable, int]:
        def views(shared, pairs):
            (tables, bank), (image, operation) = shared, pairs
            x = images.to_unit(bank[image].reshape(-1, *self.images.shape[1:]))
            return operations.views_of(tables, x, operation)

        mesh, specs = self.mesh, (devices.EVERYWHERE, devices.SPLIT)
        views = devices.on_mesh(views, mesh, self.config.precision, specs, devices.SPLIT)
        shared = devices.place(mesh, (self.operation_set, self.images.reshape(self.n, -1)))
        draw, size = np.random.default_rng(0).integers, VIEWS_PER_CALL
        pairs = [draw(high, size=size, dtype=np.int32) for high in (self.n, self.config.k)]
        pairs = devices.place(mesh, tuple(pairs), devices.SPLIT)
        return lambda: jax.block_until_ready(views(shared, pairs)), size

    def make_gemm(self) -> tuple[Callable, int]:
        """All devices together."""
        size, precision = self.gemm_side, self.config.precision
        product = devices.on_mesh(lambda a: a @ a, self.mesh, precision, out_specs=devices.SPLIT)
        dtype = np.float32 if self.on_cpu else devices.dtype(precision)
        a = devices.place(self.mesh, np.ones((size, size), dtype))
        return lambda: jax.block_until_ready(product(a)), 2 * size**3 * self.mesh.size

    def in_flight(self, rounds: int, seconds: float) -> dict:
        """Trainings side by side, one per device, as sweeps run them; the median of the rounds."""
        flights = [self.make_train(devices.device_mesh([d])) for d in self.mesh.devices.flat]
        for call, _ in flights:  # each compiles for its own device
            call()
        with concurrent.futures.ThreadPoolExecutor(len(flights)) as pool:
            each = [[*pool.map(lambda f: rate(*f, seconds), flights)] for _ in range(rounds)]
        speed = statistics.median(map(sum, each))
        return {"in_flight": len(flights), "in_flight_train_views_per_second": speed}

    def pipeline(self) -> dict:
        """One class from images to scores, as a user runs it. The first call also compiles."""
        fitted = []
        fit = functools.partial(fitting.fit, jax.random.key(0), self.images)
        seconds = timed(
            train=lambda: fitted.append(fit(config=self.config, mesh=self.mesh)),
            score=lambda: fitting.score(*fitted, self.images, mesh=self.mesh),
        )
        # At once: those of a batch in training, those of one image per device in scoring.
        views = max(self.config.batch_size, self.mesh.size * (self.config.k + 1))
        return seconds | {"views_bytes": views * self.images[0].size * 4}

    def device_peak(self) -> int:
        return (self.mesh.devices.flat[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
