"""The autoencoders against PyTorch's own layers and JAX's "SAME" padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from e3jax.networks import ConvAutoencoder, MixtureAutoencoder

pytestmark = pytest.mark.usefixtures("unoptimised")

LAYERS = [f"_Layer_{i}" for i in range(8)]


def apply(network, train):
    """(variables, images, dropout key) -> (outputs, new batch statistics)"""

    def run(variables, x, key=None):
        rngs = {} if key is None else {"dropout": key}
        return network.apply(variables, x, train=train, mutable=["batch_stats"], rngs=rngs)

    return jax.jit(run)


def random_images(n, channels=1):
    return np.float32(np.random.default_rng(0).uniform(-1, 1, (n, 32, 32, channels)))


@pytest.fixture(scope="module")
def variables():
    """Of the paper's autoencoder, with running statistics that differ from layer to layer."""
    init = jax.jit(functools.partial(ConvAutoencoder().init, train=False))
    variables = init(jax.random.key(0, impl="rbg"), jnp.zeros((1, 32, 32, 3)))
    random = np.random.default_rng(1)
    stats = jax.tree.map(
        lambda a: np.float32(random.uniform(0.01, 0.03, a.shape)), variables["batch_stats"]
    )
    return jax.device_get(variables | {"batch_stats": stats})


@pytest.fixture(scope="module")
def torch_autoencoder(variables):
    """The authors' program's layers, with our numbers."""
    up = functools.partial(nn.ConvTranspose2d, kernel_size=3, stride=2, padding=1, output_padding=1)
    encoder = nn.Sequential(
        *(nn.Conv2d(3, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.Conv2d(64, 128, 3, 2, 1), nn.BatchNorm2d(128), nn.ReLU()),
        *(nn.Conv2d(128, 256, 3, 2, 1), nn.BatchNorm2d(256), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(4096, 256), nn.Tanh()),
    )
    decoder = nn.Sequential(
        *(nn.Linear(256, 4096), nn.BatchNorm1d(4096), nn.ReLU(), nn.Unflatten(1, (256, 4, 4))),
        *(up(256, 128), nn.BatchNorm2d(128), nn.ReLU()),
        *(up(128, 64), nn.BatchNorm2d(64), nn.ReLU()),
        *(up(64, 3), nn.Tanh()),
    )
    both = nn.Sequential(encoder, decoder)
    layers = [
        m for m in both.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))
    ]
    norms = [m for m in both.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]

    def channels_first(a):
        """PyTorch flattens [c, h, w], we [h, w, c]."""
        return a.reshape(16, 256, -1).swapaxes(0, 1).reshape(4096, -1)

    for i, (layer, name) in enumerate(zip(layers, LAYERS, strict=True)):
        kernel, bias = (variables["params"][name][part] for part in ("kernel", "bias"))
        if i == 3:
            kernel = channels_first(kernel)
        if i == 4:
            kernel, bias = channels_first(kernel.T).T, channels_first(bias).ravel()
        copy(
            layer, weight=kernel.T if kernel.ndim == 2 else kernel.transpose(3, 2, 0, 1), bias=bias
        )
    for i, norm in enumerate(norms):
        params, stats = (variables[c][f"BatchNorm_{i}"] for c in ("params", "batch_stats"))
        state = {"weight": params["scale"], "bias": params["bias"]}
        state |= {"running_mean": stats["mean"], "running_var": stats["var"]}
        if i == 3:
            state = {name: channels_first(a).ravel() for name, a in state.items()}
        copy(norm, **state)
    return encoder, decoder


def copy(layer, **state):
    tensors = {name: torch.from_numpy(np.array(a)) for name, a in state.items()}
    layer.load_state_dict(layer.state_dict() | tensors)


@pytest.mark.parametrize("train", [False, True])
def test_the_autoencoder_is_that_of_pytorchs_layers(variables, torch_autoencoder, train):
    encoder, decoder = torch_autoencoder
    x = random_images(6, channels=3)
    (reconstruction, code), updates = apply(ConvAutoencoder(), train)(variables, x)
    encoder.train(train), decoder.train(train)
    with torch.no_grad():
        their_code = encoder(torch.from_numpy(x).permute(0, 3, 1, 2))
        theirs = decoder(their_code).permute(0, 2, 3, 1)
    assert np.ptp(code) > 0.5 and np.ptp(reconstruction) > 0.5
    np.testing.assert_allclose(code, their_code, atol=2e-4)
    np.testing.assert_allclose(reconstruction, theirs, atol=2e-4)
    if train:
        stats = updates["batch_stats"]["BatchNorm_4"]
        norm = decoder[5]
        np.testing.assert_allclose(stats["mean"], norm.running_mean, atol=1e-5)
        # PyTorch's running variance is the unbiased one, of 6 * 8 * 8 values here.
        new = (stats["var"] - 0.9 * variables["batch_stats"]["BatchNorm_4"]["var"]) * 384 / 383
        old = 0.9 * variables["batch_stats"]["BatchNorm_4"]["var"]
        np.testing.assert_allclose(old + new, norm.running_var, rtol=1e-4)


