"""Where a row comes from: versions of what computed it, and the commit."""

import functools
import platform
import subprocess
from pathlib import Path

from e3jax import version


def provenance() -> dict[str, str]:
    """The columns ``versions`` and ``commit``, for every row."""
    return {"versions": versions(), "commit": commit()}


def libraries() -> dict[str, str]:
    """Versions of e3jax and of the libraries that a run computes with, by name.

    Of e3jax it is the release, so that a change of a docstring makes no sweep start over.
    """
    return version.versions() | {"e3jax": version.VERSION}


def versions() -> str:
    """Versions of Python and of :func:`libraries`, as "python=3.11.7 e3jax=0.1.0 ..."."""
    named = {"python": platform.python_version()} | libraries()
    return " ".join(f"{name}={number}" for name, number in named.items())


def is_of_these_versions(made: str) -> bool:
    """Whether no library in a row's column ``versions`` has another version now.

    Older rows name fewer of them.
    """
    now = libraries()
    named = (package.partition("=") for package in made.split())
    return all(now.get(name, number) == number for name, _, number in named)


@functools.cache
def commit() -> str:
    """The commit of this repository, marked if files were changed since; "unknown" without Git."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        found = ""
    return found or "unknown"
