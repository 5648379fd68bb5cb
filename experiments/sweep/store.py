"""A folder of results: one atomic pair of files per finished run, tables and figures made of them.

``folder/runs/NAME.json`` says what was run and what came out, ``NAME.npz`` holds every image's
scores, so that any metric can be computed again. A run is finished exactly if its JSON file is
there. ``NAME.state`` holds an unfinished training, ``NAME.failed`` the traceback of a failed run.
"""

import contextlib
import csv
import json
import os
import re
import shutil
import time
import traceback
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from paper import figures, tables

from e3jax import files, metrics, scoring
from sweep.plan import FORMAT, QUICK_IMAGES, Run, count

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

COLUMNS = (
    "dataset,source,method,network,operations,inlier_class,ratio,seed,train_seed,protocol,"
    "max_images,n_inliers,n_outliers,steps,pretext_accuracy,auroc,aupr_in,aupr_out,train_seconds,"
    "score_seconds,device,precision,versions,commit"
).split(",")
# What a run is told by in tables: of runs that share all of it, the one finished last counts.
_IDENTITY = (*COLUMNS[: COLUMNS.index("n_inliers")], "precision")
_INTEGERS = ("inlier_class", "seed", "train_seed", "n_inliers", "n_outliers")


class Folder:
    """A results folder; any number of commands, on any number of machines, may use it at once."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.runs = self.path / "runs"
        self.runs.mkdir(parents=True, exist_ok=True)
        self._locks = os.open(self.path / ".locks", os.O_RDWR | os.O_CREAT)

    def finished(self) -> set[str]:
        """Names of the finished runs, by one listing; removes what a kill left beside them."""
        there = os.listdir(self.runs)
        done = {file.removesuffix(".json") for file in there if file.endswith(".json")}
        for file in there:
            name = re.sub(r"\.\w+\.\w+\.partial$|\.(state|failed)$", "", file)
            if name != file and name in done:
                shutil.rmtree(self.runs / file, ignore_errors=True)
                with contextlib.suppress(OSError):  # it was a folder
                    (self.runs / file).unlink()
        return done

    def is_finished(self, run: Run) -> bool:
        return (self.runs / f"{run.name}.json").exists()

    def state(self, run: Run) -> Path:
        """Where a run keeps the state of its training while it is not finished."""
        return self.runs / f"{run.name}.state"

    def lock(self, run: Run) -> bool:
        """Takes a run for this process, until :meth:`unlock`; False if another process has it.

        A run's lock is a byte of one file, at the place of its hash. It is the operating system's,
        which frees it when the process ends, however it ends.
        """
        try:
            self._lockf(run, fcntl and fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            text = f"{self.path} has no locks ({error}): let no two commands do the same runs"
            warnings.warn(text, stacklevel=2)
        return True

    def unlock(self, run: Run) -> None:
        with contextlib.suppress(OSError):
            self._lockf(run, fcntl and fcntl.LOCK_UN)

    def _lockf(self, run: Run, how: int | None) -> None:
        if fcntl:
            fcntl.lockf(self._locks, how, 1, int(run.name[-12:], 16))

    def fail(self, run: Run, error: BaseException) -> str:
        """Keeps an error's traceback until the run is done; returns the error in one line."""
        text = "".join(traceback.format_exception(error))
        files.write_text(self.runs / f"{run.name}.failed", text)
        error = getattr(error, "cause", None) or error  # Ray wraps what a task raised
        line = (str(error).strip() or "no message").splitlines()[0]
        return f"{type(error).__name__}: {line}"

    def finish(self, run: Run, scores: dict, is_outlier, ids, measured: dict) -> list[dict]:
        """Writes a run's files and returns its rows, one for each name in ``scores``.

        Args:
          run: what was done.
          scores: [n] by method, smaller = more outlying; the run's own method is drawn.
          is_outlier: bool [n].
          ids: int [n], of the images in their data set.
          measured: further columns: values, or dictionaries of values by method.
        """
        rows, path = [], self.runs / run.name
        arrays = {"is_outlier": is_outlier, "ids": ids, **scores}
        for method, values in scores.items():
            row = run.columns | {"method": method} | dict.fromkeys(tables.METRICS, np.nan)
            row |= {c: v[method] if isinstance(v, dict) else v for c, v in measured.items()}
            if np.isfinite(values).all():
                row |= {m: getattr(metrics, m)(values, is_outlier) for m in tables.METRICS}
            rows.append(row)
        files.write_atomically(f"{path}.npz", lambda file: np.savez_compressed(file, **arrays))
        if np.isfinite(own := scores[run.method]).all():
            title = f"{run.dataset}, class {run.inlier_class} as inliers: {run.method}"
            figures.plot_scores(f"{path}.png", own, is_outlier, title)
        # Last: where this file is, the run is finished.
        about = {"format": FORMAT, "finished": time.time(), "rows": rows}
        files.write_text(f"{path}.json", json.dumps(about, indent=1))
        shutil.rmtree(self.state(run), ignore_errors=True)
        return rows

    def rows(self) -> list[dict]:
        """The rows of all finished runs, as :func:`read_csv` gives them."""
        by_identity, found = {}, []
        for name in self.finished():
            with open(self.runs / f"{name}.json", "rb") as file:
                found.append(json.load(file))
        for run in sorted(found, key=lambda run: run.get("finished", 0)):
            rows = map(_migrate, run["rows"])
            by_identity |= {tuple(str(row[c]) for c in _IDENTITY): row for row in rows}
        rows = (_texts(by_identity[key], COLUMNS) for key in sorted(by_identity))
        return _read(dict(zip(COLUMNS, row, strict=True)) for row in rows)

    def write_tables(self) -> str:
        """Builds results.csv, results.md and a figure per table from all finished runs, if any."""
        names = text = None
        # Another command may finish meanwhile, with a table of its own already written.
        while names != (names := self.finished()):
            if not (rows := self.rows()):
                return ""
            text = tables.markdown(rows)
            write_csv(self.path / "results.csv", rows)
            files.write_text(self.path / "results.md", text)
            figures.draw_overviews(self.path, rows)
        return text


