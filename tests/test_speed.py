"""The programs that speed is measured against are the same method, and the script runs."""

import csv

import jax
import numpy as np
import pytest
import speed
import speed_growth

import e3jax
from e3jax import networks, training

SMALL = ("--rounds", 1, "--seconds", 0.01, "--images", 20, "--batch-size", 8, "--steps", 2)
ONE_DEVICE = {"JAX_NUM_CPU_DEVICES": "1", "OMP_NUM_THREADS": "1"}
K = 111


@pytest.fixture
def environment(monkeypatch):
    """Fewer programs to compile."""
    for name, value in ONE_DEVICE.items():
        monkeypatch.setenv(name, value)


def last_line(finished) -> dict[str, float]:
    assert finished.returncode == 0, finished.stderr
    pairs = [pair.split("=") for pair in finished.stdout.splitlines()[-1].split(" ")]
    assert [name for name, _ in pairs] == ["train_ratio", "score_ratio", "pipeline_ratio"]
    return {name: float(value) for name, value in pairs}


def rows(path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def random_images(n: int, channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 32, 32, channels), np.uint8)


def to_torch(network, variables) -> None:
    """Copies a Flax network's numbers; both list their layers in the order of their use."""
    torch = pytest.importorskip("torch")
    layers = list(network.modules())
    for kind, name in ((torch.nn.Conv2d, "Conv"), (torch.nn.BatchNorm2d, "BatchNorm")):
        for i, layer in enumerate(layer for layer in layers if isinstance(layer, kind)):
            ours = dict(variables["params"][f"{name}_{i}"])
            if name == "Conv":
                ours = {"weight": ours["kernel"].transpose(3, 2, 0, 1)}
            else:
                stats = variables["batch_stats"][f"{name}_{i}"]
                ours = {"weight": ours["scale"], "bias": ours["bias"]}
                ours |= {"running_mean": stats["mean"], "running_var": stats["var"]}
            copy_into(layer, ours)
    head = variables["params"]["head"]
    copy_into(network.head, {"weight": head["kernel"].T, "bias": head["bias"]})


def copy_into(layer, arrays) -> None:
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    layer.load_state_dict(layer.state_dict() | state)


def random_variables(network):
    """No fresh network's: its running statistics and scales would hide what is left out."""
    random = np.random.default_rng(1)

    def fill(a):
        if len(a.shape) == 1:
            return np.float32(random.uniform(0.5, 1.5, a.shape))
        return np.float32(random.normal(0, np.prod(a.shape[:-1]) ** -0.5, a.shape))

    x = np.zeros((1, 32, 32, 1), np.float32)
    return jax.tree.map(
        fill, jax.eval_shape(lambda key: network.init(key, x, train=False), jax.random.key(0))
    )


@pytest.fixture(scope="module")
def peers():
    pytest.importorskip("torch")
    import torch_peers

    return torch_peers


@pytest.mark.parametrize("channels, count", [(1, 1_224_479), (3, 1_224_767)])
def test_peers_have_the_papers_number_of_parameters(peers, channels, count):
    network = peers.WideResNet("wrn-10-4", K, channels)
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("network", ["wrn-10-1", "wrn-10-4", "wrn-16-2"])
def test_flops_are_those_pytorch_counts(peers, network):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        peers.WideResNet(network, K, 3)(torch.zeros(1, 3, 32, 32))
    ours = networks.forward_flops(networks.build(network, K), (32, 32, 3))
    assert ours == counter.get_total_flops()


