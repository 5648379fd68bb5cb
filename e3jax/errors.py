"""Errors that a user can mend."""

import sys
import warnings


class InputError(ValueError):
    """Bad input, described in one sentence: what was given, what is expected, what to do.

    Scripts print the sentence and exit with code 2.
    """


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warns at the line that called e3jax, however deep in it the reason lies."""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] == "e3jax":
        frame, level = frame.f_back, level + 1
    warnings.warn(text, category, stacklevel=level)
