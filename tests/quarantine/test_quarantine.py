"""Quarantine is a transaction: whatever stops it, every file is whole at one of its two places."""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from e3jax import cli, quarantine
from e3jax.cli import source
from e3jax.collection import finding
from e3jax.errors import InputError
from e3jax.evidence.model import Explanation
from e3jax.quarantine import commands, moving
from e3jax.report import writing
from e3jax.report.ranking import Ranking
from e3jax.work import exits, files, locks

NAMES = ("a.png", "b/a.png", "ü\n.png", "d.png", "e.png")
HERE = ("one file system", "two file systems")


def write_report(folder, paths):
    """A report as rank leaves it."""
    folder.mkdir(parents=True)
    scores = -np.arange(len(paths), dtype=float)
    evidence = Explanation(None, None, 0, None, "squash", {})
    paths = np.array([str(path) for path in paths])
    writing.write_tables(
        folder, Ranking(paths, np.arange(len(paths)), scores, evidence, 0, [], None)
    )
    return folder


def photos_of(folder, names=NAMES):
    """Files, each with content of its own."""
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"content of %b\n" % os.fsencode(path.relative_to(folder)) * 9)
    return paths


def content(*folders):
    """What files hold, without the tables of reports and the lists of quarantines."""
    ours = ("scores.csv", "scores.jsonl", "unreadable.csv", "manifest.json")
    found = {p for folder in folders for p in folder.rglob("*") if p.is_file() or p.is_symlink()}
    return {
        str(p): f"-> {os.readlink(p)}" if p.is_symlink() else p.read_bytes()
        for p in sorted(found)
        if p.name not in ours
    }


def moves(report):
    path = report / "quarantine" / "manifest.json"
    return json.loads(path.read_text())["moves"] if path.exists() else []


def run(*arguments):
    return cli.main(["quarantine", *map(str, arguments)])


def check_list(before, photos, report, exact=True):
    """Every file is whole at exactly one of its two places; the list says what is in quarantine.

    Unless ``exact`` it may say more, which is where it was: a full disk takes no new list.
    """
    aside = {str(report / "quarantine" / move["name"]): move["path"] for move in moves(report)}
    now = content(photos, report)
    assert {aside.get(path, path): text for path, text in now.items()} == before
    assert len(now) == len(before)
    if exact:
        assert aside.keys() <= now.keys()


@pytest.fixture
def elsewhere(tmp_path):
    """A folder on another file system."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm")) if os.path.isdir("/dev/shm") else None
    if folder is None or folder.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs /dev/shm as another file system")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=HERE)
def place(request, tmp_path):
    """Where reports go: on the photos' file system, or on another one."""
    return tmp_path if request.param == HERE[0] else request.getfixturevalue("elsewhere")


# --- There and back ----------------------------------------------------------------------------


def test_files_move_aside_and_back(tmp_path, place):
    paths = photos_of(tmp_path / "photos")
    report = write_report(place / "report", paths)
    before = content(tmp_path, place)
    assert run(report, "--top", 2) == 0
    aside = report / "quarantine"
    assert sorted(os.listdir(aside)) == ["00001-a.png", "00002-a.png", "manifest.json"]
    assert not paths[0].exists() and not paths[1].exists()
    # Again, and further: what is aside already counts.
    assert run(report, "--top", 3) == 0
    assert len(os.listdir(aside)) == 4
    check_list(before, tmp_path / "photos", report)
    assert run(report, "--undo") == 0
    assert content(tmp_path, place) == before and not aside.exists()


def test_nothing_is_overwritten(tmp_path, capsys):
    paths = photos_of(tmp_path / "photos")
    report = write_report(tmp_path / "report", paths)
    (report / "quarantine").mkdir()
    (report / "quarantine" / "00001-a.png").write_text("mine")
    before = content(tmp_path)
    assert run(report, "--top", 2) == 2
    assert "holds files that quarantine did not move there" in capsys.readouterr().err
    assert content(tmp_path) == before and not moves(report)
    (report / "quarantine" / "00001-a.png").unlink()
    assert run(report, "--top", 1) == 0
    (report / "quarantine" / "00002-a.png").write_text("mine")
    before = content(tmp_path)
    assert run(report, "--top", 2) == 2
    assert "there is another file at" in capsys.readouterr().err
    assert content(tmp_path) == before and len(moves(report)) == 1
    (report / "quarantine" / "00002-a.png").unlink()
    assert run(report, "--top", 2) == 0
    paths[1].write_text("new")
    before = content(tmp_path)
    assert run(report, "--undo") == 2
    assert content(tmp_path) == before and len(moves(report)) == 2
    assert run(report, "--top", 3) == 3, "and the new one would have nowhere to go back to"
    assert f"{paths[1]} is a second file of that name" in capsys.readouterr().err
    assert paths[1].read_text() == "new" and not paths[2].exists()


def test_a_name_taken_after_the_check_is_not_overwritten(tmp_path, place, monkeypatch):
    """Also where the file system has no rename that refuses to, as some network ones."""
    paths = photos_of(tmp_path / "photos")
    report = write_report(place / "report", paths)

    def check(targets):
        Path(list(targets)[1]).write_text("somebody else's")

    monkeypatch.setattr(commands, "_check_free", check)
    for platform in (sys.platform, "another"):
        monkeypatch.setattr(sys, "platform", platform)
        assert run(report, "--top", 3) == 3
        taken = report / "quarantine" / "00002-a.png"
        assert taken.read_text() == "somebody else's" and paths[1].exists()
        taken.unlink()
        monkeypatch.undo()
        assert run(report, "--undo") == 0
        monkeypatch.setattr(commands, "_check_free", check)


def test_without_a_rename_that_refuses_to_overwrite_files_move_too(tmp_path, place, monkeypatch):
    paths = photos_of(tmp_path / "photos")
    report = write_report(place / "report", paths)
    before = content(tmp_path, place)
    monkeypatch.setattr(sys, "platform", "another")
    assert run(report, "--top", 4) == 0
    check_list(before, tmp_path / "photos", report)
    assert run(report, "--undo") == 0
    assert content(tmp_path, place) == before


def test_times_rights_and_links_are_kept(tmp_path, place):
    first, link, gone = paths = [tmp_path / "photos" / f"{name}.png" for name in "abc"]
    photos_of(tmp_path / "photos", ["a.png"])
    first.chmod(0o640)
    os.utime(first, ns=(10**18 + 7, 10**18 + 9))
    link.symlink_to("a.png")
    gone.symlink_to("/nowhere/at.png")
    report = write_report(place / "report", paths)
    before, told = content(tmp_path, place), first.stat()
    assert run(report, "--top", 3) == 0
    moved = (report / "quarantine" / "00001-a.png").stat()
    assert run(report, "--undo") == 0
    assert content(tmp_path, place) == before
    for stat in (moved, first.stat()):
        assert (stat.st_mtime_ns, stat.st_mode) == (told.st_mtime_ns, told.st_mode)


