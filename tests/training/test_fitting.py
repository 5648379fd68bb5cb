"""Whole runs through fit and score: resumed, watched, stopped, on any number of devices."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import Tiny, TinyAutoencoder, TinyMixture

from e3jax import E3Outlier, devices, methods, training
from e3jax.evidence.health import HealthWarning
from e3jax.methods import rdae
from e3jax.operations import Operation
from e3jax.training import e3outlier, fitting
from e3jax.training.checkpoint import TrainCheckpoint
from e3jax.training.fitting import Observer
from e3jax.training.method import Evaluated

CONFIG = training.quick_config()._replace(network=Tiny, operations="PR", batch_size=16, steps=24)
KEY = jax.random.key(0)


def fit(images, method=e3outlier.E3OUTLIER, config=CONFIG, **options):
    return fitting.fit(KEY, images, method, config, **options)


def small(name, **changes):
    """A compared method's config for some steps of a small network."""
    network = TinyMixture if name == "dagmm" else TinyAutoencoder
    changes = {"network": network, "steps": 40, "batch_size": 16} | changes
    return methods.METHODS[name].quick_config()._replace(**changes)


@pytest.fixture(scope="module")
def whole(digits):
    return fit(digits)


def test_a_fit_learns_and_scores(whole, digits):
    assert whole.steps == whole.num_steps == 24 and whole.seconds > 0
    scores = fitting.score(whole, digits)
    assert scores.mean().shape == (60,) and scores.rules["ne"].shape == (60, 23)
    assert np.ptp(scores.mean()) > 0.01
    assert list(e3outlier.E3OUTLIER.scores)[0] == e3outlier.E3OUTLIER.name == "e3outlier"
    for score in e3outlier.E3OUTLIER.scores.values():
        assert np.isfinite(score(Evaluated(KEY, digits, scores))).all()


def test_the_same_key_gives_the_same_numbers(whole, digits):
    chex.assert_trees_all_equal(fit(digits).state, whole.state)
    other = fitting.fit(jax.random.key(1), digits, config=CONFIG)
    head = [f.state.variables["params"]["head"]["kernel"] for f in (whole, other)]
    assert not np.array_equal(*head)


def test_it_continues_from_where_it_stopped(whole, digits):
    part = fit(digits, until=13)
    assert part.steps == 13 and part.num_steps == 24
    scores = fitting.score(part, digits)
    again = fit(digits, start=part, until=99)
    chex.assert_trees_all_equal(again.state, whole.state)
    assert again.seconds > part.seconds
    # The earlier one is as it was.
    chex.assert_trees_all_equal(fitting.score(part, digits), scores)


@pytest.mark.parametrize("name", ["e3outlier", "rdae", "dagmm"])
def test_it_continues_after_a_stop_bit_for_bit(name, digits, tmp_path):
    """Also what a method carries along, and its dropout."""
    method = e3outlier.E3OUTLIER if name == "e3outlier" else methods.METHODS[name]
    config = CONFIG if name == "e3outlier" else small(name)
    stop_at = config.steps // 2

    def stop(stage, done, total):
        if done >= stop_at:
            raise KeyboardInterrupt

    whole = fit(digits, method, config)
    saved = TrainCheckpoint(tmp_path, save_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        fit(digits, method, config, checkpoint=saved, on_progress=stop)
    saved, steps = TrainCheckpoint(tmp_path, save_seconds=0), []
    again = fit(
        digits, method, config, checkpoint=saved, on_progress=lambda *done: steps.append(done[1])
    )
    assert 1 < steps[0] and steps[-1] == config.steps, "it started over"
    chex.assert_trees_all_equal(again.state, whole.state)
    scores = [fitting.score(fitted, digits) for fitted in (again, whole)]
    chex.assert_trees_all_equal(*scores)


def test_what_watches_sees_every_step_once(digits):
    seen, done = [], []
    fit(
        digits,
        observer=Observer(lambda step, log: seen.append((step, log))),
        on_progress=lambda *args: done.append(args),
    )
    assert done == [("training", d, 24) for d in (10, 20, 24)]
    assert [step for step, _ in seen] == [10, 20, 24]
    log = jax.tree.map(lambda *parts: np.concatenate(parts), *(log for _, log in seen))
    assert log.loss.shape == log.metrics["pretext_accuracy"].shape == (24,)
    assert np.isfinite(log.loss).all()


def test_batches_take_as_many_devices_as_they_divide_over(digits):
    """Scores of a run on the devices that its batch leaves idle are the same."""
    config = CONFIG._replace(batch_size=17, steps=3)
    alone = devices.device_mesh(jax.devices()[:1])
    found = [fitting.score(fit(digits, config=config, mesh=m), digits) for m in (None, alone)]
    np.testing.assert_allclose(found[0].mean(), found[1].mean(), atol=1e-5)


def test_runs_of_like_kind_share_their_programs(digits):
    mesh, images = devices.device_mesh(), (60, 32, 32, 1)
    found = [
        fitting.programs(e3outlier.E3OUTLIER, config, (n, *images[1:]), mesh)
        for n, config in ((60, CONFIG), (50, CONFIG._replace(steps=7)))
    ]
    assert set(found[0]) == {"init", "draw", "train", "score"}
    for name, (function, _) in found[0].items():
        assert function is found[1][name].function


def test_what_is_restored_scores_as_what_was_trained(whole, digits):
    variables = jax.device_get(whole.state.variables)
    again = fitting.restored(e3outlier.E3OUTLIER, CONFIG, 32, variables)
    chex.assert_trees_all_equal(fitting.score(again, digits), fitting.score(whole, digits))


def test_what_rdae_sees_are_the_images_without_their_outliers():
    x = np.ones((2, 3, 4, 4, 1), np.float32)
    sparse = np.arange(5 * 16, dtype=np.float32).reshape(5, 4, 4, 1)
    index = np.array([4, 1])
    views = rdae.without_outliers(x, index, sparse)
    for i in range(2):
        for view in range(3):
            np.testing.assert_array_equal(views[i, view], 1 - sparse[index[i]])
    np.testing.assert_array_equal(rdae.without_outliers(x[:, 0], index, sparse), views[:, 0])


@pytest.mark.parametrize("name", [name for name, m in methods.METHODS.items() if m.loss])
def test_a_training_that_diverges_fails_in_one_sentence(name, digits):
    method, changes = methods.METHODS[name], {"learning_rate": 1e30}
    is_ours = name in ("e3outlier", "e3outlier+")
    config = CONFIG._replace(**changes) if is_ours else small(name, **changes)
    with pytest.raises(fitting.TrainingError, match="^training diverged: .* not finite, lower the"):
        fit(digits, method, config)


def counting(loss_of_step):
    """E3Outlier with another loss, a function of the step 0, 1, ... and the usual losses."""

    def loss(outputs, batch, step):
        usual, _ = e3outlier.E3OUTLIER.loss(outputs, batch, ())
        return loss_of_step(step, usual), step + 1

    return dataclasses.replace(e3outlier.E3OUTLIER, loss=loss, extra=lambda images: np.int32(0))


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (0, "nothing left to learn: the loss of step 14 of 24 is exactly 0, take fewer steps"),
        (np.nan, "diverged: the loss of step 14 of 24 is not finite, lower the learning rate"),
        (-np.inf, "diverged: the loss of step 14 of 24 is not finite, lower the learning rate"),
    ],
)
def test_the_first_step_that_fails_is_named(value, sentence, digits, tmp_path):
    """What watches sees it, and nothing is saved that it is part of."""
    method, seen, done = counting(lambda step, usual: jnp.where(step < 13, usual, value)), [], []
    saved = TrainCheckpoint(tmp_path, save_seconds=0)
    observer = Observer(lambda *args: seen.append(args))
    watched = {"observer": observer, "on_progress": lambda *a: done.append(a)}
    with pytest.raises(fitting.TrainingError, match=sentence):
        fit(digits, method, checkpoint=saved, **watched)
    assert [step for step, _ in seen] == [10, 20] and done == [("training", 10, 24)]
    np.testing.assert_equal(seen[-1][1].loss[3:], 7 * [np.float32(value)])
    saved = TrainCheckpoint(tmp_path, save_seconds=0)
    assert fit(digits, method, checkpoint=saved, until=13).steps == 13, "it was restored from later"


