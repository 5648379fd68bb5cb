"""Decisions are read as the gallery and spreadsheets save them, and outweigh scores."""

import re

import numpy as np
import pytest

from e3jax.errors import InputError
from e3jax.report import decisions

NAMES = ["/p/a.png", "/p/b, c.png", '/p/"d".png', "/p/two\nlines.png", "/p/\udcff.png"]


def saved(path, delimiter=",", quote='"'):
    """As the gallery saves them, or a spreadsheet after it."""
    cells = ["/p/a.png", '"/p/b, c.png"', '"/p/""d"".png"']
    cells += ['"""/p/two\\nlines.png"""', '"""/p/\\udcff.png"""']
    words = ["belongs", "does not belong", "belongs", "does not belong", "belongs"]
    rows = [delimiter.join(row) for row in zip(cells, words, strict=True)]
    header = delimiter.join(f"{quote}{name}{quote}" for name in decisions.COLUMNS)
    path.write_text("\n".join([header, *rows, ""]), encoding="utf-8-sig")
    return path


@pytest.mark.parametrize(("delimiter", "quote"), [(",", ""), (";", '"'), ("\t", "")])
def test_files_of_the_gallery_and_of_spreadsheets(tmp_path, delimiter, quote):
    path = saved(tmp_path / "decisions.csv", delimiter, quote)
    assert decisions.read(path) == {
        name: "does not belong" if i in (1, 3) else "belongs" for i, name in enumerate(NAMES)
    }
    assert decisions.for_images(path, np.array(NAMES)).tolist() == [1, -1, 1, -1, 1]
    assert decisions.read_junk(path) == [NAMES[1], NAMES[3]]


def test_a_selection_is_junk_line_by_line(tmp_path):
    path = tmp_path / "selection.txt"
    path.write_text('/p/a.png\n"/p/two\\nlines.png"\n/p/b, "c.png\n', encoding="utf-8")
    assert decisions.read_junk(path) == ["/p/a.png", "/p/two\nlines.png", '/p/b, "c.png']
    path.write_text("")
    assert decisions.read_junk(path) == []


@pytest.mark.parametrize("read", [decisions.read, decisions.read_junk])
def test_a_file_that_does_not_exist_is_one_sentence(read, tmp_path):
    with pytest.raises(InputError, match="none.csv does not exist: give the file that the gallery"):
        read(tmp_path / "none.csv")


def test_images_are_named_by_paths_or_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ids = np.array([str(tmp_path / name) for name in ("a.png", "b.png")])
    assert decisions.for_images({"b.png": "belongs"}, ids).tolist() == [0, 1]
    (tmp_path / "d.csv").write_text("file,decision\n2,does not belong\n")
    assert decisions.for_images("d.csv", np.arange(3)).tolist() == [0, 0, -1]
    assert decisions.for_images({1: "belongs"}, np.arange(3)).tolist() == [0, 1, 0]
    assert decisions.for_images(None, ids).dtype == np.int8


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("/p/a.png\n", "does not begin with file,decision, expected decisions: save them"),
        ("file,decision\n/p/a.png,maybe\n", "has '/p/a.png, maybe' in row 2, expected a file and"),
        ("file,decision\n\n/p/a.png\n", "in row 3"),
        ("file,decision\n/p/x.png,belongs\n", "/p/x.png, which is not among the 1 images"),
    ],
)
def test_what_is_no_decision_is_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "d.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=re.escape(sentence)):
        decisions.for_images(path, np.array(["/p/a.png"]))
    with pytest.raises(InputError, match="is 'good', expected one of belongs, does not belong"):
        decisions.for_images({"/p/a.png": "good"}, np.array(["/p/a.png"]))


def test_a_picture_belongs_if_a_copy_of_it_does():
    decided, copy_of = np.int8([0, -1, 1, 0, -1, 0, 0]), np.array([0, 0, 0, 3, 4, 4, 6])
    assert decisions.of_pictures(decided, copy_of).tolist() == [1, 1, 1, 0, -1, -1, 0]


def test_no_score_contradicts_a_decision():
    scores, decided = np.array([3.0, 1.0, 2.0, 5.0]), np.int8([1, -1, 0, 0])
    bounded = decisions.bounded(scores, decided)
    assert bounded[0] < bounded[2] < bounded[3] < bounded[1]
    np.testing.assert_array_equal(bounded[2:], scores[2:])
    np.testing.assert_allclose(bounded, [2, 5, 2, 5])
    assert decisions.bounded(scores, np.zeros(4, np.int8)) is scores