@pytest.mark.parametrize("name", ["x" * 251 + ".png", "ü" * 125 + ".png", "Ж😀" * 41 + ".jpeg"])
def test_long_names_are_shortened_and_come_back_whole(tmp_path, place, name):
    paths = photos_of(tmp_path / "photos", ["a.png", name])
    sidecar = tmp_path / "photos" / (os.path.splitext(name)[0] + ".XMP")
    sidecar.write_text("five stars")
    report = write_report(place / "report", paths)
    before = content(tmp_path, place)
    assert run(report, "--top", 2) == 0
    found = sorted(os.listdir(report / "quarantine"))
    assert len(found) == 4 and found[1].startswith("00002-") and found[1].endswith(name[-4:])
    assert all(len(os.fsencode(name)) <= 255 for name in found)
    check_list(before, tmp_path / "photos", report)
    assert run(report, "--undo") == 0
    assert content(tmp_path, place) == before


def test_names_that_other_file_systems_refuse_are_replaced(tmp_path):
    paths = photos_of(tmp_path / "photos", ['a:"<b>|?*\\\n.png', os.fsdecode(b"\xff\xfe.png")])
    report = write_report(tmp_path / "report", paths)
    before = content(tmp_path)
    assert run(report, "--top", 2) == 0
    names = set(os.listdir(report / "quarantine")) - {"manifest.json"}
    assert names == {"00001-a___b______.png", "00002-__.png"}
    assert run(report, "--undo") == 0
    assert content(tmp_path) == before


# --- Sidecars ----------------------------------------------------------------------------------


def test_sidecars_go_along_and_come_back(tmp_path, place, capsys):
    ours = (
        "a.jpg.xmp",
        "a.xmp",
        "a.JSON",
        "a.jpg.supplemental-metadata.json",
        "A.AAE",
        "b.JPG.json",
    )
    others = ("aa.xmp", "a.txt.xmp", "c.json", "b.c.xmp")
    photos = tmp_path / "photos"
    paths = photos_of(photos, ["a.jpg", "b.JPG", "c.jpg", "a.b.xmp"])[:2]
    photos_of(photos, [*ours, *others])
    (photos / "b").mkdir()
    (photos / "b" / "a.xmp").write_text("of another folder")
    (photos / "b.json").mkdir()
    report = write_report(place / "report", paths)
    before = content(tmp_path, place)
    assert run(report, "--top", 2) == 0
    assert "2 files, with 6 sidecars, moved" in capsys.readouterr().err
    left = {str(path.relative_to(photos)) for path in photos.rglob("*") if path.is_file()}
    assert left == {"c.jpg", "a.b.xmp", "b/a.xmp", *others}
    check_list(before, photos, report)
    assert run(report, "--undo") == 0
    assert "2 files, with 6 sidecars, moved back" in capsys.readouterr().err
    assert content(tmp_path, place) == before


def test_a_sidecar_of_two_pictures_stays_until_both_move(tmp_path, capsys):
    photos = tmp_path / "photos"
    paths = photos_of(photos, ["a.jpg", "a.png", "b.jpg"])
    photos_of(photos, ["a.xmp", "a.jpg.xmp", "b.nef", "b.xmp"])
    report = write_report(tmp_path / "report", paths)
    before = content(tmp_path)
    assert run(report, "--top", 1) == 0
    said = capsys.readouterr().err
    assert "1 files, with 1 sidecars, moved" in said and f"name stay: {photos / 'a.xmp'}" in said
    assert run(report, "--top", 2) == 0
    assert not (photos / "a.xmp").exists()
    assert run(report, "--top", 3) == 0
    assert (photos / "b.xmp").exists(), "it is the raw file's too"
    check_list(before, photos, report)
    assert run(report, "--undo") == 0
    assert content(tmp_path) == before


# --- Folders that moved ------------------------------------------------------------------------


def test_a_renamed_report_is_undone(tmp_path):
    paths = photos_of(tmp_path / "photos")
    report = write_report(tmp_path / "report", paths)
    before = content(tmp_path)
    assert run(report, "--top", 3) == 0
    report.rename(tmp_path / "report-old")
    assert run(tmp_path / "report-old", "--undo") == 0
    assert content(tmp_path) == before
    # And by the folder of the quarantine itself, wherever it went.
    (tmp_path / "report-old").rename(report)
    assert run(report, "--top", 3) == 0
    (report / "quarantine").rename(tmp_path / "junk")
    assert run(report, "--undo") == 2
    assert run(tmp_path / "junk", "--undo") == 0
    assert content(tmp_path) == before and not (tmp_path / "junk").exists()


def test_photos_and_report_that_moved_together_are_undone(tmp_path):
    paths = photos_of(tmp_path / "x" / "photos")
    write_report(tmp_path / "x" / "report", paths)
    before = {os.path.relpath(p, tmp_path / "x"): text for p, text in content(tmp_path).items()}
    (tmp_path / "link").symlink_to(tmp_path / "x" / "report")
    assert run(tmp_path / "link", "--top", 3) == 0
    (tmp_path / "x").rename(tmp_path / "y")
    assert run(tmp_path / "y" / "report", "--undo") == 0
    (tmp_path / "link").unlink()
    after = {os.path.relpath(p, tmp_path / "y"): text for p, text in content(tmp_path).items()}
    assert after == {n.replace("../x", "../y"): t for n, t in before.items() if "link" not in n}


def test_photos_that_moved_alone_are_named_and_the_list_stays(tmp_path, capsys):
    photos = tmp_path / "photos"
    report = write_report(tmp_path / "report", photos_of(photos))
    before = content(tmp_path)
    assert run(report, "--top", 3) == 0
    photos.rename(tmp_path / "elsewhere")
    now = content(tmp_path)
    assert run(report, "--undo") == 2
    assert f"was in {photos}, and neither that folder nor" in capsys.readouterr().err
    assert content(tmp_path) == now and len(moves(report)) == 3
    (tmp_path / "elsewhere").rename(photos)
    assert run(report, "--undo") == 0
    assert content(tmp_path) == before


@pytest.mark.parametrize("first", ["the copy", "the original"])
def test_a_copied_project_and_its_original_are_undone_each_by_itself(tmp_path, first):
    original, copy = tmp_path / "original", tmp_path / "copy"
    report = write_report(original / "report", photos_of(original / "photos"))
    before = [content(original / "photos"), content(original / "report")]
    assert run(report, "--top", 3) == 0
    shutil.copytree(original, copy, symlinks=True)
    projects = [copy, original] if first == "the copy" else [original, copy]
    second = content(projects[1])
    assert run(projects[0] / "report", "--undo") == 0
    # Also a command that moves nothing clears up in its own project only.
    (tmp_path / "none.txt").write_text("")
    assert run(projects[1] / "report", "--list", tmp_path / "none.txt") == 0
    assert content(projects[1]) == second and len(moves(projects[1] / "report")) == 3
    assert run(projects[1] / "report", "--undo") == 0
    for project in (original, copy):
        assert not (project / "report" / "quarantine").exists()
        now = [content(project / "photos"), content(project / "report")]
        named = [{os.path.relpath(p, project): text for p, text in part.items()} for part in now]
        was = [{os.path.relpath(p, original): text for p, text in part.items()} for part in before]
        assert named == was


