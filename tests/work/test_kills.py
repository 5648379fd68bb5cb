"""A kill at any operation on files: the same command then ends as if nothing had been."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, keeping
from PIL import Image

QUICK = ["--network", "tiny-8", "--operations", "PR", "--steps", "4"]
# Of all operations so many are tried, evenly; 0: all of them.
KILLS = int(os.environ.get("E3JAX_KILLS", 12))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a command in a child, perhaps killed, see forks.py; returns its code and operations."""
    env = os.environ | {"E3JAX_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}
    env |= keeping(tmp_path_factory.mktemp("compiled"))
    env |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, ROOT / "tests" / "forks.py"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, **pipes) as process:

        def run(folder, *arguments, kill_at=None):
            request = {"folder": str(folder), "command": list(map(str, arguments))}
            print(json.dumps(request | {"kill_at": kill_at}), file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())

        yield run
        process.stdin.close()


@pytest.fixture(scope="module")
def place(mnist, tmp_path_factory, run):
    """Photos, one of 16 bits, a bank of them and a detector."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "photos").mkdir()
    for i, image in enumerate(mnist.images[:60, ..., 0]):
        Image.fromarray(image).save(folder / "photos" / f"{i}.png")
    Image.fromarray(np.uint16(image) * 16).save(folder / "photos" / "deep.png")
    photos, bank = folder / "photos", folder / "bank"
    run(folder, "bank", photos, "--out", bank)
    run(folder, "rank", bank, "--out", folder / "r", "--save", folder / "model", *QUICK)
    return folder


def content(folder):
    """All that is below a folder, but for what differs in every bank."""
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: p.read_bytes() for name, p in files.items() if not name.startswith("bank/")}


@pytest.mark.nightly
@pytest.mark.parametrize("command", ["rank photos", "rank bank", "score model bank"])
def test_a_kill_at_any_operation_leaves_work_that_goes_on(run, place, tmp_path, command):
    name, *inputs = command.split()

    def start(out, kill_at=None):
        arguments = [name, *(place / i for i in inputs), "--out", tmp_path / out]
        arguments += QUICK if name == "rank" else []
        return run(tmp_path, *arguments, kill_at=kill_at)

    before = content(place)
    code, operations = start("whole")
    assert code in (0, 1) and operations > 30
    whole = content(tmp_path / "whole")
    step = max(operations // KILLS, 1) if KILLS else 1
    killed = range(1, operations + 1, step)
    for kill_at in killed:
        out = f"killed-{kill_at}"
        assert start(out, kill_at) == [-9, kill_at]
        assert start(out)[0] == code, kill_at
        left = content(tmp_path / out)
        assert left.keys() == whole.keys(), kill_at
        assert {n: left[n] == whole[n] for n in whole} == dict.fromkeys(whole, True), kill_at
    print(f"{len(killed)} of {operations} operations")
    assert content(place) == before
