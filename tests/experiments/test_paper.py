"""Tables of hand-made rows, what stands where in a figure, and the page of results."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import tables as command
from commands import here
from conftest import ROOT
from paper import appendix, figures, headline, statistics, tables, versions
from PIL import Image
from sweep import rows as csv_rows, store


def row(method="e3outlier", inlier_class=0, seed=0, auroc=0.9, **changed):
    learns = method.startswith(("e3outlier", "ssd"))
    values = {
        "dataset": "mnist",
        "source": "a test",
        "method": method,
        "network": "pwrn-10-2" if learns else "",
        "operations": "RA+IA+PR" if learns else "",
        "inlier_class": inlier_class,
        "ratio": 0.1,
        "seed": seed,
        "train_seed": seed,
        "protocol": "" if method.startswith("pixel") else "quick",
        "max_images": 500,
        "n_inliers": 450,
        "n_outliers": 50,
        "auroc": auroc,
        "aupr_in": auroc - 0.1,
        "aupr_out": auroc - 0.2,
        "device": "1 x cpu",
        "precision": "float32",
        "warning": "",
    }
    return values | changed


def read(rows, summary=False):
    """[{first cell: [other cells]}], a dictionary per table, and the lines around them as text.

    Tables of classes and of means take turns.
    """
    found, around = [], []
    for line in tables.markdown(rows, summary).splitlines():
        if not line.startswith("|"):
            around.append(line)
        elif not line.startswith("| ---"):
            first, *others = (cell.strip() for cell in line.strip("|").split("|"))
            if first in ("AUROC, inlier class", "method"):
                found.append({})
            assert first not in found[-1]
            found[-1][first] = others
    return found, "\n".join(around)


# --- Tables ----------------------------------------------------------------------------------


def test_what_the_paper_reports():
    def paper(*key):
        return tables.PAPER.loc[key].tolist()

    assert paper("cifar100", 0.2, "dagmm") == [53.8, 81.5, 24.7]
    assert paper("svhn", 0.1, "e3outlier")[0] == 86.0
    assert np.isnan(paper("svhn", 0.1, "e3outlier")[1:]).all()
    assert paper("cifar10", 0.005, "e3outlier")[0] == 87.4
    assert not {("mnist", 0.1, "cae"), ("mnist", 0.1, "rdae")} & set(tables.PAPER.index)
    # Six lines of Table 1 are whole; of MNIST and SVHN two cells and one are left; 3 x 5 in text.
    assert len(tables.PAPER) == 6 * 7 + 2 * 2 + 2 * 1 + 15 and tables.PAPER.index.is_unique
    assert tables.PAPER["auroc"].between(50, 100, inclusive="left").all()


def test_cells_are_means_over_seeds_and_spread_is_over_seeds_of_the_class_mean():
    aurocs = {(0, 0): 0.90, (1, 0): 0.80, (0, 1): 0.96, (1, 1): 0.86, (0, 2): 0.84, (1, 2): 0.92}
    rows = [row(inlier_class=c, seed=s, auroc=value) for (c, s), value in aurocs.items()]
    [classes, means], text = read(rows)
    # Class means by seed: 85, 91, 88. Their mean is 88, their standard deviation 3.
    assert classes == {"AUROC, inlier class": ["e3outlier"], "0": ["90.0"], "1": ["86.0"]}
    head = ["AUROC (paper, difference)", "AUPR-in", "AUPR-out", "runs"]
    cells = ["**88.0** ± 3.0 (over all 10 classes: 94.1)", "**78.0** ± 3.0", "**68.0** ± 3.0", "6"]
    assert means == {"method": head, "e3outlier": cells}
    assert "### mnist, ρ = 10 %" in text
    assert "Images from a test; protocol quick, pwrn-10-2, RA+IA+PR, 450 inliers per class" in text
    assert "2 of 10 classes, 3 seed(s)" in text and "Devices: 1 x cpu, float32." in text
    assert read(rows, summary=True)[0] == [means]


def test_the_papers_numbers_stand_beside_means_over_all_classes():
    methods = ("e3outlier", "ssd-if")
    rows = [row(m, c, dataset="cifar10", ratio=0.2) for m in methods for c in range(10)]
    [_, means], _ = read(rows)
    assert means["e3outlier"] == [
        *("**90.0** (79.3, +10.7)", "**80.0** (93.1, -13.1)", "**70.0** (52.7, +17.3)", "10")
    ]
    assert means["ssd-if"][0] == "**90.0** (60.2, +29.8)"
    # CIFAR-100 has twenty classes; of a ratio that the paper does not have there is no number.
    [_, means], _ = read([row(inlier_class=c, dataset="cifar100") for c in range(10)])
    assert means["e3outlier"][0] == "**90.0** (over all 20 classes: 79.2)"
    [_, means], _ = read([r | {"ratio": 0.15} for r in rows])
    assert means["e3outlier"][:3] == ["**90.0**", "**80.0**", "**70.0**"]


def test_a_missing_run_is_said_and_its_seed_left_out_of_the_mean():
    rows = [row(inlier_class=c, seed=s, auroc=0.5 + 0.1 * c) for c in (0, 1) for s in (0, 1)]
    rows[-1]["seed"] = 2
    rows.append(row("pixel-if", inlier_class=1, auroc=0.7))
    [classes, means], _ = read(rows)
    assert classes["AUROC, inlier class"] == ["e3outlier", "pixel-if"]
    assert classes["0"] == ["50.0 (2 of 3 seeds)", "missing"]
    assert classes["1"] == ["60.0 (2 of 3 seeds)", "70.0 (1 of 3 seeds)"]
    # One seed has all classes, so there is no spread.
    assert means["e3outlier"][1:] == [
        *("**45.0**", "**35.0**", "4 of 6, missing: class 0 seed 2, class 1 seed 1")
    ]
    missing = "1 of 6, missing: seed 1, seed 2, class 0 seed 0"
    assert means["pixel-if"][::3] == ["incomplete", missing]


def test_many_missing_runs_are_counted():
    rows = [row(inlier_class=c) for c in range(9)] + [row("cae", inlier_class=8)]
    [_, means], _ = read(rows)
    expected = "1 of 9, missing: class 0 seed 0, class 1 seed 0, class 2 seed 0 and 5 more"
    assert means["cae"][-1] == expected


def test_what_is_not_finite_has_diverged_and_is_never_the_best():
    rows = [row(inlier_class=c) for c in range(2)]
    rows += [row("cae", 0, auroc=np.nan), row("cae", 1), row("drae", 0), row("drae", 1)]
    [classes, means], text = read(rows)
    assert classes["0"] == ["90.0", "diverged", "90.0"] and means["cae"][0] == "diverged"
    assert "e3outlier - drae: +0.0" in text


def test_a_warning_marks_its_cell_and_is_quoted_once():
    warning = "pretext accuracy 1.0% is near chance"
    rows = [row(warning=warning), row(seed=1, warning=warning), row(inlier_class=1, warning="")]
    [classes, means], text = read([*rows, row(inlier_class=2, warning=warning)])
    assert means["e3outlier"][-1].endswith(", 3 ⚠")
    assert classes["0"] == ["90.0 ⚠"] and classes["1"] == ["90.0 (1 of 2 seeds)"]
    assert text.count(warning) == 2 and f"⚠ class 0: {warning}" in text


def test_a_run_that_is_given_twice_is_said():
    [_, means], _ = read([row(auroc=0.7), row(auroc=0.9)])
    assert means["e3outlier"][::3] == ["**80.0** (over all 10 classes: 94.1)", "1, 1 repeated"]


def test_baselines_stand_in_every_table_of_the_same_images_and_in_no_other():
    rows = [
        row(auroc=0.9),
        row(auroc=0.8, protocol="paper", network="wrn-10-4"),
        row("pixel-knn", auroc=0.7),
        row(auroc=0.6, ratio=0.2),
        row("pixel-if", auroc=0.5, dataset="svhn"),
        row(auroc=0.45, network="resnet-20"),
        row("cae", auroc=0.4),
        row("cae", auroc=0.3, protocol="quick-9steps"),
    ]
    found, text = read(rows)
    assert sorted((table["AUROC, inlier class"], table["0"]) for table in found[::2]) == [
        (["cae", "pixel-knn"], ["30.0", "70.0"]),
        (["e3outlier"], ["60.0"]),
        (["e3outlier", "cae", "pixel-knn"], ["45.0", "40.0", "70.0"]),
        (["e3outlier", "cae", "pixel-knn"], ["90.0", "40.0", "70.0"]),
        (["e3outlier", "pixel-knn"], ["80.0", "70.0"]),
        (["pixel-if"], ["50.0"]),
    ]
    assert text.count("### ") == 6 and "### svhn, ρ = 10 %" in text


@pytest.mark.parametrize(
    "other",
    [{"max_images": None}, {"precision": "bfloat16"}, {"device": "1 x H100"}, {"source": "b"}],
    ids=lambda other: next(iter(other)),
)
def test_what_is_not_comparable_never_shares_a_cell(other):
    rows = [row(auroc=0.9), row(auroc=0.5, **other)]
    rows += [row("pixel-if", auroc=0.8), row("pixel-if", auroc=0.4, **other)]
    found, _ = read(rows)
    # Precision says nothing about a method without a training, which counts once per table.
    pixels = {"precision": ["80.0", "80.0"]}.get(next(iter(other)), ["80.0", "40.0"])
    assert sorted((table["0"] for table in found[::2]), reverse=True) == [
        *(["90.0", pixels[0]], ["50.0", pixels[1]])
    ]
    assert len(set(map(figures.overview_name, tables.comparable(rows)))) == 2


def test_pixels_of_another_device_fill_in():
    [table, _], _ = read([row(device="2 x H100"), row("pixel-if", auroc=0.8)])
    assert table["0"] == ["90.0", "80.0"]


def test_variants_of_e3outlier_stand_first_and_pixels_last():
    methods = ("hog-knn", "pixel-if", "ssd-if", "cae", "e3outlier-pl", "e3outlier", "e3outlier+")
    learnt = ["e3outlier", "e3outlier+", "e3outlier-pl", "cae", "ssd-if"]
    assert tables.ordered(methods) == [*learnt, "hog-knn", "pixel-if"]


def test_the_paired_difference_is_to_the_best_of_the_others():
    """Differences 0.1, 0.2, 0.3: mean 20 points, standard error 5.77, t of 2 degrees 4.303."""
    rows = [row(inlier_class=c, auroc=0.7 + 0.1 * c) for c in range(3)]
    rows += [row("pixel-if", inlier_class=c, auroc=0.6) for c in range(3)]
    rows += [row("pixel-knn", inlier_class=c, auroc=0.5) for c in range(3)]
    # The best by far, but of other images.
    rows += [row("drae", inlier_class=c, seed=1, auroc=0.99) for c in range(3)]
    _, text = read(rows, summary=True)
    assert "e3outlier - pixel-if: +20.0, 95 % interval -4.8 to +44.8" in text


UNTRAINED = {"hog-knn": 0.8, "pixel-if": 0.6, "pixel-knn": 0.5}


def headline_rows():
    """E3outlier+ has 0.9; e3outlier 0.6, 0.7, 0.8 on its three classes."""
    rows = [row("e3outlier+", c, auroc=0.9) for c in range(3)]
    rows += [row(inlier_class=c, auroc=0.6 + 0.1 * c) for c in range(3)]
    return rows + [row(m, c, auroc=a, protocol="") for m, a in UNTRAINED.items() for c in range(3)]


def test_the_headline_has_the_best_of_pixels_the_folders_and_the_papers_number():
    rows = [*headline_rows(), row("e3outlier+", auroc=0.1, ratio=0.2)]
    folders = {"": pd.DataFrame({"auroc": [90.0, 80.0], "aupr_out": [50.0, 40.0]})}
    _, _, of_set, of_folders = headline.headline_table(rows, folders).splitlines()
    cells = "60.0 / 40.0 | 80.0 / 60.0 | 70.0 / 50.0 | 90.0 / 70.0 |  |  | 94.1 / –"
    assert of_set == f"| MNIST, 500 images, 3 classes | {cells} |"
    assert of_folders == "| 11 real folders |  |  |  | 85.0 / 45.0 |  |  |  |"


def test_sets_of_all_images_stand_by_themselves_with_what_needs_no_training_on_them():
    every = {"max_images": 0, "protocol": "quick-2600steps"}
    rows = [row("e3outlier+", c, auroc=0.7, **every) for c in range(10)]
    rows += [row("hog-knn", c, auroc=0.5, **every | {"protocol": ""}) for c in range(10)]
    _, _, few, all_images, _ = headline.headline_table([*headline_rows(), *rows], {}).splitlines()
    assert few.startswith("| MNIST, 500 images, 3 classes | 60.0 / 40.0 |")
    found = all_images.split(" | ")
    assert found[0] == "| MNIST, all images, quick, 2600 steps" and found[1] == ""
    assert found[2:5] == ["50.0 / 30.0", "", "70.0 / 50.0"]


def test_differences_are_paired_and_their_unit_is_the_class():
    _, _, auroc, aupr = headline.differences_table(headline_rows()).splitlines()
    assert auroc == (
        "| MNIST, 500 images, 3 classes | AUROC | +20.0 (-4.8 to +44.8) | +10.0 (+10.0 to +10.0) "
        "| +30.0 (+30.0 to +30.0) |  |  |"
    )
    assert aupr.startswith("| MNIST, 500 images, 3 classes | AUPR-out | +20.0 (-4.8 to +44.8) |")


def test_table_1_has_the_papers_number_in_brackets_where_it_gives_one():
    text = headline.reproduction_table([row("cae-if", c, auroc=0.8) for c in range(10)])
    [line] = [line for line in text.splitlines() if line.startswith("| CAE-IF |")]
    assert line.startswith("| CAE-IF | 80.0 (85.5) | – (81.5) | – (82.3) |")


def test_the_whole_is_compared_with_its_halves_class_by_class():
    halves = {"factored": (0.95, 0.5), "descriptors": (0.6, 0.6), "e3outlier+": (0.9, 0.7)}
    rows = [
        row(m, c, auroc=a, protocol="" if m == "descriptors" else "quick")
        for m, of_classes in halves.items()
        for c, a in enumerate(of_classes)
    ]
    *_, line = headline.halves_table(rows).splitlines()
    assert line.endswith("| 80.0 / 60.0 | 72.5 / 52.5 | 60.0 / 40.0 | 1 of 2 classes |")
    *_, combined, _, _ = headline.ingredients_table(rows, {}).splitlines()
    assert combined == "| network and descriptors | 80.0 / 60.0 |  |  |  |"


def of_classes(seeds, method="e3outlier+", **changed):
    """Runs of ten classes, whose AUROC depends on the class and the method, in each seed alike."""
    more = 1 / 20 if method == "e3outlier+" else 0
    aurocs = [0.6 + c / 50 + more * (c % 4) for c in range(10)]
    return [row(method, c, s, a, **changed) for c, a in enumerate(aurocs) for s in seeds]


def summary_of(seeds):
    """A summary of inlier priority with a training per class and seed."""
    trainings = pd.DataFrame({"inlier_class": np.repeat(range(10), len(seeds)), "source": "a test"})
    trainings["seed"] = np.tile(seeds, 10)
    for i, name in enumerate(("magnitude_ratio", "magnitude_ratio_control", "loss_inliers")):
        trainings[f"{name}_first"] = np.sin(trainings["inlier_class"] + i)
    trainings["loss_outliers_first"], trainings["pl_auroc"] = 0.5, trainings["inlier_class"] / 10
    return trainings


INTERVALS = {
    "differences": lambda seeds: headline.differences_table(
        of_classes(seeds) + of_classes(seeds, "hog-knn", protocol="")
    ),
    "under a table": lambda seeds: tables.markdown(
        of_classes(seeds) + of_classes(seeds, "cae"), summary=True
    ).rpartition("\n\n")[2],
    "priority": lambda seeds: appendix.priority_table(summary_of(seeds)).partition("\n")[2],
}


@pytest.mark.parametrize("name", INTERVALS)
def test_seeds_that_say_the_same_make_no_interval_narrower(name):
    """The unit is the class: three equal seeds of ten classes are ten values, as one seed is."""
    one, three = INTERVALS[name]([0]), INTERVALS[name]([0, 1, 2])
    assert one == three and " to " in str(one)


def test_the_interval_is_over_the_means_of_classes():
    """Class means 1, 2 and 6, of unequal numbers of seeds: mean 3, standard error 1.528."""
    index = pd.MultiIndex.from_tuples(
        [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)], names=["inlier_class", "seed"]
    )
    values = pd.Series([0.0, 2, 2, np.nan, 6], index)
    half = 4.302653 * np.std([1, 2, 6], ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(
        statistics.mean_and_interval(values), [3, 3 - half, 3 + half], rtol=1e-6
    )
    assert statistics.interval(values, "+.1f") == "+3.0 (-3.6 to +9.6)"
    assert statistics.interval(values[:2], "+.1f") == "+1.0", "seeds of one class have none"
    assert statistics.interval(None) == ""


def test_the_intervals_of_the_results_are_over_ten_classes():
    """Class by class by another way: a table of class means, and SciPy's own interval."""
    rows = pd.read_csv(ROOT / "results" / "quick.csv").query("ratio == 0.1")
    text = headline.differences_table(store.read_csv(ROOT / "results" / "quick.csv"))
    for dataset, title in headline.SETS.items():
        of_set = rows[rows["dataset"] == dataset]
        means = 100 * of_set.groupby(["inlier_class", "method"])["auroc"].mean().unstack()
        difference = means["e3outlier+"] - means["hog-knn"]
        found = scipy.stats.ttest_1samp(difference, 0).confidence_interval()
        cell = f"{difference.mean():+.1f} ({found.low:+.1f} to {found.high:+.1f})"
        [line] = [line for line in text.splitlines() if f"| {title}, 500 images | AUROC" in line]
        assert line.split(" | ")[3] == cell


