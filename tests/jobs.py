"""Jobs of several processes, on CPU devices."""

import os
import socket
import subprocess
import sys

from conftest import PYTHONPATH, ROOT, keeping


def environment(devices, **more) -> dict[str, str]:
    """Of a program with so many CPU devices."""
    return os.environ | {
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONPATH": PYTHONPATH,
        **keeping(),
        **more,
    }


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def run_together(commands, environments) -> list[subprocess.CompletedProcess]:
    """Starts programs at once, waits for all of them, and leaves none behind."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    started = [
        subprocess.Popen([sys.executable, *map(str, command)], env=env, **pipes)
        for command, env in zip(commands, environments, strict=True)
    ]
    try:
        texts = [process.communicate(timeout=600) for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *text)
        for process, text in zip(started, texts, strict=True)
    ]
