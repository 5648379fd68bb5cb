"""The cache of loaded benchmarks: images, labels, and what they were made from."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from e3jax.datasets.specs import SPECS, Candidate, Dataset, make_dataset
from e3jax.work import tensors

FORMAT = "e3jax-dataset-1"


def through_cache(
    name: str, candidate: Candidate, cache: Path, announce: Callable[[str], None]
) -> Dataset:
    """Loads a dataset from its cache file if that is intact and fresh, else from its source."""
    place = hashlib.blake2b(candidate.where.encode(), digest_size=8).hexdigest()
    path = cache / f"{name}-{place}.safetensors"
    made_from: dict[str, Any] = {"format": FORMAT, "name": name, "where": candidate.where}
    made_from["identity"] = candidate.identity
    try:
        return _read(path, made_from)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        announce(f"{name}: the cache {path} cannot be used ({error}), rebuilding it")
    dataset = make_dataset(name, *candidate.read())
    arrays = {"images": dataset.images, "labels": dataset.labels}
    try:
        tensors.write(path, arrays, made_from | {"source": dataset.source})
    except OSError as error:
        announce(f"{name}: the cache {path} cannot be written ({error}), continuing without it")
    return dataset


def _read(path: Path, made_from: dict) -> Dataset:
    """Raises OSError, or a ValueError whose message says in a few words why it is of no use."""
    arrays, about = tensors.read(path)
    source = about.pop("source", None)
    if about != made_from:
        raise ValueError("made from other data or by another version")
    name = about["name"]
    return Dataset(name, arrays["images"], arrays["labels"], SPECS[name].class_names, source)
