"""A sweep's files: one atomic pair a finished run, tables and figures built from them.

``folder/runs/NAME.json`` says what was run and what came out, ``NAME.npz`` holds every image's
scores, so that any metric can be computed again. NAME ends in the hash of the run's configuration:
a run is done exactly if its JSON file is there.
"""

import csv
import functools
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import shutil
import subprocess
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from paper import figures, tables

from e3jax import metrics, operations, scoring
from e3jax.files import write_atomically

COLUMNS = (
    "dataset,source,method,network,operations,inlier_class,ratio,seed,protocol,n_inliers,"
    "n_outliers,steps,pretext_accuracy,auroc,aupr_in,aupr_out,train_seconds,score_seconds,"
    "device,precision,versions,commit"
).split(",")
# Raised when a run's files come to hold something else, as when its training serves more methods.
_FORMAT = 2


class Run(NamedTuple):
    """One training (or baseline) on one contaminated set: everything its result depends on.

    ``config`` holds the constants of the protocol, so that changing one makes a new run.
    """

    dataset: str
    source: str
    method: str
    network: str
    operations: str
    inlier_class: int
    ratio: float
    seed: int
    protocol: str
    max_images: int | None
    config: dict[str, Any]

    @property
    def name(self) -> str:
        text = json.dumps([_FORMAT, self._asdict()], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        where = f"{self.dataset}-{self.method}-class{self.inlier_class}-ratio{self.ratio:g}"
        return f"{where}-seed{self.seed}-{digest}"

    @property
    def title(self) -> str:
        """For people who watch."""
        where = f"{self.dataset} class {self.inlier_class} ratio {self.ratio:g}"
        return f"{where} seed {self.seed} {self.method}"


class Folder:
    """A results folder."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.runs = self.path / "runs"
        self.runs.mkdir(parents=True, exist_ok=True)

    def is_done(self, run: Run) -> bool:
        """Whether a run has its result; if so, what a kill may have left beside it is removed."""
        done = (self.runs / f"{run.name}.json").exists()
        if done:
            self._tidy(run)
        return done

    def _tidy(self, run: Run) -> None:
        shutil.rmtree(self.checkpoint(run), ignore_errors=True)
        for rest in (self._failure(run), *self.runs.glob(f"{run.name}.*.partial")):
            rest.unlink(missing_ok=True)

    def checkpoint(self, run: Run) -> Path:
        """Where a run keeps the state of its training while it is not finished."""
        return self.runs / f"{run.name}.state"

    def _failure(self, run: Run) -> Path:
        return self.runs / f"{run.name}.failed"

    def fail(self, run: Run, error: Exception) -> str:
        """Keeps an error's traceback until the run is done; returns the error in one line."""
        text = "".join(traceback.format_exception(error))
        write_atomically(self._failure(run), lambda file: file.write(text.encode()))
        error = getattr(error, "cause", None) or error  # Ray wraps what a task raised
        line = (str(error).strip() or "no message").splitlines()[0]
        return f"{type(error).__name__}: {line}"

    def finish(
        self, run: Run, scores: dict[str, np.ndarray], is_outlier, ids, extra: dict
    ) -> list[dict]:
        """Writes a run's files and returns its rows, one for each name in ``scores``.

        ``extra`` holds further columns: values, or dictionaries of values by method.
        """
        rows = []
        for method, values in scores.items():
            sound = np.isfinite(values).all()
            measured = {
                name: getattr(metrics, name)(values, is_outlier) if sound else float("nan")
                for name in tables.METRICS
            }
            measured |= {c: v[method] if isinstance(v, dict) else v for c, v in extra.items()}
            rows.append(run._asdict() | {"method": method} | measured)
        write_atomically(
            self.runs / f"{run.name}.npz",
            lambda file: np.savez_compressed(file, is_outlier=is_outlier, ids=ids, **scores),
        )
        title = f"{run.dataset}, class {run.inlier_class} as inliers: {run.method}"
        if np.isfinite(scores[run.method]).all():
            figures.plot_scores(
                self.runs / f"{run.name}.png", scores[run.method], is_outlier, title
            )
        # Last: where this file is, the run is done.
        text = json.dumps({"format": _FORMAT, "rows": rows}, indent=1)
        write_atomically(self.runs / f"{run.name}.json", lambda file: file.write(text.encode()))
        self._tidy(run)
        return rows

    def rows(self) -> list[dict]:
        """The rows of all finished runs, in the order of their columns."""
        rows = []
        for path in self.runs.glob("*.json"):
            rows += map(_complete, json.loads(path.read_text())["rows"])
        return sorted(rows, key=lambda row: [str(row[c]) for c in COLUMNS[:10]])

    def write_tables(self) -> str:
        """Builds results.csv, results.md and a figure a data set from all finished runs."""
        while True:
            names = {path.name for path in self.runs.glob("*.json")}
            table = self._write_tables()
            # Another shard may have finished meanwhile, with a table of its own already written.
            if names == {path.name for path in self.runs.glob("*.json")}:
                return table

    def _write_tables(self) -> str:
        rows = self.rows()
        table = tables.markdown(rows)
        write_csv(self.path / "results.csv", rows)
        write_atomically(self.path / "results.md", lambda file: file.write(table.encode()))
        for key, group in tables.comparable(rows).items():
            parts = [key.dataset, f"ratio{key.ratio:g}", *key[4:]]
            parts.append(f"{key.max_images}images" if key.max_images else "")
            name = "-".join(filter(None, parts)).replace(" ", "_")
            group = [row for row in group if row["method"] not in ("e3outlier-pl", "e3outlier-mp")]
            title = f"{key.dataset}, ρ = {key.ratio:.0%}, images from {key.source}"
            figures.plot_overview(self.path / f"{name}.png", group, title)
        return table


def read_csv(path: str | os.PathLike) -> list[dict]:
    """The rows of a results.csv, numbers as numbers, warnings told again from the accuracy."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows = list(map(_complete, rows))
    for row in rows:
        for name in ("inlier_class", "seed", "n_inliers", "n_outliers"):
            row[name] = int(row[name])
        for name in ("ratio", *tables.METRICS):
            row[name] = float(row[name])
        if row["pretext_accuracy"]:
            k = len(operations.paper_operations(row["operations"]))
            row["warning"] = scoring.pretext_health(float(row["pretext_accuracy"]), k)
    return rows


def _complete(row: dict) -> dict:
    """With the precision, of which older rows have no column: their protocols name it."""
    return {"precision": "bfloat16" if "bfloat16" in row["protocol"] else "float32"} | row


def write_csv(path: str | os.PathLike, rows: list[dict], columns: Iterable[str] = COLUMNS) -> None:
    """Writes these columns of rows whole or not at all, floats with six digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([f"{row[c]:.6g}" if isinstance(row[c], float) else row[c] for c in columns])
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def provenance() -> dict[str, str]:
    """Versions and commit, for every row."""
    return {"versions": versions(), "commit": commit()}


@functools.cache
def versions() -> str:
    """Of what a run is computed with."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    found = [f"{name}={importlib.metadata.version(name)}" for name in packages]
    return " ".join([f"python={platform.python_version()}", *found])


@functools.cache
def commit() -> str:
    """Of this repository, with a mark if it was changed since."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        found = ""
    return found or "unknown"
