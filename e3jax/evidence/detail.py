"""What is unusual about how a picture looks, in words, beside the collection's pictures."""

import numpy as np

from e3jax.evidence.distances import References
from e3jax.images.facts import RINGS
from e3jax.images.statistics import SECTORS

_RARE = 0.02  # share of the collection
# What fewer pictures have less of, and more of.
_WORDS = (("darker", "brighter"), ("less contrast", "more contrast"))
_WORDS += (("greyer", "more colourful"), ("blurrier", "sharper"))
_ALIKE = (0.02, 0.1, 0.1, 0.1)  # differences of these that nobody sees, or rounding makes


def reasons(model: References, vectors: np.ndarray) -> list[str]:
    """In what pictures are beyond nearly all of the collection, "" where in nothing.

    Args:
      model: of the collection.
      vectors: float32 [n, d], see :func:`e3jax.images.facts.detail`.
    """
    of_all, words = np.sort(_looks(model.vectors), axis=0), [[] for _ in vectors]
    least = np.ones(len(vectors))
    looks = zip(_WORDS, _ALIKE, of_all.T, _looks(vectors).T, strict=True)
    for (less, more), alike, ranked, values in looks:
        below = np.searchsorted(ranked, values - alike) / len(ranked)
        above = 1 - np.searchsorted(ranked, values + alike, "right") / len(ranked)
        beyond = np.maximum(below, above)
        for i in np.flatnonzero(beyond >= 1 - _RARE):
            words[i].append(less if above[i] > below[i] else more)
            least[i] = min(least[i], beyond[i])
    return [
        f"{', '.join(said)} than {min(int(100 * share), 99)} % of the pictures" if said else ""
        for said, share in zip(words, least, strict=True)
    ]


def _looks(vectors: np.ndarray) -> np.ndarray:
    """Brightness, contrast, colour and sharpness, float64 [n, 4].

    Sharpness is the share of high frequencies in contrast, so that a plain sky is not blurred.
    """
    vectors = np.asarray(vectors, np.float64)
    spectrum, means, contrasts = np.split(vectors, [RINGS * SECTORS, RINGS * SECTORS + 3], axis=1)
    rings = spectrum.reshape(len(vectors), RINGS, SECTORS).mean(2)
    colour = np.logaddexp(contrasts[:, 1], contrasts[:, 2])
    sharpness = rings[:, -2:].mean(1) - rings.mean(1)
    return np.stack([means[:, 0], contrasts[:, 0], colour, sharpness], axis=1)
