"""The plan of the ablations, the figures made of their rows, and trainings scored on the way."""

import ablations
import figures
import jax
import numpy as np
import protocols
import pytest
import runs
import sweep

from e3jax import devices, report, training

QUICK = protocols.Protocol("quick", training.quick_config(), 500)
PAPER = protocols.Protocol("paper", training.paper_config(grey=True), None)


# --- Plans -----------------------------------------------------------------------------------


def test_every_factor_changes_itself_alone():
    [standard] = ablations.variants(QUICK, ["scores"])
    assert standard == (QUICK, "RA+IA+PR", ("e3outlier",), (0.1,))
    found = {f: set(ablations.variants(QUICK, [f])) - {standard} for f in ablations.FACTORS}
    assert [len(variants) for variants in found.values()] == [1, 4, 3, 0, 1]
    for factor, variants in found.items():
        for protocol, names, methods, ratios in variants:
            config = protocol.config
            assert (config.network != "wrn-10-1") == (factor == "networks")
            assert (names != "RA+IA+PR") == (factor == "operations")
            assert (ratios != (0.1,)) == (factor == "ratios")
            assert (methods[0] != "e3outlier") == (factor == "epochs")


@pytest.mark.parametrize("base", [QUICK, PAPER])
@pytest.mark.parametrize("names, k, epochs", [("RA", 72, 4), ("RA+IA", 88, 3)])
def test_operations_are_compared_at_equal_lengths_and_at_the_papers(base, names, k, epochs):
    lengths = {
        variant.protocol.name: variant.protocol.config.num_steps(500, k)
        for variant in ablations.variants(base, ["operations"])
        if variant.operations == names
    }
    whole = base.config.num_steps(500, 111)
    own, other = lengths.pop(base.name), *lengths.values()
    equal, by_epochs = (own, other) if base is QUICK else (other, own)
    assert abs(equal - whole) <= 1
    assert by_epochs == pytest.approx(whole * epochs * k / (3 * 111), abs=1)


# --- Figures ---------------------------------------------------------------------------------


def row(method="e3outlier", inlier_class=0, seed=0, auroc=0.9, **changed):
    learns = method.startswith(("e3outlier", "ssd"))
    values = {
        "dataset": "mnist",
        "source": "a test",
        "method": method,
        "network": "wrn-10-1" if learns else "",
        "operations": "RA+IA+PR" if learns else "",
        "inlier_class": inlier_class,
        "ratio": 0.1,
        "seed": seed,
        "protocol": "" if method.startswith("pixel") else "quick",
        "auroc": auroc,
    }
    return values | changed


def panels(rows, figure, family="quick"):
    return list(figures._panels(rows, family, figures.FIGURES[figure][2]))


def test_a_point_is_the_mean_over_the_classes_that_all_points_have():
    rows = [
        row(inlier_class=c, seed=s, auroc=0.5 + c / 10 + s / 100) for c in (0, 1) for s in (0, 1)
    ]
    rows += [row("pixel-pca", 1, auroc=0.7), row("ssd-if", 1, auroc=0.8, ratio=0.2)]
    [panel] = panels(rows, "fig5-ratios")
    assert panel.title == "mnist, a test\nclasses: 1"
    assert panel.series["e3outlier"] == {10: (pytest.approx([60, 61]), 94.1)}
    assert panel.series["pixel-pca"] == {10: ([pytest.approx(70)], None)}
    assert panel.series["ssd-if"] == {20: ([pytest.approx(80)], None)}


def test_a_seed_without_all_classes_is_left_out():
    rows = [row(inlier_class=c, auroc=0.6) for c in (0, 1)] + [row(seed=1, auroc=0.9)]
    rows += [row(inlier_class=c, network="resnet-20", auroc=0.7) for c in (0, 1)]
    [panel] = panels(rows, "fig6b-networks")
    assert panel.series["NE"]["wrn-10-1"].values == [pytest.approx(60)]


