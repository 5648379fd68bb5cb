"""The command line: its arguments, how commands end, what they show, and a file for each."""

from e3jax.cli.arguments import parse_args
from e3jax.cli.main import main

__all__ = ["main", "parse_args"]
