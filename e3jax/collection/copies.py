"""Copies: images of a collection that are the same, exactly or to the eye."""

import hashlib
import math

import numpy as np

from e3jax.collection.lazy import AnyArray

# Root mean squares of differences, in grey levels and as a share of the image's own contrast. A
# picture saved again as JPEG of quality 50, or at half its size, differs by less in 32 x 32 pixels;
# different digits and garments of the benchmarks differ by more, with few exceptions.
_LEVELS, _CONTRAST = 4.0, 0.1
_AXES = 8
_BLOCK = 1024  # images that are compared at a time


def digest(image: np.ndarray) -> int:
    """64 bits of an image uint8 [h, w, c]; a grey one has the same with one and three channels."""
    if image.shape[-1] == 3 and (image == image[..., :1]).all():
        image = image[..., :1]
    return int.from_bytes(hashlib.blake2b(image.tobytes(), digest_size=8).digest(), "little")


def digests(images: AnyArray) -> np.ndarray:
    """uint64 [n], of images uint8 [n, h, w, c]."""
    return np.fromiter(map(digest, images), np.uint64, len(images))


def exact(images: AnyArray, known: np.ndarray | None = None) -> np.ndarray:
    """For each image its first exact copy, int [n]: a position, its own if it is the first.

    Args:
      images: uint8 [n, h, w, c], or what is indexed like such an array.
      known: uint64 [n], their :func:`digests`, where they are known.
    """
    known = digests(images) if known is None else known
    order = np.argsort(known, kind="stable")
    ranked = known[order]
    again = 1 + np.flatnonzero(ranked[1:] == ranked[:-1])
    del ranked  # memory for as many images as a disk holds
    begins = np.diff(again, prepend=-1) > 1  # the second of its kind, before which the first is
    first, later = np.arange(len(known)), order[again]
    first[later] = order[np.maximum.accumulate(np.where(begins, again - 1, 0))]
    later.sort()
    for start in range(0, len(later), _BLOCK):  # of a bank one look-up takes as long as many
        block = later[start : start + _BLOCK]
        originals, which = np.unique(first[block], return_inverse=True)
        differs = images[block] != images[originals][which]
        other = block[differs.reshape(len(block), -1).any(1)]  # one in 2**64
        first[other] = other
    return first


def near(images: np.ndarray) -> np.ndarray:
    """For each image the first that it is a copy of to the eye, int [n], as :func:`exact`.

    Copies differ by at most 4 grey levels (root mean square), and by at most a tenth of their
    contrast, from the first of them: the same picture in another size, format or quality.
    """
    from scipy.spatial import KDTree
    from sklearn.utils.extmath import randomized_svd

    n = len(images)
    pixels = images.reshape(n, -1)
    # A projection on orthogonal axes brings images nearer to each other, never apart.
    sample = pixels[:: max(n // 1000, 1)].astype(np.float32)
    _, _, axes = randomized_svd(sample - sample.mean(0), min(_AXES, *sample.shape), random_state=0)
    contrast, places = np.empty(n), np.empty((n, len(axes)))
    for start in range(0, n, _BLOCK):
        part = pixels[start : start + _BLOCK].astype(np.float32)
        contrast[start : start + _BLOCK] = part.std(1)
        places[start : start + _BLOCK] = part @ axes.T / math.sqrt(pixels.shape[1])
    tolerance = np.minimum(_LEVELS, _CONTRAST * contrast)
    tree, first = KDTree(places), np.arange(n)
    around = tree.query_ball_point(places, tolerance + 1e-3, return_length=True)
    for i in np.flatnonzero(around > 1):
        if first[i] == i:
            beside = np.array(tree.query_ball_point(places[i], tolerance[i] + 1e-3))
            beside = beside[(beside > i) & (first[beside] == beside)]
            first[beside[near_to(images[beside], images[i])]] = i
    return first


def near_to(images: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Whether each of some images is a copy of one to the eye, bool [n], see :func:`near`."""
    pixels, one = np.float32(images).reshape(-1, image.size), np.float32(image).ravel()
    contrast = np.minimum(pixels.std(1), one.std())
    distance = np.sqrt(np.square(pixels - one).mean(1))
    return distance <= np.minimum(_LEVELS, _CONTRAST * contrast)
