"""What to run on the first GPU (or TPU) at hand; every part takes less than --minutes.

Each part is a process of its own, which has the device to itself.

doctor: ``e3jax doctor``, whose findings are rows. speed: trained and
scored views per second of the paper's network, by precision, with and without XLA's Triton
products. class: the paper's protocol on MNIST class 4. classes: as many of the ten as fit; the same
command again does the rest. Rows are added to first_gpu.csv in --results-dir. Ends with 1 if the
doctor finds something wrong, or a part failed.
"""

import argparse
import functools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import command
import pandas as pd
from sweep import flags, rows
from sweep.provenance import provenance
from timing.accelerator import speeds
from timing.worker import COLUMNS

from e3jax.cli.arguments import path


def main() -> int:
    parser = flags.parser(__doc__)
    add = parser.add_argument
    add("--parts", nargs="+", default=tuple(PARTS), choices=tuple(PARTS), help="parts, in order")
    add("--minutes", type=float, default=9, help="time limit of each part")
    add("--toy", action="store_true", help="make everything tiny, to try the command on a CPU")
    add("--results-dir", type=path, default="results/first_gpu", help="folder for all results")
    flags.add_source(parser)
    args, failed = parser.parse_args(), []
    code = command.run(lambda: failed.extend(work(args)), "Rows are kept.")
    for text in failed:
        print(f"failed: {text}")
    return code or bool(failed)


def work(args: argparse.Namespace) -> Iterator[str]:
    """Does the parts and yields what is wrong."""
    columns = list(COLUMNS["first_gpu"])
    for part in args.parts:
        print(f"{part}: at most {args.minutes:g} minutes", flush=True)
        start = time.monotonic()
        try:
            for row in PARTS[part](args):
                row |= {"part": part} | provenance()
                rows.append(args.results_dir / "first_gpu.csv", [row], columns)
                if row.get("wrong"):
                    yield f"{part}: {row['wrong']}"
                print(*(row.get(name, "") for name in columns[:-2]), flush=True)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            yield f"{part}: {error}"
        print(f"{part}: {time.monotonic() - start:.0f} s", flush=True)


def doctor(args: argparse.Namespace) -> Iterator[dict]:
    """What ``e3jax doctor`` finds."""
    words = [sys.executable, "-m", "e3jax", "doctor", "--json"]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=60 * args.minutes)
    for finding in json.loads(done.stdout)["findings"]:
        what = f"{finding['part']}: {finding['what']}"
        yield {name: finding[name] for name in ("value", "unit", "wrong")} | {"what": what}


def benchmark(inlier_classes: Sequence[int], args: argparse.Namespace) -> Iterator[dict]:
    """The paper's protocol; what does not fit into the time is left to the next command."""
    folder, inlier_classes = args.results_dir / "runs", [4] if args.toy else inlier_classes
    words = [sys.executable, Path(__file__).with_name("benchmark.py"), "--results-dir", folder]
    words += "--dataset mnist --protocol paper --methods e3outlier --source".split()
    words += [args.source, "--classes", *map(str, inlier_classes)]
    words += ["--data-dir", args.data_dir] if args.data_dir else []
    if args.toy:
        words += "--operations PR --network wrn-10-1 --max-images 20 --steps 12".split()
    with subprocess.Popen(words) as process:
        try:
            process.wait(60 * args.minutes - 20)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
    if process.returncode not in (0, 130):
        raise ValueError(f"benchmark.py ended with {process.returncode}")
    table = pd.read_csv(folder / "results.csv")
    table = table[table["method"].str.startswith("e3outlier")]
    for row in table[table["inlier_class"].isin(inlier_classes)].to_dict("records"):
        what = f"AUROC of class {row['inlier_class']}, {row['method']}"
        unit = f"share; trained in {row['train_seconds']} s"
        yield row | {"what": what, "value": row["auroc"], "unit": unit}


PARTS = {
    "doctor": doctor,
    "speed": speeds,
    "class": functools.partial(benchmark, [4]),
    "classes": functools.partial(benchmark, range(10)),
}


if __name__ == "__main__":
    sys.exit(main())
