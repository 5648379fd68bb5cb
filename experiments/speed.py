"""Measures e3jax's speed and memory, against two PyTorch programs of the same method.

The sides take turns, each in a process of its own while the other sleeps, so that what else
the machine does falls on both; numbers are medians over the rounds, ratios medians of the rounds'
ratios. The last line is for programs: train_ratio= score_ratio= pipeline_ratio=, above 1 where
e3jax is faster, nan where not measured.
"""

import argparse
import contextlib
import csv
import importlib.metadata
import importlib.util
import re
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import protocols
import runtime
import speed_growth
import speed_sides
import sweep

from e3jax import contamination, datasets, networks, training

_MEASURED = ("train", "score", "views")
_SIDES = ("e3jax", "tuned")
_FEWEST_IMAGES = 20  # two outliers among them
# One row a network. "tuned" and "straightforward" are the PyTorch programs of torch_peers.py;
# what has no prefix is e3jax. Bytes and seconds, rates in views a second; *_utilisation is model
# FLOP/s over the faster side's large matrix product; *_imports_rss is what a side's packages take
# before any work; cold: nothing compiled before, cached: compiled by an earlier process, warm:
# a later class of the same process.
COLUMNS = (
    "protocol,network,optimizer,channels,images,batch_size,precision,rounds,seconds,device,cores,"
    "e3jax_devices,tuned_mode,"
    "train_views_per_second,tuned_train_views_per_second,train_ratio,train_ratios,"
    "score_views_per_second,tuned_score_views_per_second,score_ratio,score_ratios,"
    "views_views_per_second,tuned_views_views_per_second,views_ratio,views_ratios,"
    "in_flight,in_flight_train_views_per_second,"
    "gemm_flops,train_utilisation,tuned_train_utilisation,score_utilisation,"
    "tuned_score_utilisation,"
    "train_compile_seconds,tuned_train_compile_seconds,score_compile_seconds,"
    "tuned_score_compile_seconds,"
    "peak_rss,tuned_peak_rss,imports_rss,tuned_imports_rss,device_peak,tuned_device_peak,"
    "pipeline_images,pipeline_steps,pipeline_ratio,pipeline_ratios,pipeline_cold_ratio,"
    "pipeline_warm_seconds,"
    "pipeline_cached_seconds,pipeline_cold_seconds,pipeline_train_seconds,pipeline_score_seconds,"
    "straightforward_seconds,straightforward_views_seconds,straightforward_train_seconds,"
    "straightforward_score_seconds,views_bytes,straightforward_views_bytes,"
    "pipeline_peak_rss,straightforward_peak_rss,versions,commit"
).split(",")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add(
        "--protocol",
        default="auto",
        choices=("auto", "paper", "quick"),
        help="whose network, batch and optimizer; auto: paper on an accelerator, quick on a CPU",
    )
    add("--network", nargs="+", metavar="wrn-DEPTH-WIDTH", help="default: the protocol's")
    add(
        "--batch-size",
        type=runtime.positive,
        help="views a step (default: the protocol's 64 or 128 for its own network; for another 64 "
        "up to width 1, else 128)",
    )
    protocols.add_precision(parser)
    add("--channels", type=int, default=1, choices=(1, 3), help="of the images")
    add(
        "--images",
        type=runtime.positive,
        default=500,
        help="images in the bank, and of the pipeline",
    )
    add(
        "--steps",
        type=runtime.positive,
        help="of the pipeline's training (default: the protocol's)",
    )
    add("--rounds", type=runtime.positive, default=3, help="turns of each side")
    add("--seconds", type=float, default=10.0, help="of each measurement, at least")
    add("--without-torch", action="store_true", help="measure e3jax alone")
    add(
        "--torch-compile",
        default="auto",
        choices=("auto", "compile", "eager"),
        help="of the tuned program; auto: measured, the faster is kept",
    )
    add("--pipeline", action="store_true", help="also time one class from images to scores")
    add("--only-pipeline", action="store_true", help="time that alone")
    add("--growth", action="store_true", help="instead: cost a view as the set and devices grow")
    add("--growth-images", type=runtime.positive, nargs="+", default=[10**3, 10**4, 10**5, 10**6])
    add(
        "--growth-devices", type=runtime.positive, nargs="+", default=[1, 2, 4, 8], help="simulated"
    )
    add("--results-dir", default="results", help="where speed.csv and growth.csv grow by rows")
    add("--out", help="another file than RESULTS_DIR/speed.csv (or growth.csv)")
    arguments = parser.parse_args()
    for name in arguments.network or ():
        if not re.fullmatch(r"wrn-(\d+)-([1-9]\d*)", name) or (int(name.split("-")[1]) - 4) % 6:
            parser.error(f"unknown network {name!r}: expected wrn-DEPTH-WIDTH, as in wrn-10-4")
    if arguments.images < _FEWEST_IMAGES:
        parser.error(f"--images must be at least {_FEWEST_IMAGES}, got {arguments.images}")
    if arguments.seconds <= 0:
        parser.error("--seconds must be more than 0")
    return arguments


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    arguments = parse_arguments()
    if importlib.util.find_spec("torch") is None and not (
        arguments.without_torch or arguments.growth
    ):
        say(
            "error: the programs that e3jax is measured against need PyTorch: "
            "pip install torch, or measure e3jax alone with --without-torch"
        )
        return 2
    name = "growth.csv" if arguments.growth else "speed.csv"
    path = Path(arguments.out or Path(arguments.results_dir, name))
    columns = speed_growth.COLUMNS if arguments.growth else COLUMNS
    try:
        append_rows(path, columns, [])  # finds out now what it would say after an hour
        if arguments.growth:
            for rows in speed_growth.measure(arguments, say):
                append_rows(path, columns, rows)
            print("train_ratio=nan score_ratio=nan pipeline_ratio=nan")
        else:
            _measure_networks(arguments, path)
    except (ValueError, OSError, RuntimeError) as error:
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        say("Stopped. Finished rows are kept.")
        return 130
    return 0


