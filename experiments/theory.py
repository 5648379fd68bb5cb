"""Tests eq. 3 of the paper, the inliers' priority in gradient magnitude, where it is stated.

A network with one hidden layer of L sigmoids, all weights i.i.d. U[-1, 1], untrained; w_c is column
c of its last layer with its bias; gradients are summed over a group's views of operation c. Eq. 3:

    E ||grad_{w_c} L_in||^2 / E ||grad_{w_c} L_out||^2  ~  N_in^2 / N_out^2,    E over the weights.

What it leaves out: the norm is sum_ij E[(1 - p_i) (1 - p_j) (h_i . h_j + 1)], h_i a view's hidden
layer, p_i its softmax at c. Columns are exchangeable, so E[p_i | h] = 1/K; and as h >= 0, the
factors 1 - p leave the sum between 1 - 2/K and 1 - 1/K times Q = sum_ij (E[h_i . h_j] + 1). Within
0.9 % the ratio is that of the groups' Q, in closed form in ``kernel_sums``. Of a unit, E[h_i h_j]
is 1/4 plus a covariance and at most 1/2, and covariances sum to >= 0: Q lies between N^2 (L/4 + 1)
and N^2 (L/2 + 1) for any images, and eq. 3 is never wrong by more than a factor 2. It is right
where both groups are equally coherent, and wrong where one has images that are alike and the other
not; a group of one or two is coherent by its diagonal.

Sets are contaminated as in the benchmark. All rows share their initialisations: they differ by
their images, and their errors are not independent. Intervals: 95 %, percentile bootstrap over
initialisations, of the ratio of means.
"""

import argparse
import functools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import command
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sweep import flags, store
from sweep.provenance import provenance

from e3jax import datasets, operations, priority
from e3jax.cli.main import path
from e3jax.datasets import contamination
from e3jax.devices import runtime
from e3jax.images import to_unit
from e3jax.report.sheet import check_output, save_figure

DATASETS = ("mnist", "fashion_mnist", "cifar10")
OPERATIONS = ["identity", "shift(0,-8)", "turn90", "rotate30", "patches3210"]
_IMAGES, _MANY_IMAGES = 500, 5000  # in a set
_FEW = (1, 2, 5, 10)  # outliers
_BLOCK = 2500  # views at a time
_RESAMPLES = 2000
_MEASURED, _KERNEL = "measured_over_predicted", "kernel_prediction_over_predicted"
_COLUMNS = ("case", "source", "varied", "inlier_class")  # that rows begin with
_TICKS = (0.5, 0.6, 0.8, 1, 1.25, 1.6, 2)


# --- The network, its gradients and the kernel -------------------------------------------------


def initialise(key: jax.Array, inputs: int, hidden: int, k: int) -> list[jax.Array]:
    """Biases and kernel of the last layer, then of the hidden one, all i.i.d. U[-1, 1]."""
    shapes = ((k,), (hidden, k), (hidden,), (inputs, hidden))
    keys = zip(jax.random.split(key, len(shapes)), shapes, strict=True)
    return [jax.random.uniform(key, shape, minval=-1, maxval=1) for key, shape in keys]


