"""Errors that a user can mend."""


class InputError(ValueError):
    """Bad input, described in one sentence: what was given, what is expected, what to do.

    Scripts print the sentence and exit with code 2.
    """
