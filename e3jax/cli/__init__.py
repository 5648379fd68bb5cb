"""The command line: finds the images of a folder that do not belong.

Exit codes: 0 done; 1 done, but the scores are likely to mean little (a warning says why); 2 bad
input or arguments, nothing was changed; 3 quarantine moved some files, which are listed, and not
the others (--undo moves back what it had moved aside); 4 a fault of e3jax, whose traceback is in a
file that is named; 130 interrupted by Ctrl-C (--undo likewise).
"""

from e3jax.cli.main import main, parse_args

__all__ = ["main", "parse_args"]
