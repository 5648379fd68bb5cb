"""One mesh for everything: devices, processes and runs at once change no result.

Programs are started for what one process cannot have: other numbers of devices, other processes.
"""

import jax
import numpy as np
import pytest
from jobs import environment, free_port, run_together
from tiny import Tiny

from e3jax import devices, operations, priority, training
from e3jax.collection import bank
from e3jax.devices import configuration, programs
from e3jax.training import losses, rules

CONFIG = training.TrainConfig(
    network="tiny-8",
    operations="PR",
    optimizer="sgd",
    learning_rate=0.01,
    batch_size=64,
    steps=3,
)

# Trains and scores on the first so many devices, for every number in turn, and saves what comes
# out; then takes the state up again from a checkpoint.
PROGRAM = """
import sys
import jax, numpy as np, tiny
from e3jax import datasets, devices, training
from e3jax.datasets import contamination
from e3jax.training import fitting
from e3jax.training.checkpoint import TrainCheckpoint

process, processes, port, folder, *counts = sys.argv[1:]
if int(processes) > 1:
    jax.distributed.initialize(f"localhost:{port}", int(processes), int(process))
assert jax.process_count() == int(processes)
config, key = training.TrainConfig(**CONFIG), jax.random.key(0)
mnist = datasets.load("mnist", source="embedded", announce=lambda line: None)
images = contamination.contaminate(mnist.images, mnist.labels, 4, 0.1, 0, max_images=20).images
results = {}
for count in map(int, counts):
    mesh = devices.device_mesh(jax.devices()[:count])
    assert mesh.size == count
    fitted, states, losses = None, [], []
    for until in range(4):
        fitted = fitting.fit(
            key, images, config=config, mesh=mesh, start=fitted, until=until,
            observer=fitting.Observer(lambda step, log: losses.append(log.loss)),
        )
        states.append(jax.device_get(fitted.state.variables))
        if until == 0:
            scores = fitting.score(fitted, images, mesh=mesh).rules
    saved = TrainCheckpoint(f"{folder}/state{process}-{count}")
    notes = {"seconds": np.float32(7.5)}
    assert saved.restore(fitted.state, notes) is None
    saved.save(fitted.state, notes)
    fresh = fitting.fit(jax.random.key(1), images, config=config, mesh=mesh, until=0)
    again, notes = saved.restore(fresh.state, {"seconds": np.float32(0)})
    assert notes["seconds"] == 7.5
    for a, b in zip(jax.tree.leaves(fitted.state), jax.tree.leaves(again), strict=True):
        assert a.sharding == b.sharding
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    for step, variables in enumerate(states):
        for path, a in jax.tree_util.tree_leaves_with_path(variables):
            results[f"{count} weights {step} {jax.tree_util.keystr(path)}"] = a
    results[f"{count} loss"] = np.concatenate(losses)
    results |= {f"{count} scores {name}": a.mean(1) for name, a in scores.items()}
np.savez(f"{folder}/process{process}.npz", **results)
""".replace("CONFIG", repr(CONFIG._asdict()))


def results(folder, processes, devices, counts) -> list[dict[str, np.ndarray]]:
    """What PROGRAM saves in every process."""
    port = free_port()
    commands = [["-c", PROGRAM, i, processes, port, folder, *counts] for i in range(processes)]
    for done in run_together(commands, [environment(devices)] * processes):
        assert done.returncode == 0, done.stderr
    return [dict(np.load(folder / f"process{i}.npz")) for i in range(processes)]


def part(saved, count, kind) -> dict[str, np.ndarray]:
    start = f"{count} {kind}"
    return {name.removeprefix(start): a for name, a in saved.items() if name.startswith(start)}


def assert_same_run(ours, theirs):
    """Scores of the same weights within 1e-4; three steps of SGD within 1 % of each array's change.

    The order of sums is all that differs. Gradients of biases are small sums of large terms, and
    Winograd's algorithm rounds ten times more than a plain sum: the differences reach 0.1 %. Adam
    would not do: it divides by the gradient's size, so that rounding of tiny ones shows.
    """
    for name in rules.RULES:
        np.testing.assert_allclose(
            ours["scores"][f" {name}"], theirs["scores"][f" {name}"], atol=1e-4
        )
    np.testing.assert_allclose(ours["loss"][""], theirs["loss"][""], rtol=1e-5)
    assert ours["weights"].keys() == theirs["weights"].keys()
    for name, a in ours["weights"].items():
        _, step, parameter = name.split(" ", 2)
        b = theirs["weights"][name]
        change = np.linalg.norm(b - theirs["weights"][f" 0 {parameter}"])
        assert np.linalg.norm(a - b) <= 0.01 * change + 1e-7 * np.abs(b).max(), name
        assert step == "0" or change > 0, name


