"""What is registered reaches everything: scores, tables, gallery, saved detectors, benchmark."""

import csv

import benchmark
import numpy as np
import pytest
from commands import here
from PIL import Image

import e3jax
from e3jax import cli
from e3jax.evidence import EVIDENCE, descriptor
from e3jax.training import rules

SMALL = ("--network", "tiny-8", "--operations", "PR", "--steps", "3")
SWEEP = (
    *("--dataset", "mnist", "--source", "embedded", "--protocol", "quick", "--classes", "4"),
    *("--max-images", "40", "--methods", "e3outlier+", "descriptors", *SMALL),
)


@pytest.fixture
def photos(digits, tmp_path):
    """Sixty digits, of which the fourth is on a bright ground."""
    (tmp_path / "photos").mkdir()
    for i, image in enumerate(digits[..., 0]):
        Image.fromarray(np.maximum(image, 200 if i == 3 else 0)).save(
            tmp_path / "photos" / f"{i:02d}.png"
        )
    return tmp_path / "photos"


def rows(folder):
    with open(folder / "scores.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def scores(folder):
    """By method, the scores that a sweep has left."""
    return {
        method: array
        for path in (folder / "runs").glob("*.npz")
        for method, array in np.load(path).items()
    }


def test_a_new_kind_of_evidence_reaches_rank_its_files_and_the_benchmark(
    monkeypatch, capsys, photos, tmp_path
):
    here(monkeypatch, capsys, benchmark.main, *SWEEP, "--results-dir", tmp_path / "before")
    monkeypatch.setitem(EVIDENCE, "brightness", descriptor("brightness", lambda x: x.mean((0, 1))))
    report, model = tmp_path / "report", tmp_path / "model"
    assert cli.main(["rank", str(photos), "--out", str(report), "--save", str(model), *SMALL]) == 1
    brightest = max(rows(report), key=lambda row: float(row["brightness"]))
    assert brightest["path"] == str(photos / "03.png")
    assert "unusual brightness" in (report / "gallery.html").read_text()
    again = e3jax.load(model).rank(photos)
    np.testing.assert_allclose(
        again.scores[again.order], [float(row["score"]) for row in rows(report)], rtol=1e-12
    )
    here(monkeypatch, capsys, benchmark.main, *SWEEP, "--results-dir", tmp_path / "after")
    before, after = scores(tmp_path / "before"), scores(tmp_path / "after")
    for method in ("e3outlier+", "descriptors"):
        assert not np.array_equal(before[method], after[method])


@pytest.mark.parametrize("evidence", ["all", "network"])
def test_a_new_scoring_rule_reaches_rank_and_saved_detectors(
    monkeypatch, digits, tmp_path, evidence
):
    def margin(log_p, operation):
        first, second = np.s_[..., -1], np.s_[..., -2]
        ordered = log_p.sort(-1)
        return ordered[first] - ordered[second]

    monkeypatch.setitem(rules.RULES, "margin", margin)
    options = {"network": "tiny-8", "operations": "PR", "steps": 3, "random_state": 0}
    detector = e3jax.E3Outlier(evidence=evidence, rule="margin", **options)
    with pytest.warns(UserWarning, match="train for more steps"):
        detector.fit(digits)
    views = detector.view_scores(digits).rules["margin"]
    weights = rules.view_weights(views) if evidence == "all" else 1
    expected = -(views * weights).mean(axis=1)
    measured = detector.evidence_["network"]
    np.testing.assert_allclose(measured - measured.min(), expected - expected.min(), atol=1e-5)
    assert measured.min() == pytest.approx(0, abs=1e-6)
    e3jax.save(detector, tmp_path / "model")
    again = e3jax.load(tmp_path / "model")
    np.testing.assert_array_equal(again.decision_function(digits), detector.decision_scores_)


def test_an_unknown_rule_is_named():
    with pytest.raises(ValueError, match="rule is 'margin', expected one of ne, pl, mp"):
        e3jax.E3Outlier(rule="margin").check_parameters()
