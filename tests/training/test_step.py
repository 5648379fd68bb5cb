"""One step is what its formulas say, on any number of devices; what watches changes nothing."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trainers import make_trainer, run

from e3jax import devices, operations, training
from e3jax.operations import Operation
from e3jax.training import losses, step as steps

TURNS = operations.compile_operations(
    tuple(Operation(quarter_turns=turns) for turns in range(4)), 8
)
RATE, L2 = 0.1, 0.01
OPTIMIZER = training.make_optimizer(
    training.TrainConfig(optimizer="sgd", learning_rate=RATE, weight_decay=L2)
)
WHOLE, SPLIT = devices.EVERYWHERE, devices.SPLIT
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
IMAGE, OPERATION = np.int32([0, 1, 2, 3, 4, 0, 1, 2]), np.int32([0, 1, 2, 3, 3, 2, 1, 0])


class Linear(nn.Module):
    """Logits that are linear in the pixels, without a bias."""

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(4, use_bias=False)(x.reshape(len(x), -1)), x


class Noisy(nn.Module):
    """Logits of which half are dropped."""

    @nn.compact
    def __call__(self, x, train):
        logits = nn.Dense(4)(x.reshape(len(x), -1))
        return nn.Dropout(0.5, deterministic=not train)(jnp.ones_like(logits)) * logits, x


def drawn():
    rows = IMAGES[IMAGE].reshape(len(IMAGE), -1)
    return training.DrawnBatches(rows, IMAGE, OPERATION, IMAGE, np.int32([0, 2, 0]))


def state_of(network, extra=()):
    variables = network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)
    variables = {"params": variables["params"], "batch_stats": {}}
    key, start = jnp.arange(8, dtype=jnp.uint32), jnp.zeros(3, jnp.int32)
    opt_state = OPTIMIZER.init(variables["params"])
    return training.TrainState(variables, opt_state, jnp.int32(0), start, key, extra)


def take(step, state, count=2, data=()):
    """A step on some of the devices."""
    mesh = devices.device_mesh(jax.devices()[:count])
    specs = training.DrawnBatches(SPLIT, SPLIT, SPLIT, WHOLE, WHOLE)
    program = devices.on_mesh(step, mesh, "float32", (WHOLE, specs, WHOLE, WHOLE, WHOLE))
    arguments = devices.place(mesh, (state, drawn(), np.int32(9), TURNS, data))
    return jax.device_get(program(arguments[0], devices.place(mesh, drawn()), *arguments[2:]))


@pytest.mark.parametrize("count", [1, 2])
def test_a_step_is_that_of_softmax_regression_on_turned_images(count):
    """The gradient of the mean cross-entropy by hand, in double precision."""
    objective = training.Objective(losses.surrogate_supervision, losses.pretext_accuracy)
    step = training.Step(Linear(), objective, OPTIMIZER, 8)
    before = state_of(Linear())
    after, log = take(step, before, count)
    views = [np.rot90(IMAGES[i], turns) for i, turns in zip(IMAGE, OPERATION, strict=True)]
    x = (np.float64(views) / 127.5 - 1).reshape(8, -1)
    weights = np.float64(before.variables["params"]["Dense_0"]["kernel"])
    logits = x @ weights
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gradient = x.T @ (p - np.eye(4)[OPERATION]) / 8 + L2 * weights
    np.testing.assert_allclose(
        after.variables["params"]["Dense_0"]["kernel"], weights - RATE * gradient, rtol=1e-5
    )
    assert log.loss == pytest.approx(-np.log(p[range(8), OPERATION]).mean(), rel=1e-5)
    assert log.metrics["pretext_accuracy"] == np.mean(logits.argmax(1) == OPERATION)
    assert after.step == 1 and list(after.epoch_position) == [0, 2, 0] and log.probe == ()


def test_two_steps_are_optaxs(digits):
    """Momentum too, and the schedule's rate of each step."""
    step = training.Step(Linear(), training.Objective(losses.surrogate_supervision), OPTIMIZER, 8)
    state = state_of(Linear())
    params = state.variables["params"]
    rule = optax.chain(optax.add_decayed_weights(L2), optax.sgd(RATE, momentum=0.9))
    opt_state = rule.init(params)
    views = jnp.stack([np.rot90(IMAGES[i], t) for i, t in zip(IMAGE, OPERATION, strict=True)])

    def mean_loss(params):
        logits, _ = Linear().apply({"params": params}, views / 127.5 - 1, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, OPERATION).mean()

    for _ in range(2):
        updates, opt_state = rule.update(jax.grad(mean_loss)(params), opt_state, params)
        params = optax.apply_updates(params, updates)
        state, _ = take(step, state)
    chex.assert_trees_all_close(state.variables["params"], params, rtol=1e-5)


def test_dropout_is_new_in_each_step_and_on_each_device():
    """It follows from the shuffle key, so that a run that goes on draws the same."""
    objective = training.Objective(
        losses.surrogate_supervision, lambda outputs, batch: {"zeros": (outputs[0] == 0).mean()}
    )
    network = Noisy()
    step, state = training.Step(network, objective, OPTIMIZER, 8), state_of(network)
    first, again = take(step, state), take(step, state)
    chex.assert_trees_all_equal(first, again)
    assert 0.2 < first[1].metrics["zeros"] < 0.8
    same_place = state._replace(step=jnp.int32(1))
    assert take(step, same_place)[1].loss != first[1].loss
    other_run = state._replace(shuffle_key=state.shuffle_key + 1)
    assert take(step, other_run)[1].loss != first[1].loss
    assert take(step, state, count=1)[1].loss != first[1].loss


def test_the_network_is_applied_to_what_inputs_makes_of_the_views():
    """Given what the loss carries, which comes back changed."""

    def inputs(views, image_index, extra):
        return views * extra["weights"][image_index][:, None, None, None]

    def loss(outputs, batch, extra):
        logits, x = outputs
        return (x**2).sum((1, 2, 3)) + 0 * logits.sum(1), extra | {"seen": batch.all_image_index}

    weights = np.float32([0, 1, 2, 3, 4])
    state = state_of(Linear(), {"weights": weights, "seen": np.zeros(8, np.int32)})
    step = training.Step(Linear(), training.Objective(loss, inputs=inputs), OPTIMIZER, 8)
    after, log = take(step, state)
    energy = ((IMAGES[IMAGE] / 127.5 - 1) ** 2).sum((1, 2, 3))
    assert log.loss == pytest.approx((energy * weights[IMAGE] ** 2).mean(), rel=1e-5)
    np.testing.assert_array_equal(after.extra["seen"], IMAGE)


def test_without_operations_the_images_are_the_views():
    batch = steps.make_batch(drawn(), None, 8, (), lambda views, image_index, extra: views)
    np.testing.assert_allclose(batch.views, IMAGES[IMAGE] / 127.5 - 1, atol=1e-7)
    assert batch.factors.shape == (0, 1)
    np.testing.assert_array_equal(batch.image_index, IMAGE)


def test_a_probe_sees_the_state_before_the_update_and_changes_nothing():
    def probe(state, tables, data):
        kernel = state.variables["params"]["Dense_0"]["kernel"]
        return {"sum": kernel.sum(), "step": state.step + data, "k": jnp.int32(len(tables))}

    objective = training.Objective(losses.surrogate_supervision)
    state = state_of(Linear())
    watched = training.Step(Linear(), objective, OPTIMIZER, 8, probe)
    after, log = take(watched, state, data=np.int32(70))
    without, _ = take(training.Step(Linear(), objective, OPTIMIZER, 8), state)
    chex.assert_trees_all_equal(after, without)
    assert log.probe["sum"] == pytest.approx(
        float(state.variables["params"]["Dense_0"]["kernel"].sum())
    )
    assert log.probe["step"] == 70 and log.probe["k"] == 4


def test_a_probe_may_take_its_turn_and_is_blank_in_between(digits):
    def probe(state, tables, data):
        return {"step": state.step, "square": jnp.float32(state.step) ** 2}

    _, log = run(make_trainer(probe=training.probe_every(3, probe)), digits, num_steps=7)
    np.testing.assert_array_equal(log.probe["step"], [0, -1, -1, 3, -1, -1, 6, -1])
    np.testing.assert_array_equal(
        log.probe["square"], [0, *[np.nan] * 2, 9, *[np.nan] * 2, 36, np.nan]
    )


def test_so_many_steps_are_taken_as_are_asked_for():
    def step(state, batch, num_steps, data):
        log = training.StepLog(batch * data, {"left": num_steps - state.step})
        return state._replace(step=state.step + 1), log

    state = training.TrainState({}, (), jnp.int32(5), None, None)
    repeat, batches = jax.jit(steps.repeat_step(step)), jnp.arange(4.0)
    after, log = repeat(state, batches, (jnp.int32(20), jnp.int32(2)), jnp.float32(2))
    assert after.step == 7
    np.testing.assert_array_equal(log.loss, [0, 2, np.nan, np.nan])
    np.testing.assert_array_equal(log.metrics["left"], [15, 14, -1, -1])
    after, log = repeat(state, batches, (jnp.int32(20), None), jnp.float32(2))
    assert after.step == 9
    np.testing.assert_array_equal(log.loss, [0, 2, 4, 6])
    np.testing.assert_array_equal(log.metrics["left"], [15, 14, 13, 12])
