"""What speed.py measures: e3jax beside the PyTorch programs, and its growth with size."""

import argparse
import contextlib
import functools
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from command import say
from sweep.provenance import provenance

from e3jax import networks, training
from timing.worker import Worker, ask_all, in_turns

_MEASURED = ["train", "score", "views"]
_BATCH, _IMAGES = 64, 1000  # per device, and in the bank, where the devices grow


# --- Beside PyTorch ---------------------------------------------------------------------------


def compare(args: argparse.Namespace, folder: str) -> Iterator[list[dict]]:
    """A row of speed.csv for each network: e3jax and the PyTorch programs, measured in turns.

    Args:
      args: the command's flags.
      folder: for compiled programs, so that none is older than the command.

    Raises:
      ValueError: if a batch does not divide over the devices, or PyTorch has other devices.
    """
    start = functools.partial(_start, args, folder)
    protocol, torch = training.quick_config(), {}
    # Workers are asked for the platform: here JAX would take an accelerator's memory.
    with start("backends:Ours", protocol._replace(precision=args.precision)) as worker:
        ours = worker.ask("hello")
    if not args.without_torch:
        with start("pytorch:Straightforward", protocol) as worker:
            torch = worker.ask("hello")
        if torch["platform"] != ours["platform"]:
            raise ValueError(
                f"JAX runs on a {ours['platform']} and PyTorch on a {torch['platform']}: install "
                "both for the same device, or use --without-torch"
            )
    if args.protocol == "auto":
        args.protocol = "quick" if ours["platform"] == "cpu" else "paper"
    if args.protocol == "paper":
        protocol = training.paper_config(args.channels == 1)
    precision = ours["precision"]
    protocol = protocol._replace(precision=precision, steps=args.steps or protocol.steps)
    configs = []
    for name in args.network or [protocol.network]:
        size = args.batch_size or (64 if name.endswith("-1") else 128)
        configs.append(protocol._replace(network=name, batch_size=size))
        say(f"Plan: {name}, batches of {size} views")
        if size % ours["devices"]:
            raise ValueError(f"--batch-size must be a multiple of the {ours['devices']} devices")
    for config in configs:
        row = vars(args) | config._asdict() | ours | provenance()
        row["e3jax_devices"] = ours["devices"]
        row["versions"] += torch.get("version", "")
        if not args.only_pipeline:
            row |= _pair(args, config, start, ours["devices"])
        if args.pipeline or args.only_pipeline:
            row |= _pipeline(args, config, start)
        yield [row]


def _start(args, folder: str, name: str, config, cache="pair", **options) -> Worker:
    """A backend's worker. Those of one network and cache share what JAX compiles."""
    environment = {"E3JAX_CACHE_DIR": f"{folder}/{cache}-{config.network}"}
    options |= {"config": config._asdict(), "shape": [args.images, 32, 32, args.channels]}
    return Worker(f"timing.{name}", environment, **options)


def _rates(args, workers: dict[str, Worker], names: list[str]) -> pd.DataFrame:
    """Views per second, a row per round."""
    calls = [("measure", {"name": name, "seconds": args.seconds}) for name in names]
    return in_turns(workers, args.rounds, *calls)


def _pair(args, config, start: Callable[..., Worker], devices: int) -> dict:
    """Columns of e3jax and the tuned program, trained and scored in turns."""
    with contextlib.ExitStack() as stack:
        workers = {"": stack.enter_context(start("backends:Ours", config))}
        say("Compiling")
        row = workers[""].ask("prepare", names=_MEASURED)
        if not args.without_torch:
            workers["tuned_"], tuned = _tuned(args, config, start, stack)
            row |= {f"tuned_{name}": value for name, value in tuned.items()}
        rates = _rates(args, workers, _MEASURED)
        row |= rates.median().to_dict() | ask_all(workers, "memory")
        row["gemm_flops"] = max(ask_all(workers, "gemm").values())
        if devices > 1:
            row |= workers[""].ask("in_flight", rounds=args.rounds, seconds=args.seconds)
    network = networks.build(config.network, config.k)
    forward = networks.forward_flops(network, (32, 32, args.channels)) / row["gemm_flops"]
    for prefix in workers:
        for name, flops in (("train", 3 * forward), ("score", forward)):
            speed = row[f"{prefix}{name}_views_per_second"]
            row[f"{prefix}{name}_utilisation"] = speed * flops
    for name in _MEASURED if len(workers) > 1 else ():
        column = f"{name}_views_per_second"
        row |= _ratios(name, rates[column] / rates[f"tuned_{column}"])
    return row


