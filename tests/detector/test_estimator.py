"""PyOD's and scikit-learn's contracts, on arrays, files and folders of real digits."""

import pickle
import warnings
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image
from pyod.models.base import BaseDetector
from pyod.models.combination import aom, average, maximization
from pyod.models.knn import KNN
from pyod.utils.data import evaluate_print
from pyod.utils.utility import precision_n_scores, standardizer
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import estimator_checks_generator
from tiny import SMALL, Plain, Tiny

from e3jax import E3Outlier, E3OutlierDetector, InputError, Operation, load, save, write_gallery
from e3jax.detector import parameters
from e3jax.evidence import EVIDENCE, descriptor, thresholds
from e3jax.evidence.health import HealthWarning
from e3jax.images import formats
from e3jax.training import fitting

NEW = 5


@pytest.fixture(autouse=True)
def small_trainings_are_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HealthWarning)
        yield


@pytest.fixture(scope="module")
def fitted(digits):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HealthWarning)
        return E3Outlier(**SMALL).fit(digits)


@pytest.fixture(scope="module")
def folder(digits, tmp_path_factory):
    """The digits as files, one of them in a folder of its own, and a file that is no image."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "below").mkdir()
    for i, image in enumerate(digits[..., 0]):
        Image.fromarray(image).save(folder / ("below" if i == 59 else "") / f"{i}.png")
    (folder / "letter.png").write_text("Dear all,")
    return folder


# --- PyOD's contract -------------------------------------------------------------------------


def test_it_has_all_that_pyods_detectors_have(fitted):
    missing = {n for n in dir(BaseDetector) if not n.startswith("_") and not hasattr(fitted, n)}
    assert missing <= {"fit_predict_score"}, "which PyOD has deprecated"


def test_scores_and_labels_are_pyods(fitted, digits):
    scores = fitted.decision_scores_
    assert scores.shape == (60,) and scores.dtype == np.float64
    assert 0 <= scores.min() < scores.max() <= np.log(23)
    np.testing.assert_array_equal(fitted.decision_function(digits), scores)
    assert fitted.threshold_ == np.percentile(scores, 90)
    np.testing.assert_array_equal(fitted.labels_, scores > fitted.threshold_)
    assert fitted.labels_.sum() == 6 and fitted.labels_.dtype.kind == "i"
    np.testing.assert_array_equal(fitted.predict(digits), fitted.labels_)
    np.testing.assert_array_equal(fitted.paths_, np.arange(60))


def test_a_detector_says_at_what_precision_it_computes(digits, tmp_path):
    fitted = E3Outlier(**SMALL | {"network": "tiny-8"}).fit(digits)  # a function is not saved
    save(fitted, tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.precision == "auto" and again.model_.network.precision == "float32"
    again.set_params(precision="bfloat16")
    scores, changed = (detector.decision_function(digits[:4]) for detector in (fitted, again))
    assert 0 < np.abs(scores - changed).max() < 0.1


@pytest.mark.filterwarnings("ignore:invalid value encountered in sqrt")  # PyOD's
def test_probabilities_and_confidences_are_pyods(fitted, digits):
    """Their own code on our scores."""

    class Theirs(BaseDetector):
        def __init__(self):
            super().__init__(contamination=0.1)

        def fit(self, X, y=None):
            self._set_n_classes(None)
            self.decision_scores_ = fitted.decision_scores_
            self._process_decision_scores()
            return self

        def decision_function(self, X):
            return fitted.decision_function(X)

    theirs, new = Theirs().fit(None), digits[::7]
    assert theirs.threshold_ == fitted.threshold_
    for how in ({"T": 2, "c_r": 0.1}, {"T": 2, "c_r": 0.1, "return_stats": True}):
        found, expected = (d.predict_with_rejection(new, **how) for d in (fitted, theirs))
        jax.tree.map(np.testing.assert_allclose, found, expected)
    assert -2 in fitted.predict_with_rejection(new, T=9, c_r=0.1)
    for method in ("linear", "unify"):
        ours = fitted.predict_proba(new, method=method)
        np.testing.assert_allclose(ours, theirs.predict_proba(new, method=method), atol=1e-6)
        assert ours.shape == (9, 2) and (ours >= 0).all() and (ours <= 1).all()
        np.testing.assert_allclose(ours.sum(1), 1)
    np.testing.assert_allclose(fitted.predict_confidence(new), theirs.predict_confidence(new))
    labels, confidence = fitted.predict(new, return_confidence=True)
    np.testing.assert_array_equal(labels, theirs.predict(new))
    np.testing.assert_array_equal(confidence, fitted.predict_confidence(new))
    assert len(fitted.predict_proba(new, return_confidence=True)) == 2
    with pytest.raises(ValueError, match="method is 'square'"):
        fitted.predict_proba(new, method="square")


def test_it_stands_beside_pyods_detectors_in_pyods_tools(fitted, digits, capsys):
    is_outlier = np.arange(60) % 10 == 0
    knn = KNN().fit(digits.reshape(60, -1))
    scores = standardizer(np.column_stack([d.decision_scores_ for d in (fitted, knn)]))
    for combined in (average(scores), maximization(scores), aom(scores, n_buckets=2)):
        assert combined.shape == (60,) and np.isfinite(combined).all()
    assert 0 <= precision_n_scores(is_outlier, fitted.decision_scores_) <= 1
    evaluate_print("e3outlier", is_outlier, fitted.decision_scores_)
    assert "e3outlier ROC" in capsys.readouterr().out


def test_fits_in_one_call_are_pyods(fitted, digits, capsys):
    np.testing.assert_array_equal(clone(fitted).fit_predict(digits), fitted.labels_)


def test_a_progress_bar_is_left_behind_by_pickle(fitted, digits):
    detector = clone(fitted).set_params(on_progress=lambda *a: None).fit(digits)
    again = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(again.decision_function(digits), fitted.decision_scores_)
    kept = pickle.loads(pickle.dumps(clone(fitted).set_params(on_progress=print)))
    assert kept.on_progress is print


def test_moving_the_threshold_trains_nothing(fitted, digits):
    moved = clone(fitted).fit(digits)
    before = moved.decision_scores_
    assert moved.set_contamination(0.5) is moved and moved.labels_.sum() == 30
    assert moved.decision_scores_ is before and moved.contamination == 0.5
    with pytest.raises(ValueError, match="contamination is 0.7"):
        moved.set_contamination(0.7)
    assert moved.labels_.sum() == 30


def test_thresholds_without_labels():
    """Published: median + 2.5 MAD; or a person's own, as PyThresh does it."""
    detector = E3Outlier()
    detector.parameters_ = detector.get_params()
    scores = np.concatenate([np.random.default_rng(0).normal(1, 0.1, 1000), [2.0, 3.0]])
    detector.decision_scores_ = scores
    detector.remoteness_ = thresholds.remoteness({"network": scores})
    detector.copy_of_ = np.arange(len(scores))
    detector.decisions_ = np.zeros(len(scores), np.int8)
    detector.set_contamination("auto")
    # In normal scores MAD * 1.4826 is a standard deviation, here 0.1 of the logarithm too.
    logarithm = np.log(scores)
    mad = np.median(np.abs(logarithm - np.median(logarithm)))
    edge = np.exp(np.median(logarithm) + 2.5 * 1.4826 * mad)
    assert edge == pytest.approx(np.exp(0.25), abs=0.02)
    inliers = scores <= edge
    middle = (scores[inliers].max() + scores[~inliers].min()) / 2
    assert detector.threshold_ == pytest.approx(middle)
    assert detector.labels_[-2:].all() and 2 <= detector.labels_.sum() < 7
    detector.set_contamination(SimpleNamespace(eval=lambda s: (s > 1.5).astype(int)))
    assert list(np.flatnonzero(detector.labels_)) == [1000, 1001]
    assert detector.threshold_ == pytest.approx((scores[:1000].max() + 2) / 2)


