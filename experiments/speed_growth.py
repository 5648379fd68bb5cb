"""How e3jax's cost a view and its memory grow with the images and with simulated devices.

Called by ``speed.py --growth``. All sizes take turns, so that what else the machine does falls on
each of them.
"""

import contextlib
import statistics
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator

import numpy as np
import runtime
import speed_sides
import sweep

from e3jax import training

# growth "images": more images on the same devices; "devices": more simulated devices, the batch
# growing with them. *_core_us_per_view: microseconds of the machine's cores for a view. Memory is
# of a process that holds this one bank, on the host and once a device; bytes_per_image are
# the slopes of a line through all sizes.
COLUMNS = (
    "growth,images,devices,cores,network,batch_size,rounds,seconds,train_views_per_second,"
    "train_core_us_per_view,score_views_per_second,score_core_us_per_view,peak_rss,resident,"
    "peak_bytes_per_image,resident_bytes_per_image,device,versions,commit"
).split(",")
_BATCH = 64  # a device, in weak scaling
_IMAGES = 1000


def measure(arguments: Namespace, say: Callable[[str], None]) -> Iterator[list[dict]]:
    """Rows of all numbers of images, then rows of all numbers of devices."""
    config = training.quick_config()
    config = config._replace(precision=arguments.precision)
    counts, devices = sorted(arguments.growth_images), sorted(arguments.growth_devices)
    sizes = len(counts) + len(devices)
    minutes = 2 + 2 * arguments.rounds * sizes * arguments.seconds / 60 + sizes
    say(
        f"Plan: {config.network} on {counts} random grey images, then on {devices} simulated "
        f"devices, {arguments.rounds} rounds of {arguments.seconds:g} s, about {minutes:.0f} "
        f"minutes; needs {3 * max(counts) * 1024 / 1e9 + 2:.0f} GB of memory or more"
    )
    with tempfile.TemporaryDirectory() as cache:
        environment = {"E3JAX_CACHE_DIR": cache}
        for part, values in ((_over_images, counts), (_over_devices, devices)):
            yield _complete(
                part(arguments, config, values, environment, say), config, arguments, say
            )


def _complete(rows: list[dict], config: training.TrainConfig, arguments, say) -> list[dict]:
    cores = runtime.cores()
    constants = {
        "cores": cores,
        "network": config.network,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
    }
    for row in rows:
        row |= constants | sweep.provenance()
        for name in ("train", "score"):
            row[f"{name}_core_us_per_view"] = cores / row[f"{name}_views_per_second"] * 1e6
        say(
            f"{row['growth']} {row[row['growth']]}: {row['train_core_us_per_view']:.0f} us of "
            f"cores a trained view, {row['score_core_us_per_view']:.0f} a scored one"
        )
    return rows


def _worker(counts: list[int], config: training.TrainConfig, environment: dict[str, str]):
    return speed_sides.Worker("growth", {"counts": counts, "config": config._asdict()}, environment)


def _over_images(arguments, config, counts, environment, say) -> list[dict]:
    with _worker(counts, config, environment) as worker:
        hello = worker.ask("hello")
        worker.ask("prepare")
        speeds = _rounds({count: worker for count in counts}, list(counts), arguments, say)
    rows = [
        {
            "growth": "images",
            "images": count,
            "devices": hello["devices"],
            "device": hello["device"],
            "batch_size": config.batch_size,
            **speeds[count],
        }
        for count in counts
    ]
    for row in rows:
        with _worker([row["images"]], config, environment) as worker:
            worker.ask("prepare")
            memory = worker.ask("memory")
        row |= {"peak_rss": memory["peak"], "resident": memory["resident"]}
    if len(counts) > 1:
        for kind, column in (("peak", "peak_rss"), ("resident", "resident")):
            slope, _ = np.polyfit(counts, [row[column] for row in rows], 1)
            for row in rows:
                row[f"{kind}_bytes_per_image"] = float(slope)
    return rows


def _over_devices(arguments, config, devices, environment, say) -> list[dict]:
    """Weak scaling: the same batch a device. On a few cores it can only show overhead."""
    workers, rows = {}, []
    with contextlib.ExitStack() as stack:
        for number in devices:
            larger = config._replace(batch_size=_BATCH * number)
            simulated = environment | {"JAX_NUM_CPU_DEVICES": str(number), "JAX_PLATFORMS": "cpu"}
            workers[number] = stack.enter_context(_worker([_IMAGES], larger, simulated))
            workers[number].ask("prepare")
        speeds = _rounds(workers, [_IMAGES] * len(devices), arguments, say)
        for number, worker in workers.items():
            hello, memory = worker.ask("hello"), worker.ask("memory")
            rows.append(
                {
                    "growth": "devices",
                    "images": _IMAGES,
                    "devices": hello["devices"],
                    "device": hello["device"],
                    "batch_size": _BATCH * number,
                    "peak_rss": memory["peak"],
                    "resident": memory["resident"],
                    **speeds[number],
                }
            )
    return rows


def _rounds(workers: dict, counts: list[int], arguments, say) -> dict[int, dict]:
    """Median speeds of every worker on its count, by the workers' keys."""
    rates = {(key, name): [] for key in workers for name in ("train", "score")}
    for number in range(arguments.rounds):
        for (key, worker), count in zip(workers.items(), counts, strict=True):
            for name in ("train", "score"):
                speed = worker.ask(f"{name}_on", count=count, seconds=arguments.seconds)
                rates[key, name].append(speed)
        say(f"[{number + 1}/{arguments.rounds}] measured {', '.join(map(str, workers))}")
    return {
        key: {
            f"{name}_views_per_second": statistics.median(rates[key, name])
            for name in ("train", "score")
        }
        for key in workers
    }
