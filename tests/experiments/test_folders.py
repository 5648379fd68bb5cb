"""Folders of files that e3jax rank is measured on."""

import zipfile
from pathlib import Path

import folders
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from paper import appendix, real
from PIL import Image
from sweep import rows
from sweep.provenance import versions
from usage import folders as usage

from e3jax.evidence import health

FOLDER = usage.Folder("few", "mnist", "4+0", 20, 4, 1)
FAST = ("--operations", "PR", "--steps", "1", "--image-size", "8")


def test_a_folder_has_what_was_planned_under_names_that_say_nothing(mnist, tmp_path):
    drawn = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        is_outlier = usage.make(FOLDER._replace(seed=seed), mnist, tmp_path / name)
        assert sum(is_outlier.values()) == 4 and len(is_outlier) == 24
        assert sorted(is_outlier) == [str(tmp_path / name / f"{i:05d}.png") for i in range(24)]
        drawn.append(np.stack([np.asarray(Image.open(path)) for path in is_outlier]))
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])
    known = {
        image.tobytes(): label for image, label in zip(mnist.images, mnist.labels, strict=True)
    }
    labels = [known[image.tobytes()] for image in drawn[2]]
    assert [label not in (4, 0) for label in labels] == list(is_outlier.values())


@pytest.mark.nightly
@pytest.mark.usefixtures("kept")
def test_a_row_judges_the_ranking(mnist, tmp_path):
    row = usage.measure(FOLDER, mnist, FAST)
    assert 0 <= row["auroc"] <= 1 and row["precision"] in (0, 0.25, 0.5, 0.75, 1)
    assert row["precision"] <= row["found_in_twice"] and 0 <= row["flagged"] < 0.5
    assert 0 <= row["least"] <= row["most"] <= 24 and -2.4 < row["agreement"] < 2.4
    rows.append(tmp_path / "rows.csv", [row])
    again = appendix.read_folders(tmp_path / "rows.csv")
    assert "| few | mnist | 4+0 | 20 + 4 | 1, 1 ⚠ |" in appendix.folders_table(again)
    kept = appendix.read_folders(ROOT / "results" / "folders.csv")
    assert set(kept) <= set(again) and list(kept)[:8] == list(again)[:8]


@pytest.mark.nightly
@pytest.mark.usefixtures("kept")
def test_rows_without_and_with_decisions_are_of_all_pictures_that_were_not_judged(mnist):
    options = (*FAST, "--contamination", "0.5")
    undecided, decided = usage.measure_decided(FOLDER, mnist, options)
    assert (undecided["case"], decided["case"]) == ("undecided", "decided")
    assert undecided["judged"] == decided["judged"] <= 4
    # Twelve are flagged: the ten that are judged, of the first ranking, and two more.
    assert undecided["flagged"] == pytest.approx(2 / 14) and 0 <= decided["auroc"] <= 1


@pytest.mark.nightly
@pytest.mark.usefixtures("kept")
def test_folders_that_people_have_are_measured_with_their_features(mnist, tmp_path):
    with zipfile.ZipFile(tmp_path / "digits.zip", "w") as archive:
        truth = usage.make(FOLDER, mnist, tmp_path)
        lines = ["file,outlier,source"]
        for path, is_outlier in truth.items():
            archive.write(path, f"pictures/{Path(path).name}")
            lines.append(f"{Path(path).name},{int(is_outlier)},x")
        archive.writestr("truth.csv", "\n".join(lines))
    np.savez(tmp_path / "x.npz", paths=[*map(str, truth)], features=np.random.rand(24, 3))
    [folder, *others] = usage.real(tmp_path, tmp_path / "x.npz")
    assert folder == ("real + x.npz", "digits", "", 20, 4, 0) and len(others) == 2
    row = usage.measure(folder, tmp_path / "digits.zip", (*FAST, "--features", tmp_path / "x.npz"))
    kinds = ("network", "shape", "coarse", "layout", "statistics", "detail", "facts", "features")
    assert all(0 <= row[f"auroc_{kind}"] <= 1 for kind in (*kinds,))
    none, third = usage.real(tmp_path, shares=[0, 1 / 3])
    assert [none[3:], third[3:]] == [(20, 0, 0), (8, 4, 0)]
    (tmp_path / "third").mkdir()
    kept = usage.extract(third, tmp_path / "digits.zip", tmp_path / "third")
    assert sum(kept.values()) == 4 and len(list((tmp_path / "third").iterdir())) == 12
    with pytest.raises(ValueError, match="has no ZIP files"):
        usage.real(tmp_path / "nothing")


