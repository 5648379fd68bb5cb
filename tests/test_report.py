"""Tables of hand-made rows, and figures that can be opened."""

import matplotlib
import numpy as np
import pytest
from PIL import Image

from e3jax import Operation, operation_set, report


def row(method="e3outlier", inlier_class=0, seed=0, auroc=0.9, **changed):
    learns = method.startswith("e3outlier")
    values = {
        "dataset": "mnist",
        "source": "a test",
        "method": method,
        "network": "wrn-10-4" if learns else "",
        "operations": "RA+IA+PR" if learns else "",
        "inlier_class": inlier_class,
        "ratio": 0.1,
        "seed": seed,
        "protocol": "paper" if learns else "",
        "n_inliers": 450,
        "n_outliers": 50,
        "auroc": auroc,
        "aupr_in": auroc - 0.1,
        "aupr_out": auroc - 0.2,
        "device": "1 x cpu",
        "precision": "float32",
    }
    return values | changed


def tables(rows, text=report.markdown):
    """[{first cell: [other cells]}], a dictionary a table, and the lines around them as text.

    Tables of classes and of means take turns.
    """
    found, around = [], []
    for line in text(rows).splitlines():
        if not line.startswith("|"):
            around.append(line)
        elif not line.startswith("| ---"):
            first, *others = (cell.strip() for cell in line.strip("|").split("|"))
            if first in ("AUROC, inlier class", "method"):
                found.append({})
            assert first not in found[-1]
            found[-1][first] = others
    return found, "\n".join(around)


HEAD = ["AUROC (paper, difference)", "AUPR-in", "AUPR-out", "runs"]


def test_cells_are_means_over_seeds_and_spread_is_over_seeds_of_the_class_mean():
    aurocs = {(0, 0): 0.90, (1, 0): 0.80, (0, 1): 0.96, (1, 1): 0.86, (0, 2): 0.84, (1, 2): 0.92}
    rows = [row(inlier_class=c, seed=s, auroc=value) for (c, s), value in aurocs.items()]
    [classes, means], text = tables(rows)
    # Class means by seed: 85, 91, 88. Their mean is 88, their standard deviation 3.
    assert classes == {"AUROC, inlier class": ["e3outlier"], "0": ["90.0"], "1": ["86.0"]}
    numbers = ["**88.0** ± 3.0 (94.1, -6.1)", "**78.0** ± 3.0", "**68.0** ± 3.0", "6"]
    assert means == {"method": HEAD, "e3outlier": numbers}
    assert "### mnist, ρ = 10 %" in text
    assert "Images from a test; protocol paper, wrn-10-4, RA+IA+PR, 450 inliers a class" in text
    assert "2 class(es), 3 seed(s)" in text and "Devices: 1 x cpu, float32." in text


def test_the_summary_is_the_table_of_means():
    rows = [row(inlier_class=c, seed=s) for c in (0, 1) for s in (0, 1)]
    [classes, means], _ = tables(rows)
    assert tables(rows, report.summary)[0] == [means]


def test_the_papers_numbers_stand_beside_the_means_they_belong_to():
    both = [row(dataset="cifar10", ratio=0.2), row("ssd-if", dataset="cifar10", ratio=0.2)]
    [_, means], _ = tables(both)
    assert means["e3outlier"][:3] == [
        *("**90.0** (79.3, +10.7)", "**80.0** (93.1, -13.1)", "**70.0** (52.7, +17.3)")
    ]
    assert means["ssd-if"][0] == "**90.0** (60.2, +29.8)"
    [_, means], _ = tables([row(dataset="cifar10", ratio=0.15)])
    assert means["e3outlier"][:3] == ["**90.0**", "**80.0**", "**70.0**"]


def test_what_the_paper_reports():
    assert report.PAPER["cifar100", 0.2, "dagmm"] == (53.8, 81.5, 24.7)
    assert report.PAPER["svhn", 0.1, "e3outlier"] == (86.0, None, None)
    assert report.PAPER["cifar10", 0.005, "e3outlier"] == (87.4, None, None)
    assert ("mnist", 0.1, "cae") not in report.PAPER and ("mnist", 0.1, "rdae") not in report.PAPER
    # Six lines of Table 1 are whole; of MNIST and SVHN two cells and one are left; 3 x 5 in text.
    assert len(report.PAPER) == 6 * 7 + 2 * 2 + 2 * 1 + 15
    assert all(50 <= numbers[0] < 100 for numbers in report.PAPER.values())


