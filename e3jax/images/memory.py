"""Bounds the memory that pixels of all threads take at a time."""

import contextlib
import ctypes
import threading
from collections.abc import Iterator

_TRIMMED = 1 << 26  # bytes


class Budget:
    """Bounds the bytes of pixels that all threads of the process hold at a time.

    A picture that is larger than all of it waits until no other is held.
    """

    def __init__(self, limit: int):
        self._limit, self._used = limit, 0
        self._changed, self._turn = threading.Condition(), threading.Lock()

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Waits until there is room for ``size`` bytes, and takes it while it is entered."""
        with self._turn, self._changed:  # in turn, or small pictures would always pass large ones
            self._changed.wait_for(lambda: not self._used or self._used + size <= self._limit)
            self._used += size
        try:
            yield
        finally:
            if size > _TRIMMED:
                trim()
            with self._changed:
                self._used -= size
                self._changed.notify_all()


def trim() -> None:
    """Gives free memory back to the system, which glibc keeps for each thread."""
    with contextlib.suppress(Exception):  # other libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)


in_flight = Budget(1 << 29)
