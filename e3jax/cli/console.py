"""What commands show: messages, progress bars, lists of files."""

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence

from rich import console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from e3jax.work import exits
from e3jax.work.files import printable

SHOWN = 20  # files of a list


class Console(console.Console):
    """A console whose reader may have enough, or whose disk may be full: the work goes on."""

    def print(self, *arguments, **options) -> None:
        """Prints what rich would, if anything still takes it."""
        try:
            super().print(*arguments, **options)
        except OSError:
            ignore(self.file)

    def on_broken_pipe(self) -> None:
        """Called by rich, which would end the program."""
        ignore(self.file)


def ignore(stream) -> None:
    """For a stream whose reader has closed it, having read enough: the work goes on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def start() -> Console:
    """The console of a command, on standard error; standard output takes any file name."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


@contextlib.contextmanager
def logged(console: Console) -> Iterator[None]:
    """Shows what the library reports and warns of meanwhile."""
    logger, handler = logging.getLogger("e3jax"), logging.Handler()
    handler.emit = lambda record: console.print(record.getMessage())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda text, *_: console.print(f"warning: {text}")
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextlib.contextmanager
def bars(console: Console) -> Iterator:
    """Shows a progress bar per stage on a terminal, and one line per stage elsewhere."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    tasks = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def show(what: str, done: int, total: int) -> None:
            exits.check_interrupts()
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
                if not console.is_terminal:
                    unit = "steps" if what == "training" else "images"
                    console.print(f"{what}: {total} {unit}")
            progress.update(tasks[what], completed=done)

        yield show


def list_files(console: Console, what: str, paths: Sequence[str]) -> None:
    """Prints the first of some files, each behind ``what``, and how many more there are."""
    for path in paths[:SHOWN]:
        console.print(f"{what}: {printable(path)}")
    if len(paths) > SHOWN:
        console.print(f"... and {len(paths) - SHOWN} more files")
