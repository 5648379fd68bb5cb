"""The sides that speed.py measures, each in a worker process of its own.

A worker reads one JSON command a line and answers with one: ``speed_sides.py SIDE JOB`` builds a
side from the job, then calls the methods it is told to. Between commands it sleeps in a read, so
that the other side has the machine to itself.
"""

import contextlib
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Steps a call: few on a CPU, where a step takes long and the clock is read between calls.
_CHUNK = {"cpu": 4}
_ACCELERATOR_CHUNK = 200
# A user's chunks, see benchmark.py.
_PIPELINE_CHUNK = {"cpu": 10}
_VIEWS_AT_ONCE = 1024
_GEMM_SIDE = {"cpu": 2048}
_ACCELERATOR_GEMM_SIDE = 8192
# What makes PyTorch fast on a CPU and is no default of it: freed memory is kept, not given back to
# the system and faulted in again. Idle threads sleep, or they would slow the other side.
_TORCH_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "OMP_WAIT_POLICY": "passive",
    "KMP_BLOCKTIME": "0",
    # e3jax's tables are made by JAX: not on an accelerator, where it would take memory.
    "JAX_PLATFORMS": "cpu",
    # Compile times are those of a first run, and no compiler processes stay behind.
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
}
_JAX_ENVIRONMENT = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.45"}  # the other side is on it, too


