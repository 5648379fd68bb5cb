"""What holds on devices that are not here: programs for absent platforms, plug-ins, odd counts."""

import csv
import os
import subprocess
import sys
import time

import jax
import jax.export
import numpy as np
import pytest
from conftest import keeping
from PIL import Image
from tiny import Counted

from e3jax import E3Outlier, choices, devices, methods, training
from e3jax.devices import engines, mesh as mesh_module, programs, runtime
from e3jax.training import e3outlier, fitting

CONFIG = training.quick_config()._replace(operations="PR", batch_size=4, steps=None)

STEPS, SEED = 12, 1
# Surprises are ranks, which the rounding of another number of devices may exchange.
RANK = (
    *("--evidence", "network", "--network", "wrn-10-1"),
    *("--operations", "PR", "--steps", STEPS, "--seed", SEED),
)
SWEEP = (
    *("--dataset", "mnist", "--source", "embedded", "--classes", 4, "--max-images", 20),
    *("--steps", STEPS, "--operations", "PR", "--network", "tiny-8", "--runs-at-once", 1),
    *("--methods", "e3outlier", "cae"),
)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:pretext accuracy")
def test_any_number_of_devices_of_a_plugin_does(digits, run_script, tmp_path):
    """A report and a sweep on 3 devices, of which a batch of 128 takes 2, as here."""
    folder = tmp_path
    (folder / "photos").mkdir()
    for i, digit in enumerate(digits[:20]):
        Image.fromarray(digit[..., 0]).save(folder / "photos" / f"{i:02d}.png")
    env = os.environ | keeping() | {"JAX_NUM_CPU_DEVICES": "3"}
    for script, *arguments in (
        ("e3jax/__main__.py", "rank", folder / "photos", "--out", folder, *RANK),
        ("experiments/benchmark.py", *SWEEP, "--results-dir", folder / "sweep"),
    ):
        done = run_script(script, *arguments, plugin=True, env=env)
        assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
    scores = {row["path"]: float(row["score"]) for row in rows(folder / "scores.csv")}
    scores = [scores[path] for path in sorted(scores)]
    assert len(scores) == 20 and np.ptp(scores) > 0.05, "the case is too easy"
    how = {"evidence": "network", "network": "wrn-10-1", "operations": "PR"}
    plain = E3Outlier(**how, steps=STEPS, random_state=SEED).fit(digits[:20])
    np.testing.assert_allclose(scores, plain.decision_scores_, atol=1e-5)
    found = rows(folder / "sweep" / "results.csv")
    assert {row["device"] for row in found} == {"3 x cpu"}
    assert {row["precision"] for row in found} == {"float32"}
    assert {row["method"] for row in found} >= {"e3outlier", "cae"}


CUDA = "jax_cuda12_plugin"
# What a plug-in finds where there is no driver.
FAILING = "def initialize():\n    raise RuntimeError('no CUDA-capable device is detected')\n"
LOOK = """
import warnings
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as caught:
    from e3jax import devices
    from e3jax.devices import runtime
    runtime.devices(), devices.device_mesh()
    words = runtime.describe_devices()
for warning in caught:
    print(warning.message)
print(words)
"""


@pytest.mark.parametrize(
    ("installed", "chosen", "is_told"),
    [
        (["module"], {}, True),
        (["distribution"], {}, True),
        (["module", "distribution"], {}, True),
        (["module", "distribution"], {"JAX_PLATFORMS": "cpu"}, False),
        (["module", "distribution"], {"JAX_PLATFORM_NAME": "cpu"}, False),
        (["module", "distribution"], {"CUDA_VISIBLE_DEVICES": ""}, False),
        ([], {}, False),
    ],
)
def test_a_plugin_that_fails_is_told_once(tmp_path, installed, chosen, is_told):
    """JAX itself goes on with the CPU, and says nothing that a user sees."""
    made = {"jax_plugins/xla_cuda12/__init__.py": FAILING}
    if "module" in installed:
        made[f"{CUDA}/__init__.py"] = ""
    if "distribution" in installed:
        made[f"{CUDA}-1.0.dist-info/METADATA"] = f"Name: {CUDA}\nVersion: 1.0\n"
    for name, text in made.items() if installed else ():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    cpu = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "CUDA_VISIBLE_DEVICES")
    env = {name: value for name, value in os.environ.items() if name not in cpu}
    env |= {"PYTHONPATH": str(tmp_path), "JAX_NUM_CPU_DEVICES": "1"} | chosen
    done = subprocess.run([sys.executable, "-c", LOOK], env=env, capture_output=True, text=True)
    *told, words = done.stdout.splitlines()
    assert words == "CPU, 1 device", done.stderr
    assert len(told) == is_told
    for sentence in told:
        assert f"runs on the CPU, which is much slower, although {CUDA} is installed" in sentence


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_batch_takes_as_many_devices_as_it_divides_over():
    mesh = devices.device_mesh()
    assert devices.part_for_batch(mesh, 64) is mesh
    assert devices.part_for_batch(mesh, 33).size == 1


def test_an_accelerator_takes_at_least_128_views_of_a_batch(monkeypatch):
    """With fewer, devices would wait for each other in every batch normalisation."""
    monkeypatch.setattr(mesh_module, "is_cpu", lambda mesh: False)
    sizes = [devices.part_for_batch(devices.device_mesh(), n).size for n in (64, 128, 255, 256)]
    assert sizes == [1, 1, 1, 2]


