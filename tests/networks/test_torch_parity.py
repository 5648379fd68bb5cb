"""Optimizers and DAGMM's mixture against PyTorch's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from timing import pytorch

from e3jax import training
from e3jax.methods import dagmm

STEPS = 12


# With the paper's 5e-4 alone, 12 steps would hardly differ from steps without L2.
@pytest.mark.parametrize("weight_decay", [0.0, 5e-4, 0.1])
@pytest.mark.parametrize("schedule", ["constant", "onecycle"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_optimizers_take_pytorchs_steps_with_coupled_l2(optimizer, schedule, weight_decay):
    config = training.TrainConfig(
        optimizer=optimizer, learning_rate=0.05, schedule=schedule, weight_decay=weight_decay
    )
    random = np.random.default_rng(0)
    start = {name: random.normal(size=shape) for name, shape in {"w": (5, 3), "b": (3,)}.items()}
    x, y = random.normal(size=(STEPS, 8, 5)), random.normal(size=(STEPS, 8, 3))

    def loss(params, x, y):
        return (((x @ params["w"] + params["b"][None]) - y) ** 2).mean()

    rule, rate = training.make_optimizer(config), jax.jit(training.learning_rate(config))
    theirs = {name: torch.tensor(a, requires_grad=True) for name, a in start.items()}
    their_rule = pytorch.make_optimizer(config, list(theirs.values()))

    @jax.jit
    def advance(params, state, step, x, y):
        gradient = jax.grad(loss)(params, x, y)
        updates, state = rule.update(gradient, state, params, step=step, num_steps=jnp.int32(STEPS))
        return optax.apply_updates(params, updates), state

    ours = jax.tree.map(jnp.float32, start)
    state = rule.init(ours)
    for step in range(STEPS):
        ours, state = advance(ours, state, step, np.float32(x[step]), np.float32(y[step]))
        their_rule.param_groups[0]["lr"] = float(rate(jnp.int32(step), jnp.int32(STEPS)))
        their_rule.zero_grad()
        loss(theirs, torch.tensor(x[step]), torch.tensor(y[step])).backward()
        their_rule.step()
        for name in start:
            their = theirs[name].detach().numpy()
            np.testing.assert_allclose(ours[name], their, rtol=0, atol=1e-5)
    assert np.abs(ours["w"] - start["w"]).max() > 0.1


@pytest.fixture(scope="module")
def z_and_membership():
    """float32 [200, 4] with correlated entries, and float32 [200, 3]."""
    random = np.random.default_rng(0)
    z = random.normal(size=(200, 4)) @ random.normal(size=(4, 4)) + random.normal(size=4)
    return jnp.float32(z), jnp.float32(random.dirichlet([1, 2, 3], size=200))


def torchs_energy(z, membership):
    """The mixture of z with these memberships, and minus its log density at z."""
    means = (membership.T @ z) / membership.sum(0)[:, None]
    covariances = [torch.cov(z.T, correction=0, aweights=weights) for weights in membership.T]
    covariances = torch.stack(covariances) + 1e-6 * torch.eye(z.shape[1], dtype=z.dtype)
    components = torch.distributions.MultivariateNormal(means, covariances)
    weights = torch.distributions.Categorical(membership.mean(0))
    mixture = torch.distributions.MixtureSameFamily(weights, components)
    return mixture, -mixture.log_prob(z)


def test_dagmms_mixture_and_energy_are_those_of_torch_distributions(z_and_membership):
    mixture = dagmm.mixture(*z_and_membership)
    theirs, their_energy = torchs_energy(*(torch.tensor(np.float64(a)) for a in z_and_membership))
    components = theirs.component_distribution
    np.testing.assert_allclose(mixture.weight, theirs.mixture_distribution.probs, rtol=1e-5)
    np.testing.assert_allclose(mixture.mean, components.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mixture.factor, components.scale_tril, rtol=1e-4, atol=1e-5)
    energy = dagmm.energy(z_and_membership[0], mixture)
    np.testing.assert_allclose(energy, their_energy, rtol=1e-5, atol=1e-5)


def test_gradients_of_dagmms_energy_are_pytorchs(z_and_membership):
    """Through the mixture too, as in training, where memberships are a softmax."""

    def mean_energy(z, logits):
        membership = jax.nn.softmax(logits)
        return dagmm.energy(z, dagmm.mixture(z, membership)).mean()

    arrays = z_and_membership[0], jnp.log(z_and_membership[1])
    ours = jax.jit(jax.grad(mean_energy, argnums=(0, 1)))(*arrays)
    z, logits = (torch.tensor(np.float64(a), requires_grad=True) for a in arrays)
    torchs_energy(z, torch.softmax(logits, 1))[1].mean().backward()
    for our, their in zip(ours, (z.grad, logits.grad), strict=True):
        assert np.abs(our - their.numpy()).max() < 1e-4 * their.abs().max()