def test_the_network_and_the_descriptors_both_have_to_find_an_image_remote():
    usual = np.exp(np.random.default_rng(0).normal(size=(3, 1000)))
    kinds = dict(zip(("network", "shape", "layout"), usual, strict=True))
    kinds["network"][:3] = np.exp([9, 1.5, 2.8])
    for name in ("shape", "layout"):
        kinds[name][:3] = np.exp([1.5, 9, 2.8])
    assert list(thresholds.remoteness(kinds)[:3] > 2.5) == [False, False, True]
    assert (thresholds.remoteness(kinds)[3:] > 2.5).mean() < 0.01
    alone = thresholds.remoteness({"network": kinds["network"]})
    assert list(alone[:3] > 2.5) == [True, False, True]


# --- What can be given -------------------------------------------------------------------------


def test_kinds_of_arrays_with_the_same_pixels_score_alike(fitted, digits):
    kinds = [digits[..., 0], digits.astype(np.int64)]
    for same in kinds:
        np.testing.assert_array_equal(fitted.decision_function(same), fitted.decision_scores_)
    unit = E3Outlier(**SMALL, value_range=(0, 1)).fit(np.float32(digits / 255))
    np.testing.assert_array_equal(unit.decision_scores_, fitted.decision_scores_)


@pytest.mark.parametrize(("lowest", "highest"), [(0, 1), (-1, 1), (0, 255), (-3, 7)])
def test_the_range_of_floats_is_inferred_and_announced(fitted, digits, lowest, highest):
    floats = lowest + (highest - lowest) * (digits / 255)
    sentence = f"to range from {lowest} to {highest}: give value_range"
    with pytest.warns(UserWarning, match=sentence) as warned:
        detector = E3Outlier(**SMALL).fit(floats)
    assert warned[0].filename == __file__
    assert detector.model_.reader.value_range == (lowest, highest)
    np.testing.assert_array_equal(detector.decision_scores_, fitted.decision_scores_)
    # New images are taken to have the same range, whatever they have themselves.
    np.testing.assert_array_equal(
        detector.decision_function(floats[:4]), detector.decision_scores_[:4]
    )


