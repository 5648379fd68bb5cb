"""The paper's optimizers, at a learning rate that depends on a run's length."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from e3jax.training.config import TrainConfig


def learning_rate(config: TrainConfig) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The learning rate as a function of the step (0, 1, ...) and the run's number of steps.

    One-cycle is ``optax.cosine_onecycle_schedule``, whose length would be a constant of a program.

    Raises:
      ValueError: for an unknown schedule.
    """
    peak = config.learning_rate
    if config.schedule == "constant":
        return lambda step, num_steps: jnp.float32(peak)
    if config.schedule != "onecycle":
        raise ValueError(f"schedule must be 'constant' or 'onecycle', got {config.schedule!r}")

    rates = np.cumprod(np.array([peak / 25, 25, 1 / (25 * 1e4)], np.float32))

    def onecycle(step: jax.Array, num_steps: jax.Array) -> jax.Array:
        top = num_steps // 10 * 3 + num_steps % 10 * 3 // 10  # 30 %, without leaving int32
        ends = jnp.stack([jnp.zeros_like(num_steps), top, num_steps])
        # By its reciprocal, as XLA divides by a constant: to the same bits as optax.
        share = (step - ends[:-1]) * (1 / jnp.maximum(ends[1:] - ends[:-1], 1))
        of_parts = rates[1:] + (rates[:-1] - rates[1:]) / 2 * (jnp.cos(jnp.pi * share) + 1)
        is_in = (ends[:-1] <= step) & (step < ends[1:])
        return is_in.dot(of_parts) + (ends[-1] <= step) * rates[-1]

    return onecycle


def make_optimizer(config: TrainConfig) -> optax.GradientTransformationExtraArgs:
    """The optimizers of the paper, with L2 coupled (not AdamW).

    ``update(gradient, state, params, step=..., num_steps=...)`` takes the step and the run's number
    of steps, which the learning rate depends on.

    Raises:
      ValueError: for an unknown optimizer or schedule.
    """
    rate = learning_rate(config)
    if config.optimizer == "sgd":
        rule = optax.trace(0.9)
    elif config.optimizer == "adam":
        rule = optax.scale_by_adam(eps=1e-7)
    else:
        raise ValueError(f"optimizer must be 'sgd' or 'adam', got {config.optimizer!r}")

    def scale(updates: Any, state: Any, params: Any = None, **run: Any) -> tuple[Any, Any]:
        return jax.tree.map(lambda u: -rate(run["step"], run["num_steps"]) * u, updates), state

    by_rate = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), scale)
    # Flat: one array of all parameters is less to compile and to start than dozens of small ones.
    return optax.flatten(optax.chain(optax.add_decayed_weights(config.weight_decay), rule, by_rate))
