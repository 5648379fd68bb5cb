"""Objects that live in a process of their own, and measurements that take turns."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import track

CONSOLE = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


class Worker:
    """An object in its own process, seen from the parent.

    Between calls the process sleeps, so that other workers have the machine to themselves.

    Args:
      name: "module:Class" of the object.
      environment: variables on top of the parent's.
      errors: file for what the process writes to stderr (default: the parent's).
      options: for the class, as JSON.

    Raises:
      RuntimeError: from ``ask``, if the process has ended.
    """

    def __init__(
        self,
        name: str,
        environment: dict[str, str] | None = None,
        errors: IO | None = None,
        **options: Any,
    ):
        self.name = name
        here = str(Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "speed", name, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"PYTHONPATH": path} | (environment or {}),
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, failure: type | None, *_: Any) -> None:
        if failure:
            self.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def kill(self) -> None:
        self._process.kill()

    def ask(self, method: str, **options: Any) -> Any:
        """Calls a method of the object and returns its answer."""
        answer = ""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps([method, options]), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        if not answer:
            code = self._process.wait()
            raise RuntimeError(f"the process of {self.name} ended in {method} with code {code}")
        return json.loads(answer)


def take_turns(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list]:
    """Calls each function once per round, and returns each one's answers by its name.

    In turns, because whatever else the machine does then falls on all of them.
    """
    answers = {name: [] for name in calls}
    turns = list(itertools.product(range(rounds), calls))
    for number, name in track(turns, "", console=CONSOLE, disable=not CONSOLE.is_terminal):
        answer = calls[name]()
        answers[name].append(answer)
        text = f"{answer['seconds']:.1f} s" if isinstance(answer, dict) else f"{answer:.0f} views/s"
        CONSOLE.print(f"[{number + 1}/{rounds}] {name}: {text}")
    return answers
