"""The programs that speed is measured against are the same method, and the script runs."""

import csv
import runpy

import jax
import numpy as np
import pytest
import torch
from conftest import ROOT
from timing import pytorch, worker
from torch.utils.flop_counter import FlopCounterMode

import e3jax
from e3jax import images, networks, operations
from e3jax.training import e3outlier, fitting

SCRIPT = ROOT / "experiments/speed.py"
SMALL = ("--rounds", 1, "--seconds", 0.01, "--images", 20, "--batch-size", 8, "--steps", 2)
K = 111
torch.set_num_threads(1)  # on a busy machine threads wait for each other


def random_images(n, channels):
    return np.random.default_rng(0).integers(0, 256, (n, 32, 32, channels), np.uint8)


def backend(kind, *, n=2, **changes):
    config = e3jax.quick_config()._replace(**changes)
    options = {"mode": "eager"} if kind is pytorch.Tuned else {}
    made = kind(config._asdict(), [n, 32, 32, 1], **options)
    if kind is pytorch.Straightforward:
        made.fill_views()
        made.start()
    return made


def to_torch(network, variables):
    """Copies a Flax network's numbers; both list their layers in the order of their use."""
    layers, params, stats = list(network.modules()), variables["params"], variables["batch_stats"]
    for i, layer in enumerate(layer for layer in layers if isinstance(layer, torch.nn.Conv2d)):
        copy_into(layer, {"weight": params[f"Conv_{i}"]["kernel"].transpose(3, 2, 0, 1)})
    for i, layer in enumerate(layer for layer in layers if isinstance(layer, torch.nn.BatchNorm2d)):
        ours = params[f"BatchNorm_{i}"] | stats[f"BatchNorm_{i}"]
        names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
        copy_into(layer, {theirs: ours[name] for theirs, name in names.items()})
    head = params["head"]
    copy_into(network[-1], {"weight": head["kernel"].T, "bias": head["bias"]})


def copy_into(layer, arrays):
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


# --- The PyTorch programs ---------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "count"), [(1, 1_224_479), (3, 1_224_767)])
def test_the_network_has_the_papers_number_of_parameters(channels, count):
    network = pytorch.wide_resnet("wrn-10-4", K, channels)
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("network", ["wrn-10-1", "wrn-10-4", "wrn-16-2", "pwrn-10-2"])
def test_flops_are_those_pytorch_counts(network):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        pytorch.wide_resnet(network, K, 3)(torch.zeros(1, 3, 32, 32))
    ours = networks.forward_flops(networks.build(network, K), (32, 32, 3))
    assert ours == counter.get_total_flops()


@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_e3jaxs(channels):
    operation_set, data = e3jax.operation_set(), random_images(2, channels)
    ours = e3jax.all_views(operation_set, images.to_unit(data))
    unit = np.asarray(images.to_unit(data[0]))
    theirs = [pytorch.host_view(unit, operation) for operation in operations.paper_operations()]
    np.testing.assert_allclose(np.stack(theirs), ours[0], atol=1e-4)
    bank = torch.from_numpy(data.reshape(-1, channels))
    image, operation = torch.arange(2).repeat_interleave(K), torch.arange(K).repeat(2)
    for only_rotated in (True, False):
        theirs = pytorch.DeviceViews(operation_set, only_rotated)(bank, image, operation)
        assert theirs.is_contiguous(memory_format=torch.channels_last)
        theirs = theirs.permute(0, 2, 3, 1).numpy().reshape(ours.shape)
        np.testing.assert_allclose(theirs, ours, atol=1e-4)


@pytest.mark.parametrize("kind", [pytorch.Tuned, pytorch.Straightforward])
def test_with_the_same_weights_scores_are_the_same(kind):
    peer = backend(kind, network="wrn-16-1")  # has blocks with and without a shortcut convolution
    variables = random_variables(networks.build("wrn-16-1", K))
    fitted = fitting.restored(e3outlier.E3OUTLIER, peer.config, 32, variables)
    ours = fitting.score(fitted, peer.images).mean()
    to_torch(peer.network, variables)
    assert np.ptp(ours) > 5e-4
    np.testing.assert_allclose(peer.score(2), ours, atol=1e-4)


