"""Measures what each operation is worth by itself, and what weights for operations gain.

For each class as the inliers, a network is trained by the quick protocol as e3outlier+ trains it.
Each operation's own scores, the NE of its views alone, then give its AUROC, and without labels its
pretext accuracy and its agreement with all other operations. The page's second table compares ways
to fuse the operations' scores.
"""

import argparse
import sys

import command
import jax
import numpy as np
import pandas as pd
import scipy.stats
from paper import figures, tables
from sweep import flags, store
from sweep.plan import QUICK_IMAGES
from sweep.provenance import provenance

from e3jax import datasets, metrics, operations
from e3jax.cli.main import path
from e3jax.datasets import contamination
from e3jax.devices import runtime
from e3jax.evidence import EVIDENCE, NETWORK, Context, fit_and_measure, fusion
from e3jax.report import sheet
from e3jax.training import fitting, rules
from e3jax.training.e3outlier import FACTORED

_RATIO = 0.1
_WHERE = ["dataset", "source", "inlier_class", "seed", "max_images", "steps"]
_OPERATION, _WAY = [*_WHERE, "operation"], [*_WHERE, "way"]  # what a row is told by


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_command = parser.add_subparsers(required=True).add_parser
    measure = add_command("measure", help="train and measure", description=measure_all.__doc__)
    flags.add_data(measure)
    measure.add_argument("--classes", type=int, nargs="+", help="inlier classes (default: all)")
    steps = FACTORED.quick_config().steps
    measure.add_argument("--steps", type=flags.positive, default=steps, help="of each training")
    measure.add_argument("--max-images", type=int, default=QUICK_IMAGES, help="of each set")
    measure.add_argument("--seed", type=int, default=0, help="draws sets and trainings")
    measure.add_argument("--out", type=path, default="runs", help="folder of the tables")
    measure.set_defaults(do=measure_all)
    draw = add_command("draw", help="draw the figure", description=draw_all.__doc__)
    draw.add_argument("tables", type=path, help="folder of the tables")
    draw.add_argument("--out", type=path, default="operations.png", help="figure to write")
    draw.set_defaults(do=draw_all)
    args = parser.parse_args()
    return command.run(lambda: args.do(args), "The same command continues.")


# --- Measuring ---------------------------------------------------------------------------------


def measure_all(args: argparse.Namespace) -> None:
    """Adds rows to operations.csv and operations_fused.csv; classes that have rows are left out."""
    single, fused = args.out / "operations.csv", args.out / "operations_fused.csv"
    store.check_csv(single, _OPERATION)
    store.check_csv(fused, _WAY)
    runtime.prepare()
    data = flags.load(args)
    classes = args.classes or range(len(data.class_names))
    how = (args.seed, args.max_images, args.steps)
    wheres = [(data.name, data.source, c, *how) for c in classes]
    todo = store.without_row(wheres, store.of_these_versions(store.rows_of(fused)), _WHERE)
    command.say(f"Plan: {len(todo)} trainings, {len(wheres) - len(todo)} finished before")
    args.out.mkdir(parents=True, exist_ok=True)
    for where in command.progress(todo, "classes"):
        of_operations, of_ways = measure(data, dict(zip(_WHERE, where, strict=True)))
        made = (*where, of_ways[0]["versions"])
        if store.without_row([made], store.rows_of(single), [*_WHERE, "versions"]):  # else cut
            store.append_rows(single, of_operations[0], of_operations)
        store.append_rows(fused, of_ways[0], of_ways)  # last: it says that the class is done
        command.say(f"class {where[2]}: AUROC {of_ways[0]['auroc']:.1%}")
    print(table(pd.read_csv(fused)), table(pd.read_csv(fused), fewer=True), sep="\n")


def measure(data: datasets.Dataset, columns: dict) -> tuple[list, list]:
    """The rows of one class: one for each operation, and one for each way to fuse them."""
    drawn = (columns["inlier_class"], _RATIO, columns["seed"])
    size = columns["max_images"] or None
    found = contamination.contaminate(data.images, data.labels, *drawn, max_images=size)
    config = FACTORED.quick_config()._replace(steps=columns["steps"])
    fitted = fitting.fit(jax.random.key(columns["seed"]), found.images, FACTORED, config)
    scores, truth = fitting.score(fitted, found.images), found.is_outlier
    ne, operation_set = scores.rules["ne"], fitting.operation_set(config.operations, fitted.side)
    agreement = agreements(ne)
    single = {"operation": operation_set.names, "family": operation_set.families}
    single |= {"auroc": [metrics.auroc(of_one, truth) for of_one in ne.T]}
    single |= {"accuracy": scores.accuracy.mean(0), "agreement": agreement}
    families = pd.DataFrame(ne.T).groupby(list(single["family"]), sort=False).mean().T
    ways = {
        "plain mean": ne.mean(1),
        "by spread": scores.weighted_mean(),
        "by agreement": ne @ agreement,
        "by spread and agreement": ne @ (agreement * rules.view_weights(ne)),
        "mean of surprises": -fusion.fuse_collection(dict(enumerate(-ne.T))),
        "median": np.median(ne, axis=1),
        **families.add_suffix(" alone"),
        "families' surprises": -fusion.fuse_collection(dict(-families)),
    }
    ways |= fewer_operations(found.images, ne)
    fused = {"way": list(ways)}
    for name in ("auroc", "aupr_out"):
        fused[name] = [getattr(metrics, name)(values, truth) for values in ways.values()]
    return tuple(
        pd.DataFrame(columns | of_rows | provenance()).to_dict("records")
        for of_rows in (single, fused)
    )


