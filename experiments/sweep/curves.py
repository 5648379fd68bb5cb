"""Curves of a training for inliers, outliers and a control.

The groups are made from labels, which serve here to look at a training and never reach it: the
probe only weighs its fixed views and images by them, which no step depends on.
"""

from typing import NamedTuple

import numpy as np

from e3jax import priority
from e3jax.datasets.contamination import Contaminated
from e3jax.training import TrainConfig

# The control splits the inliers at random as the set is split: what shows there is group size.
GROUPS = ("inliers", "outliers", "control_large", "control_small")
QUANTITIES = (
    "gradient_magnitude",  # of the probe's views, Fig. 2
    "de_facto_update",  # mean over the group's images, Fig. 3
    "leave_one_out_update",  # the same without each image's own share of the gradient
    "update_cosine",  # the de facto update over the norm of the gradient
    "view_update",  # the de facto update view by view, in the mean over images
    "loss",  # of images, eq. 2, in the mean over the group
)
EVERY = 100  # steps between points of event files


def split_groups(is_outlier: np.ndarray, seed: int) -> np.ndarray:
    """bool [groups, n]: which images are in each of GROUPS."""
    inliers = np.flatnonzero(~is_outlier)
    small = round(len(inliers) * is_outlier.mean())
    chosen = np.random.default_rng(seed).permutation(inliers)[:small]
    control = np.isin(np.arange(len(is_outlier)), chosen)
    return np.stack([~is_outlier, is_outlier, ~is_outlier & ~control, control])


class Recording(NamedTuple):
    """What a training's probe measures, and the images it is for.

    Attributes:
      probe_set: of the probe, see :func:`e3jax.priority.make_probe`.
      weights: float [g, n], of the probe set's data in the means of the GROUPS; rows sum to 1, or
        are NaN for a group without images.
    """

    probe_set: priority.ProbeSet
    weights: np.ndarray


def recording(
    data: Contaminated, config: TrainConfig, views=256, images=9, devices=1, seed=0
) -> Recording:
    """Chooses what is recorded: some views for Fig. 2, and images with all their views for Fig. 3.

    Outliers and the two groups of the control are drawn alike, and weighted as they are in the set.

    By default it is what event files are written of: with a point every 100 steps of 64 views this
    costs just under a tenth of the training.

    Args:
      data: the contaminated set.
      config: of the training.
      views: of Fig. 2; each image has as many as any other, by different operations.
      images: of Fig. 3, about.
      devices: that share the work.
      seed: draws both.
    """
    groups, random = split_groups(data.is_outlier, seed), np.random.default_rng(seed)
    (_, n), k = groups.shape, config.k
    views = min(max(views // devices, 1) * devices, n * k // devices * devices)
    image = np.concatenate([random.permutation(n) for _ in range(-(-views // n))])[:views]
    label = np.argsort(random.random((n, k)), axis=1)[image, np.arange(views) // n]
    chosen, weights = [], []
    for members in map(np.flatnonzero, groups[1:]):
        drawn = random.permutation(members)[: max(images // 3, 1)]
        chosen.append(drawn)
        weights.append(np.full(len(drawn), len(members) / max(len(drawn), 1)))
    chosen, weights = np.concatenate(chosen), np.concatenate(weights)
    # A multiple of the devices; what is repeated counts nothing.
    missing = -len(chosen) % devices
    chosen, weights = np.resize(chosen, len(chosen) + missing), np.pad(weights, (0, missing))
    of_groups = groups[:, chosen] * weights[None]
    probe_set = priority.ProbeSet(
        images=data.images[image],
        labels=label.astype(np.int32),
        groups=groups[:, image].astype(np.float32),
        data=data.images[chosen],
        weights=weights.astype(np.float32),
    )
    with np.errstate(invalid="ignore"):  # 0 / 0: a set too small for that group
        return Recording(probe_set, of_groups / of_groups.sum(1, keepdims=True))


def series(log: priority.PriorityLog, weights: np.ndarray) -> tuple[np.ndarray, dict]:
    """The points of a log of any number of steps.

    Args:
      log: arrays [steps, ...].
      weights: of the recording.

    Returns:
      steps [points], and by quantity float [points, groups]; NaN for a group without images.
    """
    there = log.step >= 0
    of_images, of_views = log.of_images, log.of_views
    of_data = (of_images.de_facto, of_images.leave_one_out, of_images.cosine)
    of_data = (*of_data, of_views.de_facto, log.loss)
    values = [log.gradient_magnitude[there], *(a[there] @ weights.T for a in of_data)]
    return log.step[there], dict(zip(QUANTITIES, values, strict=True))
