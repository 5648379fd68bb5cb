"""Training: one trainer for every method, and a whole run as a function of key and images.

Views are generated inside the train step from uint8 images and (image, operation) pairs; no array
of views exists. Legend: ``n`` images, ``k`` operations, ``b`` views per batch.
"""

from e3jax.training.batches import BatchLoader, DrawnBatches, place_bank
from e3jax.training.config import TrainConfig, paper_config, quick_config
from e3jax.training.optimizer import learning_rate, make_optimizer
from e3jax.training.step import Objective, Probe, Step, StepLog, TrainState, probe_every
from e3jax.training.trainer import Trainer, make_trainer

__all__ = [
    "BatchLoader",
    "DrawnBatches",
    "Objective",
    "Probe",
    "Step",
    "StepLog",
    "TrainConfig",
    "TrainState",
    "Trainer",
    "learning_rate",
    "make_optimizer",
    "make_trainer",
    "paper_config",
    "place_bank",
    "probe_every",
    "quick_config",
]
