"""How far long work has come, for a person who waits."""

import threading
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class Stopped(Exception):
    """Raised where a run says how far it is, once the command has failed or was interrupted."""


class Meter:
    """On a terminal a bar for every run in flight and one for all; elsewhere a line a finished run.

    And one estimate. Runs in several threads may use it.
    """

    def __init__(self, console: Console, total_work: int, runs: int, at_once: int):
        self.console, self.total, self.runs, self.at_once = console, total_work, runs, at_once
        self.done, self.finished, self.chunks, self.mark = 0, 0, 0, (0.0, 0)
        self.lock, self.stopped = threading.RLock(), threading.Event()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        # On a terminal alone: elsewhere rich would print its bars once more at the end.
        shown = console.is_terminal and not console.quiet
        self.progress = Progress(*columns, console=console, disable=not shown)
        self.all = self.progress.add_task("all runs", total=max(total_work, 1), note="")

    def __enter__(self) -> "Meter":
        self.progress.start()
        return self

    def __exit__(self, *_) -> None:
        self.progress.stop()

    def start(self, title: str, work: int) -> "Bar":
        note = "compiling" if work else ""
        task = self.progress.add_task(title, total=max(work, 1), note=note)
        return Bar(self, task, work)

    def advance(self, work: int) -> None:
        with self.lock:
            self.done += work
            self.progress.update(self.all, advance=work)

    def estimate(self) -> None:
        """Once, from the second chunk of every run in flight: the first one compiles."""
        with self.lock:
            self.chunks += 1
            if self.chunks == self.at_once:
                self.mark = (time.monotonic(), self.done)
            elif self.chunks == 2 * self.at_once:
                seconds, work = time.monotonic() - self.mark[0], self.done - self.mark[1]
                minutes = (self.total - self.done) * seconds / max(work, 1) / 60
                self.console.print(
                    f"Estimate: about {max(minutes, 1):.0f} more minute(s) for all runs"
                )

    def finish(self, text: str, warning: str) -> None:
        with self.lock:
            self.finished += 1
            self.console.print(f"[{self.finished}/{self.runs}] {text}")
            if warning:
                self.console.print(f"    warning: {warning}", style="yellow")


class Bar:
    """One run's part of a meter."""

    def __init__(self, meter: Meter, task, work: int):
        self.meter, self.task, self.left = meter, task, work

    def skip(self, work: int) -> None:
        """Counts work done by an earlier start."""
        self.left -= work
        self.meter.progress.update(self.task, advance=work)
        self.meter.advance(work)

    def advance(self, work: int, note: str) -> None:
        if self.meter.stopped.is_set():
            raise Stopped
        self.skip(work)
        self.meter.progress.update(self.task, note=note)
        self.meter.estimate()

    def finish(self, text: str, warning: str) -> None:
        self.meter.advance(self.left)  # what the run had less to do than was thought
        self.meter.progress.remove_task(self.task)
        self.meter.finish(text, warning)
