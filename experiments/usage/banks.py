"""What ranking a large bank takes: the seconds of each stage, and the most memory."""

import contextlib
import json
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from e3jax import E3Outlier, datasets
from e3jax.collection import bank
from e3jax.devices import runtime
from e3jax.report import gallery, writing
from e3jax.work import files

_STAGES = ("bank", "opening", "training", "sampling", "scoring", "report")
_BLOCK = 4096
_SAVE_SECONDS = 5


class Measured:
    """Seconds of stages and the most memory, of all starts of a program that may be killed.

    They are kept in a file, where the next start finds them. A start that is killed loses up to
    ``_SAVE_SECONDS`` of its last stage.
    """

    def __init__(self, file: Path):
        self._file = file
        earlier = json.loads(file.read_text()) if file.exists() else {}
        self.starts = 1 + earlier.get("starts", 0)
        self.memory = earlier.get("memory", 0)
        self.seconds = dict.fromkeys(_STAGES, 0.0) | earlier.get("seconds", {})
        self._stage, self._last, self._saved = "", time.monotonic(), -math.inf

    def on_progress(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Counts the time since the last call for the stage of that call."""
        now = time.monotonic()
        if self._stage in self.seconds:
            self.seconds[self._stage] += now - self._last
        # Describing is a part of the stage before it.
        self._stage, self._last = self._stage if stage == "describing" else stage, now
        if now > self._saved + _SAVE_SECONDS or stage == "end":
            kept = {"starts": self.starts, "memory": self.memory, "seconds": self.seconds}
            files.write_text(self._file, json.dumps(kept))
            self._saved = now


def measure(images: int, steps: int | str, score_operations: int | str, folder: str) -> dict:
    """The columns of a bank of so many digits of MNIST, each with noise of its own.

    Memory is the most that this process had for itself, in bytes; pages of mapped files come on
    top and leave again when others need the space. After a stop the same call goes on.

    Args:
      images: of the bank.
      steps: of the training.
      score_operations: number of operations used for scoring.
      folder: keeps the bank, unfinished work and what was measured.
    """
    runtime.prepare()
    place = Path(folder)
    measured = Measured(place / "measured.json")
    measured.on_progress("bank")
    pictures = bank.write_arrays(place / "bank", _noisy_digits(images)).images
    detector = E3Outlier(
        random_state=0,
        steps=steps,
        score_operations=score_operations,
        on_progress=measured.on_progress,
    )
    measured.on_progress("opening")
    with _memory_watched(measured):
        detector.fit_in(place / "parts", place / "bank")
        measured.on_progress("report")
        writing.write_tables(place, detector.ranking_)
        gallery.write_gallery(place / "gallery.html", detector.ranking_, pictures)
    measured.on_progress("end")
    counts = {"steps": detector.health_.steps}
    counts["score_operations"] = detector.view_entropies_.shape[1]
    used = {"memory": measured.memory, "starts": measured.starts}
    seconds = {f"{stage}_seconds": round(s, 2) for stage, s in measured.seconds.items()}
    return {"images": images} | counts | used | seconds | {"cores": runtime.cores()}


def _noisy_digits(count: int) -> Iterator[np.ndarray]:
    """Blocks of so many digits in all."""
    digits, random = datasets.load("mnist", source="embedded").images, np.random.default_rng(0)
    for start in range(0, count, _BLOCK):
        block = digits[random.integers(0, len(digits), min(_BLOCK, count - start))]
        yield np.uint8(np.clip(block + random.normal(0, 8, block.shape), 0, 255))


@contextlib.contextmanager
def _memory_watched(measured: Measured) -> Iterator[None]:
    """Raises ``measured.memory`` to the bytes of anonymous memory that this process has."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            lines = Path("/proc/self/status").read_text().splitlines()
            anonymous = next(line for line in lines if line.startswith("RssAnon"))
            measured.memory = max(measured.memory, 1024 * int(anonymous.split()[1]))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
