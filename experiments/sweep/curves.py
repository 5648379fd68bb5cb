"""Curves of a training for inliers, outliers and a control, and its TensorBoard event files.

The groups are made from labels, which serve here to look at a training and never reach it: the
probe only weighs its fixed views by them, all else is averaged after the steps are done.
"""

import importlib.util
import itertools
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from e3jax import priority, training
from e3jax.contamination import Contaminated
from e3jax.training import TrainConfig

# The control splits the inliers at random as the set is split: what shows there is group size.
GROUPS = ("inliers", "outliers", "control_large", "control_small")
QUANTITIES = (
    "gradient_magnitude",  # of the probe set, Fig. 2
    "de_facto_update",  # mean over the batch's views of a group, Fig. 3
    "leave_one_out_update",  # the same without each view's own share of the batch's gradient
    "loss",  # mean over the batch's views of a group
)
# With a point every 50 steps of 64 views this costs about a twentieth of the training.
_PROBE_VIEWS = 512


class PriorityCurves(NamedTuple):
    """float [points, groups] by quantity, at these steps; NaN where a batch had no such view."""

    steps: np.ndarray
    values: dict[str, np.ndarray]


def split_groups(is_outlier: np.ndarray, seed: int) -> np.ndarray:
    """bool [groups, n]: which images are in each of GROUPS."""
    inliers = np.flatnonzero(~is_outlier)
    small = round(len(inliers) * is_outlier.mean())
    chosen = np.random.default_rng(seed).permutation(inliers)[:small]
    control = np.isin(np.arange(len(is_outlier)), chosen)
    return np.stack([~is_outlier, is_outlier, ~is_outlier & ~control, control])


def probe_set(
    images: np.ndarray, groups: np.ndarray, k: int, views: int, seed: int
) -> priority.ProbeSet:
    """About so many views, as many of each image as possible, each by another operation.

    Args:
      images: uint8 [n, h, w, c].
      groups: bool [g, n].
      k: operations.
      views: a multiple of the devices.
      seed: draws the operations, and the images if there are more than views.
    """
    n, random = groups.shape[1], np.random.default_rng(seed)
    views = min(views, n * k)
    image = np.concatenate([random.permutation(n) for _ in range(-(-views // n))])[:views]
    times = np.arange(views) // n
    label = np.argsort(random.random((n, k)), axis=1)[image, times]
    weights = groups[:, image].astype(np.float32)
    return priority.ProbeSet(images[image], label.astype(np.int32), weights)


def series(log: priority.PriorityLog, groups: np.ndarray) -> PriorityCurves:
    """The points of a log of any number of steps.

    Args:
      log: arrays [steps, ...].
      groups: bool [g, n], of the images.
    """
    there = log.step >= 0
    log = priority.PriorityLog(*(values[there] for values in log))
    weights = groups[:, log.image].astype(float)  # [g, points, b]
    own = log.gradient_norm / log.image.shape[1]
    views = (log.de_facto_update, log.de_facto_update - own, log.loss)
    with np.errstate(invalid="ignore"):  # 0 / 0: no view of that group in the batch
        means = [((weights * a).sum(2) / weights.sum(2)).T for a in views]
    values = [log.gradient_magnitude, *means]
    return PriorityCurves(log.step, dict(zip(QUANTITIES, values, strict=True)))


# --- TensorBoard -----------------------------------------------------------------------------


def check_tensorboard() -> None:
    """Raises a ValueError that says what to do where TensorBoard is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ValueError("event files need TensorBoard: pip install tensorboard")


def few_views(data: Contaminated, config: TrainConfig, devices: int) -> priority.ProbeSet:
    """What the probe of a training on so many devices is given, where event files are written."""
    views = max(_PROBE_VIEWS // devices, 1) * devices
    return probe_set(data.images, split_groups(data.is_outlier, 0), config.k, views, 0)


class TensorBoardWriter:
    """The events of one training, in a folder of their own; steps count from the training's start.

    ``training/``: loss and metrics (means over a call's steps), learning rate, views per second.
    ``QUANTITY/GROUP``: curves for inliers and outliers, where a probe recorded them.

    Args:
      folder: of the event files, where a training that continues adds one.
      data: the images of the training, and which of them are outliers.
      config: of the training.
    """

    def __init__(self, folder: Path, data: Contaminated, config: TrainConfig):
        from tensorboard.summary import Writer

        n, self.groups = len(data.images), split_groups(data.is_outlier, 0)
        self.views_per_step, self.num_steps = config.batch(n), config.num_steps(n)
        self.rate, self.last = training.learning_rate(config), time.monotonic()
        self.writer = Writer(str(folder))
        self.close = self.writer.close

    def write(self, step: int, log: training.StepLog) -> None:
        """Adds the log of some steps, the last of them ``step - 1``."""
        now, last = time.monotonic(), step - 1
        seconds, self.last = now - self.last, now
        values = {name: np.mean(a) for name, a in [("loss", log.loss), *log.metrics.items()]}
        values["learning_rate"] = self.rate(np.int32(last), np.int32(self.num_steps))
        values["views_per_second"] = len(log.loss) * self.views_per_step / seconds
        points = [(f"training/{name}", last, value) for name, value in values.items()]
        if isinstance(log.probe, priority.PriorityLog):
            steps, curves = series(log.probe, self.groups)
            for (quantity, curve), g in itertools.product(curves.items(), (0, 1)):
                tag = f"{quantity}/{GROUPS[g]}"
                points += [(tag, *pair) for pair in zip(steps, curve[:, g], strict=True)]
        for tag, at, value in points:
            if np.isfinite(value):
                self.writer.add_scalar(tag, float(value), int(at))
        self.writer.flush()
