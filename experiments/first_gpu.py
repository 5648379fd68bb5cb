"""What to run on the first GPU (or TPU) at hand; every part takes less than --minutes.

numerics: views, logits, a training step and scores against this machine's CPU. speed: trained and
scored views a second of the paper's network, by precision, with and without XLA's Triton products.
class: the paper's protocol on MNIST class 4. classes: as many of the ten as fit; the same command
again does the rest. Rows are added to first_gpu.csv in --results-dir. Ends with 1 if numbers
differ by more than their limits, or a part failed.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import runtime
import speed
import sweep

from e3jax import datasets, devices, networks, operations, scoring, training

COLUMNS = (
    "part,what,precision,channels,batch_size,options,value,limit,unit,device,versions,commit"
).split(",")
# Differences from the CPU in float32: rounding alone, of sums in another order.
_LIMITS = {"views": 1e-5, "logits": 1e-3, "step": 1e-2, "scores": 1e-3}
_CLASS = 4


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--parts", nargs="+", default=tuple(PARTS), choices=tuple(PARTS), help="in this order")
    add("--minutes", type=float, default=9, help="limit of a part")
    add("--toy", action="store_true", help="everything tiny, to try the command on a CPU")
    add("--results-dir", type=Path, default="results/first_gpu", help="where it all goes")
    add("--data-dir", help="folder with data prepared by TFDS (or set TFDS_DATA_DIR)")
    add("--source", default="auto", choices=datasets.SOURCES, help="of the images")
    add("--case", help=argparse.SUPPRESS)  # a process of the part "speed"
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if arguments.case:
        measure_speed(arguments, **json.loads(arguments.case))
        return 0
    path, failed = arguments.results_dir / "first_gpu.csv", []
    for part in arguments.parts:
        print(f"{part}: at most {arguments.minutes:g} minutes", flush=True)
        start = time.monotonic()
        try:
            for row in PARTS[part](arguments):
                row |= {"part": part} | sweep.provenance()
                speed.append_rows(path, COLUMNS, [row])
                is_over = row.get("limit", "") != "" and not row["value"] <= row["limit"]
                failed += [f"{part}: {row['what']}"] if is_over else []
                print(*(row.get(name, "") for name in COLUMNS[:-2]), flush=True)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            failed.append(f"{part}: {error}")
        print(f"{part}: {time.monotonic() - start:.0f} s", flush=True)
    for text in failed:
        print(f"failed: {text}")
    return 1 if failed else 0


def _settings(arguments: argparse.Namespace) -> tuple[str, str, int]:
    """Network, operations and images of a comparison."""
    return ("wrn-10-1", "PR", 4) if arguments.toy else ("wrn-10-4", "RA+IA+PR", 32)


def _digits(arguments: argparse.Namespace, n: int, channels: int = 1) -> np.ndarray:
    data = datasets.load("mnist", data_dir=arguments.data_dir, source=arguments.source)
    return np.repeat(np.resize(data.images, (n, *data.images.shape[1:])), channels, axis=-1)


# --- Numerics -----------------------------------------------------------------------------------


def numerics(arguments: argparse.Namespace) -> Iterator[dict]:
    runtime.start()
    device, cpu = jax.devices()[-1], jax.devices("cpu")[0]
    for precision in devices.PRECISIONS[: 1 if arguments.toy else None]:
        ours, theirs = (_numbers(arguments, [d], precision) for d in (device, cpu))
        if precision == "float32":
            exact = theirs
        for what, limit in _LIMITS.items():
            error = float(np.abs(ours[what] - exact[what]).max())
            if what == "step":  # relative to what the step changes
                error = float(
                    np.linalg.norm(ours[what] - exact[what]) / np.linalg.norm(exact[what])
                )
            yield {
                "what": f"{what}: difference from a CPU's float32",
                "precision": precision,
                "channels": 1,
                "value": error,
                "limit": limit if precision == "float32" else "",
                "unit": "share" if what == "step" else "absolute",
                "device": device.device_kind,
            }


def _numbers(arguments, some: list[jax.Device], precision: str) -> dict[str, np.ndarray]:
    """What some devices compute, from the same weights."""
    name, families, n = _settings(arguments)
    images, mesh = _digits(arguments, n), devices.device_mesh(some)
    operation_set = operations.operation_set(families)
    config = training.paper_config(grey=True)
    config = config._replace(
        network=name, precision=precision, batch_size=4 * n, learning_rate=0.01
    )
    on_cpu = devices.device_mesh(jax.devices("cpu")[:1])
    start = training.make_trainer(config, operation_set, on_cpu, 1).init(jax.random.key(0), 1)
    start = jax.device_get(start)
    network = networks.build(name, len(operation_set), devices.dtype(precision))
    with jax.default_device(some[0]), devices.products(precision):
        views = operations.all_views(operation_set, training.to_unit(jax.numpy.asarray(images)))
        logits, _ = network.apply(start.variables, views[0], train=False)
    scores = scoring.Scorer(name, operation_set, mesh, precision)(start.variables, images)
    trainer = training.make_trainer(config, operation_set, mesh, chunk=1)
    bank = training.place_bank(mesh, images)
    state, _ = trainer.advance(devices.place(mesh, start), bank, n, 1)
    change = jax.tree.map(np.subtract, jax.device_get(state.variables), start.variables)
    flat = np.concatenate([np.ravel(a) for a in jax.tree.leaves(change["params"])])
    return {
        "views": np.asarray(views),
        "logits": np.asarray(logits),
        "step": flat,
        "scores": scores.ne,
    }


# --- Speed --------------------------------------------------------------------------------------


def speeds(arguments: argparse.Namespace) -> Iterator[dict]:
    """Each case in a process of its own: on some versions Triton's products end it."""
    deadline = time.monotonic() + 60 * arguments.minutes
    cases = [
        {"precision": precision, "channels": channels, "batch_size": batch_size, "triton": triton}
        for channels, batch_size in ((1, 128), (3, 128), (1, 1024))
        for precision in ("bfloat16", "tensorfloat32", "float32")
        for triton in (False, True)
    ]
    for case in cases[:1] if arguments.toy else cases:
        left = deadline - time.monotonic()
        if left < 30:
            yield {"what": "left out for time", **_described(case), "value": ""}
            continue
        command = [sys.executable, __file__, "--case", json.dumps(case), *_passed_on(arguments)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=left)
        except subprocess.TimeoutExpired:
            continue
        if done.returncode:
            print(done.stderr[-2000:], file=sys.stderr)
            yield {"what": f"ended with {done.returncode}", **_described(case), "value": ""}
            continue
        for row in map(json.loads, done.stdout.splitlines()):
            yield row | _described(case)


