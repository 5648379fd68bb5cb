"""A command that makes a bank and is killed at any moment makes the same bank when given again."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

# Children of `kills`, which are killed in the code that writes banks; "arrays" calls a function.
PROGRAM = """
import kills, numpy
from e3jax import cli, errors
from e3jax.collection import bank
from e3jax.collection.bank import storage, writing
from e3jax.devices import engines
from e3jax.work import files, locks

kills.WATCHED = {module.__file__ for module in (storage, writing, files, locks)}
writing._SHARD, writing._BLOCK, engines.local = 8, 3, lambda: None
commands = cli.main


def main(arguments):
    if arguments[0] == "bank":
        return commands(arguments)
    images = numpy.random.default_rng(0).integers(0, 256, (20, 32, 32, 1), numpy.uint8)
    try:
        bank.write_arrays(arguments[1], [images[:5], images[5:]])
    except errors.InputError:  # another one is at work
        return 2
    return 0


cli.main = main
storage.arrow()  # imported once, not in each child
kills.main()
"""


class Children:
    """Commands that are killed."""

    def __init__(self, log):
        env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PYTHONWARNINGS": "ignore"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.log = open(log, "w+")  # noqa: SIM115, `close` closes it
        command = [sys.executable, "-c", PROGRAM]
        self.process = subprocess.Popen(command, env=env, stderr=self.log, **pipes)

    def run(self, *commands, at_line=None, after=None, number=signal.SIGKILL):
        commands = [list(map(str, command)) for command in commands]
        request = {"commands": commands, "at_line": at_line, "after": after, "signal": number}
        self.process.stdin.write(f"{json.dumps(request)}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        assert self.process.wait(timeout=60) == 0
        self.log.close()


@pytest.fixture(scope="module")
def children(tmp_path_factory):
    children = Children(tmp_path_factory.mktemp("children") / "errors")
    yield children
    children.close()


def content(folder):
    """What files below a folder hold."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def photos_in(folder):
    """18 files: grey ones, one of colour, two of 16 bits, and one that is no image."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(14):
        Image.fromarray(random.integers(0, 256, (9, 9), np.uint8)).save(folder / f"{i}.png")
    Image.fromarray(random.integers(0, 256, (9, 9, 3), np.uint8)).save(folder / "red.png")
    for name, most in (("1 deep", 4095), ("2 deep", 1023)):
        Image.fromarray(random.integers(0, most, (9, 9), np.uint16)).save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def started(kind, children, tmp_path):
    """What is there before a command, and the command, whose bank is in the folder "banks"."""
    disk = tmp_path / "disk"
    photos, banks = photos_in(disk / "photos"), disk / "banks"
    banks.mkdir()
    command = ["bank", photos, "--out", banks / "bank"]
    if kind == "arrays":
        command = ["arrays", banks / "bank"]
    elif kind == "join":
        for name, files in (("1", "[0-9].png"), ("2", "1[0-9].png")):
            made = ["bank", *sorted(photos.glob(files)), "--out", banks / name]
            assert children.run(made) == [0]
        command = ["bank", banks / "1", banks / "2", "--out", banks / "bank"]
    elif kind != "write":
        assert children.run(command) == [0]
        (photos / "13.png").unlink()
        Image.new("L", (9, 9), 77).save(photos / "12.png")
        Image.fromarray(np.full((9, 9), 60_000, np.uint16)).save(photos / "z deep.png")
        for i in range(3):
            shutil.copy(photos / "red.png", photos / f"z{i}.png")
    if kind == "move":
        disk = disk.rename(tmp_path / "usb")
        command = ["bank", disk / "photos", "--out", disk / "banks" / "bank"]
    return disk, command


def check_again(command, children, disk, expected):
    """After a kill the photos are there, and the command ends as if it had not been killed."""
    photos = disk / "photos"
    assert content(photos) == {p: text for p, text in expected.items() if photos in p.parents}
    assert children.run(command) == [0]
    assert content(disk) == expected


def restore(banks, before):
    shutil.rmtree(banks)
    shutil.copytree(before, banks)


def kill_at_every(step, kind, children, tmp_path, number):
    """Kills a command at every so many lines, and gives it again; returns the number of kills."""
    disk, command = started(kind, children, tmp_path)
    banks, before = disk / "banks", tmp_path / "before"
    shutil.copytree(banks, before)
    assert children.run(command) == [0]
    expected, code, line = content(disk), None, 1 - step
    while code != 0:
        restore(banks, before)
        line += step
        [code] = children.run(command, at_line=line, number=number)
        assert code in (0, -9, 130, 99)
        check_again(command, children, disk, expected)
    return line // step


# How many lines a command runs at least, of those where it may be killed.
KINDS = {"write": 2500, "grow": 3300, "move": 3300, "join": 1200, "arrays": 800}


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_kill_at_any_line_the_same_bank_is_made(children, tmp_path, kind):
    step = KINDS[kind] // 3
    assert kill_at_every(step, kind, children, tmp_path, signal.SIGKILL) >= 2


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("kind", KINDS)
def test_after_a_kill_at_each_of_many_lines_the_same_bank_is_made(children, tmp_path, kind, number):
    kills = kill_at_every(61, kind, children, tmp_path, number)
    assert kills >= KINDS[kind] // 61
    print(kills, "kills")


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
def test_kills_at_random_and_two_commands_at_once_make_the_same_bank(children, tmp_path, kind):
    disk, command = started(kind, children, tmp_path)
    shutil.copytree(disk / "banks", tmp_path / "before")
    began = time.monotonic()
    assert children.run(command) == [0]
    takes, expected = time.monotonic() - began, content(disk)
    draw, kills = random.Random(0), 0
    for _ in range(20):
        restore(disk / "banks", tmp_path / "before")
        commands = [command] * draw.choice([1, 2])
        codes = children.run(*commands, after=draw.uniform(0, 1.2 * takes))
        assert set(codes) <= {0, 2, -9}
        kills += codes.count(-9)
        check_again(command, children, disk, expected)
    assert kills
