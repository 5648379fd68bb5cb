"""Files are written whole or not at all, and the cache folder is where the user wants it."""

from pathlib import Path

import pytest

from e3jax import files


def test_text_and_tables_are_utf8_and_keep_other_bytes_of_file_names(tmp_path):
    files.write_text(tmp_path / "a.txt", "é\udcff")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\xff"
    rows = ([i, name] for i, name in enumerate(['a "b", c', "\udcff"]))
    files.write_csv(tmp_path / "a.csv", ("number", "name"), rows)
    assert (tmp_path / "a.csv").read_bytes() == b'number,name\n0,"a ""b"", c"\n1,\xff\n'


@pytest.mark.parametrize("before", [None, b"before"])
def test_a_write_that_fails_leaves_the_previous_file_or_none(tmp_path, before):
    path = tmp_path / "file"
    if before:
        path.write_bytes(before)

    def fail(file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(path, fail)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([before] if before else [])


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setenv("E3JAX_CACHE_DIR", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert files.cache_folder("/c") == Path("/c")
    assert files.cache_folder() == Path("/a")
    monkeypatch.setenv("E3JAX_CACHE_DIR", "~/a")
    assert files.cache_folder() == Path.home() / "a"
    monkeypatch.delenv("E3JAX_CACHE_DIR")
    assert files.cache_folder() == Path("/b/e3jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert files.cache_folder() == Path.home() / ".cache" / "e3jax"