def test_folders_and_lists_of_files_score_as_arrays_do(fitted, digits, folder):
    detector = E3Outlier(**SMALL).fit(folder)
    assert [path.rsplit("/")[-1] for path in detector.paths_] == [f"{i}.png" for i in range(60)]
    assert detector.evidence_.keys() - fitted.evidence_.keys() == {"detail", "facts"}
    for name, values in fitted.evidence_.items():
        np.testing.assert_array_equal(detector.evidence_[name], values)
    # Arrays of a detector of files are scored without what files tell.
    np.testing.assert_array_equal(detector.decision_function(digits), fitted.decision_scores_)
    [letter] = detector.health_.unreadable
    assert letter.path == str(folder / "letter.png") and letter.reason == "not an image"
    few = [folder / "4.png", folder / "2.png"]
    np.testing.assert_array_equal(
        detector.decision_function(few), detector.decision_scores_[[4, 2]]
    )
    with pytest.raises(InputError, match="letter.png cannot be read .not an image.: leave it out"):
        detector.decision_function(folder)


def test_copies_are_learnt_and_compared_once(fitted, digits):
    outlier = int(fitted.decision_scores_.argmax())
    again = np.concatenate([digits, digits[[outlier] * 2], digits[3:5]])
    detector = E3Outlier(**SMALL).fit(again)
    others = np.arange(60) != outlier
    scores = detector.decision_scores_[:60]
    np.testing.assert_array_equal(scores[others], fitted.decision_scores_[others])
    np.testing.assert_array_equal(detector.copy_of_, [*range(60), *[outlier] * 2, 3, 4])
    assert detector.threshold_ == np.percentile(detector.decision_scores_, 90)
    assert detector.labels_[[outlier, 60, 61]].all() and detector.labels_.sum() <= 7
    ranking = detector.ranking_
    np.testing.assert_array_equal(ranking.copy_of, detector.copy_of_)
    assert len(ranking.explanation.view_entropies) == 64


