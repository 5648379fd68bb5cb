"""What is unusual about a file, in words: its facts beside those of the collection's files."""

from collections.abc import Iterator

import numpy as np

from e3jax.evidence.distances import References
from e3jax.images.facts import Facts

_RARE = 0.05  # share of the collection
_ALIKE = 0.1  # difference of logarithms to base 2 within which sizes are about the same


def reasons(model: References, vectors: np.ndarray) -> list[str]:
    """What is rare about files, "" where nothing is.

    Args:
      model: of the collection.
      vectors: float32 [n, d], see :meth:`e3jax.images.facts.Facts.vector`.
    """
    usual = list(map(Facts.of_vector, model.features))
    numbers = model.features[:, :4]
    return [", ".join(_reasons(vector, numbers, usual)) for vector in vectors]


def _reasons(vector: np.ndarray, numbers: np.ndarray, usual: list[Facts]) -> Iterator[str]:
    of, n = Facts.of_vector(vector), len(usual)
    near = np.abs(numbers - vector[:4]) < _ALIKE
    if near[:, 2].mean() < _RARE:
        typical = 2 ** np.median(numbers[:, 2])
        yield f"width : height {2 ** vector[2]:.2f}, of most {typical:.2f}"
    elif near[:, :2].all(axis=1).mean() < _RARE:
        width, height = (2 ** np.median(numbers[:, :2], axis=0)).round().astype(int)
        yield f"{of.width} × {of.height} pixels, most about {width} × {height}"
    if sum(facts.format == of.format for facts in usual) < _RARE * n:
        formats = [facts.format for facts in usual]
        most = max(set(formats), key=formats.count)
        yield f"{of.format or 'another format'}, most are {most or 'of others'}"
    if sum(facts.has_exif == of.has_exif for facts in usual) < _RARE * n:
        yield "EXIF data, most have none" if of.has_exif else "no EXIF data, most have some"
    low, high = np.quantile(numbers[:, 3], [_RARE / 2, 1 - _RARE / 2])
    if not low <= vector[3] <= high:
        yield f"{2 ** vector[3]:.2g} bytes per pixel, most {2**low:.2g} to {2**high:.2g}"
