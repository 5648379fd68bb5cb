"""Objects that live in a process of their own, and backends, which are measured there."""

import contextlib
import json
import os
import pkgutil
import resource
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track

_HERE = Path(__file__).parent
_ENVIRONMENTS = tomllib.loads((_HERE / "environments.toml").read_text())
CONSOLE = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
VIEWS_PER_CALL = 1024


class Worker:
    """An object in its own process, seen from the parent.

    Between calls the process sleeps, so that other workers have the machine to themselves.

    Args:
      name: "module:Class" of the object.
      environment: variables on top of the parent's and of the module's in environments.toml.
      errors: file for what the process writes to stderr (default: the parent's).
      options: for the class, as JSON.
    """

    def __init__(
        self, name: str, environment: dict | None = None, errors: IO | None = None, **options: Any
    ):
        self.name = name
        path = os.pathsep.join(filter(None, [str(_HERE.parent), os.environ.get("PYTHONPATH")]))
        of_module = _ENVIRONMENTS.get(name.split(":")[0], {}) | {"PYTHONPATH": path}
        command = [sys.executable, "-P", "-m", "speed.worker", name, json.dumps(options)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        environment = os.environ | of_module | (environment or {})
        self.process = subprocess.Popen(command, text=True, env=environment, **pipes)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, failure: type | None, *_: Any) -> None:
        if failure:
            self.process.kill()
        with contextlib.suppress(BrokenPipeError), self.process:
            pass  # closes the pipes and waits

    def ask(self, method: str, **options: Any) -> Any:
        """Calls a method of the object and returns its answer.

        Raises:
          RuntimeError: if the process has ended.
        """
        answer = ""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps([method, options]), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        if not answer:
            code = self.process.wait()
            raise RuntimeError(f"the process of {self.name} ended in {method} with code {code}")
        return json.loads(answer)


def ask_all(workers: dict[str, Worker], method: str, **options: Any) -> dict:
    """The dictionaries that all workers answer with, joined; each one's names get its prefix."""
    answers = {prefix: worker.ask(method, **options) for prefix, worker in workers.items()}
    return {prefix + name: value for prefix, a in answers.items() for name, value in a.items()}


def in_turns(workers: dict[str, Worker], rounds: int, *calls: tuple[str, dict]) -> pd.DataFrame:
    """What all workers answer to each call, a row per round.

    In turns, so that whatever else the machine does falls on all of them.
    """
    table, turns = [], range(rounds)
    for number in track(turns, "Rounds", console=CONSOLE, disable=not CONSOLE.is_terminal):
        table.append({})
        for method, options in calls:
            table[-1] |= (answers := ask_all(workers, method, **options))
            text = ", ".join(f"{name} {value:.5g}" for name, value in answers.items())
            CONSOLE.print(f"[{number + 1}/{rounds}] {text}")
    return pd.DataFrame(table)


class Backend:
    """A program of the method as a worker measures it.

    Subclasses provide ``make_NAME()`` for what is measured: a function that returns when its work
    is done, and how many views (or FLOP) that is.

    Args:
      on_cpu: on a CPU calls are short, as their work takes long and the clock is read between them.
      shape: of the random images uint8 [n, h, w, c].
    """

    def __init__(self, on_cpu: bool, shape: list[int]):
        self._imports = _resident_bytes()
        self.on_cpu, self.calls = on_cpu, {}
        self.steps, self.gemm_side = (4, 2048) if on_cpu else (200, 8192)
        self.images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        self.n, self.side, _, self.channels = shape

    def prepare(self, names: list[str]) -> dict[str, float]:
        """Builds what is measured; returns how much longer first calls take than later ones."""
        self.calls |= {name: getattr(self, f"make_{name}")() for name in names}
        return {f"{name}_compile_seconds": _extra_of_first(self.calls[name][0]) for name in names}

    def measure(self, name: str, seconds: float) -> dict[str, float]:
        return {f"{name}_views_per_second": rate(*self.calls[name], seconds)}

    def gemm(self) -> dict[str, float]:
        """Of a large matrix product."""
        call, flops = self.make_gemm()
        call()
        return {"gemm_flops": rate(call, flops, seconds=1)}

    def device_peak(self) -> int:
        return 0

    def memory(self) -> dict[str, int]:
        """Bytes; 0 where they are unknown."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "imports_rss": self._imports,
            "peak_rss": peak * (1 if sys.platform == "darwin" else 1024),
            "resident": _resident_bytes(),
            "device_peak": self.device_peak(),
        }


def rate(call: Callable[[], Any], count: int, seconds: float) -> float:
    """Things per second, where a call does ``count`` of them; takes at least ``seconds``."""
    start, done = time.perf_counter(), 0
    while True:
        call()
        done += count
        if (elapsed := time.perf_counter() - start) >= seconds:
            return done / elapsed


def _extra_of_first(call: Callable[[], Any]) -> float:
    first, *later = (1 / rate(call, 1, seconds=0) for _ in range(3))
    return max(first - statistics.median(later), 0.0)


def _resident_bytes() -> int:
    """Of this process now."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def main() -> None:
    """The process of a worker: one JSON line calls a method, one answers."""
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    served = pkgutil.resolve_name(sys.argv[1])(**json.loads(sys.argv[2]))
    for line in sys.stdin:
        method, options = json.loads(line)
        print(json.dumps(getattr(served, method)(**options)), file=answers, flush=True)


if __name__ == "__main__":
    main()
