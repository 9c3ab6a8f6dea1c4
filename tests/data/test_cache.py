from pathlib import Path

import pytest

from climapred.data.cache import cache_folder, read_cached, write_cached

KEY = {"path": "/data/a.grib", "size": 7}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIMAPRED_CACHE", str(tmp_path / "cache"))


def test_what_is_kept_comes_back_for_the_same_key_alone():
    assert read_cached("grib", KEY) is None
    write_cached("grib", KEY, {"rows": [1, 2]})
    assert read_cached("grib", KEY) == {"rows": [1, 2]}
    assert read_cached("grib", {**KEY, "size": 8}) is None
    assert read_cached("other", KEY) is None
    write_cached("grib", {**KEY, "size": 8}, [])  # the file has changed: one entry a path
    assert read_cached("grib", KEY) is None
    assert len(list((cache_folder() / "grib").iterdir())) == 1


@pytest.mark.parametrize("cut", [0, 1, 30, 120])
def test_a_damaged_entry_counts_as_none(cut):
    write_cached("grib", KEY, {"rows": [1, 2]})
    (path,) = (cache_folder() / "grib").iterdir()
    path.write_bytes(path.read_bytes()[:cut])
    assert read_cached("grib", KEY) is None


def test_a_changed_digit_counts_as_damage():
    write_cached("grib", KEY, {"rows": [1, 2]})
    (path,) = (cache_folder() / "grib").iterdir()
    path.write_bytes(path.read_bytes().replace(b"[1,2]", b"[1,3]"))
    assert read_cached("grib", KEY) is None


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLIMAPRED_CACHE", str(tmp_path / "file"))  # no folder can be made here, not even by root
    write_cached("grib", KEY, [])
    assert read_cached("grib", KEY) is None


@pytest.mark.parametrize(
    ("platform", "name", "variables", "folder"),
    [
        ("linux", "posix", {}, "~/.cache/climapred"),
        ("linux", "posix", {"XDG_CACHE_HOME": "/x"}, "/x/climapred"),
        ("darwin", "posix", {}, "~/Library/Caches/climapred"),
        ("linux", "posix", {"CLIMAPRED_CACHE": "~/own"}, "~/own"),
    ],
)
def test_the_folder_is_that_of_the_system(monkeypatch, platform, name, variables, folder):
    for variable in ("CLIMAPRED_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr("sys.platform", platform)
    assert cache_folder() == Path(folder).expanduser()
