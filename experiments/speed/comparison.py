"""One row of speed.csv per network: e3jax and the PyTorch programs, measured in turns."""

import argparse
import contextlib
import functools
import importlib.metadata
from pathlib import Path

import numpy as np
import pandas as pd
from speed.worker import CONSOLE, Worker, take_turns
from sweep import provenance

from e3jax import contamination, datasets, networks, runtime, training

# "tuned" and "straightforward" are the PyTorch programs; what has no prefix is e3jax. Bytes and
# seconds, rates in views per second; *_utilisation is model FLOP/s over the faster backend's large
# matrix product; *_imports_rss is what a backend's packages take before any work; cold: nothing
# compiled before, cached: compiled by an earlier process, warm: a later class of the same process.
COLUMNS = (
    "protocol,network,optimizer,channels,images,batch_size,precision,rounds,seconds,device,cores,"
    "e3jax_devices,tuned_mode,train_views_per_second,tuned_train_views_per_second,train_ratio,"
    "train_ratios,score_views_per_second,tuned_score_views_per_second,score_ratio,score_ratios,"
    "views_views_per_second,tuned_views_views_per_second,views_ratio,views_ratios,in_flight,"
    "in_flight_train_views_per_second,gemm_flops,train_utilisation,tuned_train_utilisation,"
    "score_utilisation,tuned_score_utilisation,train_compile_seconds,tuned_train_compile_seconds,"
    "score_compile_seconds,tuned_score_compile_seconds,peak_rss,tuned_peak_rss,imports_rss,"
    "tuned_imports_rss,device_peak,tuned_device_peak,pipeline_images,pipeline_steps,pipeline_ratio,"
    "pipeline_ratios,pipeline_cold_ratio,pipeline_warm_seconds,pipeline_cached_seconds,"
    "pipeline_cold_seconds,pipeline_train_seconds,pipeline_score_seconds,straightforward_seconds,"
    "straightforward_views_seconds,straightforward_train_seconds,straightforward_score_seconds,"
    "views_bytes,straightforward_views_bytes,pipeline_peak_rss,straightforward_peak_rss,versions,"
    "commit"
).split(",")
_MEASURED = ("train", "score", "views")
# The other backends' processes are on the accelerator, too.
OURS = ("speed.ours:Ours", {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.45"})
_TORCH = {
    # Fast on a CPU, and no default of PyTorch: freed memory is kept, not given back to the system.
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
    # Idle threads sleep, or they would slow the other backends.
    "OMP_WAIT_POLICY": "passive",
    "KMP_BLOCKTIME": "0",
    # JAX makes e3jax's tables: not on an accelerator, where it would take memory.
    "JAX_PLATFORMS": "cpu",
    # Compile times are those of a first run, and no compiler processes stay behind.
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
}
_TUNED, _STRAIGHTFORWARD = (
    ("speed.tuned:Tuned", _TORCH),
    ("speed.straightforward:Straightforward", _TORCH),
)


class Comparison:
    """What a command measures, network by network.

    Args:
      args: the command's flags.
      folder: for temporary files.

    Raises:
      ValueError: if the batch does not divide over the devices.
    """

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.args, self.folder, self.data = args, folder, folder / "images.npy"
        np.save(self.data, _images(args.images, args.channels))
        # A worker is asked for the platform: here JAX would take an accelerator's memory.
        with self._worker(OURS, training.quick_config()) as worker:
            self.hello = worker.ask("hello")
        on_cpu = self.hello["platform"] == "cpu"
        self.protocol = args.protocol
        if self.protocol == "auto":
            self.protocol = "quick" if on_cpu else "paper"
        is_quick = self.protocol == "quick"
        self.config = (
            training.quick_config() if is_quick else training.paper_config(args.channels == 1)
        )
        self.networks = args.network or [self.config.network]
        CONSOLE.print(f"Device: {self.hello['device']}, protocol {self.protocol}")
        for config in map(self.config_of, self.networks):
            CONSOLE.print(
                f"Plan: {config.network}: batches of {config.batch_size} views, {config.precision}"
            )
            if config.batch_size % self.hello["devices"]:
                raise ValueError(
                    f"--batch-size must be a multiple of the {self.hello['devices']} devices"
                )

    def config_of(self, network: str) -> training.TrainConfig:
        args, config = self.args, self.config._replace(network=network)
        if network != self.config.network:
            config = config._replace(batch_size=64 if network.endswith("-1") else 128)
        return config._replace(
            precision=args.precision,
            batch_size=args.batch_size or config.batch_size,
            steps=args.steps or config.steps,
        )

    @contextlib.contextmanager
    def _worker(self, backend: tuple, config: training.TrainConfig, cache: str = "pair"):
        """A backend in a process; its compiled programs are kept for this command alone."""
        name, environment = backend
        cache = {"E3JAX_CACHE_DIR": str(self.folder / f"{cache}-{config.network}")}
        with Worker(
            name, environment | cache, config=config._asdict(), data=str(self.data)
        ) as worker:
            if backend is not OURS:
                ours, theirs = self.hello["platform"], worker.ask("hello")["platform"]
                if theirs != {"gpu": "cuda"}.get(ours, ours):
                    raise ValueError(
                        f"JAX runs on {ours} and PyTorch on {theirs}: install both for the same device, or use --without-torch"
                    )
            yield worker

    def measure(self, network: str) -> dict:
        """The row of a network."""
        args, config = self.args, self.config_of(network)
        row = (
            vars(args)
            | config._asdict()
            | provenance()
            | {
                "protocol": self.protocol,
                "device": self.hello["device"],
                "cores": runtime.cores(),
                "e3jax_devices": self.hello["devices"],
            }
        )
        if not args.without_torch:
            row["versions"] += f" torch={importlib.metadata.version('torch')}"
        if not args.only_pipeline:
            row |= self._pair(config)
        if args.pipeline or args.only_pipeline:
            row |= self._pipeline(config)
        return {name: row[name] for name in COLUMNS if name in row}

    def _pair(self, config: training.TrainConfig) -> dict:
        args, row, workers = self.args, {}, {}
        with contextlib.ExitStack() as stack:
            for prefix, backend in [("", OURS), ("tuned_", _TUNED)][: 2 - args.without_torch]:
                workers[prefix] = stack.enter_context(self._worker(backend, config))
                CONSOLE.print(f"{backend[0]}: compiling")
                options = {"mode": args.torch_compile, "seconds": min(args.seconds, 5)}
                prepared = workers[prefix].ask("prepare", **(options if prefix else {}))
                row |= {prefix + name: value for name, value in prepared.items()}
            calls = {
                prefix + name: functools.partial(
                    worker.ask, "measure", name=name, seconds=args.seconds
                )
                for name in _MEASURED
                for prefix, worker in workers.items()
            }
            rates = pd.DataFrame(take_turns(calls, args.rounds))
            for prefix, worker in workers.items():
                row |= {prefix + name: value for name, value in worker.ask("memory").items()}
            row["gemm_flops"] = max(worker.ask("gemm", seconds=1.0) for worker in workers.values())
            row |= self._in_flight(workers[""])
        network = networks.build(config.network, config.k)
        forward = networks.forward_flops(network, (32, 32, args.channels))
        for name, speed in rates.median().items():
            flops = speed * forward * (3 if name.endswith("train") else 1)
            row |= {
                f"{name}_views_per_second": speed,
                f"{name}_utilisation": flops / row["gemm_flops"],
            }
        for name in _MEASURED if len(workers) > 1 else ():
            row |= _ratios(name, rates[name], rates[f"tuned_{name}"])
        return row

    def _in_flight(self, worker: Worker) -> dict:
        """Trainings side by side, one per device, as sweeps run them."""
        if self.hello["devices"] == 1:
            return {}
        count = worker.ask("prepare_in_flight")
        call = functools.partial(worker.ask, "in_flight", seconds=self.args.seconds)
        speeds = take_turns({"in flight": call}, self.args.rounds)["in flight"]
        return {"in_flight": count, "in_flight_train_views_per_second": float(np.median(speeds))}

    def _pipeline(self, config: training.TrainConfig) -> dict:
        images = self.args.images
        with self._worker(OURS, config, "pipeline") as worker:
            cold = worker.ask("pipeline")
        with contextlib.ExitStack() as stack:
            workers = {"e3jax": stack.enter_context(self._worker(OURS, config, "pipeline"))}
            cached = workers["e3jax"].ask("pipeline")
            if not self.args.without_torch:
                workers["straightforward"] = stack.enter_context(
                    self._worker(_STRAIGHTFORWARD, config)
                )
            calls = {
                name: functools.partial(worker.ask, "pipeline") for name, worker in workers.items()
            }
            times = {
                name: pd.DataFrame(a) for name, a in take_turns(calls, self.args.rounds).items()
            }
            peaks = {name: worker.ask("memory")["peak_rss"] for name, worker in workers.items()}
        ours, theirs = times["e3jax"], times.get("straightforward")
        row = {
            "pipeline_images": images,
            "pipeline_steps": config.num_steps(images),
            "pipeline_cold_seconds": cold["seconds"],
            "pipeline_cached_seconds": cached["seconds"],
            "pipeline_warm_seconds": ours["seconds"].median(),
            "pipeline_train_seconds": ours["train_seconds"].median(),
            "pipeline_score_seconds": ours["score_seconds"].median(),
            "views_bytes": cached["views_bytes"],
            "pipeline_peak_rss": peaks["e3jax"],
        }
        if theirs is not None:
            row |= theirs.median().add_prefix("straightforward_") | _ratios(
                "pipeline", theirs["seconds"], ours["seconds"]
            )
            row |= {
                "straightforward_views_bytes": int(theirs["views_bytes"].median()),
                "straightforward_peak_rss": peaks["straightforward"],
                "pipeline_cold_ratio": theirs["seconds"].median() / cold["seconds"],
            }
        return row


def _images(n: int, channels: int) -> np.ndarray:
    """A contaminated set of real digits; colour ones are the digits three times."""
    data = datasets.load("mnist", source="embedded", announce=CONSOLE.print)
    counts = np.bincount(data.labels)
    if n <= counts.max():
        images = contamination.contaminate(
            data.images, data.labels, int(counts.argmax()), 0.1, 0, max_images=n
        ).images
    else:  # more than a class has: speed does not depend on what is in an image
        images = np.resize(data.images, (n, *data.images.shape[1:]))
    return np.repeat(images, channels, axis=-1)


def _ratios(name: str, above: pd.Series, below: pd.Series) -> dict:
    """Median of the rounds' ratios, and all of them: their spread is the measurement's."""
    ratios = above / below
    return {
        f"{name}_ratio": ratios.median(),
        f"{name}_ratios": " ".join(ratios.map("{:.3f}".format)),
    }
