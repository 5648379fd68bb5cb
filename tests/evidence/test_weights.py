"""How much kinds of evidence count."""

import numpy as np
import pytest

from e3jax.evidence import EVIDENCE, FEATURES
from e3jax.evidence.weights import collection_weights, separation


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