def test_one_seed_has_no_spread():
    [_, means], _ = tables([row(auroc=0.5), row(inlier_class=1, auroc=0.7)])
    assert means["e3outlier"][1] == "**50.0**"


def test_a_missing_run_is_said_and_its_seed_left_out_of_the_mean():
    rows = [row(inlier_class=c, seed=s, auroc=0.5 + 0.1 * c) for c in (0, 1) for s in (0, 1)]
    rows[-1]["seed"] = 2
    rows.append(row("pixel-if", inlier_class=1, auroc=0.7))
    [classes, means], _ = tables(rows)
    assert classes["AUROC, inlier class"] == ["e3outlier", "pixel-if"]
    assert classes["0"] == ["50.0 (2 of 3 seeds)", "missing"]
    assert classes["1"] == ["60.0 (2 of 3 seeds)", "70.0 (1 of 3 seeds)"]
    assert means["e3outlier"][0] == "**55.0** (94.1, -39.1)"
    assert means["e3outlier"][-1] == "4 of 6, missing: class 0 seed 2, class 1 seed 1"
    missing = "1 of 6, missing: seed 1, seed 2, class 0 seed 0"
    assert means["pixel-if"][::3] == ["incomplete", missing]


def test_many_missing_runs_are_counted():
    rows = [row(inlier_class=c) for c in range(9)] + [row("cae", inlier_class=8)]
    [_, means], _ = tables(rows)
    expected = "1 of 9, missing: class 0 seed 0, class 1 seed 0, class 2 seed 0 and 5 more"
    assert means["cae"][-1] == expected


def test_what_is_not_finite_has_diverged():
    [classes, means], _ = tables([row(auroc=float("nan")), row(inlier_class=1)])
    assert classes["0"] == ["diverged"] and means["e3outlier"][0] == "diverged"


def test_a_warning_marks_its_cell_and_is_quoted_once():
    warning = "pretext accuracy 1.0% is near chance"
    rows = [row(warning=warning), row(inlier_class=1, warning="")]
    rows.append(row(inlier_class=2, warning=warning))
    [classes, means], text = tables(rows)
    assert means["e3outlier"][-1] == "3, 2 ⚠"
    assert classes["0"] == ["90.0 ⚠"] and classes["1"] == ["90.0"]
    assert text.count(warning) == 2 and f"⚠ class 0: {warning}" in text


def of_classes(found):
    """The tables of classes, of all that :func:`tables` found."""
    return found[::2]


def test_baselines_stand_in_every_table_of_the_same_images_and_in_no_other():
    rows = [
        row(auroc=0.9),
        row(auroc=0.8, protocol="quick", network="wrn-10-1"),
        row("pixel-knn", auroc=0.7),
        row(auroc=0.6, ratio=0.2),
        row("pixel-if", auroc=0.5, dataset="svhn"),
    ]
    found, text = tables(rows)
    assert [(table["AUROC, inlier class"], table["0"]) for table in of_classes(found)] == [
        (["e3outlier", "pixel-knn"], ["90.0", "70.0"]),
        (["e3outlier", "pixel-knn"], ["80.0", "70.0"]),
        (["e3outlier"], ["60.0"]),
        (["pixel-if"], ["50.0"]),
    ]
    assert text.count("### ") == 4 and "### svhn, ρ = 10 %" in text


def test_methods_without_a_network_of_choice_stand_with_their_own_protocol_alone():
    rows = [
        row(auroc=0.9),
        row(auroc=0.8, network="resnet-20"),
        row(auroc=0.7, protocol="quick"),
        row("cae", auroc=0.6, protocol="paper"),
        row("cae", auroc=0.5, protocol="quick-9steps"),
        row("pixel-if", auroc=0.4),
    ]
    found, _ = tables(rows)
    assert sorted(table["0"] for table in of_classes(found)) == [
        *(["50.0", "40.0"], ["70.0", "40.0"], ["80.0", "60.0", "40.0"], ["90.0", "60.0", "40.0"])
    ]


def test_runs_on_sets_of_different_sizes_are_never_averaged():
    rows = [row(auroc=0.9, max_images=500), row(auroc=0.5, max_images=None)]
    rows += [row("pixel-if", auroc=0.8, max_images=500), row("pixel-if", auroc=0.4)]
    found, _ = tables(rows)
    assert sorted(table["0"] for table in of_classes(found)) == [["50.0", "40.0"], ["90.0", "80.0"]]