# --- Versions ----------------------------------------------------------------------------------

OLD, NEW = "python=3.11.7 jax=0.10.2 numpy=2.4.6", "python=3.12.1 jax=0.11.0 numpy=2.4.6"
NOTE = "⚠ Rows of different versions are averaged: "


def test_a_table_says_that_its_rows_are_of_different_versions():
    rows = [row(inlier_class=c, versions=OLD) for c in (0, 1)] + [row(seed=1, versions=NEW)]
    _, text = read(rows)
    said = "jax 0.10.2 (2 of 3 rows) and 0.11.0 (1 of 3 rows)."
    assert text.count(NOTE) == 1 and said in text and "numpy" not in text
    assert "python 3.11.7 (2 of 3 rows) and 3.12.1 (1 of 3 rows), jax" in text
    [title] = figures.factor_panels(
        tables.frame([*rows, *(r | {"ratio": 0.2} for r in rows)]), "quick", "fig5-ratios"
    )
    assert title.endswith("; rows of different versions")


def test_rows_that_name_fewer_libraries_are_not_of_other_versions():
    rows = [row(versions=OLD), row(seed=1, versions=f"{OLD} scipy=1.17.1"), row(seed=2)]
    rows.append(row(seed=3, versions=OLD.replace("3.11.7", "3.12.1")))  # Python computes nothing
    assert NOTE not in read(rows)[1]
    frames = [pd.DataFrame(rows[:1]), pd.DataFrame(rows[1:3])]
    said = "python 3.11.7 (2 of 3 rows), jax 0.10.2 (2 of 3 rows), numpy 2.4.6 (2 of 3 rows), "
    assert versions.sentence(frames) == said + "scipy 1.17.1 (1 of 3 rows)"


MIXED = {
    "headline": lambda rows: headline.headline_table(rows, {}),
    "differences": lambda rows: headline.differences_table(rows),
    "ingredients": lambda rows: headline.ingredients_table(rows, {}),
    "steps": lambda rows: appendix.steps_table(rows),
    "priority": lambda rows: appendix.priority_table(
        summary_of([0, 1]).assign(versions=[OLD, NEW] * 10)
    ),
    "folders": lambda rows: appendix.folders_table(
        appendix.read_folders(ROOT / "results" / "folders.csv").iloc[:2].assign(versions=[OLD, NEW])
    ),
    "ways to fuse": lambda rows: appendix.fusion_table(
        pd.read_csv(ROOT / "results" / "operations_fused.csv").iloc[:2].assign(versions=[OLD, NEW])
    ),
    "theory": lambda rows: appendix.theory_table(
        pd.read_csv(ROOT / "results" / "theory.csv").iloc[:2].assign(versions=[OLD, NEW])
    ),
}


@pytest.mark.parametrize("name", MIXED)
def test_no_other_table_is_silent_about_versions_either(name):
    times = {"train_seconds": 1.0, "score_seconds": 1.0, "steps": 9, "pretext_accuracy": 0.5}
    rows = [
        row(method, versions=made, seed=seed, **times)
        for method in ("e3outlier+", "factored")
        for seed, made in enumerate((OLD, NEW))
    ]
    assert NOTE + "python 3.11.7" in MIXED[name](rows)


