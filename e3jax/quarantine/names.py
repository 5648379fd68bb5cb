"""Names of files: spelled as a file system spells them, and as any file system takes them."""

import contextlib
import os
import re
import unicodedata
from collections.abc import Callable, Mapping

# Bytes of a name in quarantine: encrypted folders of Linux take no more than 143.
_LONGEST = 140


def form(name: str) -> str:
    """A name in the Unicode normal form C; macOS writes D, and spreadsheets either."""
    return unicodedata.normalize("NFC", name)


def caseless(name: str) -> str:
    """A name as file systems that ignore case compare it."""
    return form(form(name).casefold())


def names_in(folder: str) -> dict[str, list[str]]:
    """All names in a folder, by their normal form C; {} if it cannot be read."""
    names: dict[str, list[str]] = {}
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            names.setdefault(form(name), []).append(name)
    return names


def on_disk(path: str, names: Callable[[str], Mapping[str, list[str]]] = names_in) -> str:
    """The path as the file system spells it, if one in another normal form is there.

    Args:
      path: absolute.
      names: lists a folder, as `names_in`, which may remember what it listed.
    """
    parent, name = os.path.split(path)
    if path.isascii() or parent == path or os.path.lexists(path):
        return path
    parent = on_disk(parent, names)
    same = names(parent).get(form(name), ())
    return os.path.join(parent, same[0] if len(same) == 1 else name)


def portable(number: int, path: str) -> str:
    """A numbered name for a file that any file system takes, "00001-a.png"."""
    # Without what Windows and its file systems refuse, or drop at the end of a name, and bytes that
    # are not UTF-8.
    refused = r'[\x00-\x1f\x7f<>:"\\|?*\ud800-\udfff]|[. ](?=[. ]*$)'
    name = re.sub(refused, "_", os.path.basename(path))
    stem, ending = os.path.splitext(f"{number:05d}-{name}")
    room = max(_LONGEST - len(ending.encode()), 6)
    return stem.encode()[:room].decode(errors="ignore") + ending


def number_of(name: str) -> int:
    """The number in a name that `portable` made; raises ValueError for another name."""
    return int(name.partition("-")[0])


def relative(path: str, folder: str | os.PathLike) -> str:
    """``path`` as seen from a folder; both may be behind links."""
    parent, name = os.path.split(path)
    try:
        parent = os.path.relpath(os.path.realpath(parent), os.path.realpath(folder))
    except ValueError:  # another drive of Windows
        return path
    return os.path.join(parent, name)
