"""How commands end: what each exit code means, Ctrl-C at any moment, crashes."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from e3jax import E3Outlier, InputError, cli
from e3jax.work import exits

ROOT = Path(__file__).parents[1]


@pytest.fixture
def heard(monkeypatch):
    """Ctrl-C as a command hears it once it has started."""
    for name in ("_interrupts", "_is_starting", "_hearing"):
        monkeypatch.setattr(exits, name, [])
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    exits.hear_interrupts()
    exits.started()
    yield
    signal.signal(signal.SIGINT, before)


def crash_of(raised, photos, tmp_path, monkeypatch, capsys):
    """Exit code and messages of a rank whose fit raises."""

    def fit(*_, **__):
        raise raised

    monkeypatch.setattr(E3Outlier, "fit_in", fit)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    code = cli.main(["rank", str(photos), "--out", str(tmp_path / "report")])
    return code, capsys.readouterr().err


@pytest.fixture
def photos(digits, tmp_path):
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for i, image in enumerate(digits[:4, ..., 0]):
        Image.fromarray(image).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize(
    "error", [RuntimeError("can't start new thread"), TypeError("of a library"), KeyError("a")]
)
def test_a_crash_has_a_code_of_its_own_and_keeps_the_traceback(
    error, photos, tmp_path, monkeypatch, capsys
):
    code, said = crash_of(error, photos, tmp_path, monkeypatch, capsys)
    assert code == exits.CRASHED == 4 and "Traceback" not in said
    assert f"e3jax failed unexpectedly ({type(error).__name__}: " in said
    (kept,) = tmp_path.glob("e3jax-*.txt")
    assert str(kept) in said and "raise raised" in kept.read_text()
    assert not (tmp_path / "report" / "scores.csv").exists()


def test_a_value_error_of_a_library_is_a_crash_and_one_of_ours_bad_input(
    photos, tmp_path, monkeypatch, capsys
):
    import numpy as np

    def of_numpy(*_, **__):
        np.zeros(3).reshape(2, 2)

    def of_ours(*_, **__):
        E3Outlier(steps=-1).check_parameters()

    for fit, expected in ((of_numpy, exits.CRASHED), (of_ours, exits.BAD_INPUT)):
        monkeypatch.setattr(E3Outlier, "fit_in", fit)
        assert cli.main(["rank", str(photos), "--out", str(tmp_path / "report")]) == expected
    assert "error: steps is -1, expected a positive integer" in capsys.readouterr().err


def test_a_crash_without_a_place_for_its_traceback_prints_it(monkeypatch, capsys):
    def refuse(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    sentence, code = exits.crash(RuntimeError("why"))
    assert code == exits.CRASHED and "lines above" in sentence
    assert "RuntimeError: why" in capsys.readouterr().err


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)


def test_ctrl_c_that_somebody_catches_is_heard_by_the_next_step(heard):
    exits.check_interrupts()
    with contextlib.suppress(KeyboardInterrupt):
        interrupt()
    with pytest.raises(KeyboardInterrupt):
        exits.check_interrupts()
    with pytest.raises(KeyboardInterrupt):
        exits.crash(RuntimeError("what a library made of it"))


def test_ctrl_c_that_a_callback_swallows_is_raised_again(heard, capsys):
    class Finalised:
        def __del__(self):
            interrupt()

    with pytest.raises(KeyboardInterrupt):
        Finalised()
        time.sleep(5)
    assert "Exception ignored" not in capsys.readouterr().err


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL, lambda *_: None])
def test_ctrl_c_that_is_ignored_or_handled_stays_so(monkeypatch, handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        exits.hear_interrupts()
        assert signal.getsignal(signal.SIGINT) == handler and not exits._is_starting
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("library", ["numpy", "jaxlib", "sklearn"])
def test_ctrl_c_while_it_starts_is_one_line(photos, tmp_path, library):
    command = [sys.executable, "-m", "e3jax", "rank", str(photos), "--out", str(tmp_path / "out")]
    # Where the tests run in the background, programs would start with Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    maps = Path(f"/proc/{process.pid}/maps")
    while library not in maps.read_text():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == exits.STOPPED and re.fullmatch(r"Interrupted\..*\n", said), said


def test_errors_of_input_are_value_errors():
    assert issubclass(InputError, ValueError)