def test_steps_are_compared_by_the_median_of_their_times():
    def runs(steps, auroc, inliers, seconds):
        sizes = {"n_inliers": inliers, "n_outliers": inliers // 9, "steps": steps}
        for c, score_seconds in enumerate(seconds):
            times = {"train_seconds": 1.0, "score_seconds": score_seconds}
            times["pretext_accuracy"] = 0.5
            yield row("e3outlier+", c, auroc=auroc + c / 100, **sizes, **times)
            yield row("factored", c, auroc=auroc - 0.1, **sizes, **times)

    rows = [*runs(800, 0.8, 1800, (50, 4, 5)), *runs(90, 0.7, 1800, (1, 1, 2))]
    _, _, *lines = appendix.steps_table([*rows, *runs(400, 0.6, 450, (9, 0, 1))]).splitlines()
    assert lines == [
        "| 450 + 50 | 400 | 50 | 50.0 / 30.0 | 61.0 / 41.0 | 1.0 |",
        "| 1800 + 200 | 90 | 50 | 60.0 / 40.0 | 71.0 / 51.0 | 1.0 |",
        "| 1800 + 200 | 800 | 50 | 70.0 / 50.0 | 81.0 / 61.0 | 3.0 |",
    ]


def test_tables_from_csv_and_from_json_are_the_same(tmp_path):
    random = np.random.default_rng(0)
    rows = [
        row(m, c, s, random.uniform(), pretext_accuracy=accuracy, **run)
        for m, accuracy in {"e3outlier": 0.02, "pixel-if": ""}.items()
        for c in range(10)
        for s in range(3)
        for run in ({"max_images": None}, {"max_images": 500})
    ]
    unknown = dict.fromkeys(store.COLUMNS, "")
    csv_rows.write(tmp_path / "results.csv", [unknown | r for r in rows], store.COLUMNS)
    again = store.read_csv(tmp_path / "results.csv")
    assert "near chance" in again[0]["warning"]
    rows = [r | {"warning": a["warning"]} for r, a in zip(rows, again, strict=True)]
    assert tables.markdown(rows) == tables.markdown(again)


def test_the_pages_of_results_are_what_the_results_say():
    pages = command.pages(ROOT / "results")
    there = [path for path in (ROOT / "docs").rglob("*.md") if command.MARK in path.read_text()]
    assert {str(path.relative_to(ROOT / "docs")) for path in there} == {*pages}
    for name, text in pages.items():
        said = "run: python experiments/tables.py --write docs"
        assert (ROOT / "docs" / name).read_text() == text, said
    assert len(pages["results.md"].splitlines()) <= 150


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.csv"], "none.csv"),
        (["README.md"], "README.md is not a results.csv"),
        ([], "--write"),
    ],
)
def test_what_is_no_table_of_results_is_one_sentence(arguments, said, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    code, printed, errors = here(monkeypatch, capsys, command.main, *arguments)
    assert (code, printed) == (2, "") and said in errors.splitlines()[-1]


# --- Figures of results ------------------------------------------------------------------------


def assert_png(path, colours=()):
    """A PNG that decodes and is more than a blank sheet."""
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG" and min(image.size) > 100
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for colour in colours:
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels - np.array(wanted)) <= 2).all(-1).sum() > 50, colour


