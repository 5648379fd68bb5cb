"""Each method's special part against an independent computation, and all on real digits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jax.sharding import PartitionSpec
from sklearn.ensemble import IsolationForest

from e3jax import contamination, devices, metrics, networks, operations, training
from e3jax.baselines import METHODS, autoencoder, cae, dagmm, drae, isolation_forest, rdae
from e3jax.baselines.autoencoder import Config

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
    return np.float32(z), np.float32(random.dirichlet(np.ones(3), size=50))


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
    far = np.concatenate([z, 30 + z])
    density = [
        scipy.stats.multivariate_normal(mean, factor @ factor.T).logpdf(far)
        for mean, factor in zip(mixture.mean, np.float64(mixture.factor), strict=True)
    ]
    expected = -scipy.special.logsumexp(density, axis=0, b=np.float64(mixture.weight)[:, None])
    np.testing.assert_allclose(dagmm.energy(far, mixture), expected, rtol=1e-3)
    assert expected[50:].min() > 100, "the case has no outlier"


# --- Isolation forest --------------------------------------------------------------------------


def test_the_forest_is_scikit_learns_and_far_points_score_lowest():
    features = np.random.default_rng(0).normal(size=(100, 5))
    features[:2] += 10
    key = jax.random.key(3)
    scores = isolation_forest.score(key, features)
    assert set(np.argsort(scores)[:2]) == {0, 1}
    seed = int(jax.random.bits(key) >> 1)
    theirs = IsolationForest(n_estimators=100, random_state=seed).fit(features)
    np.testing.assert_array_equal(scores, theirs.score_samples(features))
    assert np.isnan(isolation_forest.score(key, np.full((3, 2), np.inf))).all()


# --- The loop they share -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ones(mnist):
    """72 ones and 8 other digits, uint8 [80, 16, 16, 1]."""
    data = contamination.contaminate(mnist.images, mnist.labels, 1, 0.1, 0, max_images=80)
    return data._replace(images=np.ascontiguousarray(data.images[:, ::2, ::2]))


def run(name, images, seed=0, on_progress=autoencoder.silent, **changes):
    method = METHODS[name]
    config = method.quick_config()._replace(**{"steps": 40, "batch_size": 16} | changes)
    mesh = devices.device_mesh(jax.devices()[:1])
    return method.score(jax.random.key(seed), images, config, mesh, on_progress)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "cae-if"])
def test_methods_beat_chance_and_repeat_themselves(name, ones):
    scores, info = run(name, ones.images)
    assert name in scores and set(scores) <= set(METHODS)
    assert info.warning == "" and info.steps == 40 and np.isfinite(info.loss)
    for values in scores.values():
        assert values.shape == (80,)
        assert metrics.auroc(values, ones.is_outlier) > 0.7
    again, other = run(name, ones.images)[0], run(name, ones.images, seed=1)[0]
    np.testing.assert_array_equal(scores[name], again[name])
    assert not np.array_equal(scores[name], other[name])


def test_progress_is_told_and_may_end_the_run(ones):
    seen = []

    def stop_at_20(done, total, note):
        seen.append((done, total, note[:4]))
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("cae", ones.images, on_progress=stop_at_20)
    assert seen == [(10, 40, "loss"), (20, 40, "loss")]


def test_a_run_that_diverged_says_so(ones):
    scores, info = run("cae", ones.images, learning_rate=1e30)
    assert "not finite" in info.warning
    assert np.isnan(scores["cae-if"]).all()


@pytest.mark.parametrize("views, batch", [(10, 4), (10, 10), (3, 16)])
def test_every_epoch_has_each_view_once_in_a_new_order(views, batch):
    order = autoencoder._order(jax.random.key(0), views, batch)
    epochs = np.concatenate([next(order) for _ in range(views)]).reshape(-1, views)
    assert (np.sort(epochs) == np.arange(views)).all()
    assert not (epochs[0] == epochs[1]).all()


def make_model(config, images, loss=cae.mean_squared_error, count=1):
    return cae.make_model(config, images.shape, devices.device_mesh(jax.devices()[:count]), loss)


def test_sets_of_like_size_share_their_programs(ones):
    config = Config(batch_size=128)
    model = make_model(config, ones.images)
    assert model.batch == 128 and model is make_model(config, ones.images[:70])
    assert make_model(config, ones.images[:40]).batch == 64


def test_over_all_views_the_error_is_the_views_mean_and_the_code_the_images_own(ones):
    config, images = Config(operations="RA", latent=64, batch_size=32), ones.images[:3]
    model = make_model(config, images)
    variables, *_ = autoencoder.fit(model, jax.random.key(0), images, 2, autoencoder.silent)
    errors, codes = model.evaluate(variables, images)
    unit = np.asarray(training.to_unit(images))
    views = operations.all_views(operations.operation_set("RA", 16), unit)
    apply = jax.jit(functools.partial(networks.ConvAutoencoder(64).apply, train=False))
    for i in range(3):
        again, code = apply(variables, views[i])
        expected = np.square(views[i] - again).sum((1, 2, 3)).mean()
        assert errors[i] == pytest.approx(float(expected), rel=1e-4)
        np.testing.assert_allclose(codes[i], code[0], atol=1e-5)


def test_two_devices_train_as_one(ones):
    """Batch statistics, loss and gradient are the whole batch's; only rounding differs."""

    def losses(count):
        model = make_model(Config(batch_size=32), ones.images, count=count)
        seen = []
        for total in (1, 3):
            _, _, loss = autoencoder.fit(
                model, jax.random.key(0), ones.images, total, autoencoder.silent
            )
            seen.append(loss)
        return seen

    np.testing.assert_allclose(losses(2), losses(1), rtol=1e-4)


@pytest.mark.parametrize("loss", [drae._loss, dagmm._loss])
def test_losses_of_a_whole_batch_have_its_gradient_on_every_number_of_devices(loss):
    random = np.random.default_rng(0)
    x, again, z = (np.float32(random.normal(size=(16, *s))) for s in ((4, 4, 1), (4, 4, 1), (3,)))
    membership = np.float32(random.dirichlet(np.ones(3), 16))
    outputs = (again, z, membership) if loss is dagmm._loss else (again, z)

    def gradient(count):
        """Of factors on the outputs, as the trainer computes that of parameters."""

        def mean(factors, x, *outputs):
            grad = jax.grad(lambda f: loss(x, *(a * b for a, b in zip(f, outputs, strict=True))))
            return jax.lax.pmean(grad(factors), devices.AXIS)

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
    "name, steps",
    [("cae", 13_672), ("drae", 13_672), ("rdae", 1_094), ("dagmm", 1_368)],
)
def test_the_papers_epochs_over_7000_images(name, steps):
    assert METHODS[name].paper_config().num_steps(7000) == steps


def test_views_and_small_sets_are_counted_too():
    assert Config(operations="RA+IA+PR").num_steps(7000) == -(-3 * 111 * 7000 // 128)
    assert dagmm.paper_config().num_steps(500) == -(-200 * 500 // 512)


def test_codes_need_the_identity_first(ones):
    with pytest.raises(ValueError, match="must begin with RA, got 'PR'"):
        make_model(Config(operations="PR"), ones.images)


def test_a_batch_takes_the_devices_it_divides_over(ones):
    assert make_model(Config(batch_size=33), ones.images, count=2).mesh.size == 1
