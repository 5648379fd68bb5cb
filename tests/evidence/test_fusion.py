import numpy as np
import pytest
import scipy.stats

from e3jax.evidence import EVIDENCE, fusion

VALUES = np.random.default_rng(0).normal(size=200)


def test_surprise_is_the_share_of_the_collection_that_is_as_outlying():
    surprise = fusion.distribution(VALUES).surprise(VALUES)
    expected = -np.log(1 - (scipy.stats.rankdata(VALUES) - 0.5) / 200)
    np.testing.assert_allclose(surprise, expected)
    assert surprise.mean() == pytest.approx(1, abs=0.01)
    assert surprise.max() == pytest.approx(np.log(2 * 200))


def test_equal_evidence_is_equally_surprising():
    surprise = fusion.distribution([1, 2, 2, 3]).surprise(np.array([1, 2, 2, 3]))
    np.testing.assert_allclose(surprise, -np.log([7 / 8, 1 / 2, 1 / 2, 1 / 8]))
    np.testing.assert_allclose(fusion.distribution([5, 5]).surprise(np.array([5, 9])), np.log(2))


@pytest.mark.parametrize("transform", [np.exp, lambda x: 3 * x - 7, np.cbrt])
def test_surprise_does_not_depend_on_the_scale_of_the_evidence(transform):
    surprise = fusion.distribution(transform(VALUES)).surprise(transform(VALUES))
    np.testing.assert_allclose(surprise, fusion.distribution(VALUES).surprise(VALUES))


def test_new_evidence_is_placed_between_that_of_the_collection():
    distribution = fusion.distribution(VALUES)
    low, new, high, beyond = distribution.surprise(np.array([0.5, 0.6, 0.7, 99]))
    assert low < new < high < beyond == distribution.surprise(VALUES).max()


def test_the_network_weighs_as_much_as_all_descriptors():
    weights = {n: kind.weight for n, kind in EVIDENCE.items() if kind.input == "images"}
    assert weights.pop("network") == pytest.approx(sum(weights.values()))


def test_a_mean_has_the_weights_of_its_kinds():
    values = {"a": np.float64([1, 0]), "b": np.float64([0, 4])}
    mean = fusion.weighted_mean(values.get, {"a": 1, "b": 3})
    np.testing.assert_allclose(mean, [0.25, 3])


def test_the_most_confident_evidence_counts_most():
    evidence = {name: np.arange(100.0) for name in ("a", "b", "c")}
    evidence["a"] = np.roll(evidence["a"], 30)  # its most unusual image is usual for the others
    assert fusion.fuse_collection(evidence).argsort()[::-1][:12].tolist().count(29) == 1
    mean_rank = sum(map(scipy.stats.rankdata, evidence.values()))
    assert (mean_rank > mean_rank[29]).sum() > (
        fusion.fuse_collection(evidence) > fusion.fuse_collection(evidence)[29]
    ).sum()
