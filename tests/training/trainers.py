"""A trainer of the tiny network, and its whole runs."""

import jax
import numpy as np
from tiny import Tiny

from e3jax import operations, training
from e3jax.training import losses

CONFIG = training.TrainConfig(
    network=Tiny, operations="PR", optimizer="sgd", learning_rate=0.01, batch_size=32
)
OPERATIONS = operations.operation_set("PR")


def make_trainer(loss=losses.surrogate_supervision, steps_per_call=4, config=CONFIG, **options):
    return training.make_trainer(
        config.network,
        training.Objective(loss, losses.pretext_accuracy),
        training.make_optimizer(config),
        32,
        OPERATIONS,
        batch_size=config.batch_size,
        steps_per_call=steps_per_call,
        precision=config.precision,
        **options,
    )


def run(trainer, images, seed=0, num_steps=8, extra=()):
    """The state and the logs of a run."""
    state = trainer.init(jax.random.key(seed), images.shape[-1], extra)
    bank, counts, logs = training.place_bank(trainer.mesh, images), [], []
    while left := num_steps - sum(counts):
        counts.append(trainer.next_count(left))
    drawn = trainer.batches(state, bank, len(images), counts)
    for count, batches in zip(counts, drawn, strict=True):
        state, log = trainer.run_steps(state, batches, num_steps, count)
        logs.append(jax.device_get(log))
    return state, jax.tree.map(lambda *parts: np.concatenate(parts), *logs)