def test_variants_of_e3outlier_stand_first_and_pixels_last():
    methods = ("pixel-if", "ssd-if", "cae", "e3outlier-pl", "e3outlier", "e3outlier-mp")
    [table, _], _ = tables([row(method) for method in methods])
    learnt = ["e3outlier", "e3outlier-mp", "e3outlier-pl", "cae", "ssd-if"]
    assert table["AUROC, inlier class"] == [*learnt, "pixel-if"]


# --- Figures ---------------------------------------------------------------------------------


def assert_one_readable_png(folder, colours):
    """The folder holds one file, a PNG that decodes and is more than a blank sheet."""
    [path] = folder.iterdir()
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG" and min(image.size) > 100
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for colour in colours:
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels - np.array(wanted)) <= 2).all(-1).sum() > 50, colour


def test_scores_are_drawn_in_two_colours(tmp_path):
    scores = np.concatenate([np.linspace(-0.4, 0, 90), np.linspace(-2, -1, 10)])
    report.plot_scores(tmp_path / "scores.png", scores, np.arange(100) >= 90, "title")
    # The inliers' and the outliers' colours, 60 % over white.
    assert_one_readable_png(tmp_path, ["#8faccc", "#f5a4ad"])


def test_scores_that_are_all_the_same_are_drawn_too(tmp_path):
    scores = np.full(20, -4.7, np.float32)
    report.plot_scores(tmp_path / "scores.png", scores, np.arange(20) >= 18, "title")
    assert_one_readable_png(tmp_path, [])


def test_the_overview_has_a_colour_a_method_and_leaves_out_what_is_not_finite(tmp_path):
    rows = [
        row(method, inlier_class, seed, 0.6 + 0.1 * inlier_class + 0.01 * seed)
        for method in ("e3outlier", "pixel-if")
        for inlier_class in (0, 1, 2)
        for seed in (0, 1)
    ]
    rows.append(row("diverged", 0, auroc=float("nan")))
    report.plot_overview(tmp_path / "overview.png", rows, "mnist, ρ = 10%")
    # The first and third of tab20: the methods are e3outlier, diverged, pixel-if.
    assert_one_readable_png(tmp_path, ["#1f77b4", "#ff7f0e"])


def test_the_legend_names_methods_that_did_not_run_on_the_first_class(tmp_path):
    path = tmp_path / "overview.svg"
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        report.plot_overview(path, [row(), row("pixel-knn", inlier_class=1)], "title")
    text = path.read_text()
    assert "e3outlier" in text and "pixel-knn" in text


@pytest.mark.parametrize("channels", [1, 3])
def test_the_sheet_of_views_is_drawn_for_grey_and_colour(tmp_path, channels):
    image = np.zeros((8, 8, channels), np.uint8)
    image[2:6, 2:6, 0] = 255
    operations = operation_set([Operation(), Operation(angle=30), Operation(flip=True)], 8)
    report.plot_views(tmp_path / "views.png", image, operations)
    # Grey is what a rotation shows outside the image.
    colours = ["#808080", "#000000", "#ffffff" if channels == 1 else "#ff0000"]
    assert_one_readable_png(tmp_path, colours)


def test_the_sheet_shows_grey_images_at_their_own_brightness(tmp_path):
    operations = operation_set([Operation(), Operation(flip=True)], 8)
    report.plot_views(tmp_path / "views.png", np.full((8, 8, 1), 200, np.uint8), operations)
    assert_one_readable_png(tmp_path, ["#c8c8c8"])


def test_a_figure_that_cannot_be_drawn_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "scores.png"
    path.write_bytes(b"old")
    scores, is_outlier = np.linspace(-1, 0, 10), np.arange(10) >= 8
    with pytest.raises(ValueError):
        report.plot_scores(path, scores, is_outlier, "mathematics that does not parse: $\\frac$")
    assert [file.name for file in tmp_path.iterdir()] == ["scores.png"]
    assert path.read_bytes() == b"old"


def test_the_paired_difference_is_to_the_best_of_the_others():
    """Differences 0.1, 0.2, 0.3: mean 20 points, standard error 5.77, t of 2 degrees 4.303."""
    rows = [row(inlier_class=c, auroc=0.7 + 0.1 * c) for c in range(3)]
    rows += [row("pixel-if", inlier_class=c, auroc=0.6) for c in range(3)]
    rows += [row("pixel-knn", inlier_class=c, auroc=0.5) for c in range(3)]
    _, text = tables(rows, report.summary)
    assert "e3outlier - pixel-if: +20.0, 95 % interval -4.8 to +44.8" in text
