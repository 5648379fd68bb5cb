"""Eq. 3's script measures the gradients it means, and its sharper prediction is right."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
import theory
from commands import here
from conftest import ROOT
from eq3 import cases, network
from eq3.figure import draw

from e3jax import operations
from e3jax.images import to_unit

pytestmark = pytest.mark.usefixtures("unoptimised")

SIZES = ((0.2,), 32)  # ratios and hidden units


@pytest.fixture(scope="module")
def synthetic():
    every = cases.synthetic_cases(*SIZES)
    return {case.data.name: case for case in every if case.varied == "ratio"}


@pytest.fixture(scope="module")
def operation_set():
    return operations.operation_set()


def unit_pixels(mnist, n):
    return to_unit(jnp.asarray(mnist.images[:n])).reshape(n, -1)


def test_weights_are_independent_and_uniform():
    weights = network.initialise(jax.random.key(0), 300, 200, 111)
    assert [weight.shape for weight in weights] == [(111,), (200, 111), (200,), (300, 200)]
    values = np.concatenate([np.ravel(weight) for weight in weights])
    assert len(np.unique(values)) > 0.98 * len(values)  # float32 has few enough to meet again
    assert -1 <= values.min() < -0.999 and 0.999 < values.max() <= 1
    assert abs(values.mean()) < 0.01 and abs(values.var() - 1 / 3) < 0.01


def test_gradients_are_those_of_the_loss_of_one_operations_views(mnist):
    views, k, hidden = unit_pixels(mnist, 30), 6, 4
    labels = np.arange(30) % 3
    groups = np.stack([np.arange(30) < 20, np.arange(30) >= 20])
    keys = jax.random.split(jax.random.key(0), 2)
    squares = network.squared_gradients(keys, views, labels, groups, hidden, k)
    assert squares.shape == (2, 2, k)

    @jax.jit
    @jax.grad
    def gradient(weights, mask):
        logits, _ = network.apply(weights, views)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels))
        return jnp.sum(losses * mask)

    for s, key in enumerate(keys):
        weights = network.initialise(key, views.shape[1], hidden, k)
        for g, c in np.ndindex(2, k):
            bias, kernel, *_ = gradient(weights, groups[g] & (labels == c))
            expected = jnp.sum(kernel[:, c] ** 2) + bias[c] ** 2
            np.testing.assert_allclose(squares[s, g, c], expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("contrast", [1, 0.02], ids=["saturated", "not"])
def test_kernel_is_the_mean_over_random_units(mnist, contrast):
    views, units = unit_pixels(mnist, 20) * contrast, 20_000
    groups = np.stack([np.arange(20) < 3, np.arange(20) >= 3])
    weights = network.initialise(jax.random.key(0), views.shape[1], units, 2)
    _, h = network.apply(weights, views)
    expected = [np.sum(h[g] @ h[g].T) / units * 7 + g.sum() ** 2 for g in groups]
    np.testing.assert_allclose(network.kernel_sums(views, groups, 7), expected, rtol=0.01)


def test_ratio_of_means_and_its_interval():
    generator = np.random.default_rng(0)
    b = generator.uniform(1, 2, (400, 3))
    ratio, low, high = cases.ratio_of_means(2 * b, b)
    np.testing.assert_allclose([ratio, low, high], 2)
    a = generator.uniform(1, 2, (400, 3))
    ratio, low, high = cases.ratio_of_means(a, b)
    np.testing.assert_allclose(ratio, a.mean(axis=0) / b.mean(axis=0))
    # The delta method's, for two independent uniform samples.
    half = 1.96 * np.sqrt(2 * (1 / 12) / 1.5**2 / 400)
    np.testing.assert_allclose([ratio - low, high - ratio], half, rtol=0.15)


def test_every_class_is_a_case_and_the_first_has_more(mnist):
    every = list(cases.real_cases(mnist, *SIZES))
    assert [case.inlier_class for case in every if case.varied == "ratio"] == list(range(10))
    assert [case.most_outliers for case in every if case.varied == "n_outliers"] == [1, 2, 5, 10]
    assert all(np.bincount(case.data.labels).max() <= 500 for case in every[:-1])
    assert [case.max_images for case in every if case.varied == "n_inliers"] == [5000]


def test_eq_3_holds_on_digits_and_the_kernel_says_how_well(mnist, operation_set):
    case = cases.Case(mnist, 1, 32, ratio=0.2)
    rows = cases.measure(case, operation_set, 60)
    assert rows["operation"].tolist() == cases.OPERATIONS
    assert (rows[["n_inliers", "n_outliers", "ratio"]] == [400, 100, 0.2]).all(axis=None)
    assert (rows["predicted_ratio"] == 16).all()
    measured = rows["measured_over_predicted"]
    assert measured.between(1.03, 1.2, inclusive="neither").all()
    assert ((rows["low"] < measured) & (measured < rows["high"])).all()
    assert ((measured / rows["kernel_prediction_over_predicted"] - 1).abs() < 0.06).all()


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("all noise", 0.95, 1.02),
        ("all like one image", 0.97, 1.03),
        ("like two images", 0.85, 1.15),
        ("inliers alike, outliers noise", 1.45, 2),
        ("inliers noise, outliers alike", 0.5, 0.7),
    ],
)
def test_eq_3_fails_where_one_group_alone_is_coherent(synthetic, operation_set, name, low, high):
    rows = cases.measure(synthetic[name], operation_set, 40)
    found = rows[["measured_over_predicted", "kernel_prediction_over_predicted"]]
    assert ((low < found) & (found < high)).all(axis=None)


def test_one_outlier_is_coherent_by_itself(synthetic, operation_set):
    case = synthetic["all noise"]._replace(most_outliers=1, ratio=0.1)
    rows = cases.measure(case, operation_set, 40)
    assert (rows[["n_inliers", "n_outliers", "ratio"]] == [450, 1, 1 / 451]).all(axis=None)
    assert rows["measured_over_predicted"].between(0.5, 0.65, inclusive="neither").all()


@pytest.mark.nightly
def test_the_command_writes_its_table_and_figure(monkeypatch, capsys, tmp_path):
    small = ("--initialisations", 10, "--hidden", 2, "--ratios", 0.1, "--datasets")
    asked = ("--results-dir", tmp_path, *small)
    code, _, said = here(monkeypatch, capsys, theory.main, *asked)
    assert code == 0 and said.startswith("Eq. 3 on synthetic images, 10 initialisations")
    assert {path.name for path in tmp_path.iterdir()} == {
        "theory.csv",
        "theory.png",
        "theory.pdf",
    }
    with open(tmp_path / "theory.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(pd.read_csv(ROOT / "results" / "theory.csv"))
    assert len(rows) == len(list(cases.synthetic_cases((0.1,), 2))) * len(cases.OPERATIONS)
    assert all(all(row.values()) for row in rows)


def test_the_figure_of_the_rows_that_were_measured():
    figure = draw(pd.read_csv(ROOT / "results" / "theory.csv"))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:4] == [f"{name}, a colour per inlier class" for name in theory.DATASETS] + [
        "synthetic images"
    ]
    # Ten classes, each with its own series over five ratios.
    assert len(figure.axes[0].containers) == 10
    assert [len(bars[0].get_xdata()) for bars in figure.axes[0].containers] == [5] * 10


def test_a_wrong_ratio_is_one_sentence(monkeypatch, capsys, tmp_path):
    asked = ("--ratios", 0.7, "--datasets", "--results-dir", tmp_path)
    code, _, said = here(monkeypatch, capsys, theory.main, *asked)
    assert code == 2 and "error: outlier ratio is 0.7" in said
    assert not list(tmp_path.iterdir())
