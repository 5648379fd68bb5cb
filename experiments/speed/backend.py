"""What all backends share: calls that are measured, and the process's memory."""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Steps per call: few on a CPU, where a step takes long and the clock is read between calls.
STEPS_PER_CALL = {"cpu": 4, "accelerator": 200}
VIEWS_PER_CALL = 1024
GEMM_SIDE = {"cpu": 2048, "accelerator": 8192}


class Backend:
    """A program of the method, as a worker runs it.

    Attributes:
      kind: "cpu" or "accelerator".
      calls: what is measured by name: a function that returns when its work is done, and how many
        views that is. ``prepare`` of a backend fills it.
    """

    def __init__(self, kind: str):
        self.kind, self.calls = kind, {}
        self._imports = resident_bytes()

    def compile(self) -> dict[str, float]:
        """How much longer the first of each call takes than a later one."""
        return {
            f"{name}_compile_seconds": _extra_of_first(call)
            for name, (call, _) in self.calls.items()
        }

    def measure(self, name: str, seconds: float) -> float:
        """Views per second."""
        return rate(*self.calls[name], seconds)

    def gemm(self, seconds: float) -> float:
        """FLOP per second of a large matrix product."""
        call, flops = self.make_gemm()
        call()
        return rate(call, flops, seconds)

    def device_peak(self) -> int:
        return 0

    def memory(self) -> dict[str, int]:
        """Bytes, and 0 where they are unknown."""
        unit = 1 if sys.platform == "darwin" else 1024
        return {
            "imports_rss": self._imports,
            "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
            "resident": resident_bytes(),
            "device_peak": self.device_peak(),
        }


def rate(call: Callable[[], None], count: int, seconds: float) -> float:
    """Things per second, where a call does ``count`` of them; measures for at least ``seconds``."""
    start, done = time.perf_counter(), 0
    while True:
        call()
        done += count
        if (elapsed := time.perf_counter() - start) >= seconds:
            return done / elapsed


def _extra_of_first(call: Callable[[], None]) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return max(times[0] - statistics.median(times[1:]), 0.0)


def resident_bytes() -> int:
    """Of this process now; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * resource.getpagesize()
