"""One row of speed.csv per network: e3jax and the PyTorch programs, measured in turns."""

import argparse
import contextlib
import importlib.metadata
from collections.abc import Iterator

import pandas as pd
from sweep.provenance import provenance

from e3jax import networks, runtime, training
from speed.worker import CONSOLE, Worker, ask_all, in_turns

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
_MEASURED = ["train", "score", "views"]


def measure(args: argparse.Namespace, folder: str) -> Iterator[list[dict]]:
    """A row for each network.

    Args:
      args: the command's flags.
      folder: for compiled programs, so that none is older than the command.

    Raises:
      ValueError: if a batch does not divide over the devices.
    """
    comparison = Comparison(args, folder)
    for config in comparison.configs:
        yield [comparison.measure(config)]


class Comparison:
    """What a command measures, network by network; see :func:`measure`."""

    def __init__(self, args: argparse.Namespace, folder: str):
        self.args, self.folder, self.platform = args, folder, None
        self.shape = [args.images, 32, 32, args.channels]
        quick, paper = training.quick_config(), training.paper_config(args.channels == 1)
        # A worker is asked for the platform: here JAX would take an accelerator's memory.
        with contextlib.ExitStack() as self.stack:
            hello = self._start("ours:Ours", quick).ask("hello")
        self.platform, self.devices = hello["platform"], hello["devices"]
        on_cpu = args.protocol == "auto" and self.platform == "cpu"
        self.config = quick if on_cpu or args.protocol == "quick" else paper
        protocol = "quick" if self.config is quick else "paper"
        self.constants = {"device": hello["device"], "e3jax_devices": self.devices}
        self.constants |= {"protocol": protocol, "cores": runtime.cores()}
        self.configs = list(map(self._config, args.network or [self.config.network]))
        for config in self.configs:
            CONSOLE.print(f"Plan: {config.network}, batches of {config.batch_size} views")
            if config.batch_size % self.devices:
                raise ValueError(f"--batch-size must be a multiple of the {self.devices} devices")

    def _config(self, network: str) -> training.TrainConfig:
        args, config = self.args, self.config
        size = 64 if network.endswith("-1") else 128
        size = args.batch_size or (config.batch_size if network == config.network else size)
        config = config._replace(steps=args.steps or config.steps, precision=args.precision)
        return config._replace(network=network, batch_size=size)

    def _start(self, name: str, config: training.TrainConfig, cache="pair", **options) -> Worker:
        environment = {"E3JAX_CACHE_DIR": f"{self.folder}/{cache}-{config.network}"}
        options |= {"config": config._asdict(), "shape": self.shape}
        worker = self.stack.enter_context(Worker(f"speed.{name}", environment, **options))
        platform = worker.ask("hello")["platform"]
        if platform != (self.platform or platform):
            raise ValueError(
                f"JAX runs on a {self.platform} and PyTorch on a {platform}: install both for the "
                "same device, or use --without-torch"
            )
        return worker

    def measure(self, config: training.TrainConfig) -> dict:
        """The row of a network."""
        args = self.args
        row = vars(args) | config._asdict() | provenance() | self.constants
        if not args.without_torch:
            row["versions"] += f" torch={importlib.metadata.version('torch')}"
        with contextlib.ExitStack() as self.stack:
            row |= {} if args.only_pipeline else self._pair(config)
        if args.pipeline or args.only_pipeline:
            row |= self._pipeline(config)
        return {name: row[name] for name in COLUMNS if name in row}

    def _pair(self, config: training.TrainConfig) -> dict:
        args, workers = self.args, {"": self._start("ours:Ours", config)}
        CONSOLE.print("Compiling")
        row = workers[""].ask("prepare", names=_MEASURED)
        if not args.without_torch:
            workers["tuned_"], tuned = self._tuned(config)
            row |= {f"tuned_{name}": value for name, value in tuned.items()}
        calls = [("measure", {"name": name, "seconds": args.seconds}) for name in _MEASURED]
        rates = in_turns(workers, args.rounds, *calls)
        row |= rates.median().to_dict() | ask_all(workers, "memory")
        row["gemm_flops"] = max(ask_all(workers, "gemm").values())
        if self.devices > 1:
            ours, call = {"": workers[""]}, ("in_flight", {"seconds": args.seconds})
            row |= in_turns(ours, args.rounds, call).median()
        network = networks.build(config.network, config.k)
        forward = networks.forward_flops(network, tuple(self.shape[1:]))
        for name in rates:
            share = row[name] * forward / row["gemm_flops"]
            share *= 3 if "train" in name else 1
            row[name.replace("views_per_second", "utilisation")] = share
        for name in _MEASURED if len(workers) > 1 else ():
            column = f"{name}_views_per_second"
            row |= _ratios(name, rates[column], rates[f"tuned_{column}"])
        return row

    def _tuned(self, config: training.TrainConfig) -> tuple[Worker, dict]:
        """The tuned program, compiled or eager, whichever trains faster; the other one sleeps."""
        asked, found = self.args.torch_compile, {}
        for mode in ("compile", "eager") if asked == "auto" else (asked,):
            try:
                worker = self._start("pytorch:Tuned", config, mode=mode)
                prepared = worker.ask("prepare", names=_MEASURED) | {"mode": mode}
                speed = worker.ask("measure", name="train", seconds=min(self.args.seconds, 5))
                found[speed["train_views_per_second"]] = worker, prepared
            except RuntimeError:
                # Without a compiler or Python's headers, for example, eager remains.
                if mode in ("eager", asked):
                    raise
        return found[max(found)]

    def _pipeline(self, config: training.TrainConfig) -> dict:
        CONSOLE.print("Pipelines: the first compiles, the second finds its programs on disk")
        with contextlib.ExitStack() as self.stack:
            cold = self._start("ours:Ours", config, "pipeline").ask("pipeline")["seconds"]
        with contextlib.ExitStack() as self.stack:
            workers = {"pipeline_": self._start("ours:Ours", config, "pipeline")}
            cached = workers["pipeline_"].ask("pipeline")
            if not self.args.without_torch:
                workers["straightforward_"] = self._start("pytorch:Straightforward", config)
            times = in_turns(workers, self.args.rounds, ("pipeline", {}))
            row = times.median().to_dict() | ask_all(workers, "memory")
        row |= {"pipeline_images": self.args.images, "views_bytes": cached["views_bytes"]}
        row |= {"pipeline_steps": config.num_steps(self.args.images)}
        row |= {"pipeline_cold_seconds": cold, "pipeline_cached_seconds": cached["seconds"]}
        row |= {"pipeline_warm_seconds": row["pipeline_seconds"]}
        if len(workers) > 1:
            theirs, name = times["straightforward_seconds"], "straightforward_views_bytes"
            row |= _ratios("pipeline", theirs, times["pipeline_seconds"])
            row |= {"pipeline_cold_ratio": theirs.median() / cold, name: int(row[name])}
        return row


def _ratios(name: str, above: pd.Series, below: pd.Series) -> dict:
    """Median of the rounds' ratios, and all of them: their spread is the measurement's."""
    ratios = above / below
    text = " ".join(ratios.map("{:.3f}".format))
    return {f"{name}_ratio": ratios.median(), f"{name}_ratios": text}
