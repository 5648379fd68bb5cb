"""What is measured of large banks, over the starts of a program that is killed."""

import json

from usage import banks


def test_seconds_and_memory_of_all_starts_are_counted(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(banks.time, "monotonic", lambda: now)
    file = tmp_path / "measured.json"
    for start in (1, 2):
        measured = banks.Measured(file)
        for stage, seconds in (("bank", 10), ("scoring", 20), ("describing", 5), ("scoring", 7)):
            measured.on_progress(stage)
            now += seconds
        measured.memory = max(measured.memory, 3 - start)
        if start == 1:  # killed: what came after the last save is lost
            measured.on_progress("scoring")
    measured.on_progress("end")
    kept = json.loads(file.read_text())
    assert kept["starts"] == 2 and kept["memory"] == 2
    assert (kept["seconds"]["bank"], kept["seconds"]["scoring"]) == (20, 64)
    assert kept["seconds"]["training"] == 0
