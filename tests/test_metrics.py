"""AUROC and both AUPR against numbers worked out by hand."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from sklearn.metrics import average_precision_score

from e3jax.metrics import aupr_in, aupr_out, auroc

METRICS = (auroc, aupr_in, aupr_out)
few_examples = hypothesis.settings(max_examples=50, deadline=None, derandomize=True)

# Two outliers (1) among three inliers (0); an inlier and an outlier share the score 2.
#
# AUROC: of the 6 (inlier, outlier) pairs 5 are in the right order and one is tied.
# AUPR-in, from the top score down: (recall, precision) = (1/3, 1), (2/3, 1), tied: (1, 3/4).
#   Trapezoids: 1/3 + 1/3 + 1/3 * (1 + 3/4) / 2.
# AUPR-out, from the bottom up: (1/2, 1), tied: (1, 2/3). Trapezoids: 1/2 + 1/2 * (1 + 2/3) / 2.
TIED = ([1, 2, 2, 3, 5], [1, 1, 0, 0, 0], 5.5 / 6, 2 / 3 + 7 / 24, 1 / 2 + 5 / 12)
# Both tied groups mix: in the order of falling scores, {in, out}, out, {in, in, out}.
# AUROC: inliers against outliers, 9 pairs: 0.5 + 1 + 1 for the top inlier; 0 + 0 + 0.5 for each of
#   the two below.
# AUPR-in: (0, 1), (1/3, 1/2), (1/3, 1/3), (1, 1/2): 1/3 * 3/4 + 2/3 * (1/3 + 1/2) / 2.
# AUPR-out, from the bottom up: (0, 1), (1/3, 1/3), (2/3, 1/2), (1, 1/2):
#   1/3 * (1 + 1/3) / 2 + 1/3 * (1/3 + 1/2) / 2 + 1/3 * 1/2.
MIXED = (
    [9, 9, 4, 0, 0, 0],
    [0, 1, 1, 0, 0, 1],
    3.5 / 9,
    1 / 4 + 5 / 18,
    2 / 9 + 5 / 36 + 1 / 6,
)
PERFECT = ([-3, -2, 0.5, 0.6], [1, 1, 0, 0], 1, 1, 1)
# Falling from precision 1 at recall 0 straight to 0, then (1/2, 1/3), (1, 1/2).
INVERTED = ([0.5, 0.6, -3, -2], [1, 1, 0, 0], 0, 1 / 12 + 5 / 24, 1 / 12 + 5 / 24)
# Precision is the share of positives at once: (0, 1) to (1, 3/4) and to (1, 1/4).
CONSTANT = ([7, 7, 7, 7], [0, 0, 0, 1], 1 / 2, 7 / 8, 5 / 8)


@pytest.mark.parametrize(
    ("scores", "is_outlier", "roc", "pr_in", "pr_out"),
    [TIED, MIXED, PERFECT, INVERTED, CONSTANT],
    ids=["tied", "mixed", "perfect", "inverted", "constant"],
)
def test_values_worked_out_by_hand(scores, is_outlier, roc, pr_in, pr_out):
    for metric, value in zip(METRICS, (roc, pr_in, pr_out), strict=True):
        measured = metric(np.array(scores), np.array(is_outlier, bool))
        assert type(measured) is float
        assert measured == pytest.approx(value, abs=1e-12), metric.__name__


def test_aupr_is_the_trapezoid_and_not_average_precision():
    scores, is_outlier = np.array([1, 2, 2, 3, 5]), np.array([1, 1, 0, 0, 0], bool)
    steps_in = average_precision_score(~is_outlier, scores)
    steps_out = average_precision_score(is_outlier, -scores)
    assert steps_in == pytest.approx(2 / 3 + 1 / 4)
    assert steps_out == pytest.approx(1 / 2 + 1 / 3)
    assert aupr_in(scores, is_outlier) - steps_in == pytest.approx(1 / 24)
    assert aupr_out(scores, is_outlier) - steps_out == pytest.approx(1 / 12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.uint8])
def test_an_outlier_is_found_by_a_small_score_of_any_type(dtype):
    scores, is_outlier = np.array([0, 100, 120], dtype), np.array([True, False, False])
    assert [metric(scores, is_outlier) for metric in METRICS] == [1, 1, 1]


labelled_scores = strategies.lists(
    strategies.tuples(strategies.integers(-9, 9), strategies.booleans()), min_size=2, max_size=30
).filter(lambda pairs: len({is_outlier for _, is_outlier in pairs}) == 2)


@few_examples
@hypothesis.given(pairs=labelled_scores, random=strategies.randoms(use_true_random=False))
def test_the_order_of_images_does_not_matter(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    for metric in METRICS:
        expected = metric(*map(np.array, zip(*pairs, strict=True)))
        measured = metric(*map(np.array, zip(*shuffled, strict=True)))
        assert measured == pytest.approx(expected, abs=1e-12)


@few_examples
@hypothesis.given(
    pairs=labelled_scores,
    rising=strategies.sampled_from([lambda s: 3 * s - 7, lambda s: s**3, lambda s: np.exp(s / 4)]),
)
def test_only_the_ranking_of_scores_matters(pairs, rising):
    scores, is_outlier = map(np.array, zip(*pairs, strict=True))
    for metric in METRICS:
        assert metric(rising(scores), is_outlier) == metric(scores, is_outlier)


@few_examples
@hypothesis.given(pairs=labelled_scores)
def test_auroc_is_the_share_of_ordered_pairs_and_exchanging_the_groups_exchanges_the_metrics(pairs):
    scores, is_outlier = map(np.array, zip(*pairs, strict=True))
    gaps = scores[~is_outlier][:, None] - scores[is_outlier][None]
    assert auroc(scores, is_outlier) == pytest.approx(((np.sign(gaps) + 1) / 2).mean(), abs=1e-12)
    assert auroc(-scores, ~is_outlier) == pytest.approx(auroc(scores, is_outlier), abs=1e-12)
    assert aupr_in(-scores, ~is_outlier) == aupr_out(scores, is_outlier)
