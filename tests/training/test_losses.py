"""Losses of known values; that they train is tested in test_training.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from e3jax import devices, operations
from e3jax.training import losses
from e3jax.training.batch import Batch

pytestmark = pytest.mark.usefixtures("unoptimised")

SET = operations.operation_set("RA+IA+PR", 8)
K = len(SET)


def loss_of(logits, label):
    label = jnp.array([label])
    batch = Batch(None, jnp.zeros(1, int), label, jnp.zeros(1, int), SET.factors)
    values, extra = losses.factored_supervision((logits[None], None), batch, ())
    assert values.shape == (1,) and extra == ()
    return float(values[0])


def test_factors_are_the_fields_of_the_operations():
    paper = operations.paper_operations("RA+IA+PR", 8)
    values = [(o.flip, *o.shift, o.quarter_turns, o.patches, o.angle) for o in paper]
    for numbers, of_all in zip(np.asarray(SET.factors), zip(*values, strict=True), strict=True):
        assert len(set(numbers)) == len(set(zip(numbers, of_all, strict=True))) == len(set(of_all))


def test_a_network_that_knows_nothing_pays_for_the_operation_and_each_factor():
    shares = [np.mean(numbers == numbers[5]) for numbers in np.asarray(SET.factors)]
    expected = np.log(K) - np.log(shares).sum()
    assert loss_of(jnp.zeros(K), 5) == pytest.approx(expected, rel=1e-5)


def test_a_network_that_is_sure_and_right_pays_nothing():
    assert loss_of(jnp.zeros(K).at[7].set(100.0), 7) == pytest.approx(0, abs=1e-6)


def test_a_mistake_costs_less_the_more_factors_are_right():
    turned, flipped_too = SET.names.index("turn90"), SET.names.index("flip·turn90")
    nothing_right = SET.names.index("flip·shift(-2,2)·turn270")
    near, far = (loss_of(jnp.zeros(K).at[o].set(9.0), turned) for o in (flipped_too, nothing_right))
    assert near < far - 9


def test_gradients_are_finite_where_probabilities_vanish():
    def value(logits):
        batch = Batch(None, jnp.zeros(1, int), jnp.array([3]), jnp.zeros(1, int), SET.factors)
        return losses.factored_supervision((logits[None], None), batch, ())[0].sum()

    gradient = jax.grad(value)(jnp.zeros(K).at[50].set(1e4))
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0.5


def test_operations_that_share_a_factor_do_not_pay_for_it():
    turns = operations.operation_set([operations.Operation(quarter_turns=q) for q in range(4)], 8)
    batch = Batch(None, jnp.zeros(1, int), jnp.array([2]), jnp.zeros(1, int), turns.factors)
    outputs = (jnp.array([[0.3, -1.0, 0.2, 0.7]]), None)
    factored, _ = losses.factored_supervision(outputs, batch, ())
    plain, _ = losses.surrogate_supervision(outputs, batch, ())
    np.testing.assert_allclose(factored, 2 * plain, rtol=1e-6)


@jax.jit
def trimmed_over_two_devices(share, logits, operation, image, certainty):
    """What each view counts, and the certainty afterwards."""

    def of_device(share, logits, operation, mine, image, certainty):
        batch = Batch(None, mine, operation, image, SET.factors)
        plain, _ = losses.factored_supervision((logits,), batch, ())
        loss = losses.trimmed(losses.factored_supervision, share)
        found, certainty_after = loss((logits,), batch, certainty)
        return found / plain, certainty_after

    split, whole = PartitionSpec(devices.AXIS), PartitionSpec()
    mapped = jax.shard_map(
        of_device,
        mesh=devices.device_mesh(jax.devices()[:2]),
        in_specs=(whole, split, split, split, whole, whole),
        out_specs=(split, whole),
        check_vma=False,
    )
    return mapped(share, logits, operation, image, image, certainty)


def test_views_of_the_least_certain_images_count_nothing():
    logits = 3 * jax.random.normal(jax.random.key(0), (10, K))
    image, operation = jnp.array([4, 0, 3, 2, 2, 1, 5, 6, 7, 8]), jnp.arange(10) % 7
    logits += 9 * jax.nn.one_hot(operation, K)
    own = np.linspace(1, 0, 9)
    certainty = losses.initial_certainty(None).copy()
    certainty[0, :9], certainty[1, :7] = own, 0.1 * np.arange(7)
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    pl = np.exp(log_p[np.arange(10), operation]).mean()
    counts, after = trimmed_over_two_devices(0.2 / pl, logits, operation, image, certainty)

    # Image by image, as the docstring has it.
    ne = (np.exp(log_p) * log_p).sum(1)
    apart = ne - ne.mean() - 0.1 * np.asarray(operation)
    moved, of_operations = own.copy(), 0.1 * np.arange(7)
    for i, o, a in zip(image, operation, apart, strict=True):
        moved[i] += 0.1 * (a - own[i])
        of_operations[o] += 0.1 * a
    np.testing.assert_allclose(after[0, :9], moved, rtol=1e-4)
    np.testing.assert_allclose(after[1, :7], of_operations, atol=1e-5)
    assert not after[:, 9:].any()
    assert list(np.argsort(moved)[:2]) == [8, 7]
    np.testing.assert_allclose(counts, ~np.isin(image, [8, 7]), rtol=1e-6)
    fewer, _ = trimmed_over_two_devices(0.1 / pl, logits, operation, image, certainty)
    np.testing.assert_allclose(fewer, image != 8, rtol=1e-6)


def test_images_that_are_equally_certain_all_count():
    logits, image = jnp.zeros((4, K)), jnp.arange(4)
    counts, after = trimmed_over_two_devices(
        0.5, logits, image, image, losses.initial_certainty(None)
    )
    assert counts.tolist() == [1] * 4 and not after.any()


def test_images_beyond_the_slots_share_them():
    logits, start = jax.random.normal(jax.random.key(1), (4, K)), losses.initial_certainty(None)
    image, operation = jnp.arange(4), jnp.arange(4)
    few, after = trimmed_over_two_devices(0.25, logits, operation, image, start)
    many, after_many = trimmed_over_two_devices(
        0.25, logits, operation, image + 3 * start.shape[1], start
    )
    np.testing.assert_array_equal(few, many)
    np.testing.assert_array_equal(after, after_many)
    assert few.sum() == 3


@pytest.mark.parametrize("m", [1, 10, 30, 300])
def test_certainties_are_moving_averages_however_often_a_batch_has_an_image_or_operation(m):
    b, after = 4 * m, losses.initial_certainty(None)
    operation, image = np.arange(b) % 4, np.arange(b) // m
    averages, weight = np.zeros((2, 4)), min(0.1, 1 / m)
    for key in jax.random.split(jax.random.key(m), 20):
        logits = 3 * jax.random.normal(key, (b, K))
        _, after = trimmed_over_two_devices(0.1, logits, operation, image, after)
        log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
        centred = (np.exp(log_p) * log_p).sum(1)
        centred -= centred.mean()
        apart = centred - averages[1, operation]
        for slot, (before, values) in enumerate(zip(averages[0], apart.reshape(4, m), strict=True)):
            averages[0, slot] += weight * np.sum(values - before)
        for slot, before in enumerate(averages[1].copy()):
            averages[1, slot] += weight * np.sum(centred[operation == slot] - before)
        np.testing.assert_allclose(after[:, :4], averages, rtol=0, atol=1e-5)
        assert np.abs(averages).max() <= 2 * np.abs(centred).max()
    # Of the same batch again and again they become the means.
    for _ in range(100):
        _, after = trimmed_over_two_devices(0.1, logits, operation, image, after)
    means = np.array([centred[operation == slot].mean() for slot in range(4)])
    np.testing.assert_allclose(after[1, :4], means, rtol=0, atol=1e-4)
    apart = centred - means[operation]
    np.testing.assert_allclose(after[0, :4], apart.reshape(4, m).mean(1), rtol=0, atol=1e-3)


def test_views_of_one_image_all_count_however_certain_it_is():
    """Any quantile of equal values is that value, also after rounding."""
    logits = jax.random.normal(jax.random.key(2), (10, K))
    image, operation = jnp.zeros(10, int), jnp.arange(10)
    for certainty in np.random.default_rng(0).normal(size=100):
        start = losses.initial_certainty(None) + np.float32(certainty)
        counts, _ = trimmed_over_two_devices(0.5, logits, operation, image, start)
        assert counts.tolist() == [1] * 10


def test_a_certainty_that_is_not_finite_makes_the_loss_so():
    """No view would count, and training would go on with weight decay alone."""
    logits, image = jax.random.normal(jax.random.key(3), (4, K)), jnp.arange(4)
    start = losses.initial_certainty(None).copy()
    start[0, 2] = np.nan
    counts, _ = trimmed_over_two_devices(0.1, logits, image, image, start)
    assert np.isnan(counts).all()