def test_rows_stand_in_the_figure_of_the_one_factor_they_change():
    changes = [
        {},
        {"operations": "RA"},
        {"operations": "RA", "protocol": "quick-by-epochs"},
        {"network": "resnet-20"},
        {"ratio": 0.2},
        {"method": "ssd-if"},
        {"method": "cae-if", "network": "", "operations": ""},
        {"method": "e3outlier-pl"},
        *({"method": f"e3outlier-epoch{e:02d}", "protocol": "quick-10epochs"} for e in (1, 3)),
        {"network": "resnet-20", "operations": "RA"},
        {"protocol": "quick-20steps"},
    ]
    rows = [row(**changed) for changed in changes]
    found = {name: panels(rows, name)[0].series for name in figures.FIGURES}
    places = {name: {s: list(points) for s, points in of.items()} for name, of in found.items()}
    assert places == {
        "fig1b-representations": {"isolation forest": ["CAE", "SSD"]},
        "fig5-ratios": {"e3outlier": [10, 20], "ssd-if": [10], "cae-if": [10]},
        "fig6a-operations": {
            "equal steps": ["RA", "RA+IA+PR"],
            "the paper's epochs": ["RA", "RA+IA+PR"],
        },
        "fig6b-networks": {"NE": ["resnet-20", "wrn-10-1"]},
        "fig6c-scores": {"E³Outlier": ["PL", "NE"]},
        "fig6d-epochs": {"NE": [1, 3]},
    }
    assert found["fig6d-epochs"]["NE"][3].paper == 94.1
    assert found["fig6d-epochs"]["NE"][1].paper is None


def test_the_papers_protocol_has_its_own_lengths_and_network():
    paper = {"protocol": "paper", "network": "wrn-10-4"}
    rows = [row(**paper), row(**paper | {"operations": "RA"}, auroc=0.8)]
    rows.append(row(**paper | {"operations": "RA", "protocol": "paper-equal-steps"}, auroc=0.7))
    [panel] = panels(rows, "fig6a-operations", "paper")
    assert panel.series["the paper's epochs"]["RA"].values == [pytest.approx(80)]
    assert panel.series["equal steps"]["RA"].values == [pytest.approx(70)]
    rows = [row(**paper), row(**paper | {"network": "resnet-20"})]
    [panel] = panels(rows, "fig6b-networks", "paper")
    assert panel.series["NE"]["wrn-10-4"].paper == 94.1


def test_only_figures_with_something_to_compare_are_drawn(tmp_path):
    rows = [row(method) for method in ("e3outlier", "e3outlier-pl", "e3outlier-mp")]
    rows += [row("pixel-pca"), row("pixel-pca", ratio=0.2)]
    rows.append(row(protocol="paper", network="wrn-10-4"))
    drawn = figures.draw(tmp_path, rows)
    names = ["fig5-ratios-paper.png", "fig5-ratios-quick.png", "fig6c-scores-quick.png"]
    assert [path.name for path in drawn] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert min(path.stat().st_size for path in drawn) > 5000


def test_a_page_has_lines_for_numbers_names_for_names_and_the_papers_points(tmp_path):
    point = report.Point
    by_ratio = report.Panel("digits", {"a": {5: point([80, 84], None), 10: point([70], 75.0)}})
    for xs in ("5", "10"), (5, 10):
        of = {name: dict(zip(xs, p.values(), strict=True)) for name, p in by_ratio.series.items()}
        page = tmp_path / "page.svg"
        report.plot_factor(page, [by_ratio._replace(series=of)] * 2, "A page", "ρ")
        assert page.stat().st_size > 5000


# --- Trainings that are scored on the way ------------------------------------------------------


def small_run(method, **changed) -> sweep.Run:
    config = training.TrainConfig(
        network="wrn-10-1", optimizer="adam", batch_size=32, **{"epochs": 10} | changed
    )
    described = {"network": "wrn-10-1", "operations": "PR", "protocol": "test"}
    described["config"] = config._asdict()
    where = {"dataset": "mnist", "source": "", "inlier_class": 4, "ratio": 0.1, "seed": 0}
    return sweep.Run(method=method, max_images=None, **where, **described)


class Interrupted(Exception):
    pass


class Bar:
    """Counts the work it is told of; interrupts a run that has come to ``stop``."""

    def __init__(self, stop: list[str] | None = None):
        self.done, self.notes, self.stop = 0, [], stop

    def advance(self, work, note):
        self.done += work
        self.notes.append("scoring" if note == "scoring" else "training")
        if self.notes == self.stop:
            raise Interrupted

    def skip(self, work):
        self.done += work


def do(run, images, bar=None, state=None):
    mesh = devices.device_mesh(jax.devices()[:1])
    return runs.do(runs.Task(run, images, mesh, bar or Bar(), state))


@pytest.fixture(scope="module")
def few(digits):
    return digits[:16]


@pytest.fixture(scope="module")
def undisturbed(few):
    """What ten epochs come to, and the bar that watched them."""
    bar = Bar()
    return do(small_run("e3outlier-epoch10"), few, bar), bar


@pytest.fixture(scope="module")
def ten_epochs(undisturbed):
    return undisturbed[0]


