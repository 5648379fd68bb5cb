"""A training's course as TensorBoard event files, to be watched while it runs."""

import importlib.util
import time
from pathlib import Path

import numpy as np
import recording

from e3jax import contamination, training

# With a point every 50 steps of 64 views this costs about a twentieth of the training.
_PROBE_VIEWS = 512


def check() -> None:
    """Raises a ValueError that says what to do where TensorBoard is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ValueError("event files need TensorBoard: pip install tensorboard")


class EventFiles:
    """The events of one training, in a folder of their own; steps count from the training's start.

    ``training/``: loss, pretext accuracy (means over a chunk of steps), learning rate, views a
    second. ``QUANTITY/GROUP``: the series of :mod:`recording` for inliers and outliers, where a
    probe recorded them.

    Attributes:
      probe_set: what the training's probe is given, see :func:`e3jax.priority.make_probe`.

    Args:
      folder: of the event files, where a training that continues adds one; None writes nothing.
      config: of the training, for its learning rate.
      data: the images of the training, and which of them are outliers.
      k: operations.
      devices: of the training.
    """

    def __init__(
        self,
        folder: Path | None,
        config: training.TrainConfig,
        data: contamination.Contaminated,
        k: int,
        devices: int,
    ):
        self.config, self.rate = config, training.learning_rate(config)
        self.steps = config.num_steps(len(data.images), k)
        self.groups = recording.split_groups(data.is_outlier, 0)
        views = max(_PROBE_VIEWS // devices, 1) * devices
        self.probe_set = recording.probe_set(data.images, self.groups, k, views, 0)
        self.writer, self.last = None, time.monotonic()
        if folder:
            from tensorboard.summary import Writer

            self.writer = Writer(str(folder))

    def write(self, step: int, log: training.StepLog) -> None:
        """Adds a chunk of steps, the last of them ``step - 1``, when it is done."""
        if self.writer is None:
            return
        steps, now = int(np.isfinite(log.loss).sum()), time.monotonic()
        seconds, self.last = now - self.last, now
        values = {
            "loss": np.nanmean(log.loss),
            "pretext_accuracy": np.nanmean(log.accuracy),
            "learning_rate": self.rate(np.int32(step - 1), np.int32(self.steps)),
            "views_per_second": steps * self.config.batch_size / seconds,
        }
        for name, value in values.items():
            self.writer.add_scalar(f"training/{name}", float(value), step - 1)
        found = recording.series(log.probe, self.groups)
        for quantity, points in found.values.items():
            for group, series in zip(recording.GROUPS[:2], points.T[:2], strict=True):
                for at, value in zip(found.steps, series, strict=True):
                    if np.isfinite(value):
                        self.writer.add_scalar(f"{quantity}/{group}", float(value), int(at))
        self.writer.flush()

    def close(self) -> None:
        if self.writer:
            self.writer.close()
