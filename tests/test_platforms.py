"""What other systems do, simulated on this one: names, forks, and a program that is only read."""

import os
import subprocess
import sys

import pytest
from conftest import PYTHONPATH, ROOT, keeping
from hypothesis import given, strategies
from PIL import Image

from e3jax.quarantine import names

# Windows keeps no such file, whatever its ending and case.
RESERVED = {"con", "prn", "aux", "nul", *(f"{n}{i}" for n in ("com", "lpt") for i in range(1, 10))}


def windows_takes(name):
    stem = name.split(".")[0].rstrip().lower()
    return (
        stem not in RESERVED and not name.endswith((".", " ")) and not set(name) & set('<>:"\\|?*')
    )


@pytest.mark.parametrize("name", ["CON.png", "nul", "com1.jpg", "a.", "photo ", "a. .", "a:b.png"])
def test_names_in_quarantine_are_taken_by_windows(name):
    moved = names.portable(7, f"/photos/{name}")
    assert windows_takes(moved) and not windows_takes(name) and names.number_of(moved) == 7


@given(strategies.text(strategies.characters(codec="utf-8", exclude_characters="/\0"), min_size=1))
def test_any_name_in_quarantine_is_taken_by_windows(name):
    assert windows_takes(names.portable(1, f"/{name}"))


def test_names_that_differ_only_in_case_stay_apart_in_quarantine():
    moved = {names.caseless(names.portable(n, p)) for n, p in enumerate(["/A.png", "/a.PNG"], 1)}
    assert len(moved) == 2


# As on Windows no process can be forked; as in a system's folder no file of e3jax is written.
PROGRAM = """
import os, sys

sys.dont_write_bytecode = True
root = os.environ["ONLY_READ"]


def watch(event, arguments):
    if event == "os.fork":
        raise OSError("this system does not fork")
    if event == "open" and str(arguments[0]).startswith(root):
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        if isinstance(arguments[2], int) and arguments[2] & writes:
            raise PermissionError(f"{arguments[0]} is only read")


sys.addaudithook(watch)
if __name__ == "__main__":
    import tiny
    from e3jax.__main__ import main

    sys.exit(main())
"""


def test_commands_work_without_forks_in_a_program_that_is_only_read(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "photos").mkdir()
    for n in range(6):
        Image.new("L", (16, 16), 40 * n).save(tmp_path / "photos" / f"{n}.png")
    (tmp_path / "program.py").write_text(PROGRAM)
    env = os.environ | keeping() | {"PYTHONPATH": PYTHONPATH, "ONLY_READ": str(ROOT)}
    small = "--network tiny-8 --operations PR --steps 3 --image-size 8".split()
    for command in (
        ["bank", "photos", "--out", "bank", "--image-size", "8"],
        ["rank", "bank", "--out", "report", *small],
        ["quarantine", "report", "--top", "1"],
        ["quarantine", "report", "--undo"],
    ):
        program = [sys.executable, "program.py", *command]
        done = subprocess.run(program, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode in (0, 1), done.stderr  # three steps teach little
    assert len(list((tmp_path / "photos").iterdir())) == 6