def _described(case: dict) -> dict:
    options = "triton products" if case["triton"] else "no triton products"
    return {name: case[name] for name in ("precision", "channels", "batch_size")} | {
        "options": options
    }


def _passed_on(arguments: argparse.Namespace) -> list[str]:
    passed = ["--source", arguments.source, *(["--toy"] if arguments.toy else [])]
    return passed + (["--data-dir", arguments.data_dir] if arguments.data_dir else [])


def measure_speed(arguments, precision: str, channels: int, batch_size: int, triton: bool) -> None:
    """Prints a row of JSON for training and one for scoring."""
    devices.GPU_OPTIONS["xla_gpu_enable_triton_gemm"] = triton
    runtime.start()
    name, families, n = _settings(arguments)
    n, chunk, seconds = (n, 2, 0.1) if arguments.toy else (2048, 100, 5.0)
    images, operation_set = _digits(arguments, n, channels), operations.operation_set(families)
    config = training.paper_config(grey=channels == 1)
    config = config._replace(network=name, precision=precision, batch_size=batch_size)
    trainer = training.make_trainer(config, operation_set, chunk=chunk)
    state, bank = (
        trainer.init(jax.random.key(0), channels),
        training.place_bank(trainer.mesh, images),
    )
    variables = jax.device_get(state.variables)
    score = scoring.Scorer(name, operation_set, precision=precision)

    def train() -> None:
        nonlocal state
        state, log = trainer.advance(state, bank, n, 2**31 - 1)
        jax.block_until_ready(log.loss)

    for what, call, views in (
        ("trained", train, chunk * batch_size),
        ("scored", lambda: score(variables, images), n * len(operation_set)),
    ):
        start = time.perf_counter()
        call()  # compiles
        compiled, calls, start = time.perf_counter() - start, 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            call()
            calls += 1
        value = views * calls / (time.perf_counter() - start)
        device = f"{trainer.mesh.size} x {trainer.mesh.devices.flat[0].device_kind}"
        print(json.dumps({"what": what, "value": value, "unit": "views/s", "device": device}))
        print(
            json.dumps(
                {"what": f"{what}, first call", "value": compiled, "unit": "s", "device": device}
            )
        )


# --- The paper's protocol -----------------------------------------------------------------------


def one_class(arguments: argparse.Namespace) -> Iterator[dict]:
    return _benchmark(arguments, [_CLASS])


def classes(arguments: argparse.Namespace) -> Iterator[dict]:
    return _benchmark(arguments, [_CLASS] if arguments.toy else range(10))


def _benchmark(arguments: argparse.Namespace, inlier_classes) -> Iterator[dict]:
    folder = arguments.results_dir / "runs"
    command = [sys.executable, str(Path(__file__).with_name("benchmark.py")), "--dataset", "mnist"]
    command += ["--protocol", "paper", "--methods", "e3outlier", "--results-dir", str(folder)]
    command += ["--source", arguments.source, "--classes", *map(str, inlier_classes)]
    command += ["--data-dir", arguments.data_dir] if arguments.data_dir else []
    if arguments.toy:
        command += "--operations PR --network wrn-10-1 --max-images 20 --steps 12".split()
    with subprocess.Popen(command) as process:
        try:
            process.wait(60 * arguments.minutes - 20)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
    if process.returncode not in (0, 130):
        raise ValueError(f"benchmark.py ended with {process.returncode}")
    for row in sweep.read_csv(folder / "results.csv"):
        if row["method"].startswith("e3outlier") and row["inlier_class"] in inlier_classes:
            yield {
                "what": f"AUROC of class {row['inlier_class']}, {row['method']}",
                "precision": row["precision"],
                "value": row["auroc"],
                "unit": f"share; trained in {row['train_seconds']} s",
                "device": row["device"],
            }


PARTS = {"numerics": numerics, "speed": speeds, "class": one_class, "classes": classes}


if __name__ == "__main__":
    sys.exit(main())
