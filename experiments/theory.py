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
initialisations, of the ratio of means. The default takes about three minutes on two CPU cores.
"""

import argparse
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import progress
import runtime
import sweep
from matplotlib.figure import Figure
from rich.console import Console

from e3jax import contamination, datasets, files, operations, priority, training

DATASETS = ("mnist", "fashion_mnist", "cifar10")
OPERATIONS = ("identity", "shift(0,-8)", "turn90", "rotate30", "patches3210")
COLUMNS = (
    "case,source,varied,inlier_class,ratio,n_inliers,n_outliers,hidden,initialisations,operation,"
    "measured_ratio,predicted_ratio,measured_over_predicted,low,high,"
    "kernel_prediction_over_predicted,device,versions,commit"
).split(",")
_IMAGES, _MANY_IMAGES = 500, 5000  # in a set
_FEW = (1, 2, 5, 10)  # outliers
_HIDDEN = (1, 4, 16, 64, 256)
_BLOCK = 2500  # views at a time
_RESAMPLES = 2000
_RATE = 8e10  # FLOP/s of a CPU core, for the estimate before the first measurement


class Case(NamedTuple):
    """Images to contaminate and how.

    Attributes:
      images, labels: uint8 [n, 32, 32, c], int [n].
      varied: the column that the rows of all cases with this name and this are a series over.
      most_outliers: of the outliers drawn only the first so many count; None: all.
    """

    name: str
    source: str
    inlier_class: int
    images: np.ndarray
    labels: np.ndarray
    ratios: tuple[float, ...]
    hidden: int
    varied: str = "ratio"
    max_images: int = _IMAGES
    most_outliers: int | None = None


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data-dir", help="folder with data prepared by TFDS (or set TFDS_DATA_DIR)")
    add(
        "--datasets",
        nargs="*",
        choices=datasets.NAMES,
        help=f"real images (default: {', '.join(DATASETS)} if a data folder is given, else mnist)",
    )
    ratios = (0.05, 0.1, 0.15, 0.2, 0.25)
    add("--ratios", type=float, nargs="+", default=ratios, help="outliers' shares of the set")
    add("--initialisations", type=runtime.positive, default=200, help="of the network (200)")
    add("--hidden", type=runtime.positive, default=64, help="units L (64)")
    add("--results-dir", default="runs/theory", help="for theory.csv, .png, .pdf (runs/theory)")
    arguments = parser.parse_args()
    if arguments.initialisations < 10:
        parser.error("--initialisations must be at least 10: fewer give no interval")
    if arguments.datasets is None:
        given = arguments.data_dir or os.environ.get("TFDS_DATA_DIR")
        arguments.datasets = DATASETS if given else DATASETS[:1]
    return arguments


# --- The network, its gradients and the kernel -------------------------------------------------


def initialise(key: jax.Array, inputs: int, hidden: int, k: int) -> dict:
    """Weights of the network, all i.i.d. U[-1, 1]."""
    shapes = {
        "hidden": {"kernel": (inputs, hidden), "bias": (hidden,)},
        "head": {"kernel": (hidden, k), "bias": (k,)},
    }
    leaves, tree = jax.tree.flatten(shapes, is_leaf=lambda shape: isinstance(shape, tuple))
    uniform = functools.partial(jax.random.uniform, minval=-1, maxval=1)
    return tree.unflatten(map(uniform, jax.random.split(key, len(leaves)), leaves))


def apply(variables: dict, views: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits [v, k] and representation [v, hidden] of flat views [v, inputs]."""
    hidden, head = variables["hidden"], variables["head"]
    representation = jax.nn.sigmoid(views @ hidden["kernel"] + hidden["bias"])
    return representation @ head["kernel"] + head["bias"], representation


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


def real_cases(arguments: argparse.Namespace, announce) -> Iterator[Case]:
    """Every class of every data set; for the first also few outliers, and ten times the images."""
    for name in arguments.datasets:
        data = datasets.load(name, data_dir=arguments.data_dir, announce=announce)
        classes = range(len(data.class_names))
        # The order is that of a content hash: the first of a class are a random draw.
        few = np.concatenate([np.flatnonzero(data.labels == c)[:_IMAGES] for c in classes])
        images, labels = data.images[few], data.labels[few]
        for c in classes:
            case = Case(name, data.source, c, images, labels, arguments.ratios, arguments.hidden)
            yield case
            if c == 0:
                yield from few_outliers(case)
                case = case._replace(images=data.images, labels=data.labels, ratios=(0.1,))
                yield case._replace(varied="n_inliers", max_images=_MANY_IMAGES)


