"""Optimizers and schedules against formulas and Optax; test_torch_parity.py has PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from e3jax import training


def test_optimizers_follow_the_formulas_of_the_original_program():
    """PyTorch's update rules with L2 added to the gradient, in NumPy."""
    p0, gradients = np.float32([1.0, -2.0]), np.float32([[0.5, 1.0], [-1.0, 0.2], [0.3, 0.3]])
    for name in ("sgd", "adam"):
        config = training.TrainConfig(optimizer=name, learning_rate=0.1)
        rule = training.make_optimizer(config)
        params, state = jnp.asarray(p0), rule.init(jnp.asarray(p0))
        p, m, v = p0.astype(np.float64), np.zeros(2), np.zeros(2)
        for t, g in enumerate(gradients, start=1):
            updates, state = rule.update(jnp.asarray(g), state, params, step=t - 1, num_steps=3)
            params = optax.apply_updates(params, updates)
            g = g + 5e-4 * p
            if name == "sgd":
                m = 0.9 * m + g
                p = p - 0.1 * m
            else:
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
                p = p - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-7)
        np.testing.assert_allclose(params, p, rtol=1e-5)


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="'sgd' or 'adam'"):
        training.make_optimizer(training.TrainConfig(optimizer="lion"))
    with pytest.raises(ValueError, match="'constant' or 'onecycle', got 'cosine'"):
        training.make_optimizer(training.TrainConfig(schedule="cosine"))


@pytest.mark.parametrize("num_steps", [1, 7, 433, 2**31 - 1])
def test_the_schedule_is_optaxs_one_cycle(num_steps):
    config = training.quick_config()
    ours = jax.jit(training.learning_rate(config))
    theirs = optax.cosine_onecycle_schedule(num_steps, config.learning_rate)
    for step in {0, 1, 2, num_steps // 3, num_steps // 2, num_steps - 1}:
        assert ours(jnp.int32(step), jnp.int32(num_steps)) == pytest.approx(
            float(theirs(step)), rel=1e-3 if num_steps > 10**6 else 1e-5
        )
