import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3jax import devices, networks, operations, scoring, training

OPERATIONS = operations.operation_set("IA")
K = len(OPERATIONS)


@pytest.fixture(scope="module")
def variables():
    """A network at its random start, with a head large enough to be sure of itself."""
    network = networks.build("wrn-10-1", K)
    variables = network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)), train=False)
    return jax.tree.map(lambda a: a, variables) | {
        "params": variables["params"]
        | {"head": jax.tree.map(lambda a: 20 * a, variables["params"]["head"])}
    }


@pytest.fixture(scope="module")
def scorer():
    return scoring.Scorer("wrn-10-1", OPERATIONS, images_per_call=16)


@pytest.fixture(scope="module")
def scores(scorer, variables, digits):
    return scorer(variables, digits)


def test_scores_are_equations_4_to_6(scores, variables, digits):
    unit = training.to_unit(jnp.asarray(digits[:5]))
    views = operations.all_views(OPERATIONS, unit).reshape(-1, 32, 32, 1)
    network = networks.build("wrn-10-1", K)
    logits = np.asarray(network.apply(variables, views, train=False)[0], np.float64)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p = (p / p.sum(-1, keepdims=True)).reshape(5, K, K)
    expected = {
        "pl": p[:, np.arange(K), np.arange(K)].mean(1),
        "mp": p.max(-1).mean(1),
        "ne": (p * np.log(p)).sum(-1).mean(1),
        "accuracy": (p.argmax(-1) == np.arange(K)).mean(1),
        "representation": np.asarray(network.apply(variables, unit, train=False)[1]),
    }
    assert p.max() > 0.5, "the case is too easy: all probabilities alike"
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(scores, name)[:5], values, atol=2e-5, err_msg=name)


def test_scores_do_not_depend_on_neighbours_or_order(scorer, scores, variables, digits):
    shuffle = np.random.default_rng(0).permutation(len(digits))
    shuffled = scorer(variables, digits[shuffle])
    alone = scorer(variables, digits[7:8])
    for whole, other, one in zip(scores, shuffled, alone, strict=True):
        np.testing.assert_allclose(whole[shuffle], other, atol=1e-6)
        np.testing.assert_allclose(whole[7:8], one, atol=1e-6)


def test_one_device_gives_the_same_scores(scores, variables, digits):
    mesh = devices.device_mesh(jax.devices()[:1])
    one = scoring.Scorer("wrn-10-1", OPERATIONS, mesh, images_per_call=16)
    np.testing.assert_allclose(one(variables, digits).ne, scores.ne, atol=1e-5)


def test_per_operation_scores_average_to_the_scores(scores, variables, digits):
    scorer = scoring.Scorer("wrn-10-1", OPERATIONS, images_per_call=16, per_operation=True)
    each = scorer(variables, digits)
    for name in ("pl", "mp", "ne", "accuracy"):
        assert getattr(each, name).shape == (len(digits), K)
        np.testing.assert_allclose(
            getattr(each, name).mean(1), getattr(scores, name), atol=1e-5, err_msg=name
        )


def test_certainty_does_not_turn_into_nan(scorer, variables, digits):
    """The authors' p @ log2(p) is NaN once a p underflows."""
    head = jax.tree.map(lambda a: 1e5 * a, variables["params"]["head"])
    sure = variables | {"params": variables["params"] | {"head": head}}
    scores = scorer(sure, digits[:4])
    assert np.isfinite(scores.ne).all() and np.abs(scores.ne).max() < 1e-3


def test_progress_is_reported(scorer, variables, digits):
    done = []
    scorer(variables, digits[:40], done.append)
    assert done == [16, 32, 40]


def test_health_tells_sound_from_useless():
    n, rising = 10, np.linspace(-1, -0.5, 10, dtype=np.float32)
    sound = scoring.Scores(rising + 1, rising + 1, rising, np.full(n, 0.6), np.zeros((n, 4)))
    assert scoring.health(sound, 111) == ""
    assert "near chance" in scoring.health(sound._replace(accuracy=np.full(n, 0.02)), 111)
    assert "all scores are the same" in scoring.health(sound._replace(ne=np.zeros(n)), 111)
    assert "not finite" in scoring.health(sound._replace(pl=np.full(n, np.nan)), 111)