@pytest.mark.parametrize("epoch", [1, 3])
def test_scores_on_the_way_are_those_of_a_training_of_that_length(few, ten_epochs, epoch):
    method = f"e3outlier-epoch{epoch:02d}"
    alone = do(small_run("e3outlier", epochs=epoch), few)
    np.testing.assert_array_equal(ten_epochs.scores[method], alone.scores["e3outlier"])
    for column in ("steps", "pretext_accuracy"):
        assert ten_epochs.measured[column][method] == pytest.approx(alone.measured[column])
    assert alone.measured["steps"] == -(-epoch * 16 * 23 // 32)


# An epoch: ten steps, the last one, the scores. The state is saved after either, not the scores.
EPOCH = ["training", "training", "scoring"]


@pytest.mark.parametrize("stop, scored", [(3 * EPOCH + EPOCH[:2], 3), (10 * EPOCH, 9)])
def test_interrupted_on_the_way_it_continues(few, ten_epochs, tmp_path, stop, scored):
    """Within the fourth epoch, and while the last one is scored."""
    run, state = small_run("e3outlier-epoch10"), tmp_path / "state"
    with pytest.raises(Interrupted):
        do(run, few, Bar(stop), state)
    bar = Bar()
    again = do(run, few, bar, state)
    for method, values in ten_epochs.scores.items():
        np.testing.assert_array_equal(again.scores[method], values)
    assert again.measured["pretext_accuracy"] == ten_epochs.measured["pretext_accuracy"]
    assert bar.notes.count("scoring") == 10 - scored


def test_the_bar_is_told_of_the_whole_cost(few, undisturbed):
    run, bar = small_run("e3outlier-epoch10"), undisturbed[1]
    assert bar.done == runs.TRAININGS[run.method].cost(run, len(few))


def test_a_rate_that_falls_to_zero_is_made_constant_for_ten_epochs():
    described = runs.TRAININGS["e3outlier-epoch10"].describe(QUICK, "RA")
    config = training.TrainConfig(**described["config"])
    assert (config.schedule, config.learning_rate, config.steps) == ("constant", 1e-3, None)
    assert (config.epochs, described["protocol"]) == (10, "quick-10epochs")
    described = runs.TRAININGS["e3outlier-epoch10"].describe(PAPER, "RA")
    assert training.TrainConfig(**described["config"]) == PAPER.config._replace(epochs=10)


def test_rows_have_what_was_measured_of_their_own_method(tmp_path):
    run, is_outlier = small_run("a"), np.arange(4) > 2
    scores = {name: np.arange(4.0) for name in "ab"}
    measured = {"steps": {"a": 1, "b": 2}, "warning": "", "pretext_accuracy": 0.5}
    rows = sweep.Folder(tmp_path).finish(run, scores, is_outlier, [""] * 4, measured)
    assert [(r["method"], r["steps"], r["warning"]) for r in rows] == [("a", 1, ""), ("b", 2, "")]


# --- The command -------------------------------------------------------------------------------


@pytest.mark.campaign
def test_the_command_trains_and_draws(run_script, tmp_path):
    arguments = ("--dataset", "mnist", "--source", "embedded", "--protocol", "quick")
    small = ("--max-images", 20, "--steps", 10, "--classes", 1, "--results-dir", tmp_path)
    command = ("experiments/ablations.py", *arguments, *small, "--factors")
    done = run_script(*command, "scores", plugin=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "fig6c-scores-quick-10steps.png").stat().st_size > 5000
    # One of the other four trainings is enough to see that they are others.
    done = run_script(*command, "operations", "scores", "--shard", "4/5")
    assert done.returncode == 0, done.stderr
    assert "Plan: 1 runs of shard 4 of 5, 0 of them finished before" in done.stderr
    assert "Protocol: quick-10steps-by-epochs (wrn-10-1, 72 operations, adam, 9 st" in done.stderr
    assert (tmp_path / "fig6a-operations-quick-10steps.png").stat().st_size > 5000
    done = run_script(
        "experiments/tables.py", tmp_path / "results.csv", "--figures", tmp_path / "again"
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(list((tmp_path / "again").iterdir())) == 2
    done = run_script(*command, "colours")
    assert done.returncode == 2 and "invalid choice: 'colours'" in done.stderr


def test_too_few_images_for_a_ratio_are_one_sentence(run_script, tmp_path):
    small = ("--source", "embedded", "--max-images", 40, "--results-dir", tmp_path)
    done = run_script("experiments/ablations.py", "--dataset", "mnist", *small)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "max_images is 40" in done.stderr and not list(tmp_path.rglob("*.json"))