@pytest.mark.parametrize("evidence", ["all", "network"])
@pytest.mark.parametrize(("more", "share"), [(0, 0), (2, 2 / 61), (60, 0.5), (1140, 0.95)])
def test_the_most_outlying_image_is_less_so_the_more_copies_it_has(digits, more, share, evidence):
    alone = E3Outlier(**SMALL, evidence=evidence).fit(digits)
    outlier = int(alone.decision_scores_.argmax())
    detector = clone(alone).fit(np.concatenate([digits, digits[[outlier] * more]]))
    scores, others = detector.decision_scores_, np.arange(60) != outlier
    np.testing.assert_array_equal(scores[:60][others], alone.decision_scores_[others])
    assert len(set(scores[60:]) | {scores[outlier]}) == 1
    assert scores[outlier] == pytest.approx(np.quantile(alone.decision_scores_, 1 - share), rel=0.2)
    # More frequent than outliers are, it is none.
    assert detector.labels_[outlier] == (share < 0.1)
    assert detector.labels_.sum() <= np.ceil(0.1 * len(scores))
    np.testing.assert_array_equal(detector.decision_function(digits), scores[:60])


@pytest.mark.parametrize("kinds", [2, 3, 6])
@pytest.mark.parametrize("contamination", [0.01, 0.1, 0.5])
def test_no_more_than_the_stated_share_are_outliers_however_many_copies(kinds, contamination):
    grey = np.uint8(np.linspace(0, 255, kinds))[:, None, None]
    images = np.broadcast_to(grey, (kinds, 8, 8)).repeat(60 // kinds, 0)
    detector = E3Outlier(**SMALL, contamination=contamination).fit(images)
    assert detector.labels_.sum() <= np.ceil(60 * contamination)


def test_copies_to_the_eye_of_what_is_frequent_score_as_it(digits, tmp_path):
    """Also in new images, by a detector that was loaded."""
    noise = np.random.default_rng(0).integers(-2, 3, (10, 32, 32, 1))
    placeholder = np.clip(digits[:1] // 2 + 100, 2, 253)
    images = np.concatenate([digits, placeholder.repeat(20, 0)])
    detector = E3Outlier(**SMALL | {"network": "tiny-8"}).fit(images)
    save(detector, tmp_path / "model")
    new = np.uint8(placeholder + noise)
    for one in (detector, load(tmp_path / "model")):
        assert (one.decision_function(new) <= detector.model_.frequent.limits.max()).all()
        assert not one.predict(new).any()
        np.testing.assert_array_equal(one.decision_function(images), detector.decision_scores_)


def test_a_majority_of_copies_is_no_outlier_of_auto(fitted, digits):
    outlier = int(fitted.remoteness_.argmax())
    detector = E3Outlier(**SMALL, contamination="auto")
    detector.fit(np.concatenate([digits, digits[[outlier] * 60]]))
    assert not detector.labels_[outlier] and not detector.labels_[60:].any()


def two_grounds(share):
    """Two kinds of plain pictures, one of this share, and no two of a kind the same."""
    images = np.random.default_rng(0).integers(0, 9, (40, 8, 8), np.uint8)
    images[: round(40 * share)] += 200
    return images


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((30, 8, 8), np.uint8),
        np.stack([np.full((8, 8), i, np.uint8) for i in (0, 255)]),
        np.stack([np.full((8, 8), 50 * i, np.uint8) for i in range(5)]),
        np.linspace(0, 255, 30 * 64).reshape(30, 8, 8).astype(np.uint8),
        np.repeat(np.arange(5, dtype=np.uint8)[:, None, None] * 50, 8, 1).repeat(8, 2)[
            [0] * 36 + [1, 2, 3, 4]
        ],
        two_grounds(0.95),
    ],
    ids=["black", "two", "five", "gradients", "copies", "two grounds"],
)
def test_degenerate_collections_flag_no_majority(images):
    detector = E3Outlier(**SMALL).fit(images)
    assert np.isfinite(detector.decision_scores_).all()
    assert detector.labels_.sum() <= max(0.2 * len(images), 1)
    for image in np.unique(images, axis=0):
        same = (images == image).all((1, 2))
        assert same.mean() <= 0.5 or not detector.labels_[same].any()