def test_scores_are_drawn_in_two_colours(tmp_path):
    scores = np.concatenate([np.linspace(-0.4, 0, 90), np.linspace(-2, -1, 10)])
    figures.plot_scores(tmp_path / "a.png", scores, np.arange(100) >= 90, "title")
    # The inliers' and the outliers' colours, 60 % over white.
    assert_png(tmp_path / "a.png", ["#8faccc", "#f5a4ad"])
    same = np.full(20, -4.7, np.float32)
    figures.plot_scores(tmp_path / "b.png", same, np.arange(20) >= 18, "title")
    assert_png(tmp_path / "b.png")


def test_the_overview_has_a_colour_per_method_and_leaves_out_what_is_not_finite(tmp_path):
    rows = [
        row(method, inlier_class, seed, 0.6 + 0.1 * inlier_class + 0.01 * seed)
        for method in ("e3outlier", "pixel-if")
        for inlier_class in (0, 1, 2)
        for seed in (0, 1)
    ]
    [drawn] = figures.draw_overviews(tmp_path, [*rows, row("drae", 0, auroc=np.nan)])
    # The first and third of tab20: the methods are e3outlier, drae, pixel-if.
    assert_png(drawn, ["#1f77b4", "#ff7f0e"])
    assert drawn.name == (
        "mnist-ratio0.1-quick-pwrn-10-2-RA+IA+PR-float32-cpu-500images-a_test.png"
    )


