"""Progress of long work, for a person who waits."""

import threading
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

# An estimate is printed once so many seconds have passed since the first step was done.
_ESTIMATE_AFTER = 20


class Stopped(Exception):
    """Raised in a run that reports its progress, once the command has failed or was interrupted."""


class Meter:
    """On a terminal a bar per run in flight and one for all; elsewhere a line per finished run.

    Several threads may use it.

    Args:
      console: where to.
      total: work of all runs, in steps of any kind.
      runs: how many there are.
    """

    def __init__(self, console: Console, total: int, runs: int):
        self.console, self.runs, self.finished = console, runs, 0
        self.stopped, self._lock, self._began = threading.Event(), threading.RLock(), None
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        # On a terminal alone: elsewhere rich would print its bars once more at the end.
        shown = console.is_terminal and not console.quiet
        self.progress = Progress(
            *columns, console=console, disable=not shown, speed_estimate_period=600
        )
        self.all = self.progress.add_task("all runs", total=max(total, 1), note="")

    def __enter__(self) -> "Meter":
        self.progress.start()
        return self

    def __exit__(self, *_) -> None:
        self.progress.stop()

    def start(self, title: str, work: int, visible: bool = True) -> "Bar":
        return Bar(self, title, max(work, 1), visible)

    def advance(self, work: float) -> None:
        """Counts work, and estimates once how long the rest takes."""
        with self._lock:
            self.progress.advance(self.all, work)
            now, left = time.monotonic(), self.progress.tasks[0].time_remaining
            self._began = self._began or now
            if left and now - self._began > _ESTIMATE_AFTER:
                minutes = max(left / 60, 1)
                self.console.print(f"Estimate: about {minutes:.0f} more minute(s) for all runs")
                self._began = float("inf")

    def finish(self, text: str, warning: str) -> None:
        with self._lock:
            self.finished += 1
            self.console.print(f"[{self.finished}/{self.runs}] {text}")
            if warning:
                self.console.print(f"    warning: {warning}", style="yellow")


class Bar:
    """One run's part of a meter."""

    def __init__(self, meter: Meter, title: str, work: int, visible: bool):
        self.meter, self.work, self.done = meter, work, 0.0
        note = {"note": "compiling", "visible": visible}
        self.task = meter.progress.add_task(title, total=work, **note)

    def update(self, done: float, note: str = "") -> None:
        """``done`` of the run's work is done, perhaps by an earlier start; raises :class:`Stopped`."""
        if self.meter.stopped.is_set():
            raise Stopped
        done = min(done, self.work)
        self.meter.progress.update(self.task, completed=done, note=note)
        self.meter.advance(done - self.done)
        self.done = done

    def finish(self, text: str, warning: str = "") -> None:
        self.meter.advance(self.work - self.done)
        self.meter.progress.remove_task(self.task)
        self.meter.finish(text, warning)
