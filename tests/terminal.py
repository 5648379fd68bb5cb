"""The command e3jax, as a person types it."""

import csv
import os
import subprocess
import sys

from conftest import PYTHONPATH, keeping

from e3jax import cli

SMALL = ("--network", "tiny-8", "--operations", "PR", "--steps", 3, "--image-size", 8)
# As `python -m e3jax`, with the tests' small network.
PROGRAM = "import runpy, tiny; runpy.run_module('e3jax', run_name='__main__', alter_sys=True)"


def e3jax_command(*arguments, code=0, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": PYTHONPATH} | keeping()
    options = {"capture_output": True, "text": True, "timeout": 300, "env": env} | options
    done = subprocess.run(command, **options)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def here(*arguments) -> int:
    """The same in this process, which has the programs already."""
    return cli.main([str(argument) for argument in arguments])


def rows(report):
    with open(report / "scores.csv", newline="", encoding="utf-8", errors="surrogateescape") as f:
        return list(csv.DictReader(f))
