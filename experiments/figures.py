"""The paper's Figs. 1 b, 5 and 6 from rows of results.csv, beside the paper's numbers."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sweep import methods
from sweep.plan import OPERATIONS

from e3jax import report, training

# Behind a protocol's name: the lengths of Fig. 6 a that are not the protocol's own, and Fig. 6 d.
BY_EPOCHS, EQUAL_STEPS, EPOCHS = "-by-epochs", "-equal-steps", "-10epochs"
_RATIO = 0.1
_COMPARED = set(methods.TABLE_METHODS) - {"e3outlier-pl", "e3outlier-mp"}
_SCORES = {"e3outlier-pl": "PL", "e3outlier-mp": "MP", "e3outlier": "NE"}
_REPRESENTATIONS = {"cae-if": "CAE", "ssd-if": "SSD"}
# What has names stands in this order, then by them.
_ORDER = ("CAE", "SSD", "PL", "MP", "NE", "RA", "RA+IA", "RA+IA+PR")
_LENGTHS = ("equal steps", "the paper's epochs")


class Place(NamedTuple):
    """Where a row stands in a figure, and (ratio, method) of the paper's number there."""

    series: str
    x: str | float
    paper: tuple[float, str] = (0.0, "")


def draw(folder: Path, rows: Sequence[dict]) -> list[Path]:
    """Draws every figure that the rows have something of, one file a protocol."""
    families = sorted({_family(row) for row in rows} - {""})
    drawn = []
    for family in families:
        mine = [row for row in rows if _family(row) in ("", family)]
        for name, (title, xlabel, place) in FIGURES.items():
            if panels := list(_panels(mine, family, place)):
                drawn.append(folder / f"{name}-{family}.png")
                report.plot_factor(drawn[-1], panels, f"{title}; protocol {family}", xlabel)
    return drawn


def _family(row: dict) -> str:
    """The protocol that a row's is a variant of; "" if it has none."""
    return re.sub(f"({BY_EPOCHS}|{EQUAL_STEPS}|{EPOCHS})$", "", row["protocol"])


def _panels(rows: Sequence[dict], family: str, place: Callable) -> Iterator[report.Panel]:
    """A panel for every data set in which the factor takes two values or more.

    Points are compared over the classes that all of them have.
    """
    by_images = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        for where in place(row, family):
            cells = by_images[row["dataset"], row["source"], row.get("max_images") or 0][where]
            cells[row["seed"], row["inlier_class"]] = 100 * row["auroc"]
    for (dataset, source, _), points in by_images.items():
        classes = set.intersection(*({c for _, c in cells} for cells in points.values()))
        if len({where.x for where in points}) < 2 or not classes:
            continue
        panel = report.Panel(f"{dataset}, {source}\nclasses: {len(classes)}", defaultdict(dict))
        for where, cells in sorted(points.items(), key=lambda item: _rank(item[0].x)):
            seeds = {seed for seed, _ in cells}
            whole = [s for s in sorted(seeds) if all((s, c) in cells for c in classes)]
            means = [sum(cells[s, c] for c in classes) / len(classes) for s in whole]
            paper = report.PAPER.get((dataset, *where.paper), (None,))[0]
            if means:
                panel.series[where.series][where.x] = report.Point(means, paper)
        yield panel


def _rank(x: str | float) -> tuple:
    return _ORDER.index(x) if x in _ORDER else len(_ORDER), x


def _is_standard(row: dict, family: str, but: str = "") -> bool:
    """Whether a row's run is the protocol's own, but perhaps for one factor."""
    config = training.quick_config() if family.startswith("quick") else training.TrainConfig()
    return all(
        row[factor] in ("", expected) or factor == but
        for factor, expected in (
            ("protocol", family),
            ("network", config.network),
            ("operations", OPERATIONS),
        )
    )


def _place_representations(row: dict, family: str) -> list[Place]:
    method = row["method"]
    if method in _REPRESENTATIONS and row["ratio"] == _RATIO and _is_standard(row, family):
        return [Place("isolation forest", _REPRESENTATIONS[method], (_RATIO, method))]
    return []


def _place_ratios(row: dict, family: str) -> list[Place]:
    method, ratio = row["method"], round(row["ratio"], 4)
    if method not in _COMPARED or not _is_standard(row, family):
        return []
    return [Place(method, 100 * ratio, (ratio, method))]


def _is_of_fig6(row: dict) -> bool:
    return row["ratio"] == _RATIO and row["method"] == "e3outlier"


def _place_operations(row: dict, family: str) -> list[Place]:
    names = row["operations"]
    if not _is_of_fig6(row) or not _is_standard(row | {"protocol": ""}, family, "operations"):
        return []
    if names == OPERATIONS:
        return [Place(length, names, (_RATIO, "e3outlier")) for length in _LENGTHS]
    # A length in steps is the same for all sets, one in epochs is the paper's.
    by_epochs = family.startswith("paper")
    if row["protocol"] != family:
        by_epochs = row["protocol"].endswith(BY_EPOCHS)
    return [Place(_LENGTHS[by_epochs], names)]


def _place_networks(row: dict, family: str) -> list[Place]:
    if not _is_of_fig6(row) or not _is_standard(row, family, "network"):
        return []
    paper = (_RATIO, "e3outlier") if row["network"] == training.TrainConfig().network else (0.0, "")
    return [Place("NE", row["network"], paper)]


def _place_scores(row: dict, family: str) -> list[Place]:
    method = row["method"]
    if method in _SCORES and row["ratio"] == _RATIO and _is_standard(row, family):
        return [Place("E³Outlier", _SCORES[method], (_RATIO, method))]
    return []


def _place_epochs(row: dict, family: str) -> list[Place]:
    epoch = re.fullmatch(r"e3outlier-epoch(\d+)", row["method"])
    if not epoch or row["ratio"] != _RATIO or not _is_standard(row, family + EPOCHS):
        return []
    paper = (_RATIO, "e3outlier") if int(epoch[1]) == 3 else (0.0, "")
    return [Place("NE", int(epoch[1]), paper)]


# By the name of its file: title, what is on the x axis, and where a row stands.
FIGURES: dict[str, tuple[str, str, Callable[[dict, str], list[Place]]]] = {
    "fig1b-representations": (
        "Fig. 1 b: isolation forest on representations",
        "representation",
        _place_representations,
    ),
    "fig5-ratios": ("Fig. 5: outlier ratio", "ρ (%)", _place_ratios),
    "fig6a-operations": ("Fig. 6 a: operations", "operations", _place_operations),
    "fig6b-networks": ("Fig. 6 b: network", "network", _place_networks),
    "fig6c-scores": ("Fig. 6 c: score", "score", _place_scores),
    "fig6d-epochs": ("Fig. 6 d: epochs", "epochs", _place_epochs),
}
