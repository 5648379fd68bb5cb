"""Tables say which files they rank, are read as spreadsheets save them, and replace only tables."""

import csv
import json
import os
import unicodedata
import urllib.parse
from pathlib import Path

import numpy as np
import pytest

from e3jax.collection.collection import Unreadable
from e3jax.errors import InputError
from e3jax.evidence.model import Explanation
from e3jax.report import tables, writing
from e3jax.report.ranking import Ranking
from e3jax.work import files

TABLES = ("scores.csv", "scores.jsonl", "unreadable.csv", "scores.parquet")


def ranked(paths, **values):
    """A ranking in the order of the paths."""
    paths, count = np.array(list(map(str, paths))), len(paths)
    explanation = Explanation(None, None, 0, None, "squash", {"shape": np.arange(count) / 3})
    unreadable = [Unreadable("/photos/b.png", "empty")]
    scores = -np.arange(count, dtype=float)
    return Ranking(paths, np.arange(count), scores, explanation, 0, unreadable, None, **values)


def write(folder, ranking_):
    folder.mkdir(exist_ok=True)
    writing.write_tables(folder, ranking_, parquet=True)
    return folder


def photos(folder, names):
    folder.mkdir()
    for name in names:
        (folder / name).write_text(name.encode("utf-8", "replace").decode())
    return [folder / name for name in names]


def lines(folder):
    return [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]


def rows(folder):
    import pyarrow.parquet

    return pyarrow.parquet.read_table(folder / "scores.parquet").to_pylist()


def save_as(path, delimiter=",", bom="", quoting=csv.QUOTE_MINIMAL, end="\n", order=None):
    """What a spreadsheet makes of a table."""
    with open(path, newline="", encoding="utf-8") as file:
        header, *content = csv.reader(file)
    content = sorted(content, key=order) if order else content
    with open(path, "w", newline="", encoding="utf-8") as file:
        file.write(bom)
        writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=end)
        writer.writerows([header, *content])


SAVED = [
    {"bom": "\ufeff"},
    {"bom": "\ufeff", "delimiter": ";", "end": "\r\n"},
    {"delimiter": ";", "quoting": csv.QUOTE_ALL},
    {"delimiter": "\t", "order": lambda row: row[1]},
    {"order": lambda row: float(row[2])},
]


# --- Which file it is --------------------------------------------------------------------------


def test_tables_keep_what_each_file_was(tmp_path):
    paths = photos(tmp_path / "photos", ["a.png", "b.png", "c.png"])
    os.utime(paths[1], ns=(0, 1_234_567_890_123_456_789))  # a float64 has no such number
    now = [files.state_of(path) for path in paths]
    then = np.array(now) + 2**60
    for states, expected in ((None, now), (then, then)):
        folder = write(tmp_path / "report", ranked(paths, states=states))
        for table in (lines(folder), rows(folder)):
            fields = [[row[field] for field in files.FileState._fields] for row in table]
            assert fields == np.array(expected).tolist()
        header = (folder / "scores.csv").read_text().splitlines()[0]
        assert header == "rank,path,score,outlier,copy_of,shape"
    listed = tables.listed_files(folder, [str(paths[2]), str(paths[0])])
    assert listed == {str(paths[i]): files.FileState(*then[i].tolist()) for i in (2, 0)}
    assert list(tables.first_files(folder, 2)) == [str(path) for path in paths[:2]]


def test_images_of_arrays_have_no_state_and_are_no_files(tmp_path):
    folder = write(tmp_path / "report", ranked(["0", "1"]))
    assert [line["inode"] for line in lines(folder)] == [None, None]
    assert [row["inode"] for row in rows(folder)] == [None, None]
    for read, argument in ((tables.first_files, 1), (tables.listed_files, ["1"])):
        with pytest.raises(InputError, match="by their numbers, not files"):
            read(folder, argument)


