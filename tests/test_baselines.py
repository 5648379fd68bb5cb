"""Each compared method's special part against an independent computation, and all on real digits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from conftest import ROOT  # noqa: F401

from e3jax import baselines, datasets, training
from e3jax.baselines import METHODS, autoencoder, dagmm, drae, isolation_forest, rdae
from e3jax.metrics import auroc

SMALL = autoencoder.Config(steps=30, batch_size=32)


@pytest.fixture(scope="module")
def one_device():
    return training.device_mesh(jax.devices()[:1])


# --- DRAE --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_draes_threshold_is_the_best_of_all_splits(seed):
    random = np.random.default_rng(seed)
    errors = np.concatenate([random.gamma(5, 20, 30), random.gamma(5, 60, 7)]).astype(np.float32)
    random.shuffle(errors)

    def scatter(e):
        return np.square(e - e.mean()).sum()

    ordered = np.sort(np.float64(errors))
    ratios = [
        (scatter(ordered[:m]) + scatter(ordered[m:])) / scatter(ordered)
        for m in range(1, len(ordered))
    ]
    m = 1 + int(np.argmin(ratios))
    mean, ratio = drae.split(errors)
    assert ratio == pytest.approx(min(ratios), rel=1e-4)
    assert mean == pytest.approx(ordered[:m].mean(), rel=1e-5)


def test_draes_split_of_equal_errors_has_no_scatter_to_reduce():
    (mean, ratio), gradient = jax.jvp(drae.split, (jnp.full(8, 3.0),), (jnp.ones(8),))
    assert (mean, ratio) == (3, 1)
    assert np.isfinite(gradient).all()
