"""What E3Outlier's performance depends on: Figs. 5 and 6 of the paper, each factor by itself.

Trains what is missing of a factor's variants and draws the figures. Runs are those of benchmark.py,
kept in the same way: what it has done in --results-dir is not done again, and the same command
continues after Ctrl-C or a crash.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence

import benchmark
import figures
import protocols
import runs
from benchmark import Variant
from protocols import OPERATIONS, Protocol

from e3jax import operations

RATIO = 0.1
RATIOS = (0.005, 0.05, 0.1, 0.15, 0.2, 0.25)
NETWORKS = ("resnet-20", "resnet-50", "densenet-40")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    protocols.add_data_arguments(parser)
    parser.add_argument(
        "--factors",
        nargs="+",
        default=tuple(FACTORS),
        choices=tuple(FACTORS),
        help="ratios: Fig. 5; operations, networks, scores, epochs: Fig. 6 a to d",
    )
    protocols.add_arguments(parser)
    benchmark.add_sweep_arguments(parser)
    return benchmark.parse(parser)


def main() -> int:
    arguments = parse_arguments()
    return benchmark.run(
        arguments,
        lambda base: variants(base, arguments.factors),
        lambda folder: figures.draw(folder.path, folder.rows()),
    )


def variants(base: Protocol, factors: Sequence[str]) -> list[Variant]:
    """The unchanged training, then each factor's."""
    return [_variant(base), *(v for factor in factors for v in FACTORS[factor](base))]


def _variant(
    protocol: Protocol,
    operation_names: str = OPERATIONS,
    methods: Sequence[str] = ("e3outlier",),
    ratios: Sequence[float] = (RATIO,),
) -> Variant:
    return Variant(protocol, operation_names, methods, ratios)


def _ratios(base: Protocol) -> list[Variant]:
    return [_variant(base, methods=runs.DEFAULT_METHODS, ratios=RATIOS)]


def _operations(base: Protocol) -> list[Variant]:
    """Subsets of operations, at the paper's lengths and at equal ones.

    The paper trains for ceil(250 / k) epochs over n * k views: 288 n, 264 n and 333 n views for RA,
    RA+IA and all. A length in steps, as quick's, is the same for all sets as it stands.
    """
    most, found = _views(OPERATIONS), []
    for names in ("RA", "RA+IA"):
        share = _views(names) / most
        if base.config.steps:
            change = {"steps": round(base.config.steps * share)}
        else:
            change = {"epochs": math.ceil(250 / _k(names)) / share}
        suffix = figures.BY_EPOCHS if base.config.steps else figures.EQUAL_STEPS
        changed = Protocol(base.name + suffix, base.config._replace(**change), base.max_images)
        found += [_variant(base, names), _variant(changed, names)]
    return found


def _k(names: str) -> int:
    return len(operations.paper_operations(names))


def _views(names: str) -> int:
    """Views an image is trained on, in the paper."""
    return math.ceil(250 / _k(names)) * _k(names)


def _networks(base: Protocol) -> list[Variant]:
    configs = (base.config._replace(network=network) for network in NETWORKS)
    return [_variant(base._replace(config=config)) for config in configs]


def _scores(base: Protocol) -> list[Variant]:
    """None: every training gives all three."""
    return []


def _epochs(base: Protocol) -> list[Variant]:
    return [_variant(base, methods=("e3outlier-epoch10",))]


FACTORS: dict[str, Callable[[Protocol], list[Variant]]] = {
    "ratios": _ratios,
    "operations": _operations,
    "networks": _networks,
    "scores": _scores,
    "epochs": _epochs,
}


if __name__ == "__main__":
    sys.exit(main())