def test_an_interrupted_undo_of_a_copy_clears_up_in_the_copy_only(tmp_path):
    original, copy = tmp_path / "original", tmp_path / "copy"
    report = write_report(original / "report", photos_of(original / "photos"))
    assert run(report, "--top", 2) == 0
    shutil.copytree(original, copy)
    unfinished = f".{json.loads((report / 'quarantine' / 'manifest.json').read_text())['id']}"
    for project in (original, copy):
        (project / "photos" / f"{unfinished}.e3jax.partial").write_text("cont")
    # Of two file systems: a kill between the copy back and the removal.
    shutil.copy2(copy / "report" / "quarantine" / "00001-a.png", copy / "photos" / "a.png")
    before = content(original)
    (tmp_path / "none.txt").write_text("")
    assert run(copy / "report", "--list", tmp_path / "none.txt") == 0
    assert [move["name"] for move in moves(copy / "report")] == ["00002-a.png"]
    assert not (copy / "photos" / f"{unfinished}.e3jax.partial").exists()
    assert (copy / "photos" / "a.png").exists() and content(original) == before


def test_a_renamed_project_puts_nothing_into_the_one_that_took_its_place(tmp_path, place):
    old, new = tmp_path / "2024-old", tmp_path / "2024"
    report = write_report(new / "report", photos_of(new / "photos"))
    before = content(new / "photos")
    assert run(report, "--top", 3) == 0
    new.rename(old)
    (new / "photos" / "b").mkdir(parents=True)
    assert run(old / "report", "--top", 3) == 0, "all are there already, and stay"
    assert len(moves(old / "report")) == 3
    assert run(old / "report", "--undo") == 0
    assert content(new) == {}
    assert content(old / "photos") == {
        str(old / os.path.relpath(path, new)): text for path, text in before.items()
    }


@pytest.mark.parametrize("name", ["photo.jpg", "album"])
def test_a_folder_of_that_name_is_its_owners(tmp_path, capsys, name):
    photos = tmp_path / "photos"
    theirs = photos / "quarantine"
    (theirs / name).parent.mkdir(parents=True)
    (theirs / name).mkdir() if name == "album" else (theirs / name).write_text("mine")
    paths = photos_of(photos, ["a.png", "b.png"])
    write_report(tmp_path / "report", paths)
    for table in ("scores.csv", "scores.jsonl"):
        shutil.copy(tmp_path / "report" / table, photos)
    before = content(photos)
    assert run(photos, "--top", 1) == 2
    said = capsys.readouterr().err
    assert f"{theirs} holds files that quarantine did not move there: rename that folder" in said
    assert run(photos, "--undo") == 2
    assert "nothing to undo" in capsys.readouterr().err
    assert content(photos) == before and os.listdir(theirs) == [name]


def test_an_empty_folder_goes_only_with_its_list(tmp_path):
    paths = photos_of(tmp_path / "photos")
    report = write_report(tmp_path / "report", paths)
    folder = report / "quarantine"
    folder.mkdir()
    (tmp_path / "list.txt").write_text(str(tmp_path / "photos" / "gone.png"))
    for arguments in (["--undo"], ["--list", tmp_path / "list.txt"]):
        assert run(report, *arguments) == 2
        assert os.listdir(folder) == []
    (folder / ".DS_Store").write_text("a file browser's")
    assert run(report, "--top", 2) == 0
    (folder / ".DS_Store").unlink()
    assert run(report, "--undo") == 0 and not folder.exists()
    assert run(report, "--list", tmp_path / "list.txt") == 2 and not folder.exists()


def test_none_back_is_an_error_and_keeps_the_list(tmp_path, capsys):
    report = write_report(tmp_path / "report", photos_of(tmp_path / "photos"))
    before = content(tmp_path)
    assert run(report, "--top", 2) == 0
    listed = moves(report)
    for move in listed:
        (report / "quarantine" / move["name"]).rename(tmp_path / move["name"])
    assert run(report, "--undo") == 2
    assert "holds none of the 2 files that quarantine moved there" in capsys.readouterr().err
    assert moves(report) == listed
    # One is put back: the other one stays on the list, also when new ones come.
    (tmp_path / listed[0]["name"]).rename(report / "quarantine" / listed[0]["name"])
    assert run(report, "--undo") == 3
    said = capsys.readouterr().err
    assert "00002-a.png is no longer in quarantine (delete" in said
    assert f"moved: {listed[0]['path']}" in said and "1 of 2 files were moved: remove" in said
    assert moves(report) == listed[1:]
    assert run(report, "--top", 1) == 0
    assert [move["name"] for move in moves(report)] == ["00002-a.png", "00003-a.png"]
    (tmp_path / listed[1]["name"]).rename(report / "quarantine" / listed[1]["name"])
    assert run(report, "--undo") == 0
    assert content(tmp_path) == before


def test_a_damaged_list_is_told_and_kept(tmp_path, capsys):
    report = write_report(tmp_path / "report", photos_of(tmp_path / "photos"))
    assert run(report, "--top", 2) == 0
    path = report / "quarantine" / "manifest.json"
    whole, before = path.read_text(), content(tmp_path)
    changes = (("path", "p"), ("00001-a.png", ".."), ('"moves": [', '"moves": [3,'))
    damaged = [whole.replace(*change) for change in changes]
    for text in (whole[:90], "[1]", "", '{"name": "a web page\'s"}', *damaged):
        path.write_text(text)
        for arguments in (["--undo"], ["--top", 3]):
            assert run(report, *arguments) == 2
            assert "is damaged or another program's" in capsys.readouterr().err
        assert path.read_text() == text and content(tmp_path) == before


# --- What other commands see ---------------------------------------------------------------------


@pytest.mark.parametrize("then", ["as it was", "renamed"])
def test_every_walk_leaves_every_quarantine_out(tmp_path, then):
    photos = tmp_path / "photos"
    paths = photos_of(photos)
    report = write_report(photos / "report", paths)
    assert run(report, "--top", 2) == 0
    if then == "renamed":
        (report / "quarantine").rename(photos / "junk")
    for arguments in (
        ["rank", photos],
        ["score", "model", photos],
        ["rank", photos, "--out", report],
    ):
        args = cli.parse_args([str(argument) for argument in arguments])
        found = source.find(args.paths)
        assert [path.name for path in found.files] == ["d.png", "e.png", "ü\n.png"]
        assert not found.left_out
    with pytest.raises(InputError, match="is a quarantine: move its files back first"):
        finding.find_files(photos / "junk" if then == "renamed" else report / "quarantine")