def test_the_legend_names_methods_that_did_not_run_on_the_first_class(tmp_path):
    runs = tables.frame([row(), row("pixel-knn", inlier_class=1)])
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figures.plot_overview(tmp_path / "overview.svg", runs, "title")
    text = (tmp_path / "overview.svg").read_text()
    assert "e3outlier" in text and "pixel-knn" in text


# --- Figures of one factor -----------------------------------------------------------------------


def panels(rows, name, protocol="quick"):
    """The figure's panels, each as {series: {x: ([AUROC of each seed], paper)}}."""
    found = {}
    for title, panel in figures.factor_panels(tables.frame(rows), protocol, name).items():
        found[title] = {}
        for (series, x), group in panel.groupby(["series", "x"]):
            [paper] = group["paper"].unique()
            points = found[title].setdefault(series, {})
            points[x] = ([round(v, 6) for v in group["auroc"]], None if np.isnan(paper) else paper)
    return found


def test_a_point_is_the_mean_over_the_classes_that_all_points_have():
    rows = [
        row(inlier_class=c, seed=s, auroc=0.5 + c / 10 + s / 100) for c in (0, 1) for s in (0, 1)
    ]
    rows += [row("pixel-pca", 1, auroc=0.7), row("ssd-if", 1, auroc=0.8, ratio=0.2)]
    rows.append(row("pixel-pca", 1, ratio=0.3))  # where nothing was trained
    assert panels(rows, "fig5-ratios") == {
        "mnist, a test\n500 images, float32, cpu\nclasses 1 of 10": {
            "e3outlier": {10: ([60, 61], 94.1)},
            "pixel-pca": {10: ([70], None)},
            "ssd-if": {20: ([80], None)},
        }
    }


