"""``e3jax doctor``: examines whether e3jax works on this machine, and how fast."""

import json

from e3jax import doctor
from e3jax.cli import console
from e3jax.devices import runtime
from e3jax.work import exits


def run(screen: console.Console, as_json: bool) -> int:
    """Examines all parts and prints what is found; returns the exit code."""
    runtime.prepare()
    rows, wrong = [], []
    for part in doctor.PARTS:
        screen.print(f"Examining {part}")
        for finding in doctor.examine(part):
            rows.append({"part": part} | finding._asdict())
            if finding.wrong:
                wrong.append(finding.wrong)
            if not as_json:
                print(f"{part:<9} {finding.what:<55} {finding.text}", flush=True)
    if as_json:
        print(json.dumps({"ok": not wrong, "findings": rows}, indent=1))
    for sentence in wrong:
        screen.print(f"wrong: {sentence}", style="red")
    return exits.DOUBTFUL if wrong else exits.DONE
