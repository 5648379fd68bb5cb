"""The trainer put together; whole runs of methods are in test_fitting.py."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trainers import CONFIG, OPERATIONS, make_trainer, run

from e3jax import devices, training
from e3jax.training import losses


@pytest.fixture(scope="module")
def trainer():
    return make_trainer()


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision is 'float16', expected one of float32"):
        make_trainer(config=CONFIG._replace(precision="float16"))


def test_one_compilation_serves_all_sizes_lengths_and_seeds(trainer, digits):
    compiled = []
    run(trainer, digits)
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    jax.jit(lambda x: x + 1)(jnp.arange(5))
    assert compiled, "the listener does not see compilations"
    compiled.clear()
    run(trainer, digits, seed=1, num_steps=6)
    assert not compiled
    run(trainer, digits[:50], seed=1)
    assert len(compiled) <= 1, "more than what draws from a bank of another size"
    jax.monitoring.clear_event_listeners()


def test_no_step_is_conditional(trainer, digits):
    """On a GPU the host would wait for each of them."""
    program = trainer.programs(len(digits), 1)["train"]
    text = program.function.lower(*program.arguments).compile().as_text()
    assert "while" in text and " conditional(" not in text


def test_where_the_host_runs_loops_few_lengths_have_programs_of_their_own(trainer, digits):
    """On GPUs, and here as if it were one."""
    loader = training.BatchLoader(trainer.mesh, 32, len(OPERATIONS), steps=4, fixed=True)
    assert [loader.next_count(left) for left in (1, 3, 4, 100)] == [1, 1, 4, 4]
    fixed = training.Trainer(loader, trainer.step, OPERATIONS, "float32")
    (state, log), (expected, logs) = (run(t, digits, num_steps=6) for t in (fixed, trainer))
    assert int(state.step) == 6 and len(log.loss) == 6 and np.isnan(logs.loss[6:]).all()
    np.testing.assert_allclose(log.loss, logs.loss[:6], rtol=1e-5)
    chex.assert_trees_all_close(state.variables, expected.variables, rtol=1e-4, atol=1e-5)
    on_devices = training.place_bank(fixed.mesh, digits, on_host=False)
    again = fixed.init(jax.random.key(0), 1)
    for count, batches in zip((4, 1), fixed.batches(again, on_devices, 60, (4, 1)), strict=True):
        again, log_again = fixed.run_steps(again, batches, 6, count)
    np.testing.assert_array_equal(log_again.loss, log.loss[4:5])


def test_steps_end_where_they_are_told_to(trainer, digits):
    state, log = run(trainer, digits, num_steps=6)
    assert int(state.step) == 6
    assert np.isfinite(log.loss[:6]).all() and np.isnan(log.loss[6:]).all()
    assert np.isnan(log.metrics["pretext_accuracy"][6:]).all()
    # The same steps, with a stop on the way.
    bank, again = training.place_bank(trainer.mesh, digits), trainer.init(jax.random.key(0), 1)
    drawn = trainer.batches(again, bank, len(digits), (3, 3))
    for batches in drawn:
        again, _ = trainer.run_steps(again, batches, 6, 3)
    chex.assert_trees_all_equal(again, state)


def test_one_and_two_devices_take_the_same_steps(trainer, digits):
    alone = make_trainer(mesh=devices.device_mesh(jax.devices()[:1]))
    assert trainer.mesh.size == 2 and alone.mesh.size == 1
    (two, _), (one, _) = run(trainer, digits), run(alone, digits)
    for a, b in zip(jax.tree.leaves(two.variables), jax.tree.leaves(one.variables), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-3, atol=1e-4)


def test_loss_falls_on_real_digits(digits):
    config = CONFIG._replace(optimizer="adam", learning_rate=0.02)
    _, log = run(make_trainer(config=config, steps_per_call=50), digits, num_steps=400)
    assert np.mean(log.loss[:50]) > np.mean(log.loss[350:]) + 0.5
    assert np.mean(log.metrics["pretext_accuracy"][350:]) > 3 / len(OPERATIONS)


def test_a_loss_may_carry_what_it_likes_from_step_to_step(digits):
    def counting(outputs, batch, seen):
        values, _ = losses.surrogate_supervision(outputs, batch, ())
        return values, seen.at[batch.all_image_index].add(1)

    state, _ = run(make_trainer(counting), digits, extra=np.zeros(len(digits), np.int32))
    assert state.extra.sum() == 8 * 32 and state.extra.max() < 40