@pytest.mark.parametrize(
    "text", ["{}", "[]", '[{"from": "a", "to": "b"}]', '{"name": "a"}', "", '[{"from": 1']
)
def test_somebody_elses_manifest_hides_nothing(tmp_path, text):
    photos_of(tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    assert not quarantine.is_quarantine(tmp_path)
    assert len(finding.find_files(tmp_path)[0]) == len(NAMES)


def test_a_pipe_for_a_manifest_or_a_picture_is_not_opened(tmp_path, capsys):
    [path, *_] = photos_of(tmp_path / "photos")
    os.mkfifo(tmp_path / "photos" / "manifest.json")
    assert not quarantine.is_quarantine(tmp_path / "photos")
    os.mkfifo(tmp_path / "photos" / "p.png")
    report = write_report(tmp_path / "report", [path, tmp_path / "photos" / "p.png"])
    assert run(report, "--top", 2) == 3
    assert "p.png is not a file" in capsys.readouterr().err and not path.exists()


def test_an_older_report_takes_nothing_out_of_a_quarantine(tmp_path, capsys):
    paths = photos_of(tmp_path / "photos")
    report = write_report(tmp_path / "report", paths)
    assert run(report, "--top", 2) == 0
    older = write_report(tmp_path / "older", [*(report / "quarantine").glob("*.png")])
    before = content(tmp_path)
    assert run(older, "--top", 1) == 2
    assert "is in another quarantine: rank the folder again" in capsys.readouterr().err
    assert run(write_report(tmp_path / "second", paths), "--top", 2) == 2
    assert "a.png no longer exists: rank the folder again (nothing" in capsys.readouterr().err
    assert content(tmp_path) == before and not moves(older)


@pytest.mark.parametrize("paths", [["0", "1", "2"], ["", "a.png"]])
def test_a_report_of_arrays_is_one_sentence(tmp_path, monkeypatch, capsys, paths):
    monkeypatch.chdir(tmp_path)
    photos_of(tmp_path, ["0", "1"])
    report = write_report(tmp_path / "report", paths)
    (tmp_path / "list.txt").write_text("0\n")
    for arguments in (["--top", 1], ["--list", "list.txt"]):
        assert run(report, *arguments) == 2
        assert "by their numbers, not files" in capsys.readouterr().err
    assert (tmp_path / "0").exists()


def test_a_selection_edited_on_windows_is_read(tmp_path):
    paths = photos_of(tmp_path / "photos")
    report = write_report(tmp_path / "report", paths)
    text = f"\ufeff{paths[0]}\r\n\r\n{json.dumps(str(paths[2]))}\r\n"
    (tmp_path / "list.txt").write_bytes(text.encode())
    assert run(report, "--list", tmp_path / "list.txt") == 0
    assert [path.exists() for path in paths] == [False, True, False, True, True]


# --- Which file it is --------------------------------------------------------------------------


@contextlib.contextmanager
def occupied(paths):
    """Meanwhile no copy of these files gets the number that its file system gave the first one."""
    with contextlib.ExitStack() as stack:
        for path in paths:
            stack.enter_context(open(path, "rb"))
        yield


def replace(path, how):
    """Another picture under a name, as cameras, sync clients and editors leave it."""
    before, text = path.stat(), path.read_bytes()
    times = (before.st_atime_ns, before.st_mtime_ns)
    if how == "edited":
        path.write_bytes(text + b"!")
        os.utime(path, ns=times)
    elif how == "touched":
        os.utime(path, ns=(times[0], times[1] + 1))
    else:  # of the same size and time
        other = path.with_name("other")
        other.write_bytes(text[::-1])
        os.utime(other, ns=times)
        other.replace(path)


@pytest.mark.parametrize("how", ["edited", "touched", "replaced"])
def test_what_was_changed_since_it_was_ranked_stays_and_the_others_move(
    tmp_path, place, capsys, how
):
    photos = tmp_path / "photos"
    paths = photos_of(photos)
    (photos / "a.xmp").write_text("five stars")
    report = write_report(place / "report", paths)
    replace(paths[0], how)
    replace(paths[4], how)
    before = content(photos, report)
    assert run(report, "--top", 1) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {paths[0]} was changed or replaced since it was ranked: rank")
    assert "(nothing was moved)" in said and content(photos, report) == before
    (tmp_path / "list.txt").write_text("\n".join(map(str, (paths[3], paths[4], paths[0]))))
    assert run(report, "--list", tmp_path / "list.txt") == 3
    said = capsys.readouterr().err
    for path in (paths[0], paths[4]):
        assert f"stays: {path} was changed or replaced since it was ranked" in said
    assert f"moved: {paths[3]}\nerror: " in said and "1 of 3 files were moved" in said
    assert [path.exists() for path in paths] == [True, True, True, False, True]
    assert (photos / "a.xmp").exists(), "its picture stays"
    check_list(before, photos, report)
    assert run(report, "--undo") == 0
    assert content(photos, report) == before


def test_what_is_changed_while_others_move_stays(tmp_path, place, monkeypatch, capsys):
    paths = photos_of(tmp_path / "photos")
    report = write_report(place / "report", paths)
    move = moving.move

    def move_and_replace(source, *rest):
        move(source, *rest)
        if source == str(paths[0]):
            replace(paths[1], "replaced")
            paths[2].unlink()

    monkeypatch.setattr(moving, "move", move_and_replace)
    assert run(report, "--top", 4) == 3
    said = capsys.readouterr().err
    assert "b/a.png was changed or replaced" in said and "n.png no longer exists" in said
    assert [path.exists() for path in paths] == [False, True, False, False, True]
    assert [Path(move["path"]) for move in moves(report)] == [paths[0], paths[3]]


def test_a_link_is_moved_while_it_leads_to_the_ranked_picture(tmp_path, place):
    photos = tmp_path / "photos"
    first, target, other = photos_of(photos, ["a.png", "b.png", "c.png"])
    links = [photos / f"link{number}.png" for number in range(2)]
    for link in links:
        link.symlink_to(target)
    report = write_report(place / "report", [first, *links])
    links[0].unlink()
    links[0].symlink_to(other)
    for _ in range(2):
        assert run(report, "--top", 3) == 3
        assert [os.path.lexists(path) for path in (first, *links)] == [False, True, False]
        assert run(report, "--undo") == 0


def test_a_photo_that_became_a_link_to_nowhere_is_not_the_ranked_one(tmp_path, place, capsys):
    photos = tmp_path / "photos"
    first, second, third = photos_of(photos, ["a.png", "b.png", "c.png"])
    link = photos / "link.png"
    link.symlink_to(second)
    report = write_report(place / "report", [first, second, link, third])
    first.unlink()
    first.symlink_to("nowhere.png")
    third.unlink()
    third.symlink_to(second)  # a ranked picture, and another one
    before = content(photos)
    assert run(report, "--top", 4) == 3
    said = capsys.readouterr().err
    for path in (first, third):
        assert f"stays: {path} was changed or replaced since it was ranked" in said
        assert path.is_symlink()
    assert not os.path.lexists(second) and not os.path.lexists(link)
    check_list(before, photos, report)
    assert run(report, "--undo") == 0
    assert content(photos) == before


@pytest.mark.parametrize("command", ["move", "undo"])
def test_a_ctrl_c_that_a_callback_swallowed_is_heard_between_two_files(
    tmp_path, place, monkeypatch, command
):
    paths = photos_of(tmp_path / "photos")
    report = write_report(place / "report", paths)
    before = content(tmp_path, place)
    if command == "undo":
        assert run(report, "--top", 4) == 0
    move = moving.move

    def move_and_swallow(*arguments):
        move(*arguments)
        exits._interrupts.append(True)

    with monkeypatch.context() as patch:
        patch.setattr(exits, "_interrupts", [])
        patch.setattr(moving, "move", move_and_swallow)
        with pytest.raises(KeyboardInterrupt):
            quarantine.undo(report) if command == "undo" else quarantine.move_aside(
                report, map(str, paths)
            )
    assert len(moves(report)) == (3 if command == "undo" else 1)
    check_list(before, tmp_path / "photos", report)
    assert run(report, "--undo") == 0
    assert content(tmp_path, place) == before


def test_the_same_command_works_again_after_undo(tmp_path, place):
    paths = photos_of(tmp_path / "photos")
    report = write_report(place / "report", paths)
    before = content(tmp_path, place)
    for count in (2, 4, 3):
        numbers = [path.stat().st_ino for path in paths]
        with occupied(paths):
            assert run(report, "--top", count) == 0
            assert len(moves(report)) == count
            assert run(report, "--undo") == 0
        assert content(tmp_path, place) == before
        kept = [a == b.stat().st_ino for a, b in zip(numbers, paths, strict=True)]
        assert kept == [place == tmp_path] * count + [True] * (5 - count)
        lines = [json.loads(line) for line in (report / "scores.jsonl").read_text().splitlines()]
        states = [[line[field] for field in files.FileState._fields] for line in lines]
        assert states == [list(files.state_of(path)) for path in paths]
        assert not (report / ".e3jax.lock").exists()
    replace(paths[1], "replaced")
    assert run(report, "--top", 2) == 3 and paths[1].exists()


def test_what_was_changed_in_quarantine_is_not_the_ranked_picture_when_it_is_back(tmp_path, place):
    paths = photos_of(tmp_path / "photos")
    report = write_report(place / "report", paths)
    assert run(report, "--top", 2) == 0
    replace(report / "quarantine" / "00001-a.png", "edited")
    assert run(report, "--undo") == 0
    assert run(report, "--top", 2) == 3
    assert paths[0].read_bytes().endswith(b"!") and not paths[1].exists()


def test_what_was_put_back_by_hand_is_the_ranked_picture_if_it_is_as_it_was(tmp_path, elsewhere):
    paths = photos_of(tmp_path / "photos")
    report = write_report(elsewhere / "report", paths)
    with occupied(paths):
        assert run(report, "--top", 3) == 0
        shutil.move(report / "quarantine" / "00001-a.png", paths[0])
    (report / "quarantine" / "00002-a.png").unlink()
    paths[1].write_text("another picture")
    assert run(report, "--top", 3) == 3
    assert [path.exists() for path in paths[:3]] == [False, True, False]


def test_a_report_that_another_command_writes_is_left_to_it(tmp_path, elsewhere):
    paths = photos_of(tmp_path / "photos")
    report = write_report(elsewhere / "report", paths)
    text = (report / "scores.jsonl").read_text()
    with locks.held(report, "rank"), occupied(paths):
        assert run(report, "--top", 2) == 0
        assert run(report, "--undo") == 0
    assert (report / "scores.jsonl").read_text() == text
    assert run(report, "--top", 2) == 2, "until it is ranked again"
    shutil.rmtree(report)
    assert run(write_report(report, paths), "--top", 2) == 0


def test_a_report_that_does_not_say_what_files_were_moves_nothing(tmp_path, capsys):
    paths = photos_of(tmp_path / "photos")
    report = write_report(tmp_path / "report", paths)
    (tmp_path / "list.txt").write_text(f"{paths[0]}\n")
    (report / "scores.jsonl").unlink()
    for arguments in (["--top", 1], ["--list", tmp_path / "list.txt"]):
        assert run(report, *arguments) == 2
        assert "scores.jsonl does not exist, expected a report" in capsys.readouterr().err
    assert all(path.exists() for path in paths)


def test_the_first_are_moved_however_the_table_was_sorted(tmp_path):
    paths = photos_of(tmp_path / "photos")
    report = write_report(tmp_path / "report", paths)
    header, *rows = (report / "scores.csv").read_text().replace("ü\n", "ü").splitlines()
    table = "\ufeff" + "\n".join([header, *reversed(rows)]).replace("ü", "ü\n")
    (report / "scores.csv").write_text(table)
    assert run(report, "--top", 2) == 0
    assert [path.exists() for path in paths] == [False, False, True, True, True]
    (report / "scores.csv").write_text(table.replace("\n3,", "\n?,"))
    assert run(report, "--top", 3) == 2
    assert paths[2].exists()


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_in_another_normal_form_are_of_the_same_files(tmp_path, place, form):
    """A table of a spreadsheet, a list of macOS, files that were copied there and back."""

    def spelled(text):
        return unicodedata.normalize(form, str(text))

    def otherwise(text):
        return unicodedata.normalize({"NFC": "NFD", "NFD": "NFC"}[form], str(text))

    photos = tmp_path / spelled("photös")
    paths = photos_of(photos, map(spelled, ["fête/é.jpg", "fête/ü.jpg", "Å.jpg", "ö.jpg"]))
    (paths[0].parent / otherwise("É.xmp")).write_text("five stars")
    (photos / otherwise("å.jpg.json")).write_text("{}")
    report = write_report(place / "report", paths)
    before = content(photos, report)
    (report / "scores.csv").write_text(otherwise((report / "scores.csv").read_text()))
    (tmp_path / "list.txt").write_text(otherwise(f"{paths[2]}\n"))
    assert run(report, "--list", tmp_path / "list.txt") == 0
    assert run(report, "--top", 2) == 0
    assert len(moves(report)) == 5
    check_list(before, photos, report)
    photos.rename(otherwise(photos))
    assert run(report, "--top", 3) == 0, "all of these are there"
    assert run(report, "--undo") == 0
    Path(otherwise(photos)).rename(photos)
    assert content(photos, report) == before
    paths[3].rename(photos / otherwise("ö.jpg"))
    for _ in range(2):
        assert run(report, "--top", 4) == 0
        assert len(moves(report)) == 6
        assert run(report, "--undo") == 0
    assert (photos / otherwise("ö.jpg")).exists()


def test_two_files_whose_names_differ_by_normal_form_are_two(tmp_path, place):
    names = ["\u00fc.png", "u\u0308.png"]
    paths = photos_of(tmp_path / "photos", names)
    if os.path.samefile(*paths):
        pytest.skip("one file on this system")
    report = write_report(place / "report", paths)
    for first, second in (paths, paths[::-1]):
        (tmp_path / "list.txt").write_text(f"{first}\n")
        assert run(report, "--list", tmp_path / "list.txt") == 0
        assert not first.exists() and second.exists()
        assert run(report, "--undo") == 0
    paths[0].unlink()
    (tmp_path / "list.txt").write_text(f"{paths[0]}\n")
    assert run(report, "--list", tmp_path / "list.txt") == 2, "the other one has another state"
    assert paths[1].exists()


# --- Other disks -------------------------------------------------------------------------------


def refuse_below(monkeypatch, folder, *names):
    """What network shares and disks of cameras do not have."""

    def refusing(call):
        def refused(*arguments, **options):
            if any(str(argument).startswith(str(folder)) for argument in arguments[:2]):
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
            return call(*arguments, **options)

        return refused

    for name in names:
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))


