"""What E3Outlier's performance depends on: Figs. 5 and 6 of the paper, each factor by itself.

Trains what is missing of a factor's variants and draws the figures. Runs are those of benchmark.py,
kept in the same way: what it has done in --results-dir is not done again, and the same command
continues after Ctrl-C or a crash.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from paper import figures
from sweep import cli, flags, methods
from sweep.plan import Protocol, Variant

RATIOS = (0.005, 0.05, 0.1, 0.15, 0.2, 0.25)
NETWORKS = ("resnet-20", "resnet-50", "densenet-40")


def parse_args() -> argparse.Namespace:
    parser = flags.parser(__doc__)
    flags.add_data(parser)
    parser.add_argument(
        "--factors",
        nargs="+",
        default=tuple(FACTORS),
        choices=tuple(FACTORS),
        help="ratios: Fig. 5; operations, networks, scores, epochs: Fig. 6 a to d",
    )
    flags.add_protocol(parser)
    flags.add_sweep(parser)
    return flags.parse(parser)


def main() -> int:
    args = parse_args()
    return cli.run(
        args,
        lambda base: variants(base, args.factors),
        lambda folder: figures.draw(folder.path, folder.rows()),
    )


def variants(base: Protocol, factors: Sequence[str]) -> list[Variant]:
    """The unchanged training, then each factor's."""
    return [_variant(base), *(v for factor in factors for v in FACTORS[factor](base))]


def _variant(base: Protocol, methods: Sequence[str] = ("e3outlier",), **changed) -> Variant:
    return Variant(base._replace(**changed), methods, (0.1,))


# Each factor's variants. All scores are of the same training; operations are compared at their own
# lengths and at the other ones.
FACTORS: dict[str, Callable[[Protocol], list[Variant]]] = {
    "ratios": lambda base: [Variant(base, methods.DEFAULT_METHODS, RATIOS)],
    "operations": lambda base: [
        _variant(base, operations=names, other_length=other)
        for names in ("RA", "RA+IA")
        for other in (False, True)
    ],
    "networks": lambda base: [_variant(base, network=network) for network in NETWORKS],
    "scores": lambda base: [],
    "epochs": lambda base: [_variant(base, methods=("e3outlier-epoch10",))],
}


if __name__ == "__main__":
    sys.exit(main())
