import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Plain, Tiny

from e3jax import devices, operations, priority, training
from e3jax.images import to_unit
from e3jax.training import fitting
from e3jax.training.fitting import Observer

pytestmark = pytest.mark.usefixtures("unoptimised")
OPERATIONS = operations.operation_set("PR")
K = len(OPERATIONS)
NETWORK = Tiny(K)
CONFIG = training.TrainConfig(
    network=Tiny,
    operations="PR",
    optimizer="adam",
    learning_rate=0.005,
    batch_size=16,
    steps=7,
)


def running(variables, views):
    return NETWORK.apply(variables, views, train=False)


@pytest.fixture(scope="module")
def case(digits):
    """A network after a few steps, 24 views of real digits, their labels, two groups."""
    state = fitting.fit(jax.random.key(0), digits, config=CONFIG, until=5).state
    random = np.random.default_rng(0)
    images, labels = random.integers(0, len(digits), 24), random.integers(0, K, 24)
    views = operations.views_of(OPERATIONS, to_unit(jnp.asarray(digits[images])), labels)
    groups = np.arange(24) % 4 == 0
    return jax.device_get(state.variables), views, labels, np.stack([~groups, groups])


@pytest.fixture(scope="module")
def gradients(case):
    """Every view's own gradient of the last layer by ``vmap(grad)``, float64 [24, parameters]."""
    variables, views, labels, _ = case

    def loss_of_one(head, view, label):
        params = variables["params"] | {"head": head}
        logits, _ = running(variables | {"params": params}, view[None])
        return optax.softmax_cross_entropy_with_integer_labels(logits[0], label)

    rows = jax.jit(jax.vmap(jax.grad(loss_of_one), in_axes=(None, 0, 0)))
    return as_rows(rows(variables["params"]["head"], views, labels))


def update_of(gradients, weights):
    """By the definition, from every datum's own gradient float64 [n, parameters]."""
    norm, step = np.linalg.norm(gradients, axis=1), weights @ gradients
    de_facto = gradients @ step / norm
    of_others = (step[None] - weights[:, None] * gradients) / (1 - weights[:, None])
    others = (of_others * gradients).sum(1) / norm
    return priority.Update(de_facto, others, de_facto / np.linalg.norm(step), norm)


def assert_same_update(measured, expected, shape):
    for name, a, b in zip(measured._fields, measured, expected, strict=True):
        assert a.shape == shape
        assert np.linalg.norm(np.ravel(a) - b) / np.linalg.norm(b) < 1e-5, name


def as_rows(tree):
    leaves = jax.tree.leaves(tree)
    return np.concatenate([np.reshape(a, (len(a), -1)) for a in leaves], axis=1).astype(np.float64)


@pytest.mark.parametrize("wrt", [None, ("params", "head")])
def test_both_measures_are_those_of_vmap_grad(case, gradients, wrt):
    variables, views, labels, groups = case
    expected = np.linalg.norm(groups @ gradients, axis=1)
    measured = priority.gradient_magnitude(
        running, variables, views, labels, groups, wrt=wrt, block=10
    )
    np.testing.assert_allclose(measured, expected, rtol=1e-5)
    expected = update_of(gradients, np.full(24, 1 / 24))
    images = jax.tree.map(lambda a: a.reshape(4, 6, *a.shape[1:]), (views, labels))
    update = functools.partial(priority.de_facto_update, running, variables, *images, wrt=wrt)
    assert_same_update(update(datum="view", block=10), expected, (4, 6))
    assert expected.de_facto.min() < 0 < expected.de_facto.max(), "an easy case: all on one side"
    # An image's loss is the mean over its views (eq. 2).
    of_images, weights = gradients.reshape(4, 6, -1).mean(1), np.float32([1, 2, 3, 2])
    expected = update_of(of_images, weights / 8)
    assert_same_update(update(weights=weights, block=14), expected, (4,))


def test_one_operation_is_one_column_of_its_own_views(case):
    variables, views, labels, groups = case
    measured = priority.gradient_magnitude(
        running, variables, views, labels, groups, per_operation=True, block=7
    )
    assert measured.shape == (2, K)

    @jax.jit
    @jax.grad
    def gradient(head, c, group):
        logits, _ = running(variables | {"params": variables["params"] | {"head": head}}, views)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.sum(losses * (labels == c) * group)

    for c in (int(labels[0]), int(labels[1])):
        for g in range(2):
            head = gradient(variables["params"]["head"], c, groups[g])
            expected = np.linalg.norm([*head["kernel"][:, c], head["bias"][c]])
            np.testing.assert_allclose(measured[g, c], expected, rtol=1e-5)


