"""What E3Outlier's performance depends on: Figs. 5 and 6 of the paper, each factor by itself.

Trains what is missing of a factor's variants and draws the figures. Runs are those of benchmark.py,
kept in the same way: what it has done in --results-dir is not done again, and the same command
continues after Ctrl-C or a crash.
"""

import functools
import sys
from collections.abc import Sequence

from paper import figures
from sweep import cli, flags, methods
from sweep.plan import Protocol, Variant

FACTORS = ("ratios", "operations", "networks", "scores", "epochs")
RATIOS = (0.005, 0.05, 0.1, 0.15, 0.2, 0.25)
NETWORKS = ("resnet-20", "resnet-50", "densenet-40")


def main() -> int:
    parser = flags.sweep_parser(__doc__)
    text = "factors to vary. ratios: Fig. 5; operations, networks, scores, epochs: Fig. 6 a to d"
    parser.add_argument("--factors", nargs="+", default=FACTORS, choices=FACTORS, help=text)
    args = flags.parse(parser)
    plan = functools.partial(variants, factors=args.factors)
    return cli.run(args, plan, figures.draw, figures.factor_files)


def variants(base: Protocol, factors: Sequence[str]) -> list[Variant]:
    """The unchanged training, then each factor's. All scores are of the same training."""
    unchanged = Variant(base, ("e3outlier",), (0.1,))
    # Compared at their own lengths and at the other ones.
    operations = [base._replace(operations=names) for names in ("RA", "RA+IA")]
    lengths = [p._replace(other_length=other) for p in operations for other in (False, True)]
    changed = {
        "ratios": [Variant(base, methods.DEFAULT_METHODS, RATIOS)],
        "operations": [unchanged._replace(protocol=protocol) for protocol in lengths],
        "networks": [unchanged._replace(protocol=base._replace(network=n)) for n in NETWORKS],
        "scores": [],
        "epochs": [unchanged._replace(methods=("e3outlier-epoch10",))],
    }
    return [unchanged, *(variant for factor in factors for variant in changed[factor])]


if __name__ == "__main__":
    sys.exit(main())
