"""Which versions of libraries made the rows of a table, from their column ``versions``."""

import collections
from collections.abc import Iterable

import pandas as pd

# The number of rows by version, by package.
Counts = dict[str, collections.Counter]


def counts(runs: pd.DataFrame) -> Counts:
    """How many rows name which version of each package."""
    named = collections.defaultdict(collections.Counter)
    for versions, count in runs.get("versions", pd.Series(dtype=str)).value_counts().items():
        for package in versions.split():
            name, _, version = package.partition("=")
            named[name][version] += count
    return dict(named)


def is_mixed(runs: pd.DataFrame) -> bool:
    """Whether different versions of a library made these rows; Python computes nothing."""
    return any(len(versions) > 1 for name, versions in counts(runs).items() if name != "python")


def note(runs: pd.DataFrame) -> str:
    """A paragraph for under a table whose rows different versions made; "" if the same did."""
    if not is_mixed(runs):
        return ""
    mixed = {name: versions for name, versions in counts(runs).items() if len(versions) > 1}
    return f"\n\n⚠ Rows of different versions are averaged: {_listed(mixed, len(runs))}."


def sentence(tables: Iterable[pd.DataFrame]) -> str:
    """What made the rows of several tables, by how many of them name it."""
    runs = pd.concat([rows.reindex(columns=["versions"]) for rows in tables])
    return _listed(counts(runs), len(runs))


def _listed(named: Counts, rows: int) -> str:
    """Names and versions, with the number of rows of each that is not of all."""
    texts = []
    for name, versions in named.items():
        each = (v if n == rows else f"{v} ({n} of {rows} rows)" for v, n in versions.items())
        texts.append(f"{name} {' and '.join(each)}")
    return ", ".join(texts)