def test_what_fit_used_counts_whatever_is_set_later(fitted, digits):
    changed = clone(fitted).fit(digits)
    changed.set_params(
        image_size=64, operations="RA", resize="crop", evidence="network", value_range=(0, 9),
        contamination=0.4, network="wrn-10-1", score_operations=2, steps=9,
    )  # fmt: skip
    np.testing.assert_array_equal(changed.decision_function(digits), fitted.decision_scores_)
    np.testing.assert_array_equal(
        changed.predict_confidence(digits[:9]), fitted.predict_confidence(digits[:9])
    )
    assert changed.ranking_.threshold == fitted.threshold_
    again = changed.set_params(**SMALL, evidence="all", resize="squash", value_range=None)
    again.set_params(contamination=0.1, score_operations="auto")
    np.testing.assert_array_equal(again.fit(digits).decision_scores_, fitted.decision_scores_)


def test_work_that_cannot_be_recognised_again_is_not_kept(digits, tmp_path):
    for changed in ({"network": Tiny}, {"random_state": np.random.RandomState(0)}):
        detector = E3Outlier(**SMALL | {"network": "tiny-8"} | changed)
        with pytest.raises(InputError, match=f"{next(iter(changed))} is .* could not recognise"):
            detector.fit_in(tmp_path / "work", digits)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_fit_that_is_stopped_leaves_the_detector_as_it_was(fitted, digits):
    def stop(stage, done, total):
        raise KeyboardInterrupt

    detector = clone(fitted).fit(digits)
    before = dict(vars(detector))
    with pytest.raises(KeyboardInterrupt):
        detector.set_params(on_progress=stop).fit(digits[:30])
    assert all(vars(detector)[name] is value for name, value in before.items() if name[-1] == "_")


def test_a_range_that_does_not_fit_the_values_is_told(fitted, digits):
    units = digits / 255
    with pytest.warns(UserWarning, match="from 0 to 1, are taken to range from 0 to 1: give"):
        found = fitted.decision_function(units)
    np.testing.assert_array_equal(found, fitted.decision_scores_)
    detector = E3Outlier(**SMALL, value_range=(0, 255)).fit(np.float32(digits))
    with pytest.warns(UserWarning, match="here from 0 to 1, are taken to range from 0 to 255"):
        detector.decision_function(units)
    detector.set_params(value_range=np.array([0, 1]))
    np.testing.assert_array_equal(detector.decision_function(units), fitted.decision_scores_)
    with pytest.warns(UserWarning, match="here from 0 to 255, are taken to range from 0 to 1"):
        detector.decision_function(np.float32(digits))