def apply(weights: list[jax.Array], views: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits [v, k] and representation [v, hidden] of flat views [v, inputs]."""
    head_bias, head, hidden_bias, hidden = weights
    representation = jax.nn.sigmoid(views @ hidden + hidden_bias[None])
    return representation @ head + head_bias[None], representation


@functools.partial(jax.jit, static_argnames=("hidden", "k"))
def squared_gradients(keys, views, labels, groups, hidden: int, k: int) -> jax.Array:
    """||grad_{w_c} L||^2 of every group for every c: float32 [s, g, k], keys [s] initialise.

    ``views`` float [v, inputs], ``labels`` int [v], ``groups`` bool [g, v]. One initialisation at
    a time, so memory does not grow with their number.
    """

    def of_one(key):
        variables = initialise(key, views.shape[1], hidden, k)
        options = {"per_operation": True, "block": min(_BLOCK, len(views))}
        return priority.gradient_magnitude(apply, variables, views, labels, groups, **options) ** 2

    return jax.lax.map(of_one, keys)


@functools.partial(jax.jit, static_argnames="hidden")
def kernel_sums(views: jax.Array, groups: jax.Array, hidden: int) -> jax.Array:
    """Q = sum_ij (E[h_i . h_j] + 1) over the views of every group: float32 [g].

    A unit's inputs are nearly Gaussian, of covariance c_ij = (x_i . x_j + 1) / 3 over its weights.
    With the sigmoid as the distribution function of a normal of standard deviation 1.702,
    E[h_i h_j] = 1/4 + arcsin(c_ij / sqrt((c_ii + 1.702^2) (c_jj + 1.702^2))) / (2 pi).
    """
    covariance = (jnp.matmul(views, views.T, precision="highest") + 1) / 3
    scale = jnp.sqrt(jnp.diag(covariance) + 1.702**2)
    unit = 1 / 4 + jnp.arcsin(covariance / jnp.outer(scale, scale)) / (2 * jnp.pi)
    groups = groups.astype(jnp.float32)
    return jnp.einsum("gi,ij,gj->g", groups, hidden * unit + 1, groups)


# --- The cases and their measurement -----------------------------------------------------------


class Case(NamedTuple):
    """Images to contaminate and how.

    Attributes:
      varied: the column over which the rows of this data set with this value form a series.
      most_outliers: only the first so many of the outliers drawn count; None: all.
    """

    data: datasets.Dataset
    inlier_class: int
    hidden: int
    ratio: float = 0.1
    varied: str = "ratio"
    max_images: int = _IMAGES
    most_outliers: int | None = None

    def vary(self, column: str, field: str, values: Sequence) -> Iterator["Case"]:
        """Cases that differ in one field, which shows in one column of the rows."""
        return (self._replace(**{"varied": column, field: value}) for value in values)


def real_cases(args: argparse.Namespace, announce) -> Iterator[Case]:
    """Every class of every data set; for the first also few outliers, and ten times the images."""
    for name in args.datasets:
        data = datasets.load(name, data_dir=args.data_dir, announce=announce)
        classes = range(len(data.class_names))
        # The order is that of a content hash: the first of a class are a random draw.
        few = np.concatenate([np.flatnonzero(data.labels == c)[:_IMAGES] for c in classes])
        few = data._replace(images=data.images[few], labels=data.labels[few])
        for c in classes:
            yield from Case(few, c, args.hidden).vary("ratio", "ratio", args.ratios)
        yield from Case(few, 0, args.hidden).vary("n_outliers", "most_outliers", _FEW)
        yield from Case(data, 0, args.hidden).vary("n_inliers", "max_images", [_MANY_IMAGES])


def synthetic_cases(args: argparse.Namespace) -> Iterator[Case]:
    """Groups of noise, which are incoherent, and of noisy copies of one image, which are not."""
    generator, shape = np.random.default_rng(0), (datasets.SIDE, datasets.SIDE, 1)

    def noise(n=_IMAGES):
        return generator.integers(0, 256, (n, *shape))

    def like(image):
        return (image + generator.normal(0, 25, (_IMAGES, *shape))).round().clip(0, 255)

    one, other = noise(1), noise(1)
    pairs = {
        "all noise": (noise(), noise()),
        "all like one image": (like(one), like(one)),
        "like two images": (like(one), like(other)),
        "inliers alike, outliers noise": (like(one), noise()),
        "inliers noise, outliers alike": (noise(), like(one)),
    }
    labels = np.repeat([0, 1], _IMAGES)
    for name, groups in pairs.items():
        images = np.concatenate(groups).astype(np.uint8)
        data = datasets.Dataset(name, images, labels, ("inliers", "outliers"), "synthetic")
        case = Case(data, 0, args.hidden)
        yield from case.vary("ratio", "ratio", args.ratios)
        if name == "all noise":
            yield from case.vary("n_outliers", "most_outliers", _FEW)
        if name == "inliers alike, outliers noise":
            yield from case.vary("hidden", "hidden", (1, 4, 16, 64, 256))


def measure(case: Case, operation_set, initialisations: int) -> pd.DataFrame:
    """The rows of a contaminated set, one for each of OPERATIONS."""
    where = (case.data.images, case.data.labels, case.inlier_class, case.ratio, 0)
    drawn = contamination.contaminate(*where, max_images=case.max_images)
    counted = np.cumsum(drawn.is_outlier) <= (case.most_outliers or len(drawn.images))
    groups = np.stack([~drawn.is_outlier, drawn.is_outlier & counted])
    n_inliers, n_outliers = groups.sum(axis=1)

    chosen = np.array([operation_set.names.index(name) for name in OPERATIONS])
    labels = chosen.repeat(len(drawn.images))
    images = jnp.tile(to_unit(jnp.asarray(drawn.images)), (len(chosen), 1, 1, 1))
    views = jax.jit(operations.views_of)(operation_set, images, labels).reshape(len(labels), -1)
    keys = jax.random.split(jax.random.key(0), initialisations)
    every = (views, labels, np.tile(groups, len(chosen)))
    squares = squared_gradients(keys, *every, case.hidden, len(operation_set))
    measured, low, high = ratio_of_means(*np.float64(squares)[:, :, chosen].swapaxes(0, 1))
    sums = [kernel_sums(views[labels == c], groups, case.hidden) for c in chosen]

    rows = {"case": case.data.name, "source": case.data.source, "varied": case.varied}
    rows |= {"inlier_class": case.inlier_class, "ratio": n_outliers / groups.sum()}
    rows |= {"n_inliers": n_inliers, "n_outliers": n_outliers, "hidden": case.hidden}
    rows |= {"initialisations": initialisations, "operation": OPERATIONS}
    predicted = (n_inliers / n_outliers) ** 2
    rows |= {"measured_ratio": measured, "predicted_ratio": predicted}
    rows |= {_MEASURED: measured / predicted, "low": low / predicted, "high": high / predicted}
    rows |= {_KERNEL: [float(q_in / q_out) / predicted for q_in, q_out in sums]}
    return pd.DataFrame(rows)


def ratio_of_means(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """mean(a) / mean(b) over the first axis, and the ends of its bootstrap interval."""
    draws = np.random.default_rng(0).multinomial(len(a), np.full(len(a), 1 / len(a)), _RESAMPLES)
    low, high = np.percentile((draws @ a) / (draws @ b), [2.5, 97.5], axis=0)
    return a.mean(axis=0) / b.mean(axis=0), low, high


# --- The figure --------------------------------------------------------------------------------


def draw(rows: pd.DataFrame) -> Figure:
    """Measured and kernel prediction, both over eq. 3's.

    Over the ratio for the classes of each real data set and for the synthetic images, over few
    outliers, over the hidden units, all for the identity; last, all rows against each other.
    """
    is_made = rows["source"] == "synthetic"
    real, made = rows[~is_made], rows[is_made]
    panels = [
        (f"{name}, a colour per inlier class", of_set, "ratio", "outlier ratio ρ")
        for name, of_set in real.groupby("case", sort=False)
    ]
    panels += [
        ("synthetic images", made, "ratio", "outlier ratio ρ"),
        ("few outliers, 450 inliers", rows, "n_outliers", "outliers"),
        ("hidden units", made, "hidden", "units L"),
    ]
    columns = len(panels) // 2 + 1
    figure = Figure(figsize=(4.2 * columns, 8), layout="constrained")
    figure.suptitle(
        "Ratio of mean squared gradient norms over eq. 3's N_in² / N_out²: measured (points, 95 % "
        "intervals) and predicted from the kernel (dashes); dotted: no images can leave this"
    )
    for i, panel in enumerate(panels):
        _panel(figure.add_subplot(2, columns, i + 1), *panel)
    axes = figure.add_subplot(2, columns, len(panels) + 1, title="all sets and operations")
    for name, of_kind in (("real images", real), ("synthetic images", made)):
        axes.loglog(of_kind[_KERNEL], of_kind[_MEASURED], ".", ms=4, label=name, subs=[])
    axes.axline((0.5, 0.5), (2, 2), color="grey", linewidth=0.8)
    axes.set(xlabel="kernel prediction over eq. 3's", ylabel="measured over eq. 3's")
    axes.legend(loc="upper left", fontsize=8, frameon=False)
    axes.set(xticks=_TICKS, yticks=_TICKS, xticklabels=_TICKS, yticklabels=_TICKS)
    return figure


def _panel(axes: Axes, title: str, rows: pd.DataFrame, varied: str, xlabel: str) -> None:
    """The identity's rows of one sweep, at equal distances, the series side by side."""
    rows = rows[(rows["varied"] == varied) & (rows["operation"] == OPERATIONS[0])]
    values, of_set = sorted(set(rows[varied])), rows["inlier_class"].nunique() > 1
    series = rows.groupby("inlier_class" if of_set else "case", sort=False)
    axes.axhline(1, color="grey", linewidth=0.8)
    for s, (name, group) in enumerate(series):
        x = group[varied].map(values.index) + 0.7 * ((s + 0.5) / len(series) - 0.5)
        y = group[_MEASURED]
        axes.plot(x, group[_KERNEL], "_", color="black", markersize=7)
        bars = [y - group["low"], group["high"] - y]
        axes.errorbar(x, y, bars, fmt="o", ms=3.5, color=f"C{s}", label=str(name))
    axes.set_xticks(range(len(values)), [f"{100 * v:.2g} %" if v < 1 else str(v) for v in values])
    axes.set(title=title, xlabel=xlabel, ylim=(0.75, 1.25) if of_set else (0.25, 2.2))
    if not of_set:
        axes.hlines([0.5, 2], *axes.get_xlim(), color="grey", linewidth=0.8, linestyle=":")
        axes.set_yscale("log", subs=[])
        axes.set_yticks(_TICKS, _TICKS)
    axes.legend(fontsize=8, loc="lower right", ncols=5 if of_set else 1, frameon=False)


# --- The command -------------------------------------------------------------------------------


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--data-dir", type=path, help="folder with data prepared by TFDS (or set TFDS_DATA_DIR)")
    most = f"real images (default: {', '.join(DATASETS)} if a data folder is given, else mnist)"
    add("--datasets", nargs="*", choices=datasets.NAMES, help=most)
    ratios = (0.05, 0.1, 0.15, 0.2, 0.25)
    add("--ratios", type=float, nargs="+", default=ratios, help="outliers' shares of the set")
    add("--initialisations", type=int, default=200, help="of the network, at least 10 (200)")
    add("--hidden", type=flags.positive, default=64, help="units L (64)")
    add(
        "--results-dir",
        type=path,
        default="runs/theory",
        help="for theory.csv, .png, .pdf (runs/theory)",
    )
    args = parser.parse_args()
    if args.initialisations < 10:
        parser.error("--initialisations must be at least 10: fewer give no interval")
    if args.datasets is None:
        given = args.data_dir or os.environ.get("TFDS_DATA_DIR")
        args.datasets = DATASETS if given else DATASETS[:1]
    return command.run(lambda: run(args), "Nothing is written before the end.")


def run(args: argparse.Namespace) -> None:
    """Measures every case, then writes the rows and the figure."""
    folder, operation_set = Path(args.results_dir), operations.operation_set()
    table, drawn = folder / "theory.csv", [folder / f"theory.{kind}" for kind in ("png", "pdf")]
    store.check_csv(table, _COLUMNS)
    for figure in drawn:
        check_output(figure)
    runtime.prepare()
    names = ", ".join([*args.datasets, "synthetic images"])
    command.say(f"Eq. 3 on {names}, {args.initialisations} initialisations per set")
    folder.mkdir(parents=True, exist_ok=True)
    cases = [*real_cases(args, command.say), *synthetic_cases(args)]
    command.say(f"Plan: {len(cases)} sets")
    each = command.progress(cases, "sets")
    rows = pd.concat([measure(case, operation_set, args.initialisations) for case in each])
    rows = rows.assign(device=jax.devices()[0].device_kind, **provenance())
    store.write_csv(table, rows.to_dict("records"), rows)
    for figure in drawn:
        save_figure(figure, draw(rows))
    command.say(f"{len(rows)} rows and the figure are in {folder}/")


if __name__ == "__main__":
    sys.exit(main())
