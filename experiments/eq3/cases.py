"""The sets that eq. 3 is measured on, and their rows."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from e3jax import datasets, operations
from e3jax.datasets import contamination
from e3jax.images import to_unit
from eq3.network import kernel_sums, squared_gradients

OPERATIONS = ["identity", "shift(0,-8)", "turn90", "rotate30", "patches3210"]
# Columns of rows: what was measured, and what the kernel predicts, both over what eq. 3 predicts.
MEASURED, KERNEL = "measured_over_predicted", "kernel_prediction_over_predicted"
_IMAGES, _MANY_IMAGES = 500, 5000  # in a set
_FEW = (1, 2, 5, 10)  # outliers
_RESAMPLES = 2000


class Case(NamedTuple):
    """Images to contaminate and how.

    Attributes:
      varied: the column over which the rows of this data set with this value form a series.
      most_outliers: only the first so many of the outliers drawn count; None: all.
    """

    data: datasets.Dataset
    inlier_class: int
    hidden: int
    ratio: float = 0.1
    varied: str = "ratio"
    max_images: int = _IMAGES
    most_outliers: int | None = None

    def vary(self, column: str, field: str, values: Sequence) -> Iterator["Case"]:
        """Cases that differ in one field, which shows in one column of the rows."""
        return (self._replace(**{"varied": column, field: value}) for value in values)


def real_cases(data: datasets.Dataset, ratios: Sequence[float], hidden: int) -> Iterator[Case]:
    """Every class; for the first also few outliers, and ten times the images."""
    classes = range(len(data.class_names))
    # The order is that of a content hash: the first of a class are a random draw.
    few = np.concatenate([np.flatnonzero(data.labels == c)[:_IMAGES] for c in classes])
    few = data._replace(images=data.images[few], labels=data.labels[few])
    for c in classes:
        yield from Case(few, c, hidden).vary("ratio", "ratio", ratios)
    yield from Case(few, 0, hidden).vary("n_outliers", "most_outliers", _FEW)
    yield from Case(data, 0, hidden).vary("n_inliers", "max_images", [_MANY_IMAGES])


def synthetic_cases(ratios: Sequence[float], hidden: int) -> Iterator[Case]:
    """Groups of noise, which are incoherent, and of noisy copies of one image, which are not."""
    generator, shape = np.random.default_rng(0), (datasets.SIDE, datasets.SIDE, 1)

    def noise(n=_IMAGES):
        return generator.integers(0, 256, (n, *shape))

    def like(image):
        return (image + generator.normal(0, 25, (_IMAGES, *shape))).round().clip(0, 255)

    one, other = noise(1), noise(1)
    pairs = {
        "all noise": (noise(), noise()),
        "all like one image": (like(one), like(one)),
        "like two images": (like(one), like(other)),
        "inliers alike, outliers noise": (like(one), noise()),
        "inliers noise, outliers alike": (noise(), like(one)),
    }
    labels = np.repeat([0, 1], _IMAGES)
    for name, groups in pairs.items():
        images = np.concatenate(groups).astype(np.uint8)
        data = datasets.Dataset(name, images, labels, ("inliers", "outliers"), "synthetic")
        case = Case(data, 0, hidden)
        yield from case.vary("ratio", "ratio", ratios)
        if name == "all noise":
            yield from case.vary("n_outliers", "most_outliers", _FEW)
        if name == "inliers alike, outliers noise":
            yield from case.vary("hidden", "hidden", (1, 4, 16, 64, 256))


def measure(case: Case, operation_set, initialisations: int) -> pd.DataFrame:
    """The rows of a contaminated set, one for each of OPERATIONS."""
    where = (case.data.images, case.data.labels, case.inlier_class, case.ratio, 0)
    drawn = contamination.contaminate(*where, max_images=case.max_images)
    counted = np.cumsum(drawn.is_outlier) <= (case.most_outliers or len(drawn.images))
    groups = np.stack([~drawn.is_outlier, drawn.is_outlier & counted])
    n_inliers, n_outliers = groups.sum(axis=1)

    chosen = np.array([operation_set.names.index(name) for name in OPERATIONS])
    labels = chosen.repeat(len(drawn.images))
    images = jnp.tile(to_unit(jnp.asarray(drawn.images)), (len(chosen), 1, 1, 1))
    views = jax.jit(operations.views_of)(operation_set, images, labels).reshape(len(labels), -1)
    keys = jax.random.split(jax.random.key(0), initialisations)
    every = (views, labels, np.tile(groups, len(chosen)))
    squares = squared_gradients(keys, *every, case.hidden, len(operation_set))
    measured, low, high = ratio_of_means(*np.float64(squares)[:, :, chosen].swapaxes(0, 1))
    sums = [kernel_sums(views[labels == c], groups, case.hidden) for c in chosen]

    rows = {"case": case.data.name, "source": case.data.source, "varied": case.varied}
    rows |= {"inlier_class": case.inlier_class, "ratio": n_outliers / groups.sum()}
    rows |= {"n_inliers": n_inliers, "n_outliers": n_outliers, "hidden": case.hidden}
    rows |= {"initialisations": initialisations, "operation": OPERATIONS}
    predicted = (n_inliers / n_outliers) ** 2
    rows |= {"measured_ratio": measured, "predicted_ratio": predicted}
    rows |= {MEASURED: measured / predicted, "low": low / predicted, "high": high / predicted}
    rows |= {KERNEL: [float(q_in / q_out) / predicted for q_in, q_out in sums]}
    return pd.DataFrame(rows)


def ratio_of_means(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """mean(a) / mean(b) over the first axis, and the ends of its bootstrap interval."""
    draws = np.random.default_rng(0).multinomial(len(a), np.full(len(a), 1 / len(a)), _RESAMPLES)
    low, high = np.percentile((draws @ a) / (draws @ b), [2.5, 97.5], axis=0)
    return a.mean(axis=0) / b.mean(axis=0), low, high