def test_colours_need_not_be_those_of_fit_in_files(fitted, digits, folder, tmp_path):
    """Files are converted; arrays of another kind are a mistake."""
    Image.fromarray(digits[4, ..., 0]).convert("RGB").save(tmp_path / "4.png")
    detector = E3Outlier(**SMALL).fit(folder)
    without_file = detector.read([tmp_path / "4.png"])._replace(facts=None)
    np.testing.assert_allclose(
        detector.decision_function(without_file), fitted.decision_scores_[4], rtol=1e-5
    )
    with pytest.raises(InputError, match="3 channels, those of fit had 1"):
        fitted.decision_function(np.zeros((2, 8, 8, 3), np.uint8))


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (np.zeros((1, 8, 8), np.uint8), "expected at least 2"),
        (np.zeros((5, 64), np.uint8), r"shape \(5, 64\), expected \[n, h, w\]"),
        (np.zeros((5, 3, 8, 8), np.uint8), "move channels last"),
        (np.full((5, 8, 8), np.nan), "not finite"),
        (np.full((5, 8, 8), np.inf), "not finite"),
        (np.full((5, 8, 8), 300), "expected integers from 0 to 255"),
        (np.full((5, 8, 8), "x"), "element 0 is a ndarray, expected a file or an image"),
        ("/nowhere/at/all", "does not exist"),
        (["/nowhere/1.png", "/nowhere/2.png"], "0 of 2 files are readable .*: no such file"),
    ],
)
def test_bad_images_are_one_sentence(images, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        E3Outlier(**SMALL).fit(images)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"contamination": 0}, "contamination is 0, expected"),
        ({"contamination": 0.6}, "contamination is 0.6, expected"),
        ({"contamination": "otsu"}, "contamination is 'otsu', expected"),
        ({"steps": 0}, "steps is 0, expected a positive integer"),
        ({"operations": 5}, "operations is 5, expected names or operations"),
        ({"steps": "many"}, "steps is 'many'"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"image_size": 7}, "image_size is 7, expected an even number"),
        ({"resize": "stretch"}, "resize is 'stretch', expected one of squash"),
        ({"value_range": (1, 0)}, "value_range is .1, 0., expected two numbers"),
        ({"precision": "half"}, "precision is 'half', expected one of auto, float32"),
        ({"network": "vgg"}, "unknown network 'vgg'"),
        ({"network": "cae-64"}, "'cae-64' reconstructs images: choose a classifier"),
        ({"operations": "XY"}, "operation set 'XY'"),
    ],
)
def test_bad_parameters_are_one_sentence_of_fit(changed, sentence, digits):
    detector = E3Outlier(**SMALL | changed)
    with pytest.raises(ValueError, match=sentence):
        detector.fit(digits)
    assert not hasattr(detector, "decision_scores_")


def test_nothing_is_scored_before_fit(digits):
    for method in ("decision_function", "predict", "predict_proba", "view_scores"):
        with pytest.raises(NotFittedError):
            getattr(E3Outlier(), method)(digits)


def test_new_files_of_more_than_8_bits_are_read_at_the_scale_of_fit(digits, tmp_path):
    """12 bits in containers of 16: one image of 8 bits alone would be stretched."""
    for i, image in enumerate(digits[:12, ..., 0]):
        Image.fromarray(np.uint16(image) * 16).save(tmp_path / f"{i}.png")
    (tmp_path / "a.heic").touch()
    detector = E3Outlier(**SMALL | {"network": "tiny-8"}).fit(tmp_path)
    assert detector.model_.reader.file_range[:2] == ((0, 4095), None)
    assert detector.ranking_.file_range == detector.model_.reader.file_range
    save(detector, tmp_path / "model")
    dark = tmp_path / "new" / "dark.png"
    dark.parent.mkdir()
    Image.fromarray(np.uint16(digits[0, ..., 0])).save(dark)
    for one in (detector, load(tmp_path / "model")):
        assert one.read([dark]).images.max() <= 16
    # What was not looked at is named, and no error.
    assert len(detector.decision_function(tmp_path)) == 13
    assert any("heic" in reason for _, reason in detector.health_.unreadable) == bool(
        formats.remedy("HEIC")
    )


# --- Own operations and networks ------------------------------------------------------------


