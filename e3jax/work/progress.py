"""How long work reports what is done."""

from collections.abc import Callable

# (stage: "reading", "training", "sampling", "scoring", "describing",
# "encoding" or "gallery"; done; of how
# many). It may raise.
Progress = Callable[[str, int, int], None]


def no_progress(stage: str, done: int, total: int) -> None:
    """Shows no progress."""
