"""Prints the tables of results.csv files, as the README shows them, and draws their figures."""

import argparse
import sys
from pathlib import Path

import figures
from sweep import store

from e3jax import report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", help="results.csv files, e.g. results/quick.csv")
    parser.add_argument("--summary", action="store_true", help="means only, one line a table")
    parser.add_argument(
        "--figures", metavar="FOLDER", type=Path, help="draw Figs. 1 b, 5 and 6 there instead"
    )
    arguments = parser.parse_args()
    try:
        rows = [row for path in arguments.files for row in store.read_csv(path)]
    except (OSError, KeyError, ValueError) as error:
        print(f"error: {error!r}: expected files written by benchmark.py", file=sys.stderr)
        return 2
    if arguments.figures:
        arguments.figures.mkdir(parents=True, exist_ok=True)
        print("\n".join(map(str, figures.draw(arguments.figures, rows))))
        return 0
    print(report.summary(rows) if arguments.summary else report.markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