@pytest.mark.parametrize(
    "damage",
    ["gone", "without states", "cut", "[]\n", '{"rank": 1}\n', "\x00\n", '{"path": 3}\n', "null\n"],
)
def test_a_report_that_does_not_say_what_files_were_is_one_sentence(tmp_path, damage):
    paths = photos(tmp_path / "photos", ["a.png", "b.png"])
    folder = write(tmp_path / "report", ranked(paths))
    path = folder / "scores.jsonl"
    text = path.read_text()
    if damage == "gone":
        path.unlink()
    elif damage == "without states":
        path.write_text(text.replace('"inode"', '"node"'))
    else:
        path.write_text(text[:50] if damage == "cut" else damage)
    for read, argument in ((tables.first_files, 1), (tables.listed_files, [str(paths[0])])):
        with pytest.raises(InputError, match="run e3jax rank again"):
            read(folder, argument)


def test_reading_the_first_files_takes_no_memory_for_the_others(tmp_path):
    """Nor time: whatever follows them in a table as it was written is not read."""
    paths = photos(tmp_path / "photos", [f"{number}.png" for number in range(4)])
    folder = write(tmp_path / "report", ranked(paths))
    for name in ("scores.csv", "scores.jsonl"):
        with open(folder / name, "a") as file:
            file.write("not read\n")
    assert len(tables.first_files(folder, 4)) == 4
    with pytest.raises(InputError, match="has no rank and path in row 6"):
        tables.first_files(folder, 5)


# --- As spreadsheets save it -------------------------------------------------------------------


@pytest.mark.parametrize("changes", SAVED)
def test_a_table_that_a_spreadsheet_saved_is_the_report(tmp_path, changes):
    names = ["c.png", "ä;b,c.png", 'a"\n.png', "b.png"]
    paths = [str(path) for path in photos(tmp_path / "photos", names)]
    folder = write(tmp_path / "report", ranked(paths))
    before = tables.read_scores(folder)
    save_as(folder / "scores.csv", **changes)
    assert tables.read_scores(folder) == before
    assert [row["path"] for row in before] == paths
    for number in (1, 2, 9):
        assert list(tables.first_files(folder, number)) == paths[:number]
    writing.check_outputs(folder, parquet=True)


def test_rows_that_were_deleted_are_not_selected(tmp_path):
    paths = photos(tmp_path / "photos", ["a.png", "b.png", "c.png"])
    folder = write(tmp_path / "report", ranked(paths))
    table = (folder / "scores.csv").read_text().splitlines()
    (folder / "scores.csv").write_text("\n".join([table[0], table[3], ",,,,,", table[2], ""]))
    assert list(tables.first_files(folder, 2)) == [str(paths[1]), str(paths[2])]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("rank,", "number,", "is not a report of e3jax"),
        ("rank,path", "path,rank", "has no rank and path in row 2"),
        ("\n2,", "\n,", "has no rank and path in row 3"),
        ("\n2,", "\n2.5,", "has no rank and path in row 3"),
        ("\n2,", "\n0,", "has no rank and path in row 3"),
        ("\n2,", "\n-2,", "has no rank and path in row 3"),
        ("\n2,", "\n1,", "has rank 1 in row 2 and in row 3"),
        ("\n2,", "\n²,", "has no rank and path in row 3"),
        ("\n3,", "\n#NAME?,", "has no rank and path in row 4"),
        ("b.png", "d.png", "differ about"),
        ("\n2,", '\n"2', "is damaged|has no rank"),
    ],
)
def test_ranks_that_are_wrong_are_one_sentence(tmp_path, old, new, sentence):
    paths = photos(tmp_path / "photos", ["a.png", "b.png", "c.png"])
    folder = write(tmp_path / "report", ranked(paths))
    table = (folder / "scores.csv").read_text()
    assert old in table
    (folder / "scores.csv").write_text(table.replace(old, new))
    with pytest.raises(InputError, match=sentence):
        tables.first_files(folder, 3)


def test_a_column_that_was_sorted_by_itself_is_one_sentence(tmp_path):
    paths = photos(tmp_path / "photos", ["a.png", "b.png", "c.png"])
    folder = write(tmp_path / "report", ranked(paths))
    table = (folder / "scores.csv").read_text()
    swapped = table.replace("a.png", "?").replace("b.png", "a.png").replace("?", "b.png")
    (folder / "scores.csv").write_text(swapped)
    with pytest.raises(InputError, match="scores.jsonl differ about .*b.png: run e3jax rank again"):
        tables.first_files(folder, 1)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_path_in_another_normal_form_is_the_same_file(tmp_path, form):
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    names = [unicodedata.normalize(form, name) for name in ("é.png", "ü.png", "가.png")]
    names.append(unicodedata.normalize(other, "ü.png"))  # both are there
    paths = [str(path) for path in photos(tmp_path / "photos", names)]
    folder = write(tmp_path / "report", ranked(paths))
    changed = [unicodedata.normalize(other, path) for path in paths[:3]]
    assert list(tables.listed_files(folder, changed)) == [paths[0], paths[3], paths[2]]
    table = (folder / "scores.csv").read_text()
    (folder / "scores.csv").write_text(unicodedata.normalize(other, table))
    assert list(tables.first_files(folder, 1)) == paths[:1]
    with pytest.raises(InputError, match="differ about"):  # whose rank is it?
        tables.first_files(folder, 4)


# --- What is ours ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("content", ["", "name,score\na,3\n", "rank;path\n", "PAR1 PAR1"])
def test_what_is_not_our_table_is_not_replaced(tmp_path, name, content):
    paths = photos(tmp_path / "photos", ["a.png", "b.png"])
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=f"{name} exists and was not written by e3jax"):
        writing.check_outputs(folder, parquet=True)
    if name == "scores.parquet":
        writing.check_outputs(folder, parquet=False)
        with pytest.raises(InputError, match="was not written by e3jax"):
            writing.write_tables(folder, ranked(paths), parquet=True)
    else:
        with pytest.raises(InputError, match="was not written by e3jax"):
            writing.write_tables(folder, ranked(paths))
    assert os.listdir(folder) == [name] and (folder / name).read_text() == content


def test_another_parquet_file_with_the_same_columns_is_not_replaced(tmp_path):
    import pyarrow.parquet

    paths = photos(tmp_path / "photos", ["a.png", "b.png"])
    folder = write(tmp_path / "report", ranked(paths))
    writing.check_outputs(folder, parquet=True)
    table = pyarrow.parquet.read_table(folder / "scores.parquet").replace_schema_metadata()
    pyarrow.parquet.write_table(table, folder / "scores.parquet")
    with pytest.raises(InputError, match="scores.parquet exists and was not written by e3jax"):
        writing.check_outputs(folder, parquet=True)


def test_a_long_table_of_parquet_is_known_by_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "_ROWS", 5)
    paths = [f"/photos/{number:0200d}.png" for number in range(2000)]
    folder = write(tmp_path / "report", ranked(paths))
    assert (folder / "scores.parquet").stat().st_size > 200_000
    writing.check_outputs(folder, parquet=True)
    assert [row["path"] for row in rows(folder)] == paths


def test_names_in_parquet_are_the_files_names(tmp_path):
    names = ["a\nb\t.png", "ü.png", os.fsdecode(b"\xff%41.png"), "file:.png", "'\u202e\x7f.png"]
    paths = [str(path) for path in photos(tmp_path / "photos", names)]
    folder = write(tmp_path / "report", ranked(paths)._replace(copy_of=np.array([0, 1, 2, 2, 4])))

    def name(text):
        raw = urllib.parse.unquote_to_bytes(text.removeprefix("file://"))
        return os.fsdecode(raw) if text.startswith("file://") else text

    table = rows(folder)
    assert [name(row["path"]) for row in table] == paths
    assert [name(row["copy_of"]) for row in table] == ["", "", paths[2], paths[2], ""]
    assert all(Path(name(row["path"])).exists() for row in table)
    assert table[0]["path"] == paths[0] and table[2]["path"].endswith("/%FF%2541.png")
