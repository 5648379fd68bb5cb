"""Decisions of a person: junk is not learnt and always marked, what belongs is never marked."""

import functools

import numpy as np
import pytest
import tiny  # noqa: F401 - a network's name, "tiny-8"

from e3jax import E3Outlier, InputError, load, save
from e3jax.work.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::e3jax.evidence.health.HealthWarning")
JUNK = {57: "does not belong", 3: "does not belong"}
fitted = functools.partial(E3Outlier, network="tiny-8", operations="PR", steps=2, random_state=0)


@pytest.fixture(scope="module")
def images(digits):
    """The last is a copy of one that is decided."""
    return np.concatenate([digits, digits[57:58]])


@pytest.fixture(scope="module")
def detector(images):
    return fitted().fit(images, decisions={**JUNK, 0: "belongs"})


def test_what_does_not_belong_is_as_if_it_were_not_there_but_scored(images, detector):
    learnt = np.setdiff1d(np.arange(61), [3, 57, 60])
    without = fitted().fit(images[learnt])
    ours, others = detector.model_, without.model_
    for name in ("shape", "layout", "statistics"):
        np.testing.assert_array_equal(ours.evidence[name].features, others.evidence[name].features)
        np.testing.assert_array_equal(
            ours.distributions[name].values, others.distributions[name].values
        )
    np.testing.assert_array_equal(ours.network.median, others.network.median)
    assert ours.weights == others.weights
    undecided = learnt[learnt > 0]
    np.testing.assert_allclose(
        detector.decision_scores_[undecided], without.decision_scores_[1:], rtol=1e-5
    )
    assert np.isfinite(detector.surprises_["shape"]).all()


def test_labels_are_those_decided_wherever_the_threshold_is(detector):
    again = E3Outlier.__new__(E3Outlier)
    vars(again).update(vars(detector))
    assert detector.decisions_[[0, 3, 57, 60]].tolist() == [1, -1, -1, -1]
    assert not detector.decisions_[1:3].any()
    for share in (0.1, 0.5, "auto"):
        again.set_contamination(share)
        assert again.labels_[[3, 57, 60]].all() and not again.labels_[0]
    assert detector.labels_.sum() == 3 + 6  # a tenth of the 58 others
    order = detector.ranking_.order
    assert set(order[:3]) == {3, 57, 60} and order[-1] == 0


def test_a_saved_detector_keeps_them(detector, tmp_path):
    save(detector, tmp_path / "model")
    again = load(tmp_path / "model")
    np.testing.assert_array_equal(again.decisions_, detector.decisions_)
    again.set_contamination(0.3)
    assert again.labels_[[3, 57, 60]].all() and not again.labels_[0]


def test_what_belongs_changes_nothing_but_its_own_score(images):
    plain, told = fitted().fit(images), fitted().fit(images, decisions={5: "belongs"})
    others = np.arange(61) != 5
    np.testing.assert_array_equal(told.decision_scores_[others], plain.decision_scores_[others])
    assert told.decision_scores_[5] < plain.decision_scores_.min()
    assert plain.ranking_.decisions is None and told.ranking_.decisions.sum() == 1


def test_kept_work_of_other_decisions_is_not_taken(images, detector, tmp_path):
    for decisions in (None, JUNK, {**JUNK, 0: "belongs"}):
        again = fitted()
        assert again.fit_in(tmp_path, images, decisions=decisions)
    np.testing.assert_array_equal(again.decision_scores_, detector.decision_scores_)
    assert all(isinstance(store, Store) for store in vars(again)["_stores"])


def test_too_few_are_left_to_learn_from(images):
    junk = dict.fromkeys(range(60), "does not belong")
    with pytest.raises(InputError, match="leave 0 of 60 pictures to learn from"):
        fitted().fit(images, decisions=junk)
    del junk[1]
    with pytest.raises(InputError, match="leave 1 of 60 pictures"):
        fitted().fit(images, decisions=junk)
