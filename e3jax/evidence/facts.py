"""What is unusual about a file, in words: its facts beside those of the collection's files."""

import collections
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from e3jax.evidence.distances import References
from e3jax.images.facts import Facts

_RARE = 0.05  # share of the collection
_ALIKE = 0.1  # difference of logarithms to base 2 within which sizes are about the same


class _Usual(NamedTuple):
    """What the collection's files are like.

    Attributes:
      numbers: float32 [r, 4], logarithms of width, height, ratio and bytes per pixel.
      formats, exif: how many files have each format, and EXIF data or none.
      typical: float [3], the median width, height and ratio.
      densities: bytes per pixel between which nearly all files are, as logarithms.
    """

    numbers: np.ndarray
    formats: collections.Counter
    exif: collections.Counter
    typical: np.ndarray
    densities: np.ndarray


def reasons(model: References, vectors: np.ndarray) -> list[str]:
    """What is rare about files, "" where nothing is.

    Args:
      model: of the collection.
      vectors: float32 [n, d], see :meth:`e3jax.images.facts.Facts.vector`.
    """
    files, numbers = list(map(Facts.of_vector, model.features)), model.features[:, :4]
    usual = _Usual(
        numbers,
        collections.Counter(facts.format for facts in files),
        collections.Counter(facts.has_exif for facts in files),
        2 ** np.median(numbers[:, :3], axis=0),
        np.quantile(numbers[:, 3], [_RARE / 2, 1 - _RARE / 2]),
    )
    return [", ".join(_reasons(vector, usual)) for vector in vectors]


def _reasons(vector: np.ndarray, usual: _Usual) -> Iterator[str]:
    of, rare = Facts.of_vector(vector), _RARE * len(usual.numbers)
    near = np.abs(usual.numbers - vector[:4]) < _ALIKE
    width, height, ratio = usual.typical
    if near[:, 2].sum() < rare:
        yield f"width : height {2 ** vector[2]:.2f}, of most {ratio:.2f}"
    elif near[:, :2].all(axis=1).sum() < rare:
        yield f"{of.width} × {of.height} pixels, most about {width:.0f} × {height:.0f}"
    if usual.formats[of.format] < rare:
        [(most, _)] = usual.formats.most_common(1)
        yield f"{of.format or 'another format'}, most are {most or 'of others'}"
    if usual.exif[of.has_exif] < rare:
        yield "EXIF data, most have none" if of.has_exif else "no EXIF data, most have some"
    low, high = usual.densities
    if not low <= vector[3] <= high:
        yield f"{2 ** vector[3]:.2g} bytes per pixel, most {2**low:.2g} to {2**high:.2g}"
