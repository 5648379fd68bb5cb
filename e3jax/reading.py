"""Files and folders become an ImageBank and thumbnails."""

import collections
import concurrent.futures
import contextlib
import errno
import io
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from e3jax import decoding, files, kinds, quarantine
from e3jax.choices import FITS
from e3jax.collecting import is_path
from e3jax.decoding import Deep, FileScale
from e3jax.errors import InputError
from e3jax.images import ImageBank, as_bank, to_picture, to_square

# Folders of other programs' copies and rubbish.
_SKIPPED = {
    "@eadir",
    "#recycle",
    "$recycle.bin",
    "__macosx",
    "lost+found",
    "system volume information",
}
_SAMPLE = 3  # files of an unknown ending that are looked into


class Unreadable(NamedTuple):
    """A file or folder that was left out, and the reason in a few words."""

    path: str
    reason: str


class NotLookedAt(Unreadable):
    """Files of one ending, or folders, that were not looked at: the folder, and a sentence."""


class Collection(NamedTuple):
    """Images read from files.

    bank:       the readable images; their ids are their paths.
    unreadable: the files that could not be read.
    thumbnails: one WebP file's content per image of a bank on disk; else empty.
    scale:      what is black and white in files of more than 8 bits.
    digests:    uint64 [n] of the images, see `e3jax.copies.digests`; None where nobody has them.
    states:     int64 [n, 4], the `e3jax.files.FileState` of each file before it was read; None for
      what is not a file.
    """

    bank: ImageBank
    unreadable: list[Unreadable]
    thumbnails: Sequence[bytes] = ()
    scale: FileScale = FileScale()
    digests: np.ndarray | None = None
    states: np.ndarray | None = None


def find_files(folder: str | os.PathLike) -> tuple[list[Path], list[Unreadable]]:
    """Finds all image files below a folder by their endings, those without an ending by content.

    Hidden files and folders are skipped, and so are those that other programs keep for themselves
    (``@eaDir``, ``__MACOSX`` ...), and quarantines. Links to folders are not followed, because they
    can form cycles. The order is natural: "2.png" comes before "10.png".

    Returns:
      The files, and what was left out: a `NotLookedAt` for each ending of images that cannot be
      read here and for linked folders, and the folders that cannot be opened.

    Raises:
      InputError: the folder does not exist, is a quarantine or contains no images.
    """
    folder, found, errors = Path(folder), [], []
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}, expected a folder of images: check the path")
    if quarantine.is_quarantine(folder):
        raise InputError(f"{folder} is a quarantine: move its files back first, with --undo")
    extensions, others, links = kinds.endings(), collections.defaultdict(list), []

    for path, folders, names in os.walk(folder, onerror=errors.append):
        if quarantine.is_quarantine(path):
            folders[:], names = [], []
        folders[:] = [name for name in folders if not _is_skipped(name)]
        links += [at for name in folders if os.path.islink(at := os.path.join(path, name))]
        for name in names:
            suffix, file = Path(name).suffix.lower(), Path(path, name)
            if name.startswith("."):
                continue
            if suffix in extensions or (_is_none(suffix) and _is_readable(_kind(file))):
                found.append(file)
            else:
                others["" if _is_none(suffix) else suffix].append(file)
    left_out = [NotLookedAt(str(folder), note) for note in _notes(folder, others, links)]
    left_out += [Unreadable(str(error.filename), reason(error)) for error in errors]
    if not found:
        why = f" ({left_out[0].reason}: {left_out[0].path})" if left_out else ""
        raise InputError(f"{folder} has no image files{why}: choose a folder of at least 2 images")
    return sorted(found, key=lambda path: _natural(path.relative_to(folder))), left_out