def test_a_seed_without_all_classes_is_left_out():
    rows = [row(inlier_class=c, auroc=0.6) for c in (0, 1)] + [row(seed=1, auroc=0.9)]
    rows += [row(inlier_class=c, network="resnet-20", auroc=0.7) for c in (0, 1)]
    [panel] = panels(rows, "fig6b-networks").values()
    assert panel["E³Outlier"]["pwrn-10-2"] == ([60], None)


@pytest.mark.parametrize(
    "other",
    [{"max_images": None}, {"precision": "bfloat16"}, {"device": "1 x H100"}, {"source": "b"}],
    ids=lambda other: next(iter(other)),
)
def test_what_is_not_comparable_never_shares_a_panel(other):
    rows = [row(ratio=ratio, auroc=0.6) for ratio in (0.1, 0.2)]
    rows += [row(ratio=ratio, auroc=0.8, **other) for ratio in (0.1, 0.2)]
    found = panels(rows, "fig5-ratios").values()
    assert sorted(panel["e3outlier"][20][0] for panel in found) == [[60], [80]]


def test_rows_stand_in_the_figure_of_the_one_factor_they_change():
    changes = [
        {},
        {"operations": "RA"},
        {"operations": "RA", "protocol": "quick-by-epochs"},
        {"network": "resnet-20"},
        {"ratio": 0.2},
        {"method": "ssd-if"},
        {"method": "cae-if", "network": "", "operations": ""},
        {"method": "cae-64", "network": "", "operations": ""},
        {"method": "e3outlier-pl"},
        *({"method": f"e3outlier-epoch{e:02d}", "protocol": "quick-10epochs"} for e in (1, 3)),
        {"network": "resnet-20", "operations": "RA"},
        {"protocol": "quick-20steps"},
    ]
    rows = [row(**changed) for changed in changes]
    found = {name: next(iter(panels(rows, name).values())) for name in figures.FIGURES}
    assert {name: {s: list(of) for s, of in panel.items()} for name, panel in found.items()} == {
        "fig1b-representations": {"isolation forest": ["CAE", "SSD"]},
        "fig5-ratios": {"cae-if": [10], "e3outlier": [10, 20], "ssd-if": [10]},
        "fig6a-operations": {
            "equal steps": ["RA", "RA+IA+PR"],
            "the paper's epochs": ["RA", "RA+IA+PR"],
        },
        "fig6b-networks": {"E³Outlier": ["pwrn-10-2", "resnet-20"]},
        "fig6c-scores": {"E³Outlier": ["NE", "PL"]},
        "fig6d-epochs": {"E³Outlier": [1, 3]},
    }
    assert found["fig6d-epochs"]["E³Outlier"] == {1: ([90], None), 3: ([90], 94.1)}
    assert found["fig6a-operations"]["equal steps"]["RA"][1] is None


