import numpy as np
import pytest
import scipy.stats

from e3jax.evidence import fusion

EVIDENCE = np.random.default_rng(0).normal(size=200)


def test_surprise_is_the_share_of_the_collection_that_is_as_outlying():
    found = fusion.scale(EVIDENCE).surprise(EVIDENCE)
    expected = -np.log(1 - (scipy.stats.rankdata(EVIDENCE) - 0.5) / 200)
    np.testing.assert_allclose(found, expected)
    assert found.mean() == pytest.approx(1, abs=0.01)
    assert found.max() == pytest.approx(np.log(2 * 200))


def test_equal_evidence_is_equally_surprising():
    found = fusion.scale([1, 2, 2, 3]).surprise(np.array([1, 2, 2, 3]))
    np.testing.assert_allclose(found, -np.log([7 / 8, 1 / 2, 1 / 2, 1 / 8]))
    np.testing.assert_allclose(fusion.scale([5, 5]).surprise(np.array([5, 9])), np.log(2))


@pytest.mark.parametrize("transform", [np.exp, lambda x: 3 * x - 7, np.cbrt])
def test_surprise_does_not_depend_on_the_scale_of_the_evidence(transform):
    found = fusion.scale(transform(EVIDENCE)).surprise(transform(EVIDENCE))
    np.testing.assert_allclose(found, fusion.scale(EVIDENCE).surprise(EVIDENCE))


def test_new_evidence_is_placed_between_that_of_the_collection():
    scale = fusion.scale(EVIDENCE)
    low, new, high, beyond = scale.surprise(np.array([0.5, 0.6, 0.7, 99]))
    assert low < new < high < beyond == scale.surprise(EVIDENCE).max()


def test_the_network_weighs_as_much_as_all_descriptors():
    assert fusion.weights(["network", "a", "b"]) == {"network": 0.5, "a": 0.25, "b": 0.25}
    assert fusion.weights(["a", "b"]) == {"a": 0.5, "b": 0.5}
    assert fusion.weights(["network"]) == {"network": 1}


def test_whoever_is_sure_is_heard():
    evidence = {name: np.arange(100.0) for name in ("a", "b", "c")}
    evidence["a"] = np.roll(evidence["a"], 30)  # its most unusual image is usual for the others
    assert fusion.fuse_collection(evidence).argsort()[::-1][:12].tolist().count(29) == 1
    mean_rank = sum(map(scipy.stats.rankdata, evidence.values()))
    assert (mean_rank > mean_rank[29]).sum() > (
        fusion.fuse_collection(evidence) > fusion.fuse_collection(evidence)[29]
    ).sum()