@pytest.mark.parametrize(
    ("precision", "word"), [("float32", "HIGHEST"), ("tensorfloat32", "HIGH"), ("bfloat16", "HIGH")]
)
def test_programs_are_exported_for_absent_platforms_at_their_precision(precision, word):
    """Without a precision, accelerators round the factors of float32 products."""
    mesh = devices.device_mesh(jax.devices()[:1])
    config = CONFIG._replace(precision=precision)
    programs = fitting.programs(e3outlier.E3OUTLIER, config, (20, 32, 32, 3), mesh)
    assert set(programs) == {"init", "draw", "train", "score"}
    for name in ("draw", "train", "score"):
        function, arguments = programs[name]
        exported = jax.export.export(function, platforms=("cuda", "tpu"))(*arguments)
        assert exported.platforms == ("cuda", "tpu") and exported.out_avals
        if name == "train":
            lines = exported.mlir_module().splitlines()
    convolutions = [line for line in lines if "stablehlo.convolution" in line]
    assert len(convolutions) > 20
    assert all(f"precision {word}>, #stablehlo<precision {word}>" in line for line in convolutions)


@pytest.mark.parametrize("name", ["cae", "drae", "rdae", "dagmm", "cae-views"])
def test_compared_methods_are_exported_for_absent_platforms(name):
    method, mesh = methods.METHODS[name], devices.device_mesh()
    programs = fitting.programs(method, method.quick_config(), (20, 32, 32, 3), mesh)
    for kind, (function, arguments) in programs.items():
        if kind != "init":
            jax.export.export(function, platforms=("cuda", "tpu"))(*arguments)


@pytest.mark.filterwarnings("ignore:pretext accuracy")
def test_one_program_serves_all_sizes_and_budgets(digits):
    """In one trace: a program names its number of steps and images nowhere."""
    traces = []
    for n, steps in ((20, 15), (40, 15), (60, 15), (60, 25)):
        how = {"evidence": "network", "network": Counted, "operations": "PR"}
        detector = E3Outlier(**how, steps=steps, random_state=0)
        assert np.isfinite(detector.fit(digits[:n]).decision_scores_).all()
        traces.append(len(Counted.traced))
    assert traces[0] > 0 and len(set(traces)) == 1


@pytest.mark.filterwarnings("ignore:pretext accuracy")
def test_a_time_budget_is_measured_with_the_program_of_the_scores(digits):
    how = {"network": Counted, "operations": "PR", "random_state": 0}
    E3Outlier(**how, steps=15).fit(digits)
    traces = len(Counted.traced)
    E3Outlier(**how, time_budget=1).fit(digits)
    assert len(Counted.traced) == traces


def test_an_image_alone_takes_its_own_time(digits):
    fitted = fitting.fit(jax.random.key(0), digits, config=CONFIG, until=0)
    images = np.resize(digits, (64, *digits.shape[1:]))

    def seconds(n):
        start = time.perf_counter()
        fitting.score(fitted, images[:n])
        return time.perf_counter() - start

    seconds(64)
    assert min(seconds(1) for _ in range(5)) <= min(seconds(64) for _ in range(3)) / 10


def test_auto_is_the_precision_that_suits_the_platform():
    assert choices.PRECISIONS == ("auto", *devices.PRECISIONS)
    found = {name: devices.resolved("auto", name) for name in ("cpu", "gpu", "tpu", "other")}
    expected = {"cpu": "float32", "gpu": "tensorfloat32", "tpu": "bfloat16", "other": "float32"}
    assert found == expected and devices.resolved("auto") == "float32"
    assert devices.resolved("bfloat16", "cpu") == "bfloat16"


def test_deterministic_programs_are_asked_of_xla(monkeypatch):
    """XLA refuses options that it does not know."""
    monkeypatch.setattr(programs, "GPU_OPTIONS", dict(programs.GPU_OPTIONS))
    gpu = {"GPU": 1}
    assert "XLA_FLAGS" not in engines.environment(gpu)
    devices.make_deterministic()
    assert engines.environment(gpu)["XLA_FLAGS"] == "--xla_gpu_deterministic_ops=true"
    for options in (programs.GPU_OPTIONS, {"xla_gpu_no_such_option": True}):
        total = jax.jit(jax.numpy.sum, compiler_options=options)
        if options is programs.GPU_OPTIONS:
            assert total(np.ones(3)) == 3
        else:
            with pytest.raises(Exception, match="xla_gpu_no_such_option"):
                total(np.ones(3))


def test_one_line_says_what_works_on_what(monkeypatch, tmp_path):
    details = ("wrn-10-4", f"{17344:,} steps", "tensorfloat32")
    line = "Device: CPU, 2 devices, wrn-10-4, 17,344 steps, tensorfloat32"
    assert runtime.describe_work(*details) == line
    # As if the first start on an accelerator were slow.
    monkeypatch.setattr(runtime, "_COMPILE_SECONDS", {"cpu": 60})
    monkeypatch.setattr(runtime, "setting", lambda name: str(tmp_path))
    assert runtime.describe_work(*details) == f"{line}; compiling, about 60 s"
    (tmp_path / "a program").touch()
    assert runtime.describe_work(*details) == line