def test_losses_of_a_coupled_batch():
    """With the batch's own statistics a view's gradient is a row of the whole batch's Jacobian."""
    random = np.random.default_rng(3)
    shapes = {"in": (5, 6), "kernel": (6, 4), "bias": (4,)}
    variables = {name: jnp.asarray(random.normal(size=s)) for name, s in shapes.items()}
    x, labels = jnp.asarray(random.normal(size=(12, 5))), jnp.asarray(random.integers(0, 4, 12))
    groups = random.uniform(size=(2, 12))

    def apply(variables, x, mean=None, spread=None):
        x = x @ variables["in"]
        own = mean is None
        x = (x - (x.mean(0, keepdims=True) if own else mean)) / (
            x.std(0, keepdims=True) if own else spread
        )
        return jax.nn.relu(x) @ variables["kernel"] + variables["bias"][None], jax.nn.relu(x)

    def losses(weights):
        logits, _ = apply(variables | {"in": weights}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    jacobian = as_rows({"in": jax.jacrev(losses)(variables["in"])})
    batch = (apply, variables, x, labels)
    measured = priority.gradient_magnitude(*batch, groups, wrt=("in",))
    np.testing.assert_allclose(measured, np.linalg.norm(groups @ jacobian, axis=1), rtol=1e-4)
    batch = (apply, variables, x[:, None], labels[:, None])
    measured = priority.de_facto_update(*batch, wrt=("in",), block=None).de_facto
    expected = jacobian @ jacobian.mean(0) / np.linalg.norm(jacobian, axis=1)
    np.testing.assert_allclose(measured, expected, rtol=1e-4, atol=1e-5)
    # The same statistics as constants: every view by itself, and other gradients.
    inside = x @ variables["in"]
    mean, spread = inside.mean(0, keepdims=True), inside.std(0, keepdims=True)
    fixed = functools.partial(apply, mean=mean, spread=spread)
    apart = priority.de_facto_update(fixed, *batch[1:], wrt=("in",)).de_facto
    assert np.abs(measured - apart).max() > 1e-3
    # The last layer sees the features as they are: there the two do not differ.
    closed = priority.de_facto_update(*batch)
    chex.assert_trees_all_close(closed, priority.de_facto_update(fixed, *batch[1:]), rtol=1e-4)


def linear(variables, x):
    """The smallest network: the representation is the input."""
    return x @ variables["kernel"] + variables["bias"][None], x


HALF = {"kernel": jnp.zeros((1, 2)), "bias": jnp.zeros(2)}  # p = 1/2 for both operations


def test_by_hand():
    """Feature 2, p = (1/2, 1/2): gradient (2, 1) x (-1/2, 1/2) for label 0, its negative for 1."""
    x, zeros = jnp.full((4, 1), 2.0), jnp.zeros(4, int)
    groups = np.float32([[1, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0.5]])
    norm = np.sqrt(2.5)
    measured = functools.partial(priority.gradient_magnitude, linear, HALF, x)
    np.testing.assert_allclose(measured(zeros, groups), [3 * norm, norm, norm / 2], rtol=1e-6)
    mixed = jnp.asarray([0, 0, 1, 1])
    np.testing.assert_allclose(measured(mixed, groups), [norm, norm, norm / 2], rtol=1e-6)
    # Eq. 3's column: the views of that operation alone, (2, 1) times -1/2 each.
    columns = measured(mixed, groups, per_operation=True)
    column = np.sqrt(1.25)
    expected = [[2 * column, column], [0, column], [0, column / 2]]
    np.testing.assert_allclose(columns, expected, rtol=1e-6)


def test_updates_by_hand():
    """Views as above, one of each image, then two of each of two images."""
    x, norm = jnp.full((4, 1, 1), 2.0), np.sqrt(2.5)
    update = functools.partial(priority.de_facto_update, linear, HALF)
    same = update(x, jnp.zeros((4, 1), int))
    expected = ([norm] * 4, [norm] * 4, [1] * 4, [norm] * 4)
    chex.assert_trees_all_close(same, priority.Update(*map(np.float32, expected)), rtol=1e-6)
    mixed = update(x, jnp.asarray([[0], [0], [1], [1]]))
    np.testing.assert_allclose(mixed.de_facto, [0] * 4, atol=1e-6)
    np.testing.assert_allclose(mixed.leave_one_out, [-norm / 3] * 4, rtol=1e-6)
    three_to_one = update(x, jnp.asarray([[0], [0], [0], [1]])).de_facto
    np.testing.assert_allclose(three_to_one, [norm / 2] * 3 + [-norm / 2], rtol=1e-6)
    # The second image's views cancel, so it has no direction; the step is half the first one's.
    x, labels = x.reshape(2, 2, 1), jnp.asarray([[0, 0], [0, 1]])
    by_image = update(x, labels)
    expected = ([norm / 2, 0], [0, 0], [1, 0], [norm, 0])
    chex.assert_trees_all_close(by_image, priority.Update(*map(np.float32, expected)), atol=1e-6)
    by_view = update(x, labels, datum="view").de_facto
    np.testing.assert_allclose(by_view, [[norm / 2] * 2, [norm / 2, -norm / 2]], rtol=1e-6)
    with pytest.raises(ValueError, match="datum is 'pixel', expected 'image' or 'view'"):
        update(x, labels, datum="pixel")


def test_a_view_without_gradient_has_no_update():
    sure = {"kernel": jnp.asarray([[0.0, 0.0]]), "bias": jnp.asarray([200.0, 0.0])}
    labels = jnp.asarray([[0], [1]])
    update = priority.de_facto_update(linear, sure, jnp.ones((2, 1, 1)), labels)
    assert all(values[0] == 0 for values in update) and update.de_facto[1] > 0


def small(variables, x):
    hidden = jnp.tanh(x @ variables["in"])
    return hidden @ variables["kernel"] + variables["bias"][None], hidden


def test_finite_differences():
    """A step along the batch's descent direction lowers a view's loss by d_i times its norm."""
    with jax.enable_x64(True):
        random = np.random.default_rng(1)
        shapes = {"in": (5, 6), "kernel": (6, 4), "bias": (4,)}
        variables = {name: jnp.asarray(random.normal(size=s)) for name, s in shapes.items()}
        x, labels = jnp.asarray(random.normal(size=(9, 5))), jnp.asarray(random.integers(0, 4, 9))

        def losses(variables):
            return optax.softmax_cross_entropy_with_integer_labels(small(variables, x)[0], labels)

        rows = {name: np.zeros((9, *shape)) for name, shape in shapes.items()}
        for name, shape in shapes.items():
            for place in np.ndindex(shape):
                up, down = (
                    losses(variables | {name: variables[name].at[place].add(step)})
                    for step in (1e-5, -1e-5)
                )
                rows[name][(slice(None), *place)] = (up - down) / 2e-5
        last = np.concatenate([rows["kernel"].reshape(9, -1), rows["bias"]], 1)
        groups = random.uniform(size=(2, 9))
        for wrt, own in ((None, last), (("in",), rows["in"].reshape(9, -1))):
            measured = priority.gradient_magnitude(small, variables, x, labels, groups, wrt=wrt)
            np.testing.assert_allclose(measured, np.linalg.norm(groups @ own, axis=1), rtol=1e-6)
            expected = own @ own.mean(0) / np.linalg.norm(own, axis=1)
            images = (x[:, None], labels[:, None])
            measured = priority.de_facto_update(small, variables, *images, wrt=wrt).de_facto
            np.testing.assert_allclose(measured, expected, rtol=1e-6, atol=1e-9)


def test_they_can_be_mapped_over_networks(case):
    """As over the seeds of a sweep."""
    variables, views, labels, groups = case
    two = jax.tree.map(lambda a: jnp.stack([a, 1.1 * a]), variables)
    measure = functools.partial(priority.gradient_magnitude, running)
    mapped = jax.vmap(lambda v: measure(v, views, labels, groups))(two)
    chex.assert_shape(mapped, (2, 2))
    for i in range(2):
        one = jax.tree.map(lambda a, i=i: a[i], two)
        np.testing.assert_allclose(mapped[i], measure(one, views, labels, groups), rtol=1e-3)


def test_memory_does_not_grow_with_the_views(digits):
    """Views are made in ``apply``, a block at a time."""
    bank = jnp.asarray(digits)

    def apply(variables, pairs):
        unit = to_unit(bank[pairs[0]])
        return running(variables, operations.views_of(OPERATIONS, unit, pairs[1]))

    shapes = jax.eval_shape(
        lambda key: NETWORK.init(key, jnp.zeros((1, 32, 32, 1)), train=False), jax.random.key(0)
    )

    def bytes_of(v):
        pairs, groups = [jnp.zeros(v, jnp.int32)] * 2, jnp.ones((2, v))
        whole = priority.gradient_magnitude.lower(apply, shapes, pairs, pairs[1], groups, block=32)
        return whole.compile().memory_analysis().temp_size_in_bytes

    few, many = bytes_of(64), bytes_of(6400)
    # 32 views make activations of 2 MB a layer; a view more costs its indices and weights.
    assert few > 1e6 and many - few < 6400 * 64


def test_what_does_not_fit_is_refused(case):
    variables, views, labels, groups = case
    measure = functools.partial(priority.gradient_magnitude, running, variables, views, labels)
    with pytest.raises(ValueError, match=r"groups must be \[g, v\]"):
        measure(groups[0])
    with pytest.raises(ValueError, match="leave out wrt"):
        measure(groups, wrt=("params",), per_operation=True)


@pytest.fixture(scope="module")
def recorded(digits):
    """Logs of 7 steps, recorded every third, on one and on two devices."""
    random = np.random.default_rng(2)
    groups = np.stack([np.arange(20) < 15, np.arange(20) >= 15]).astype(np.float32)
    images = digits[random.integers(0, len(digits), 20)]
    weights = np.float32([1, 2, 3, 4])
    data = priority.ProbeSet(
        images, random.integers(0, K, 20, np.int32), groups, digits[[3, 1, 4, 50]], weights
    )
    found = []
    for some in (jax.devices()[:1], jax.devices()):
        mesh = devices.device_mesh(some)
        probe, logs = priority.make_probe(Tiny, K), []
        fitted = fitting.fit(
            jax.random.key(0),
            digits,
            config=CONFIG,
            mesh=mesh,
            observer=Observer(lambda step, log, logs=logs: logs.append(log.probe), probe, 3, data),
        )
        found.append((fitted, logs[0], data))
    return found


def test_a_probe_is_asked_every_third_step_and_changes_nothing(recorded, digits):
    watched, log, _ = recorded[1]
    assert log.step.tolist() == [0, -1, -1, 3, -1, -1, 6]
    there = log.step >= 0
    for values in jax.tree.leaves(log[1:]):
        assert np.isfinite(values[there]).all() and np.isnan(values[~there]).all()
    unwatched = fitting.fit(jax.random.key(0), digits, config=CONFIG)
    chex.assert_trees_all_equal(watched.state, unwatched.state)


def test_a_probe_records_what_the_functions_measure(recorded, digits):
    _, log, data = recorded[0]
    state = jax.device_get(fitting.fit(jax.random.key(0), digits, config=CONFIG, until=0).state)

    def views(images, labels):
        return operations.views_of(OPERATIONS, to_unit(jnp.asarray(images)), labels)

    magnitude = priority.gradient_magnitude(
        running, state.variables, views(data.images, data.labels), data.labels, data.groups
    )
    np.testing.assert_allclose(log.gradient_magnitude[0], magnitude, rtol=1e-4)
    all_views = operations.all_views(OPERATIONS, to_unit(jnp.asarray(data.data)))
    images = (running, state.variables, all_views, jnp.tile(jnp.arange(K), (4, 1)))
    update = functools.partial(priority.de_facto_update, *images, weights=data.weights)
    by_view = jax.tree.map(lambda a: a.mean(1), update(datum="view"))
    first = jax.tree.map(lambda a: a[0], log)
    chex.assert_trees_all_close(first.of_images, update(), rtol=1e-3, atol=1e-5)
    chex.assert_trees_all_close(first.of_views, by_view, rtol=1e-3, atol=1e-5)
    logits, _ = jax.vmap(functools.partial(running, state.variables))(all_views)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, images[3]).mean(1)
    np.testing.assert_allclose(first.loss, expected, rtol=1e-4)


def test_one_and_two_devices_record_the_same(recorded):
    one, two = recorded[0][1], recorded[1][1]
    first = [jax.tree.map(lambda a: a[:1], log) for log in (one, two)]
    chex.assert_trees_all_close(*first, rtol=1e-3, atol=1e-5)


def test_any_network_is_recorded(recorded, digits):
    config, seen = CONFIG._replace(network=Plain, steps=2), []
    fitting.fit(
        jax.random.key(0),
        digits,
        config=config,
        observer=Observer(
            lambda step, log: seen.append(log.probe),
            priority.make_probe(Plain, K),
            data=recorded[0][2],
        ),
    )
    assert seen[0].step[0] == 0 and np.isfinite(seen[0].gradient_magnitude[0]).all()
    assert seen[0].of_images.norm[0].min() > 0 and seen[0].of_views.norm[0].min() > 0
