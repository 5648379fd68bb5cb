"""TensorBoard event files of a training."""

import importlib.util
import itertools
import os
import time
from pathlib import Path

import jax
import numpy as np

from e3jax import priority, training
from e3jax.errors import InputError
from e3jax.training import TrainConfig
from sweep.curves import GROUPS, series


def check(folder: str) -> None:
    """Raises an InputError where TensorBoard is missing, or the folder of event files is a file."""
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError("event files need TensorBoard: pip install tensorboard")
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise InputError(f"{folder} is a file, expected a folder for event files: name another")


class Writer:
    """The events of one training, in a folder of their own; steps count from the training's start.

    ``training/``: loss and metrics (means over a call's steps), learning rate, views per second.
    ``QUANTITY/GROUP``: curves for inliers and outliers, where a probe recorded them.

    Args:
      folder: of the event files, where a training that continues adds one.
      n: images of the training.
      config: of the training.
      weights: of the recording.
    """

    def __init__(self, folder: Path, n: int, config: TrainConfig, weights: np.ndarray):
        from tensorboard.summary import Writer as SummaryWriter

        self.weights = weights
        self.views_per_step, self.num_steps = config.batch(n), config.num_steps(n)
        self.rate, self.last = training.learning_rate(config), time.monotonic()
        self.writer = SummaryWriter(str(folder))
        self.close = self.writer.close

    def write(self, step: int, log: training.StepLog) -> None:
        """Adds the log of some steps, the last of them ``step - 1``."""
        now, last = time.monotonic(), step - 1
        seconds, self.last = now - self.last, now
        values = {name: np.mean(a) for name, a in [("loss", log.loss), *log.metrics.items()]}
        values["learning_rate"] = self.rate(*jax.numpy.int32([last, self.num_steps]))
        values["views_per_second"] = len(log.loss) * self.views_per_step / seconds
        points = [(f"training/{name}", last, value) for name, value in values.items()]
        if isinstance(log.probe, priority.PriorityLog):
            steps, curves = series(log.probe, self.weights)
            for (quantity, curve), g in itertools.product(curves.items(), (0, 1)):
                tag = f"{quantity}/{GROUPS[g]}"
                points += [(tag, *pair) for pair in zip(steps, curve[:, g], strict=True)]
        for tag, at, value in points:
            if np.isfinite(value):
                self.writer.add_scalar(tag, float(value), int(at))
        self.writer.flush()