def test_losses_below_zero_and_views_without_one_are_sound(digits):
    trained = fit(digits, counting(lambda step, usual: jnp.where(usual > 3, usual, 0) - 10))
    assert trained.steps == 24


def test_what_the_last_step_breaks_fails_too(digits):
    """No loss shows it: there is no step after it."""
    with pytest.raises(fitting.TrainingError, match="variables after step 1 include.* not finite"):
        fit(digits, methods.METHODS["cae"], small("cae", steps=1, learning_rate=np.inf))
    method = counting(lambda step, usual: usual)
    method = dataclasses.replace(method, extra=lambda images: np.array([0, np.inf], np.float32))
    with pytest.raises(fitting.TrainingError, match="what the loss carries after step 3 include"):
        fit(digits, method, until=3)


class Overflowing(Tiny):
    """Its logits are beyond what float32 holds."""

    def __call__(self, x, train):
        logits, representation = super().__call__(x, train)
        return 1e38 * logits, representation


@pytest.mark.parametrize("evidence", ["all", "network"])
def test_a_detector_whose_training_fails_stays_as_it_was(evidence, digits):
    settings = {"evidence": evidence, "operations": "PR", "batch_size": 16, "random_state": 0}
    detector = E3Outlier(**settings, network=Tiny, steps=3)
    with pytest.warns(HealthWarning):
        before = detector.fit(digits).decision_scores_.copy()
    detector.set_params(network=Overflowing)
    with pytest.raises(fitting.TrainingError, match="training diverged: the loss of step"):
        detector.fit(digits)
    np.testing.assert_array_equal(detector.decision_scores_, before)
    np.testing.assert_array_equal(detector.decision_function(digits), before)


@pytest.mark.parametrize(
    ("operations", "batch_size", "steps"),
    [
        (tuple(Operation(quarter_turns=turns) for turns in range(4)), 128, 150),
        pytest.param("PR", 1024, 150, marks=pytest.mark.nightly),
        pytest.param("RA+IA+PR", 4096, 150, marks=pytest.mark.nightly),
    ],
)
def test_each_operation_may_occur_any_number_of_times_in_a_batch(
    operations, batch_size, steps, digits
):
    """Certainties beyond what entropies can be say that their moving averages are none."""
    config = CONFIG._replace(operations=operations, batch_size=batch_size, steps=433)
    trained = fit(digits, e3outlier.FACTORED, config, until=steps)
    certainty = np.abs(trained.state.extra)
    assert config.batch(len(digits)) > 30 * config.k and certainty.max() > 0.01
    assert certainty[1].max() <= np.log(config.k) and certainty[0].max() <= 2 * np.log(config.k)
