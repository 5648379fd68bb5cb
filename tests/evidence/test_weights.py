"""How much kinds of evidence count."""

import numpy as np
import pytest

from e3jax.evidence import EVIDENCE, FEATURES
from e3jax.evidence.health import Health
from e3jax.evidence.thresholds import outliers_between
from e3jax.evidence.weights import agreement, collection_weights, separation


def evidence(apart, n=200, share=0.05):
    """Log-normal, of which a share is so many deviations above the median."""
    values = np.random.default_rng(0).normal(size=n)
    values[: round(share * n)] = apart
    return np.exp(values)


def test_it_is_the_square_of_the_tail_in_deviations():
    assert separation(evidence(5.0)) == pytest.approx(4, rel=0.3) and separation(evidence(9)) == 4
    assert separation(evidence(2.5)) == pytest.approx(1, rel=0.3)
    assert separation(np.ones(50)) == 0  # nothing is set apart
    assert separation(evidence(3.0) ** 7) == pytest.approx(separation(evidence(3.0)))


def test_only_features_count_by_how_far_they_set_images_apart():
    values = {name: evidence(5.0) for name in EVIDENCE}
    found = collection_weights(values)
    assert found.pop(FEATURES) == pytest.approx(2.5 * separation(values[FEATURES]))
    assert found == {name: EVIDENCE[name].weight for name in found}


def test_agreement_is_what_the_others_find_in_the_most_unusual_tenth():
    """Of equal orders -log(share) has mean 1 - log(0.1) over the tenth, and 1 over all."""
    random = np.random.default_rng(0)
    network, *others = np.exp(random.normal(size=(3, 10_000)))
    weights = {"network": 1.0, "shape": 0.25, "layout": 0.25}
    alike = {"network": network, "shape": network**2, "layout": 3 * network}
    assert agreement(alike, weights) == pytest.approx(-np.log(0.1), abs=0.01)
    unlike = dict(zip(weights, [network, *others], strict=True))
    assert agreement(unlike, weights) == pytest.approx(0, abs=0.1)
    assert agreement({"network": network}, {"network": 1.0}) is None


@pytest.mark.parametrize(
    ("remoteness", "interval"),
    [
        ([0.0] * 100, (0, 10)),  # a tenth may hide
        ([0.0] * 92 + [4.5] * 3 + [1.5] * 5, (3, 16)),
        ([4.5] * 9, (9, 9)),  # not more than there are
    ],
)
def test_the_number_of_outliers_lies_between_the_sure_and_the_possible(remoteness, interval):
    assert outliers_between(np.array(remoteness)) == interval


@pytest.mark.parametrize(
    ("value", "words"),
    [(1.8, "agree on"), (1.0, "agree in part"), (0.2, "hardly agree"), (-0.1, "hardly agree")],
)
def test_a_verdict_says_how_far_they_agree(value, words):
    health = Health(0.9, 0.1, 1.0, 100, [], "", agreement=value)
    assert words in health.verdict and f"({value:.1f} of 2.3 nats)" in health.verdict
    assert health._replace(agreement=None).verdict == ""
