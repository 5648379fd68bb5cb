"""Locks: one command at a time in a folder."""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from e3jax.images import InputError


@contextlib.contextmanager
def held(folder: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Holds the folder's lock, which ends with the process; the folder exists meanwhile.

    A second command is refused rather than delayed: copying to another disk may take hours.

    Args:
      folder: is removed afterwards if it is empty.
      what: the kind of command, for the error.
      wait: for another command to end, instead of the error.

    Raises:
      InputError: another command holds it.
    """
    lock, file = folder / ".lock", None
    while file is None:
        folder.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # a command that ended removed folder or lock
            try:
                file = _lock(lock, what)
            except InputError:
                if not wait:
                    raise
                time.sleep(0.5)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # before others can lock it
            lock.unlink()
        file.close()
        with contextlib.suppress(OSError):  # not empty
            if os.name == "nt":  # which removes no open file
                lock.unlink()
            folder.rmdir()


def _lock(path: Path, what: str) -> BinaryIO | None:
    """The locked file; None if it was removed before it was locked."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "ab"))
        try:
            _lock_descriptor(file.fileno())
        except BlockingIOError:
            raise InputError(
                f"another {what} command is at work in {path.parent}: wait until it ends (nothing "
                "was changed)"
            ) from None
        if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            stack.pop_all()  # stays open, and locked
            return file
    return None


def _lock_descriptor(descriptor: int) -> None:
    """Locks an open file without waiting; does nothing where the file system has no locks.

    Raises:
      BlockingIOError: somebody else holds the lock.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error
        return
    try:
        # Not lockf, which would let two threads of a process in.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise BlockingIOError from error