def synthetic_cases(arguments: argparse.Namespace) -> Iterator[Case]:
    """Groups of noise, which are incoherent, and of noisy copies of one image, which are not."""
    generator = np.random.default_rng(0)

    def noise(n=_IMAGES):
        return generator.integers(0, 256, (n, datasets.SIDE, datasets.SIDE, 1))

    def like(image):
        copies = image + generator.normal(0, 25, (_IMAGES, *image.shape[1:]))
        return copies.round().clip(0, 255)

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
        case = Case(name, "synthetic", 0, images, labels, arguments.ratios, arguments.hidden)
        yield case
        if name == "all noise":
            yield from few_outliers(case)
        if name == "inliers alike, outliers noise":
            for hidden in _HIDDEN:
                yield case._replace(varied="hidden", hidden=hidden, ratios=(0.1,))


def few_outliers(case: Case) -> Iterator[Case]:
    for most in _FEW:
        yield case._replace(varied="n_outliers", most_outliers=most, ratios=(0.1,))


def measure(case: Case, ratio: float, operation_set, initialisations: int) -> list[dict]:
    """The rows of a contaminated set, one for each of OPERATIONS."""
    where = (case.images, case.labels, case.inlier_class, ratio, 0)
    data = contamination.contaminate(*where, max_images=case.max_images)
    counted = np.cumsum(data.is_outlier) <= (case.most_outliers or len(data.images))
    groups = np.stack([~data.is_outlier, data.is_outlier & counted])
    n_inliers, n_outliers = groups.sum(axis=1).tolist()
    predicted = (n_inliers / n_outliers) ** 2

    chosen = np.array([operation_set.names.index(name) for name in OPERATIONS])
    labels = chosen.repeat(len(data.images))
    images = jnp.tile(training.to_unit(jnp.asarray(data.images)), (len(chosen), 1, 1, 1))
    views = jax.jit(operations.views_of)(operation_set, images, labels).reshape(len(labels), -1)
    keys = jax.random.split(jax.random.key(0), initialisations)
    every = (views, labels, np.tile(groups, len(chosen)))
    squares = squared_gradients(keys, *every, case.hidden, len(operation_set))
    measured, low, high = ratio_of_means(*np.float64(squares)[:, :, chosen].swapaxes(0, 1))

    rows = []
    for i, operation in enumerate(OPERATIONS):
        q_in, q_out = kernel_sums(views[labels == chosen[i]], groups, case.hidden)
        values = (case.name, case.source, case.varied, case.inlier_class)
        values += (n_outliers / (n_inliers + n_outliers), n_inliers, n_outliers)
        values += (case.hidden, initialisations, operation, measured[i], predicted)
        values += (measured[i] / predicted, low[i] / predicted, high[i] / predicted)
        values += (float(q_in / q_out) / predicted,)
        rows.append(dict(zip(COLUMNS, values, strict=False)))
    return rows


