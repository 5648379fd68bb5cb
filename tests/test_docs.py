"""What the documentation shows is done: its code runs, its links lead somewhere."""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import matplotlib.pyplot as pyplot
import numpy as np
import pytest
from conftest import ROOT
from onnxruntime import InferenceSession

import e3jax
from e3jax import evidence, operations
from e3jax.cli import arguments
from e3jax.training import rules

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += [*sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("results/*.md"))]
PAGES.append(DOCS / "skill" / "SKILL.md")
# From top to bottom in one folder; ```console is what takes hours or installs.
LONG = "quickstart clean-a-folder from-python extend inlier-priority reproduce".split()
RUN = ["features", *(pytest.param(page, marks=pytest.mark.nightly) for page in LONG)]
NOTEBOOK = DOCS / "digits.ipynb"
REGISTRIES = (rules.RULES, evidence.EVIDENCE, operations.FAMILIES)
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def cells(kind):
    found = json.loads(NOTEBOOK.read_text())["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Constant folding")  # torch.onnx
@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("page", RUN)
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with contextlib.ExitStack() as stack:
        for registry in REGISTRIES:  # a page adds to them, and other tests follow
            stack.enter_context(mock.patch.dict(registry))
        run_page(page, tmp_path, monkeypatch)


def run_page(page, tmp_path, monkeypatch):
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    names = {"__name__": "page"}
    blocks = BLOCK.findall((DOCS / f"{page}.md").read_text())
    assert blocks
    for language, code in blocks:
        if language == "python":
            exec(compile(code, page, "exec"), names)
        else:
            done = subprocess.run(["bash", "-ec", code], capture_output=True, text=True)
            assert done.returncode == 0, f"{code}\n{done.stderr}"
    if page == "reproduce":
        assert list(Path("figures").glob("fig6c-scores-*.png"))
    if page == "inlier-priority":
        assert (names["inliers"] > names["outliers"]).all()  # nine times as many views
        assert names["update"].de_facto.shape == (16,)
    if page == "clean-a-folder":
        scores = Path("report/scores.csv").read_text().splitlines()
        assert sum("other" in line.split(",")[1] for line in scores[1:7]) == 3
        assert len(list(Path("photos").iterdir())) == 60
    if page == "features":
        pictures = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
        [features] = InferenceSession(names["file"]).run(None, {"pictures": pictures})
        expected = names["Encoder"]().eval()(names["torch"].from_numpy(pictures)).detach()
        np.testing.assert_allclose(features, expected, atol=1e-3)


@pytest.mark.nightly
def test_the_cells_of_the_notebook_run_and_find_other_digits_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pyplot.switch_backend("agg")
    names = {"__name__": "notebook"}
    for cell in cells("code"):
        exec(compile("".join(cell["source"]), "notebook", "exec"), names)
    pyplot.close("all")
    found = names["data"].is_outlier[names["first"]].mean()
    assert found > 2 * names["data"].is_outlier.mean()
    assert Path("gallery.html").stat().st_size > 10_000


def test_the_notebook_is_executed_small_and_tells_nothing_of_the_machine():
    text = NOTEBOOK.read_text()
    assert len(text) < 300_000
    code = cells("code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    kinds = {output["output_type"] for output in outputs}
    assert kinds <= {"display_data", "execute_result", "stream"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    without_pictures = re.sub(r'"image/png": "[^"]*"', "", text)
    assert not re.search(r"/home/|/tmp/|/root/|/Users/|site-packages|iopub", without_pictures)


@pytest.mark.parametrize("page", [*PAGES, NOTEBOOK], ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = page.read_text()
    if page == NOTEBOOK:
        text = "".join(line for cell in cells("markdown") for line in cell["source"])
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for link, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", text):
        if link.startswith("https://"):
            continue
        target = page.parent / link if link else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}#{anchor}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "results/README.md"], ids=lambda p: p.stem)
def test_files_of_the_project_that_pages_name_exist(page):
    named = re.findall(r"`((?:e3jax|experiments|tests|docs|results)/[\w./*-]+)`", page.read_text())
    assert [name for name in named if not list(ROOT.glob(name))] == []


def anchors(page):
    """Of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("results/*.md")], ids=lambda p: p.stem)
def test_no_text_touches_a_table_which_would_take_it_for_a_row(page):
    assert not re.findall(r"^\|.*\n[^|\n].*", page.read_text(), re.MULTILINE)


COMMAND = re.compile(r"^ *(?:\$ )?e3jax ([^#&|\n]+)", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_are_understood(page):
    blocks = re.findall(r"```(?:console|sh)\n(.*?)```", page.read_text(), re.DOTALL)
    for command in COMMAND.findall("\n".join(blocks)):
        arguments.parse_args(shlex.split(command))


# Turns of phrase that a native writer would not use; results.md is made elsewhere.
TICS = re.compile(
    r"\b(nobody|somebody|as of `|is no [a-z]+ of|"
    r"(?:by|on|for|serves?) [A-Za-z]+ alone|(?:is|are) (?:told|heard)|give the command)\b"
)


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "results.md"], ids=lambda p: p.stem)
def test_pages_are_in_plain_english(page):
    assert TICS.findall(page.read_text()) == []


def test_every_page_is_in_the_index_and_in_the_menu():
    index, menu = (DOCS / "README.md").read_text(), (ROOT / "mkdocs.yml").read_text()
    pages = {path.name for path in DOCS.glob("*.md")} - {"README.md"}
    assert [name for name in sorted(pages) if f"]({name})" not in index] == []
    assert [name for name in sorted(pages) if f": {name}\n" not in menu] == []


def test_the_readme_fits_on_a_few_screens_and_all_pages_in_an_evening():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100
    assert sum(len(page.read_text().split()) for page in DOCS.glob("*.md")) <= 14_000


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_api_page_has_every_public_name(site):
    page = (site / "api" / "index.html").read_text()
    homes = {name: f"{getattr(e3jax, name).__module__}.{name}" for name in e3jax.__all__}
    assert [name for name, home in homes.items() if f'id="{home}"' not in page] == []
    assert [name for name in e3jax.__all__ if not getattr(e3jax, name).__doc__] == []


def test_links_of_the_site_lead_somewhere_and_nothing_is_loaded_from_elsewhere(site):
    for page in site.rglob("index.html"):
        text = page.read_text()
        assert not re.findall(
            r'<(?:script|link|img|iframe)[^>]* (?:src|href)="https?:',
            text.replace('<link rel="canonical" href="https:', ""),
        )
        for link in re.findall(r'(?:href|src)="([^"]*)"', text):
            path, _, anchor = link.partition("#")
            if path.startswith(("http", "data:", "mailto:")):
                continue
            target = (page.parent / path if path else page).resolve()
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), f"{page}: {link}"
            assert not anchor or target.suffix != ".html" or f'id="{anchor}"' in target.read_text()


def test_the_gallery_on_the_site_is_small_and_tells_nothing_of_the_machine(site):
    text = (site / "demo.html").read_text()
    assert len(text) < 750_000 and text.startswith("<!doctype html>")
    assert not re.search(r"/home/|/tmp/|/root/|/Users/", text)
