"""e3jax as a backend, through its public functions."""

import concurrent.futures
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from e3jax import devices, fitting, images, operations, runtime, training
from e3jax.methods import E3OUTLIER
from speed.worker import VIEWS_PER_CALL, Backend, rate


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
        self.mesh, self.config = devices.device_mesh(), training.TrainConfig(**config)
        super().__init__(devices.is_cpu(self.mesh), shape)
        self.operation_set = operations.operation_set(self.config.operations, self.side)

    def hello(self) -> dict:
        platform, device = self.mesh.devices.flat[0].platform, devices.describe(self.mesh)
        return {"platform": platform, "device": device, "devices": self.mesh.size}

    def make_train(self, mesh: Any = None) -> tuple[Callable, int]:
        """A few steps, from where the last call stopped."""
        config = self.config
        parts = (config.network, E3OUTLIER.loss, training.make_optimizer(config), self.side)
        options = {"batch_size": config.batch_size, "precision": config.precision}
        options |= {"steps_per_call": self.steps, "metrics": E3OUTLIER.metrics}
        options |= {"mesh": mesh or self.mesh}
        trainer = training.make_trainer(*parts, self.operation_set, **options)
        state = trainer.init(jax.random.key(0), self.channels)
        bank = training.place_bank(trainer.mesh, self.images)

        def call() -> None:
            nonlocal state
            # A training without end: its last step is never reached.
            state, _ = trainer.run_steps(state, bank, self.n, 2**31 - 1)
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
        def views(tables, bank, image, operation):
            x = images.to_unit(bank[image].reshape(-1, *self.images.shape[1:]))
            return operations.views_of(tables, x, operation)

        whole, split = devices.EVERYWHERE, devices.SPLIT
        specs = (whole, whole, split, split)
        views = devices.on_mesh(views, self.mesh, self.config.precision, specs, split)
        draw = functools.partial(np.random.default_rng(0).integers, size=VIEWS_PER_CALL)
        pairs = [draw(high, dtype=np.int32) for high in (self.n, self.config.k)]
        shared = (self.operation_set, self.images.reshape(self.n, -1))
        arrays = (*devices.place(self.mesh, shared), *devices.place(self.mesh, pairs, split))
        return lambda: jax.block_until_ready(views(*arrays)), VIEWS_PER_CALL

    def make_gemm(self) -> tuple[Callable, int]:
        """All devices together."""
        size, precision = self.gemm_side, self.config.precision
        product = devices.on_mesh(lambda a: a @ a, self.mesh, precision, out_specs=devices.SPLIT)
        dtype = np.float32 if self.on_cpu else devices.dtype(precision)
        a = devices.place(self.mesh, np.ones((size, size), dtype))
        return lambda: jax.block_until_ready(product(a)), 2 * size**3 * self.mesh.size

    @functools.cached_property
    def _flights(self) -> list[tuple[Callable, int]]:
        """One training per device; each compiles for its own."""
        meshes = [devices.device_mesh([device]) for device in self.mesh.devices.flat]
        flights = [self.make_train(mesh) for mesh in meshes]
        for call, _ in flights:
            call()
        return flights

    def in_flight(self, seconds: float) -> dict:
        """Trainings side by side, one per device, as sweeps run them."""
        flights = self._flights
        with concurrent.futures.ThreadPoolExecutor(len(flights)) as pool:
            speed = sum(pool.map(lambda flight: rate(*flight, seconds), flights))
        return {"in_flight": len(flights), "in_flight_train_views_per_second": speed}

    def pipeline(self) -> dict:
        """One class from images to scores, as a user runs it. The first call also compiles."""
        start = time.perf_counter()
        fitted = fitting.fit(jax.random.key(0), self.images, config=self.config, mesh=self.mesh)
        trained = time.perf_counter()
        fitting.score(fitted, self.images, mesh=self.mesh)
        end = time.perf_counter()
        # At once: those of a batch in training, those of one image per device in scoring.
        views = max(self.config.batch_size, self.mesh.size * (self.config.k + 1))
        times = {"seconds": end - start, "train_seconds": trained - start}
        times |= {"score_seconds": end - trained}
        return times | {"views_bytes": views * self.images[0].size * 4}

    def device_peak(self) -> int:
        stats = self.mesh.devices.flat[0].memory_stats() or {}
        return stats.get("peak_bytes_in_use", 0)
