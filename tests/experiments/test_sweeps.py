"""Plans, stores and engines: whatever happens to a sweep, no run is lost, doubled or changed."""

import collections
import functools
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import benchmark
import numpy as np
import pytest
import stub_sweep
import tiny
from commands import end, here, kill, rows, start, untimed, wait_until
from conftest import PYTHONPATH, ROOT, keeping
from sweep import flags, methods, plan, rows as csv_rows, store
from sweep.plan import Protocol, Run
from sweep.provenance import versions

import e3jax
from e3jax import training
from e3jax.collection import bank
from e3jax.datasets.contamination import Contaminated
from e3jax.devices import engines
from e3jax.errors import InputError
from e3jax.work import files

MNIST = ("--dataset", "mnist", "--source", "embedded", "--protocol", "quick")
PIXELS = (*MNIST, "--max-images", 40, "--methods", "pixel-pca", "pixel-knn", "--classes", 1, 4)
QUICK = Protocol("quick", 500)


def parse(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, arguments)])
    return benchmark.parse_args()


@pytest.fixture
def grid(monkeypatch, mnist):
    """``grid(*flags)``: the runs that a command would do."""

    def runs(*arguments) -> list[Run]:
        args = parse(monkeypatch, *MNIST, *arguments)
        names = methods.TABLE_METHODS if "all" in args.methods else args.methods
        variants = [plan.Variant(flags.protocol(args, "cpu"), names, args.ratios)]
        whole = plan.grid(mnist, variants, methods.METHODS, args.seeds, args.classes)
        return plan.shard(whole, *args.shard)

    return runs


# --- Plans -----------------------------------------------------------------------------------


def test_methods_of_one_training_are_one_run(grid):
    asked = ("e3outlier-mp", "pixel-if", "e3outlier", "e3outlier-pl")
    found = grid("--classes", 4, 4, "--methods", *asked)
    assert [run.method for run in found] == ["e3outlier", "pixel-if"]
    found = grid("--classes", 4, "--methods", "all")
    names = {methods.METHODS[name].name for name in methods.TABLE_METHODS}
    assert {run.method for run in found} == names and len(found) == len(names)
    assert not {"cae-64", "cae-views", "e3outlier-epoch10"} & {run.method for run in found}


def test_all_classes_of_the_headline_come_first_and_then_method_by_method(grid):
    found = [(run.method, run.inlier_class) for run in grid("--classes", 4, 5, "--methods", "all")]
    assert found[:2] == [("e3outlier+", 4), ("e3outlier+", 5)]
    assert found[::2] == [(method, 4) for method, _ in found[1::2]]


def test_an_entry_is_named_after_the_first_method_it_scores():
    entries = {entry.name: entry for entry in methods.METHODS.values()}
    assert list(methods.METHODS) == [name for entry in entries.values() for name in entry.scores]
    assert set(methods.DEFAULT_METHODS) <= set(methods.METHODS) and "all" not in methods.METHODS
    assert {"ssd-if", "cae-if", "rdae-as-published", "pixel-pca"} < set(methods.TABLE_METHODS)


def test_shards_are_parts_of_the_plan_with_their_share_of_trainings(grid):
    what = ("--ratios", 0.1, 0.2, "--seeds", 3)
    whole = [run.name for run in grid(*what)]
    assert len(whole) == len(set(whole)) == 2 * 3 * 10 * 7
    shards = [grid(*what, "--shard", f"{i}/4") for i in (1, 2, 3, 4)]
    assert sorted(run.name for shard in shards for run in shard) == sorted(whole)
    for shard in shards:
        assert sum(run.method == "e3outlier" for run in shard) == 15
        names = [run.name for run in shard]
        assert names == [name for name in whole if name in names], "in the order of the plan"


def test_what_changes_a_protocol_changes_its_name_and_every_training(grid):
    arguments = ("--classes", 4, "--methods", "e3outlier", "cae", "--steps", 20)
    arguments += ("--precision", "bfloat16", "--network", "resnet-20", "--operations", "RA")
    ours, cae = grid(*arguments)
    assert ours.protocol == cae.protocol == "quick-20steps-bfloat16"
    for run in ours, cae:
        assert (run.config["steps"], run.config["precision"]) == (20, "bfloat16")
    assert (ours.network, ours.operations) == ("resnet-20", "RA")
    assert (cae.network, cae.operations, cae.config["network"]) == ("", "", "cae-256")


# --- Keys ------------------------------------------------------------------------------------


def a_run(**changed) -> Run:
    entry = methods.METHODS[changed.get("method", "e3outlier")]
    what = {"dataset": "mnist", "source": "embedded", "method": "e3outlier", "inlier_class": 4}
    what |= {"ratio": 0.1, "data_seed": 0, "train_seed": 0, "max_images": 500}
    return Run(**what | entry.describe(QUICK, grey=True) | changed)


def test_names_of_finished_runs_are_a_promise(monkeypatch):
    """Whoever changes what is in a key makes everybody's sweeps start over."""
    monkeypatch.setattr(plan, "libraries", lambda: {"jax": "0.10.2"})
    config = dict.fromkeys(plan.KEYED, 0)
    run = a_run(config=config, constants={"weight": 0.5}, protocol="p", network="n", operations="")
    assert run.name == "mnist-e3outlier-class4-ratio0.1-seed0-8bf007c8b59d"


def test_everything_that_a_result_depends_on_is_in_the_key():
    run, names = a_run(), set()
    changes = [{field: "other"} for field in ("dataset", "source", "protocol", "network")]
    changes += [{"inlier_class": 5}, {"ratio": 0.2}, {"data_seed": 1}, {"train_seed": 1}]
    changes += [{"max_images": None}, {"constants": {}}, {"operations": "RA"}, {"method": "cae"}]
    for field, value in run.config.items():
        changes.append({"config": run.config | {field: f"{value}1"}})
    for change in [{}, *changes]:
        names.add(a_run(**change).name)
    assert len(names) == 1 + len(changes)
    assert a_run(train_seed=1).title.startswith("mnist class 4 ratio 0.1 seed 0-1")


def test_versions_of_what_computes_are_in_the_key(monkeypatch):
    """Of e3jax the release: an edit of a docstring makes no sweep start over."""
    run, libraries = a_run().name, plan.libraries()
    assert libraries["e3jax"] == e3jax.__version__ and {"jax", "jaxlib", "numpy"} < set(libraries)
    for name, version in libraries.items():
        monkeypatch.setattr(plan, "libraries", lambda n=name, v=version: libraries | {n: f"{v}.1"})
        assert a_run().name != run
    columns = dict(package.split("=") for package in versions().split())
    assert columns.pop("python") and columns == libraries


@pytest.mark.parametrize(
    "value", [tiny.Plain, lambda k: tiny.Plain(k), functools.partial(tiny.Plain)]
)
def test_what_another_start_would_not_recognise_names_no_run(value):
    config = a_run().config | {"network": value}
    for change in ({"config": config}, {"constants": {"weights": [value]}}):
        with pytest.raises(InputError, match="a run cannot be named by"):
            a_run(**change).name  # noqa: B018
    protocol = QUICK._replace(network=value)
    how = methods.METHODS["e3outlier"].describe(protocol, grey=True)
    with pytest.raises(InputError, match="register it, and give its name"):
        a_run(**how).name  # noqa: B018


def test_a_new_option_with_a_default_renames_nothing(monkeypatch):
    before, fields = a_run().name, training.TrainConfig()._asdict() | {"momentum": 0.9}
    later = collections.namedtuple("TrainConfig", fields, defaults=fields.values())
    monkeypatch.setattr(plan, "TrainConfig", later)
    config = a_run().config
    assert a_run(config=config | {"momentum": 0.9}).name == before
    assert a_run(config=config | {"momentum": 0.8}).name != before


@pytest.mark.parametrize("method", ["pixel-knn", "pixel-pca", "dagmm", "drae", "rdae"])
def test_constants_in_the_code_of_a_method_are_in_the_key(method):
    run = a_run(method=method)
    numbers = {name: value for name, value in run.constants.items() if name != "scores"}
    assert numbers
    for name, value in numbers.items():
        changed = run.constants | {name: f"{value}1"}
        assert a_run(method=method, constants=changed).name != run.name


# --- The folder ------------------------------------------------------------------------------


def keep(folder: store.Folder, run: Run, scores=(0.1, 0.2, 0.3, 0.0), **measured) -> list[dict]:
    columns = {"steps": 433, "pretext_accuracy": 0.7, "train_seconds": 1.0, "score_seconds": 2.0}
    columns |= {"device": "1 x cpu", "precision": "float32", "versions": "v"}
    columns |= {"scores": np.array(scores)} | measured
    data = Contaminated(None, np.arange(4) > 2, np.arange(4), 3, 1)
    return folder.finish(run, {run.method: columns}, data)


def test_tables_from_csv_and_from_json_are_the_same(tmp_path):
    folder = store.Folder(tmp_path)
    keep(folder, a_run())
    keep(folder, a_run(inlier_class=5, max_images=None), pretext_accuracy=0.01)
    keep(folder, a_run(inlier_class=6), scores=[np.nan, 1, 2, 3])
    keep(folder, a_run(inlier_class=7), scores=[1, 1, 1, 1])
    folder.write_tables()
    assert repr(folder.rows()) == repr(store.read_csv(tmp_path / "results.csv"))
    rows = {row["inlier_class"]: row for row in folder.rows()}
    assert [rows[c]["max_images"] for c in (4, 5)] == [500, None]
    assert rows[4]["warning"] == "" and rows[4]["auroc"] == 1
    assert "near chance" in rows[5]["warning"] and "not finite" in rows[6]["warning"]
    assert "all scores are the same" in rows[7]["warning"]
    header, *_ = (tmp_path / "results.csv").read_text().splitlines()
    assert header.split(",") == store.COLUMNS


def test_a_run_of_constants_that_have_changed_since_is_superseded(tmp_path):
    folder = store.Folder(tmp_path)
    keep(folder, a_run(constants={"weight": 1}))
    keep(folder, a_run(constants={"weight": 2}), scores=[0, 1, 2, 3])
    [row] = folder.rows()
    assert row["auroc"] == 0 and len(folder.finished()) == 2


def test_figures_are_named_by_all_that_tells_tables_apart(tmp_path):
    folder = store.Folder(tmp_path)
    for change in [{}, {"source": "tfds: a/b"}, {"max_images": None}, {"ratio": 0.2}]:
        keep(folder, a_run(**change))
    keep(folder, a_run(protocol="quick-bfloat16"), precision="bfloat16")
    folder.write_tables()
    assert len(list(tmp_path.glob("*.png"))) == 5


def test_what_a_kill_left_beside_a_finished_run_is_removed(tmp_path):
    folder, run, other = store.Folder(tmp_path), a_run(), a_run(inlier_class=5)
    keep(folder, run)
    for name in (run.name, other.name):
        for file in ("state.safetensors", "epoch03.npz", ".state.safetensors.e3jax.partial"):
            files.write_text(folder.runs / f"{name}.state" / file, "")
        (folder.runs / f"{name}.failed").write_text("Traceback")
        files.partial(folder.runs / f"{name}.npz").write_text("half")
    assert folder.finished() == {run.name} and not folder.file(other, "json").exists()
    left = [path.name for path in folder.runs.iterdir() if run.name in path.name]
    assert sorted(left) == [f"{run.name}.{kind}" for kind in ("json", "npz", "png")]
    assert len([path for path in folder.runs.iterdir() if other.name in path.name]) == 3


def test_what_is_not_a_runs_stays_in_its_folder(tmp_path):
    """Files of somebody else's that are named like ours, beside a run and beside a JSON file."""
    folder, run = store.Folder(tmp_path), a_run()
    keep(folder, run)
    theirs = [f"{run.name}.txt", f"{run.name}.npz.partial", "notes.json", "notes.failed"]
    theirs += [f"{run.name}.old.state/a", "notes.state/years/of-work", "a-0123456789ab.state/a"]
    theirs += [
        f"{run.name}.state/notes.txt",
        "a-0123456789ab.json",
        "a-0123456789ab.failed",
        "photos.e3jax.partial",
    ]
    for name in theirs:
        (folder.runs / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.runs / name).write_text("{}")
    folder.finished()
    assert [name for name in theirs if not (folder.runs / name).exists()] == []
    assert [row["method"] for row in folder.rows()] == ["e3outlier"]
    (folder.runs / "a-0123456789ab.json").write_text("not JSON")
    with pytest.raises(InputError, match="0123456789ab.json is not a finished run of e3jax"):
        folder.rows()


def test_a_table_of_two_versions_says_so_until_all_of_it_is_new(tmp_path):
    """An upgrade in the middle of a sweep: the same command does all runs again."""
    folder, classes = store.Folder(tmp_path), (4, 5)
    made = [f"python=3.11.7 jax={version}" for version in ("0.10.2", "0.11.0")]

    def do(version, c):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plan, "libraries", lambda: {"jax": made[version]})
            keep(
                folder,
                a_run(inlier_class=c),
                scores=[0.1, 0.2, 0.3, version],
                versions=made[version],
            )

    for c in classes:
        do(0, c)
    assert "different versions" not in folder.write_tables()
    do(1, 4)
    text = folder.write_tables()
    assert "⚠ Rows of different versions are averaged: jax 0.1" in text
    assert text in (tmp_path / "results.md").read_text()
    do(1, 5)
    assert "different versions" not in folder.write_tables()
    assert {row["versions"] for row in folder.rows()} == {made[1]} and len(folder.finished()) == 4


@pytest.mark.parametrize("name", ["results.csv", "results.md"])
def test_a_table_of_somebody_elses_is_refused_before_a_folder_is_made(tmp_path, name):
    (tmp_path / name).write_text("dataset,note\nmnist,mine\n")
    with pytest.raises(InputError, match="was not written by e3jax"):
        store.Folder(tmp_path)
    assert os.listdir(tmp_path) == [name]


def test_a_lock_keeps_out_other_processes_until_its_own_ends(tmp_path):
    """However it ends: this one is killed."""
    code = "import sys; from test_sweeps import *; folder = store.Folder(sys.argv[1]); "
    code += "assert folder.lock(a_run()); print('held', flush=True); time.sleep(100)"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        folder = store.Folder(tmp_path)
        assert not folder.lock(a_run())
        assert folder.lock(a_run(data_seed=1)), "other runs are free"
    finally:
        process.kill()
        process.communicate()
    assert folder.lock(a_run())
    folder.unlock(a_run())


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def lockf(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", lockf)
    with pytest.warns(UserWarning, match="has no file locks.*No locks available"):
        assert store.Folder(tmp_path).lock(a_run())


def test_a_row_is_added_to_files_with_other_columns(tmp_path):
    path = tmp_path / "rows.csv"
    csv_rows.append(path, [{"a": 1, "f": 0.1234567}], "abcdf")
    csv_rows.append(path, [{"a": 2, "e": "x"}], "abcde")
    assert path.read_text() == "a,b,c,d,e,f\n1,,,,,0.123457\n2,,,,x,\n"
    with pytest.raises(InputError, match="rows.csv exists and was not written by e3jax"):
        csv_rows.append(path, [{"a": 3}], "abxy")
    assert path.read_text() == "a,b,c,d,e,f\n1,,,,,0.123457\n2,,,,x,\n"


@pytest.mark.parametrize("name", ["quick", "ablations"])
def test_the_repositorys_results_are_read(name):
    rows = store.read_csv(ROOT / "results" / f"{name}.csv")
    assert {row["max_images"] for row in rows} == {500}
    assert {row["precision"] for row in rows} == {"float32"}
    assert all(row["train_seed"] == row["seed"] for row in rows)


def test_fifteen_thousand_finished_runs_are_found_and_read_in_ten_seconds(tmp_path, grid):
    stub_sweep.register()
    runs = grid("--methods", "stub", "--seeds", 1500)
    folder = store.Folder(tmp_path)
    [row] = keep(folder, runs[0])
    for run in runs:
        text = json.dumps({"format": plan.FORMAT, "rows": [row | run.columns]}, indent=1)
        (folder.runs / f"{run.name}.json").write_text(text)
        for kind in ("npz", "png"):
            (folder.runs / f"{run.name}.{kind}").touch()
    began = time.monotonic()
    finished = folder.finished()
    assert sum(run.name not in finished for run in runs) == 0
    listed = time.monotonic() - began
    assert len(folder.rows()) == len(runs) == 15_000
    assert time.monotonic() - began < 10 and listed < 1


# --- The command, in this process ------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--shard", "0/4"], "invalid shard '0/4'"),
        (["--shard", "5/4"], "invalid shard '5/4'"),
        (["--shard", "half"], "invalid shard 'half'"),
        (["--engine", "ray", "--share", "GPU=none"], "invalid share 'GPU=none'"),
        (["--engine", "ray", "--share", "CPU=0"], "invalid share 'CPU=0'"),
        (["--share", "GPU=1"], "need --engine ray"),
        (["--ray-address", "here:1"], "need --engine ray"),
        (["--engine", "ray", "--runs-at-once", 2], "leave out"),
        (["--engine", "ray", "--tensorboard", "events"], "needs --engine local"),
        (["--methods", "cats"], "invalid choice: 'cats'"),
        (["--seeds", 0], "0 is less than 1"),
        (["--process-id", 0], "need --distributed"),
        (["--distributed", "--runs-at-once", 2], "one run at a time"),
        (["--distributed", "--coordinator", "here"], "HOST:PORT, got 'here'"),
    ],
)
def test_wrong_flags_are_one_sentence(monkeypatch, capsys, arguments, sentence):
    with pytest.raises(SystemExit, match="2"):
        parse(monkeypatch, *MNIST, *arguments)
    assert sentence in " ".join(capsys.readouterr().err.split())


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """``command(*arguments)``: exit code, standard output and error of benchmark.py."""
    folder = ("--results-dir", tmp_path / "results")
    return lambda *arguments: here(monkeypatch, capsys, benchmark.main, *arguments, *folder)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--classes", 11], "has the inlier class 11"),
        (["--classes", -1], "has the inlier class -1"),
        (["--ratios", 0.7], "outlier ratio is 0.7"),
        (["--max-images", 5], "max_images is 5"),
        (["--operations", "RA+XY"], "operation set 'RA+XY'"),
        (["--network", "vgg"], "unknown network 'vgg'"),
        (["--dataset", "svhn"], "svhn"),
        (["--runs-at-once", 3], "cannot share 2 devices evenly"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(command, tmp_path, mnist, arguments, sentence):
    code, out, err = command("--dataset", "mnist", "--source", "embedded", *arguments)
    assert (code, out) == (2, "") and sentence in err.splitlines()[-1]
    assert not list(tmp_path.rglob("*.json"))


def test_a_failing_run_is_told_at_the_end_and_tried_again(command, monkeypatch, tmp_path, mnist):
    """One of four fails: the others are done, the next start does that one alone."""
    folder, knn = tmp_path / "results", methods.METHODS["pixel-knn"]

    def fail(run, images, mesh, options):
        if run.inlier_class == 4:
            raise RuntimeError("the disk of the neighbour\nis on fire")
        return knn.do(run, images, mesh, options)

    with monkeypatch.context() as patch:
        patch.setitem(methods.METHODS, "pixel-knn", knn._replace(do=fail))
        code, said, told = command(*PIXELS)
    assert code == 1 and "[4/4]" in told and "4 of them" not in told
    sentence = "mnist class 4 ratio 0.1 seed 0 pixel-knn: RuntimeError: the disk of the neighbour"
    assert told.splitlines()[-2:][0] == f"failed: {sentence}"
    assert "1 run(s) failed" in told.splitlines()[-1]
    assert "| 1 of 2, missing: class 4 seed 0 |" in said
    [traceback] = (folder / "runs").glob("*.failed")
    assert "Traceback" in traceback.read_text() and "in fail" in traceback.read_text()
    assert len(rows(folder)) == 3
    code, _, told = command(*PIXELS)
    assert code == 0 and "3 of them finished before" in told
    assert len(rows(folder)) == 4 and not list((folder / "runs").glob("*.failed"))
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").iterdir()}
    [mean] = {line for line in told.splitlines() if "mean AUROC" in line}
    assert mean.startswith("mnist ratio 0.1 seed 0 pixel-knn: mean AUROC of 2 classes ")
    knn = [row["auroc"] for row in rows(folder) if row["method"] == "pixel-knn"]
    assert mean.endswith(f"{np.mean(knn):.1%}")
    code, again, told = command(*PIXELS)
    assert code == 0 and "4 of them finished before" in told and "[1/" not in told
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "runs").iterdir()}


def test_an_engine_is_an_executor_whose_calls_have_devices_of_their_own(mnist):
    from sweep import engines

    def devices_of(number, mesh):
        time.sleep(0.1)
        return number, mesh.devices.flat[0].id, mesh.size

    with engines.Local(2) as engine:
        futures = [engine.submit(devices_of, number) for number in range(4)]
        found = [future.result() for future in futures]
    assert [number for number, *_ in found] == [0, 1, 2, 3]
    assert {device for _, device, _ in found} == {0, 1} and {size for *_, size in found} == {1}
    with engines.Local(1) as engine:
        assert engine.submit(devices_of, 0).result() == (0, 0, 2)


def test_without_ray_its_engine_says_what_to_do(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    code, out, err = command(*PIXELS, "--engine", "ray")
    assert (code, out) == (2, "") and "pip install ray" in err


# --- Commands that are disturbed, with runs that sleep ---------------------------------------

CLASSES = tuple(range(6))
STUBS = (*MNIST, "--max-images", 40, "--methods", "stub", "--classes", *CLASSES)
REAL = (*MNIST, "--operations", "PR", "--max-images", 20, "--steps", 20, "--methods", "e3outlier")


def start_stubs(folder, *arguments, seconds=1):
    """A command whose runs take so long; their log is beside its folder."""
    variables = {"STUB_LOG": folder.with_suffix(".log"), "STUB_SECONDS": seconds}
    return start(folder, *STUBS, *arguments, script="tests/stub_sweep.py", **variables)


def begun(folder) -> list[tuple[str, int]]:
    """(class, process) of every run that began."""
    log = folder.with_suffix(".log")
    lines = log.read_text().splitlines() if log.exists() else []
    return [(line.split()[0], int(line.split()[-1])) for line in lines]


@pytest.fixture(scope="module")
def undisturbed(cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stubs") / "undisturbed"
    end(start_stubs(folder, seconds=0))
    return untimed(folder)


def test_two_commands_in_one_folder_share_its_runs_and_both_have_the_whole_table(
    undisturbed, tmp_path
):
    folder = tmp_path / "shared"
    commands = [start_stubs(folder) for _ in range(2)]
    told = [end(command) for command in commands]
    classes, processes = zip(*begun(folder), strict=True)
    assert sorted(classes) == sorted(map(str, CLASSES)), "every run began once"
    assert len(set(processes)) == 2
    assert sum(text.count("finished by another command") for text in told) > 0
    assert untimed(folder) == undisturbed


@pytest.mark.nightly
def test_of_two_commands_the_one_that_is_left_does_what_a_killed_one_had_begun(
    undisturbed, tmp_path
):
    folder = tmp_path / "shared"
    killed, other = start_stubs(folder), start_stubs(folder)
    wait_until(lambda: len({process for _, process in begun(folder)}) == 2, other)
    kill(killed)
    end(other)
    classes = [name for name, _ in begun(folder)]
    twice = {name for name in classes if classes.count(name) == 2}
    assert set(classes) == set(map(str, CLASSES)) and len(classes) == len(CLASSES) + len(twice)
    assert twice <= {name for name, process in begun(folder) if process == killed.pid}
    assert untimed(folder) == undisturbed
    assert {path.suffix for path in (folder / "runs").iterdir()} == {".json", ".npz", ".png"}


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_keeps_what_is_finished(undisturbed, tmp_path, number):
    folder = tmp_path / "interrupted"
    process = start_stubs(folder)
    wait_until(lambda: any((folder / "runs").glob("*.json")), process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command continues" in errors
    assert "Traceback" not in errors and 0 < len(rows(folder)) < len(CLASSES)
    end(start_stubs(folder, seconds=0))
    assert untimed(folder) == undisturbed


# Ray forks this process, and JAX warns of it where it has been used.
forks = pytest.mark.filterwarnings("ignore:os.fork")


@pytest.fixture(scope="module")
def cluster(cache, tmp_path_factory):
    """A Ray cluster of two nodes, each with a core as far as Ray knows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(16))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        for name, value in keeping(tmp_path_factory.mktemp("compiled")).items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=1, include_dashboard=False)
            cluster.add_node(num_cpus=1)
            yield cluster
        finally:
            cluster.shutdown()


def workers(node) -> list[int]:
    """Processes of a node that are in a run now."""
    raylet = node.all_processes["raylet"][0].process.pid
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rsplit(")")[-1].split()[1])
            if parent == raylet and b"_on_worker" in (stat.parent / "cmdline").read_bytes():
                found.append(int(stat.parent.name))
        except OSError:  # ended meanwhile
            pass
    return found


@forks
@pytest.mark.nightly
def test_ray_survives_the_loss_of_a_worker_and_of_a_node(undisturbed, cluster, tmp_path):
    folder, head, [other] = tmp_path / "ray", cluster.head_node, cluster.worker_nodes
    on_ray = ("--engine", "ray", "--ray-address", cluster.address)
    driver = start_stubs(folder, *on_ray, seconds=2)
    wait_until(lambda: workers(head) and workers(other) and len(begun(folder)) > 1, driver)
    lost = [workers(head)[0], *workers(other)]
    os.kill(lost[0], signal.SIGKILL)
    assert not list((folder / "runs").glob("*.json"))
    cluster.remove_node(other, allow_graceful=False)
    errors = end(driver)
    assert "Ray cluster with 2 node(s)" in errors and "[6/6]" in errors
    assert {process for _, process in begun(folder)} > set(lost)
    assert untimed(folder) == undisturbed


@forks
@pytest.mark.nightly
def test_a_killed_driver_loses_nothing_and_engines_take_turns(undisturbed, cluster, tmp_path):
    """Two runs in process; Ray, its driver killed after one more; then Ray to the end."""
    folder = tmp_path / "turns"
    on_ray = ("--engine", "ray", "--ray-address", cluster.address)
    end(start_stubs(folder, "--classes", 4, 5))
    driver = start_stubs(folder, *on_ray)
    wait_until(lambda: len(list((folder / "runs").glob("*.json"))) > 2, driver)
    kill(driver)
    assert "of them finished before" in end(start_stubs(folder, *on_ray))
    assert untimed(folder) == undisturbed


@forks
@pytest.mark.nightly
def test_ray_trains_as_this_process_does_bit_for_bit(cluster, tmp_path):
    end(start(tmp_path / "here", *REAL, "--classes", 4))
    on_ray = ("--engine", "ray", "--ray-address", cluster.address)
    end(start(tmp_path / "there", *REAL, "--classes", 4, *on_ray))
    assert untimed(tmp_path / "here") == untimed(tmp_path / "there")
    [here], [there] = ((tmp_path / f / "runs").glob("*.npz") for f in ("here", "there"))
    assert here.name == there.name
    for name, values in np.load(here).items():
        np.testing.assert_array_equal(values, np.load(there)[name])


# Scores a large collection on a cluster; here, since two clusters at once get in each other's way.
ON_RAY = """
import sys
import numpy as np
from e3jax import E3Outlier
from e3jax.devices import engines
from e3jax.evidence import model
import large_collections
large_collections.set_constants()
model._BLOCK = 10
address, bank, parts, scores = sys.argv[1:]
how = dict(random_state=0, steps=4, network="wrn-10-1", operations="PR")
detector = E3Outlier(**how)
if address:
    engines.on_ray(address)  # a process may join twice
    detector.fit_in(parts, bank, executor=engines.on_ray(address))
else:
    detector.fit(bank)
np.save(scores, detector.decision_scores_)
"""


@forks
@pytest.mark.nightly
def test_a_cluster_that_loses_a_node_scores_to_the_same_bits(cluster, mnist, tmp_path):
    bank.write_arrays(tmp_path / "bank", [mnist.images[:120]])

    def score(address, name):
        arguments = [
            address,
            tmp_path / "bank",
            tmp_path / f"{name}-parts",
            tmp_path / f"{name}.npy",
        ]
        command = [sys.executable, "-W", "ignore", "-c", ON_RAY, *map(str, arguments)]
        env = os.environ | {"PYTHONPATH": PYTHONPATH}
        return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)

    other = cluster.add_node(num_cpus=1)
    process = score(cluster.address, "ray")
    wait_until(lambda: list((tmp_path / "ray-parts").glob("*/evidence0000000.npz")), process)
    cluster.remove_node(other, allow_graceful=False)
    assert len(list((tmp_path / "ray-parts").glob("*/evidence*"))) < 12
    end(process)
    end(score("", "here"))
    found = [np.load(tmp_path / f"{name}.npy") for name in ("ray", "here")]
    np.testing.assert_array_equal(*found)


@forks
@pytest.mark.nightly
def test_scoring_takes_gpus_where_a_cluster_has_them(cluster):
    """Here a node claims one, so its task starts, and finds none."""
    assert engines.on_ray(cluster.address, "best").platform == "cpu"
    node = cluster.add_node(num_cpus=1, num_gpus=1)
    try:
        assert engines.on_ray(cluster.address).platform == "cpu"
        ray = engines.on_ray(cluster.address, "best")
        assert (ray.platform, ray.at_once) == ("gpu", 1) and ray.together > 1
        with pytest.raises(RuntimeError, match="JAX finds no gpu in a worker"):
            ray.submit(len, []).result()
        ray.shutdown()  # else the cluster cannot remove the node that was joined
    finally:
        cluster.remove_node(node)
