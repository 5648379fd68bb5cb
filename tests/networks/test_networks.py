"""Networks against golden counts, PyTorch's layers and numbers worked out by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from e3jax.networks import ConvAutoencoder, MixtureAutoencoder, build, forward_flops

pytestmark = pytest.mark.usefixtures("unoptimised")

LEAVES = jax.tree_util.tree_leaves_with_path


def shapes_of(network, channels=1, side=32):
    """{collection: {path: shape}} of a network's variables, without computing them."""
    network = build(network, 111) if isinstance(network, str) else network
    key = jax.random.key(0)
    image = jnp.zeros((1, side, side, channels))
    variables = jax.eval_shape(functools.partial(network.init, train=False), key, image)
    return {
        collection: {jax.tree_util.keystr(p, simple=True, separator="/"): v.shape for p, v in tree}
        for collection, tree in ((name, LEAVES(variables[name])) for name in variables)
    }


# --- Structure -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "grey", "colour"),
    [
        ("wrn-10-4", 1_224_479, 1_224_767),
        ("resnet-20", 278_751, 279_039),
        ("resnet-50", 764_831, 765_119),
        ("densenet-40", 189_123, 189_555),
        ("cae-256", 2_850_049, 2_852_355),
    ],
)
def test_networks_have_the_papers_number_of_parameters(network, grey, colour):
    for channels, count in ((1, grey), (3, colour)):
        shapes = shapes_of(network, channels=channels)["params"]
        assert sum(np.prod(shape, dtype=int) for shape in shapes.values()) == count


@pytest.mark.parametrize(
    ("name", "blocks", "width"), [("wrn-10-1", 1, 1), ("wrn-16-2", 2, 2), ("wrn-28-10", 4, 10)]
)
def test_depth_sets_the_blocks_of_a_group_and_width_their_channels(name, blocks, width):
    variables = shapes_of(name)
    kernels = [s for s in variables["params"].values() if len(s) == 4]
    wide = [16 * width, 32 * width, 64 * width]
    for channels, before in zip(wide, [16, *wide], strict=False):
        inside = (3, 3, channels, channels)
        entry = (3, 3, before, channels)
        expected = 2 * blocks if entry == inside else 2 * blocks - 1
        assert kernels.count(inside) == expected + (inside == (3, 3, 1, 16))
        assert kernels.count((1, 1, before, channels)) == (before != channels)
    depth = int(name.split("-")[1])
    assert sum(shape[:2] == (3, 3) for shape in kernels) == depth - 3 == 6 * blocks + 1
    means = [path for path in variables["batch_stats"] if path.endswith("mean")]
    assert len(means) == 6 * blocks + 1
    assert variables["params"]["head/kernel"] == (64 * width, 111)


def test_a_pwrn_is_a_wrn_on_maps_of_half_the_side():
    strided, plain = (shapes_of(name)["params"] for name in ("pwrn-10-2", "wrn-10-2"))
    assert {name for name in plain if strided[name] != plain[name]} == {"Conv_0/kernel"}
    assert strided["Conv_0/kernel"] == (5, 5, 1, 16)
    flops = [forward_flops(build(name, 111), (32, 32, 3)) for name in ("pwrn-10-2", "wrn-10-2")]
    assert flops[0] < 0.3 * flops[1]


def test_convolutions_have_no_bias_and_the_head_has_one():
    biases = {p for p in shapes_of("wrn-10-4")["params"] if p.endswith("bias")}
    assert biases == {"head/bias", *(f"BatchNorm_{i}/bias" for i in range(7))}


@pytest.mark.parametrize(
    ("name", "shortcuts"),
    [
        ("wrn-10-1", [(1, 1, 16, 32), (1, 1, 32, 64)]),
        ("wrn-10-4", [(1, 1, 16, 64), (1, 1, 64, 128), (1, 1, 128, 256)]),
    ],
)
def test_only_blocks_that_change_channels_have_a_shortcut_convolution(name, shortcuts):
    kernels = shapes_of(name)["params"].values()
    assert sorted(shape for shape in kernels if shape[:2] == (1, 1)) == shortcuts


@pytest.mark.parametrize(
    "name",
    ["resnet", "wrn", "wrn-10", "wrn-10-0", "wrn-4-4", "wrn-11-4", "wrn-10-4x", "WRN-10-4"]
    + ["resnet-2", "resnet-21", "resnet-20-1", "densenet-4", "densenet-22x", "vgg-16", "-10-4"]
    + ["cae", "cae-0", "cae-64-5", "dagmm-", ""],
)
def test_unknown_names_are_refused_with_the_names_there_are(name):
    with pytest.raises(ValueError, match=f"unknown network '{name}'.* wrn-10-4$") as error:
        build(name, 111)
    assert (
        "wrn-DEPTH-WIDTH (DEPTH 10, 16, 22 ...), pwrn-DEPTH-WIDTH (the same), resnet-DEPTH (DEPTH 8"
        in str(error.value)
    )
    assert "densenet-DEPTH (DEPTH 10, 16, 22 ...), cae-LATENT, dagmm-LATENT" in str(error.value)


