import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.ensemble import IsolationForest
from tiny import Tiny

from e3jax import devices, operations
from e3jax.evidence import health
from e3jax.images import to_unit
from e3jax.training import evaluator, rules

pytestmark = pytest.mark.usefixtures("unoptimised")
OPERATIONS = operations.operation_set("IA")
K = len(OPERATIONS)


@pytest.fixture(scope="module")
def variables():
    """A network at its random start, with a head large enough to be sure of itself."""
    network = Tiny(K)
    init = jax.jit(functools.partial(network.init, train=False))
    variables = init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
    return jax.tree.map(lambda a: a, variables) | {
        "params": variables["params"]
        | {"head": jax.tree.map(lambda a: 20 * a, variables["params"]["head"])}
    }


@pytest.fixture(scope="module")
def score():
    return scorer()


def scorer(mesh=None):
    """(variables, images, on_block) -> ViewScores"""
    built = evaluator.make_evaluator(
        Tiny, rules.view_scores, 32, OPERATIONS, mesh=mesh, views_per_call=20
    )
    return lambda variables, *images: built.run(variables, (), *images)


@pytest.fixture(scope="module")
def scores(score, variables, digits):
    return score(variables, digits)


def test_scores_are_equations_4_to_6(scores, variables, digits):
    unit = to_unit(jnp.asarray(digits[:5]))
    views = operations.all_views(OPERATIONS, unit).reshape(-1, 32, 32, 1)
    network = Tiny(K)
    logits, _ = jax.jit(functools.partial(network.apply, train=False))(variables, views)
    logits = np.asarray(logits, np.float64)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p = (p / p.sum(-1, keepdims=True)).reshape(5, K, K)
    expected = {
        "pl": p[:, np.arange(K), np.arange(K)],
        "mp": p.max(-1),
        "ne": (p * np.log(p)).sum(-1),
    }
    assert p.max() > 0.5, "the case is too easy: all probabilities alike"
    assert expected.keys() == scores.rules.keys() == rules.RULES.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(scores.rules[name][:5], values, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(scores.mean(name)[:5], values.mean(1), atol=2e-5, err_msg=name)
    np.testing.assert_array_equal(scores.accuracy[:5], p.argmax(-1) == np.arange(K))
    representation = network.apply(variables, unit, train=False)[1]
    np.testing.assert_allclose(scores.representation[:5], representation, atol=2e-5)


def test_scores_do_not_depend_on_neighbours_or_order(score, scores, variables, digits):
    shuffle = np.random.default_rng(0).permutation(len(digits))
    shuffled, alone = score(variables, digits[shuffle]), score(variables, digits[7:8])
    for rule in scores.rules:
        whole, other, one = (found.mean(rule) for found in (scores, shuffled, alone))
        np.testing.assert_allclose(whole[shuffle], other, atol=1e-6)
        np.testing.assert_allclose(whole[7:8], one, atol=1e-6)
    for whole, other, one in zip(scores[1:], shuffled[1:], alone[1:], strict=True):
        np.testing.assert_allclose(whole[shuffle], other, atol=1e-6)
        np.testing.assert_allclose(whole[7:8], one, atol=1e-6)


def test_one_device_gives_the_same_scores(scores, variables, digits):
    one = scorer(devices.device_mesh(jax.devices()[:1]))(variables, digits)
    np.testing.assert_allclose(one.mean(), scores.mean(), atol=1e-5)


def test_certainty_does_not_turn_into_nan(score, variables, digits):
    """The authors' p @ log2(p) is NaN once a p underflows."""
    head = jax.tree.map(lambda a: 1e5 * a, variables["params"]["head"])
    sure = variables | {"params": variables["params"] | {"head": head}}
    scores = score(sure, digits[:4])
    assert np.isfinite(scores.rules["ne"]).all() and np.abs(scores.mean("ne")).max() < 1e-3


def test_progress_is_reported(score, variables, digits):
    done = []
    score(variables, np.concatenate([digits, digits])[:100], done.append)
    assert done == [64, 100]


def test_the_forest_is_scikit_learns_and_far_points_score_lowest():
    features = np.random.default_rng(0).normal(size=(100, 5))
    features[:2] += 10
    key = jax.random.key(3)
    scores = rules.isolation_forest(key, features)
    assert set(np.argsort(scores)[:2]) == {0, 1}
    seed = int(jax.random.bits(key) >> 1)
    theirs = IsolationForest(n_estimators=100, random_state=seed).fit(features)
    np.testing.assert_array_equal(scores, theirs.score_samples(features))
    assert np.isnan(rules.isolation_forest(key, np.full((3, 2), np.inf))).all()


def test_a_check_tells_sound_from_useless():
    n, k = 10, 111
    rising = np.broadcast_to(np.linspace(-1, -0.5, n, dtype=np.float32)[:, None], (n, k))
    values = {"ne": rising, "pl": rising + 1, "mp": rising + 1}
    sound = rules.ViewScores(values, np.full((n, k), 0.6), np.zeros((n, 4)))

    def with_rule(name, value):
        return sound._replace(rules=values | {name: np.full((n, k), value)})

    assert health.check_fit(sound) == ""
    assert "near chance" in health.check_fit(sound._replace(accuracy=np.full((n, k), 0.02)))
    assert "all scores are the same" in health.check_fit(with_rule("ne", 0.0))
    assert "not finite" in health.check_fit(with_rule("pl", np.nan))


def test_operations_weigh_the_inverse_of_their_spread_up_to_ten_times_the_usual():
    steps = np.arange(-5, 6)[:, None]  # their median absolute deviation is 3
    scores = steps * np.float32([1, 2, 4, 1e-6, 2]) + np.float32([0, 5, -3, 2, 1])
    found = rules.view_weights(scores)
    np.testing.assert_allclose(found / found[1], [2, 1, 0.5, 10, 1], rtol=1e-5)
    assert found.mean() == pytest.approx(1)
    views = rules.ViewScores({"ne": scores}, scores, scores)
    np.testing.assert_allclose(views.weighted_mean(), (scores * found).mean(1))
    np.testing.assert_array_equal(rules.view_weights(np.zeros((4, 3))), 1)
