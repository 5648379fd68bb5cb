"""How a command ends: in what it prints, or in one sentence and an exit code."""

import signal
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import track

# For people who watch; stdout is for what a command gives.
CONSOLE = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
say = CONSOLE.print


def run(work: Callable[[], int | None], stopped: str) -> int:
    """Does the work of a command and returns its exit code.

    Args:
      work: may return an exit code.
      stopped: said after Ctrl-C or SIGTERM.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return work() or 0
    # InputError is a ValueError; an ImportError says which package is missing.
    except (ValueError, OSError, ImportError) as error:
        say(f"error: {error}", style="red")
        return 2
    except KeyboardInterrupt:
        say(f"Stopped. {stopped}")
        return 130


def progress(items: Sequence, title: str) -> Iterator:
    """The items; on a terminal a bar shows how many are done and how long the rest will take."""
    return track(items, title, console=CONSOLE, disable=not CONSOLE.is_terminal)
