"""What a machine or a shell may be like, and what is told before any work is done."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import PYTHONPATH, ROOT, keeping
from PIL import Image
from terminal import PROGRAM, SMALL, e3jax_command, here, rows

from e3jax import E3Outlier, InputError
from e3jax.collection import finding
from e3jax.detector import saving
from e3jax.devices import runtime
from e3jax.evidence.health import HealthWarning
from e3jax.work import files


@pytest.fixture(scope="module")
def photos(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, image in enumerate(digits[:20, ..., 0]):
        Image.fromarray(image).save(folder / f"{i} ü.png")
    return folder


# --- Checks come before the work -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--network", "foo"], "unknown network 'foo'"),
        (["--seed", "-1"], "random_state is -1, expected an integer from 0"),
        (["--operations", "RA+XX"], "operation set 'RA+XX': expected families"),
        (["--steps", "0"], "steps is 0"),
        (["--save", "no/such/model"], "no/such is not a writable folder"),
        (
            ["--save", "photos/a.png"],
            "a.png exists and was not written by e3jax, so it is not overwritten",
        ),
        (["--save", "photos"], "photos is a folder, expected a file"),
    ],
)
def test_wrong_options_are_told_before_a_file_is_read(
    tmp_path, monkeypatch, capsys, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_text("a photo")
    monkeypatch.setattr(finding, "find_files", lambda folder: pytest.fail("reads"))
    assert here("rank", "photos", *arguments) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "photos" / "a.png").read_text() == "a photo"
    assert not (tmp_path / "report").exists()


def test_a_wrong_folder_leaves_no_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert here("rank", "nowhere") == 2
    assert not list(tmp_path.iterdir())


def test_the_report_is_there_although_the_model_cannot_be_saved(photos, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "save", fail)
    save = ("--out", tmp_path / "report", "--save", tmp_path / "model")
    assert here("rank", photos, *SMALL, *save) == 2
    assert len(rows(tmp_path / "report")) == 20


def test_files_may_be_named_one_by_one_and_beside_folders(photos, tmp_path):
    few = sorted(photos.iterdir())
    assert here("rank", *few[:4], few[0], *SMALL, "--out", tmp_path / "few") == 1
    assert {row["path"] for row in rows(tmp_path / "few")} == set(map(str, few[:4]))
    assert here("rank", few[0], photos, *SMALL, "--out", tmp_path / "all") == 1
    assert len(rows(tmp_path / "all")) == 20


def test_copies_are_named_in_the_table(photos, tmp_path):
    Image.open(photos / "7 ü.png").save(tmp_path / "again.png")
    assert here("rank", photos, tmp_path / "again.png", *SMALL, "--out", tmp_path / "r") == 1
    named = {Path(row["path"]).name for row in rows(tmp_path / "r") if row["copy_of"]}
    assert named == {"7 ü.png", "again.png"}


# --- Surroundings ------------------------------------------------------------------------------


def test_a_name_with_a_carriage_return_is_quoted(tmp_path):
    files.write_csv(tmp_path / "a.csv", ("name", "n"), [["a\rb", 1], ["c\nd", 2]])
    assert (tmp_path / "a.csv").read_bytes() == b'name,n\n"a\rb",1\n"c\nd",2\n'


NOT_KEPT = "compiled programs are not kept: "


@pytest.fixture
def folder_of_programs(monkeypatch):
    """Where programs are kept after a test; other tests find what they found before."""
    monkeypatch.setattr(runtime, "_REFUSES_KEPT", False)
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield lambda: Path(jax.config.jax_compilation_cache_dir)
    for name, value in before.items():
        jax.config.update(name, value)


def test_a_second_start_is_as_silent_as_the_first(tmp_path):
    code = "from e3jax.devices import runtime; runtime.prepare(); import jax; "
    code += "jax.jit(lambda x: x + 1)(1.0)"
    command = [sys.executable, "-c", code]
    env = os.environ | {"E3JAX_CACHE_DIR": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    for _ in range(2):
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        assert not done.stderr


def warnings_of_prepare() -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runtime.prepare()
    return [str(warning.message) for warning in caught]


def test_a_user_without_a_home_works_without_kept_programs(monkeypatch, folder_of_programs):
    for name in ("E3JAX_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def none(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", none)
    before = folder_of_programs()
    (warning,) = warnings_of_prepare()
    assert warning.startswith(NOT_KEPT + "there is no home folder")
    assert folder_of_programs() == before


def test_programs_are_kept_in_a_new_folder_that_is_private(
    tmp_path, monkeypatch, folder_of_programs
):
    monkeypatch.setenv("E3JAX_CACHE_DIR", str(tmp_path / "cache"))
    for umask in (0o022, 0o000):
        before = os.umask(umask)
        try:
            assert not warnings_of_prepare()
        finally:
            os.umask(before)
        folder = folder_of_programs()
        assert folder == tmp_path / "cache" / "compiled"
        assert folder.stat().st_mode & 0o777 == 0o700
        assert folder.parent.stat().st_mode & 0o022 == 0
        shutil.rmtree(folder.parent)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="Windows has other permissions")
@pytest.mark.parametrize(
    ("what", "mode", "owner", "is_kept"),
    [
        ("compiled", 0o777, None, True),  # it is made private
        ("", 0o755, None, True),
        ("", 0o777, None, False),
        ("", 0o1777, None, True),  # as /tmp, where only an owner can move a folder
        ("", 0o775, (-1, 54321), False),
        ("", 0o755, (54321, -1), False),
        ("compiled", 0o700, (54321, -1), False),
        ("..", 0o777, None, False),
        ("..", 0o1777, None, True),
    ],
)
def test_programs_are_kept_only_where_nobody_else_may_write(
    tmp_path, monkeypatch, folder_of_programs, what, mode, owner, is_kept
):
    """JAX executes what it finds there."""
    if owner and os.getuid():
        pytest.skip("only root can give a folder away")
    cache = tmp_path / "above" / "cache"
    (cache / "compiled").mkdir(parents=True)
    path = cache / what
    path.chmod(mode)
    if owner:
        os.chown(path, *owner)
    for link in (False, True):
        if link:  # of another name, to the same
            (tmp_path / "link").symlink_to(cache)
        monkeypatch.setenv("E3JAX_CACHE_DIR", str(tmp_path / "link" if link else cache))
        before, told = folder_of_programs(), warnings_of_prepare()
        if is_kept:
            assert not told and folder_of_programs().samefile(cache / "compiled")
        else:
            assert len(told) == 1 and told[0].startswith(NOT_KEPT), told
            assert "set E3JAX_CACHE_DIR to a folder of your own" in told[0]
            assert folder_of_programs() == before


def test_devices_are_described_in_words():
    assert runtime.describe_devices() == "CPU, 2 devices"


def test_a_device_that_is_not_there_is_one_sentence(photos, tmp_path):
    env = os.environ | {"JAX_PLATFORMS": "cuda", "PYTHONPATH": PYTHONPATH}
    done = e3jax_command("rank", photos, "--out", tmp_path / "r", code=2, env=env)
    assert "error: JAX cannot start on cuda (" in done.stderr


def test_it_runs_from_a_checkout_that_is_not_installed(tmp_path):
    code = (
        "import importlib.metadata as m, runpy, sys; found = m.version\n"
        "def version(name):\n"
        "    if name == 'e3jax': raise m.PackageNotFoundError(name)\n"
        "    return found(name)\n"
        "m.version = version; runpy.run_module('e3jax', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.startswith("e3jax ") and done.returncode == 0, done.stderr


def test_prepare_does_nothing_to_jax_that_has_started():
    before = jax.devices()
    runtime.prepare()
    assert runtime.devices() == before


def test_a_limit_on_cores_is_kept(monkeypatch):
    """As joblib finds it, which knows of containers' quotas, too."""
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert runtime.cores() == 1


