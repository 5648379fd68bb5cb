"""Training: one trainer for every method, and a whole run as a function of key and images.

Views are generated inside the train step from uint8 images and (image, operation) pairs; no array
of views exists. Legend: ``n`` images, ``k`` operations, ``b`` views per batch.
"""

from e3jax.training.batches import (
    BatchLoader as BatchLoader,
    DrawnBatches as DrawnBatches,
    place_bank as place_bank,
)
from e3jax.training.config import (
    TrainConfig as TrainConfig,
    paper_config as paper_config,
    quick_config as quick_config,
)
from e3jax.training.optimizer import (
    learning_rate as learning_rate,
    make_optimizer as make_optimizer,
)
from e3jax.training.step import (
    Objective as Objective,
    Probe as Probe,
    Step as Step,
    StepLog as StepLog,
    TrainState as TrainState,
    probe_every as probe_every,
)
from e3jax.training.trainer import Trainer as Trainer, make_trainer as make_trainer