@pytest.mark.parametrize("share", ["photos", "report"])
def test_a_disk_that_refuses_times_and_rights_takes_files_and_gives_them_back(
    tmp_path, elsewhere, monkeypatch, share
):
    one, two = (elsewhere, tmp_path) if share == "photos" else (tmp_path, elsewhere)
    paths = photos_of(one / "photos")
    for path in paths:
        os.utime(path, ns=(10**18, 10**18))
    report = write_report(two / "report", paths)
    before = content(tmp_path, elsewhere)
    refuse_below(monkeypatch, elsewhere, "chmod", "utime", "chown", "setxattr")
    for count in (2, 3):
        with occupied(paths):
            assert run(report, "--top", count) == 0
            check_list(before, one / "photos", report)
            assert run(report, "--undo") == 0
        assert content(tmp_path, elsewhere) == before
    assert (paths[0].stat().st_mtime_ns == 10**18) == (share == "report")
    # What is changed in quarantine is known by what is there, not by what was before.
    assert run(report, "--top", 1) == 0
    (report / "quarantine" / "00001-a.png").write_text("another picture")
    assert run(report, "--undo") == 0
    assert run(report, "--top", 1) == 2


def test_a_link_that_a_disk_refuses_stays_and_the_others_move(
    tmp_path, elsewhere, monkeypatch, capsys
):
    first, link, last = paths = [tmp_path / "photos" / f"{name}.png" for name in "abc"]
    photos_of(tmp_path / "photos", ["a.png", "c.png"])
    link.symlink_to("c.png")
    report = write_report(elsewhere / "report", paths)
    before = content(tmp_path, elsewhere)
    refuse_below(monkeypatch, elsewhere, "symlink")
    assert run(report, "--top", 3) == 3
    assert f"{link} cannot be moved: Operation not permitted; 2 of 3" in capsys.readouterr().err
    assert link.is_symlink() and not first.exists() and not last.exists()
    assert run(report, "--undo") == 0
    assert content(tmp_path, elsewhere) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid(), reason="needs root")
