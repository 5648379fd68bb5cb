"""Refinements of the sequel: weights follow scores, and members are averaged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from sweep import methods, plan, refinements

from e3jax import devices, fitting, losses, operations, scoring
from e3jax.losses import Batch

pytestmark = pytest.mark.usefixtures("unoptimised")

SET = operations.operation_set("RA", 8)


def step(method, scores):
    """Losses, plain losses and moved scores of a batch over two devices."""
    logits = jax.random.normal(jax.random.key(0), (6, len(SET)))
    image, label = jnp.array([4, 0, 3, 2, 2, 1]), jnp.arange(6)
    mesh = devices.device_mesh(jax.devices()[:2])

    def of_device(logits, mine, label):
        batch = Batch(None, mine, label, image, SET.factors)
        plain, _ = losses.factored_supervision((logits,), batch, ())
        return *method.loss((logits,), batch, scores), plain

    split, whole = PartitionSpec(devices.AXIS), PartitionSpec()
    mapped = jax.shard_map(
        of_device, mesh=mesh, in_specs=split, out_specs=(split, whole, split), check_vma=False
    )
    found, moved, plain = mapped(logits, image, label)
    log_p = jax.nn.log_softmax(logits)
    return np.asarray(found / plain), moved, scoring.negative_entropy(log_p, label), image


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("e3outlier+reweighted", [0.6, 1.8, 0.2, 1.4, 1.0]),
        ("e3outlier+trimmed", np.array([1, 1, 0, 1, 1]) / 0.9),
    ],
)
def test_images_with_low_scores_count_less(name, weights):
    scores = jnp.array([-3.0, -0.5, -4.0, -1.0, -2.0])
    found, moved, ne, image = step(refinements.METHODS[name], scores)
    np.testing.assert_allclose(found, np.array(weights)[image], rtol=1e-5)
    expected = scores + 0.1 * (jnp.zeros(5).at[image].add(ne) - jnp.bincount(image) * scores)
    np.testing.assert_allclose(moved, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["e3outlier+trimmed", "e3outlier+both"])
def test_a_refinement_is_a_method_of_the_benchmark(name, digits):
    protocol = plan.Protocol("quick", None, steps=4, network="tiny-8", operations="RA")
    entry = methods.METHODS[name]
    run = plan.Run("mnist", "", name, 4, 0.1, 0, 0, None, **entry.describe(protocol, True))
    mesh = devices.device_mesh(jax.devices()[:1])
    outcome = entry.do(run, digits, mesh, {})
    assert list(outcome) == [name, name.replace("e3outlier+", "factored-")]
    fused, own = (columns["scores"] for columns in outcome.values())
    assert outcome[name]["steps"] == 4 and np.ptp(own) > 0
    assert fused.shape == own.shape == (len(digits),)
    if name in refinements.ENSEMBLES:
        method, members = refinements.METHODS[name], []
        for member in range(2):
            key = jax.random.fold_in(run.key, member)
            config = protocol.config(methods.FACTORED, True)._replace(steps=2)
            fitted = fitting.fit(key, digits, method, config)
            members.append(fitting.score(fitted, digits))
        p = np.mean(members, axis=0)
        ne = (p * np.log(p)).sum(-1)
        expected = (ne * scoring.view_weights(ne)).mean(1)
        np.testing.assert_allclose(own, expected, rtol=1e-3)
