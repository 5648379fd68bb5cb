"""What the documentation shows is done: its blocks run, its links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import e3jax

PAGES = sorted((ROOT / "docs").glob("*.md"))
# From top to bottom in one folder; ```console is what takes hours or installs.
RUN = [p for p in PAGES if p.stem in ("clean-a-folder", "from-python", "extend", "reproduce")]
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.campaign
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    names = {"__name__": "page"}
    blocks = BLOCK.findall(page.read_text())
    assert blocks
    for language, code in blocks:
        if language == "python":
            exec(compile(code, page.name, "exec"), names)
        else:
            done = subprocess.run(["bash", "-ec", code], capture_output=True, text=True)
            assert done.returncode == 0, f"{code}\n{done.stderr}"
    if page.stem == "reproduce":
        assert list(Path("figures").glob("fig6c-scores-*.png"))
    if page.stem == "clean-a-folder":
        strangest = [line.split(",")[1] for line in open("report/scores.csv")][1:7]
        assert sum("other" in path for path in strangest) == 3
        assert len(list(Path("photos").iterdir())) == 60


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_the_api_page_has_every_public_name(tmp_path):
    command = [sys.executable, "-m", "pdoc", "--docformat", "google", "e3jax", "-o", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "Warn" not in done.stderr, done.stderr
    page = (tmp_path / "e3jax.html").read_text()
    assert [name for name in e3jax.__all__ if f'id="{name}"' not in page] == []
    assert [name for name in e3jax.__all__ if not getattr(e3jax, name).__doc__] == []