def test_owner_rights_and_attributes_are_kept(tmp_path, elsewhere, monkeypatch):
    paths = photos_of(tmp_path / "photos", ["a.png", "b.png"])
    link = tmp_path / "photos" / "link.png"
    link.symlink_to("a.png")
    for path in (*paths, link):
        os.chown(path, 1234, 5678, follow_symlinks=False)
    paths[0].chmod(0o6750)
    paths[1].chmod(0o400)
    attributes = {}
    with contextlib.suppress(OSError):  # not every file system has them
        for folder in (elsewhere, tmp_path):
            (folder / "try").touch()
            os.setxattr(folder / "try", "user.tag", b"1")
        os.setxattr(paths[1], "user.tag", b"red")
        attributes = {"user.tag": b"red"}

    def look():
        found = [os.lstat(path) for path in (*paths, link)]
        tags = {name: os.getxattr(paths[1], name) for name in os.listxattr(paths[1])}
        return [(s.st_uid, s.st_gid, s.st_mode, s.st_mtime_ns) for s in found], tags

    report, before = write_report(elsewhere / "report", [*paths, link]), look()
    assert before[1] == attributes
    copy, open_to = shutil.copyfileobj, []

    def watch(reader, writer, length):
        open_to.append(os.fstat(writer.fileno()).st_mode & 0o077)
        copy(reader, writer, length)

    monkeypatch.setattr(shutil, "copyfileobj", watch)
    assert run(report, "--top", 3) == 0
    aside = os.stat(report / "quarantine" / "00001-a.png")
    assert (aside.st_uid, aside.st_gid, aside.st_mode & 0o7777) == (1234, 5678, 0o6750)
    assert run(report, "--undo") == 0
    assert look() == before and open_to == [0o050, 0] * 2
    # Who may not give files away gets them, without the right to act as their owner.
    refuse_below(monkeypatch, elsewhere, "chown")
    assert run(report, "--top", 1) == 0
    aside = os.stat(report / "quarantine" / "00001-a.png")
    assert (aside.st_uid, aside.st_mode & 0o7777) == (0, 0o750)


# --- One of several ----------------------------------------------------------------------------


def test_one_file_that_is_missing_or_none_leaves_the_others(tmp_path, place, capsys):
    paths = photos_of(tmp_path / "photos")
    report = write_report(place / "report", paths)
    paths[0].unlink()
    paths[2].unlink()
    paths[2].mkdir()
    assert run(report, "--top", 1) == 2
    assert f"{paths[0]} no longer exists" in capsys.readouterr().err
    assert run(report, "--top", 4) == 3
    said = capsys.readouterr().err
    assert f"stays: {paths[0]} no longer exists" in said and "n.png is not a file" in said
    assert [os.path.exists(path) for path in paths] == [False, False, True, False, True]
    assert run(report, "--top", 4) == 2, "nothing more can be moved"
    assert "(nothing was moved)" in capsys.readouterr().err
    assert run(report, "--undo") == 0
    assert paths[1].exists() and paths[3].exists()


def test_one_file_whose_folder_is_gone_leaves_the_others(tmp_path, place, capsys):
    paths = photos_of(tmp_path / "photos")
    report = write_report(place / "report", paths)
    before = content(tmp_path, place)
    assert run(report, "--top", 4) == 0
    paths[1].parent.rmdir()
    aside = report / "quarantine" / "00002-a.png"
    assert run(report, "--undo") == 3
    said = capsys.readouterr().err
    assert f"{aside} was in {paths[1].parent}, and neither that folder nor" in said
    assert "3 of 4 files were moved: remove the cause and run --undo again" in said
    assert [path.exists() for path in paths] == [True, False, True, True, True]
    assert run(report, "--undo") == 2
    assert "(nothing was moved)" in capsys.readouterr().err
    paths[1].parent.mkdir()
    assert run(report, "--undo") == 0
    assert content(tmp_path, place) == before