def run_of(saved, count):
    return {kind: part(saved, count, kind) for kind in ("scores", "loss", "weights")}


@pytest.fixture(scope="module")
def one_process(mnist, tmp_path_factory):
    # A batch of 64 is split over 2 of 3 devices and over 4 of 6.
    [saved] = results(tmp_path_factory.mktemp("one"), 1, 8, [1, 3, 6, 8])
    return saved


@pytest.mark.parametrize("devices", [3, 6, 8])
def test_any_number_of_devices_does_the_same_run(one_process, devices):
    alone = run_of(one_process, 1)
    assert np.ptp(alone["scores"][" ne"]) > 1e-3, "the case is too easy: all scores alike"
    assert_same_run(run_of(one_process, devices), alone)


def test_two_processes_do_the_same_run_as_one(one_process, tmp_path):
    both = results(tmp_path, 2, 2, [4])
    for name, values in both[0].items():
        np.testing.assert_array_equal(values, both[1][name])
    assert_same_run(run_of(both[0], 4), run_of(one_process, 6))
    assert [p.name for p in tmp_path.glob("state*")] == ["state0-4"]


# What docs/large-collections.md says of a job.
DETECTOR = """
import sys
import jax, numpy as np, tiny
from e3jax import E3Outlier

process, processes, port, bank, out = sys.argv[1:]
if int(processes) > 1:
    jax.distributed.initialize(f"localhost:{port}", int(processes), int(process))
how = {"network": "tiny-8", "operations": "RA"}
# Each process has another seed and takes the time itself, and all do as the first.
detector = E3Outlier(**how, steps=1, random_state=int(process)).fit(bank)
in_time = E3Outlier(**how, time_budget=1).fit(bank)
results = {"scores": detector.decision_scores_, "entropies": detector.view_entropies_}
np.savez(out + process, **results, steps=in_time.health_.steps)
"""