def ratio_of_means(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """mean(a) / mean(b) over the first axis, and the ends of its bootstrap interval."""
    draws = np.random.default_rng(0).multinomial(len(a), np.full(len(a), 1 / len(a)), _RESAMPLES)
    low, high = np.percentile((draws @ a) / (draws @ b), [2.5, 97.5], axis=0)
    return a.mean(axis=0) / b.mean(axis=0), low, high


# --- The figure --------------------------------------------------------------------------------


def draw(rows: list[dict]) -> Figure:
    """Measured and kernel prediction, both over eq. 3's.

    Over the ratio for the classes of each real data set and for the synthetic images, over few
    outliers, over the hidden units, all for the identity; last, all rows against each other.
    """
    shown = [row for row in rows if row["operation"] == OPERATIONS[0]]
    made = [row for row in shown if row["source"] == "synthetic"]
    sets = list(dict.fromkeys(row["case"] for row in shown if row["source"] != "synthetic"))
    columns = (len(sets) + 5) // 2
    figure = Figure(figsize=(4.2 * columns, 8), layout="constrained")
    figure.suptitle(
        "Ratio of mean squared gradient norms over eq. 3's N_in² / N_out²: measured (points, 95 % "
        "intervals) and predicted from the kernel (dashes); dotted: no images can leave this"
    )
    grid = iter(figure.subplots(2, columns).ravel())
    for name in sets:
        of_set = [row for row in shown if row["case"] == name]
        _panel(next(grid), of_set, "ratio", "inlier_class", f"{name}, a colour each inlier class")
    _panel(next(grid), made, "ratio", "case", "synthetic images")
    _panel(next(grid), shown, "n_outliers", "case", "few outliers, 450 inliers")
    _panel(next(grid), made, "hidden", "case", "hidden units")
    axes = next(grid)
    for name, real in (("synthetic images", False), ("real images", True)):
        group = [row for row in rows if (row["source"] != "synthetic") == real]
        kernel = [row["kernel_prediction_over_predicted"] for row in group]
        axes.plot(kernel, [r["measured_over_predicted"] for r in group], ".", ms=4, label=name)
    axes.axline((0.5, 0.5), (2, 2), color="grey", linewidth=0.8)
    axes.set(title="all sets and operations", xlabel="kernel prediction over eq. 3's", xscale="log")
    axes.set(ylabel="measured over eq. 3's", yscale="log")
    axes.legend(fontsize=8, frameon=False)
    _log_ticks(axes.xaxis)
    _log_ticks(axes.yaxis)
    for axes in grid:
        axes.axis("off")
    return figure


def _panel(axes, rows: list[dict], varied: str, series: str, title: str) -> None:
    """Rows of one sweep, their places at equal distances, the series side by side."""
    rows = [row for row in rows if row["varied"] == varied]
    values = sorted({row[varied] for row in rows})
    names = list(dict.fromkeys(row[series] for row in rows))
    classes = series == "inlier_class"
    axes.axhline(1, color="grey", linewidth=0.8)
    for s, name in enumerate(names):
        group = [row for row in rows if row[series] == name]
        x = [values.index(row[varied]) + 0.7 * ((s + 0.5) / len(names) - 0.5) for row in group]
        y, low, high, kernel = np.array([[row[c] for c in COLUMNS[12:16]] for row in group]).T
        axes.plot(x, kernel, "_", color="black", markersize=7)
        axes.errorbar(x, y, [y - low, high - y], fmt="o", ms=3.5, color=f"C{s}", label=str(name))
    axes.set_xticks(range(len(values)), [f"{100 * v:.2g} %" if v < 1 else str(v) for v in values])
    names = {"ratio": "outlier ratio ρ", "n_outliers": "outliers", "hidden": "units L"}
    axes.set(title=title, xlabel=names[varied])
    if classes:
        axes.set_ylim(0.75, 1.25)
    else:
        axes.set(yscale="log", ylim=(0.25, 2.2))
        axes.hlines([0.5, 2], *axes.get_xlim(), color="grey", linewidth=0.8, linestyle=":")
        _log_ticks(axes.yaxis)
    axes.legend(fontsize=8, loc="lower right", ncols=5 if classes else 1, frameon=False)


def _log_ticks(axis) -> None:
    ticks = (0.5, 0.6, 0.8, 1, 1.25, 1.6, 2)
    axis.set_ticks([], minor=True)
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])


# --- The command -------------------------------------------------------------------------------


def main() -> int:
    arguments = parse_arguments()
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    try:
        runtime.start()
        folder = Path(arguments.results_dir)
        folder.mkdir(parents=True, exist_ok=True)
        rows = run(arguments, console)
        sweep.write_csv(folder / "theory.csv", rows, COLUMNS)
        figure = draw(rows)
        for kind in ("png", "pdf"):
            save = functools.partial(figure.savefig, format=kind, dpi=110)
            files.write_atomically(folder / f"theory.{kind}", save)
    except (ValueError, OSError) as error:  # images.InputError is a ValueError
        console.print(f"error: {error}", style="red")
        return 2
    except KeyboardInterrupt:
        console.print("Stopped: nothing is written before the end.")
        return 130
    console.print(f"{len(rows)} rows and the figure are in {folder}/")
    return 0


def run(arguments: argparse.Namespace, console: Console) -> list[dict]:
    """Says what it will do, measures every case, says how far it is."""
    names = ", ".join([*arguments.datasets, "synthetic images"])
    console.print(f"Eq. 3 on {names}, {arguments.initialisations} initialisations a set")
    operation_set = operations.operation_set()
    cases = [*real_cases(arguments, console.print), *synthetic_cases(arguments)]
    work = [arguments.initialisations * _work(case) for case in cases]
    minutes = max(sum(work) / _RATE / runtime.cores() / 60, 1)
    console.print(f"Plan: {len(cases)} cases, about {minutes:.0f} minute(s) on this CPU")
    where = {"device": jax.devices()[0].device_kind} | sweep.provenance()
    rows = []
    with progress.Meter(console, sum(work), len(cases), 1) as meter:
        for case, of_case in zip(cases, work, strict=True):
            title = f"{case.name}, class {case.inlier_class}, over {case.varied}"
            bar, first = meter.start(title, of_case), len(rows)
            for ratio in case.ratios:
                rows += measure(case, ratio, operation_set, arguments.initialisations)
                bar.advance(of_case // len(case.ratios), f"ratio {ratio:g}")
            over = [row["measured_over_predicted"] for row in rows[first:]]
            bar.finish(f"{title}: measured / eq. 3 is {min(over):.3f} to {max(over):.3f}", "")
    return [row | where for row in rows]


def _work(case: Case) -> int:
    """FLOPs of an initialisation: two a multiplication in the hidden layer."""
    views = len(case.ratios) * len(OPERATIONS) * min(case.max_images, len(case.images))
    return 2 * views * case.images[0].size * case.hidden


if __name__ == "__main__":
    sys.exit(main())