def test_a_sidecar_stays_with_a_picture_that_cannot_be_moved(tmp_path, place, monkeypatch, capsys):
    photos, move = tmp_path / "photos", moving.move
    paths = photos_of(photos, ["a.jpg", "a.png", "b.jpg", "c.jpg"])
    photos_of(photos, ["a.xmp", "a.png.xmp", "b.xmp", "c.xmp"])
    report = write_report(place / "report", paths)
    before = content(photos, report)

    def refuse(source, *rest):
        if source in (str(paths[0]), str(photos / "c.xmp")):
            raise PermissionError(errno.EACCES, "Permission denied", source)
        move(source, *rest)

    monkeypatch.setattr(moving, "move", refuse)
    assert run(report, "--top", 4) == 3
    said = capsys.readouterr().err
    assert f"stays: {paths[0]} cannot be moved: Permission denied" in said
    assert f"stays: {photos / 'c.xmp'} cannot be moved: Permission denied" in said
    assert sorted(os.listdir(photos)) == ["a.jpg", "a.xmp", "c.xmp"]
    check_list(before, photos, report)
    monkeypatch.undo()
    assert run(report, "--top", 4) == 0
    assert not os.listdir(photos)
    assert run(report, "--undo") == 0
    assert content(photos, report) == before


def test_from_python_the_reasons_are_values(tmp_path):
    paths = photos_of(tmp_path / "photos")
    gone = str(tmp_path / "gone.png")
    with pytest.raises(quarantine.NotMoved) as caught:
        quarantine.move_aside(tmp_path, [gone])
    assert caught.value.left == {gone: "no longer exists: rank the folder again"}
    with pytest.raises(quarantine.PartlyMoved) as caught:
        quarantine.move_aside(tmp_path, [gone, paths[0]])
    assert caught.value.moved == [str(paths[0])] and list(caught.value.left) == [gone]
    was = files.state_of(paths[1])
    replace(paths[1], "edited")
    with pytest.raises(quarantine.NotMoved, match="was changed or replaced"):
        quarantine.move_aside(tmp_path, {paths[1]: was})
    assert quarantine.undo(tmp_path).pictures == [str(paths[0])]


# --- What stops it -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("what", ["write", "fsync"])
def test_a_full_disk_moves_some_or_none_and_says_which(
    tmp_path, elsewhere, monkeypatch, capsys, number, what
):
    photos = tmp_path / "photos"
    paths = photos_of(photos)
    report = write_report(elsewhere / "report", paths)
    before, written = content(tmp_path, elsewhere), 0

    def full(*arguments):
        nonlocal written
        written += 1
        if written > number:
            if what == "write":
                arguments[1].write(arguments[0].read(99))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    owner, name = (shutil, "copyfileobj") if what == "write" else (os, "fsync")
    real = getattr(owner, name)
    monkeypatch.setattr(owner, name, full)
    code = run(report, "--top", 4)
    monkeypatch.undo()
    said = capsys.readouterr().err
    assert "No space left on device" in said
    # Of the calls of fsync, the first is for the list, and two are for a file and its folder.
    moved = number if what == "write" else number // 2
    assert code == (3 if moved else 2)
    if moved:
        assert f"{moved} of 4 files were moved: quarantine --undo moves them back" in said
        assert said.count("\nmoved: ") + said.startswith("moved: ") == moved
    assert sum(path.exists() for path in paths) == 5 - moved
    check_list(before, photos, report, exact=False)
    assert not moved or run(report, "--undo") == 0
    assert content(tmp_path, elsewhere) == before
    assert not (report / "quarantine").exists()


def test_a_really_full_disk(tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)]
    if not mounted or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        photos = tmp_path / "photos"
        paths = photos_of(photos)
        for path in paths:
            path.write_bytes(os.urandom(60_000))
        report = write_report(disk / "report", paths)
        before = content(photos, report)
        assert run(report, "--top", 5) == 3
        said = capsys.readouterr().err
        assert f"stays: {paths[4]} cannot be moved: No space left on device" in said
        assert f"moved: {paths[4]}" not in said and "3 of 5 files were moved" in said
        check_list(before, photos, report, exact=False)
        assert run(report, "--undo") == 0, "which needs no space there"
        assert content(photos, report) == before
        with open(disk / "rest", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"x" * 4096):
                pass
        assert run(report, "--top", 1) == 2, "not even for the list"
        assert content(photos, report) == before and not (report / "quarantine").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_what_cannot_be_moved_after_others_were_is_code_3_and_undone(
    tmp_path, place, monkeypatch, capsys
):
    photos = tmp_path / "photos"
    paths = photos_of(photos)
    report = write_report(place / "report", paths)
    before, move = content(tmp_path, place), moving.move

    def refuse(source, target, partial):
        if str(paths[2]) in (source, target):
            raise PermissionError(errno.EACCES, "Permission denied", source)
        move(source, target, partial)

    monkeypatch.setattr(moving, "move", refuse)
    assert run(report, "--top", 4) == 3
    said = capsys.readouterr().err
    assert f"moved: {paths[0]}\nmoved: {paths[1]}\nmoved: {paths[3]}\nerror: " in said
    assert "cannot be moved: Permission denied; 3 of 4 files were moved: quarantine --undo" in said
    check_list(before, photos, report)
    (tmp_path / "list.txt").write_text(f"{json.dumps(str(paths[2]))}\n")
    assert run(report, "--list", tmp_path / "list.txt") == 2
    assert "(nothing was moved)" in capsys.readouterr().err
    check_list(before, photos, report)
    monkeypatch.undo()
    assert run(report, "--top", 4) == 0
    monkeypatch.setattr(moving, "move", refuse)
    assert run(report, "--undo") == 3
    assert "run --undo again for the rest" in capsys.readouterr().err
    assert [move["path"] for move in moves(report)] == [str(paths[2])]
    check_list(before, photos, report)
    monkeypatch.undo()
    assert run(report, "--undo") == 0
    (tmp_path / "list.txt").unlink()
    assert content(tmp_path, place) == before


def test_a_source_that_cannot_be_removed_is_not_doubled(tmp_path, elsewhere, monkeypatch):
    paths = photos_of(tmp_path / "photos")
    report = write_report(elsewhere / "report", paths)
    before, unlink = content(tmp_path, elsewhere), os.unlink

    def refuse(path, *rest, **options):
        if str(path) == str(paths[0]):
            raise PermissionError(errno.EPERM, "Operation not permitted", path)
        return unlink(path, *rest, **options)

    monkeypatch.setattr(os, "unlink", refuse)
    assert run(report, "--top", 1) == 2
    assert content(tmp_path, elsewhere) == before and not (report / "quarantine").exists()


def test_a_file_that_changes_while_it_is_copied_stays(tmp_path, elsewhere, monkeypatch, capsys):
    paths = photos_of(tmp_path / "photos")
    report = write_report(elsewhere / "report", paths)
    copy = shutil.copyfileobj

    def change(reader, writer, length):
        copy(reader, writer, length)
        with open(reader.name, "a") as file:
            file.write("an editor's last words")

    monkeypatch.setattr(shutil, "copyfileobj", change)
    assert run(report, "--top", 1) == 2
    assert "another program changed it meanwhile" in capsys.readouterr().err
    assert paths[0].read_text().endswith("an editor's last words")
    assert not (report / "quarantine").exists()


