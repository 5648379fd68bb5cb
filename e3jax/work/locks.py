"""Locks: one command at a time in a folder."""

import contextlib
import errno
import logging
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from e3jax.errors import InputError

NAME, _MARK = ".e3jax.lock", b"e3jax: "
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def held(folder: Path, what: str, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Holds the folder's lock, which ends with the process; the folder exists meanwhile.

    A second command is refused rather than delayed: copying to another disk may take hours.

    Args:
      folder: is made where it does not exist, and then removed again if it stays empty.
      what: the kind of command, for the error.
      shared: with other commands that share it, which only a command that does not is kept from.
      wait: for another command to end, which is said, instead of the error.

    Raises:
      InputError: another command holds it; says which.
    """
    lock, file, made, told = folder / NAME, None, False, False
    while file is None:
        made |= not folder.exists()
        folder.mkdir(exist_ok=True)
        # FileNotFoundError: a command that ended removed folder or lock.
        with contextlib.suppress(FileNotFoundError):
            try:
                file = opened(lock, shared=shared)
            except BlockingIOError:
                who = f"another command is at work in {folder} ({_holder(lock)})"
                if not wait:
                    raise InputError(f"{who}: wait until it ends (nothing was changed)") from None
                if not told:
                    _log.warning(f"waiting: {who}")
                told = True
                time.sleep(0.5)
    if file.read(len(_MARK)) not in (b"", _MARK):
        file.close()
        raise _foreign(lock)
    holder = f"{what}, process {os.getpid()} on {socket.gethostname()}, "
    holder += time.strftime("since %Y-%m-%d %H:%M:%S")
    with contextlib.suppress(OSError):  # on a full disk it is a lock all the same
        file.truncate(0)
        file.seek(0)
        file.write(_MARK + holder.encode())
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # before others can lock it; Windows removes none open
            if not shared or _alone(file):
                lock.unlink()
        with contextlib.suppress(OSError):
            file.close()
        if os.name == "nt":
            with contextlib.suppress(OSError):
                lock.unlink()
        if made:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


def opened(path: Path, *, shared: bool = False, wait: bool = False) -> BinaryIO:
    """A file that this process has locked, made where there is none; closing it frees the lock.

    Where the file system has no locks it is only opened.

    Raises:
      BlockingIOError: another process holds the lock, and ``wait`` is false.
      OSError: it cannot be opened.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
    while True:
        # Unbuffered: what fails on a full disk fails here, not where it is closed.
        file = os.fdopen(_descriptor(path, flags), "r+b", 0)
        with contextlib.ExitStack() as stack:
            stack.callback(file.close)
            _lock(file.fileno(), shared, wait)
            state = os.fstat(file.fileno())
            # Another process may have removed or renamed it between the two.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(state, os.stat(path)):
                    if state.st_nlink != 1:
                        raise _foreign(path)
                    stack.pop_all()
                    return file


def _descriptor(path: Path, flags: int) -> int:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):  # opening a pipe would block
            raise _foreign(path)
    try:
        return os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _foreign(path) from error
        raise


def _foreign(path: Path) -> InputError:
    return InputError(f"{path} has a name of e3jax's and is not e3jax's: move it (it was left)")


def _holder(lock: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return lock.read_text("utf-8").removeprefix(_MARK.decode()) or "it has just begun"
    return "it has just begun"


def _alone(file: BinaryIO) -> bool:
    """Whether no other process shares the lock any more."""
    try:
        _lock(file.fileno(), shared=False, wait=False)
    except BlockingIOError:
        return False
    return True


def _lock(descriptor: int, shared: bool, wait: bool) -> None:
    """Locks an open file; does nothing where the file system has no locks.

    Raises:
      BlockingIOError: another process holds the lock.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        import msvcrt

        try:
            if not shared:  # Windows shares none
                msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error
        return
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        # Not lockf, which would let two threads of a process in.
        fcntl.flock(descriptor, how if wait else how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise BlockingIOError from error
