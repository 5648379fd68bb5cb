"""Likeness: which pictures of a gallery are copies, alike, or each other's neighbours, to the eye.

It follows from their thumbnails, so that it costs the same for pictures of any kind and size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from e3jax.collection import copies
from e3jax.collection.threads import in_threads
from e3jax.evidence import descriptors
from e3jax.evidence.distances import described
from e3jax.images import decoding, to_square

# Outliers are grouped, of these the most outlying. Chosen on the development folders.
_MOST, _APART, _LAYOUT = 2000, 0.7, 3.0
_NEAREST = 3
_SIDE = 32


class Likeness(NamedTuple):
    """What pictures are like.

    Attributes:
      copy_of: int [n], the first picture that each is a copy of, maybe itself; also of one that was
        flipped or turned by a quarter.
      groups: int [m], equal where the first m pictures are alike.
      nearest: int [m, 3], the ordinary pictures that each of these is nearest to; -1 of none.
    """

    copy_of: np.ndarray
    groups: np.ndarray
    nearest: np.ndarray


def likeness(thumbnails: Sequence[bytes], copy_of: np.ndarray, is_outlier: np.ndarray) -> Likeness:
    """What n pictures are like, the most outlying first.

    Args:
      thumbnails: contents of files; b"" of a picture that has none, which is like no other.
      copy_of: int [n], equal for pictures that are known to be copies.
      is_outlier: bool [n]; others are ordinary. Some more than these are grouped.
    """
    read = in_threads(_decoded, thumbnails)
    seen = np.flatnonzero([not isinstance(picture, Exception) for picture in read])
    images = np.array([read[i] for i in seen], np.uint8).reshape(-1, _SIDE, _SIDE, 3)
    copy_of = _with_turned(images, seen, copy_of)
    n = len(copy_of)
    m = min(_MOST, n, max(2 * int(is_outlier.sum()), 50))
    groups, nearest = np.arange(m), np.full((m, _NEAREST), -1)
    is_ordinary = ~is_outlier[seen] & (copy_of[seen] == seen)
    first = np.searchsorted(seen, m)  # of the pictures that are seen
    if first:
        vectors = _vectors(images)
        groups[seen[:first]] = n + _grouped(vectors[:first])
        ordinary = seen[is_ordinary]
        nearest[seen[:first]] = _nearest(
            vectors[:first], copy_of[seen[:first]], vectors[is_ordinary], ordinary
        )
    return Likeness(copy_of, groups, nearest)


def _decoded(content: bytes) -> np.ndarray:
    [square] = decoding.decode(content, (_SIDE, lambda image: to_square(image, _SIDE, "squash")))
    return np.asarray(square)


def _with_turned(images: np.ndarray, seen: np.ndarray, copy_of: np.ndarray) -> np.ndarray:
    """Copies that are known, and those that are one after flips and quarter turns."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n, every = len(copy_of), np.arange(len(copy_of))
    _, first, which = np.unique(copy_of, return_index=True, return_inverse=True)
    known, same = first[which], every.copy()
    if len(seen) > 1:
        same[seen] = seen[copies.near(upright(images))]
    pairs = np.concatenate([every, every]), np.concatenate([known, same])
    _, which = connected_components(coo_array((np.ones(2 * n), pairs), (n, n)), directed=False)
    _, first = np.unique(which, return_index=True)
    return first[which]


def upright(images: np.ndarray) -> np.ndarray:
    """Square images uint8 [n, h, h, c], flipped and turned so that all eight ways become one.

    Then they are brighter on the right than on the left, and below than above, by at least as much.
    """
    images, side = images.copy(), images.shape[1]
    place = np.arange(side, dtype=np.float32) - (side - 1) / 2
    grey = images.mean(-1, dtype=np.float32)
    right, below = grey.sum(1) @ place, grey.sum(2) @ place
    images[right < 0] = images[right < 0][:, :, ::-1]
    images[below < 0] = images[below < 0][:, ::-1]
    across = np.abs(right) > np.abs(below)
    images[across] = images[across].swapaxes(1, 2)
    return images


def _vectors(images: np.ndarray) -> np.ndarray:
    """float32 [n, d], near to each other where images have about the same shape and layout."""
    layout = described(descriptors.layout, images)
    layout *= _LAYOUT / np.sqrt(layout.shape[1])
    return np.concatenate([described(descriptors.shape, images), layout], axis=1)


def _grouped(vectors: np.ndarray) -> np.ndarray:
    from sklearn.cluster import AgglomerativeClustering

    if len(vectors) < 2:
        return np.zeros(len(vectors), int)
    # scikit-learn wants None here, but does not say so to type checkers.
    clusters = AgglomerativeClustering(
        n_clusters=None,  # pyright: ignore[reportArgumentType]
        distance_threshold=_APART,
        linkage="average",
    )
    return clusters.fit_predict(vectors)


def _nearest(
    vectors: np.ndarray, copy_of: np.ndarray, ordinary: np.ndarray, positions: np.ndarray
) -> np.ndarray:
    """The nearest of ordinary vectors, int [m, 3]: their positions; no copies of a picture."""
    from sklearn.neighbors import NearestNeighbors

    nearest = np.full((len(vectors), _NEAREST), -1)
    if not len(ordinary):
        return nearest
    count = min(_NEAREST + 1, len(ordinary))
    tree = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(ordinary)
    around = positions[tree.kneighbors(vectors, return_distance=False)]
    # Its own copies, of which there is one at most, go behind the others.
    is_copy = around == copy_of[:, None]
    around = np.take_along_axis(around, np.argsort(is_copy, axis=1, kind="stable"), axis=1)
    around[np.sort(is_copy, axis=1)] = -1
    nearest[:, :count] = around[:, :_NEAREST]
    return nearest
