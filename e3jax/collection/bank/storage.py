"""The files of a bank: ``bank.json``, and shards, Arrow files with a row per picture."""

import contextlib
import io
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from e3jax.collection import copies
from e3jax.errors import InputError
from e3jax.images import facts
from e3jax.images.high_depth import HighDepthImage, ValueRange
from e3jax.work import files
from e3jax.work.files import FileState

ABOUT = "bank.json"
SHARDS = "[0-9]" * 7 + ".arrow"
AGAIN = "run the command that made it again, which continues"
FORMAT = 5
_MARK = "e3jax: a shard of a bank"
_DAMAGED = (OSError, ValueError, EOFError, KeyError)  # what reading half a file, or none, raises


class About(NamedTuple):
    """What a bank says about itself.

    Attributes:
      place: the folder of the bank, by which its files are found where both were moved.
      format: of this file and of the shards.
      side, resize: how images were made, see :class:`e3jax.collection.Reader`; of arrays ``resize``
        is "".
      has_paths: whether images are files.
      banks: folders of the banks that it is joined of; None of a bank with shards of its own.
      finished: whether all shards are there.
      shards: how many there are, when all of them are.
      unreadable, skipped: what else was left out, paths and reasons.
      file_range: black and white in files of more than 8 bits.
    """

    place: str = ""
    format: int = FORMAT
    side: int = 0
    resize: str = ""
    has_paths: bool = True
    banks: Sequence[str] | None = None
    finished: bool = False
    shards: int = 0
    unreadable: Sequence[tuple[str, str]] = ()
    skipped: Sequence[tuple[str, str]] = ()
    file_range: ValueRange = ValueRange()

    @property
    def kind(self) -> str:
        """What makes a bank another one, in words."""
        if self.format != FORMAT:
            return "of another version"
        if self.banks is not None:
            return "joined of banks"
        what = "files" if self.has_paths else "arrays"
        resize = f" and resize {self.resize}" if self.resize else ""
        return f"of {what} with image size {self.side}{resize}"

    def write(self, folder: Path) -> None:
        """Writes it into a bank, which is whole from then on."""
        files.write_text(folder / ABOUT, json.dumps({"e3jax": "bank"} | self._asdict()))


def about(folder: str | os.PathLike) -> About:
    """What a bank says about itself; an empty one of what is not a bank."""
    path, content = Path(folder, ABOUT), None
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(path.read_bytes()) if path.is_file() else None  # a pipe would block
    if not isinstance(content, dict) or content.get("e3jax") != "bank":
        return About()
    known = About(**{name: content[name] for name in About._fields if name in content})
    ends: Any = (pair and tuple(pair) for pair in known.file_range)
    return known._replace(file_range=ValueRange(*ends))


def is_bank(folder: str | os.PathLike) -> bool:
    """Whether a folder is a bank, finished or not."""
    return bool(about(folder).place)


# --- Shards ------------------------------------------------------------------------------------


def arrow() -> Any:
    """The library that reads and writes shards.

    Raises:
      InputError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise InputError(
            "large collections and banks need pyarrow: pip install e3jax[large]"
        ) from error
    return pyarrow


def shard_path(folder: Path, number: int) -> Path:
    """The file of a bank's shard."""
    return folder / f"{number:07d}.arrow"


def remove_shards(folder: Path, first: int = 0) -> None:
    """Removes a bank's shards from a number on; other programs' files of such names stay."""
    for path in folder.glob(SHARDS):
        if int(path.stem) >= first and files.is_marked(path, _MARK):
            path.unlink()


def check_shard(path: Path) -> None:
    """Raises an InputError if a shard would replace what is not one."""
    files.check_output(path, _MARK)


def write_shard(path: Path, rows: Sequence[dict], side: int) -> None:
    """Writes a shard, those rows first that have no reason why they cannot be read.

    Args:
      path: of the shard.
      rows: values by column; pixels are uint8 [side, side, 1 or 3], black where there are none yet.
      side: of the images.
    """
    pa = arrow()
    rows = sorted(rows, key=lambda row: row.get("reason") is not None)
    pixels = np.zeros((len(rows), side, side, 3), np.uint8)
    for image, row in zip(pixels, rows, strict=True):
        image[:] = row.get("pixels", 0)
    if (pixels == pixels[..., :1]).all():
        pixels = np.ascontiguousarray(pixels[..., :1])
    columns = {
        "path": pa.binary(),  # names of files need not be text
        **dict.fromkeys(FileState._fields, pa.int64()),
        "facts": pa.list_(pa.float32(), facts.LENGTH),  # of the file
        "reason": pa.string(),  # why it cannot be read
        "thumbnail": pa.binary(),  # a WebP file's content
        "values": pa.large_binary(),  # of a file of more than 8 bits, see `packed`
    }
    schema = pa.schema(columns, {"e3jax": _MARK, "side": str(side)})
    table = pa.Table.from_pylist(rows, schema).append_column("digest", [copies.digests(pixels)])
    of_image, buffers = pa.binary(math.prod(pixels.shape[1:])), [None, pa.py_buffer(pixels)]
    column = pa.FixedSizeBinaryArray.from_buffers(of_image, len(pixels), buffers)
    table = table.append_column("pixels", column)

    def write(file: BinaryIO) -> None:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    files.write_atomically(path, write)


