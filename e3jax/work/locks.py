"""Locks: one command at a time in a folder.

The library filelock is not used, for three things that it does not do: locks that commands share
on a plain file, as the shards of one bank do; a lock file that names its holder, disappears with it
and is never a user's own file; and going on where a file system has no locks.
"""

import contextlib
import errno
import logging
import os
import socket
import stat
import sys
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
      wait: for another command to end, which is logged, instead of the error.

    Raises:
      InputError: another command holds it; says which.
    """
    lock, was_made, is_logged, file = folder / NAME, False, False, None
    while file is None:
        was_made |= not folder.exists()
        folder.mkdir(exist_ok=True)
        try:
            file = opened(lock, shared=shared)
        except FileNotFoundError:  # a command that ended removed the folder
            continue
        except BlockingIOError:
            who = f"another command is at work in {folder} ({_holder(lock)})"
            if not wait:
                raise InputError(f"{who}: wait until it ends (nothing was changed)") from None
            if not is_logged:
                _log.warning(f"waiting: {who}")
            is_logged = True
            time.sleep(0.5)
    if file.read(len(_MARK)) not in (b"", _MARK):
        file.close()
        raise _foreign(lock)
    since = time.strftime("since %Y-%m-%d %H:%M:%S")
    holder = f"{what}, process {os.getpid()} on {socket.gethostname()}, {since}"
    with contextlib.suppress(OSError):  # on a full disk it is a lock all the same
        file.truncate(0)
        file.seek(0)
        file.write(_MARK + holder.encode())
    try:
        yield
    finally:
        is_windows = os.name == "nt"  # which removes no open file
        with contextlib.suppress(OSError):
            # Before others can lock it, and unless others share it.
            if not is_windows and _locked(file.fileno(), shared=False, wait=False):
                lock.unlink()
        with contextlib.suppress(OSError):
            file.close()
        with contextlib.suppress(OSError):
            if is_windows:
                lock.unlink()
            if was_made:
                folder.rmdir()  # fails if it is not empty


def opened(path: Path, *, shared: bool = False, wait: bool = False) -> BinaryIO:
    """A file that this process has locked, made where there is none; closing it frees the lock.

    Where the file system has no locks it is only opened.

    Raises:
      BlockingIOError: another process holds the lock, and ``wait`` is false.
      InputError: it is not a plain file, or has a second name.
      OSError: it cannot be opened.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    while True:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(os.lstat(path).st_mode):  # opening a pipe would block
                raise _foreign(path)
        # Unbuffered: what fails on a full disk fails here, not where it is closed.
        file = os.fdopen(os.open(path, flags, 0o666), "r+b", 0)
        with contextlib.ExitStack() as stack:
            stack.callback(file.close)
            if not _locked(file.fileno(), shared, wait):
                raise BlockingIOError(f"{path} is locked")
            state = os.fstat(file.fileno())
            # Another process may have removed or renamed it between the two.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(state, os.stat(path)):
                    if state.st_nlink != 1:
                        raise _foreign(path)
                    stack.pop_all()
                    return file


def _foreign(path: Path) -> InputError:
    return InputError(
        f"{path} has a name that e3jax uses, but e3jax did not write it: move it (it was left)"
    )


def _holder(lock: Path) -> str:
    """Who holds a lock, in words."""
    text = ""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = lock.read_text("utf-8").removeprefix(_MARK.decode())
    return text or "it has just begun"


def _locked(descriptor: int, shared: bool, wait: bool) -> bool:
    """Locks an open file, if its file system has locks; False if another process holds it."""
    if sys.platform == "win32":
        import msvcrt

        try:
            if not shared:  # Windows shares none
                msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        # Not lockf, which would let two threads of a process in.
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True
