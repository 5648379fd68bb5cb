"""Prints the tables of results.csv files, as the README shows them."""

import argparse
import sys

import sweep

from e3jax import report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", help="results.csv files, e.g. results/quick.csv")
    parser.add_argument("--summary", action="store_true", help="means only, one line a table")
    arguments = parser.parse_args()
    try:
        rows = [row for path in arguments.files for row in sweep.read_csv(path)]
    except (OSError, KeyError, ValueError) as error:
        print(f"error: {error!r}: expected files written by benchmark.py", file=sys.stderr)
        return 2
    print(report.summary(rows) if arguments.summary else report.markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