def fewer_operations(images: np.ndarray, ne: np.ndarray) -> dict[str, np.ndarray]:
    """Scores by a part of the operations, of the network alone and fused as e3outlier+ does."""
    ways, names = {}, [name for name in EVIDENCE if name != NETWORK]
    evidence = fit_and_measure(jax.random.key(0), images, names, Context())
    weights = {name: kind.weight for name, kind in EVIDENCE.items()}
    for count in (6, 12, 24, 48, ne.shape[1]):
        some = ne[:, operations.evenly(ne.shape[1], count)]
        network = (some * rules.view_weights(some)).mean(1)
        ways[f"network, {count} operations"] = network
        fused = fusion.fuse_collection(evidence | {NETWORK: -network}, weights)
        ways[f"e3outlier+, {count} operations"] = -fused
    return ways


def agreements(scores: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each operation's scores [n, k] with the mean of all others: [k]."""
    others = scores.sum(1, keepdims=True) - scores
    pairs = zip(scores.T, others.T, strict=True)
    return np.array([scipy.stats.spearmanr(own, other).statistic for own, other in pairs])


# --- Showing -----------------------------------------------------------------------------------


def table(fused: pd.DataFrame, fewer: bool = False) -> str:
    """AUROC and AUPR-out of each way to fuse operations, in percent: means over classes.

    With ``fewer``, of the scores by a part of the operations instead.
    """
    fused = store.latest(fused, _WAY)
    fused = fused[fused["way"].str.endswith(" operations") == fewer]
    means = 100 * fused.groupby(["way", "dataset"], sort=False)[["auroc", "aupr_out"]].mean()
    texts = means["auroc"].map("{:.1f} / ".format) + means["aupr_out"].map("{:.1f}".format)
    found = texts.unstack(sort=False)
    head = "scores by" if fewer else "scores of operations fused by"
    text = tables.table([head, *found], found.reset_index().to_numpy())
    return text + tables.versions_note(fused)


def prediction_table(single: pd.DataFrame) -> str:
    """How well what is known without labels predicts each operation's AUROC, class by class."""
    single = store.latest(single, _OPERATION)
    lines, estimates = [], ["agreement", "accuracy"]
    for name, rows in single.groupby("dataset", sort=False):
        of_classes = rows.groupby(["inlier_class", "seed"])[["auroc", *estimates]].corr("spearman")
        found = of_classes.xs("auroc", level=-1)[estimates].agg(["mean", "min", "max"])
        texts = ["{mean:.2f} ({min:.2f} to {max:.2f})".format(**found[e]) for e in estimates]
        means = rows.groupby("operation")[["auroc", "agreement"]].mean()
        texts = [*texts, f"{means.corr('spearman').iloc[0, 1]:.2f}"]
        of_family = 100 * rows.groupby("family", sort=False)["auroc"].mean()
        lines.append([name, *(f"{auroc:.1f}" for auroc in of_family), *texts])
    families = [f"{name}, AUROC of one" for name in dict.fromkeys(single["family"])]
    head = ["images", *families, "agreement", "pretext accuracy", "agreement, means over classes"]
    return tables.table(head, lines) + tables.versions_note(single)


def draw_all(args: argparse.Namespace) -> None:
    """Draws each operation's AUROC against its agreement with the others, means over classes."""
    source = args.tables / "operations.csv"
    sheet.check_output(args.out, [source])
    single = store.latest(pd.read_csv(source), _OPERATION)
    keys = ["dataset", "family", "operation"]
    means = single.groupby(keys, sort=False)[["agreement", "auroc"]].mean().reset_index()
    means["auroc"] *= 100
    figures.plot_operations(args.out, means)
    command.say(f"The figure is in {args.out}")


if __name__ == "__main__":
    sys.exit(main())
