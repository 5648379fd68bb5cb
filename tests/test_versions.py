"""Which releases the project installs, and how the excluded ones were wrong."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packaging.requirements import Requirement

from e3jax.doctor import patterns

ROOT = Path(__file__).parents[1]
WRONG = {"0.10.2", "0.11.1", "0.11.2"}
RIGHT = {"0.10.0", "0.10.1", "0.10.3", "0.11.0", "0.12.0", "0.13.0", "1.0.0"}


def test_a_sum_over_products_of_many_rows_is_right():
    """https://github.com/jax-ml/jax/issues/39103: jaxlib 0.10.2 gives 1065369600 on CPUs."""
    np.testing.assert_array_equal(*patterns.products_of_many_rows())


@pytest.mark.parametrize("vector_bits", [None, 512])
@pytest.mark.parametrize("name", ["arctan", "arctan2"])
def test_the_arctangent_of_many_numbers_is_right(name, vector_bits):
    """https://github.com/jax-ml/jax/issues/39352: wrong from 50 numbers on, on CPUs with AVX-512.

    There XLA chooses vectors of 512 bits, as here by an option. jax 0.11 is wrong as well, but only
    in ``arctan``, which e3jax does not call; descriptors call ``arctan2``.
    """
    if (name, vector_bits) == ("arctan", 512) and jax.__version__.startswith("0.11."):
        pytest.skip("known to be wrong in jax 0.11, and not called")
    options = {"xla_cpu_prefer_vector_width": vector_bits} if vector_bits else None
    numbers = np.linspace(-5, 5, 200, dtype=np.float32)
    arguments = (numbers, np.float32(1.5))[: 1 + (name == "arctan2")]
    computed = jax.jit(getattr(jnp, name), compiler_options=options)(*arguments)
    np.testing.assert_allclose(computed, getattr(np, name)(*arguments), rtol=0, atol=1e-6)


TWO_DEVICES = """
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
from e3jax.evidence import Context, fit_and_measure
images = np.random.default_rng(0).integers(0, 255, (300, 32, 32, 1), np.uint8)
for _ in range(100):
    names = ["shape", "layout", "statistics"]
    fit_and_measure(jax.random.key(0), {"images": images}, names, Context())
"""


@pytest.mark.nightly
def test_a_hundred_calls_on_two_devices_come_to_an_end():
    """jax 0.11.1 and 0.11.2 mostly wait for ever after a few."""
    subprocess.run([sys.executable, "-c", TWO_DEVICES], cwd=ROOT, check=True, timeout=120)


def requirements() -> dict[str, list[Requirement]]:
    """By file what it asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = {"pyproject.toml": sum(project["optional-dependencies"].values(), [])}
    lines["pyproject.toml"] += project["dependencies"]
    for name in ("requirements.txt", "requirements-dev.txt"):
        of_file = (ROOT / name).read_text().splitlines()
        lines[name] = [line for line in of_file if line[0] not in "#-"]
    return {name: [Requirement(line) for line in of_file] for name, of_file in lines.items()}


def test_wrong_releases_are_never_installed_and_all_others_are():
    for name in ("pyproject.toml", "requirements.txt"):
        ranges = {r.name: r.specifier for r in requirements()[name]}
        for package in ("jax", "jaxlib"):
            assert set(ranges[package].filter(WRONG | RIGHT)) == RIGHT, f"{name}: {package}"


def test_what_is_new_is_ruled_out_only_where_a_comment_says_why():
    for name, of_file in requirements().items():
        lines = (ROOT / name).read_text().splitlines()
        for requirement in of_file:
            if any(s.operator in ("<", "<=", "==", "~=") for s in requirement.specifier):
                [place] = [i for i, line in enumerate(lines) if line.startswith(requirement.name)]
                assert lines[place - 1].startswith("# "), f"{name}: {requirement}"


def test_a_package_has_the_same_range_in_all_files_and_here():
    ranges = {}
    for name, of_file in requirements().items():
        for requirement in of_file:
            first = ranges.setdefault(requirement.name, requirement.specifier)
            assert requirement.specifier == first, f"{name}: {requirement}, elsewhere {first}"
            # The tests run without pillow-heif, as most users' machines are.
            if requirement.name != "pillow-heif" and (
                not requirement.marker or requirement.marker.evaluate()
            ):
                assert importlib.metadata.version(requirement.name) in requirement.specifier


def test_jax_for_accelerators_is_installed_by_an_extra():
    """Else pip may take a release that the package excludes."""
    of_file = requirements()["pyproject.toml"]
    extras = {extra for r in of_file if r.name == "jax" for extra in r.extras}
    assert extras == {"cuda12", "cuda13", "tpu"}
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for command in re.findall(r'pip install[^\n`#|]*"jax\[[^\n`#|]*', page.read_text()):
            assert re.match(r"pip install (-e )?\. ", command), f"{page.name}: {command}"