@pytest.mark.parametrize("channels", [1, 3])
def test_straightforward_views_are_e3jaxs(peers, channels):
    image = np.asarray(training.to_unit(random_images(1, channels)))
    ours = e3jax.all_views(e3jax.operation_set(), image)[0]
    np.testing.assert_allclose(peers.host_views(image[0]), ours, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("only_rotated", [True, False])
def test_tuned_views_are_e3jaxs(peers, channels, only_rotated):
    import torch

    operations, images = e3jax.operation_set(), random_images(2, channels)
    views = peers.DeviceViews(operations, only_rotated)
    image, label = torch.arange(2).repeat_interleave(K), torch.arange(K).repeat(2)
    theirs = views(torch.from_numpy(images.reshape(-1, channels)), image, label)
    assert theirs.is_contiguous(memory_format=torch.channels_last)
    ours = e3jax.all_views(operations, training.to_unit(images))
    theirs = theirs.permute(0, 2, 3, 1).numpy().reshape(ours.shape)
    np.testing.assert_allclose(theirs, ours, atol=1e-4)


def test_with_the_same_weights_peers_compute_the_same(peers):
    import torch

    network = "wrn-16-1"  # has blocks with and without a convolution in the shortcut
    config, operations = e3jax.quick_config()._replace(network=network), e3jax.operation_set()
    images = random_images(2, 1)
    linen = networks.build(network, K)
    variables = random_variables(linen)
    tuned = peers.Tuned(images, config, operations, "cpu", compiled=False)
    straightforward = peers.Straightforward(images, config, "cpu")
    views = e3jax.all_views(operations, training.to_unit(images))[0]
    logits = jax.jit(linen.apply, static_argnames="train")(variables, views, train=False)[0]
    ours = e3jax.Scorer(network, operations, images_per_call=2)(variables, images).ne
    for peer, scores in ((tuned, lambda: tuned.score(2)), (straightforward, straightforward.score)):
        to_torch(peer.network, variables)
        peer.network.eval()
        with torch.no_grad():
            theirs = peer.network(torch.from_numpy(np.array(views)).permute(0, 3, 1, 2))
        np.testing.assert_allclose(theirs.numpy(), logits, atol=1e-3)
        np.testing.assert_allclose(scores(), ours, atol=1e-3)


def test_the_tuned_peers_epoch_visits_every_view_once_and_training_learns(peers):
    config = e3jax.quick_config()._replace(batch_size=37, steps=20)
    tuned = peers.Tuned(random_images(2, 1), config, e3jax.operation_set(), "cpu", compiled=False)
    batches = tuned._batches()
    for _ in range(2):
        pairs = np.concatenate([next(batches).numpy() for _ in range(6)])
        assert sorted(pairs) == list(range(2 * K))
    tuned.train(1)
    first = float(tuned.loss)
    tuned.train(19)
    assert float(tuned.loss) / 20 < first


@pytest.mark.campaign
def test_a_measurement_ends_with_a_line_for_programs_and_a_row(
    peers, run_script, tmp_path, environment
):
    options = (*SMALL, "--torch-compile", "eager", "--pipeline", "--results-dir", tmp_path)
    ratios = last_line(run_script("experiments/speed.py", *options))
    assert all(ratio > 0 for ratio in ratios.values())
    [row] = rows(tmp_path / "speed.csv")
    assert list(row) == speed.COLUMNS
    assert (row["network"], row["protocol"], row["batch_size"]) == ("wrn-10-1", "quick", "8")
    assert row["straightforward_views_bytes"] == str(20 * K * 32 * 32 * 4)
    assert row["tuned_mode"] == "eager" and "torch=" in row["versions"]
    for name in ("train", "score", "pipeline"):
        assert float(row[f"{name}_ratio"]) == pytest.approx(ratios[f"{name}_ratio"], abs=1e-3)
    assert 0 < float(row["train_utilisation"]) < 2


@pytest.mark.campaign
def test_e3jax_is_measured_without_torch(run_script, tmp_path, environment):
    options = (*SMALL, "--without-torch", "--results-dir", tmp_path)
    finished = run_script("experiments/speed.py", *options)
    assert all(np.isnan(ratio) for ratio in last_line(finished).values())
    assert "Plan: wrn-10-1" in finished.stderr
    [row] = rows(tmp_path / "speed.csv")
    assert float(row["train_views_per_second"]) > 0 and row["tuned_mode"] == ""


@pytest.mark.campaign
def test_growth_has_a_row_for_every_size(run_script, tmp_path, environment):
    options = ("--growth", "--growth-images", 20, 1000, "--growth-devices", 1, *SMALL)
    last_line(run_script("experiments/speed.py", *options, "--results-dir", tmp_path))
    table = rows(tmp_path / "growth.csv")
    assert list(table[0]) == speed_growth.COLUMNS
    assert [(r["growth"], r["images"]) for r in table] == [
        ("images", "20"),
        ("images", "1000"),
        ("devices", "1000"),
    ]


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("--network", "resnet"), "expected wrn-DEPTH-WIDTH"),
        (("--rounds", 0), "give a positive number"),
        (("--images", 3), "--images must be at least 20"),
        (("--seconds", 0), "--seconds must be more than 0"),
    ],
)
def test_bad_arguments_are_answered_in_one_sentence(arguments, sentence, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["speed.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        speed.main()
    assert left.value.code == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]


def test_without_torch_installed_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(speed.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["speed.py"])
    assert speed.main() == 2
    assert "pip install torch" in capsys.readouterr().err


def test_a_table_with_other_columns_is_left_alone(tmp_path):
    path = tmp_path / "speed.csv"
    path.write_text("other\n1\n")
    with pytest.raises(ValueError, match="other columns"):
        speed.append_rows(path, speed.COLUMNS, [{"network": "wrn-10-1"}])
    assert path.read_text() == "other\n1\n"
