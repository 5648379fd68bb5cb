"""A detector that was saved is the one that is loaded; what is none is refused."""

import json
import resource
import subprocess
import sys
import warnings
from types import SimpleNamespace

import chex
import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from tiny import SMALL as TINY

from e3jax import E3Outlier, InputError, load, save
from e3jax.detector import saving
from e3jax.evidence import EVIDENCE, descriptor
from e3jax.evidence.health import HealthWarning

SMALL = TINY | {"network": "tiny-8"}  # a name can be saved


@pytest.fixture(scope="module")
def fitted(digits):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HealthWarning)
        return E3Outlier(**SMALL, contamination=0.2, value_range=(0, 1)).fit(digits / 255)


@pytest.fixture
def saved(fitted, tmp_path):
    save(fitted, tmp_path / "model")
    return tmp_path / "model"


def test_a_loaded_detector_says_the_same(fitted, saved, digits):
    again = load(saved)
    for new in (digits / 255, digits[:1] / 300):
        np.testing.assert_array_equal(again.decision_function(new), fitted.decision_function(new))
        for method in ("predict", "predict_proba", "predict_confidence"):
            ours, theirs = (getattr(d, method)(new) for d in (again, fitted))
            np.testing.assert_array_equal(ours, theirs)
    for name in ("decision_scores_", "labels_", "paths_"):
        np.testing.assert_array_equal(getattr(again, name), getattr(fitted, name))
    assert again.threshold_ == fitted.threshold_ and again.health_ == fitted.health_
    chex.assert_trees_all_equal(again.model_, fitted.model_)
    ours, theirs = again.get_params(), fitted.get_params()
    assert ours | {"value_range": None} == theirs | {"value_range": None}
    assert again.set_contamination(0.4).labels_.sum() == 24


def test_another_program_that_loads_it_scores_the_same(fitted, saved, digits, tmp_path):
    np.save(tmp_path / "new.npy", digits[:7] / 255)
    code = (
        "import e3jax, numpy, sys, tiny; d = e3jax.load(sys.argv[1]); "
        "numpy.save(sys.argv[3], d.decision_function(numpy.load(sys.argv[2])))"
    )
    names = [str(tmp_path / name) for name in ("model", "new.npy", "scores.npy")]
    command = [sys.executable, "-c", code, *names]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT / "tests")
    # One device there, two here: the same up to rounding.
    np.testing.assert_allclose(
        np.load(tmp_path / "scores.npy"), fitted.decision_scores_[:7], rtol=1e-4
    )


@pytest.mark.filterwarnings("ignore::e3jax.evidence.health.HealthWarning")
def test_parameters_of_numpy_and_thresholds_of_ones_own_are_saved(digits, tmp_path):
    how = {"contamination": np.float32(0.2), "value_range": np.array([0, 1]), "steps": np.int64(3)}
    detector = E3Outlier(**SMALL | how).fit(digits / 255)
    save(detector, tmp_path / "model")
    assert load(tmp_path / "model").contamination == pytest.approx(0.2)
    detector.set_contamination(SimpleNamespace(eval=lambda s: (s > np.sort(s)[-4]).astype(int)))
    save(detector, tmp_path / "model")
    again = load(tmp_path / "model")
    np.testing.assert_array_equal(again.labels_, detector.labels_)
    assert again.labels_.sum() == 3 and again.contamination == pytest.approx(3 / 60)


def test_it_says_what_it_was_made_with_and_holds_no_code(saved):
    with safetensors.safe_open(saved, framework="numpy") as file:
        about = json.loads(file.metadata()["e3jax"])
    assert set(about["versions"]) == {"e3jax", "jax", "numpy", "python"}
    assert about["parameters"]["resize"] == "squash" and about["parameters"]["image_size"] == 8


@pytest.mark.filterwarnings("ignore:pretext accuracy")
def test_evidence_of_ones_own_has_to_be_there(fitted, digits, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        brightness = descriptor("brightness", lambda x: x.mean((0, 1)))
        patch.setitem(EVIDENCE, "brightness", brightness)
        detector = clone(fitted).fit(digits)
        save(detector, tmp_path / "model")
        again = load(tmp_path / "model").decision_function(digits[:7])
        np.testing.assert_array_equal(again, detector.decision_scores_[:7])
    with pytest.raises(InputError, match="needs the evidence 'brightness': register it"):
        load(tmp_path / "model")


def test_it_replaces_an_older_file_and_leaves_no_other(fitted, saved):
    save(load(saved).set_contamination(0.5), saved)
    assert load(saved).contamination == 0.5
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def header_of(saved):
    return 8 + int.from_bytes(saved.read_bytes()[:8], "little")


DAMAGES = {
    "empty": lambda saved: b"",
    "text": lambda saved: b"Dear all, " * 100,
    "cut in the header": lambda saved: saved.read_bytes()[:500],
    "cut in the weights": lambda saved: saved.read_bytes()[:-100],
    "a bit of the weights": lambda saved: flipped(saved, header_of(saved) + 1000),
    "a digit of the header": lambda saved: saved.read_bytes().replace(b"0.2,", b"0.3,", 1),
    "another program's": lambda saved: safetensors.numpy.save({"a": np.zeros(3)}),
    "broken text in the header": lambda saved: saved.read_bytes().replace(b"health", b'heal"h', 1),
}


def flipped(saved, at):
    content = bytearray(saved.read_bytes())
    content[at] ^= 1
    return bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_and_foreign_files_are_refused_in_a_sentence(saved, damage):
    content = DAMAGES[damage](saved)
    assert content != saved.read_bytes()
    saved.write_bytes(content)
    with pytest.raises(InputError, match="model is (damaged|not an e3jax detector)") as caught:
        load(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["bytes", "cut", "gap", "insertion"])
def test_files_damaged_anywhere_are_refused(saved, change):
    content, random = saved.read_bytes(), np.random.default_rng(0)
    for place in random.integers(0, len(content), 60):
        if change == "bytes":
            rest = bytes([content[place] ^ 5]) + content[place + 1 :]
        else:
            ends = {"cut": b"", "gap": content[place + 9 :], "insertion": b"x" + content[place:]}
            rest = ends[change]
        saved.write_bytes(content[:place] + rest)
        with pytest.raises(InputError):
            load(saved)


def test_another_format_names_the_version_that_reads_it(fitted, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "_FORMAT", 99)
    save(fitted, tmp_path / "model")
    monkeypatch.undo()
    with pytest.raises(InputError, match="has format 99, expected .* by e3jax 0.*use that version"):
        load(tmp_path / "model")


def test_what_cannot_be_saved_or_found_says_so(fitted, tmp_path):
    with pytest.raises(NotFittedError):
        save(E3Outlier(), tmp_path / "model")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "model")
    (tmp_path / "photo.png").write_bytes(b"a photo")
    for path, sentence in (
        (tmp_path / "no" / "model", "no is not a writable folder"),
        (tmp_path, "is a folder, expected a file"),
        (tmp_path / "photo.png", "exists and was not written by e3jax"),
    ):
        with pytest.raises(InputError, match=sentence):
            save(fitted, path)
    assert (tmp_path / "photo.png").read_bytes() == b"a photo"


def test_a_full_disk_leaves_the_older_file(fitted, saved):
    """As the system says it: no file may be longer than a kilobyte."""
    before = saved.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(fitted, saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["model"]
