"""How e3jax's cost per view and its memory grow with the images and with simulated devices."""

import argparse
import contextlib
from collections.abc import Iterator

import numpy as np
import pandas as pd
from sweep.provenance import provenance

from e3jax import runtime, training
from speed.worker import CONSOLE, Worker, in_turns

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


def measure(args: argparse.Namespace, folder: str) -> Iterator[list[dict]]:
    """Rows of all numbers of images, then rows of all numbers of devices.

    Args:
      args: the command's flags.
      folder: for compiled programs.
    """
    counts, devices = sorted(args.growth_images), sorted(args.growth_devices)
    memory = 3 * sum(counts) * 1024 / 1e9 + len(counts)
    CONSOLE.print(f"Plan: {counts} random images, then {devices} simulated devices")
    CONSOLE.print(f"This needs {memory:.0f} GB of memory or more")
    environment = {"E3JAX_CACHE_DIR": folder}
    sizes = [(count, _BATCH, environment) for count in counts]
    rows = _measure(args, sizes, growth="images")
    for column in ("peak_rss", "resident") if len(rows) > 1 else ():
        slope, _ = np.polyfit(rows["images"], rows[column], 1)
        rows[f"{column.removesuffix('_rss')}_bytes_per_image"] = slope
    yield rows.to_dict("records")
    environment |= {"JAX_PLATFORMS": "cpu"}
    sizes = [(_IMAGES, _BATCH * n, environment | {"JAX_NUM_CPU_DEVICES": str(n)}) for n in devices]
    yield _measure(args, sizes, growth="devices").to_dict("records")


def _measure(args: argparse.Namespace, sizes: list[tuple], **constants) -> pd.DataFrame:
    """Rows of sizes: images, views per batch, environment."""
    config = training.quick_config()._replace(precision=args.precision)
    constants |= {"cores": runtime.cores(), "network": config.network, "rounds": args.rounds}
    constants |= {"seconds": args.seconds} | provenance()
    rows, workers, names = [], {}, ["train", "score"]
    with contextlib.ExitStack() as stack:
        for images, batch_size, environment in sizes:
            job = {"config": config._replace(batch_size=batch_size)._asdict()}
            job |= {"shape": [images, 32, 32, 1]}
            worker = stack.enter_context(Worker("speed.ours:Ours", environment, **job))
            workers[f"{len(rows)} "] = worker
            worker.ask("prepare", names=names)
            row = {"images": images, "batch_size": batch_size} | constants
            rows.append(row | worker.ask("hello") | worker.ask("memory"))
        calls = [("measure", {"name": name, "seconds": args.seconds}) for name in names]
        rates = in_turns(workers, args.rounds, *calls).median()
    table = pd.DataFrame(rows)
    for name in names:
        table[f"{name}_views_per_second"] = speed = rates.filter(like=f" {name}_").to_numpy()
        table[f"{name}_core_us_per_view"] = table["cores"] / speed * 1e6
    return table