# --- Tables as CSV ---------------------------------------------------------------------------


def read_csv(path: str | os.PathLike) -> list[dict]:
    """The rows of a results.csv of any age, numbers as numbers, warnings told again from them."""
    with open(path, newline="", encoding="utf-8") as file:
        return _read(csv.DictReader(file))


def _read(rows: Iterable[dict[str, str]]) -> list[dict]:
    rows = [_migrate(row) for row in rows]
    for row in rows:
        row |= {name: int(row[name]) for name in _INTEGERS}
        row |= {name: float(row[name]) for name in ("ratio", *tables.METRICS)}
        row["max_images"] = int(row["max_images"]) if row["max_images"] else None
        row["warning"] = _warning(row)
    return rows


def _warning(row: dict) -> str:
    """What is wrong with a row's scores, as far as its columns show."""
    n_in, n_out, *found = (row[name] for name in ("n_inliers", "n_outliers", *tables.METRICS))
    of_equal_scores = (0.5, (1 + n_in / (n_in + n_out)) / 2, (1 + n_out / (n_in + n_out)) / 2)
    equal = all(abs(a - b) < 1e-5 for a, b in zip(found, of_equal_scores, strict=True))
    scores = np.array([0, 0 if equal else 1 + found[0]])
    if (warning := scoring.check_scores(scores)) or not row["pretext_accuracy"]:
        return warning
    return scoring.check_accuracy(float(row["pretext_accuracy"]), count(row["operations"]))


def _migrate(row: dict) -> dict:
    """With the columns that older rows do not have; what they were is told by the others."""
    size = int(row["n_inliers"]) + int(row["n_outliers"])
    quick = row["protocol"].startswith("quick") or size == QUICK_IMAGES
    precision = "bfloat16" if "bfloat16" in row["protocol"] else "float32"
    older = {"precision": precision, "max_images": QUICK_IMAGES if quick else None}
    return older | {"train_seed": row["seed"]} | row


def append_rows(path: str | os.PathLike, columns: Iterable[str], rows: Sequence[dict]) -> None:
    """Adds rows to a CSV file, whole or not at all; its older columns stay, gaps are empty."""
    old, columns = [], list(columns)
    if os.path.exists(path):
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            old = list(reader)
            columns += [name for name in reader.fieldnames or () if name not in columns]
    write_csv(path, [*old, *rows], columns)


def write_csv(path: str | os.PathLike, rows: Sequence[dict], columns: Iterable[str] = COLUMNS):
    """Writes these columns of rows, whole or not at all, floats with six digits."""
    columns = list(columns)
    files.write_csv(path, columns, (_texts(row, columns) for row in rows))


def _texts(row: dict, columns: Iterable[str]) -> list[str]:
    """What a CSV file says of a row."""
    values = (row.get(name) for name in columns)
    return ["" if v is None else f"{v:.6g}" if isinstance(v, float) else str(v) for v in values]
