"""Readers of the benchmarks' original files."""

import gzip
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

Labelled = tuple[np.ndarray, np.ndarray]  # images and labels


def read_idx(path: Path) -> np.ndarray:
    """Reads a gzipped IDX file of unsigned bytes (MNIST's format): uint8 of any rank.

    Layout: two zero bytes, 0x08, the rank, the lengths as big-endian uint32, the values.

    Raises:
      ValueError: another format, or the number of values differs from what the header says.
    """
    with gzip.open(path, "rb") as file:
        data = file.read()
    if data[:3] != b"\x00\x00\x08" or len(data) < 4 + 4 * data[3]:
        raise ValueError(f"{path.name} is not an IDX file of unsigned bytes")
    shape = np.frombuffer(data, ">u4", data[3], 4).astype(np.int64)
    values = np.frombuffer(data, np.uint8, -1, 4 + 4 * data[3])
    if values.size != shape.prod():
        raise ValueError(f"{path.name} has {values.size} values, its header says {shape}")
    return values.reshape(shape)


def read_mnist(*paths: Path) -> Labelled:
    """Reads MNIST's four files: images, labels, images, labels -> uint8 [n, h, w, 1], uint8 [n].

    Raises:
      ValueError: as `read_idx`, or images and labels do not match.
    """
    images, labels = (np.concatenate([*map(read_idx, paths[i::2])]) for i in (0, 1))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(f"images {images.shape} and labels {labels.shape} do not match")
    return images[..., None], labels


def read_cifar_tar(path: Path, files: Sequence[str], label_bytes: int) -> Labelled:
    """Reads CIFAR's binary archive: uint8 [n, 32, 32, 3] and the first label, uint8 [n].

    A record is ``label_bytes`` labels (CIFAR-10: 1; CIFAR-100: 2, coarse then fine), then 3,072
    values, channel by channel and row by row.

    Args:
      files: names of the archive's members, without folders, in the order to return them.

    Raises:
      ValueError: a member is missing or is not a whole number of records.
    """
    record, contents = label_bytes + 3 * 32 * 32, {}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            name = Path(member.name).name
            if name in files and member.isfile() and (file := archive.extractfile(member)):
                contents[name] = np.frombuffer(file.read(), np.uint8)
    for name in files:
        if name not in contents or contents[name].size % record:
            raise ValueError(f"{path.name} has no {name} with records of {record} bytes")
    records = np.concatenate([contents[name] for name in files]).reshape(-1, record)
    images = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, records[:, 0]


def read_cifar10(path: Path) -> Labelled:
    """Reads all images and labels of CIFAR-10's archive, see `read_cifar_tar`."""
    return read_cifar_tar(
        path, [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"], 1
    )


def read_cifar100(path: Path) -> Labelled:
    """Reads all images and coarse labels of CIFAR-100's archive, see `read_cifar_tar`."""
    return read_cifar_tar(path, ["train.bin", "test.bin"], label_bytes=2)


def read_svhn_mat(path: Path) -> Labelled:
    """Reads an SVHN .mat file: uint8 [n, 32, 32, 3] and the digit, uint8 [n].

    The file holds X [32, 32, 3, n] and y [n, 1], where 10 stands for digit 0.

    Raises:
      ValueError: another format.
    """
    from scipy.io import loadmat

    content = loadmat(path, variable_names=("X", "y"))
    images, labels = content.get("X"), content.get("y")
    if images is None or labels is None or images.shape != (32, 32, 3, labels.size):
        raise ValueError(f"{path.name} has no X [32, 32, 3, n] with y [n, 1]")
    if labels.min() < 1 or labels.max() > 10:
        raise ValueError(f"{path.name} has labels outside 1 to 10")
    return np.moveaxis(images, -1, 0), (labels.ravel() % 10).astype(np.uint8)


def read_svhn(*paths: Path) -> Labelled:
    """Reads several SVHN .mat files as one, see `read_svhn_mat`."""
    images, labels = zip(*map(read_svhn_mat, paths), strict=True)
    return np.concatenate(images), np.concatenate(labels)
