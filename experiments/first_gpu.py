"""What to run on the first GPU (or TPU) at hand; every part takes less than --minutes.

Each part is a process of its own, which has the device to itself.

numerics: views, logits, a training step and scores against this machine's CPU. speed: trained and
scored views per second of the paper's network, by precision, with and without XLA's Triton
products. class: the paper's protocol on MNIST class 4. classes: as many of the ten as fit; the same
command again does the rest. Rows are added to first_gpu.csv in --results-dir. Ends with 1 if
numbers differ by more than their limits, or a part failed.
"""

import argparse
import contextlib
import functools
import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import command
import jax
import jax.flatten_util
import numpy as np
import pandas as pd
from speed.worker import COLUMNS, Worker
from sweep import flags
from sweep.provenance import provenance
from sweep.store import append_rows

from e3jax import datasets, devices, images, networks, operations, training
from e3jax.cli.main import path
from e3jax.devices import runtime
from e3jax.training import fitting

# Differences from the CPU in float32: rounding alone, of sums in another order.
_LIMITS = {"views": 1e-5, "logits": 1e-3, "step": 1e-2, "scores": 1e-3}


def parse_args() -> argparse.Namespace:
    parser = flags.parser(__doc__)
    add = parser.add_argument
    add("--parts", nargs="+", default=tuple(PARTS), choices=tuple(PARTS), help="in this order")
    add("--minutes", type=float, default=9, help="limit of a part")
    add("--toy", action="store_true", help="everything tiny, to try the command on a CPU")
    add("--results-dir", type=path, default="results/first_gpu", help="where it all goes")
    add("--data-dir", type=path, help="folder with data prepared by TFDS (or set TFDS_DATA_DIR)")
    add("--source", default="auto", choices=datasets.SOURCES, help="of the images")
    return parser.parse_args()


def main() -> int:
    args, failed = parse_args(), []
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
                append_rows(args.results_dir / "first_gpu.csv", columns, [row])
                if row.get("limit") and not row["value"] <= row["limit"]:
                    yield f"{part}: {row['what']}"
                print(*(row.get(name, "") for name in columns[:-2]), flush=True)
        except (OSError, ValueError) as error:
            yield f"{part}: {error}"
        print(f"{part}: {time.monotonic() - start:.0f} s", flush=True)


def _config(args: argparse.Namespace, grey: bool = True, **changes) -> training.TrainConfig:
    toy = {"network": "wrn-10-1", "operations": "PR"} if args.toy else {}
    return training.paper_config(grey)._replace(**toy, **changes)


@contextlib.contextmanager
def _worker(seconds: float, name: str, **options: Any) -> Iterator[Worker]:
    """A worker, which is ended after some seconds: then its answer is a ChildProcessError."""
    with Worker(name, **options) as worker:
        timer = threading.Timer(seconds, worker.kill)
        timer.start()
        try:
            yield worker
        finally:
            timer.cancel()


# --- Numerics -----------------------------------------------------------------------------------


def numerics(args: argparse.Namespace) -> Iterator[dict]:
    words = {name: getattr(args, name) for name in ("toy", "data_dir", "source")}
    with _worker(60 * args.minutes, "first_gpu:Numerics", **words) as worker:
        for precision in devices.PRECISIONS[: 1 if args.toy else None]:
            yield from worker.ask("differences", precision=precision)


class Numerics:
    """A device's numbers against a CPU's."""

    def __init__(self, **words: Any):
        runtime.prepare()
        self.args = argparse.Namespace(**words)
        self.exact = _numbers(self.args, jax.devices("cpu")[0], "float32")

    def differences(self, precision: str) -> list[dict]:
        """A row for each of ``_LIMITS``."""
        device, rows = runtime.devices()[-1], []
        numbers = _numbers(self.args, device, precision)
        for quantity, limit in _LIMITS.items():
            difference = numbers[quantity] - self.exact[quantity]
            value, unit = np.abs(difference).max(), "absolute"
            if quantity == "step":  # relative to what the step changes
                exact = np.linalg.norm(self.exact[quantity])
                value, unit = np.linalg.norm(difference) / exact, "share"
            row = {"what": f"{quantity}: difference from a CPU's float32", "precision": precision}
            row |= {"channels": 1, "device": device.device_kind, "value": float(value)}
            rows.append(row | {"limit": limit if precision == "float32" else "", "unit": unit})
        return rows


