"""Moves one file: it is whole at one place at any time, and nothing is overwritten."""

import contextlib
import ctypes
import errno
import os
import shutil
import stat
import sys


def try_to_move(source: str, target: str, partial: str) -> str:
    """Moves a file, see `move`; returns why it cannot be moved, or ""."""
    try:
        move(source, target, partial)
    except OSError as error:
        return f"cannot be moved: {error.strerror or error}"
    return ""


def move(source: str, target: str, partial: str) -> None:
    """Moves a file or link and overwrites nothing; on OSError, it is where it was, and only there.

    On another file system it is whole under its final name before it is removed from its first
    place: until then it has the name ``partial`` in the target's folder.
    """
    try:
        _rename(source, target)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    partial = os.path.join(os.path.dirname(target), partial)
    try:
        _copy(source, partial)
        _rename(partial, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
    _sync_folder(os.path.dirname(target))
    try:
        os.unlink(source)
    except OSError:
        os.unlink(target)
        raise


def _rename(source: str, target: str) -> None:
    """Renames within a file system; raises FileExistsError where os.rename would overwrite."""
    names = os.fsencode(source), os.fsencode(target)
    libc = ctypes.CDLL(None) if sys.platform in ("linux", "darwin") else None
    if rename := getattr(libc, "renameat2", None):  # AT_FDCWD and RENAME_NOREPLACE
        failed = rename(-100, names[0], -100, names[1], 1)
    elif rename := getattr(libc, "renamex_np", None):  # RENAME_EXCL
        failed = rename(*names, 4)
    else:
        failed = True
    if failed and os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
    if failed:  # the file system has no such call; or os.rename says what is wrong
        os.rename(source, target)


def _sync_folder(path: str) -> None:
    """Waits until the disk has the names in a folder, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _copy(source: str, target: str) -> None:
    """Copies a file or link as `mv` does, and waits until the disk has the content."""
    before = os.lstat(source)
    if stat.S_ISLNK(before.st_mode):
        os.symlink(os.readlink(source), target)
    else:
        # Until then only those who can open the source can open it.
        rights = stat.S_IRUSR | stat.S_IWUSR | (before.st_mode & 0o077)

        def opener(path: str, flags: int) -> int:
            return os.open(path, flags, rights)

        with open(source, "rb") as reader, open(target, "xb", opener=opener) as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
            writer.flush()
            os.fsync(writer.fileno())
    _copy_attributes(source, target, before)
    after = os.lstat(source)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise OSError(errno.EBUSY, "another program changed it meanwhile", source)


def _copy_attributes(source: str, target: str, state: os.stat_result) -> None:
    """Copies owner, extended attributes, rights and times, each if the target's disk takes it.

    Network shares and disks of cameras refuse some or all. The order matters: a new owner clears
    rights, and without the right to write no attribute can be set.
    """
    is_link, rights = stat.S_ISLNK(state.st_mode), stat.S_IMODE(state.st_mode)
    refused = contextlib.suppress(OSError, AttributeError, NotImplementedError)  # or unknown here
    for owner in ((-1, state.st_gid), (state.st_uid, -1)):
        with refused:
            os.chown(target, *owner, follow_symlinks=False)
    with refused:
        for name in os.listxattr(source, follow_symlinks=False):
            with refused:
                value = os.getxattr(source, name, follow_symlinks=False)
                os.setxattr(target, name, value, follow_symlinks=False)
    if not is_link:
        new = os.stat(target)
        if (new.st_uid, new.st_gid) != (state.st_uid, state.st_gid):
            rights &= ~(stat.S_ISUID | stat.S_ISGID)  # they would be another owner's
        with refused:
            os.chmod(target, rights)
    with refused:
        times = (state.st_atime_ns, state.st_mtime_ns)
        os.utime(target, ns=times, follow_symlinks=not is_link)