def test_operations_and_networks_may_be_ones_own(digits, tmp_path):
    turns = [Operation(quarter_turns=q, angle=a) for q in range(2) for a in (0, 10.0)]
    own = SMALL | {"operations": turns, "network": Plain}
    detector = clone(E3Outlier(**own)).fit(digits)
    assert detector.view_entropies_.shape == (60, 4) and detector.model_.network.network is Plain
    assert np.ptp(detector.decision_scores_) > 0
    with pytest.raises(ValueError, match="network is a function, which cannot be saved"):
        save(detector, tmp_path / "model")
    named = {"operations": turns, "network": "tiny-8"}
    detector = E3Outlier(**SMALL | named).fit(digits)
    save(detector, tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.operations == tuple(turns)
    np.testing.assert_array_equal(again.decision_function(digits), detector.decision_scores_)
    write_gallery(tmp_path / "gallery.html", again.rank(digits), digits)


# --- Fits ------------------------------------------------------------------------------------


def test_randomness_is_random_states(fitted, digits):
    again = E3Outlier(**SMALL).fit(digits)
    np.testing.assert_array_equal(again.decision_scores_, fitted.decision_scores_)
    other = clone(fitted).set_params(random_state=np.random.RandomState(1)).fit(digits)
    assert not np.array_equal(other.decision_scores_, fitted.decision_scores_)


def test_scores_of_views_average_to_the_scores(fitted, digits):
    views = fitted.view_scores(digits[:NEW])
    assert all(scores.shape == (NEW, 23) for scores in views.rules.values())
    entropies = fitted.view_entropies_[:NEW].mean(1)
    np.testing.assert_allclose(-views.mean("ne"), entropies, rtol=1e-5)


@pytest.mark.parametrize("evidence", ["all", "network"])
def test_scores_are_made_of_the_evidence(fitted, digits, evidence):
    detector = clone(fitted).set_params(evidence=evidence).fit(digits)
    if evidence == "network":
        np.testing.assert_allclose(
            detector.decision_scores_, detector.view_entropies_.mean(1), 1e-6
        )
        assert detector.surprises_ == {}
    else:
        network, *others = detector.surprises_.values()
        assert list(detector.surprises_) == ["network", "shape", "coarse", "layout", "statistics"]
        fused = network / 2 + sum(others) / 8
        np.testing.assert_allclose(detector.decision_scores_, fused)


def test_a_descriptor_of_ones_own_is_evidence(fitted, digits, monkeypatch):
    def brightness(x):
        return x.mean((0, 1))

    monkeypatch.setitem(EVIDENCE, "brightness", descriptor("brightness", brightness))
    images = digits.copy()
    images[3] = np.maximum(images[3], 200)
    detector = clone(fitted).fit(images)
    assert detector.surprises_["brightness"].argmax() == 3


def test_rankings_are_the_scores_in_their_order(fitted, digits):
    ranking = fitted.ranking_
    np.testing.assert_array_equal(ranking.scores, fitted.decision_scores_)
    np.testing.assert_array_equal(ranking.is_outlier, fitted.labels_ == 1)
    assert (np.diff(ranking.scores[ranking.order]) <= 0).all()
    new = fitted.rank(digits[:NEW])
    np.testing.assert_allclose(new.scores, ranking.scores[:NEW], rtol=1e-5)
    assert new.threshold == ranking.threshold and new.health is ranking.health


@pytest.mark.parametrize(
    ("n", "steps"), [(60, 157), (200, 433), (998, 433), (5000, 2168), (60_000, 3000)]
)
def test_the_length_of_training_follows_the_collection(n, steps):
    config = parameters._config(E3Outlier().get_params(), n)
    assert (config.network, config.steps) == ("pwrn-10-2", steps)


def test_progress_is_told_and_may_end_the_fit(folder):
    seen = []

    def note(*step):
        seen.append(step)
        if step[0] == "scoring":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        E3Outlier(**SMALL, on_progress=note).fit(folder)
    assert seen[:61] == [("reading", i, 61) for i in range(1, 62)]
    assert seen[61:] == [("training", 3, 3), ("scoring", 60, 60)]


@pytest.mark.parametrize("value", [0, 77])
def test_identical_images_are_warned_of(value):
    images = np.full((20, 8, 8), value, np.uint8)
    with pytest.warns(HealthWarning, match="all scores are the same: the images are identical"):
        detector = E3Outlier(**SMALL).fit(images)
    assert detector.health_.spread == 0 and detector.labels_.sum() == 0


def test_what_has_not_learnt_says_so(digits):
    with pytest.warns(HealthWarning, match="train for more steps"):
        detector = E3Outlier(**SMALL).fit(digits)
    health = detector.health_
    assert health.chance == 1 / 23 and health.pretext_accuracy < 0.2 and health.steps == 3


# --- scikit-learn's contract -------------------------------------------------------------------

CHECKED = E3OutlierDetector(**SMALL)


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, id=check.func.__name__)
        for _, check in estimator_checks_generator(CHECKED)
    ],
)
def test_scikit_learns_checks(check):
    """All that it has for detectors; one skips itself, as its environment variable is not set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(clone(CHECKED))


def test_the_adapter_says_what_the_detector_says(fitted, digits):
    rows = digits.reshape(60, -1)
    adapter = E3OutlierDetector(**SMALL).fit(rows)
    np.testing.assert_array_equal(-adapter.score_samples(rows), fitted.decision_scores_)
    np.testing.assert_array_equal(adapter.predict(rows), np.where(fitted.labels_, -1, 1))
    np.testing.assert_array_equal(adapter.fit_predict(rows), adapter.predict(rows))
    assert ((adapter.decision_function(rows) < 0) == (fitted.labels_ == 1)).all()


def test_rows_are_squares_or_filled_up(fitted, digits):
    rows = digits.reshape(60, -1)
    cut = rows[:, :1000]
    filled = np.pad(cut, ((0, 0), (0, 24))).reshape(60, 32, 32)
    found = E3OutlierDetector(**SMALL).fit(cut)
    assert found.image_shape_ == (32, 32)
    expected = E3Outlier(**SMALL).fit(filled).decision_scores_
    np.testing.assert_array_equal(-found.score_samples(cut), expected)
    with pytest.raises(ValueError, match="image_shape is .7, 9., expected the shape of 1024"):
        E3OutlierDetector(**SMALL, image_shape=(7, 9)).fit(rows)


@pytest.mark.parametrize("shape", [(3, 32, 32), (32, 32, 3)])
def test_rows_of_colours_hold_channels_last_or_first_as_cifars(digits, shape):
    """Smooth channels, as of a photo: which is which can be told, and is."""
    colours = np.stack([digits[..., 0], 255 - digits[..., 0], digits[..., 0] // 2], axis=-1)
    rows = (np.moveaxis(colours, -1, 1) if shape[0] == 3 else colours).reshape(60, -1)
    expected = E3Outlier(**SMALL).fit(colours).decision_scores_
    with pytest.warns(UserWarning, match=f"images of shape .{shape[0]}, 32, {shape[2]}.: give"):
        guessed = E3OutlierDetector(**SMALL).fit(rows)
    given = E3OutlierDetector(**SMALL, image_shape=shape).fit(rows)
    for found in (guessed, given):
        np.testing.assert_array_equal(-found.score_samples(rows), expected)


def test_rows_of_floats_have_a_range_that_is_told(fitted, digits):
    rows = digits.reshape(60, -1) * (16 / 255)
    with pytest.warns(UserWarning, match="here from 0 to 16, are taken to range from 0 to 16"):
        detector = E3OutlierDetector(**SMALL).fit(rows)
    np.testing.assert_array_equal(-detector.score_samples(rows), fitted.decision_scores_)


@pytest.mark.filterwarnings("ignore:float images")
def test_nothing_is_scored_twice(digits, monkeypatch):
    calls, score = [], fitting.score
    monkeypatch.setattr(fitting, "score", lambda *a, **k: (calls.append(1), score(*a, **k))[1])
    labels = E3OutlierDetector(**SMALL).fit_predict(digits.reshape(60, -1))
    assert (labels == -1).sum() == 6 and len(calls) == 1


@pytest.mark.filterwarnings("ignore:float images")
def test_pipelines_and_searches(digits):
    rows = digits.reshape(60, -1)
    pipeline = make_pipeline(MinMaxScaler(), E3OutlierDetector(**SMALL)).fit(rows)
    assert set(pipeline.predict(rows)) == {-1, 1}
    search = GridSearchCV(
        E3OutlierDetector(**SMALL),
        {"contamination": [0.1, 0.3]},
        scoring=lambda detector, X, y=None: -(detector.predict(X) == -1).mean(),
        cv=2,
    ).fit(rows)
    assert search.best_params_ == {"contamination": 0.1}
