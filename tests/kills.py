"""Runs commands of e3jax in children that may be killed, by JSON lines on standard input.

A line is {"commands": [[argument, ...], ...], "at_line": n or null, "after": seconds or null,
"signal": number}: the commands run at once, and get the signal when they reach their n-th line of
the code that moves files, or after some seconds. The answer is a line with the list of exit codes,
-9 for killed.

One program that forks is a hundred times faster than a hundred programs that import JAX.
"""

import json
import os
import signal
import sys
import time

from e3jax import cli
from e3jax.quarantine import commands, journal, moving, names, sidecars
from e3jax.work import files, locks

MODULES = (commands, journal, moving, names, sidecars, files, locks)
WATCHED = {module.__file__ for module in MODULES}


def signal_at(line: int, number: int) -> None:
    def trace(frame, event, _):
        nonlocal line
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line":
            line -= 1
            if not line:
                sys.settrace(None)
                os.kill(os.getpid(), number)
        return trace

    sys.settrace(trace)


def start(arguments: list[str], at_line: int | None, number: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        # Where the tests run in the background, programs start with Ctrl-C ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if at_line:
            signal_at(at_line, number)
        code = cli.main(arguments)
    finally:
        os._exit(code)


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        at_line, number = request["at_line"], request["signal"]
        children = [start(command, at_line, number) for command in request["commands"]]
        if request["after"] is not None:
            time.sleep(request["after"])
            for child in children:
                os.kill(child, number)
        ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(ends), flush=True)


if __name__ == "__main__":
    main()