def _numbers(args: argparse.Namespace, device: jax.Device, precision: str) -> dict:
    """What a device computes, from the same weights."""
    key, mesh, n = jax.random.key(0), devices.device_mesh([device]), 4 if args.toy else 32
    config = _config(args, precision=precision, batch_size=4 * n, learning_rate=0.01)
    digits = datasets.load("mnist", data_dir=args.data_dir, source=args.source).images[:n]
    on_cpu = devices.device_mesh(jax.devices("cpu")[:1])
    start = fitting.fit(key, digits, config=config, mesh=on_cpu, until=0)
    before = jax.device_get(start.state)
    start = start._replace(state=devices.place(mesh, before))
    network = networks.build(config.network, config.k, devices.dtype(precision))
    with jax.default_device(device), devices.products(precision):
        x = images.to_unit(jax.numpy.asarray(digits))
        views = operations.all_views(fitting.operation_set(config.operations, x.shape[1]), x)
        apply = jax.jit(functools.partial(network.apply, train=False))
        logits, _ = apply(before.variables, views[0])
    after = fitting.fit(key, digits, config=config, mesh=mesh, start=start, until=1).state
    step = jax.tree.map(np.subtract, jax.device_get(after).variables, before.variables)
    step, _ = jax.flatten_util.ravel_pytree(step["params"])
    scores = fitting.score(start, digits, mesh=mesh).mean()
    numbers = {"views": views, "logits": logits, "step": step, "scores": scores}
    return jax.tree.map(np.asarray, numbers)


# --- Speed --------------------------------------------------------------------------------------


def speeds(args: argparse.Namespace) -> Iterator[dict]:
    """Each case in a process of its own, too: on some versions Triton's products end it."""
    deadline = time.monotonic() + 60 * args.minutes
    sizes, precisions = ((1, 128), (3, 128), (1, 1024)), ("bfloat16", "tensorfloat32", "float32")
    cases = list(itertools.product(sizes, precisions, (False, True)))
    for (channels, batch_size), precision, triton in cases[: 1 if args.toy else None]:
        case = {"precision": precision, "channels": channels, "batch_size": batch_size}
        config = _config(args, grey=channels == 1, precision=precision, batch_size=batch_size)
        case["options"] = "triton products" if triton else "no triton products"
        if (left := deadline - time.monotonic()) < 30:
            yield case | {"what": "left out for time"}
            continue
        job = {"config": config._asdict(), "shape": [4 if args.toy else 2048, 32, 32, channels]}
        job["gpu_options"] = {"xla_gpu_enable_triton_gemm": triton}
        with _worker(left, "speed.backends:Ours", **job) as worker:
            try:
                compiling = worker.ask("prepare", names=["train", "score"])
                case["device"] = worker.ask("hello")["device"]
                for name, what in (("train", "trained"), ("score", "scored")):
                    speed = worker.ask("measure", name=name, seconds=0.1 if args.toy else 5)
                    value = speed[f"{name}_views_per_second"]
                    yield case | {"what": what, "value": value, "unit": "views/s"}
                    value = compiling[f"{name}_compile_seconds"]
                    yield case | {"what": f"{what}, compiling", "value": value, "unit": "s"}
            except ChildProcessError as error:
                yield case | {"what": str(error)}


# --- The paper's protocol -----------------------------------------------------------------------


def benchmark(inlier_classes: Sequence[int], args: argparse.Namespace) -> Iterator[dict]:
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
    "numerics": numerics,
    "speed": speeds,
    "class": functools.partial(benchmark, [4]),
    "classes": functools.partial(benchmark, range(10)),
}


if __name__ == "__main__":
    sys.exit(main())
