"""Isolation forest (Liu et al. 2008) on features, scikit-learn's with 100 trees.

On E3Outlier's representations it is the paper's SSD-IF, on an autoencoder's codes its CAE-IF.
"""

import jax
import numpy as np
from sklearn.ensemble import IsolationForest


def score(key: jax.Array, features: np.ndarray) -> np.ndarray:
    """Scores features [n, d]: float [n] in [-1, 0), smaller = more outlying; NaN if some are."""
    if not np.isfinite(features).all():
        return np.full(len(features), np.nan)
    seed = int(jax.random.bits(key) >> 1)
    return IsolationForest(random_state=seed).fit(features).score_samples(features)
