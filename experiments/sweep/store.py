"""A folder of results: one atomic pair of files per finished run, tables and figures made of them.

``folder/runs/NAME.json`` says what was run and what came out, ``NAME.npz`` holds every image's
scores, so that any metric can be computed again. A run is finished exactly if its JSON file is
there. ``NAME.state`` holds an unfinished training, ``NAME.failed`` the traceback of a failed run.
A name ends in twelve hexadecimal digits, see :attr:`sweep.plan.Run.name`; other files are not ours.
"""

import contextlib
import functools
import json
import os
import re
import time
import traceback
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from paper import figures, tables

from e3jax import metrics
from e3jax.datasets.contamination import Contaminated
from e3jax.errors import InputError
from e3jax.evidence import health
from e3jax.report import sheet
from e3jax.work import files
from sweep import rows
from sweep.plan import FORMAT, Run, count
from sweep.provenance import commit

COLUMNS = """dataset source method network operations inlier_class ratio seed train_seed protocol
max_images n_inliers n_outliers steps pretext_accuracy auroc aupr_in aupr_out train_seconds
score_seconds device precision versions commit""".split()
# What a run is told by in tables: of runs that share all of it, the one finished last counts.
_IDENTITY = (*COLUMNS[: COLUMNS.index("n_inliers")], "precision")
_INTEGERS = "inlier_class seed train_seed max_images n_inliers n_outliers steps".split()
_FLOATS = ["ratio", *tables.METRICS, "pretext_accuracy", "train_seconds", "score_seconds"]
_NUMBERS = dict.fromkeys(_INTEGERS, int) | dict.fromkeys(_FLOATS, float)
# What tells that a file is ours.
_RUN_MARK = '"made_by": "e3jax"'
_SCORES_MARK = "is_outlier.npy"
_FAILED_MARK = "This run of e3jax failed:"
_PAGE_MARK = "<!-- Written by a sweep of e3jax, which writes it anew. -->"
# What a run's folder of an unfinished training holds: its state, and scores of finished epochs.
_STATE = ("state.safetensors", "epoch[0-9][0-9].npz", ".*.e3jax.partial")
# A file of a run, or what a kill left of one that was being written.
_FILE = re.compile(
    r"(?P<partial>\.)?(?P<run>.+-[0-9a-f]{12})\.(?P<kind>json|npz|png|state|failed)"
    r"(?(partial)\.e3jax\.partial)"
)