def test_a_second_command_at_once_is_refused(tmp_path, monkeypatch, capsys):
    paths = photos_of(tmp_path / "photos")
    report = write_report(tmp_path / "report", paths)
    move, codes = moving.move, []

    def second(*arguments):
        before = content(tmp_path)
        for what in (["--top", "4"], ["--undo"]):
            thread = threading.Thread(target=lambda w=what: codes.append(run(report, *w)))
            thread.start()
            thread.join()
        assert content(tmp_path) == before
        move(*arguments)

    monkeypatch.setattr(moving, "move", second)
    assert run(report, "--top", 2) == 0
    assert codes == [2] * 4
    said = capsys.readouterr().err
    assert "another command is at work in" in said and f"process {os.getpid()}" in said
    assert sorted(os.listdir(report / "quarantine")) == [
        "00001-a.png",
        "00002-a.png",
        "manifest.json",
    ]


def test_where_there_are_no_locks_it_works_all_the_same(tmp_path, monkeypatch):
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    report = write_report(tmp_path / "report", photos_of(tmp_path / "photos"))
    before = content(tmp_path)
    assert run(report, "--top", 2) == run(report, "--undo") == 0
    assert content(tmp_path) == before


def test_many_commands_at_once_on_one_report_and_on_two(tmp_path):
    names = [f"{folder}/{number}.png" for folder in "ab" for number in range(100)]
    photos = tmp_path / "photos"
    paths = photos_of(photos, names)
    reports = [write_report(tmp_path / name, paths) for name in ("one", "two")]
    before, codes = content(tmp_path), []
    commands = [(report, "--top", 200) for report in reports] * 4
    commands += [(report, "--undo") for report in reports] * 2
    threads = [threading.Thread(target=lambda c=c: codes.append(run(*c))) for c in commands]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(codes) <= {0, 2, 3}
    aside = {str(r / "quarantine" / m["name"]): m["path"] for r in reports for m in moves(r)}
    now = content(tmp_path)
    assert {aside.get(path, path): text for path, text in now.items()} == before
    assert len(now) == len(before) and aside.keys() <= now.keys()
    for report in reports:
        assert run(report, "--undo") in (0, 2)
    assert content(tmp_path) == before


# --- Kills ---------------------------------------------------------------------------------------


class Children:
    """Commands that are killed, see kills.py."""

    def __init__(self, log):
        command = [sys.executable, str(ROOT / "tests" / "kills.py")]
        env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.log = open(log, "w+")  # noqa: SIM115, `close` closes it
        self.process = subprocess.Popen(command, env=env, stderr=self.log, **pipes)

    def run(self, *commands, at_line=None, after=None, number=signal.SIGKILL):
        commands = [["quarantine", *map(str, command)] for command in commands]
        request = {"commands": commands, "at_line": at_line, "after": after, "signal": number}
        self.process.stdin.write(f"{json.dumps(request)}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        assert self.process.wait(timeout=60) == 0
        self.log.seek(0)
        assert "Traceback" not in self.log.read()
        self.log.close()


@pytest.fixture(scope="module")
def children(tmp_path_factory):
    children = Children(tmp_path_factory.mktemp("children") / "errors")
    yield children
    children.close()


def check_killed(before, photos, report, place, tmp_path):
    """Right after a kill: every file is whole, at one place or, of two file systems, at both."""
    now = content(photos, report)
    for move in moves(report):
        aside = str(report / "quarantine" / move["name"])
        both = [path for path in (aside, move["path"]) if path in now]
        assert both and (len(both) == 1 or place != tmp_path)
        assert all(now[path] == before[move["path"]] for path in both)
        for path in both:
            del now[path]
    rest = {p: text for p, text in now.items() if not p.endswith((".partial", ".lock"))}
    assert rest == {p: t for p, t in before.items() if p not in {m["path"] for m in moves(report)}}


def kill_and_check(children, tmp_path, place, report, before, *commands, following=(), **when):
    """Runs and kills commands, checks, and that the next command clears up; returns their codes.

    The next command is ``following``, or one that has nothing to move.
    """
    photos = tmp_path / "photos"
    codes = children.run(*commands, **when)
    assert set(codes) <= {0, 2, -9, 130}
    check_killed(before, photos, report, place, tmp_path)
    (tmp_path / "none.txt").write_text("")
    assert run(report, *(following or ("--list", tmp_path / "none.txt"))) == 0
    check_list(before, photos, report)
    return codes


def killed_collection(tmp_path, place, names):
    paths = photos_of(tmp_path / "photos", names)
    for path in paths[::3]:
        path.with_suffix(".xmp").write_text(f"five stars for {path}")
    report = write_report(place / "report", paths)
    return report, content(tmp_path / "photos", report)


def kill_at_every(step, children, tmp_path, place, number=signal.SIGKILL):
    report, before = killed_collection(tmp_path, place, NAMES)
    paths = [tmp_path / "photos" / name for name in NAMES]
    when, kills = {"number": number, "following": ("--top", 4)}, 0
    for command in ((report, "--top", 4), (report, "--undo")):
        for line in range(1, 100_000, step):
            with occupied(paths):
                if command[1] == "--undo":
                    assert run(report, "--top", 4) == 0
                codes = kill_and_check(
                    children, tmp_path, place, report, before, command, at_line=line, **when
                )
                assert len({move["path"] for move in moves(report)} & set(map(str, paths))) == 4
                assert run(report, "--undo") == 0
            assert content(tmp_path / "photos", report) == before
            assert not (report / "quarantine").exists()
            if codes == [0]:
                break
            kills += 1
    return kills


def test_a_kill_at_any_line_leaves_every_file_whole(children, tmp_path, place):
    assert kill_at_every(151, children, tmp_path, place) > 5


def test_ctrl_c_at_any_line_leaves_every_file_whole(children, tmp_path, place):
    assert kill_at_every(199, children, tmp_path, place, signal.SIGINT) > 4


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_kill_at_each_of_many_lines_leaves_every_file_whole(children, tmp_path, place, number):
    print(kill_at_every(53, children, tmp_path, place, number), "kills")


def test_kills_at_random_and_two_commands_at_once_leave_every_file_whole(children, tmp_path, place):
    names = [f"{folder}/{number}.png" for folder in "ab" for number in range(60)]
    report, before = killed_collection(tmp_path, place, names)
    photos, draw = tmp_path / "photos", random.Random(0)
    began = time.monotonic()
    assert children.run((report, "--top", 120)) == [0]
    takes = time.monotonic() - began
    kills = both = 0
    while kills < int(os.environ.get("E3JAX_KILLS", 20)):
        top = (report, "--top", draw.randint(1, 120))
        commands = draw.choice([[top], [(report, "--undo")], [top, top], [top, (report, "--undo")]])
        after = draw.uniform(0, 1.2 * takes)
        codes = kill_and_check(children, tmp_path, place, report, before, *commands, after=after)
        kills += codes.count(-9)
        both += len(codes) == 2
    run(report, "--undo")
    assert content(photos, report) == before
    print(f"{kills} kills, {both} times two at once, commands of {takes:.3f} s")
