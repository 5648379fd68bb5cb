"""What surrounds the code: metadata, workflows and the recipe agree with it and their rules."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from e3jax import version

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCHEMAS = {
    "vendor.github-workflows": WORKFLOWS,
    "vendor.dependabot": [GITHUB / "dependabot.yml"],
    "vendor.github-issue-forms": [GITHUB / "ISSUE_TEMPLATE" / f"{n}.yml" for n in ("bug", "wish")],
}


def run(*command):
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def steps(path):
    jobs = yaml.safe_load(path.read_text())["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_of_github_follow_their_schemas(schema):
    run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *SCHEMAS[schema])


def test_zizmor_finds_nothing_in_the_workflows():
    run(shutil.which("zizmor", path=Path(sys.executable).parent), "--offline", "-q", GITHUB)


def test_actionlint_finds_nothing_in_the_workflows():
    if not shutil.which("actionlint"):
        pytest.skip("no actionlint: its packages on PyPI and npm download it from elsewhere")
    run("actionlint", *WORKFLOWS)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_name_actions_by_commits_and_may_do_nothing_by_default(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())
    used = re.findall(r"uses: (.*)", path.read_text())
    pinned = re.compile(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+")
    assert [line for line in used if not pinned.fullmatch(line)] == []


def test_a_release_leaves_no_placeholder_and_no_relative_link(tmp_path):
    release = steps(GITHUB / "workflows" / "release.yml")
    [fill_in] = [step for step in release if "sed" in step.get("run", "")]
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    env = {"GITHUB_REPOSITORY_OWNER": "me", "GITHUB_REPOSITORY": "me/e3jax"}
    env |= {"GITHUB_REF_NAME": "v1", "PATH": "/usr/bin:/bin"}
    subprocess.run(["bash", "-ec", fill_in["run"]], cwd=tmp_path, env=env, check=True)
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    assert "OWNER" not in str(project)
    assert project["urls"]["Homepage"] == "https://github.com/me/e3jax"
    links = re.findall(r"\]\(([^)]*)", (tmp_path / "README.md").read_text())
    assert links and [link for link in links if not re.match("https://|#", link)] == []


def test_the_recipe_for_conda_asks_for_what_the_package_asks_for():
    recipe = yaml.safe_load((GITHUB / "conda" / "recipe.yaml").read_text())
    wanted = {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}
    python, *others = recipe["requirements"]["run"]
    assert python == "python >=${{ python_min }}"
    assert {r.name: r.specifier for r in map(Requirement, others)} == wanted
    assert recipe["context"]["version"] == version.VERSION
    assert f">={recipe['context']['python_min']}" == PROJECT["requires-python"]


def test_pythons_that_are_tested_are_named():
    [matrix] = [
        job["strategy"]["matrix"]["python"]
        for job in yaml.safe_load((GITHUB / "workflows" / "tests.yml").read_text())["jobs"].values()
        if "python" in job["strategy"]["matrix"]
    ]
    named = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    assert set(named) <= set(matrix) and named[0] in PROJECT["requires-python"]
