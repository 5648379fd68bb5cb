"""How e3jax's cost per view and its memory grow with the images and with simulated devices.

All sizes take turns, each in its own process, so whatever else the machine does falls on all of them.
"""

import argparse
import contextlib
import functools
import tempfile
from collections.abc import Iterator

import numpy as np
import pandas as pd
from speed.comparison import OURS
from speed.worker import CONSOLE, Worker, take_turns
from sweep import provenance

from e3jax import runtime, training

# growth "images": more images on the same devices; "devices": more simulated devices, the batch
# growing with them. *_core_us_per_view: microseconds of the machine's cores per view. Memory is
# that of a process that holds this one bank, on the host and once per device; bytes_per_image are
# the slopes of a line through all sizes.
COLUMNS = (
    "growth,images,devices,cores,network,batch_size,rounds,seconds,train_views_per_second,"
    "train_core_us_per_view,score_views_per_second,score_core_us_per_view,peak_rss,resident,"
    "peak_bytes_per_image,resident_bytes_per_image,device,versions,commit"
).split(",")
_BATCH, _IMAGES = 64, 1000  # per device, and in the bank, where the devices grow


def measure(args: argparse.Namespace) -> Iterator[list[dict]]:
    """Rows of all numbers of images, then rows of all numbers of devices."""
    counts, devices = sorted(args.growth_images), sorted(args.growth_devices)
    CONSOLE.print(
        f"Plan: {counts} random grey images, then {devices} simulated devices; needs "
        f"{3 * sum(counts) * 1024 / 1e9 + len(counts):.0f} GB of memory or more"
    )
    yield _measure(args, "images", [(count, _BATCH, {}) for count in counts])
    simulated = {"JAX_PLATFORMS": "cpu"}
    yield _measure(
        args,
        "devices",
        [(_IMAGES, _BATCH * n, simulated | {"JAX_NUM_CPU_DEVICES": str(n)}) for n in devices],
    )


def _measure(args: argparse.Namespace, growth: str, sizes: list[tuple]) -> list[dict]:
    """Rows of sizes: images, views per batch, environment."""
    config, workers, rows = training.quick_config()._replace(precision=args.precision), [], []
    with tempfile.TemporaryDirectory() as cache, contextlib.ExitStack() as stack:
        for images, batch_size, simulated in sizes:
            job = {
                "data": [images, 32, 32, 1],
                "config": config._replace(batch_size=batch_size)._asdict(),
            }
            environment = OURS[1] | simulated | {"E3JAX_CACHE_DIR": cache}
            worker = stack.enter_context(Worker(OURS[0], environment, **job))
            worker.ask("prepare", with_views=False)
            row = (
                worker.ask("hello")
                | worker.ask("memory")
                | {"images": images, "batch_size": batch_size}
            )
            workers.append(worker)
            rows.append(row)
        calls = {
            (name, i): functools.partial(worker.ask, "measure", name=name, seconds=args.seconds)
            for i, worker in enumerate(workers)
            for name in ("train", "score")
        }
        rates = pd.DataFrame(take_turns(calls, args.rounds)).median()
    cores = runtime.cores()
    constants = {
        "growth": growth,
        "cores": cores,
        "network": config.network,
        "rounds": args.rounds,
        "seconds": args.seconds,
    }
    table = pd.DataFrame(rows).assign(**constants, **provenance())
    for name in ("train", "score"):
        table[f"{name}_views_per_second"] = rates[name].to_numpy()
        table[f"{name}_core_us_per_view"] = cores / table[f"{name}_views_per_second"] * 1e6
    if growth == "images" and len(rows) > 1:
        for column in ("peak_rss", "resident"):
            slope, _ = np.polyfit(table["images"], table[column], 1)
            table[f"{column.removesuffix('_rss')}_bytes_per_image"] = slope
    return table.reindex(columns=COLUMNS, fill_value="").to_dict("records")