def test_output_in_ascii_and_a_cache_that_cannot_be_written(photos, tmp_path):
    (tmp_path / "file").write_text("")
    env = os.environ | {"PYTHONIOENCODING": "ascii:strict", "PYTHONPATH": PYTHONPATH}
    env["E3JAX_CACHE_DIR"] = str(tmp_path / "file")
    small = (*SMALL, "--evidence", "network", "--out", tmp_path / "r")  # compiles all that it runs
    done = e3jax_command("rank", photos, *small, code=1, env=env)
    assert len(done.stdout.splitlines()) == 20 and "\\xfc.png" in done.stdout
    assert "of 20 images are marked" in done.stderr and "UserWarning" not in done.stderr
    said = done.stderr.splitlines()
    told = sum(line.startswith("warning: compiled programs are not kept: ") for line in said)
    assert told == (not runtime._REFUSES_KEPT)


@pytest.mark.parametrize(("closed", "other"), [("stdout", "stderr"), ("stderr", "stdout")])
def test_a_reader_that_has_enough_changes_neither_exit_code_nor_report(
    photos, tmp_path, closed, other
):
    read, write = os.pipe()
    os.close(read)
    small = (*SMALL, "--evidence", "network", "--out", tmp_path / "r")  # fewer programs to compile
    command = [sys.executable, "-c", PROGRAM, "rank", photos, *small]
    how = {closed: write, other: subprocess.PIPE, "text": True}
    env = os.environ | {"PYTHONPATH": PYTHONPATH} | keeping()
    done = subprocess.run(list(map(str, command)), env=env, timeout=300, **how)
    os.close(write)
    assert done.returncode == 1 and len(rows(tmp_path / "r")) == 20
    if closed == "stdout":
        assert "of 20 images are marked" in done.stderr and "The report is in" in done.stderr
        assert "Errno" not in done.stderr and "Exception" not in done.stderr
    else:
        assert len(done.stdout.splitlines()) == 20


def test_an_empty_name_is_not_the_folder_that_one_is_in(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments in (["rank", ""], ["rank", ".", "--out", ""], ["quarantine", "", "--undo"]):
        with pytest.raises(SystemExit, match="2"):
            here(*arguments)
        assert "empty path" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
def test_a_process_forked_after_jax_had_started_is_told_instead_of_waiting_for_ever(digits):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX and Python warn of the fork itself
        how = {"network": "tiny-8", "operations": "PR", "steps": 3, "image_size": 8}
        detector = E3Outlier(**how, random_state=0).fit(digits)
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            try:
                detector.decision_function(digits[:3])
            except RuntimeError as error:
                os.write(write, str(error).encode())
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 1000).decode().startswith("this process was forked after e3jax had used")
    os.close(read)
    os.close(write)


def test_a_place_for_a_detector_is_checked_as_save_checks_it(digits, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HealthWarning)
        how = {"network": "tiny-8", "operations": "PR", "steps": 3, "image_size": 8}
        detector = E3Outlier(**how).fit(np.asarray(digits))
    saving.save(detector, tmp_path / "model")
    saving.check_target(tmp_path / "model")  # an older one may be replaced
    with pytest.raises(InputError, match="is a folder"):
        saving.check_target(tmp_path)
