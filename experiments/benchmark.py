"""Runs E3Outlier and what it is compared with on a benchmark; writes tables and figures.

Each class in turn is the inliers; outliers are drawn from the others. Everything that is finished
stays on disk: the same command again, also after Ctrl-C or a crash, does only what is missing.
"""

import argparse
import sys

from sweep import cli, flags, methods
from sweep.plan import Protocol, Variant


def parse_args() -> argparse.Namespace:
    parser = flags.parser(__doc__)
    flags.add_data(parser)
    add = parser.add_argument
    add("--ratios", type=float, nargs="+", default=[0.1], help="outlier ratios, share of the set")
    add(
        "--methods",
        nargs="+",
        default=methods.DEFAULT_METHODS,
        choices=("all", *methods.METHODS),
        metavar="METHOD",
        help=f"what to compare: {', '.join(methods.METHODS)}; methods that share a training are "
        "all done by it. all: Table 1, RDAE as published and pixels",
    )
    flags.add_protocol(parser)
    flags.add_network_and_operations(parser)
    flags.add_sweep(parser)
    return flags.parse(parser)


def main() -> int:
    args = parse_args()
    names = methods.TABLE_METHODS if "all" in args.methods else args.methods

    def variants(protocol: Protocol) -> list[Variant]:
        return [Variant(protocol, names, args.ratios)]

    return cli.run(args, variants)


if __name__ == "__main__":
    sys.exit(main())
