"""Finds image files below a folder."""

import collections
import functools
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from e3jax.collection.collection import Skipped, Unreadable
from e3jax.collection.threads import reason
from e3jax.errors import InputError
from e3jax.images import formats
from e3jax.work import files
from e3jax.work.files import FileState

# Folders of other programs' copies and rubbish.
_SKIPPED = {
    "@eadir",
    "#recycle",
    "$recycle.bin",
    "__macosx",
    "lost+found",
    "system volume information",
}
MANIFEST = "manifest.json"  # of a quarantine
_SAMPLE = 3  # files of an unknown ending that are looked into


def find_all(paths: Iterable[Path]) -> tuple[list[Path], list[Unreadable]]:
    """Finds the image files of several folders, and files, each once however it is spelled.

    Args:
      paths: of folders, see :func:`find_files`, and of files, which are not looked at.

    Returns:
      The files, and what was left out.

    Raises:
      InputError: see :func:`find_files`.
    """
    each_once, left_out, identity = {}, [], identities()
    for path in paths:
        listed, unreadable = ([path], []) if path.is_file() else find_files(path)
        for file in listed:
            each_once.setdefault(identity(str(file)), file)
        left_out += unreadable
    return list(each_once.values()), left_out


def find_files(folder: str | os.PathLike) -> tuple[list[Path], list[Unreadable]]:
    """Finds all image files below a folder by their endings, those without an ending by content.

    Hidden files and folders are skipped, and so are those that other programs keep for themselves
    (``@eaDir``, ``__MACOSX`` ...), and quarantines. Links to folders are not followed, because they
    can form cycles. The order is natural: "2.png" comes before "10.png".

    Returns:
      The files in natural order; and what was left out: a `Skipped` for each ending of images that
      cannot be read here and for linked folders, and the folders that cannot be opened.

    Raises:
      InputError: the folder does not exist, is a quarantine or contains no images.
    """
    folder, images, errors = Path(folder), [], []
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}, expected a folder of images: check the path")
    if is_quarantine(folder):
        raise InputError(f"{folder} is a quarantine: move its files back first, with --undo")
    endings, others, links = formats.endings(), collections.defaultdict(list), []

    for path, folders, names in os.walk(folder, onerror=errors.append):
        if is_quarantine(path):
            folders[:], names = [], []
        folders[:] = [name for name in folders if not _is_skipped(name)]
        links += [at for name in folders if os.path.islink(at := os.path.join(path, name))]
        for name in names:
            ending, file = _ending(name), Path(path, name)
            if name.startswith("."):
                continue
            if ending in endings or (not ending and _is_readable(_kind(file))):
                images.append(file)
            else:
                others[ending].append(file)
    left_out = [Skipped(str(folder), note) for note in _notes(folder, others, links)]
    left_out += [Unreadable(str(error.filename), reason(error)) for error in errors]
    if not images:
        why = f" ({left_out[0].reason}: {left_out[0].path})" if left_out else ""
        raise InputError(f"{folder} has no image files{why}: choose a folder of at least 2 images")
    return sorted(images, key=lambda path: _natural(path.relative_to(folder))), left_out


def is_quarantine(folder: str | os.PathLike) -> bool:
    """Whether a folder, whatever its name, holds the list of what quarantine moved there."""
    path = Path(folder, MANIFEST)
    try:
        if not path.is_file():  # opening a pipe would block
            return False
        with open(path, "rb") as file:
            return bool(re.match(rb'\s*\{\s*"e3jax"\s*:\s*"quarantine"', file.read(256)))
    except OSError:
        return False


def place_of(folder: str | os.PathLike) -> tuple:
    """Which folder it is, however it is spelled."""
    state = files.state_of(folder)
    return state[:2] if state != FileState() else (os.path.realpath(folder),)


def identities() -> Callable[[str], tuple]:
    """A function of paths that tells which file each is, however its folder is spelled."""
    place = functools.cache(place_of)

    def identity(path: str) -> tuple:
        folder, name = os.path.split(path)
        return place(folder), name

    return identity


def _is_skipped(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SKIPPED


def _ending(name: str) -> str:
    """The ending of a file's name; "" where it is a part of the name, as in "1.2.840.10008"."""
    suffix = Path(name).suffix.lower()
    return "" if suffix == "." or suffix[1:].isdigit() else suffix


def _kind(path: Path) -> str:
    """The kind of a file by its first bytes; "" also if it cannot be opened."""
    try:
        with formats.open_regular(path) as file:
            return formats.format_of(file.read(formats.HEAD))
    except OSError:
        return ""


def _is_readable(kind: str) -> bool:
    return kind in formats.FORMATS and kind != "web page" and not formats.remedy(kind)


def _notes(folder: Path, others: dict[str, list[Path]], links: list[str]) -> list[str]:
    """One sentence for each ending of images that are not read, and one for linked folders."""
    notes = []
    for ending, paths in sorted(others.items()):
        if ending in formats.OTHER_ENDINGS:
            remedies = {formats.remedy(formats.OTHER_ENDINGS[ending]): len(paths)}
        elif ending:
            hidden = {_kind(path) for path in paths[:_SAMPLE]} & formats.PICTURES
            remedies = {f"they hold images ({', '.join(sorted(hidden))}), rename them": len(paths)}
            remedies = remedies if hidden else {}
        else:
            hidden = filter(formats.PICTURES.__contains__, map(_kind, paths))
            remedies = collections.Counter(map(formats.remedy, hidden))
        for remedy, n in remedies.items():
            name = (f"{ending} " if ending else "") + ("files" if n > 1 else "file")
            name += ("" if ending else " without an ending") + (" were" if n > 1 else " was")
            notes.append(f"{n} {name} not looked at: {remedy}")
    inside = os.path.realpath(folder)
    away = [at for at in links if not _is_below(os.path.realpath(at), inside)]
    if away:
        name = "linked folders were" if len(away) > 1 else "linked folder was"
        notes.append(
            f"{len(away)} {name} not followed, {away[0]}: give the folder that it leads to"
        )
    return notes


def _natural(path: Path) -> tuple:
    """A sort key that orders numbers in file names by value."""
    parts = re.split(r"(\d+)", str(path).casefold())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], str(path)


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
