"""Numbers in README and on pages are those of results/."""

import re

import pages
import pytest
from conftest import ROOT

FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = {file.relative_to(ROOT).as_posix(): file for file in FILES}


@pytest.mark.parametrize("name", PAGES)
def test_tables_are_what_the_results_say(name):
    text = PAGES[name].read_text()
    assert text == pages.filled(text), "run: python experiments/pages.py"


def test_every_table_is_on_a_page():
    text = "".join(page.read_text() for page in PAGES.values())
    assert [name for name in pages.TABLES if f"<!-- {name} -->" not in text] == []


def test_a_page_is_filled_between_its_marks():
    text = "a\n<!-- features -->\nold\n<!-- /features -->\nb\n<!-- other -->\n"
    assert pages.filled(text) == f"a\n<!-- features -->\n\n{pages.TABLES['features']()}\n\n" + (
        "<!-- /features -->\nb\n<!-- other -->\n"
    )


def test_the_readme_compares_with_features_by_numbers_of_the_tables():
    readme = PAGES["README.md"].read_text()
    [reason] = re.findall(r"\*\*Why not features.*?\n- ", readme, re.DOTALL)
    numbers = re.findall(r"\d\d\.\d", reason)
    assert len(numbers) >= 7
    assert set(numbers) <= set(re.findall(r"\d\d\.\d", pages.TABLES["features"]()))


def test_the_readme_names_the_papers_numbers():
    lines = (ROOT / "experiments/paper/numbers.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines]
    aurocs = [next(r[3] for r in rows if r[:3] == [d, "0.1", "e3outlier"]) for d in pages.SETS]
    assert "has {}, {} and {} on the first three".format(*aurocs) in PAGES["README.md"].read_text()
