"""How commands end: Ctrl-C is heard at every moment, and a crash is no report."""

import os
import signal
import sys
import tempfile
import traceback

# What a command's exit codes mean; argparse ends with BAD_INPUT, too.
DONE, DOUBTFUL, BAD_INPUT, PARTLY, CRASHED, STOPPED = 0, 1, 2, 3, 4, 130
_interrupts = []


def hear_interrupts(starting: bool = False) -> None:
    """Notes each Ctrl-C besides raising KeyboardInterrupt, which callbacks of libraries swallow.

    The second one ends the process at once, and so does the first while it is starting: libraries
    in the middle of their imports would crash. Where Ctrl-C is ignored, as in the background, or
    handled by another program, it stays so.
    """

    def interrupt(*_) -> None:
        _interrupts.append(True)
        if starting or len(_interrupts) > 1:
            os.write(2, b"Stopped.\n")
            os._exit(STOPPED)
        raise KeyboardInterrupt

    interrupt.is_ours = True
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler or hasattr(handler, "is_ours"):
        signal.signal(signal.SIGINT, interrupt)


def check_interrupts() -> None:
    """Raises KeyboardInterrupt if there was a Ctrl-C that something swallowed."""
    if _interrupts:
        raise KeyboardInterrupt


def crash(error: BaseException) -> tuple[str, int]:
    """Keeps the traceback of an unexpected error; returns a sentence and the exit code."""
    if _interrupts:  # what a library made of it
        raise KeyboardInterrupt from error
    text = "".join(traceback.format_exception(error))
    line = (str(error).strip() or "no message").splitlines()[0]
    sentence = f"e3jax failed unexpectedly ({type(error).__name__}: {line})"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="e3jax-", suffix=".txt", delete=False, encoding="utf-8", errors="replace"
        ) as file:
            file.write(text)
    except OSError:
        print(text, file=sys.stderr)
        return f"{sentence}: please report it with the lines above", CRASHED
    return f"{sentence}: please report it with the traceback in {file.name}", CRASHED
