"""Commands of experiments/: started as a person would, or called in this process."""

import os
import signal
import subprocess
import sys
import time

from conftest import ROOT, keeping
from sweep import store


def start(folder, *arguments, script="experiments/benchmark.py", **variables) -> subprocess.Popen:
    """A command over a results folder; ``variables`` are of its environment."""
    # One core: what Ray's workers have for a share of one CPU, so that engines give the same bits.
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "NPROC": "1", "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "experiments")))
    env |= {name: str(value) for name, value in variables.items()}
    env |= keeping(folder.parent / "compiled")  # a kill may leave half a program there
    command = [sys.executable, ROOT / script, *arguments, "--results-dir", folder]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, env=env, **pipes)


def wait_until(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, f"finished too early: {process.communicate()[1]}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def end(process: subprocess.Popen) -> str:
    """Waits for a command that should succeed; returns what it said."""
    try:
        _, errors = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    assert process.returncode == 0, errors
    return errors


def kill(process: subprocess.Popen) -> None:
    """As kill -9 does; it must not have ended before."""
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it finished before it could be killed"


def here(monkeypatch, capsys, main, *arguments) -> tuple[int, str, str]:
    """Exit code, standard output and error of a command's ``main``, in this process."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    try:
        code = main()
    except SystemExit as error:
        code = error.code
    return code, *capsys.readouterr()


def rows(folder) -> list[dict]:
    return store.read_csv(folder / "results.csv")


def untimed(folder) -> list[dict]:
    """What two commands of the same plan must have in common."""
    left_out = ("train_seconds", "score_seconds", "commit")
    return [{c: v for c, v in row.items() if c not in left_out} for row in rows(folder)]
