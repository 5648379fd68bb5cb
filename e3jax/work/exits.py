"""How commands end: Ctrl-C works at any moment, and a crash is not taken for a result."""

import os
import signal
import sys
import tempfile
import threading
import traceback

# What a command's exit codes mean; argparse ends with BAD_INPUT, too.
DONE, DOUBTFUL, BAD_INPUT, PARTLY, CRASHED, STOPPED = 0, 1, 2, 3, 4, 130
_interrupts, _is_starting, _hearing = [], [], []


def hear_interrupts() -> None:
    """Notes each Ctrl-C besides raising KeyboardInterrupt, which callbacks of libraries swallow.

    It ends the process at once before :func:`started`, since libraries would crash in the middle of
    their imports, and when it comes the second time. Where Ctrl-C is ignored, as in the background,
    or handled by another program, it stays so.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    _is_starting.append(True)
    report = sys.unraisablehook

    def interrupt(*_) -> None:
        _interrupts.append(True)
        if _is_starting or len(_interrupts) > 1:
            os.write(2, b"Interrupted.\n")
            os._exit(STOPPED)
        raise KeyboardInterrupt

    def again(swallowed) -> None:
        """For what a callback swallowed: it is raised again, outside of it, and not reported."""
        if not issubclass(swallowed.exc_type, KeyboardInterrupt):
            report(swallowed)
            return
        _interrupts.clear()
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()

    signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook = again
    _hearing.append(True)


def started() -> None:
    """From now on a Ctrl-C is raised; what is under way may be kept."""
    _is_starting.clear()


def finished() -> None:
    """From now on a Ctrl-C changes nothing: the command has done its work, or said why not."""
    if _hearing:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


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