def test_autoencoders_have_names_too():
    assert build("cae-64", 111, jnp.bfloat16, "devices") == ConvAutoencoder(64, "devices")
    dagmm = MixtureAutoencoder(latent=5, components=3, axis_name="devices")
    assert build("dagmm-5", 111, axis_name="devices") == dagmm


def torch_network(family, variables, x, train):
    """Logits by PyTorch's functions, one block per group; layers are numbered in order of use."""

    def numbers(kind, collection, name):
        count = sum(kind in layer for layer in variables["params"])
        return (torch.tensor(variables[collection][f"{kind}_{i}"][name]) for i in range(count))

    kernels = numbers("Conv", "params", "kernel")
    norms = zip(
        numbers("BatchNorm", "batch_stats", "mean"),
        numbers("BatchNorm", "batch_stats", "var"),
        numbers("BatchNorm", "params", "scale"),
        numbers("BatchNorm", "params", "bias"),
        strict=True,
    )

    def conv(x, stride=1):
        kernel = next(kernels).permute(3, 2, 0, 1)
        return functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def norm(x):
        return functional.batch_norm(x, *next(norms), training=train)

    relu = functional.relu
    x = conv(torch.tensor(x).permute(0, 3, 1, 2))
    if family == "resnet":
        x = relu(norm(x))
        for stride in (1, 2, 2):
            y = norm(conv(relu(norm(conv(x, stride)))))
            x = relu(y + (x if stride == 1 else norm(conv(x, stride))))
    elif family == "wrn":
        for stride in (1, 2, 2):
            activated = relu(norm(x))
            shortcut = x if stride == 1 else conv(activated, stride)
            x = shortcut + conv(relu(norm(conv(activated, stride))))
        x = relu(norm(x))
    else:
        for block in range(3):
            if block > 0:
                x = functional.avg_pool2d(conv(relu(norm(x))), 2)
            x = torch.cat([x, conv(relu(norm(conv(relu(norm(x))))))], 1)
        x = relu(norm(x))
    assert next(kernels, None) is next(norms, None) is None
    head = {name: torch.tensor(a) for name, a in variables["params"]["head"].items()}
    return x.mean((2, 3)) @ head["kernel"] + head["bias"]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ["wrn-10-1", "resnet-8", "densenet-10"])
def test_networks_are_those_of_pytorchs_layers(name, train):
    x = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
    network, random = build(name, 111), np.random.default_rng(1)
    shapes = jax.eval_shape(functools.partial(network.init, train=False), jax.random.key(0), x)
    variables = jax.tree.map(lambda a: np.float32(random.uniform(-0.2, 0.5, a.shape)), shapes)
    variables["batch_stats"] = jax.tree.map(lambda a: abs(a) + 0.5, variables["batch_stats"])
    apply = jax.jit(functools.partial(network.apply, train=train, mutable=["batch_stats"]))
    (logits, _), _ = apply(variables, x)
    theirs = torch_network(name.split("-")[0], variables, x, train)
    assert np.ptp(logits) > 1
    np.testing.assert_allclose(logits, theirs, rtol=1e-4, atol=1e-4 * np.abs(logits).max())


# --- Initialisation --------------------------------------------------------------------------


def initialise(network, seed, images):
    """Variables, from a generator that compiles in a tenth of the default one's time on a CPU."""
    init = jax.jit(functools.partial(network.init, train=False))
    return init(jax.random.key(seed, impl="rbg"), images)


@pytest.fixture(scope="module")
def wide_params():
    return initialise(build("wrn-10-4", 111), 0, jnp.zeros((1, 8, 8, 1)))["params"]


def test_convolutions_start_he_normal_by_fan_in_and_not_truncated(wide_params):
    kernels = [p["kernel"] for p in wide_params.values() if p.get("kernel", np.zeros(0)).ndim == 4]
    kernel = np.asarray(max(kernels, key=np.size))
    assert kernel.shape == (3, 3, 256, 256)
    z = kernel / np.sqrt(2 / (9 * 256))
    assert z.std() == pytest.approx(1, rel=0.01)
    assert z.mean() == pytest.approx(0, abs=0.01)
    # Truncated at two standard deviations and rescaled, none would be beyond 2.28.
    assert (np.abs(z) > 2).mean() == pytest.approx(0.0455, abs=0.002)
    assert np.abs(z).max() > 4


