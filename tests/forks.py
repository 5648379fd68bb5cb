"""Runs commands of e3jax in children that kill themselves, by JSON lines on standard input.

A line is {"command": [argument, ...], "folder": path, "kill_at": n or null}: the command gets
kill -9 before its n-th operation on files below the folder (opening, making, renaming, removing).
The answer is a line with the exit code, -9 for killed, and how many such operations it began.

One program that forks before JAX starts is much faster than many programs that import JAX. Large
are collections of more than 50 images here.
"""

import json
import os
import signal
import sys

import large_collections
import tiny  # noqa: F401, a network that compiles in a second

from e3jax import cli, version
from e3jax.devices import engines

OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


def watch(folder: str, kill_at: int | None, report: int) -> None:
    """Counts operations on files below a folder in this process, and kills it at one of them."""
    count = 0

    def see(event: str, arguments: tuple) -> None:
        nonlocal count
        if event not in OPERATIONS or not str(arguments[0]).startswith(folder):
            return
        count += 1
        os.pwrite(report, b"%d" % count, 0)
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(see)


def main() -> None:
    large_collections.set_constants()
    engines.local = lambda: None
    version.versions()  # once, as the digest of the code may change while others work on it
    report = os.memfd_create("count")
    for line in sys.stdin:
        request = json.loads(line)
        os.ftruncate(report, 0)
        child = os.fork()
        if not child:
            code = 99
            try:
                os.dup2(2, 1)  # the answers' pipe
                watch(request["folder"], request["kill_at"], report)
                code = cli.main(request["command"])
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps([code, int(os.pread(report, 20, 0) or 0)]), flush=True)


if __name__ == "__main__":
    main()
