"""No output of any command of e3jax replaces what is not e3jax's, however it is spelled."""

import os
import shutil
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from conftest import PYTHONPATH, keeping
from PIL import Image

from e3jax import E3Outlier, cli, save, write_gallery
from e3jax.errors import InputError
from e3jax.evidence.health import HealthWarning
from e3jax.work import locks

SMALL = {"network": "tiny-8", "operations": "PR", "steps": 2}
QUICK = ["--network", "tiny-8", "--operations", "PR", "--steps", "2"]
REPORT = ["out/scores.csv", "out/scores.jsonl", "out/unreadable.csv", "out/gallery.html"]
# By name: a command, and what it writes.
COMMANDS = {
    "rank": (["rank", "photos", *QUICK, "--out", "out"], REPORT),
    "rank a bank": (["rank", "bank", *QUICK, "--out", "out"], [*REPORT, "out/scores.parquet"]),
    "score": (["score", "model", "photos", "--out", "out"], REPORT),
    "views": (["views", "photos/0.png", "--out", "out.png"], ["out.png"]),
    "save": (["rank", "photos", *QUICK, "--out", "out", "--save", "new-model"], ["new-model"]),
}


@pytest.fixture(autouse=True)
def small_trainings_are_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HealthWarning)
        yield


@pytest.fixture(scope="module")
def made(digits, tmp_path_factory):
    """Photos and a detector, which tests copy."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "photos").mkdir()
    for i, image in enumerate(digits[:8, ..., 0]):
        Image.fromarray(image).save(folder / "photos" / f"{i}.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HealthWarning)
        save(E3Outlier(**SMALL, random_state=0).fit(folder / "photos"), folder / "model")
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """The current folder, with photos, two banks of some of them, and a detector."""
    shutil.copytree(made, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    assert cli.main(["bank", "photos", "--out", "bank"]) == 0
    assert cli.main(["bank", "photos/3.png", "photos/4.png", "--out", "other"]) == 0
    return tmp_path / "place"


def content(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return {path: os.readlink(path) if path.is_symlink() else path.read_bytes() for path in files}


def refused(command, place, capsys):
    """What is said of a command that is refused in one sentence, and changed nothing."""
    before = content(place)
    capsys.readouterr()
    code = cli.main(command)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1
    assert content(place) == before
    return errors[0]


@pytest.mark.parametrize("what", ["file", "folder", "link to a photo", "link to nothing"])
@pytest.mark.parametrize(
    ("name", "output"), [(name, o) for name, (_, outputs) in COMMANDS.items() for o in outputs]
)
def test_what_is_there_and_not_ours_stays(place, capsys, name, output, what):
    path = place / output
    path.parent.mkdir(exist_ok=True)
    if what == "file":
        path.write_text("years of work")
    elif what == "folder":
        path.mkdir()
        (path / "about.txt").write_text("years of work")
    else:
        path.symlink_to(place / "photos" / ("0.png" if "photo" in what else "none.png"))
    assert path.name in refused(COMMANDS[name][0], place, capsys)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_earlier_output_of_ours_is_replaced(place, name):
    command, outputs = COMMANDS[name]
    assert cli.main(command) in (0, 1)
    first = {output: (place / output).stat().st_ino for output in outputs}
    assert cli.main(command) in (0, 1)
    assert all((place / output).stat().st_ino != first[output] for output in outputs)


@pytest.mark.parametrize("spelled", ["photos/0.png", "photos/../photos/0.png", "link.png"])
@pytest.mark.parametrize("picture", ["photos/0.png", "link.png"])
def test_views_do_not_replace_their_picture(place, capsys, picture, spelled):
    os.symlink("photos/0.png", "link.png")
    said = refused(["views", picture, "--out", spelled], place, capsys)
    assert "is an input of this command" in said


@pytest.mark.parametrize(
    "command",
    [
        ["rank", "photos", *QUICK, "--out", "photos/0.png"],
        ["score", "model", "photos", "--out", "model"],
        ["rank", "photos", *QUICK, "--out", "out", "--save", "photos/0.png"],
        ["rank", "photos", *QUICK, "--out", "out", "--save", "photos"],
        ["bank", "photos", "--out", "photos"],
        ["bank", "photos", "--out", "photos/0.png"],
        ["bank", "photos", "--out", "model"],
        ["bank", "bank", "other", "--out", "bank"],
        ["bank", "bank", "other", "--out", "photos/../bank"],
        ["bank", "bank", "other", "--out", "link"],
        ["bank", "photos/1.png", "photos/2.png", "--out", "bank"],
        ["bank", "photos", "--image-size", "16", "--out", "bank"],
        ["views", "photos/0.png", "--out", "model"],
        ["views", "photos/0.png", "--out", "photos"],
        ["views", "photos/0.png", "--out", "views.jpg"],
    ],
    ids=" ".join,
)
def test_inputs_and_finished_banks_are_no_place_for_outputs(place, capsys, command):
    os.symlink("bank", "link")
    refused(command, place, capsys)


@pytest.mark.parametrize("name", ["rank", "rank a bank", "score"])
def test_folders_of_common_names_beside_a_report_are_the_users(place, name):
    for folder in ("parts", "unfinished", "training", "bank"):
        (place / "out" / folder).mkdir(parents=True)
        for file in ("about.txt", "bank.json", "0000000.npz", "seed.npz", "engine.step"):
            (place / "out" / folder / file).write_text("years of work")
    before = content(place)
    assert cli.main(COMMANDS[name][0]) in (0, 1)
    assert before.items() <= content(place).items()


# Files of 200 bytes at most may be written, or root has to heed what folders allow.
LIMITED = """
import ctypes, resource, sys, tiny
if sys.argv[1] == "disk":
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
elif sys.argv[1] == "folder":
    version, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capget(version, sets) == 0
    sets[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert ctypes.CDLL(None).capset(version, sets) == 0
from e3jax import cli
sys.exit(cli.main(sys.argv[2:]))
"""


def commands_and_limits():
    """Each command on a full disk and in a closed folder; but for nightly, one stands for all."""
    for name in COMMANDS:
        for limit in ("disk", "folder"):
            yield pytest.param(name, limit, marks=[pytest.mark.nightly] * (name != "rank"))


@pytest.mark.parametrize(("name", "limit"), [*commands_and_limits()])
def test_a_full_disk_and_a_folder_that_may_not_be_written_lose_nothing(place, name, limit):
    command, outputs = COMMANDS[name]
    assert cli.main(command) in (0, 1)
    before = content(place)
    folders = [folder for folder, *_ in os.walk(place)]
    for folder in folders:
        os.chmod(folder, 0o555 if limit == "folder" else 0o755)
    env = os.environ | {"PYTHONPATH": PYTHONPATH}
    limited = [sys.executable, "-c", LIMITED, limit, *command]
    done = subprocess.run(limited, env=env, capture_output=True, text=True)
    for folder in folders:
        os.chmod(folder, 0o755)
    # Of a bank, work that a stop left may be there.
    work = place / "out" / "unfinished"
    after = {path: text for path, text in content(place).items() if work not in path.parents}
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert after.keys() == before.keys()
    changed = {str(path.relative_to(place)) for path in before if before[path] != after[path]}
    # What fits may be written before what does not.
    assert changed <= set(outputs) and (limit == "disk" or not changed)


def test_galleries_and_detectors_from_python_ask_too(made, tmp_path):
    images = np.uint8(np.arange(4)[:, None, None] + np.zeros((4, 8, 8)))
    detector = E3Outlier(**SMALL, random_state=0).fit(images)
    (tmp_path / "mine").write_text("years of work")
    for write in (write_gallery, lambda path, ranked: save(detector, path)):
        with pytest.raises(InputError, match="exists and was not written by e3jax"):
            write(tmp_path / "mine", detector.ranking_)
    assert (tmp_path / "mine").read_text() == "years of work"


@pytest.mark.parametrize("first", ["rank", "score", "bank"])
@pytest.mark.parametrize("name", ["rank", "rank a bank", "score"])
def test_two_commands_never_share_a_report_folder(place, capsys, first, name):
    (place / "out").mkdir()
    with locks.held(place / "out", first):
        began = time.monotonic()
        said = refused(COMMANDS[name][0], place, capsys)
        assert time.monotonic() - began < 5
    assert f"another command is at work in out ({first}, process {os.getpid()} on " in said
    assert cli.main(COMMANDS[name][0]) in (0, 1)


def test_shards_share_a_report_folder_with_each_other_alone(place, capsys):
    shard = [*COMMANDS["rank a bank"][0], "--shard", "1/2"]
    (place / "out").mkdir()
    with locks.held(place / "out", "rank", shared=True):
        assert "another command is at work" in refused(COMMANDS["rank"][0], place, capsys)
        assert cli.main(shard) in (0, 1)
    with locks.held(place / "out", "score"):
        refused(shard, place, capsys)


def test_of_two_equal_commands_one_is_refused_and_the_other_ends_as_if_alone(place):
    """Both begin at once, on a bank, whose unfinished work they would share."""
    command = [sys.executable, "-c", LIMITED, "", *COMMANDS["rank a bank"][0]]
    env = os.environ | {"PYTHONPATH": PYTHONPATH} | keeping()
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    both = [subprocess.Popen(command, env=env, **pipes) for _ in range(2)]
    said = [process.communicate(timeout=300)[1] for process in both]
    codes = [process.returncode for process in both]
    if 2 in codes:
        refusal = said[codes.index(2)]
        assert "another command is at work in out (rank, process " in refusal
        codes.remove(2)
    assert set(codes) <= {0, 1} and codes, said
    report = {path: path.read_bytes() for path in sorted((place / "out").iterdir())}
    assert cli.main(COMMANDS["rank a bank"][0]) in (0, 1)
    assert {path: path.read_bytes() for path in sorted((place / "out").iterdir())} == report


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("unreadable.csv", "path,reason\n/x/contract.pdf,signed\n"),
        ("scores.jsonl", '{"rank": 1, "path": "my own"}\n'),
        ("scores.csv", "rank,path,points\n1,a,3\n"),
    ],
)
def test_tables_of_others_that_look_alike_stay(place, capsys, name, text):
    (place / "out").mkdir()
    (place / "out" / name).write_text(text)
    assert name in refused(COMMANDS["rank"][0], place, capsys)


def test_a_folder_in_two_spellings_is_read_once(place, capsys):
    os.symlink("photos", "link")
    command = ["rank", "photos", "photos/../photos", "link", "photos/0.png", *QUICK, "--out", "out"]
    assert cli.main(command) in (0, 1)
    assert "reading: 8 images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("out/scores.csv", "is a part of the report"),
        ("photos/../out/scores.csv", "is a part of the report"),
        ("here/out/gallery.html", "is a part of the report"),
        (f"{'n' * 245}", "is too long a name"),
    ],
)
def test_a_place_for_a_detector_that_cannot_be_is_told_at_once(place, capsys, target, sentence):
    os.symlink(place, "here")
    assert sentence in refused([*COMMANDS["rank"][0], "--save", target], place, capsys)


@pytest.mark.parametrize("target", ["out/model", "photos/../out/model", "here/out/model"])
def test_a_detector_may_be_saved_into_the_report(place, target):
    os.symlink(place, "here")
    assert cli.main([*COMMANDS["rank"][0], "--save", target]) in (0, 1)
    assert (place / "out" / "model").exists()


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize(("command", "codes"), [("rank", {0, 1}), ("no such folder", {2})])
def test_a_full_disk_under_the_output_changes_no_exit_code(place, stream, command, codes):
    # Of the network alone: fewer programs to compile.
    rank = [*COMMANDS["rank"][0], "--evidence", "network"]
    words = rank if command == "rank" else ["rank", "nowhere"]
    program = "import tiny, sys; from e3jax.__main__ import main; sys.exit(main())"
    env = os.environ | {"PYTHONPATH": PYTHONPATH} | keeping()
    other = "stderr" if stream == "stdout" else "stdout"
    with open("/dev/full", "w") as full:
        pipes = {stream: full, other: subprocess.DEVNULL}
        done = subprocess.run([sys.executable, "-c", program, *words], env=env, **pipes)
    assert done.returncode in codes
    assert (place / "out" / "scores.csv").exists() == (command == "rank")
