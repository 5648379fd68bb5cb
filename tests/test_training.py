import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from e3jax import checkpoint, devices, operations, training

CONFIG = training.TrainConfig(
    network="wrn-10-1", optimizer="sgd", learning_rate=0.01, batch_size=32, steps=8
)
OPERATIONS = operations.operation_set("PR")


@pytest.fixture(scope="module")
def trainer():
    return training.make_trainer(CONFIG, OPERATIONS, chunk=4)


def run(trainer, images, seed=0, total=8, **options):
    state = trainer.init(jax.random.key(seed), images.shape[-1])
    bank = training.place_bank(trainer.mesh, images)
    return training.train(trainer, state, bank, len(images), total, **options)


def order_key(seed):
    return jax.random.bits(jax.random.key(seed), (8,))


def orders(seed, n, k, batch, batches):
    """The pairs of so many batches, [batches * batch] each."""
    draw = jax.jit(training.next_views, static_argnums=(2, 4))
    cursor, pairs = jnp.zeros(3, jnp.int32), []
    for _ in range(batches):
        image, label, cursor = draw(order_key(seed), cursor, batch, n, k)
        pairs.append((np.asarray(image), np.asarray(label)))
    return [np.concatenate(p) for p in zip(*pairs, strict=True)]


@pytest.mark.parametrize("n, k, batch", [(60, 111, 128), (7, 23, 64), (10, 4, 128), (101, 72, 32)])
def test_an_epoch_visits_every_view_once_and_batches_run_on_into_the_next(n, k, batch):
    batches = math.ceil(3 * n * k / batch)
    image, label = orders(0, n, k, batch, batches)
    epochs = [(image * k + label)[e * n * k : (e + 1) * n * k] for e in range(3)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(n * k))
    assert np.mean(epochs[0] == epochs[1]) < 0.2
    other = orders(1, n, k, batch, batches)
    assert np.mean((other[0] == image) & (other[1] == label)) < 0.2


def test_views_are_shuffled_one_by_one():
    n, k, batch = 600, 111, 128
    image, label = (p.reshape(-1, batch) for p in orders(3, n, k, batch, n * k // batch))
    # Draws of 128 of n = 600 images hit 115.2 different ones on average, of 111 labels 76.2.
    distinct = [np.mean([len(set(row)) for row in p]) for p in (image, label)]
    assert abs(distinct[0] - 600 * (1 - (1 - 1 / 600) ** 128)) < 1
    assert abs(distinct[1] - 111 * (1 - (1 - 1 / 111) ** 128)) < 1
    # Neither neighbours in a batch nor image and label go together.
    for a, b in ((image[:, 1:], image[:, :-1]), (label[:, 1:], label[:, :-1]), (image, label)):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02


def test_an_order_may_be_longer_than_int32():
    n, k = 30_000_000, 111
    start = jnp.asarray([0, n - 2, 50], jnp.int32)
    image, label, cursor = training.next_views(order_key(0), start, 512, n, k)
    assert 0 <= image.min() and image.max() < n and 0 <= label.min() and label.max() < k
    assert image.max() > n * 0.9 and image.min() < n * 0.1
    np.testing.assert_array_equal(cursor, [1, (50 + 512) // k - 2, (50 + 512) % k])


def test_paper_lengths():
    paper = training.paper_config(grey=True)
    assert paper.num_steps(7777, 111) == math.ceil(3 * 7777 * 111 / 128)
    assert paper.num_steps(7777, 88) == math.ceil(3 * 7777 * 88 / 128)
    assert paper.num_steps(7777, 72) == math.ceil(4 * 7777 * 72 / 128)
    assert training.quick_config().num_steps(10**6, 111) == training.quick_config().steps


def test_optimizers_follow_the_formulas_of_the_original_program():
    """PyTorch's update rules with L2 added to the gradient, in NumPy."""
    p0, gradients = np.float32([1.0, -2.0]), np.float32([[0.5, 1.0], [-1.0, 0.2], [0.3, 0.3]])
    for name in ("sgd", "adam"):
        config = training.TrainConfig(optimizer=name, learning_rate=0.1)
        rule = training.make_optimizer(config)
        params, state = jnp.asarray(p0), rule.init(jnp.asarray(p0))
        p, m, v = p0.astype(np.float64), np.zeros(2), np.zeros(2)
        for t, g in enumerate(gradients, start=1):
            updates, state = rule.update(jnp.asarray(g), state, params, step=t - 1, total=3)
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
        training.make_trainer(CONFIG._replace(precision="float16"), OPERATIONS)


def test_one_compilation_serves_all_classes_and_seeds(trainer, digits):
    compiled = []
    run(trainer, digits)
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    jax.jit(lambda x: x + 1)(jnp.arange(5))
    assert compiled, "the listener does not see compilations"
    compiled.clear()
    run(trainer, digits, seed=1, total=6)
    assert not compiled
    run(trainer, digits[:50], seed=1)
    assert len(compiled) <= 1, "more than what draws from a bank of another size"
    jax.monitoring.clear_event_listeners()


def test_same_seed_same_numbers_and_resumed_is_undisturbed(trainer, digits, tmp_path):
    whole, again = run(trainer, digits), run(trainer, digits)
    chex.assert_trees_all_equal(whole.variables, again.variables)
    saved = checkpoint.TrainCheckpoint(tmp_path / "state")
    fresh = trainer.init(jax.random.key(0), 1)
    notes = {"seconds": np.float32(12.5), "scores": np.float32([[1, np.nan]])}
    assert saved.restore(fresh, notes) is None
    run(trainer, digits, total=4, on_chunk=lambda state, log: saved.save(state, notes))
    saved = checkpoint.TrainCheckpoint(tmp_path / "state")
    state, kept = saved.restore(fresh, jax.tree.map(np.zeros_like, notes))
    chex.assert_trees_all_equal(kept, notes)
    assert int(state.step) == 4
    bank = training.place_bank(trainer.mesh, digits)
    resumed = training.train(trainer, state, bank, len(digits), 8)
    chex.assert_trees_all_equal(whole.variables, resumed.variables)
    chex.assert_trees_all_equal(whole.opt_state, resumed.opt_state)
    saved.close()


def test_a_run_stops_within_a_chunk(trainer, digits):
    logs = []
    state = run(trainer, digits, total=6, on_chunk=lambda state, log: logs.append(log))
    assert int(state.step) == 6
    losses = np.concatenate([log.loss for log in logs])
    assert np.isfinite(losses[:6]).all() and np.isnan(losses[6:]).all()
    chex.assert_trees_all_equal(state.variables, run(trainer, digits, total=6).variables)


def test_one_and_two_devices_take_the_same_steps(trainer, digits):
    alone = training.make_trainer(CONFIG, OPERATIONS, devices.device_mesh(jax.devices()[:1]), 4)
    assert trainer.mesh.size == 2 and alone.mesh.size == 1
    two, one = run(trainer, digits), run(alone, digits)
    for a, b in zip(jax.tree.leaves(two.variables), jax.tree.leaves(one.variables), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-3, atol=1e-4)


def test_loss_falls_on_real_digits(digits):
    config = CONFIG._replace(optimizer="adam", learning_rate=0.005, steps=60)
    trainer = training.make_trainer(config, OPERATIONS, chunk=20)
    logs = []
    run(trainer, digits, total=60, on_chunk=lambda state, log: logs.append(log))
    assert np.mean(logs[0].loss) > np.mean(logs[-1].loss) + 0.5
    assert np.mean(logs[-1].accuracy) > 3 / len(OPERATIONS)
