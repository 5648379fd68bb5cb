"""What holds on devices that are not here: programs for absent platforms, plug-ins, odd counts."""

import csv
import os
import subprocess
import sys
import time

import flax.linen as nn
import jax
import jax.export
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from e3jax import E3Outlier, baselines, devices, operations, scoring, training

OPERATIONS = operations.operation_set("PR")
CONFIG = training.quick_config()._replace(batch_size=4, steps=None)

# What a person runs, on so many devices of which JAX knows no more than of a plug-in's.
PROGRAM = """
import runpy, sys
import jax
import jax._src.xla_bridge
from e3jax import cli

count, folder = sys.argv[1:]
jax._src.xla_bridge.using_pjrt_c_api = lambda backend=None: True
assert cli.main(["rank", f"{folder}/photos", "--out", f"{folder}/{count}", *RANK]) in (0, 1)
assert jax.device_count() == int(count)
sys.path.insert(0, "experiments")
for script in SWEEPS:
    sys.argv = [script, *SWEEP, *SWEEPS[script], "--results-dir", f"{folder}/{count}/{script}"]
    try:
        runpy.run_path(f"experiments/{script}.py", run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code
"""
STEPS, SEED = 12, 1
RANK = ["--operations", "PR", "--steps", str(STEPS), "--seed", str(SEED)]
SWEEP = "--dataset mnist --source embedded --classes 4 --runs-at-once 1 --steps 12".split()
SWEEP += "--max-images 20".split()
SWEEPS = {
    "benchmark": "--operations PR --methods e3outlier cae".split(),
    "ablations": "--factors scores".split(),
}


@pytest.fixture(scope="module", params=[3, 6])
def ranked(request, digits, tmp_path_factory):
    """What PROGRAM leaves on 3 or 6 devices, and how many."""
    count, folder = request.param, tmp_path_factory.mktemp("devices")
    (folder / "photos").mkdir()
    for i, digit in enumerate(digits[:20]):
        Image.fromarray(digit[..., 0]).save(folder / "photos" / f"{i:02d}.png")
    sweeps = SWEEPS if count == 3 else {"benchmark": SWEEPS["benchmark"][:-1]}
    program = f"RANK, SWEEP, SWEEPS = {(RANK, SWEEP, sweeps)!r}\n" + PROGRAM
    env = os.environ | {
        "JAX_NUM_CPU_DEVICES": str(count),
        "JAX_COMPILATION_CACHE_DIR": os.environ["E3JAX_CACHE_DIR"] + "/compiled",
    }
    command = [sys.executable, "-c", program, str(count), str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return count, folder / str(count)


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:pretext accuracy")
def test_any_number_of_devices_of_a_plugin_does(ranked, digits):
    count, folder = ranked
    scores = {row["path"]: float(row["score"]) for row in rows(folder / "scores.csv")}
    scores = [scores[path] for path in sorted(scores)]
    assert len(scores) == 20 and np.ptp(scores) > 0.05, "the case is too easy"
    if count == 3:  # a batch of 64 takes 2 of them, as here
        plain = E3Outlier(operations="PR", steps=STEPS, random_state=SEED).fit(digits[:20])
        np.testing.assert_allclose(scores, plain.decision_scores_, atol=1e-5)
    found = rows(folder / "benchmark" / "results.csv")
    assert {row["device"] for row in found} == {f"{count} x cpu"}
    assert {row["precision"] for row in found} == {"float32"}
    methods = {row["method"] for row in found}
    assert methods >= {"e3outlier", *(["cae"] if count == 3 else [])}
    if count == 3:
        assert {r["method"] for r in rows(folder / "ablations" / "results.csv")} >= {"e3outlier"}


def test_a_batch_takes_as_many_devices_as_it_divides_over():
    mesh = devices.device_mesh()
    assert devices.part_for_batch(mesh, 64) is mesh
    assert devices.part_for_batch(mesh, 33).size == 1


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_programs_are_exported_for_absent_platforms(precision):
    mesh = devices.device_mesh(jax.devices()[:1])
    trainer = training.make_trainer(CONFIG._replace(precision=precision), OPERATIONS, mesh)
    programs = trainer.programs(20, 3)
    variables = programs["train"].arguments[0].variables
    scorer = scoring.Scorer(CONFIG.network, OPERATIONS, mesh, precision)
    programs["score"] = scorer.program(variables, 3)
    assert set(programs) == {"init", "draw", "train", "score"}
    for name in ("draw", "train", "score"):
        function, arguments = programs[name]
        exported = jax.export.export(function, platforms=("cuda", "tpu"))(*arguments)
        assert exported.platforms == ("cuda", "tpu") and exported.out_avals


@pytest.mark.parametrize("name", ["cae", "drae", "rdae", "dagmm", "cae-views"])
def test_compared_methods_are_exported_for_absent_platforms(name):
    method, mesh = baselines.METHODS[name], devices.device_mesh()
    model = method.make_model(method.quick_config(), (20, 32, 32, 3), mesh)
    for kind, (function, arguments) in model.programs((32, 32, 3)).items():
        if kind != "init":
            jax.export.export(function, platforms=("cuda", "tpu"))(*arguments)


def test_precision_is_in_the_program_of_every_platform():
    """Without one, accelerators round the factors of float32 products."""
    mesh = devices.device_mesh()
    for precision, words in (("float32", "HIGHEST"), ("tensorfloat32", "HIGH")):
        config = CONFIG._replace(precision=precision, network="wrn-10-1")
        trainer = training.make_trainer(config, OPERATIONS, mesh)
        function, arguments = trainer.programs(20, 3)["train"]
        text = function.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
        convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
        assert len(convolutions) > 20
        assert all(f"precision {words}>, #stablehlo<precision {words}>" in c for c in convolutions)


class Counted(nn.Module):
    """A small network that counts how often its training is traced."""

    num_outputs: int
    dtype: object = None
    axis_name: str | None = None
    traced = []

    @nn.compact
    def __call__(self, x, train):
        self.traced.append(train)
        representation = nn.relu(nn.Conv(4, (3, 3), strides=4)(x)).mean((1, 2))
        return nn.Dense(self.num_outputs)(representation), representation


@pytest.mark.filterwarnings("ignore:pretext accuracy")
def test_one_program_serves_all_sizes_and_budgets(digits):
    """In one trace: a program names its number of steps and images nowhere."""
    traces = []
    for n, steps in ((20, 15), (40, 15), (60, 15), (60, 25)):
        detector = E3Outlier(network=Counted, operations="PR", steps=steps, random_state=0)
        assert np.isfinite(detector.fit(digits[:n]).decision_scores_).all()
        traces.append(len(Counted.traced))
    assert traces[0] > 0 and len(set(traces)) == 1


def test_an_image_alone_takes_its_own_time(digits):
    scorer = scoring.Scorer("wrn-10-1", OPERATIONS)
    trainer = training.make_trainer(CONFIG, OPERATIONS)
    variables = trainer.init(jax.random.key(0), 1).variables
    images = np.resize(digits, (64, *digits.shape[1:]))

    def seconds(n):
        start = time.perf_counter()
        scorer(variables, images[:n])
        return time.perf_counter() - start

    seconds(64)
    assert min(seconds(1) for _ in range(5)) <= min(seconds(64) for _ in range(3)) / 10
