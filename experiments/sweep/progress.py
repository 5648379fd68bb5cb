"""Progress of long work, for a person who waits."""

import threading
import time

import numpy as np
from command import CONSOLE, say
from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

from e3jax.training import StepLog
from sweep import tensorboard

# An estimate is printed once so many seconds have passed since the first step was done.
_ESTIMATE_AFTER = 20


class Stopped(Exception):
    """Raised in a run that reports its progress, once the command has failed or was interrupted."""


class Meter(Progress):
    """On a terminal a bar per run in flight and one for all; elsewhere a line per finished run.

    Several threads may use it.

    Args:
      total: work of all runs, in steps of any kind.
      runs: how many there are.
    """

    def __init__(self, total: int, runs: int):
        self.runs, self.ended, self.stopped, self.began = runs, 0, threading.Event(), None
        columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), "{task.fields[note]}")
        super().__init__(
            "{task.description}",
            *columns,
            speed_estimate_period=600,
            console=CONSOLE,
            # Elsewhere rich would print its bars once more at the end.
            disable=CONSOLE.quiet or not CONSOLE.is_terminal,
        )
        self.all = self.add_task("all runs", total=max(total, 1), note="")

    def count(self, work: float) -> None:
        """Counts work, and estimates once how long the rest takes."""
        with self._lock:
            self.advance(self.all, work)
            now, left = time.monotonic(), self._tasks[self.all].time_remaining
            self.began = self.began or now
            if left and now - self.began > _ESTIMATE_AFTER:
                minutes = max(left / 60, 1)
                say(f"Estimate: about {minutes:.0f} more minute(s) for all runs")
                self.began = float("inf")

    def tell(self, text: str, warning: str = "") -> None:
        """Says how a run ended."""
        with self._lock:
            self.ended += 1
            say(f"[{self.ended}/{self.runs}] {text}")
            if warning:
                say(f"    warning: {warning}", style="yellow")


class Bar:
    """One run's part of a meter; ``on_progress`` and ``on_log`` are for
    :mod:`e3jax.training.fitting`.

    Attributes:
      events: event files that also get the log of a training.
    """

    def __init__(self, meter: Meter, title: str, work: int, visible: bool = True):
        self.meter, self.work, self.done, self.note = meter, max(work, 1), 0, ""
        self.task = meter.add_task(title, total=self.work, visible=visible, note="starting")
        self.events: tensorboard.Writer | None = None

    def on_progress(self, stage: str, done: int, total: int) -> None:
        """Counts steps of training, and tells beside the bar what else is done.

        Raises:
          Stopped: once all runs are to end.
        """
        if self.meter.stopped.is_set():
            raise Stopped
        if stage == "training":
            self.meter.count(done - self.done)
            self.done, stage = done, self.note
        self.meter.update(self.task, completed=self.done, note=stage)

    def on_log(self, steps: int, log: StepLog) -> None:
        means = {"loss": log.loss} | log.metrics
        parts = (f"{name} {np.mean(a):.3g}".replace("_", " ") for name, a in means.items())
        self.note = ", ".join(parts)
        if self.events:
            self.events.write(steps, log)

    def close(self) -> None:
        """Closes its event files."""
        if self.events:
            self.events.close()

    def finish(self, text: str, warning: str = "") -> None:
        self.meter.count(self.work - self.done)
        self.meter.remove_task(self.task)
        self.meter.tell(text, warning)