class Worker:
    """A side in its own process, seen from the parent.

    Args:
      side: a key of SIDES.
      job: what the side's constructor takes, as JSON.
      environment: variables on top of the parent's.
    """

    def __init__(self, side: str, job: dict, environment: dict[str, str] | None = None):
        ours = _JAX_ENVIRONMENT if side in ("e3jax", "growth") else _TORCH_ENVIRONMENT
        self.side = side
        self._process = subprocess.Popen(
            [sys.executable, __file__, side, json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ours | (environment or {}),
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, failure, *_) -> None:
        if failure:
            self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def ask(self, method: str, **arguments) -> Any:
        """Calls a method of the side and returns its answer."""
        try:
            print(json.dumps([method, arguments]), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(f"the worker of {self.side} ended in {method}: see its words above")
        return json.loads(answer)


def rate(call: Callable[[], None], count: int, seconds: float) -> float:
    """Things a second, where a call does ``count``; it returns when they are done."""
    start, done = time.perf_counter(), 0
    while True:
        call()
        done += count
        if (elapsed := time.perf_counter() - start) >= seconds:
            return done / elapsed


def compile_seconds(call: Callable[[], None]) -> float:
    """How much longer the first call takes than a later one."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return max(times[0] - statistics.median(times[1:]), 0.0)


def resident_bytes() -> int:
    """Of this process now; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * resource.getpagesize()


def peak_resident_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class JaxSide:
    """e3jax through its public functions.

    Args:
      images: a .npy file, uint8 [n, h, w, c].
      config: fields of TrainConfig.
    """

    def __init__(self, images: str, config: dict):
        import jax
        import runtime

        import e3jax
        from e3jax import devices, scoring, training

        self.jax, self.training, self.scoring = jax, training, scoring
        self.devices = devices
        runtime.start()
        self.mesh = devices.device_mesh()
        self.device = self.mesh.devices.flat[0]
        self.images = np.load(images)
        self.config = training.TrainConfig(**config)
        self.operations = e3jax.operation_set()
        self.k, self.n = len(self.operations), len(self.images)
        self.chunk = _CHUNK.get(self.device.platform, _ACCELERATOR_CHUNK)
        self.imports = resident_bytes()
        self._flights = []

    def hello(self) -> dict:
        return {
            "platform": self.device.platform,
            "device": f"{self.mesh.size} x {self.device.device_kind}",
            "devices": self.mesh.size,
            "n": self.n,
            "k": self.k,
        }

    def prepare(self) -> dict:
        """Builds everything; the seconds that first calls take longer."""
        self._train_call = self._trainer_call(self.mesh)
        train = compile_seconds(self._train_call)
        # A device's images go one after the other, so fewer a call change nothing but how often
        # the clock is read.
        self.scored = 8 * self.mesh.size if self.device.platform == "cpu" else 64
        self.scored = max(min(self.scored, self.n // self.mesh.size * self.mesh.size), 1)
        scorer = self._scorer(self.scored)
        self._score_call = lambda: scorer(self._variables, self.images[: self.scored])
        score = compile_seconds(self._score_call)
        self._views_call = self._make_views_call()
        compile_seconds(self._views_call)
        return {"train": train, "score": score, "mode": "jit"}

    def _scorer(self, images_per_call: int):
        return self.scoring.Scorer(
            self.config.network,
            self.operations,
            self.mesh,
            self.config.precision,
            images_per_call=images_per_call,
        )

    def _trainer_call(self, mesh) -> Callable[[], None]:
        """A chunk of steps on a mesh; each goes on where the last stopped."""
        trainer = self.training.make_trainer(self.config, self.operations, mesh, self.chunk)
        state = trainer.init(self.jax.random.key(0), self.images.shape[-1])
        # Training donates its state, scoring needs one that stays.
        self._variables = self.jax.tree.map(lambda a: a.copy(), state.variables)
        bank = self.training.place_bank(trainer.mesh, self.images)

        def call() -> None:
            nonlocal state
            # A training without end: the last step is never reached.
            state, _ = trainer.advance(state, bank, self.n, 2**31 - 1)
            self.jax.block_until_ready(state)

        return call

    def _make_views_call(self) -> Callable[[], None]:
        from jax.sharding import PartitionSpec

        from e3jax import operations

        jax, training, devices = self.jax, self.training, self.devices
        everywhere, split = PartitionSpec(), PartitionSpec(devices.AXIS)

        def views(tables, bank, image, label):
            images = bank[image].reshape(-1, *self.images.shape[1:])
            return operations.views_of(tables, training.to_unit(images), label)

        views = jax.jit(
            jax.shard_map(
                views,
                mesh=self.mesh,
                in_specs=(everywhere, everywhere, split, split),
                out_specs=split,
                check_vma=False,
            )
        )
        random = np.random.default_rng(0)
        pairs = [random.integers(0, high, _VIEWS_AT_ONCE, np.int32) for high in (self.n, self.k)]
        pairs = devices.place(self.mesh, pairs, split)
        tables = devices.place(self.mesh, self.operations)
        bank = training.place_bank(self.mesh, self.images)
        return lambda: jax.block_until_ready(views(tables, bank, *pairs))

    def views(self, seconds: float) -> float:
        return rate(self._views_call, _VIEWS_AT_ONCE, seconds)

    def train(self, seconds: float) -> float:
        return rate(self._train_call, self.chunk * self.config.batch_size, seconds)

    def score(self, seconds: float) -> float:
        return rate(self._score_call, self.scored * self.k, seconds)

    def prepare_in_flight(self) -> int:
        """One training a device; each compiles for its own."""
        meshes = [self.devices.device_mesh([device]) for device in self.mesh.devices.flat]
        self._flights = [self._trainer_call(mesh) for mesh in meshes]
        for call in self._flights:
            call()
        return len(self._flights)

    def in_flight(self, seconds: float) -> float:
        """Views a second of all trainings together."""
        views, rates = self.chunk * self.config.batch_size, []
        threads = [
            threading.Thread(target=lambda call=call: rates.append(rate(call, views, seconds)))
            for call in self._flights
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(rates)

    def gemm(self, seconds: float) -> float:
        """FLOP a second of a large matrix product, all devices together."""
        from jax.sharding import PartitionSpec

        jax, devices = self.jax, self.devices
        on_cpu = self.device.platform == "cpu"
        size = _GEMM_SIDE.get(self.device.platform, _ACCELERATOR_GEMM_SIDE)
        product = jax.jit(
            jax.shard_map(
                lambda a: a @ a,
                mesh=self.mesh,
                in_specs=PartitionSpec(),
                out_specs=PartitionSpec(devices.AXIS),
                check_vma=False,
            )
        )
        a = devices.place(self.mesh, np.ones((size, size), np.float32))
        a = a if on_cpu else a.astype(devices.dtype(self.config.precision))
        jax.block_until_ready(product(a))
        flops = 2 * size**3 * self.mesh.size
        return rate(lambda: jax.block_until_ready(product(a)), flops, seconds)

    def pipeline(self) -> dict:
        """One class: views, training, scoring. The first call also builds and compiles."""
        start = time.perf_counter()
        trainer, scorer = self._pipeline_functions
        state = trainer.init(self.jax.random.key(0), self.images.shape[-1])
        bank = self.training.place_bank(trainer.mesh, self.images)
        total = self.config.num_steps(self.n, self.k)
        state = self.jax.block_until_ready(self.training.train(trainer, state, bank, self.n, total))
        trained = time.perf_counter()
        scorer(state.variables, self.images)
        now = time.perf_counter()
        # In training; scoring makes one image's views at a time on each device.
        views = max(self.config.batch_size, self.mesh.size * (self.k + 1))
        return {
            "seconds": now - start,
            "train": trained - start,
            "score": now - trained,
            "views_bytes": views * int(np.prod(self.images.shape[1:])) * 4,
        }

    @functools.cached_property
    def _pipeline_functions(self) -> tuple:
        chunk = _PIPELINE_CHUNK.get(self.device.platform, _ACCELERATOR_CHUNK)
        trainer = self.training.make_trainer(self.config, self.operations, self.mesh, chunk)
        # The default, but a set smaller than that is not filled up to it.
        devices = self.mesh.size
        return trainer, self._scorer(min(64, -(-self.n // devices) * devices))

    def memory(self) -> dict:
        stats = self.device.memory_stats() or {}
        return {
            "imports": self.imports,
            "peak": peak_resident_bytes(),
            "resident": resident_bytes(),
            "device_peak": stats.get("peak_bytes_in_use", 0),
        }


class GrowthSide(JaxSide):
    """e3jax on banks of several sizes; all share one training function.

    Args:
      counts: images of each bank, random grey ones.
      config: fields of TrainConfig.
    """

    def __init__(self, counts: list[int], config: dict):
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "none.npy")
            np.save(path, np.zeros((1, 32, 32, 1), np.uint8))
            super().__init__(str(path), config)
        self.banks = {}
        self._scored = 8 * self.mesh.size
        self._score = self._scorer(self._scored)
        self._trainer = self.training.make_trainer(
            self.config, self.operations, self.mesh, self.chunk
        )
        for count in counts:
            self._add(count)

    def _add(self, count: int) -> None:
        images = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 1), np.uint8)
        state = self._trainer.init(self.jax.random.key(0), 1)
        variables = self.jax.tree.map(lambda a: a.copy(), state.variables)
        bank = self.training.place_bank(self._trainer.mesh, images)
        self.banks[count] = [images, bank, state, variables]

    def prepare(self) -> None:
        for count in self.banks:
            self._train_once(count)
            self._score_once(count)

    def _train_once(self, count: int) -> None:
        bank = self.banks[count]
        bank[2], _ = self._trainer.advance(bank[2], bank[1], count, 2**31 - 1)
        self.jax.block_until_ready(bank[2])

    def _score_once(self, count: int) -> None:
        images, _, _, variables = self.banks[count]
        # From the middle: a slice at the start of every bank would stay in cache alike.
        start = max(len(images) - self._scored, 0) // 2
        self._score(variables, images[start : start + self._scored])

    def train_on(self, count: int, seconds: float) -> float:
        views = self.chunk * self.config.batch_size
        return rate(lambda: self._train_once(count), views, seconds)

    def score_on(self, count: int, seconds: float) -> float:
        return rate(lambda: self._score_once(count), self._scored * self.k, seconds)


class TorchSide:
    """What the two peers share."""

    def __init__(self, images: str, config: dict):
        import torch
        import torch_peers

        from e3jax import training

        self.torch, self.peers = torch, torch_peers
        self.images = np.load(images)
        self.config = training.TrainConfig(**config)
        self.platform = "cuda" if torch.cuda.is_available() else "cpu"
        if self.platform == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        self.imports = resident_bytes()

    def hello(self) -> dict:
        cuda = self.platform == "cuda"
        name = self.torch.cuda.get_device_name() if cuda else "cpu"
        return {"platform": self.platform, "device": name, "versions": self.torch.__version__}

    def memory(self) -> dict:
        cuda = self.platform == "cuda"
        return {
            "imports": self.imports,
            "peak": peak_resident_bytes(),
            "resident": resident_bytes(),
            "device_peak": self.torch.cuda.max_memory_allocated() if cuda else 0,
        }


class TunedSide(TorchSide):
    """The peer that PyTorch's own means make fast."""

    def prepare(self, mode: str, seconds: float) -> dict:
        """Builds the peer; ``mode`` "auto" keeps the faster of "compile" and "eager"."""
        from e3jax import operations

        self.operations = operations.operation_set()
        self.chunk = _CHUNK.get(self.platform, _ACCELERATOR_CHUNK)
        modes, found = ("compile", "eager") if mode == "auto" else (mode,), {}
        for name in modes:
            try:
                self._use(name == "compile")
                seconds_of = {
                    "train": compile_seconds(self._train_call),
                    "score": compile_seconds(self._score_call),
                }
                compile_seconds(self._views_call)
                speed = self.train(seconds) if len(modes) > 1 else 0.0
            except Exception as error:
                # Without a compiler or Python's headers, say: then eager it is.
                if name == "eager" or mode == "compile":
                    raise
                print(f"torch.compile does not work here: {error}"[:500], file=sys.stderr)
                continue
            found[name] = (speed, seconds_of, self.peer)
        best = max(found, key=lambda name: found[name][0])
        speeds = {name: round(speed, 1) for name, (speed, *_) in found.items()}
        _, seconds_of, self.peer = found[best]
        return seconds_of | {"mode": best, "speeds": speeds}

    def _use(self, compiled: bool) -> None:
        self.peer = self.peers.Tuned(
            self.images, self.config, self.operations, self.platform, compiled
        )
        at_once = 64 if self.platform == "cuda" else 8
        self.scored = min(at_once, len(self.images))

    def _train_call(self) -> None:
        self.peer.train(self.chunk)
        self.peer.wait()

    def _score_call(self) -> None:
        self.peer.score(self.scored)

    def _views_call(self) -> None:
        self.peer.random_views(_VIEWS_AT_ONCE)
        self.peer.wait()

    def views(self, seconds: float) -> float:
        return rate(self._views_call, _VIEWS_AT_ONCE, seconds)

    def train(self, seconds: float) -> float:
        return rate(self._train_call, self.chunk * self.config.batch_size, seconds)

    def score(self, seconds: float) -> float:
        return rate(self._score_call, self.scored * len(self.operations), seconds)

    def gemm(self, seconds: float) -> float:
        size = _GEMM_SIDE.get(self.platform, _ACCELERATOR_GEMM_SIDE)
        on_cpu = self.platform == "cpu"
        dtype = (
            self.torch.float32
            if on_cpu
            else getattr(self.torch, self.config.precision.replace("tensorfloat", "float"))
        )
        a = self.torch.ones((size, size), dtype=dtype, device=self.platform)

        def product() -> None:
            a @ a
            self.peer.wait()

        product()
        return rate(product, 2 * size**3, seconds)


class StraightforwardSide(TorchSide):
    """The peer that works as the original does."""

    def pipeline(self) -> dict:
        start = time.perf_counter()
        peer = self.peers.Straightforward(self.images, self.config, self.platform)
        made = time.perf_counter()
        peer.train()
        if self.platform == "cuda":
            self.torch.cuda.synchronize()
        trained = time.perf_counter()
        peer.score()
        now = time.perf_counter()
        return {
            "seconds": now - start,
            "views": made - start,
            "train": trained - made,
            "score": now - trained,
            "views_bytes": peer.views.nbytes,
        }


SIDES = {
    "e3jax": JaxSide,
    "growth": GrowthSide,
    "tuned": TunedSide,
    "straightforward": StraightforwardSide,
}


def main() -> int:
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    side = SIDES[sys.argv[1]](**json.loads(sys.argv[2]))
    for line in sys.stdin:
        method, arguments = json.loads(line)
        print(json.dumps(getattr(side, method)(**arguments)), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
