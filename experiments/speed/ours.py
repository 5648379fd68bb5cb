"""e3jax as a backend."""

import concurrent.futures
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from speed.backend import GEMM_SIDE, STEPS_PER_CALL, VIEWS_PER_CALL, Backend, rate

from e3jax import devices, fitting, images, operations, runtime, training
from e3jax.methods import E3OUTLIER


class Ours(Backend):
    """e3jax through its public functions.

    Args:
      config: fields of a TrainConfig.
      data: a .npy file of images uint8 [n, h, w, c], or that shape, for random ones.
      gpu_options: changes of what XLA is told on GPUs.
    """

    def __init__(self, config: dict, data: str | list[int], gpu_options: dict | None = None):
        devices.GPU_OPTIONS.update(gpu_options or {})
        runtime.prepare()
        self.mesh = devices.device_mesh()
        super().__init__("cpu" if devices.is_cpu(self.mesh) else "accelerator")
        self.config = training.TrainConfig(**config)
        if isinstance(data, str):
            self.images = np.load(data)
        else:
            self.images = np.random.default_rng(0).integers(0, 256, data, np.uint8)
        self.n, self.side, _, self.channels = self.images.shape
        self.operation_set = operations.operation_set(self.config.operations, self.side)

    def hello(self) -> dict:
        device = self.mesh.devices.flat[0]
        return {
            "platform": device.platform,
            "device": f"{self.mesh.size} x {device.device_kind}",
            "devices": self.mesh.size,
        }

    def prepare(self, with_views: bool = True) -> dict:
        """Builds and compiles what is measured; returns the seconds of compiling."""
        train, start = self._training(self.mesh)
        # On a CPU each device takes one image at a time, so a small call measures the same.
        per_device = 8 if self.kind == "cpu" else 256
        size = max(min(per_device, self.n // self.mesh.size) * self.mesh.size, 1)
        # From the middle: in a small bank as in a large one, the start would stay in the cache.
        first = max(self.n - size, 0) // 2
        some = self.images[first : first + size]
        self.calls = {
            "train": (train, STEPS_PER_CALL[self.kind] * self.config.batch_size),
            "score": (lambda: fitting.score(start, some, mesh=self.mesh), size * self.config.k),
        }
        if with_views:
            self.calls["views"] = (self._views(), VIEWS_PER_CALL)
        return self.compile()

    def _training(self, mesh: Any) -> tuple[Callable[[], None], fitting.Fitted]:
        """A call that trains for a few steps, from where the last one stopped; and the start."""
        config = self.config
        trainer = training.make_trainer(
            config.network,
            E3OUTLIER.loss,
            training.make_optimizer(config),
            self.side,
            self.operation_set,
            batch_size=config.batch_size,
            precision=config.precision,
            mesh=mesh,
            steps_per_call=STEPS_PER_CALL[self.kind],
            metrics=E3OUTLIER.metrics,
        )
        state = trainer.init(jax.random.key(0), self.channels)
        # Training donates its state, and scoring needs one that stays.
        start = fitting.Fitted(
            E3OUTLIER, config, self.side, jax.tree.map(lambda a: a.copy(), state), 0
        )
        bank = training.place_bank(trainer.mesh, self.images)

        def call() -> None:
            nonlocal state
            # A training without end: its last step is never reached.
            state, _ = trainer.run_steps(state, bank, self.n, 2**31 - 1)
            jax.block_until_ready(state)

        return call, start

    def _views(self) -> Callable[[], None]:
        def views(tables, bank, image, operation):
            x = images.to_unit(bank[image].reshape(-1, *self.images.shape[1:]))
            return operations.views_of(tables, x, operation)

        split = (devices.EVERYWHERE, devices.EVERYWHERE, devices.SPLIT, devices.SPLIT)
        views = devices.on_mesh(views, self.mesh, self.config.precision, split, devices.SPLIT)
        k, random_of = self.config.k, np.random.default_rng(0).integers
        pairs = [random_of(0, high, VIEWS_PER_CALL, np.int32) for high in (self.n, k)]
        pairs = devices.place(self.mesh, pairs, devices.SPLIT)
        tables = devices.place(self.mesh, self.operation_set)
        bank = training.place_bank(self.mesh, self.images)
        return lambda: jax.block_until_ready(views(tables, bank, *pairs))

    def prepare_in_flight(self) -> int:
        """One training per device; each compiles for its own."""
        meshes = [devices.device_mesh([device]) for device in self.mesh.devices.flat]
        self.flights = [self._training(mesh)[0] for mesh in meshes]
        for call in self.flights:
            call()
        return len(self.flights)

    def in_flight(self, seconds: float) -> float:
        """Views per second of all trainings together."""
        _, views = self.calls["train"]
        with concurrent.futures.ThreadPoolExecutor(len(self.flights)) as pool:
            return sum(pool.map(lambda call: rate(call, views, seconds), self.flights))

    def make_gemm(self) -> tuple[Callable[[], None], int]:
        """All devices together."""
        size, precision = GEMM_SIDE[self.kind], self.config.precision
        product = devices.on_mesh(lambda a: a @ a, self.mesh, precision, out_specs=devices.SPLIT)
        dtype = np.float32 if self.kind == "cpu" else devices.dtype(precision)
        a = devices.place(self.mesh, np.ones((size, size), dtype))
        return lambda: jax.block_until_ready(product(a)), 2 * size**3 * self.mesh.size

    def pipeline(self) -> dict:
        """One class from images to scores, as a user runs it. The first call also compiles."""
        start = time.perf_counter()
        fitted = fitting.fit(jax.random.key(0), self.images, E3OUTLIER, self.config, mesh=self.mesh)
        trained = time.perf_counter()
        fitting.score(fitted, self.images, mesh=self.mesh)
        end = time.perf_counter()
        # At once: those of a batch in training, those of one image per device in scoring.
        views = max(self.config.batch_size, self.mesh.size * (self.config.k + 1))
        return {
            "seconds": end - start,
            "train_seconds": trained - start,
            "score_seconds": end - trained,
            "views_bytes": views * self.images[0].size * 4,
        }

    def device_peak(self) -> int:
        stats = self.mesh.devices.flat[0].memory_stats() or {}
        return stats.get("peak_bytes_in_use", 0)