class Folder:
    """A results folder; any number of commands, on any number of machines, may use it at once.

    Raises:
      InputError: a table there was not written by e3jax.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.runs = self.path / "runs"
        self.csv, self.page = self.path / "results.csv", self.path / "results.md"
        rows.check(self.csv, COLUMNS)
        files.check_output(self.page, _PAGE_MARK)
        self.runs.mkdir(parents=True, exist_ok=True)
        self._locks = os.open(self.path / ".locks", os.O_RDWR | os.O_CREAT)

    def file(self, run: Run, kind: str) -> Path:
        """Where a run has its "json", "npz", "png", "state" or "failed"."""
        return self.runs / f"{run.name}.{kind}"

    def finished(self) -> set[str]:
        """Names of the finished runs, by one listing; removes what a kill left beside them."""
        there = [match for file in os.listdir(self.runs) if (match := _FILE.fullmatch(file))]
        done = {file["run"] for file in there if file["kind"] == "json" and not file["partial"]}
        for file in there:
            is_left = file["partial"] or file["kind"] in ("state", "failed")
            if is_left and file["run"] in done:
                self._remove(file["run"], self.runs / file[0])
        return done

    def _remove(self, name: str, path: Path) -> None:
        """Removes what is left beside a run's JSON file, if that is ours."""
        if not files.is_marked(self.runs / f"{name}.json", _RUN_MARK):
            return
        if path.suffix == ".state":
            _remove_state(path)
        else:
            with contextlib.suppress(OSError):  # another command may remove it, too
                path.unlink()

    def check_outputs(self, runs: Iterable[Run], finished: set[str], device_kind: str) -> None:
        """Raises an InputError if runs or their tables' figures would replace a file of others."""
        for run in runs:
            if run.name not in finished:
                files.check_output(self.file(run, "npz"), _SCORES_MARK)
                files.check_output(self.file(run, "failed"), _FAILED_MARK)
                sheet.check_output(self.file(run, "png"))
        for name in {figures.overview_name(_table_key(run, device_kind)) for run in runs}:
            sheet.check_output(self.path / f"{name}.png")

    def lock(self, run: Run, free: bool = False) -> bool:
        """Takes a run for this process, until :meth:`unlock`; False if another process has it.

        A run's lock is a byte of one file, at the place of its hash. It is the operating system's,
        which frees it when the process ends, however it ends.
        """
        try:
            import fcntl  # Windows has none

            operation = fcntl.LOCK_UN if free else fcntl.LOCK_EX | fcntl.LOCK_NB
            fcntl.lockf(self._locks, operation, 1, int(run.name[-12:], 16))
        except (BlockingIOError, PermissionError):
            return False
        except (OSError, ImportError) as error:
            text = f"{self.path} has no file locks ({error}): never start two commands there"
            warnings.warn(text, stacklevel=1)  # of this line, so that it is told once
        return True

    unlock = functools.partialmethod(lock, free=True)

    def fail(self, run: Run, error: BaseException) -> str:
        """Keeps an error's traceback until the run is done; returns the error in one line."""
        text = "".join([f"{_FAILED_MARK}\n\n", *traceback.format_exception(error)])
        files.write_text(self.file(run, "failed"), text)
        error = getattr(error, "cause", None) or error  # Ray wraps what a task raised
        line = (str(error).strip() or "no message").splitlines()[0]
        return f"{type(error).__name__}: {line}"

    def finish(self, run: Run, outcome: dict[str, dict], data: Contaminated) -> list[dict]:
        """Writes a run's files and returns its rows, one per method.

        Args:
          run: what was done.
          outcome: by method its ``scores`` [n], smaller = more outlying, and columns of its row;
            the scores of the run's own method are drawn.
          data: what it was done on; its images are not needed.
        """
        arrays, made = {"is_outlier": data.is_outlier, "ids": data.ids}, []
        counts = {"n_inliers": data.n_inliers, "n_outliers": data.n_outliers}
        for method, columns in outcome.items():
            row = run.columns | counts | {"commit": commit()} | columns | {"method": method}
            arrays[method] = scores = row.pop("scores")
            row |= dict.fromkeys(tables.METRICS, np.nan)
            if np.isfinite(scores).all():
                row |= {m: getattr(metrics, m)(scores, data.is_outlier) for m in tables.METRICS}
            made.append(row | {"warning": _warning(row)})
        npz = self.file(run, "npz")
        files.write_atomically(npz, lambda file: np.savez_compressed(file, **arrays))
        if np.isfinite(scores := arrays[run.method]).all():
            title = f"{run.dataset}, class {run.inlier_class} as inliers: {run.method}"
            figures.plot_scores(self.file(run, "png"), scores, data.is_outlier, title)
        # Last: where this file is, the run is finished.
        about = {"made_by": "e3jax", "format": FORMAT, "finished": time.time(), "rows": made}
        files.write_text(self.file(run, "json"), json.dumps(about, indent=1))
        _remove_state(self.file(run, "state"))
        return made

    def rows(self) -> list[dict]:
        """The rows of all finished runs, as :func:`read_csv` gives them."""
        runs = [run for name in self.finished() if "rows" in (run := self._read(name))]
        runs.sort(key=lambda run: run.get("finished", 0))
        made = [row for run in runs for row in run["rows"]]
        texts = ({c: rows.text(row[c]) for c in COLUMNS if c in row} for row in made)
        latest = {tuple(str(row[c]) for c in _IDENTITY): row for row in _read(texts)}
        return [latest[key] for key in sorted(latest)]

    def auroc(self, run: Run) -> float:
        """The AUROC of a finished run's own method."""
        first, *_ = self._read(run.name)["rows"]
        return first["auroc"]

    def _read(self, name: str) -> dict:
        path = self.runs / f"{name}.json"
        with contextlib.suppress(ValueError):
            if isinstance(run := json.loads(path.read_bytes()), dict):
                return run
        raise InputError(f"{path} is not a finished run of e3jax: move it to another folder")

    def write_tables(self) -> str:
        """Builds results.csv, results.md and a figure per table from all finished runs, if any."""
        names = text = None
        # Another command may finish meanwhile, with a table of its own already written.
        while names != (names := self.finished()):
            if not (made := self.rows()):
                return ""
            text = tables.markdown(made)
            rows.write(self.csv, made, COLUMNS)
            files.check_output(self.page, _PAGE_MARK)
            files.write_text(self.page, f"{_PAGE_MARK}\n\n{text}")
            figures.draw_overviews(self.path, made)
        return text


def _remove_state(folder: Path) -> None:
    """Removes an unfinished training with what is left of its writing, and nothing else."""
    ours = [path for pattern in _STATE for path in folder.glob(pattern)]
    with contextlib.suppress(OSError):  # another command may remove it, too
        for path in ours:
            path.unlink(missing_ok=True)
        folder.rmdir()


def _table_key(run: Run, device_kind: str) -> tables.TableKey:
    """The table that a run stands in, or would if it were alone."""
    precision = run.config.get("precision", "")
    columns = run.columns | {"precision": precision, "device_kind": device_kind}
    columns["max_images"] = columns["max_images"] or 0
    return tables.TableKey(*(columns[name] for name in tables.TableKey._fields))


def read_csv(path: str | os.PathLike) -> list[dict]:
    """The rows of a results.csv, numbers as numbers, warnings told again from them."""
    return _read(rows.read(path).to_dict("records"))


def _read(texts: Iterable[dict[str, str]]) -> list[dict]:
    """Rows of texts with numbers as numbers; a number is None where a method has none."""
    made = []
    for row in texts:
        row |= {name: number(row[name]) if row[name] else None for name, number in _NUMBERS.items()}
        made.append(row | {"warning": _warning(row)})
    return made


def _warning(row: dict) -> str:
    """What is wrong with a row's scores, as far as its columns show."""
    n_in, n_out, *measured = (row[name] for name in ("n_inliers", "n_outliers", *tables.METRICS))
    of_equal_scores = (0.5, (1 + n_in / (n_in + n_out)) / 2, (1 + n_out / (n_in + n_out)) / 2)
    equal = np.allclose(measured, of_equal_scores, rtol=0, atol=1e-5)
    scores = np.array([0, 0 if equal else 1 + measured[0]])
    if (warning := health.check_scores(scores)) or row["pretext_accuracy"] in ("", None):
        return warning
    return health.check_accuracy(float(row["pretext_accuracy"]), count(row["operations"]))
