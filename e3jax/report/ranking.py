"""Rankings: a collection ordered by how outlying its images are.

The paper's scores fall with outlyingness; here, and nowhere else, they change their sign.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from e3jax import operations
from e3jax.collection import collection, reading
from e3jax.evidence.health import Health


class Explanation(NamedTuple):
    """Why images score as they do.

    Attributes:
      view_entropies: float [n, k] in nats, the entropy of each image under each operation.
      median: float [k], the fitted collection's median of each operation.
      num_operations: of those that the network tells apart, at least k.
      operation_set: the k operations.
      resize: how images became square.
      surprises: float [n] in nats by kind of evidence, see :mod:`e3jax.evidence.fusion`; {} where
        scores are the network's alone.
    """

    view_entropies: np.ndarray
    median: np.ndarray
    num_operations: int
    operation_set: operations.OperationSet
    resize: str
    surprises: Mapping[str, np.ndarray]


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
    """

    paths: np.ndarray
    copy_of: np.ndarray
    scores: np.ndarray
    explanation: Explanation
    threshold: float
    unreadable: list[collection.Unreadable]
    health: Health
    file_range: reading.ValueRange = reading.ValueRange()
    states: np.ndarray | None = None

    @property
    def is_outlier(self) -> np.ndarray:
        """Bool [n]."""
        return self.scores > self.threshold

    @property
    def order(self) -> np.ndarray:
        """Int [n], the images' positions, the most outlying first; ties in input order."""
        return np.argsort(-self.scores, kind="stable")