def _tuned(args, config, start: Callable[..., Worker], stack) -> tuple[Worker, dict]:
    """The tuned program, compiled or eager, whichever trains faster; the other one sleeps."""
    asked, found = args.torch_compile, {}
    for mode in ("compile", "eager") if asked == "auto" else (asked,):
        try:
            worker = stack.enter_context(start("pytorch:Tuned", config, mode=mode))
            prepared = worker.ask("prepare", names=_MEASURED) | {"mode": mode}
            speed = worker.ask("measure", name="train", seconds=min(args.seconds, 5))
            found[speed["train_views_per_second"]] = worker, prepared
        except ChildProcessError:
            # Without a compiler or Python's headers, for example, eager remains.
            if mode in ("eager", asked):
                raise
    return found[max(found)]


def _pipeline(args, config, start: Callable[..., Worker]) -> dict:
    """Columns of one class from images to scores, beside the straightforward program."""
    say("Pipelines: the first compiles, the second finds its programs on disk")
    start_ours = functools.partial(start, "backends:Ours", config, cache="pipeline")
    with start_ours() as worker:
        cold = worker.ask("pipeline")["seconds"]
    with contextlib.ExitStack() as stack:
        workers = {"pipeline_": stack.enter_context(start_ours())}
        cached = workers["pipeline_"].ask("pipeline")
        if not args.without_torch:
            worker = stack.enter_context(start("pytorch:Straightforward", config))
            workers["straightforward_"] = worker
        times = in_turns(workers, args.rounds, ("pipeline", {}))
        row = times.median().to_dict() | ask_all(workers, "memory")
    row |= {"pipeline_images": args.images, "pipeline_steps": config.num_steps(args.images)}
    row |= {"pipeline_cold_seconds": cold, "pipeline_cached_seconds": cached["seconds"]}
    row |= {"pipeline_warm_seconds": row["pipeline_seconds"], "views_bytes": cached["views_bytes"]}
    if len(workers) > 1:
        theirs, name = times["straightforward_seconds"], "straightforward_views_bytes"
        row |= _ratios("pipeline", theirs / times["pipeline_seconds"])
        row |= {"pipeline_cold_ratio": theirs.median() / cold, name: int(row[name])}
    return row


def _ratios(name: str, of_rounds: pd.Series) -> dict:
    """Their median, and all of them: their spread is the measurement's."""
    text = " ".join(of_rounds.map("{:.3f}".format))
    return {f"{name}_ratio": of_rounds.median(), f"{name}_ratios": text}


# --- Growth -----------------------------------------------------------------------------------


def grow(args: argparse.Namespace, folder: str) -> Iterator[list[dict]]:
    """Rows of growth.csv: of all numbers of images, then of all numbers of devices.

    Args:
      args: the command's flags.
      folder: for compiled programs.
    """
    counts, devices = sorted(args.growth_images), sorted(args.growth_devices)
    memory = 3 * sum(counts) * 1024 / 1e9 + len(counts)
    say(f"Plan: {counts} random images, then {devices} simulated devices")
    say(f"This needs {memory:.0f} GB of memory or more")
    environment = {"E3JAX_CACHE_DIR": folder}
    rows = _grow(args, "images", [(count, _BATCH, environment) for count in counts])
    for kind, column in (("peak", "peak_rss"), ("resident", "resident")) if len(rows) > 1 else ():
        rows[f"{kind}_bytes_per_image"], _ = np.polyfit(rows["images"], rows[column], 1)
    yield rows.to_dict("records")
    environment |= {"JAX_PLATFORMS": "cpu"}
    sizes = [(_IMAGES, _BATCH * n, environment | {"JAX_NUM_CPU_DEVICES": str(n)}) for n in devices]
    yield _grow(args, "devices", sizes).to_dict("records")


def _grow(args, growth: str, sizes: list[tuple[int, int, dict]]) -> pd.DataFrame:
    """Rows of sizes: images, views per batch, environment."""
    config = training.quick_config()._replace(precision=args.precision)
    rows, workers, names = [], {}, ["train", "score"]
    with contextlib.ExitStack() as stack:
        for i, (images, size, environment) in enumerate(sizes):
            job = {"config": config._replace(batch_size=size)._asdict()}
            worker = Worker("timing.backends:Ours", environment, shape=[images, 32, 32, 1], **job)
            workers[f"{i} "] = stack.enter_context(worker)
            worker.ask("prepare", names=names)
            row = vars(args) | {"growth": growth, "images": images, "batch_size": size}
            rows.append(row | worker.ask("hello") | worker.ask("memory"))
        rates = _rates(args, workers, names).median()
    table = pd.DataFrame(rows).assign(network=config.network, **provenance())
    for name in names:
        table[f"{name}_views_per_second"] = speed = rates.filter(like=f" {name}_").to_numpy()
        table[f"{name}_core_us_per_view"] = table["cores"] / speed * 1e6
    return table
