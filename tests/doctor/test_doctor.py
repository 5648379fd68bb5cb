"""The doctor finds nothing wrong here, and says in a sentence what is wrong elsewhere."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from terminal import e3jax_command

from e3jax import cli, doctor
from e3jax.doctor import numerics, patterns, speed
from e3jax.doctor.finding import Finding


def test_what_some_release_computed_wrongly_is_right_here():
    found = list(patterns.findings())
    assert len(found) == 4 and not any(finding.wrong for finding in found)


@pytest.mark.parametrize("pattern", patterns.PATTERNS.values())
def test_a_wrong_number_of_a_pattern_is_found(pattern, monkeypatch):
    computed, expected = map(np.array, pattern())
    computed.flat[-1] += 0.1 * np.abs(expected).max()
    wrong = lambda: (computed, expected)  # noqa: E731
    wrong.__name__ = pattern.__name__
    monkeypatch.setattr(patterns, "PATTERNS", {40000: wrong})
    [finding] = patterns.findings()
    assert "are wrong by 0.1 as in jax-ml/jax issue 40000: install another" in finding.wrong


@pytest.fixture(scope="module")
def numbers():
    return numerics.numbers("pwrn-10-2", "float32")


def test_numbers_are_the_recorded_ones(numbers):
    recorded = numerics.recorded("pwrn-10-2")
    found = list(numerics.compared("pwrn-10-2", "float32", numbers, recorded))
    assert len(found) == 4 and not any(finding.wrong for finding in found)
    assert {name: a.shape for name, a in recorded.items()} == {
        name: a.shape for name, a in numbers.items()
    }


@pytest.mark.parametrize("quantity", numerics.LIMITS["float32"])
@pytest.mark.parametrize("fault", [0.1, np.nan])
def test_a_fault_in_one_number_is_one_sentence(numbers, quantity, fault):
    faulty = numbers[quantity].copy()
    faulty.flat[0] += fault
    found = numerics.compared("n", "float32", numbers | {quantity: faulty}, numbers)
    [wrong] = [finding.wrong for finding in found if finding.wrong]
    assert wrong.startswith(f"{quantity} of n in float32 differ from the recorded ones by ")


def test_a_fault_is_an_exit_code(numbers, tmp_path, monkeypatch, capsys):
    with np.load(numerics.NUMBERS) as arrays:
        faulty = dict(arrays)
    faulty["pwrn-10-2 logits"][3, 5] += 0.5
    np.savez(tmp_path / "numbers.npz", **faulty)
    parts = {name: doctor.PARTS[name] for name in ("devices", "numerics")}
    monkeypatch.setattr(doctor, "PARTS", parts)
    monkeypatch.setattr(numerics, "NUMBERS", tmp_path / "numbers.npz")
    assert cli.main(["doctor"]) == 1
    printed = capsys.readouterr()
    assert [line for line in printed.err.splitlines() if line.startswith("wrong:")] == [
        "wrong: logits of pwrn-10-2 in float32 differ from the recorded ones by 0.5, more than "
        "0.001: try other versions of JAX and the driver"
    ]
    assert sum(line.endswith("WRONG") for line in printed.out.splitlines()) == 1


def test_what_ends_a_part_is_a_finding(monkeypatch):
    def broken():
        yield Finding("first", 1)
        raise RuntimeError("CUDA_ERROR_UNKNOWN\nmore")

    monkeypatch.setattr(doctor, "PARTS", {"part": broken})
    first, last = doctor.examine("part")
    assert first == ("first", 1, "", "")
    assert last.wrong.startswith("part could not be examined (CUDA_ERROR_UNKNOWN): check")


def test_a_rate_is_that_between_reports(monkeypatch):
    now = iter([100.0, 103.0, 110.0])
    monkeypatch.setattr(speed, "time", SimpleNamespace(monotonic=lambda: next(now)))

    def work(see):
        for done in (50, 80, 120, 900):
            see("training", done, 1000)

    assert speed.rate(work) == (120 - 50) / 10


@pytest.mark.nightly
def test_all_is_well_on_this_machine():
    done = e3jax_command("doctor", "--json", code=0)
    found = json.loads(done.stdout)
    assert found["ok"] and {f["part"] for f in found["findings"]} == {*doctor.PARTS}
    assert all(f["value"] > 0 for f in found["findings"] if f["part"] == "speed")
