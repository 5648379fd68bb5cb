"""What ranking a large bank takes: the seconds of each stage, and the most memory."""

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from e3jax import E3Outlier, datasets
from e3jax.collection import bank
from e3jax.devices import runtime
from e3jax.report import gallery, writing

_STAGES = ("bank", "opening", "training", "sampling", "scoring", "report")
_BLOCK = 4096


def measure(images: int, steps: int | str, score_operations: int | str) -> dict:
    """The columns of a bank of so many digits of MNIST, each with noise of its own.

    Memory is the most that this process had for itself, in bytes; pages of mapped files come on
    top and leave again when others need the space.
    """
    runtime.prepare()
    began = {}

    def on_progress(stage: str, done: int = 0, total: int = 0) -> None:
        began.setdefault(stage, time.monotonic())

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        on_progress("bank")
        pictures = bank.write_arrays(folder / "bank", _noisy_digits(images)).images
        detector = E3Outlier(
            random_state=0, steps=steps, score_operations=score_operations, on_progress=on_progress
        )
        on_progress("opening")
        with _memory_watched() as memory:
            detector.fit_in(folder / "parts", folder / "bank")
            on_progress("report")
            writing.write_tables(folder, detector.ranking_)
            gallery.write_gallery(folder / "gallery.html", detector.ranking_, pictures)
        on_progress("end")
    began.pop("describing", None)
    times = sorted(began.items(), key=lambda item: item[1])
    seconds = dict.fromkeys(f"{stage}_seconds" for stage in _STAGES)
    for (stage, start), (_, end) in zip(times, times[1:], strict=False):
        seconds[f"{stage}_seconds"] = round(end - start, 2)
    counts = {"steps": detector.health_.steps}
    counts["score_operations"] = detector.view_entropies_.shape[1]
    used = {"memory": max(memory, default=0)}
    return {"images": images} | counts | used | seconds | {"cores": runtime.cores()}


def _noisy_digits(count: int) -> Iterator[np.ndarray]:
    """Blocks of so many digits in all."""
    digits, random = datasets.load("mnist", source="embedded").images, np.random.default_rng(0)
    for start in range(0, count, _BLOCK):
        block = digits[random.integers(0, len(digits), min(_BLOCK, count - start))]
        yield np.uint8(np.clip(block + random.normal(0, 8, block.shape), 0, 255))


@contextlib.contextmanager
def _memory_watched() -> Iterator[list[int]]:
    """A list that grows by the bytes of anonymous memory that this process has at times."""
    memory, ended = [], threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            lines = Path("/proc/self/status").read_text().splitlines()
            anonymous = next(line for line in lines if line.startswith("RssAnon"))
            memory.append(1024 * int(anonymous.split()[1]))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield memory
    finally:
        ended.set()
        thread.join()