@pytest.mark.nightly
def test_a_detector_fits_a_bank_in_two_processes_as_in_one(digits, tmp_path):
    bank.write_arrays(tmp_path / "bank", [digits])
    for processes in (1, 2):
        out, port = tmp_path / f"{processes}of", free_port()
        commands = [
            ["-c", DETECTOR, i, processes, port, tmp_path / "bank", out] for i in range(processes)
        ]
        for done in run_together(commands, [environment(2 // processes)] * processes):
            assert done.returncode == 0, done.stderr
    alone, first, second = (np.load(tmp_path / f"{name}.npz") for name in ("1of0", "2of0", "2of1"))
    assert first["steps"] == second["steps"]
    for name in ("scores", "entropies"):
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], alone[name], atol=1e-3)


# Two runs side by side, on a device each and on the same one, against each alone.
IN_FLIGHT = """
import concurrent.futures
import jax, numpy as np, tiny
from e3jax import datasets, devices, training
from e3jax.datasets import contamination
from e3jax.training import fitting

# Of a size at which XLA would split loops into tasks, which overwrote each other's input here.
config = training.quick_config()._replace(steps=8)
mnist = datasets.load("mnist", source="embedded", announce=lambda line: None)
images = contamination.contaminate(mnist.images, mnist.labels, 4, 0.1, 0, max_images=20).images
meshes = [devices.device_mesh([device]) for device in jax.devices()]

def run(seed, station):
    options = {"mesh": meshes[station]}
    fitted = fitting.fit(jax.random.key(seed), images, config=config, **options)
    scores = fitting.score(fitted, images, **options)
    return jax.tree.map(np.asarray, (fitted.state.variables, scores))

with concurrent.futures.ThreadPoolExecutor(2) as threads:
    apart, together = (list(threads.map(run, (0, 1), where)) for where in ((0, 1), (0, 0)))
alone = [run(0, 0), run(1, 0)]
for both in (apart, together):
    jax.tree.map(np.testing.assert_array_equal, both, alone)
assert not np.array_equal(alone[0][1].mean(), alone[1][1].mean())
"""


@pytest.mark.nightly
def test_runs_at_once_give_the_bits_of_runs_alone(mnist):
    [done] = run_together([["-c", IN_FLIGHT]], [environment(2)])
    assert done.returncode == 0, done.stderr


def make_trainer(network, probe=None):
    return training.make_trainer(
        network,
        training.Objective(losses.surrogate_supervision),
        training.make_optimizer(CONFIG),
        32,
        operations.operation_set("PR"),
        batch_size=CONFIG.batch_size,
        steps_per_call=1,
        probe=probe,
    )


def test_the_loop_of_steps_moves_nothing_between_host_and_devices(digits, monkeypatch):
    # Elsewhere e3jax may move what it needs, however JAX is set.
    for direction in ("host_to_device", "device_to_device", "device_to_host"):
        monkeypatch.delitem(configuration._SETTINGS, f"transfer_guard_{direction}")
    trainer = make_trainer(Tiny)
    bank = training.place_bank(trainer.mesh, digits, on_host=False)
    state = trainer.init(jax.random.key(0), 1)
    drawn = trainer.batches(state, bank, len(digits), [1] * 4)
    state, log = trainer.run_steps(state, next(drawn), 3)
    with jax.transfer_guard("disallow"):
        with pytest.raises(Exception, match="[Dd]isallowed host-to-device"):
            jax.block_until_ready(jax.numpy.add(state.step, 1))
        for batches in drawn:
            state, log = trainer.run_steps(state, batches, 3)
        assert jax.device_get(state.step) == 4 and np.isfinite(jax.device_get(log.loss)).all()


def collectives(jaxpr) -> list[str]:
    """Names of all collectives in a program and the programs within it."""
    found = []
    for equation in jaxpr.eqns:
        if any(word in equation.primitive.name for word in ("psum", "all_gather", "all_reduce")):
            found.append(equation.primitive.name)
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            found += collectives(inner) if hasattr(inner, "eqns") else []
    return found


@pytest.mark.parametrize("watched", [False, True])
def test_no_two_collectives_are_under_way_at_once(digits, watched, monkeypatch):
    """Each takes a thread that another device may need to arrive at it."""
    monkeypatch.setattr(programs, "compiler_options", lambda mesh, level: None)
    name = "wrn-10-1"
    trainer = make_trainer(name, priority.make_probe(name, 23) if watched else None)
    views = (digits[:4], np.zeros(4, np.int32), np.ones((2, 4), np.float32))
    data = priority.ProbeSet(*views, digits[:2], np.ones(2, np.float32)) if watched else ()
    state = trainer.init(jax.random.key(0), 1)
    bank = training.place_bank(trainer.mesh, digits)
    program = jax.make_jaxpr(
        lambda state, drawn, data: trainer.run_steps(state, drawn, 3, 1, data)
    )(
        state,
        next(trainer.batches(state, bank, len(digits), [1])),
        devices.place(trainer.mesh, data),
    )
    # Forward and back through 7 batch norms, the gradient; the probe's sum and its gathering.
    assert len(collectives(program.jaxpr)) == 2 * 7 + 1 + 2 * watched


def test_devices_are_joined_in_one_collective():
    mesh = devices.device_mesh()
    whole = {"a": np.arange(8.0, dtype=np.float32), "b": np.arange(48.0).reshape(8, 2, 3)}
    whole["b"] = whole["b"].astype(np.float32)
    everywhere, split = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec(devices.AXIS)
    options = {"mesh": mesh, "in_specs": split, "out_specs": everywhere, "check_vma": False}
    gather = jax.shard_map(devices.gather_over_devices, **options)
    assert len(collectives(jax.make_jaxpr(gather)(whole).jaxpr)) == 1
    jax.tree.map(np.testing.assert_array_equal, jax.jit(gather)(whole), whole)
    mean = jax.shard_map(devices.mean_over_devices, **options)
    halves = jax.tree.map(lambda a: (a[:4] + a[4:]) / 2, whole)
    jax.tree.map(np.testing.assert_allclose, jax.jit(mean)(whole), halves)
