"""The rules of the house: who may import whom, and what importing e3jax may not do."""

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import e3jax

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "e3jax"
# A file may import from its own wing and from those before it.
WINGS = """version choices errors shapes metrics work operations images devices networks datasets
collection training priority evidence methods report quarantine detector doctor cli
__main__""".split()
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))
LAZY = {"PIL", "matplotlib", "mlxtend", "tensorflow", "tensorflow_datasets"}


def wing(file):
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


def wings_imported(path):
    """Wings of e3jax that a file imports; "" is e3jax itself, for a name that is no wing."""
    found = set()
    for module, name in imports(path):
        top, *below = module.split(".")
        if top == "e3jax":
            below += [name] if name else []
            found.add(below[0] if below and below[0] in WINGS else "")
    return found


def packages_imported(path):
    return {module.split(".")[0] for module, _ in imports(path)} - {"e3jax"}


def private_names(path):
    """Private names of e3jax that a file uses."""
    ours = {(m, n) for m, n in imports(path) if m.split(".")[0] == "e3jax"}
    found = {n for pair in ours for part in filter(None, pair) for n in part.split(".")}
    found = {name for name in found if name.startswith("_")}
    # Names bound by import, so that training._hash is seen and self._plan is not.
    bound = {name or "e3jax" for _, name in ours}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            owner = ast.unparse(node.value)
            if owner.split(".")[0] in bound and "(" not in owner:
                found.add(f"{owner}.{node.attr}")
    return found


def test_the_reader_of_imports_sees_every_form(tmp_path):
    path = tmp_path / "file.py"
    path.write_text(
        "import e3jax.report.gallery as r\nfrom e3jax import fit, _x\n"
        "from e3jax.methods import rules\n"
        "def f():\n    from e3jax.methods.cae import CAE\n    import flax.linen as nn\n"
        "    return rules._score\n"
    )
    assert wings_imported(path) == {"report", "methods", ""}
    assert packages_imported(path) == {"flax"}
    assert private_names(path) == {"_x", "rules._score"}


def test_wings_import_from_wings_below_and_only_networks_imports_flax():
    assert {wing(file) for file in FILES} == {*WINGS, "__init__"}
    wrong, with_flax = {}, set()
    for file, path in FILES.items():
        if file == "__init__.py":
            continue
        below = set(WINGS[: WINGS.index(wing(file))]) | ({wing(file)} if "/" in file else set())
        if beyond := wings_imported(path) - below:
            wrong[file] = beyond
        if "flax" in packages_imported(path):
            with_flax.add(wing(file))
    assert not wrong and with_flax == {"networks"}


def test_experiments_use_public_names_and_no_flax():
    assert EXPERIMENTS
    private = {path.name: found for path in EXPERIMENTS if (found := private_names(path))}
    assert not private
    assert not [path.name for path in EXPERIMENTS if "flax" in packages_imported(path)]


def test_the_face_offers_what_it_lists_and_nothing_private():
    assert e3jax.__all__ == sorted(e3jax.__all__)
    assert all(getattr(e3jax, name) is not None for name in e3jax.__all__)
    assert not [name for name in e3jax.__all__ if name.startswith("_")]
    assert set(e3jax.__all__) | {"cli", "networks"} <= set(dir(e3jax))


def test_importing_e3jax_sets_nothing_imports_little_and_starts_no_backend():
    """A backend would be too early for the number of devices and for a job of several processes.

    Third-party packages come first: what they do to the environment is not ours.
    """
    others = ["flax.linen", "jax", "numpy", "optax", "scipy.ndimage", "scipy.special"]
    code = f"""
import os, sys
import {", ".join([*others, "sklearn.metrics"])}
def settings():
    return dict(os.environ), {{name: repr(value) for name, value in jax.config.values.items()}}
before = settings()
import e3jax
assert before == settings() and all(before)
print(sorted({{m.split(".")[0] for m in sys.modules}}))
jax.config.update("jax_num_cpu_devices", 3)
assert len(jax.devices()) == 3
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    modules = set(ast.literal_eval(done.stdout))
    assert "e3jax" in modules and not LAZY & modules


@pytest.mark.parametrize(
    ("arguments", "code", "heavy"),
    [
        (["--version"], 0, {"numpy", "rich", "jax", "sklearn"}),
        (["--help"], 0, {"numpy", "rich", "jax", "sklearn"}),
        (["rank", "--help"], 0, {"numpy", "rich", "jax", "sklearn"}),
        (["rank"], 2, {"numpy", "rich", "jax", "sklearn"}),
        (["quarantine", "no-report", "--top", "1"], 2, {"jax", "sklearn", "scipy"}),
        (["quarantine", "no-report", "--undo"], 2, {"jax", "sklearn", "scipy"}),
    ],
)
def test_commands_import_what_they_need(arguments, code, heavy):
    program = f"""
import sys
import tokenize
from e3jax.__main__ import main
try:
    code = main()
except SystemExit as end:
    code = end.code
loaded = {{name.split(".")[0] for name in sys.modules}}
assert (code or 0) == {code}, code
assert not loaded & {heavy}, loaded & {heavy}
"""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_no_file_writes_to_the_environment():
    for file, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
                assert ast.unparse(node.value) != "os.environ", file
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"os.putenv", "os.unsetenv"}, file
                assert called not in {f"os.environ.{m}" for m in ("setdefault", "update", "pop")}


# Names that say nothing of their values.
BANNED = {"found", "how", "own", "apart", "some"}
CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def code_lines(source, function):
    """Lines of a function without blanks, comments and its docstring."""
    first, *_ = function.body
    skipped = set()
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        skipped = set(range(first.lineno, first.end_lineno + 1))
    lines = range(function.lineno, function.end_lineno + 1)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    of_code = {
        line
        for token in tokens
        if token.type not in CODE
        for line in range(token.start[0], token.end[0] + 1)
    }
    return len(of_code & set(lines) - skipped)


def test_functions_fit_on_a_screen_and_take_few_parameters():
    lengths = {}
    for file, path in FILES.items():
        source = path.read_text()
        for function in functions(ast.parse(source)):
            lengths[f"{file}:{function.name}"] = code_lines(source, function)
            arguments = function.args
            count = len([*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs])
            assert count <= 10 or function.name == "__init__", f"{file}:{function.name}: {count}"
    assert not {name: n for name, n in lengths.items() if n > 60}
    assert sum(n > 40 for n in lengths.values()) <= len(lengths) / 100


def test_variables_are_nouns_of_the_field():
    for file, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            is_bound = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            name = node.id if is_bound else node.arg if isinstance(node, ast.arg) else None
            assert name not in BANNED, f"{file}:{node.lineno}: {name}"
            if isinstance(node, ast.Call):
                spread = [ast.unparse(k.value) for k in node.keywords if k.arg is None]
                assert "how" not in spread, f"{file}:{node.lineno}"
