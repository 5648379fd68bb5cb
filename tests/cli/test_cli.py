"""The command line as a person types it, on files of real digits."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from terminal import SMALL, e3jax_command, here, rows

import e3jax
from e3jax import E3Outlier, cli
from e3jax.work.files import printable, write_csv


@pytest.fixture(scope="module")
def photos(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    (folder / "below").mkdir()
    for i, image in enumerate(digits[:20, ..., 0]):
        Image.fromarray(image).save(folder / ("below" if i > 15 else "") / f"{i}.png")
    Image.fromarray(digits[20, ..., 0]).save(folder / "new\nline ü.png")
    (folder / "letter.png").write_text("Dear all,")
    return folder


@pytest.fixture(scope="module")
def ranked(photos, tmp_path_factory):
    """(report, model, finished process). Three steps teach nothing: exit code 1."""
    out = tmp_path_factory.mktemp("out")
    save = ("--out", out / "report", "--save", out / "model")
    share = ("--contamination", 0.1)
    done = e3jax_command("rank", photos, *SMALL, *share, *save, code=1)
    return out / "report", out / "model", done


def test_rank_reports_all_images_the_most_outlying_first(ranked, photos):
    report, _, done = ranked
    found = rows(report)
    assert len(found) == 21 and [row["rank"] for row in found] == [str(i + 1) for i in range(21)]
    assert [float(r["score"]) for r in found] == sorted(float(r["score"]) for r in found)[::-1]
    assert {row["path"] for row in found} == {
        str(path) for path in photos.rglob("*.png") if path.name != "letter.png"
    }
    assert sum(int(row["outlier"]) for row in found) == 2  # a tenth of 21
    lines = [json.loads(line) for line in (report / "scores.jsonl").read_text().splitlines()]
    assert [(line["path"], line["rank"]) for line in lines] == [
        (row["path"], int(row["rank"])) for row in found
    ]
    assert len(done.stdout.splitlines()) == 20
    assert "2 of 21 images are marked" in done.stderr
    assert "letter.png: not an image" in done.stderr
    assert "warning: pretext accuracy" in done.stderr
    assert sorted(p.name for p in report.iterdir()) == [
        "gallery.html",
        "scores.csv",
        "scores.jsonl",
        "unreadable.csv",
    ]


def test_what_was_not_looked_at_is_said_at_the_end_and_in_the_report(digits, tmp_path, capsys):
    for i, image in enumerate(digits[:4, ..., 0]):
        Image.fromarray(np.uint16(image) * 16).save(tmp_path / f"{i}.png")
    for name in ("a.dng", "b.dng", "c.svg"):
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe.png")
    sentence = "2 .dng files were not looked at: export them as JPEG or PNG"
    arguments = ("--out", tmp_path / "out", "--save", tmp_path / "model")
    here("rank", tmp_path, *SMALL, *arguments)
    told = capsys.readouterr().err.splitlines()
    here("score", tmp_path / "model", tmp_path, "--out", tmp_path / "new")
    for lines in (told, capsys.readouterr().err.splitlines()):
        assert sentence in lines
        assert f"left out: {tmp_path}/pipe.png: not a regular file" in lines
        assert any(line.endswith("from 0 (black) to 4095 (white)") for line in lines)
    for report in ("out", "new"):
        assert f"{tmp_path},{sentence}" in (tmp_path / report / "unreadable.csv").read_text()


def test_a_seed_is_a_seed(photos, tmp_path):
    found = []
    for seed in (0, 0, 1):
        assert here("rank", photos, *SMALL, "--out", tmp_path, "--seed", seed) == 1
        found.append(rows(tmp_path))
    assert found[0] == found[1] != found[2]


def test_score_gives_the_scores_of_rank_also_of_one_image(ranked, photos, tmp_path):
    report, model, _ = ranked
    e3jax_command("score", model, photos, "--out", tmp_path / "all", code=1)
    assert rows(tmp_path / "all") == rows(report)
    (tmp_path / "one").mkdir()
    shutil.copy(photos / "3.png", tmp_path / "one")
    assert here("score", model, tmp_path / "one", "--out", tmp_path / "one") == 1
    [row] = rows(tmp_path / "one")
    expected = {row["path"]: row["score"] for row in rows(report)}[str(photos / "3.png")]
    assert float(row["score"]) == pytest.approx(float(expected), rel=1e-4)  # on two devices here


def test_features_are_evidence_of_rank_and_score(ranked, photos, tmp_path, capsys):
    report, *_ = ranked
    paths = [row["path"] for row in rows(report)]
    vectors = np.float32([[len(path), i] for i, path in enumerate(sorted(paths))])
    vectors[3] = -1000, 5
    np.savez(tmp_path / "x.npz", paths=sorted(paths), features=vectors)
    options = ("--features", tmp_path / "x.npz")
    save = ("--out", tmp_path / "report", "--save", tmp_path / "model")
    assert here("rank", photos, *SMALL, *options, *save) == 1
    assert f"Features of {tmp_path}/x.npz took part" in capsys.readouterr().err
    with_features = rows(tmp_path / "report")
    assert max(with_features, key=lambda row: float(row["features"]))["path"] == sorted(paths)[3]
    assert "features" not in rows(report)[0]
    score = ("score", tmp_path / "model", photos, "--out")
    assert here(*score, tmp_path / "new") == 1  # it knows the file
    assert here(*score, tmp_path / "again", *options) == 1
    assert rows(tmp_path / "new") == rows(tmp_path / "again") == with_features
    (tmp_path / "x.npz").unlink()
    assert here(*score, tmp_path / "lost") == 2
    assert "x.npz does not exist" in capsys.readouterr().err
    assert here("rank", photos, "--features", tmp_path / "x.csv", "--out", tmp_path / "no") == 2
    assert "not of a format of features" in capsys.readouterr().err


def test_decisions_are_taken_into_account(ranked, photos, tmp_path, capsys):
    report, *_ = ranked
    first, second, *others = [row["path"] for row in rows(report)]
    listing = tmp_path / "decisions.csv"
    decided = [(others[-1], "does not belong"), (first, "belongs")]
    write_csv(listing, ("file", "decision"), decided)  # as a spreadsheet does
    out = tmp_path / "report"
    assert here("rank", photos, *SMALL, "--decisions", listing, "--out", out) == 1
    screen = capsys.readouterr()
    assert "2 decisions taken into account: 1 left out of training" in screen.err
    again = rows(out)
    assert {row["path"] for row in again} == {first, second, *others}
    assert (again[0]["path"], again[0]["outlier"]) == (others[-1], "1")
    assert (again[-1]["path"], again[-1]["outlier"]) == (first, "0")
    assert [(row["path"], row["decision"]) for row in again if row["decision"]] == decided
    assert screen.out.splitlines()[0].endswith(printable(others[-1]))
    before = (out / "scores.csv").read_bytes()
    listing.write_text("file,decision\nelsewhere.png,belongs\n")
    assert here("rank", photos, *SMALL, "--decisions", listing, "--out", out) == 2
    assert "elsewhere.png, which is not among the 21 images" in capsys.readouterr().err
    assert (out / "scores.csv").read_bytes() == before
    assert here("rank", photos, "--decisions", tmp_path / "none.csv", "--out", out) == 2
    assert "none.csv does not exist: give the file" in capsys.readouterr().err


def test_rank_that_finds_nothing_says_that_it_cannot_tell(tmp_path, capsys):
    """Stripes, each a little wider than the one before: none stands apart."""
    for i in range(30):
        stripes = np.uint8(np.sin(np.arange(32) / (2 + i / 30)) * 99 + 128)
        Image.fromarray(np.tile(stripes, (32, 1))).save(tmp_path / f"{i}.png")
    here("rank", tmp_path, *SMALL, "--out", tmp_path / "out")
    told = capsys.readouterr().err
    assert "0 of 30 images are marked" in told
    assert re.search(r"Likely not to belong: 0 to \d+ images; none stands apart for sure", told)


def test_a_time_budget_shortens_the_training(photos, tmp_path, capsys):
    arguments = (*SMALL, "--steps", 10_000_000, "--out", tmp_path)
    began = time.monotonic()
    assert here("rank", photos, *arguments, "--time-budget", "6s") == 0
    assert time.monotonic() - began < 60, "ten million steps take hours"
    assert 100 <= int(capsys.readouterr().err.split("training: ")[1].split()[0]) < 10_000_000


def test_views_are_drawn(photos, tmp_path, capsys):
    assert here("views", photos / "3.png", "--out", tmp_path / "views.png") == 0
    assert "111 views" in capsys.readouterr().err
    with Image.open(tmp_path / "views.png") as sheet:
        assert sheet.width > 500


def test_the_version():
    command = [sys.executable, "-m", "e3jax", "--version"]
    assert e3jax.__version__ in subprocess.run(command, capture_output=True, text=True).stdout


# --- Bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["rank", "nowhere"], "nowhere does not exist, expected a folder of images"),
        (["rank", "empty"], "has no image files"),
        (["rank", "single"], "1 of 1 files are readable images, expected at least 2"),
        (["rank", "."], "0 of 2 files are readable"),
        (["rank", "single", "--out", "file"], "file is a file, expected a folder for the report"),
        (["rank", "single", "--contamination", "0.9"], "contamination is 0.9"),
        (
            ["rank", "single", "--contamination", "10%"],
            "invalid outlier share '10%': use e.g. 0.1 or auto",
        ),
        (["rank", "single", "--ray-address", "x:1"], "--ray-address needs --engine ray"),
        (
            ["rank", "single", "--time-budget", "soon"],
            "invalid time 'soon': use e.g. 90s, 5m or 1h",
        ),
        (["rank", "single", "--image-size", "31"], "image_size is 31"),
        (["score", "file", "single"], "file is damaged or not an e3jax detector"),
        (["score", "nowhere", "single"], "No such file or directory: 'nowhere'"),
        (["views", "file.png"], "error: file.png cannot be read (not an image)"),
        (["quarantine", "empty", "--top", "3"], "does not exist, expected a report"),
        (["quarantine", "empty", "--top", "0"], "--top is 0"),
        (["quarantine", "empty", "--undo"], "nothing to undo"),
        (["quarantine", "empty"], "one of the arguments --top --list --undo is required"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    tmp_path, monkeypatch, capsys, digits, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "single"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("text")
    (tmp_path / "file.png").write_text("text")
    Image.fromarray(digits[0, ..., 0]).save(tmp_path / "single" / "x.png")
    if arguments == ["rank", "."]:
        (tmp_path / "single" / "x.png").write_text("text")
    try:
        code = cli.main(arguments)
    except SystemExit as exit:
        code = exit.code
    said = " ".join(capsys.readouterr().err.split())
    assert code == 2 and sentence in said
    assert not list(tmp_path.rglob("scores.csv"))


@pytest.mark.skipif(sys.platform != "linux", reason="Linux limits a program's memory")
def test_too_little_memory_is_one_sentence(photos, tmp_path):
    limited = 'ulimit -v 6000000; exec "$@"'
    command = [sys.executable, "-m", "e3jax", "rank", str(photos), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        ["bash", "-c", limited, "-", *command, "--image-size", "65536"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "not enough memory" in done.stderr
    assert not list(tmp_path.iterdir())


def test_memory_that_ends_in_training_is_one_sentence(photos, tmp_path, monkeypatch, capsys):
    def train(*_, **__):
        raise MemoryError

    monkeypatch.setattr(E3Outlier, "fit_in", train)
    assert here("rank", photos, "--out", tmp_path) == 2
    assert "error: not enough memory: give fewer images" in capsys.readouterr().err


def test_ctrl_c_leaves_no_report(photos, tmp_path):
    # Where the tests run in the background, programs start with Ctrl-C ignored.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from e3jax.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "rank", str(photos), "--out", str(tmp_path / "r")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr.readline().startswith("reading")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in errors
    assert "Interrupted" in errors
    # Nothing, or what the same command goes on from.
    assert {path.name for path in (tmp_path / "r").glob("*")} <= {"unfinished"}