def test_a_verdict_says_what_was_measured():
    kept = real.agreement_table(appendix.read_folders(ROOT / "results" / "real.csv"))
    for line in kept.splitlines()[2:]:
        words, _, span, median = (cell.strip() for cell in line.strip("|").split("|"))
        assert (words, f"{median} % ({span})") in {
            health.verdict_of(agreement) for agreement in (2, 1, 0)
        }


def test_every_folder_of_the_plan_is_another_one():
    plan = usage.plan(usage.CASES)
    assert len(set(plan)) == len(plan) == 3 + 15 + 38 + 6 + 10
    assert usage.plan(["few"]) == [folder for folder in plan if folder.case == "few"]


def test_a_folder_that_has_a_row_is_not_measured_again(tmp_path):
    [done, *rest] = usage.plan(["few"])
    path = tmp_path / "rows.csv"
    assert folders.missing(usage.plan(["few"]), path) == [done, *rest]
    with pytest.raises(FileNotFoundError):
        appendix.read_folders(path)
    rows.append(path, [done._asdict()])
    assert folders.missing(usage.plan(["few"]), path) == rest


def test_what_other_versions_measured_is_measured_again_and_counts_no_more(tmp_path):
    first, second, *_ = usage.plan(["few"])
    path, made = tmp_path / "rows.csv", {"source": "s", "warned": 0, "flagged": 0.1}
    made |= {"precision": 0.5, "found_in_twice": 1.0}
    older = [first._asdict() | made | {"auroc": 0.5, "versions": "jax=0.1 numpy=2"}]
    older += [second._asdict() | made | {"auroc": 0.5, "versions": ""}]  # older than the column
    rows.append(path, older)
    assert folders.missing(usage.plan(["few"]), path)[:2] == [first, usage.plan(["few"])[2]]
    now = first._asdict() | made | {"auroc": 0.9, "versions": versions()}
    rows.append(path, [now])
    assert first not in folders.missing(usage.plan(["few"]), path)
    text = appendix.folders_table(appendix.read_folders(path))
    assert "| 2 | 70.0 |" in text and "different versions" not in text


def test_what_fails_is_one_sentence(mnist):
    with pytest.raises(ValueError, match="e3jax rank failed: error: steps is -1"):
        usage.measure(FOLDER, mnist, ("--steps", "-1"))


def test_tables_of_folders_that_people_have():
    """Two folders, of which one has two seeds, with features and without; four shares."""
    columns = ["case", "dataset", "n_inliers", "n_outliers", "seed", "auroc"]
    lines = [
        ("real", "a", 90, 10, 0, 0.8),
        ("real", "a", 90, 10, 1, 0.9),
        ("real", "b", 50, 5, 0, 1),
    ]
    lines += [("real + m.onnx", *line[1:5], 0.95) for line in lines]
    made = pd.DataFrame(lines, columns=columns).assign(versions="jax=1")
    made["aupr_out"] = made["auroc"] / 2
    for kind in ("network", "shape", "images", "features"):
        made[f"auroc_{kind}"], made[f"aupr_out_{kind}"] = 0.5, 0.25
    shown = real.real_table(made)
    half = "50.0 / 25.0"
    three = f"{half} | {half} | {half}"
    assert f"| a | 90 + 10 | {three} | 85.0 / 42.5 | {half} | 95.0 / 47.5 |" in shown
    assert f"| mean |  | {three} | 92.5 / 46.2 | {half} | 95.0 / 47.5 |" in shown
    shares = [("real, shares", "a", 90, 0, 0, None), ("real, shares", "b", 50, 0, 0, None)]
    shares += [("real, shares", "a", 90, 10, 0, 0.99), ("real, shares", "b", 12, 5, 0, 0.6)]
    told = pd.DataFrame(shares, columns=columns)
    told = told.assign(least=[0, 1, 2, 0], most=[9, 5, 20, 4], flagged=[0, 0.02, 0.05, 0.1])
    intervals = real.interval_table(told)
    assert "| 0 | 1 of 2 | 1.0 to 10.0 | 1.0 |" in intervals
    assert "| 10 | 1 of 1 | 2.0 to 20.0 | 5.0 |" in intervals and "| 30 | 0 of 1 |" in intervals
    agreed = real.agreement_table(told.assign(agreement=[2, 2, 1.5, 0.1]))
    assert "| agree | 1 | 99 to 99 | 99 |" in agreed and "| hardly agree | 1 | 60 to 60 |" in agreed
