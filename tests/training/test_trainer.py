"""The trainer itself; whole runs are in test_fitting.py."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Tiny

from e3jax import devices, losses, operations, training

CONFIG = training.TrainConfig(
    network=Tiny, operations="PR", optimizer="sgd", learning_rate=0.01, batch_size=32
)
OPERATIONS = operations.operation_set("PR")


def make_trainer(loss=losses.surrogate_supervision, steps_per_call=4, config=CONFIG, **options):
    options = {"metrics": losses.pretext_accuracy, "batch_size": config.batch_size} | options
    return training.make_trainer(
        config.network,
        loss,
        training.make_optimizer(config),
        32,
        OPERATIONS,
        steps_per_call=steps_per_call,
        precision=config.precision,
        **options,
    )


def run(trainer, images, seed=0, num_steps=8, extra=()):
    """The state and the logs of a run."""
    state = trainer.init(jax.random.key(seed), images.shape[-1], extra)
    bank, logs = training.place_bank(trainer.mesh, images), []
    calls = math.ceil(num_steps / trainer.steps_per_call)
    for fed in trainer.feed(state, bank, len(images), [trainer.steps_per_call] * calls):
        state, log = trainer.run_steps(state, fed, num_steps)
        logs.append(jax.device_get(log))
    return state, jax.tree.map(lambda *parts: np.concatenate(parts), *logs)


@pytest.fixture(scope="module")
def trainer():
    return make_trainer()


def test_paper_lengths():
    paper = training.paper_config(grey=True)
    assert paper.num_steps(7777) == math.ceil(3 * 7777 * 111 / 128)
    assert paper._replace(operations="RA+IA").num_steps(7777) == math.ceil(3 * 7777 * 88 / 128)
    assert paper._replace(operations="RA").num_steps(7777) == math.ceil(4 * 7777 * 72 / 128)
    assert paper._replace(operations="").num_steps(7777) == math.ceil(250 * 7777 / 128)
    assert training.quick_config().num_steps(10**6) == training.quick_config().steps


def test_a_batch_is_no_larger_than_an_epoch_and_a_power_of_two_then():
    config = training.TrainConfig(operations="", batch_size=128)
    assert [config.batch(n) for n in (500, 128, 80, 70, 40, 2)] == [128, 128, 128, 128, 64, 2]
    assert config._replace(operations="RA").batch(40) == 128


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
        training.make_optimizer(CONFIG._replace(optimizer="lion"))
    with pytest.raises(ValueError, match="'constant' or 'onecycle', got 'cosine'"):
        training.make_optimizer(CONFIG._replace(schedule="cosine"))
    with pytest.raises(ValueError, match="precision is 'float16', expected one of float32"):
        make_trainer(config=CONFIG._replace(precision="float16"))


@pytest.mark.parametrize("num_steps", [1, 7, 433, 2**31 - 1])
def test_the_schedule_is_optaxs_one_cycle(num_steps):
    config = training.quick_config()
    ours = jax.jit(training.learning_rate(config))
    theirs = optax.cosine_onecycle_schedule(num_steps, config.learning_rate)
    for step in {0, 1, 2, num_steps // 3, num_steps // 2, num_steps - 1}:
        assert ours(jnp.int32(step), jnp.int32(num_steps)) == pytest.approx(
            float(theirs(step)), rel=1e-3 if num_steps > 10**6 else 1e-5
        )


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


def test_steps_end_where_they_are_told_to(trainer, digits):
    state, log = run(trainer, digits, num_steps=6)
    assert int(state.step) == 6
    assert np.isfinite(log.loss[:6]).all() and np.isnan(log.loss[6:]).all()
    assert np.isnan(log.metrics["pretext_accuracy"][6:]).all()
    # The same steps, with a stop on the way.
    bank, again = training.place_bank(trainer.mesh, digits), trainer.init(jax.random.key(0), 1)
    for until, fed in zip((3, 6), trainer.feed(again, bank, len(digits), (3, 3)), strict=True):
        again, _ = trainer.run_steps(again, fed, 6, until)
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


def test_a_bank_stays_on_a_cpus_host_and_is_split_over_other_devices(trainer, digits):
    """Each trains the same, whatever the bank's size."""
    assert training.place_bank(trainer.mesh, digits) is digits
    states = []
    for images in (digits[:59], digits):
        for on_host in (True, False):
            bank = training.place_bank(trainer.mesh, images, on_host)
            if not on_host:
                parts = [part.data.shape for part in bank.addressable_shards]
                assert parts == [(30, 32 * 32)] * 2
            state = trainer.init(jax.random.key(0), 1)
            for fed in trainer.feed(state, bank, len(images), (2, 1, 3)):
                state, _ = trainer.run_steps(state, fed, 8)
            states.append(state)
        chex.assert_trees_all_equal(*states[-2:])
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(states[0], states[2])


def test_no_device_of_a_cpu_holds_the_images(trainer, mnist):
    state, n = trainer.init(jax.random.key(0), 1), len(mnist.images)
    before = {id(a) for a in jax.live_arrays()}
    for fed in trainer.feed(state, training.place_bank(trainer.mesh, mnist.images), n, (4, 4)):
        state, _ = trainer.run_steps(state, fed, 8)
        pixels = [a for a in jax.live_arrays() if id(a) not in before and a.dtype == np.uint8]
        # What this call trains on, and what the next one will.
        assert sum(a.nbytes for a in pixels) <= 2 * 4 * 32 * 32 * 32 < mnist.images.nbytes / 8


def test_what_fetches_images_ahead_stops_with_the_training(trainer, digits):
    asked = []

    class Bank:
        def __getitem__(self, index):
            asked.append(len(index))
            return digits[index]

    fed = trainer.feed(trainer.init(jax.random.key(0), 1), Bank(), len(digits), [1] * 50)
    next(fed), next(fed)
    fed.close()
    assert 2 <= len(asked) <= 3