def test_the_papers_protocol_has_its_own_lengths_and_network():
    paper = {"protocol": "paper", "network": "wrn-10-4"}
    rows = [row(**paper), row(**paper | {"operations": "RA"}, auroc=0.8)]
    rows.append(row(**paper | {"operations": "RA", "protocol": "paper-equal-steps"}, auroc=0.7))
    [panel] = panels(rows, "fig6a-operations", "paper").values()
    assert panel["the paper's epochs"]["RA"] == ([80], None)
    assert panel["equal steps"]["RA"] == ([70], None)
    rows = [row(**paper), row(**paper | {"network": "resnet-20"})]
    [panel] = panels(rows, "fig6b-networks", "paper").values()
    assert panel["E³Outlier"] == {"resnet-20": ([90], None), "wrn-10-4": ([90], 94.1)}


def test_only_figures_with_something_to_compare_are_drawn(tmp_path):
    rows = [row(method) for method in ("e3outlier", "e3outlier-pl", "e3outlier-mp")]
    rows += [row("pixel-pca"), row("pixel-pca", ratio=0.2), row(ratio=0.2)]
    rows += [row(protocol="paper", network="wrn-10-4", ratio=ratio) for ratio in (0.1, 0.2)]
    drawn = figures.draw(tmp_path / "figures", rows)
    names = ["fig5-ratios-paper.png", "fig5-ratios-quick.png", "fig6c-scores-quick.png"]
    assert [path.name for path in drawn] == names
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == names
    for path in drawn:
        assert_png(path, ["#1f77b4"])


def test_a_table_of_a_factor_has_a_column_per_place():
    rows = [row(ratio=ratio, auroc=4 * ratio) for ratio in (0.05, 0.1, 0.2)] + [row("cae")]
    text = figures.factor_table(tables.frame(rows), "quick", "fig5-ratios")
    head, _, line = text.splitlines()
    assert head == "| images | series | 5 | 10 | 20 |"
    assert line.endswith("| e3outlier | 20.0 | 40.0 | 80.0 |")


# --- Inlier priority ---------------------------------------------------------------------------


def test_means_over_trainings_and_differences_of_pairs():
    columns = "magnitude_ratio_first magnitude_ratio_control_first loss_inliers_second".split()
    columns += ["loss_outliers_second", "pl_auroc"]
    rows = pd.DataFrame([[5, 4, 1, 2, 0.8], [7, 4, 1, 2, 0.8]], columns=columns, dtype=float)
    rows["source"], rows["inlier_class"], rows["seed"] = "a test", [3, 4], 0
    lines = [line.strip("| ").split(" | ") for line in appendix.priority_table(rows).splitlines()]
    found = {name: [cell.strip() for cell in cells] for name, *cells in lines}
    # Of 5 and 7: standard error 1, t of one degree 12.71.
    assert found["magnitude ratio"][0] == "6 (-6.71 to 18.7)"
    assert found["magnitude ratio - magnitude ratio control"][0] == "2 (-10.7 to 14.7)"
    assert found["loss inliers - loss outliers"][1] == "-1 (-1 to -1)"
    assert found["PL AUROC after training"][-1] == "0.8 (0.8 to 0.8)"
    assert "| magnitude ratio | 5 |" in appendix.priority_table(rows[:1])
    # Two seeds of one class say nothing of other classes.
    of_seeds = appendix.priority_table(rows.assign(inlier_class=4, seed=[0, 1]))
    assert "2 training(s) of 1 class(es)" in of_seeds and "| magnitude ratio | 6 |" in of_seeds


def test_the_page_of_inlier_priority_can_be_opened(tmp_path):
    quantities = ("gradient_magnitude", "de_facto_update", "update_cosine", "view_update")
    quantities += ("leave_one_out_update", "loss")
    groups = ("inliers", "outliers", "control_large", "control_small")
    random = np.random.default_rng(0)
    points = pd.DataFrame({"seed": [0, 0, 1, 1], "step": [0, 5, 0, 5]})
    for column in (f"{quantity}_{group}" for quantity in quantities for group in groups):
        points[column] = random.uniform(1, 2, 4)
    scores = pd.DataFrame({"pl": random.uniform(size=40), "is_outlier": [0, 0, 0, 1] * 10})
    for some in (points, points[points["seed"] == 0]):
        figures.plot_priority(tmp_path / "page.png", some, scores, "title")
        assert_png(tmp_path / "page.png", ["#4477aa", "#ee6677", "#aa9900", "#555555"])