def test_every_convolution_has_the_spread_of_its_own_fan_in(wide_params):
    kernels = {k: np.asarray(p["kernel"]) for k, p in wide_params.items() if "Conv" in k}
    assert len(kernels) == 10
    for name, kernel in kernels.items():
        fan_in = np.prod(kernel.shape[:3])
        # Five standard errors of the spread of so many normal numbers.
        tolerance = 5 / np.sqrt(2 * kernel.size)
        assert kernel.std() * np.sqrt(fan_in / 2) == pytest.approx(1, abs=tolerance), name


def test_the_head_starts_uniform_within_one_over_the_root_of_its_inputs(wide_params):
    kernel, bias = (np.asarray(wide_params["head"][name]) for name in ("kernel", "bias"))
    assert kernel.shape == (256, 111)
    assert np.abs(kernel).max() <= 1 / 16
    assert np.abs(kernel).max() > 0.99 / 16
    assert kernel.std() == pytest.approx(1 / 16 / np.sqrt(3), rel=0.02)
    assert not bias.any()


@pytest.mark.parametrize(("name", "convolutions"), [("resnet-8", 9), ("densenet-10", 9)])
def test_the_other_networks_convolutions_have_the_spread_of_their_own_fan_out(name, convolutions):
    params = initialise(build(name, 111), 0, jnp.zeros((1, 8, 8, 1)))["params"]
    kernels = {k: np.asarray(p["kernel"]) for k, p in params.items() if "Conv" in k}
    assert len(kernels) == convolutions
    for name, kernel in kernels.items():
        fan_out = np.prod(kernel.shape[:2]) * kernel.shape[3]
        tolerance = 5 / np.sqrt(2 * kernel.size)
        assert kernel.std() * np.sqrt(fan_out / 2) == pytest.approx(1, abs=tolerance), name


# --- Batch norm, numbers and types -----------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    """wrn-10-1 with 5 outputs: its variables, and 6 images of side 8."""
    images = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype(np.float32)
    return initialise(build("wrn-10-1", 5), 1, images), images


@functools.cache
def traced(train):
    """Output, batch norms' outputs and new batch statistics of the small network."""
    network = build("wrn-10-1", 5)

    def apply(variables, images):
        return network.apply(
            variables,
            images,
            train=train,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=lambda module, _: module.name in ("Conv_0", "BatchNorm_0"),
        )

    return jax.jit(apply)


def test_running_statistics_move_a_tenth_of_the_way_and_training_uses_the_batchs(small):
    variables, images = small
    _, updates = traced(True)(variables, images)
    captured = updates["intermediates"]
    x = np.asarray(captured["Conv_0"]["__call__"][0], np.float64)
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    new = updates["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(new["mean"], 0.1 * mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(new["var"], 0.9 + 0.1 * variance, rtol=1e-4)
    normalised = (x - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(captured["BatchNorm_0"]["__call__"][0], normalised, atol=1e-4)


def test_scoring_uses_the_running_statistics_with_epsilon_1e_5_and_leaves_them(small):
    variables, images = small
    # At variance 0, only epsilon is left to divide by.
    stats = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    _, updates = traced(False)(variables | {"batch_stats": stats}, images)
    captured = updates["intermediates"]
    x = np.asarray(captured["Conv_0"]["__call__"][0])
    expected = x / np.sqrt(1e-5)
    np.testing.assert_allclose(captured["BatchNorm_0"]["__call__"][0], expected, rtol=1e-4)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates["batch_stats"]))


def test_logits_are_the_head_of_the_representation_and_do_not_see_other_images(small):
    variables, images = small
    (logits, representation), _ = traced(False)(variables, images)
    assert logits.shape == (6, 5) and representation.shape == (6, 64)
    assert (representation >= 0).all() and np.ptp(representation) > 0
    head = variables["params"]["head"]
    np.testing.assert_allclose(
        logits, representation @ head["kernel"] + head["bias"][None], rtol=1e-5, atol=1e-5
    )
    (turned, _), _ = traced(False)(variables, images[::-1])
    np.testing.assert_allclose(turned[::-1], logits, rtol=1e-5, atol=1e-5)


def test_bfloat16_computes_close_to_float32_and_keeps_everything_else_float32(small):
    variables, images = small
    network = build("wrn-10-1", 5, jnp.bfloat16)

    def apply(variables):
        return network.apply(variables, images, train=True, mutable=["batch_stats"])

    (logits, representation), updates = jax.jit(apply)(variables)
    initial = jax.eval_shape(
        functools.partial(network.init, train=False), jax.random.key(0), images
    )
    types = {leaf.dtype for leaf in jax.tree.leaves((initial, updates, logits, representation))}
    assert types == {jnp.dtype("float32")}
    (exact, _), _ = traced(True)(variables, images)
    difference = np.abs(logits - exact).max()
    assert 0 < difference < 0.05 * np.abs(exact).max()
