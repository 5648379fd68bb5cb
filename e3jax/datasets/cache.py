"""The cache of loaded benchmarks.

A cache file is 64 hexadecimal digits (BLAKE2b of everything after them), one line of JSON (what the
file contains and what it was made from), the labels as little-endian int32, the images as uint8.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from e3jax.datasets.specs import SPECS, Candidate, Dataset, make_dataset
from e3jax.work.files import write_atomically

FORMAT = "e3jax-dataset-1"
_DIGITS = 64


def through_cache(
    name: str, candidate: Candidate, cache: Path, announce: Callable[[str], None]
) -> Dataset:
    """Loads a dataset from its cache file if that is intact and fresh, else from its source."""
    place = hashlib.blake2b(candidate.where.encode(), digest_size=8).hexdigest()
    path = cache / f"{name}-{place}.cache"
    header = {"format": FORMAT, "name": name, "where": candidate.where}
    header["identity"] = candidate.identity
    try:
        return _read(path, header)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        announce(f"{name}: the cache {path} cannot be used ({error}), rebuilding it")
    dataset = make_dataset(name, *candidate.read())
    try:
        _write(path, header, dataset)
    except OSError as error:
        announce(f"{name}: the cache {path} cannot be written ({error}), continuing without it")
    return dataset


def _read(path: Path, expected: dict) -> Dataset:
    """Raises OSError, or a ValueError whose message says in a few words why it is of no use."""
    content = np.fromfile(path, np.uint8)
    rest = content[_DIGITS:]
    if content[:_DIGITS].tobytes() != digest(rest):
        raise ValueError("damaged or not written by e3jax")
    line = rest[: 1 << 20].tobytes().partition(b"\n")[0]  # a header has a few hundred bytes
    header = json.loads(line)
    if any(header.get(key) != value for key, value in expected.items()):
        raise ValueError("made from other data or by another version")
    name, shape = header["name"], header["shape"]
    labels, images = np.split(rest[len(line) + 1 :], [4 * shape[0]])
    labels = np.frombuffer(labels.tobytes(), "<i4").astype(np.int32)
    return Dataset(name, images.reshape(shape), labels, SPECS[name].class_names, header["source"])


def _write(path: Path, header: dict, dataset: Dataset) -> None:
    header = header | {"shape": dataset.images.shape, "source": dataset.source}
    line, labels = json.dumps(header).encode() + b"\n", dataset.labels.astype("<i4")
    rest = b"".join([line, labels, np.ascontiguousarray(dataset.images)])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.writelines((digest(rest), rest)))


def digest(rest) -> bytes:
    """The first 64 bytes of a cache file, computed from the rest of it."""
    return hashlib.blake2b(rest, digest_size=_DIGITS // 2).hexdigest().encode()
