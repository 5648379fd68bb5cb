"""Modules and objects in processes of their own, and how to ask several of them in turns."""

import contextlib
import json
import os
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import IO, Any

import command
import pandas as pd

_HERE = Path(__file__).parent
_ENVIRONMENTS = tomllib.loads((_HERE / "environments.toml").read_text())
# What each table's columns mean, in their order.
COLUMNS = tomllib.loads((_HERE / "columns.toml").read_text())


class Worker(subprocess.Popen):
    """A module, or an object, in its own process, seen from the parent.

    Between calls the process sleeps, so that other workers have the machine to themselves.

    Args:
      name: "module", or "module:Class" of the object.
      environment: variables on top of the parent's and of the module's in environments.toml.
      errors: file for what the process writes to stderr (default: the parent's).
      options: for the class, as JSON.
    """

    def __init__(
        self, name: str, environment: dict | None = None, errors: IO | None = None, **options: Any
    ):
        self.name = name
        of_module = _ENVIRONMENTS.get(name.split(":")[0], {})
        path = os.pathsep.join(filter(None, [str(_HERE.parent), os.environ.get("PYTHONPATH")]))
        env = os.environ | of_module | {"PYTHONPATH": path} | (environment or {})
        words = [sys.executable, "-P", "-m", "timing.worker", name, json.dumps(options)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        super().__init__(words, env=env, text=True, **pipes)

    def __exit__(self, failure: type | None, *details: Any) -> None:
        if failure:
            self.kill()
        with contextlib.suppress(BrokenPipeError):
            super().__exit__(failure, *details)

    def ask(self, method: str, **options: Any) -> Any:
        """Calls a function of the module, or a method of the object, and returns its answer.

        Raises:
          ChildProcessError: if the process has ended.
        """
        try:
            print(json.dumps([method, options]), file=self.stdin, flush=True)
            return json.loads(self.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            text = f"the process of {self.name} ended in {method} with code {self.wait()}"
            raise ChildProcessError(text) from None


def ask_all(workers: dict[str, Worker], method: str, **options: Any) -> dict:
    """The dictionaries that all workers answer with, joined; each one's names get its prefix."""
    answers = {prefix: worker.ask(method, **options) for prefix, worker in workers.items()}
    return {prefix + name: value for prefix, a in answers.items() for name, value in a.items()}


def in_turns(workers: dict[str, Worker], rounds: int, *calls: tuple[str, dict]) -> pd.DataFrame:
    """What all workers answer to each call, a row per round.

    In turns, so that whatever else the machine does falls on all of them.
    """
    table = []
    for number in command.progress(range(rounds), "Rounds"):
        table.append({})
        for method, options in calls:
            table[-1] |= (answers := ask_all(workers, method, **options))
            text = ", ".join(f"{name} {value:.5g}" for name, value in answers.items())
            command.say(f"[{number + 1}/{rounds}] {text}")
    return pd.DataFrame(table)


def main() -> None:
    """The process of a worker: one JSON line calls a method, one answers."""
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    served, options = pkgutil.resolve_name(sys.argv[1]), json.loads(sys.argv[2])
    served = served(**options) if callable(served) else served
    for line in sys.stdin:
        method, options = json.loads(line)
        print(json.dumps(getattr(served, method)(**options)), file=answers, flush=True)


if __name__ == "__main__":
    main()
