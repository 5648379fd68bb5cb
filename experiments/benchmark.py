"""Runs E3Outlier and what it is compared with on a benchmark; writes tables and figures.

Each class in turn is the inliers; outliers are drawn from the others. Everything that is finished
stays on disk: the same command again, also after Ctrl-C or a crash, does only what is missing.
"""

import argparse
import sys

from sweep import cli, flags, methods
from sweep.plan import Variant

from e3jax.cli.arguments import path
from e3jax.collection.features import check_source
from e3jax.errors import InputError
from e3jax.methods import fused


def parse_args() -> argparse.Namespace:
    parser = flags.sweep_parser(__doc__)
    flags.add_network_and_operations(parser)
    add = parser.add_argument
    add("--ratios", type=float, nargs="+", default=[0.1], help="outlier ratios (shares of the set)")
    add(
        "--methods",
        default=methods.DEFAULT_METHODS,
        nargs="+",
        metavar="METHOD",
        choices=("all", *methods.METHODS),
        help=f"methods to compare: {', '.join(methods.METHODS)}; those that share a training are "
        "run together. all: Table 1, RDAE as published, and what needs no training",
    )
    add(
        "--features",
        type=path,
        metavar="MODEL.onnx",
        help="a model of yours: also compare its features, and e3outlier+ with them",
    )
    args = flags.parse(parser)
    if args.features:
        if args.engine != "local":
            parser.error("--features needs --engine local")
        try:
            check_source(args.features)
        except InputError as error:
            parser.error(str(error))
        for method in fused.featured(args.features):
            methods.register(method)
    return args


def main() -> int:
    args = parse_args()
    names = methods.TABLE_METHODS if "all" in args.methods else args.methods
    names = [*names, *["features"] * bool(args.features)]
    return cli.run(args, lambda protocol: [Variant(protocol, names, args.ratios)])


if __name__ == "__main__":
    sys.exit(main())