def _is_skipped(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SKIPPED


def _is_none(suffix: str) -> bool:
    """Whether it is no ending but a part of the name, as in "image" and "1.2.840.10008"."""
    return suffix in ("", ".") or suffix[1:].isdigit()


def _kind(path: Path) -> str:
    """The kind of a file by its first bytes; "" also if it cannot be opened."""
    try:
        with kinds.open_regular(path) as file:
            return kinds.kind_of(file.read(kinds.HEAD))
    except OSError:
        return ""


def _is_readable(kind: str) -> bool:
    return kind in kinds.KINDS and kind != "web page" and not kinds.remedy(kind)


def _notes(folder: Path, others: dict[str, list[Path]], links: list[str]) -> list[str]:
    """One sentence for each ending of images that are not read, and one for linked folders."""
    notes = []
    for ending, paths in sorted(others.items()):
        if ending in kinds.OTHER_ENDINGS:
            remedies = {kinds.remedy(kinds.OTHER_ENDINGS[ending]): len(paths)}
        elif ending:
            hidden = {_kind(path) for path in paths[:_SAMPLE]} & kinds.PICTURES
            remedies = {f"they hold images ({', '.join(sorted(hidden))}), rename them": len(paths)}
            remedies = remedies if hidden else {}
        else:
            hidden = filter(kinds.PICTURES.__contains__, map(_kind, paths))
            remedies = collections.Counter(map(kinds.remedy, hidden))
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


def read_files(
    sources: Iterable,
    side: int = 32,
    fit: str = "squash",
    colour: bool | None = None,
    least: int = 2,
    on_file: Callable[[int], None] = lambda done: None,
    scale: FileScale | None = None,
) -> Collection:
    """Reads image files into a bank of square images.

    Images are rotated as their EXIF data says. CMYK, palette, 16-bit and float images become
    greyscale or RGB. Transparent pixels become white, or black where a white drawing would not be
    seen, see :func:`e3jax.images.opaque`. The first frame of an animation is used.
    Files of more than 179 million pixels, Pillow's limit, are not decoded: a few kilobytes can
    expand to gigabytes. Only regular files are opened, and no other program is started.

    Files of more than 8 bits often use a part of their range, e.g. 12 of 16 bits. All of them
    share one scale, so that a dark image stays dark, see :func:`e3jax.decoding.common_scale`. Their
    pixels without data, NaN or what GDAL's tag says, do not count and become black.

    Args:
      sources: files, by their paths or contents, or images, arrays uint8 [h, w] or [h, w, c], c 1
        to 4, or Pillow's. Images are told by their paths; by their positions if any is no path.
      side: side of the images in the bank in pixels, even.
      fit: how an image becomes square: "squash" scales both sides, "crop" keeps the largest square
        in the middle, "letterbox" adds black borders.
      colour: True for RGB, False for greyscale, None for RGB if any image has colour.
      least: smallest allowed number of readable images; training needs 2.
      on_file: called with the number of files done after each file.
      scale: of files of more than 8 bits, e.g. that of an earlier collection; what it does not
        have is found from these files.

    Raises:
      InputError: unknown fit, odd side, fewer than ``least`` readable images, or a source without
        a path that cannot be read.
    """
    sources = list(sources)
    have_paths = all(map(is_path, sources))
    names = list(map(os.fspath, sources)) if have_paths else range(len(sources))
    states, unreadable, ids, found = {}, [], [], []

    def on_open(source) -> None:
        if have_paths:
            states[os.fspath(source)] = files.state_of(source)

    results = read_each(sources, side, fit, on_file, on_open=on_open)
    for name, result in zip(names, results, strict=True):
        if not isinstance(result, Exception):
            ids.append(name)
            found.append(result[0])
        elif have_paths:
            unreadable.append(Unreadable(name, reason(result)))
        else:
            raise InputError(f"element {name} cannot be read ({reason(result)}): leave it out")
    if len(ids) < max(least, 1):
        first = unreadable[0] if unreadable else None
        if len(sources) == 1 and first:
            raise InputError(f"{first.path} cannot be read ({first.reason})")
        why = f": {first.reason} ({first.path})" if first else ""
        raise InputError(
            f"{len(ids)} of {len(sources)} files are readable images, expected at least {least}: "
            f"an outlier needs other images to differ from, so provide a larger collection{why}"
        )
    scale = decoding.common_scale([image for image in found if isinstance(image, Deep)], scale)
    images = np.stack([_in_scale(image, scale) for image in found])
    is_grey = colour is False or (colour is None and (images == images[..., :1]).all())
    images = in_colours(images, 1 if is_grey else 3)
    states = np.array([states[path] for path in ids], np.int64) if have_paths else None
    return Collection(as_bank(images, ids, least), unreadable, scale=scale, states=states)


def read_each(
    sources: Sequence,
    side: int,
    fit: str,
    on_file: Callable[[int], None] = lambda done: None,
    thumbnails: int = 0,
    threads: int | None = None,
    on_open: Callable = lambda source: None,
) -> list:
    """Reads images one by one, see `read_files`; ``threads`` at a time, by default many.

    ``on_open`` is called with a source just before it is read, in one of the threads.

    Returns:
      For each source the exception that its decoder raised, of any type, or a list: pixels uint8
      [h, w, 3], or a `Deep`; and where thumbnails are asked for, a WebP file's content or a `Deep`.

    Raises:
      InputError: unknown fit.
    """
    if fit not in FITS:
        raise InputError(f"fit is {fit!r}, expected one of {', '.join(FITS)}: choose one of them")
    wanted = [(side, lambda picture: to_square(picture, side, fit))]
    if thumbnails:
        wanted.append((thumbnails, lambda picture: _small(picture, thumbnails)))

    def read(source) -> list:
        on_open(source)
        if isinstance(source, np.ndarray):
            source = to_picture(source.reshape(*source.shape[:2], -1))
        found = [_finished(picture) for picture in decoding.decode(source, *wanted)]
        return [found[0], *map(_encoded, found[1:])]

    return _in_threads(read, sources, on_file, threads)


def in_colours(images: np.ndarray, channels: int) -> np.ndarray:
    """Images uint8 [n, h, w, c], c 1 or 3, with so many channels."""
    if images.shape[-1] == channels:
        return images
    if channels == 3:
        return np.broadcast_to(images, (*images.shape[:-1], 3))
    luma = images @ np.float32([0.299, 0.587, 0.114])  # ITU-R 601
    return luma.round().astype(np.uint8)[..., None]


def _finished(picture):
    """uint8 [h, w, 3] of an RGB image of Pillow's; a `Deep` waits for the collection's scale."""
    return picture if isinstance(picture, Deep) else np.asarray(picture)


def _in_scale(image, scale: FileScale):
    return image.to_uint8(scale) if isinstance(image, Deep) else image


def thumbnails(
    pictures,
    side: int = 96,
    on_file: Callable[[int], None] = lambda done: None,
    scale: FileScale | None = None,
) -> list[bytes]:
    """Makes thumbnails that keep each image's aspect ratio, as WebP files.

    Images of at most 64 x 64 pixels keep all their pixels and exact values.

    Args:
      pictures: files, or uint8 [n, h, w, c], c 1 or 3.
      side: longest side in pixels.
      on_file: called with the number of images done after each image.
      scale: of files of more than 8 bits, as `read_files` found it; what it does not have is found
        from each file alone.

    Returns:
      The contents of n files; b"" for a file that cannot be read.
    """

    def make(picture) -> bytes:
        if isinstance(picture, np.ndarray):
            return _encoded(_small(to_picture(picture), side))
        [small] = decoding.decode(picture, (side, lambda picture: _small(picture, side)))
        if isinstance(small, Deep):
            small = small.to_uint8(decoding.common_scale([small], scale))
        return _encoded(small)

    results = _in_threads(make, list(pictures), on_file)
    return [b"" if isinstance(result, Exception) else result for result in results]


def _small(picture, side: int):
    """Shrinks a Pillow image in place."""
    picture.thumbnail((side, side), reducing_gap=3)
    return picture


def _encoded(picture) -> bytes | Deep:
    """A WebP file's content, lossless if it is small; a `Deep` waits for the collection's scale."""
    if isinstance(picture, (Deep, bytes)):
        return picture
    if isinstance(picture, np.ndarray):
        picture = to_picture(picture)
    content = io.BytesIO()
    picture.save(content, "WEBP", lossless=max(picture.size) <= 64, quality=80, method=1)
    return content.getvalue()


def _in_threads(
    work: Callable, items: Sequence, on_item: Callable[[int], None], threads: int | None = None
) -> list:
    """``work(item)`` per item, or the exception that it raised, in order.

    What fails is tried again when all others are done, alone: decoders that share the memory with
    others may fail for lack of it, and not all of them say so. ``on_item`` is called with the
    number of items done.
    """

    def attempt(item):
        try:
            with _quiet.here():  # damaged metadata and large images cause warnings
                return work(item)
        except Exception as error:  # decoders raise errors of any type for damaged files
            error.__cause__ = error.__context__ = None
            return error.with_traceback(None)  # which holds on to the pixels

    kinds.formats()  # imports, which threads should find done
    results = []
    with _quiet:
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
            self._lists.append(warnings.filters)
            with contextlib.suppress(ValueError):
                warnings.filters.remove(self._entry)
            warnings.filters.insert(0, self._entry)

    def __exit__(self, *error) -> None:
        with self._lock:
            self._entered -= 1
            if not self._entered:
                # The program may have replaced its filters by a copy meanwhile.
                for filters in (*self._lists, warnings.filters):
                    with contextlib.suppress(ValueError):
                        filters.remove(self._entry)
                self._lists.clear()

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


_quiet = _Quiet()


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


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
