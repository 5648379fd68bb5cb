"""Work in threads, whose failures and warnings are kept apart."""

import concurrent.futures
import contextlib
import errno
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from e3jax.images import decoding, formats


def in_threads(
    work: Callable,
    items: Sequence,
    on_item: Callable[[int], None] = lambda done: None,
    threads: int | None = None,
) -> list:
    """``work(item)`` per item, or the exception that it raised, in order.

    What fails is tried again when all others are done, one by one: decoders that share the memory
    with others may fail for lack of it, and not all of them say so. ``on_item`` is called with the
    number of items done.
    """

    def attempt(item):
        try:
            with quiet.here():  # damaged metadata and large images cause warnings
                return work(item)
        except Exception as error:  # decoders raise errors of any type for damaged files
            error.__cause__ = error.__context__ = None
            return error.with_traceback(None)  # which holds on to the pixels

    formats.readable_formats()  # imports, which threads should find done
    results = []
    with quiet:
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            # Handing items to a single thread would take longer than to decode small ones.
            for result in (map if threads == 1 else pool.map)(attempt, items):
                results.append(result)
                on_item(len(results))
        for number, result in enumerate(results):
            if isinstance(result, Exception) and not _is_final(result):
                results[number] = attempt(items[number])
    return results


class _Quiet:
    """While it is entered, ignores the warnings of threads that are in `here`, and of no others.

    Not `warnings.catch_warnings`, which silences the whole program, and of two threads that use it
    at once the last one would bring the first one's filters back. This adds an entry of its own to
    the program's filters, whose module is this object, and removes that entry only.
    """

    def __init__(self):
        self._lock, self._entered, self._lists = threading.Lock(), 0, []
        self._entry, self._thread = ("ignore", None, Warning, self, 0), threading.local()

    def __enter__(self) -> None:
        with self._lock:
            self._entered += 1
            filters: Any = warnings.filters
            self._lists.append(filters)
            self._remove_from(filters)
            filters.insert(0, self._entry)

    def __exit__(self, *error) -> None:
        with self._lock:
            self._entered -= 1
            if not self._entered:
                # The program may have replaced its filters by a copy meanwhile.
                for filters in (*self._lists, warnings.filters):
                    self._remove_from(filters)
                self._lists.clear()

    def _remove_from(self, filters: Any) -> None:
        with contextlib.suppress(ValueError):
            filters.remove(self._entry)

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """Ignores warnings of this thread."""
        self._thread.is_quiet = True
        try:
            yield
        finally:
            self._thread.is_quiet = False

    def match(self, module: str) -> bool:
        """Whether a warning is ignored, as `warnings` asks of an entry's module."""
        return getattr(self._thread, "is_quiet", False)


quiet = _Quiet()


def _is_final(error: Exception) -> bool:
    """Whether an error has nothing to do with memory: the system's, and a file's first bytes."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno != errno.ENOMEM
    return isinstance(error, decoding.NotAnImage)


def reason(error: Exception) -> str:
    """Describes an error in one line, without the path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, MemoryError):
        return "not enough memory"
    return (str(error) or type(error).__name__).splitlines()[0]
