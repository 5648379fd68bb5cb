"""Series of a training for inliers, outliers and a control, from what a probe recorded.

The groups are made from labels, which serve here to look at a training and never reach it: the
probe only weighs its fixed views by them, all else is averaged after the steps are done.
"""

from typing import NamedTuple

import numpy as np

from e3jax import priority

# The control splits the inliers at random as the set is split: what shows there is group size.
GROUPS = ("inliers", "outliers", "control_large", "control_small")
QUANTITIES = (
    "gradient_magnitude",  # of the probe set, Fig. 2
    "de_facto_update",  # mean over the batch's views of a group, Fig. 3
    "update_by_others",  # the same without each view's own share of the batch's gradient
    "loss",  # mean over the batch's views of a group
)


class Series(NamedTuple):
    """float [points, groups] by quantity, at these steps; NaN where a batch had no such view."""

    steps: np.ndarray
    values: dict[str, np.ndarray]


def split_groups(is_outlier: np.ndarray, seed: int) -> np.ndarray:
    """bool [groups, n]: GROUPS of the images."""
    inliers = np.flatnonzero(~is_outlier)
    small = round(len(inliers) * is_outlier.mean())
    chosen = np.random.default_rng(seed).permutation(inliers)[:small]
    control = np.isin(np.arange(len(is_outlier)), chosen)
    return np.stack([~is_outlier, is_outlier, ~is_outlier & ~control, control])


def probe_set(
    images: np.ndarray, groups: np.ndarray, k: int, views: int, seed: int
) -> priority.ProbeSet:
    """About so many views, as many of every image as possible, each of another operation.

    Args:
      images: uint8 [n, h, w, c].
      groups: bool [g, n].
      k: operations.
      views: a multiple of the devices.
      seed: of the operations, and of the images if there are more than views.
    """
    n, random = groups.shape[1], np.random.default_rng(seed)
    views = min(views, n * k)
    image = np.concatenate([random.permutation(n) for _ in range(-(-views // n))])[:views]
    times = np.arange(views) // n
    label = np.argsort(random.random((n, k)), axis=1)[image, times]
    weights = groups[:, image].astype(np.float32)
    return priority.ProbeSet(images[image], label.astype(np.int32), weights)


def series(log: priority.PriorityLog, groups: np.ndarray) -> Series:
    """The points of a log of any number of steps.

    Args:
      log: arrays [steps, ...].
      groups: bool [g, n] of the images.
    """
    there = log.step >= 0
    log = priority.PriorityLog(*(values[there] for values in log))
    weights = groups[:, log.image].astype(float)  # [g, points, b]
    own = log.gradient_norm / log.image.shape[1]
    views = {
        "de_facto_update": log.de_facto_update,
        "update_by_others": log.de_facto_update - own,
        "loss": log.loss,
    }
    with np.errstate(invalid="ignore"):  # 0 / 0: no view of that group in the batch
        values = {
            name: ((weights * of_views).sum(2) / weights.sum(2)).T
            for name, of_views in views.items()
        }
    return Series(log.step, {"gradient_magnitude": log.gradient_magnitude} | values)
