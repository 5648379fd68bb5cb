"""Inlier priority during training: Figs. 2, 3 and 4 of the paper on one page, with a control.

Trains on contaminated sets and records, at the last layer, the norm of the inliers' and of the
outliers' summed gradient (Fig. 2) and their mean de facto update (Fig. 3); then draws histograms of
their PL scores (Fig. 4). The control is a random split of the inliers in the same proportion.
Finished trainings are kept: the same command again does what is missing.
"""

import argparse
import itertools
import json
import sys
import time
from pathlib import Path

import command
import jax
import numpy as np
import pandas as pd
from paper.figures import file_name, plot_priority
from paper.tables import priority_table
from rich.console import Console
from sweep import curves, flags, store
from sweep.plan import Run
from sweep.progress import Bar, Meter
from sweep.provenance import provenance

from e3jax import devices, files, fitting, metrics, networks, priority, scoring
from e3jax.methods import E3OUTLIER

_EVERY, _ROUNDS = 50, 9  # of --overhead
_CASE = "dataset,source,network,operations,inlier_class,ratio,protocol,seed".split(",")
_HALVES = {"half1": slice(0, 1), "half2": slice(1, 2)}


def parse_arguments() -> argparse.Namespace:
    parser = flags.parser(__doc__)
    add = parser.add_argument
    flags.add_data(parser)
    add("--inlier-class", type=int, nargs="+", required=True, help="one page each")
    add("--ratio", type=float, default=0.1, help="outlier ratio, share of the set")
    add("--seeds", type=flags.positive, default=3, help="number of trainings: seeds 0, 1, ...")
    flags.add_protocol(parser)
    flags.add_network_and_operations(parser)
    add("--every", type=flags.positive, default=5, help="steps between recorded points")
    add(
        "--probe-views",
        type=flags.positive,
        default=2000,
        help="fixed views on which gradient magnitudes are measured",
    )
    add(
        "--overhead",
        action="store_true",
        help="instead: time training with and without recording, in turns, as benchmark.py "
        "--tensorboard records",
    )
    add("--results-dir", type=Path, default="runs/priority", help="where pages and points go")
    return parser.parse_args()


class Study:
    """What a command records: one case per inlier class, one training per case and seed."""

    def __init__(self, args: argparse.Namespace, console: Console):
        self.args, self.folder, self.say = args, args.results_dir, console.print
        self.dataset = flags.load(args, console.print)
        protocol, self.mesh = flags.protocol(args), devices.device_mesh()
        self.config = protocol.e3outlier_config(E3OUTLIER, self.dataset.images.shape[-1] == 1)
        kind = self.mesh.devices.flat[0].device_kind
        self.device = f"{self.mesh.size} x {kind}"
        self.views = max(args.probe_views // self.mesh.size, 1) * self.mesh.size
        config, columns = self.config, {"network": self.config.network, "max_images": protocol.max_images}
        columns |= {"dataset": self.dataset.name, "source": self.dataset.source, "ratio": args.ratio}
        columns |= {"protocol": protocol.name, "operations": config.operations, "method": "e3outlier"}
        recorded = {"every": args.every, "views": self.views, "device": kind}
        columns |= {"config": config._asdict(), "constants": recorded}
        self.cases = {
            c: [Run(inlier_class=c, data_seed=s, train_seed=s, **columns) for s in range(args.seeds)]
            for c in args.inlier_class
        }
        self.how = (
            *(protocol.name, config.network, config.operations),
            f"{protocol.max_images}images" if protocol.max_images else "",
            *(f"every{args.every}", f"{self.views}views", f"{args.seeds}seeds", kind),
            self.dataset.source,
        )
...
