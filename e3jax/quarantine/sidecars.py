"""Sidecars: files about pictures, which go where their pictures go."""

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterable

from e3jax.quarantine.names import caseless

# Ratings and edits, a cloud's description, Apple's edits.
ENDINGS = (".xmp", ".json", ".aae")


def sidecars_of(
    pictures: Iterable[str], aside: Iterable[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """The sidecars of pictures: a.jpg.xmp, a.jpg.anything.json or a.xmp, in any case.

    Args:
      pictures: paths of those that are moved, or were.
      aside: paths of files that are in quarantine.

    Returns:
      By each sidecar that may follow, its pictures; and the sidecars that stay, because a picture
      that stays shares them.
    """
    owners, shared, by_folder = {}, [], defaultdict(set)
    for path in pictures:
        by_folder[os.path.dirname(path)].add(os.path.basename(path))
    for folder, moving in by_folder.items():
        names = _files_in(folder)
        sidecars = sorted(n for n in names - moving if n.lower().endswith(ENDINGS))
        by_name, by_stem = defaultdict(list), defaultdict(list)
        for name in (names | moving).difference(sidecars):
            by_name[caseless(name)].append(name)
            by_stem[_stem(name)].append(name)
        for name in sidecars:
            stem, path = _stem(name), os.path.join(folder, name)
            owned_by = by_name.get(stem) or by_stem.get(stem) or by_name.get(_stem(stem), [])
            if moving.issuperset(owned_by) and owned_by and path not in aside:
                owners[path] = [os.path.join(folder, owner) for owner in owned_by]
            elif moving.intersection(owned_by):
                shared.append(path)
    return owners, shared


def _stem(name: str) -> str:
    return os.path.splitext(caseless(name))[0]


def _files_in(folder: str) -> set[str]:
    """Names of files and links; none if the folder is gone, since its pictures are aside."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        return {e.name for e in entries if e.is_symlink() or e.is_file(follow_symlinks=False)}
    return set()
