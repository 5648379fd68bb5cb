"""Rankings: a collection ordered by how outlying its images are.

The paper's scores fall with outlyingness; here, and nowhere else, they change their sign.
"""

from typing import NamedTuple

import numpy as np

from e3jax.collection import collection, reading
from e3jax.collection.lazy import AnyArray
from e3jax.evidence.health import Health
from e3jax.evidence.model import Explanation


class Ranking(NamedTuple):
    """What tables, gallery and quarantine are made of.

    Attributes:
      paths: str [n], files; image numbers for arrays.
      copy_of: int [n], the first image that each is a copy of to the eye, maybe itself, see
        :func:`e3jax.collection.copies.near`.
      scores: float64 [n] in nats, larger = more outlying.
      explanation: what the scores follow from.
      threshold: images with larger scores are outliers.
      unreadable: files that were left out.
      health: how sound the fit is.
      file_range: what is black and white in files of more than 8 bits.
      states: int64 [n, 4], the :class:`e3jax.work.files.FileState` of each file as it was ranked;
        None for arrays.
      decisions: int8 [n], see :func:`e3jax.report.decisions.for_images`; None without any.
    """

    paths: AnyArray
    copy_of: np.ndarray
    scores: np.ndarray
    explanation: Explanation
    threshold: float
    unreadable: list[collection.Unreadable]
    health: Health
    file_range: reading.ValueRange = reading.ValueRange()
    states: AnyArray | None = None
    decisions: np.ndarray | None = None

    @property
    def is_outlier(self) -> np.ndarray:
        """Bool [n]."""
        return self.scores > self.threshold

    @property
    def order(self) -> np.ndarray:
        """Int [n], the images' positions, the most outlying first; ties in input order."""
        return np.argsort(-self.scores, kind="stable")
