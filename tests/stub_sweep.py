"""benchmark.py with the network "tiny-8", and one more method, "stub".

Its runs train nothing, and a test can disturb them. A run notes in a log that it began, sleeps, and
scores images by their brightness. Environment variables say where and how long: STUB_LOG,
STUB_SECONDS.
"""

import os
import signal
import sys
import time

import benchmark
import tiny  # noqa: F401 - a network's name, "tiny-8"
from sweep import methods

from e3jax.work import progress


def describe(protocol, grey):
    constants = {name: os.environ.get(f"STUB_{name}", "0") for name in ("LOG", "SECONDS")}
    how = {"protocol": protocol.name, "network": "", "operations": "", "config": {}}
    return how | {"constants": constants}


def do(run, images, mesh, options):
    with open(run.constants["LOG"], "a") as log:
        print(run.inlier_class, run.data_seed, os.getpid(), file=log)
    end = time.monotonic() + float(run.constants["SECONDS"])
    while time.monotonic() < end:
        time.sleep(0.02)
        options.get("on_progress", progress.no_progress)("training", 0, 1)
    brightness = images.reshape(len(images), -1).mean(1, dtype=float)
    return {"stub": {"scores": brightness, "score_seconds": 0.0}}


def register():
    methods.METHODS["stub"] = methods.Entry(("stub",), describe, do)


if __name__ == "__main__":
    # Where tests run in the background, programs start with Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    register()
    sys.exit(benchmark.main())
