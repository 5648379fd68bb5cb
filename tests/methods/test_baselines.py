"""Each method's special part against an independent computation, and all on real digits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jax.sharding import PartitionSpec
from tiny import TinyAutoencoder

from e3jax import devices, metrics, operations
from e3jax.datasets import contamination
from e3jax.images import to_unit
from e3jax.methods import METHODS, dagmm, drae, rdae
from e3jax.training import fitting
from e3jax.training.batch import Batch
from e3jax.training.fitting import Observer
from e3jax.training.method import Evaluated

pytestmark = pytest.mark.usefixtures("unoptimised")

# --- DRAE --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_draes_threshold_is_the_best_of_all_splits(seed):
    random = np.random.default_rng(seed)
    errors = random.permutation(np.r_[random.gamma(5, 20, 30), random.gamma(5, 60, 7)])
    ordered = np.sort(errors)

    def scatter(part):
        return np.square(part - part.mean()).sum()

    ratios = [
        (scatter(ordered[:m]) + scatter(ordered[m:])) / scatter(ordered)
        for m in range(1, len(ordered))
    ]
    mean, ratio = drae.split(jnp.float32(errors))
    assert ratio == pytest.approx(min(ratios), rel=1e-4)
    assert mean == pytest.approx(ordered[: 1 + np.argmin(ratios)].mean(), rel=1e-5)


def test_draes_loss_pulls_the_estimated_inliers_down_and_the_two_sides_apart():
    errors = jnp.array([4.0, 5.0, 30.0, 6.0])
    of_mean, of_ratio = jax.jacrev(drae.split)(errors)
    np.testing.assert_allclose(of_mean, [1 / 3, 1 / 3, 0, 1 / 3], rtol=1e-6)
    assert of_ratio[2] < 0


def test_draes_split_of_equal_errors_is_finite():
    (mean, ratio), gradient = jax.jvp(drae.split, (jnp.full(8, 3.0),), (jnp.ones(8),))
    assert (mean, ratio) == (3, 1)
    assert np.isfinite(gradient).all()


# --- RDAE --------------------------------------------------------------------------------------


def test_rdaes_shrink_is_optimal():
    residual = np.float32(np.random.default_rng(0).normal(size=(20, 4, 4, 3)))
    residual *= np.linspace(0, 3, 20, dtype=np.float32)[:, None, None, None]
    threshold = 7.0
    shrunk, r = (a.reshape(20, -1) for a in (rdae.shrink(residual, threshold), residual))
    kept = np.linalg.norm(shrunk, axis=1) > 0
    assert 0 < kept.sum() < 20
    # 0 is in the subdifferential of threshold |S| + |S - R|^2 / 2.
    direction = shrunk[kept] / np.linalg.norm(shrunk[kept], axis=1, keepdims=True)
    np.testing.assert_allclose(shrunk[kept] - r[kept] + threshold * direction, 0, atol=1e-5)
    assert (np.linalg.norm(r[~kept], axis=1) <= threshold).all()


# --- DAGMM -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def z_and_membership():
    random = np.random.default_rng(0)
    z = random.normal(size=(50, 4)) @ random.normal(size=(4, 4)) + random.normal(size=4)
    return jnp.float32(z), jnp.float32(random.dirichlet(np.ones(3), size=50))


def test_dagmms_mixture_is_that_of_the_memberships(z_and_membership):
    z, membership = z_and_membership
    mixture = dagmm.mixture(z, membership)
    np.testing.assert_allclose(mixture.weight, membership.mean(0), rtol=1e-5)
    for k, weights in enumerate(membership.T):
        covariance = np.cov(z.T, ddof=0, aweights=weights)
        np.testing.assert_allclose(mixture.mean[k], np.average(z, 0, weights), atol=1e-5)
        np.testing.assert_allclose(mixture.factor[k] @ mixture.factor[k].T, covariance, atol=1e-4)


def test_dagmms_energy_is_minus_the_log_density(z_and_membership):
    z, membership = z_and_membership
    mixture = dagmm.mixture(z, membership)
    far = jnp.concatenate([z, 30 + z])
    density = [
        scipy.stats.multivariate_normal(mean, factor @ factor.T).logpdf(far)
        for mean, factor in zip(mixture.mean, np.float64(mixture.factor), strict=True)
    ]
    expected = -scipy.special.logsumexp(density, axis=0, b=np.float64(mixture.weight)[:, None])
    np.testing.assert_allclose(dagmm.energy(far, mixture), expected, rtol=1e-3)
    assert expected[50:].min() > 100, "the case has no outlier"


# --- What they share -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ones(mnist):
    """72 ones and 8 other digits, uint8 [80, 16, 16, 1]."""
    data = contamination.contaminate(mnist.images, mnist.labels, 1, 0.1, 0, max_images=80)
    return data._replace(images=np.ascontiguousarray(data.images[:, ::2, ::2]))


# The others' network is "cae"'s, which need not be compiled for each of them.
OWN_NETWORK, STEPS, SMALL_STEPS = ("cae", "dagmm"), 40, 150


def run(name, images):
    """Scores by name, and the losses of all steps."""
    method, key, logs = METHODS[name], jax.random.key(0), []
    config = method.quick_config()._replace(steps=STEPS, batch_size=16)
    if name not in OWN_NETWORK:
        config = config._replace(steps=SMALL_STEPS, network=TinyAutoencoder)
    mesh = devices.device_mesh(jax.devices()[:1])
    fitted = fitting.fit(
        key,
        images,
        method,
        config,
        mesh=mesh,
        observer=Observer(lambda step, log: logs.append(log.loss)),
    )
    evaluated = Evaluated(key, images, fitting.score(fitted, images, mesh=mesh), mesh)
    return {n: score(evaluated) for n, score in method.scores.items()}, np.concatenate(logs)


# E3Outlier has tests of its own; cae-64 is cae with a code of another size.
OTHERS = {"e3outlier", "e3outlier+", "cae-64"}


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.loss and n not in OTHERS])
def test_methods_beat_chance(name, ones):
    scores, losses = run(name, ones.images)
    assert next(iter(scores)) == METHODS[name].name == name
    assert len(losses) == (STEPS if name in OWN_NETWORK else SMALL_STEPS)
    assert np.isfinite(losses).all()
    for values in scores.values():
        assert values.shape == (80,)
        assert metrics.auroc(values, ones.is_outlier) > 0.7


def test_over_all_views_the_error_is_the_views_mean_and_the_code_the_images_own(ones):
    method, images = METHODS["cae"], ones.images[:3]
    config = method.quick_config()._replace(operations="RA", network=TinyAutoencoder, steps=2)
    fitted = fitting.fit(jax.random.key(0), images, method, config)
    found = fitting.score(fitted, images)
    unit = np.asarray(to_unit(images))
    views = operations.all_views(operations.operation_set("RA", 16), unit)
    apply = jax.jit(functools.partial(TinyAutoencoder(1).apply, train=False))
    for i in range(3):
        again, code = apply(fitted.state.variables, views[i])
        expected = np.square(views[i] - again).sum((1, 2, 3)).mean()
        assert found.error[i] == pytest.approx(float(expected), rel=1e-4)
        np.testing.assert_allclose(found.code[i], code[0], atol=1e-5)


@pytest.mark.parametrize("loss", [drae.loss, dagmm.loss])
def test_losses_of_a_whole_batch_have_its_gradient_on_every_number_of_devices(loss):
    random = np.random.default_rng(0)
    x, again, z = (np.float32(random.normal(size=(16, *s))) for s in ((4, 4, 1), (4, 4, 1), (3,)))
    membership = np.float32(random.dirichlet(np.ones(3), 16))
    outputs = (again, z, membership) if loss is dagmm.loss else (again, z)

    def gradient(count):
        """Of factors on the outputs, as the trainer computes that of parameters."""

        def mean(factors, x, *outputs):
            batch = Batch(x, *[None] * 4)

            def value(factors):
                scaled = [a * b for a, b in zip(factors, outputs, strict=True)]
                return loss(tuple(scaled), batch, ())[0].mean()

            return jax.lax.pmean(jax.grad(value)(factors), devices.AXIS)

        everywhere, split = PartitionSpec(), PartitionSpec(devices.AXIS)
        return jax.jit(
            jax.shard_map(
                mean,
                mesh=devices.device_mesh(jax.devices()[:count]),
                in_specs=(everywhere, *[split] * (1 + len(outputs))),
                out_specs=everywhere,
                check_vma=False,
            )
        )(jnp.ones(len(outputs)), x, *outputs)

    np.testing.assert_allclose(gradient(2), gradient(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "steps"),
    [("cae", 13_672), ("drae", 13_672), ("rdae", 1_094), ("dagmm", 1_368)],
)
def test_the_papers_epochs_over_7000_images(name, steps):
    assert METHODS[name].paper_config(True).num_steps(7000) == steps


def test_views_and_small_sets_are_counted_too():
    assert METHODS["cae-views"].paper_config(True).num_steps(7000) == -(-3 * 111 * 7000 // 128)
    assert dagmm.paper_config(True).num_steps(500) == -(-200 * 500 // 512)
