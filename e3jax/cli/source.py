"""What a command is given: files, folders of them, or a bank."""

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from e3jax import choices
from e3jax.cli import console
from e3jax.collection import bank, collection, finding
from e3jax.devices import engines
from e3jax.errors import InputError
from e3jax.work.files import printable


class Source(NamedTuple):
    """What is ranked: files, or a bank with its thumbnails."""

    X: list[Path] | Path
    closed: list[collection.Unreadable]
    thumbnails: Sequence[bytes] = ()
    pictures: Any = None

    @property
    def is_bank(self) -> bool:
        return isinstance(self.X, Path)

    @property
    def is_large(self) -> bool:
        """Whether it is a bank, or so many files that one is made of them."""
        has_pyarrow = importlib.util.find_spec("pyarrow") is not None
        return self.is_bank or (len(self.X) > choices.LARGE and has_pyarrow)


def find(args: argparse.Namespace) -> Source:
    """The images of PHOTOS, by absolute paths, each once, without those in a quarantine."""
    paths, closed, identity = {}, [], bank.identities()
    if any(map(bank.is_bank, args.photos)):
        if len(args.photos) > 1:
            raise InputError(
                "a bank is taken alone: give one, or folders and files of images; e3jax bank "
                "joins several banks to one"
            )
        return Source(args.photos[0].absolute(), [])
    if getattr(args, "shard", (1, 1)) != (1, 1):
        raise InputError("--shard needs a bank, which all of them can read: run e3jax bank first")
    for photos in args.photos:
        found, left_out = [photos.absolute()], []
        if not photos.is_file():
            found, left_out = finding.find_files(photos.absolute())
        for file in found:  # a folder may be given twice, in other words
            paths.setdefault(identity(str(file)), file)
        closed += left_out
    return Source(list(paths.values()), closed)


def on_disk(found: Source, args, side: int, fit: str, console, on_progress) -> Source:
    """A source as a bank if it is one, or large: then one is made beside the report."""
    if found.is_bank:
        folder, opened = found.X, bank.open_bank(found.X, side, fit)
    else:
        if not found.is_large:
            return found
        folder = args.out / "bank"
        console.print(
            f"{len(found.X)} files are many: they are read into {folder} first, which may be "
            "ranked again instead of them"
        )
        opened = write_bank(folder, found, args, side, fit, on_progress)
    pictures = opened.images if opened.ids.dtype.kind == "i" else None
    return Source(folder, [], opened.thumbnails, pictures)


def write_bank(folder: Path, found: Source, args, side: int, fit: str, on_progress):
    total = len(found.X)
    on_ray = getattr(args, "engine", "local") == "ray"
    return bank.write(
        folder,
        found.X,
        side,
        fit,
        found.closed,
        lambda done: on_progress("reading", done, total),
        engines.on_ray(args.ray_address) if on_ray else engines.processes,
    )


def say_left_out(screen: console.Console, left_out, scale) -> None:
    unreadable = [entry for entry in left_out if not isinstance(entry, collection.Skipped)]
    console.list_files(screen, "left out", [f"{path}: {reason}" for path, reason in unreadable])
    for note in [entry.reason for entry in left_out if entry not in unreadable] + scale.notes:
        screen.print(printable(note))