class Shard:
    """A shard, mapped into memory. Its methods take positions int [m]; default: all rows.

    Args:
      path: of the shard.
      renamed: what a file is called now, by its path when it was read.

    Raises:
      OSError, ValueError: it is missing, not whole or another program's.
    """

    def __init__(self, path: Path, renamed: Callable[[str], str] = str):
        file = arrow().ipc.open_file(arrow().memory_map(os.fsencode(path)))
        marks = file.schema.metadata or {}
        if marks.get(b"e3jax") != _MARK.encode():
            raise ValueError("another program's file")
        self.path, self.side, self._renamed = path, int(marks[b"side"]), renamed
        self._table = file.read_all()
        self.count = self._table["reason"].null_count  # of images, which come first
        self.channels = file.schema.field("pixels").type.byte_width // self.side**2

    def __len__(self) -> int:
        return len(self._table)

    def _columns(self, rows: np.ndarray | None, *names: str) -> list:
        table = self._table.select(names)
        return (table if rows is None else table.take(rows)).columns

    def paths(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Names of files as they are now, str [m]."""
        [paths] = self._columns(rows, "path")
        return np.array([self._renamed(os.fsdecode(p)) for p in paths.to_pylist()], object)

    def states(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Fields of :class:`e3jax.work.files.FileState`, int64 [m, 4]."""
        columns = self._columns(rows, *FileState._fields)
        return np.stack([column.to_numpy() for column in columns], axis=1)

    def facts(self, rows: np.ndarray) -> np.ndarray:
        """What :meth:`e3jax.images.facts.Facts.vector` gives of images' files, float32 [m, d]."""
        [column] = self._columns(rows, "facts")
        return column.combine_chunks().flatten().to_numpy().reshape(-1, facts.LENGTH)

    def thumbnails(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Contents of files [m], b"" for an image that has none."""
        [contents] = self._columns(rows, "thumbnail")
        return np.array([content or b"" for content in contents.to_pylist()], object)

    def digests(self) -> np.ndarray:
        """uint64 [m], of the images."""
        return self._table["digest"].slice(0, self.count).to_numpy()

    def pixels(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """uint8 [m, h, w, c] of the images, of all of them a view of the file."""
        column = self._table["pixels"].chunk(0)
        shape = (len(column), self.side, self.side, self.channels)
        start = column.offset * math.prod(shape[1:])
        values = np.frombuffer(column.buffers()[1], np.uint8, math.prod(shape), start)
        return values.reshape(shape)[: self.count][rows]

    def rows(self) -> list[dict]:
        """Its rows as :func:`write_shard` takes them."""
        rows = self._table.drop_columns(["digest", "pixels"]).to_pylist()
        for row, image in zip(rows, self.pixels(), strict=False):
            row["pixels"] = image
        return rows

    def unreadable(self) -> list[tuple[str, str]]:
        """Paths and reasons."""
        rows, reasons = np.arange(self.count, len(self)), self._table["reason"].to_pylist()
        return list(zip(self.paths(rows), reasons[self.count :], strict=True))

    def high_depth(self) -> Iterator[tuple[int, HighDepthImage]]:
        """Yields rows of images of more than 8 bits, and their values.

        Raises:
          InputError: they are damaged; the shard is removed, so that it is read again.
        """
        column = self._table["values"]
        for row in np.flatnonzero(column.is_valid()).tolist():
            try:
                yield row, _unpacked(column[row].as_py())
            except (*_DAMAGED, zipfile.BadZipFile) as error:
                self.path.unlink()
                raise damaged(self.path) from error


def load(path: Path, renamed: Callable[[str], str] = str) -> Shard | None:
    """A shard; None if it is missing or not whole."""
    try:
        return Shard(path, renamed)
    except _DAMAGED:
        return None


def damaged(path: Path) -> InputError:
    """The error to raise for a shard that cannot be read."""
    where, number = path.parent, int(path.stem)
    return InputError(f"{where} is damaged, shard {number} is missing or not whole: {AGAIN}")


def packed(image: HighDepthImage) -> bytes:
    """An image of more than 8 bits in NumPy's format, which notices damage."""
    content = io.BytesIO()
    np.savez(content, **image._asdict())
    return content.getvalue()


def _unpacked(content: bytes) -> HighDepthImage:
    with np.load(io.BytesIO(content)) as arrays:
        return HighDepthImage(**{k: a if a.ndim else a.item() for k, a in arrays.items()})