def _measure_networks(arguments: argparse.Namespace, path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(arguments, Path(folder))
        plan.announce()
        for network in plan.networks:
            row = plan.measure(network)
            append_rows(path, COLUMNS, [row])
            _print_table(row)
            line = " ".join(
                f"{name}_ratio={row.get(f'{name}_ratio', float('nan')):.3f}"
                for name in ("train", "score", "pipeline")
            )
            print(line if network == plan.networks[-1] else f"network={network} {line}", flush=True)
    say(f"Rows are in {path}")


def append_rows(path: Path, columns: list[str], rows: list[dict]) -> None:
    """Adds rows to a table; a new one gets its header.

    Raises:
      ValueError: if the file has other columns.
    """
    if path.exists() and path.read_text().splitlines()[:1] != [",".join(columns)]:
        raise ValueError(f"{path} has other columns than this program writes: move it away")
    if not rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        if new:
            writer.writeheader()
        for row in rows:
            writer.writerow({c: f"{v:.6g}" if isinstance(v, float) else v for c, v in row.items()})


def _print_table(row: dict) -> None:
    """What was measured, one line each."""
    print(f"{row['network']}, {row['protocol']} protocol, {row['device']}")
    for name in COLUMNS[COLUMNS.index("e3jax_devices") : COLUMNS.index("versions")]:
        if name in row:
            value = row[name]
            print(f"  {name}: {f'{value:.6g}' if isinstance(value, float) else value}")


class Plan:
    """What a command measures, network by network."""

    def __init__(self, arguments: argparse.Namespace, folder: Path):
        self.arguments, self.folder = arguments, folder
        self.pair = not arguments.only_pipeline
        self.pipeline = arguments.pipeline or arguments.only_pipeline
        self.torch = not arguments.without_torch
        self.images = self._save_images()
        # The platform is asked of a worker: here JAX would take an accelerator's memory.
        with self._worker("e3jax", training.quick_config()) as worker:
            self.hello = worker.ask("hello")
        on_cpu = self.hello["platform"] == "cpu"
        self.protocol = arguments.protocol
        if self.protocol == "auto":
            self.protocol = "quick" if on_cpu else "paper"
        quick, grey = self.protocol == "quick", arguments.channels == 1
        self.config = training.quick_config() if quick else training.paper_config(grey)
        self.networks = arguments.network or [self.config.network]
        for network in self.networks:
            if self.config_of(network).batch_size % self.hello["devices"]:
                raise ValueError(
                    f"--batch-size must be a multiple of the {self.hello['devices']} devices"
                )

    def _save_images(self) -> Path:
        """A contaminated set of real digits; colour ones are the digits three times."""
        data = datasets.load("mnist", source="embedded", announce=say)
        n = self.arguments.images
        largest = int(np.bincount(data.labels).max())
        if n <= largest:
            data = contamination.contaminate(
                data.images,
                data.labels,
                int(np.bincount(data.labels).argmax()),
                0.1,
                0,
                max_images=n,
            )
            images = data.images
        else:  # more than a class has: speed does not depend on what is in an image
            images = data.images[np.arange(n) % len(data.images)]
        path = self.folder / "images.npy"
        np.save(path, np.repeat(images, self.arguments.channels, axis=-1))
        return path

    def config_of(self, network: str) -> training.TrainConfig:
        config = self.config._replace(network=network, precision=self.arguments.precision)
        if network != self.config.network:
            config = config._replace(batch_size=64 if network.endswith("-1") else 128)
        if self.arguments.batch_size:
            config = config._replace(batch_size=self.arguments.batch_size)
        return config

    def _worker(self, side: str, config: training.TrainConfig, cache: str = "pair"):
        """A side in a process; its compiled programs and caches are this command's own."""
        folder = self.folder / f"{cache}-{config.network}"
        job = {"images": str(self.images), "config": config._asdict()}
        return speed_sides.Worker(side, job, {"E3JAX_CACHE_DIR": str(folder)})

    def announce(self) -> None:
        """What is going to be done and about how long it takes."""
        arguments, sides = self.arguments, 2 if self.torch else 1
        say(f"Device: {self.hello['device']}, protocol {self.protocol}")
        measured = len(_MEASURED) * sides + (self.hello["devices"] > 1)
        minutes = 1 + arguments.rounds * measured * arguments.seconds / 60 + sides * 1.5
        for network in self.networks:
            config = self.config_of(network)
            what = f"{network}: batches of {config.batch_size} views, {config.precision}"
            if self.pair:
                what += f", {' and '.join(_SIDES[:sides])} in {arguments.rounds} rounds of "
                what += f"{arguments.seconds:g} s, about {minutes:.0f} minutes"
            if self.pipeline:
                steps = self._pipeline_config(config).num_steps(arguments.images, self.hello["k"])
                what += f", {arguments.rounds} pipelines a side on {arguments.images} images "
                what += f"({steps} steps; on a CPU some minutes each)"
            say(f"Plan: {what}")

    def measure(self, network: str) -> dict:
        """The row of a network."""
        config, arguments = self.config_of(network), self.arguments
        row = {
            "protocol": self.protocol,
            "network": network,
            "optimizer": config.optimizer,
            "channels": arguments.channels,
            "images": arguments.images,
            "batch_size": config.batch_size,
            "precision": config.precision,
            "rounds": arguments.rounds,
            "seconds": arguments.seconds,
            "device": self.hello["device"],
            "cores": runtime.cores(),
            "e3jax_devices": self.hello["devices"],
        }
        if self.pair:
            row |= self._measure_pair(config)
        if self.pipeline:
            row |= self._measure_pipeline(config)
        return row | provenance(self.torch)

    def _measure_pair(self, config: training.TrainConfig) -> dict:
        arguments, row = self.arguments, {}
        with contextlib.ExitStack() as stack:
            ours = stack.enter_context(self._worker("e3jax", config))
            workers = {"": ours}
            prepared = {"": self._prepare(ours)}
            if self.torch:
                tuned = stack.enter_context(self._worker("tuned", config))
                _same_platform(self.hello["platform"], tuned.ask("hello")["platform"])
                options = {"mode": arguments.torch_compile, "seconds": min(arguments.seconds, 5)}
                workers["tuned_"], prepared["tuned_"] = tuned, self._prepare(tuned, **options)
                row["tuned_mode"] = prepared["tuned_"]["mode"]
            rates = self._rounds(workers)
            for prefix, worker in workers.items():
                row |= _side_columns(prefix, rates, prepared[prefix], worker.ask("memory"))
            row["gemm_flops"] = max(w.ask("gemm", seconds=1.0) for w in workers.values())
            row |= self._utilisation(row, config) | self._in_flight(ours)
        for name in _MEASURED if self.torch else ():
            row |= _ratio(name, rates["", name], rates["tuned_", name])
        return row

    def _prepare(self, worker: speed_sides.Worker, **options) -> dict:
        say(f"{worker.side}: compiling")
        prepared = worker.ask("prepare", **options)
        if prepared.get("speeds"):
            say(f"{worker.side}: training views/s {prepared['speeds']}, kept {prepared['mode']}")
        return prepared

    def _rounds(self, workers: dict[str, speed_sides.Worker]) -> dict:
        rates = {(prefix, name): [] for prefix in workers for name in _MEASURED}
        for number in range(self.arguments.rounds):
            for name in _MEASURED:
                for prefix, worker in workers.items():
                    rates[prefix, name].append(worker.ask(name, seconds=self.arguments.seconds))
                text = ", ".join(f"{w.side} {rates[p, name][-1]:.0f}" for p, w in workers.items())
                say(f"[{number + 1}/{self.arguments.rounds}] {name} views/s: {text}")
        return rates

    def _utilisation(self, row: dict, config: training.TrainConfig) -> dict:
        network = networks.build(config.network, self.hello["k"])
        forward = networks.forward_flops(network, (32, 32, self.arguments.channels))
        costs = {"train": 3 * forward, "score": forward}
        return {
            f"{prefix}{name}_utilisation": row[f"{prefix}{name}_views_per_second"]
            * cost
            / row["gemm_flops"]
            for prefix in ("", "tuned_")
            for name, cost in costs.items()
            if f"{prefix}{name}_views_per_second" in row
        }

    def _in_flight(self, worker: speed_sides.Worker) -> dict:
        """Trainings side by side, one a device, as sweeps run them."""
        if self.hello["devices"] == 1:
            return {}
        say("e3jax: one training a device")
        in_flight = worker.ask("prepare_in_flight")
        rates = [
            worker.ask("in_flight", seconds=self.arguments.seconds)
            for _ in range(self.arguments.rounds)
        ]
        return {
            "in_flight": in_flight,
            "in_flight_train_views_per_second": statistics.median(rates),
        }

    def _pipeline_config(self, config: training.TrainConfig) -> training.TrainConfig:
        return config._replace(steps=self.arguments.steps or config.steps)

    def _measure_pipeline(self, config: training.TrainConfig) -> dict:
        config, ours, theirs = self._pipeline_config(config), [], []
        say("e3jax: a pipeline, nothing compiled before")
        with self._worker("e3jax", config, "pipeline") as worker:
            cold = worker.ask("pipeline")
        with contextlib.ExitStack() as stack:
            worker = stack.enter_context(self._worker("e3jax", config, "pipeline"))
            say("e3jax: a pipeline, compiled by an earlier process")
            cached = worker.ask("pipeline")
            peer = None
            if self.torch:
                peer = stack.enter_context(self._worker("straightforward", config))
                _same_platform(self.hello["platform"], peer.ask("hello")["platform"])
            for number in range(self.arguments.rounds):
                ours.append(worker.ask("pipeline"))
                text = f"e3jax {ours[-1]['seconds']:.1f} s"
                if peer:
                    theirs.append(peer.ask("pipeline"))
                    text += f", straightforward {theirs[-1]['seconds']:.1f} s"
                say(f"[{number + 1}/{self.arguments.rounds}] pipeline: {text}")
            row = {
                "pipeline_images": self.arguments.images,
                "pipeline_steps": config.num_steps(self.arguments.images, self.hello["k"]),
                "pipeline_cold_seconds": cold["seconds"],
                "pipeline_cached_seconds": cached["seconds"],
                "pipeline_warm_seconds": _median(ours, "seconds"),
                "pipeline_train_seconds": _median(ours, "train"),
                "pipeline_score_seconds": _median(ours, "score"),
                "views_bytes": cached["views_bytes"],
                "pipeline_peak_rss": worker.ask("memory")["peak"],
            }
            if not peer:
                return row
            seconds = [[part["seconds"] for part in parts] for parts in (theirs, ours)]
            return (
                row
                | _ratio("pipeline", *seconds)
                | {
                    "pipeline_cold_ratio": _median(theirs, "seconds") / cold["seconds"],
                    "straightforward_seconds": _median(theirs, "seconds"),
                    "straightforward_views_seconds": _median(theirs, "views"),
                    "straightforward_train_seconds": _median(theirs, "train"),
                    "straightforward_score_seconds": _median(theirs, "score"),
                    "straightforward_views_bytes": theirs[0]["views_bytes"],
                    "straightforward_peak_rss": peer.ask("memory")["peak"],
                }
            )


def _side_columns(prefix: str, rates: dict, prepared: dict, memory: dict) -> dict:
    speeds = {
        f"{prefix}{name}_views_per_second": statistics.median(rates[prefix, name])
        for name in _MEASURED
    }
    return speeds | {
        f"{prefix}train_compile_seconds": prepared["train"],
        f"{prefix}score_compile_seconds": prepared["score"],
        f"{prefix}peak_rss": memory["peak"],
        f"{prefix}imports_rss": memory["imports"],
        f"{prefix}device_peak": memory["device_peak"],
    }


def _ratio(name: str, above: list[float], below: list[float]) -> dict:
    """Median of the rounds' ratios, and all of them: their spread is the measurement's."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return {
        f"{name}_ratio": statistics.median(ratios),
        f"{name}_ratios": " ".join(f"{ratio:.3f}" for ratio in ratios),
    }


def _median(parts: list[dict], name: str) -> float:
    return statistics.median(part[name] for part in parts)


def _same_platform(ours: str, theirs: str) -> None:
    ours = "cuda" if ours == "gpu" else ours
    if ours != theirs:
        raise ValueError(
            f"JAX runs on {ours} and PyTorch on {theirs}: install both for the same device, or "
            "use --without-torch"
        )


def provenance(with_torch: bool) -> dict[str, str]:
    """As in every table, with PyTorch's version where it was measured."""
    row = dict(sweep.provenance())
    if with_torch:
        row["versions"] += f" torch={importlib.metadata.version('torch')}"
    return row


if __name__ == "__main__":
    sys.exit(main())