def test_an_epoch_of_the_tuned_program_visits_each_view_once():
    pairs = backend(pytorch.Tuned, batch_size=37).pairs()
    for _ in range(2):
        epoch = np.concatenate([next(pairs).numpy() for _ in range(6)])
        assert sorted(epoch) == list(range(2 * K))


@pytest.mark.parametrize("kind", [pytorch.Tuned, pytorch.Straightforward])
def test_training_learns(kind):
    peer = backend(kind, batch_size=37, steps=20)
    peer.train(1)
    first = float(peer.loss)
    peer.train(19)
    assert float(peer.loss) / 20 < first


# --- Workers ----------------------------------------------------------------------------------


def test_workers_answer_under_their_prefixes():
    with (
        worker.Worker("collections:Counter", a=1) as one,
        worker.Worker("collections:Counter", a=2) as two,
    ):
        assert worker.ask_all({"": one, "two_": two}, "copy") == {"a": 1, "two_a": 2}
        table = worker.in_turns({"": one, "two_": two}, 3, ("copy", {}))
    assert table.to_dict("list") == {"a": [1] * 3, "two_a": [2] * 3}


def test_a_worker_that_ends_is_one_sentence(capfd):
    with worker.Worker("collections:Counter") as ended:
        with pytest.raises(
            ChildProcessError, match="collections:Counter ended in popitem with code 1"
        ):
            ended.ask("popitem")
    assert "KeyError" in capfd.readouterr().err


# --- The script -------------------------------------------------------------------------------


def last_line(finished):
    assert finished.returncode == 0, finished.stderr
    pairs = [pair.split("=") for pair in finished.stdout.splitlines()[-1].split(" ")]
    assert [name for name, _ in pairs] == ["train_ratio", "score_ratio", "pipeline_ratio"]
    return {name: float(value) for name, value in pairs}


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def one_device(monkeypatch):
    """Fewer programs to compile, and sooner compiled ones: nobody looks at these speeds."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.nightly
def test_a_measurement_ends_with_a_line_for_programs_and_a_row(run_script, tmp_path, one_device):
    options = (*SMALL, "--torch-compile", "eager", "--pipeline", "--results-dir", tmp_path)
    finished = run_script(SCRIPT, *options)
    ratios = last_line(finished)
    assert all(ratio > 0 for ratio in ratios.values())
    assert "Plan: pwrn-10-2" in finished.stderr
    [row] = rows(tmp_path / "speed.csv")
    assert list(row) == list(worker.COLUMNS["speed"])
    missing = {name for name, value in row.items() if not value}
    assert missing == {"in_flight", "in_flight_train_views_per_second"}
    assert (row["network"], row["protocol"], row["batch_size"]) == ("pwrn-10-2", "quick", "8")
    assert row["straightforward_views_bytes"] == str(20 * K * 32 * 32 * 4)
    assert row["tuned_mode"] == "eager" and "torch=" in row["versions"]
    for name, ratio in ratios.items():
        assert float(row[name]) == pytest.approx(ratio, abs=1e-3)
    assert 0 < float(row["train_utilisation"]) < 2


@pytest.mark.nightly
def test_growth_has_a_row_for_every_size(run_script, tmp_path, one_device):
    options = ("--growth", "--growth-images", 20, 40, "--growth-devices", 1, *SMALL)
    ratios = last_line(run_script(SCRIPT, *options, "--results-dir", tmp_path))
    assert all(np.isnan(ratio) for ratio in ratios.values())
    table = rows(tmp_path / "growth.csv")
    assert list(table[0]) == list(worker.COLUMNS["growth"])
    sizes = [("images", "20"), ("images", "40"), ("devices", "1000")]
    assert [(row["growth"], row["images"]) for row in table] == sizes
    assert all(float(row["train_core_us_per_view"]) > 0 for row in table)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--network", "resnet"), "expected wrn-DEPTH-WIDTH"),
        (("--rounds", 0), "give a positive number"),
        (("--images", 3), "--images must be at least 20"),
        (("--seconds", 0), "--seconds must be more than 0"),
    ],
)
def test_bad_arguments_are_answered_in_one_sentence(args, sentence, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["speed.py", *map(str, args)])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert sentence in capsys.readouterr().err.splitlines()[-1]


def test_without_torch_installed_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["speed.py"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "pip install torch" in capsys.readouterr().err
