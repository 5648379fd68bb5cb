"""The part of first_gpu.py that measures speed, each case in a process of its own."""

import argparse
import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

from e3jax import training
from timing.worker import Worker

_SIZES = ((1, 128), (3, 128), (1, 1024))  # channels and batch size
_PRECISIONS = ("bfloat16", "tensorfloat32", "float32")
_LEAST_SECONDS = 30  # that a case takes


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


def _config(toy: bool, channels: int = 1, **changes: Any) -> training.TrainConfig:
    small = {"network": "wrn-10-1", "operations": "PR"} if toy else {}
    return training.paper_config(channels == 1)._replace(**small, **changes)


def speeds(args: argparse.Namespace) -> Iterator[dict]:
    """Rows of views per second and compile times; on some versions Triton's products end a case."""
    deadline = time.monotonic() + 60 * args.minutes
    cases = list(itertools.product(_SIZES, _PRECISIONS, (False, True)))
    for (channels, batch_size), precision, triton in cases[: 1 if args.toy else None]:
        case = {"precision": precision, "channels": channels, "batch_size": batch_size}
        case["options"] = "triton products" if triton else "no triton products"
        if (left := deadline - time.monotonic()) < _LEAST_SECONDS:
            yield case | {"what": "left out for time"}
            continue
        config = _config(args.toy, channels, precision=precision, batch_size=batch_size)
        job = {"config": config._asdict(), "shape": [4 if args.toy else 2048, 32, 32, channels]}
        job["gpu_options"] = {"xla_gpu_enable_triton_gemm": triton}
        with _worker(left, "timing.backends:Ours", **job) as worker:
            try:
                yield from _speeds_of(worker, case, 0.1 if args.toy else 5)
            except ChildProcessError as error:
                yield case | {"what": str(error)}


def _speeds_of(worker: Worker, case: dict, seconds: float) -> Iterator[dict]:
    compiling = worker.ask("prepare", names=["train", "score"])
    case["device"] = worker.ask("hello")["device"]
    for name, what in (("train", "trained"), ("score", "scored")):
        value = worker.ask("measure", name=name, seconds=seconds)[f"{name}_views_per_second"]
        yield case | {"what": what, "value": value, "unit": "views/s"}
        value = compiling[f"{name}_compile_seconds"]
        yield case | {"what": f"{what}, compiling", "value": value, "unit": "s"}
