"""Annotations of the library hold; those of arrays are checked while the other tests run."""

import subprocess
import sys

from conftest import ROOT


def test_pyright_finds_no_error():
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout
