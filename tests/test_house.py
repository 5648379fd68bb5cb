"""The rules of the house: who may import whom, and what importing e3jax may not do."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import e3jax

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "e3jax"
# A file may import only from rooms above its own; methods may share code among themselves.
ROOMS = (
    "files",
    "images",
    "reading",
    "datasets",
    "contamination",
    "runtime",
    "devices",
    "operations",
    "convolutions",
    "networks",
    "training",
    "scoring",
    "metrics",
    "priority",
    "baselines",
    "estimator",
    "checkpoint",
    "gallery",
    "report",
    "cli",
    "__main__",
)
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
EXPERIMENTS = {path.name: path for path in sorted((ROOT / "experiments").rglob("*.py"))}
inside = {file: path for file, path in FILES.items() if file != "__init__.py"}
per_file = pytest.mark.parametrize("file", inside)
per_experiment = pytest.mark.parametrize("file", EXPERIMENTS)


def room(file):
    return file.split("/")[0].removesuffix(".py")


def imports(path):
    """{(module, name or None)}: every import statement of a file, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {(alias.name, None) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: write imports in full"
            found |= {(node.module, alias.name) for alias in node.names}
    return found


def rooms_imported(path):
    """Rooms of e3jax that a file imports; "" is e3jax itself, for a name that is no room."""
    found = set()
    for module, name in imports(path):
        top, *below = module.split(".")
        if top == "e3jax":
            below += [name] if name else []
            found.add(below[0] if below and below[0] in ROOMS else "")
    return found


def packages_imported(path):
    return {module.split(".")[0] for module, _ in imports(path)} - {"e3jax"}


def test_the_reader_of_imports_sees_every_form(tmp_path):
    path = tmp_path / "file.py"
    path.write_text(
        "import e3jax.report as r\nfrom e3jax import scoring, train\n"
        "def f():\n    from e3jax.baselines.cae import score\n    import flax.linen as nn\n"
    )
    assert rooms_imported(path) == {"report", "scoring", "", "baselines"}
    assert packages_imported(path) == {"flax"}


def test_every_file_is_in_a_room():
    assert inside
    assert {room(file) for file in inside} <= set(ROOMS)


@per_file
def test_a_file_imports_only_from_rooms_above_its_own(file):
    own = room(file)
    allowed = set(ROOMS[: ROOMS.index(own)])
    if "/" in file:
        allowed.add(own)
    assert rooms_imported(inside[file]) <= allowed


@per_file
def test_only_networks_imports_flax(file):
    assert "flax" not in packages_imported(inside[file]) or room(file) == "networks"


def test_only_networks_is_where_flax_is():
    assert any("flax" in packages_imported(p) for f, p in inside.items() if room(f) == "networks")


@per_experiment
def test_experiments_use_only_public_names(file):
    path = EXPERIMENTS[file]
    ours = {(m, n) for m, n in imports(path) if m.split(".")[0] == "e3jax"}
    private = {n for pair in ours for part in filter(None, pair) for n in part.split(".")}
    private = {name for name in private if name.startswith("_")}
    # Names bound by import, so that training._hash is seen and self._plan is not.
    bound = {name or "e3jax" for _, name in ours}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            owner = ast.unparse(node.value)
            if owner.split(".")[0] in bound:
                private.add(f"{owner}.{node.attr}")
    assert not private


@per_experiment
def test_experiments_do_not_import_flax(file):
    assert "flax" not in packages_imported(EXPERIMENTS[file])


def test_the_face_offers_what_it_lists_and_nothing_private():
    assert e3jax.__all__ == sorted(e3jax.__all__)
    assert all(getattr(e3jax, name) is not None for name in e3jax.__all__)
    assert not [name for name in e3jax.__all__ if name.startswith("_")]
    offered = {name for module, name in imports(FILES["__init__.py"]) if module != "__future__"}
    assert offered == set(e3jax.__all__)


@pytest.fixture(scope="module")
def fresh_import():
    """What `import e3jax` does in a new process: (what is set before, after, modules).

    Its third-party packages come first: what they do to the environment is not ours.
    """
    others = ["flax.linen", "jax", "numpy", "optax", "scipy.ndimage", "scipy.special"]
    code = f"""
import os, sys
import {", ".join([*others, "sklearn.metrics"])}
def settings():
    config = {{name: repr(value) for name, value in jax.config.values.items()}}
    return dict(os.environ), config
before = settings()
import e3jax
print(repr((before, settings(), sorted({{m.split(".")[0] for m in sys.modules}}))))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout)


@pytest.mark.parametrize(
    "package", ["tensorflow", "tensorflow_datasets", "matplotlib", "mlxtend", "orbax", "PIL"]
)
def test_importing_e3jax_does_not_import(package, fresh_import):
    assert "e3jax" in fresh_import[2]
    assert package not in fresh_import[2]


def test_importing_e3jax_changes_no_environment_variable_and_no_setting_of_jax(fresh_import):
    before, after, _ = fresh_import
    assert all(before) and before == after


def test_importing_e3jax_starts_no_backend():
    """Which would be too early for the number of devices and for a job of several processes."""
    code = "import e3jax, jax; jax.config.update('jax_num_cpu_devices', 3); print(jax.devices())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.count("id=2") == 1, done.stderr


@per_file
def test_no_file_writes_to_the_environment(file):
    for node in ast.walk(ast.parse(inside[file].read_text())):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            assert ast.unparse(node.value) != "os.environ"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"os.putenv", "os.unsetenv"}
            assert called not in {f"os.environ.{m}" for m in ("setdefault", "update", "pop")}