def test_the_autoencoder_starts_as_pytorchs_layers_do(variables):
    torch.manual_seed(0)
    theirs = {
        2: torch.nn.Conv2d(128, 256, 3),
        3: torch.nn.Linear(4096, 256),
        5: torch.nn.ConvTranspose2d(256, 128, 3),
        7: torch.nn.ConvTranspose2d(64, 3, 3),
    }
    for i, layer in theirs.items():
        kernel, bias = (variables["params"][LAYERS[i]][part] for part in ("kernel", "bias"))
        for ours, their in ((kernel, layer.weight), (bias, layer.bias)):
            bound = np.abs(ours).max() / their.abs().max().item()
            # The largest of few numbers is further from the bound.
            assert bound == pytest.approx(1, abs=0.01 if ours.size > 1000 else 0.7)
        assert kernel.std() == pytest.approx(layer.weight.std().item(), rel=0.05)


def test_the_code_has_the_size_asked_for_and_other_sides_go_through():
    x, network = random_images(2)[:, :24, :16], ConvAutoencoder(64)
    variables = jax.eval_shape(functools.partial(network.init, train=False), jax.random.key(0), x)
    (reconstruction, code), _ = jax.eval_shape(apply(network, True), variables, x)
    assert code.shape == (2, 64) and reconstruction.shape == x.shape


def test_sides_that_cannot_be_halved_three_times_are_refused():
    with pytest.raises(ValueError, match="multiples of 8, got .28, 28."):
        ConvAutoencoder().init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)), train=False)


# --- DAGMM's -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixture_variables():
    init = jax.jit(functools.partial(MixtureAutoencoder().init, train=False))
    variables = init(jax.random.key(0, impl="rbg"), jnp.zeros((1, 32, 32, 3)))
    random = np.random.default_rng(1)
    return jax.tree.map(lambda a: np.float32(a + random.uniform(0, 0.01, a.shape)), variables)


def test_dagmms_layers_are_those_of_same_padding(mixture_variables):
    """Written out with JAX's "SAME", which is Keras'."""
    x = random_images(3, channels=3)
    params, stats = mixture_variables["params"], mixture_variables["batch_stats"]
    dimensions = ("NHWC", "HWIO", "NHWC")

    def turned(kernel):
        return kernel[::-1, ::-1]

    def norm(i, y):
        s, p = stats[f"BatchNorm_{i}"], params[f"BatchNorm_{i}"]
        return (y - s["mean"]) / np.sqrt(s["var"] + 1e-3) * p["scale"] + p["bias"]

    y = x
    for i in range(3):
        layer = params[LAYERS[i]]
        y = np.asarray(
            jax.lax.conv_general_dilated(
                y, turned(layer["kernel"]), (2, 2), "SAME", dimension_numbers=dimensions
            )
        )
        y = np.maximum(0, norm(i, y + layer["bias"]))
    code = y[:, ::-1, ::-1].reshape(3, -1) @ params[LAYERS[3]]["kernel"] + params[LAYERS[3]]["bias"]
    y = code @ params[LAYERS[4]]["kernel"] + params[LAYERS[4]]["bias"]
    y = np.maximum(0, norm(3, y)).reshape(3, 4, 4, 256)[:, ::-1, ::-1]
    for i in range(5, 8):
        layer = params[LAYERS[i]]
        options = {"dimension_numbers": dimensions, "transpose_kernel": True}
        y = jax.lax.conv_transpose(y, turned(layer["kernel"]), (2, 2), "SAME", **options)
        y = layer["bias"] + np.asarray(y)
        y = np.maximum(0, norm(i - 1, y)) if i < 7 else np.tanh(y)
    (reconstruction, z, membership), _ = apply(MixtureAutoencoder(), False)(mixture_variables, x)
    np.testing.assert_allclose(reconstruction, y, atol=1e-4)
    flat, again = x.reshape(3, -1), np.reshape(y, (3, -1))
    norm_x, norm_y = (np.linalg.norm(a, axis=1) for a in (flat, again))
    error = np.linalg.norm(flat - again, axis=1) / norm_x
    cosine = (flat * again).sum(1) / (norm_x * norm_y)
    np.testing.assert_allclose(z, np.column_stack([code, error, cosine]), atol=1e-4)
    assert membership.shape == (3, 3) and (np.asarray(membership) > 0).all()
    np.testing.assert_allclose(membership.sum(1), 1, rtol=1e-5)


def test_dagmm_drops_half_of_the_estimation_network_in_training_only(mixture_variables):
    x = random_images(64, channels=3)

    def membership(seed, train):
        key = jax.random.key(seed, impl="rbg")
        return apply(MixtureAutoencoder(), train)(mixture_variables, x, key)[0][2]

    assert np.array_equal(membership(0, False), membership(1, False))
    assert not np.array_equal(membership(0, True), membership(1, True))
