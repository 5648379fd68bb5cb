"""Data that TFDS prepared on this machine, read without TensorFlow."""

import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from e3jax.datasets.specs import SPECS, Candidate, Spec, Unavailable


def prepared(name: str, data_dir: str | os.PathLike | None) -> Candidate:
    """Finds ``<data_dir>/<tfds name>/<highest version>`` without importing TFDS.

    A load from the cache therefore imports nothing slow, and nothing here uses the network.
    """
    spec = SPECS[name]
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    versions = [path.parent for path in root.glob(f"{spec.tfds_name}/*/dataset_info.json")]
    versions = [path for path in versions if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    if not versions:
        why = "" if root.is_dir() else " (no such folder)"
        raise Unavailable(f"no prepared TFDS data in {root}{why}")
    versions.sort(key=lambda path: [int(part) for part in path.name.split(".")])
    readable = [path for path in versions if "array_record" in _file_formats(path)]
    if not readable:
        written = "/".join(sorted(_file_formats(versions[-1])))
        raise Unavailable(
            f"the data in {versions[-1]} are prepared as {written}, not as array_record, "
            "and cannot be read without TensorFlow"
        )
    folder = readable[-1].resolve()
    stats = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    identity = {"files": [[file, stat.st_size, stat.st_mtime_ns] for file, stat in stats]}
    return Candidate(str(folder), identity, lambda: _read(spec, folder))


def _file_formats(folder: Path) -> set[str]:
    """The formats in which a version folder holds the data; TFDS's first was tfrecord."""
    try:
        info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
        return {info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", [])}
    except (OSError, ValueError, AttributeError, TypeError):
        return {"something unknown (its dataset_info.json cannot be read)"}


def _read(spec: Spec, folder: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """Reads both splits of a folder: images, labels, "tfds:<name>/<version>[ (JPEG)]"."""
    import tensorflow_datasets as tfds
    from PIL import Image

    try:
        builder = tfds.builder_from_directory(folder, file_format="array_record")
        records = [*_records(tfds, builder, "train"), *_records(tfds, builder, "test")]
        encoded = [record["image"] for record in records]
        labels = np.array([int(record[spec.label_key]) for record in records])
        images = np.stack([np.asarray(Image.open(io.BytesIO(image))) for image in encoded])
    except ImportError:
        raise
    except Exception as error:  # the errors of TFDS, array_record and Pillow share no base class
        why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise Unavailable(f"the data in {folder} cannot be read ({why})") from error
    jpeg = any(image.startswith(b"\xff\xd8\xff") for image in encoded)
    source = f"tfds:{spec.tfds_name}/{folder.name}" + (" (JPEG)" if jpeg else "")
    return images.reshape(*images.shape[:3], -1), labels, source


def _records(tfds, builder, split: str) -> Iterator[dict]:
    """Yields the examples of a split with their images still encoded.

    Pillow decodes them rather than TFDS, which uses OpenCV where it is installed. So pixels are the
    same everywhere, and the encoding (PNG or JPEG) is known.
    """
    count = builder.info.splits[split].num_examples
    data = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    if len(data) != count or not count:
        raise ValueError(f"split {split} has {len(data)} records instead of {count}")
    for start in range(0, count, 1000):
        yield from data.__getitems__(list(range(start, min(start + 1000, count))))
