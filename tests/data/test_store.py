import os
import random
import shutil
import signal
import subprocess
import sys
import time
from itertools import count

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numcodecs.bitround import BitRound

from climapred.data import store
from climapred.data.shards import shard_is_sound
from climapred.data.store import (
    Layout,
    create_store,
    extend_store,
    finish_store,
    journal_shard,
    journalled,
    open_statistics,
    open_store,
    partial_path,
    round_bits,
    stored_attributes,
    tidy,
    unfinished_path,
    verify_store,
    write_region,
    write_statistics,
)
from climapred.grid import Grid

GRID = Grid.regular(10, region=(20, 50, -20, 30))  # 4 x 6
TIMES = np.datetime64("2013-01-01", "ns") + np.arange(11) * np.timedelta64(6, "h")
FIELD = 4 * GRID.size  # bytes


@pytest.fixture
def small(monkeypatch):
    """Two times a chunk, four a shard: 11 times are shards of 4, 4 and 3."""
    monkeypatch.setattr(store, "_CHUNK_BYTES", 2 * FIELD)
    monkeypatch.setattr(store, "_SHARD_BYTES", 4 * FIELD)


def make_values(variables=("air",), seed=0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(280, 10, (len(TIMES), *GRID.shape)).astype(np.float32) for name in variables}


def create(path, variables=("air",), **attributes) -> Layout:
    return create_store(path, grid=GRID, times=TIMES, variables=variables, attributes=attributes)


def build(path, values, **attributes) -> Layout:
    layout = create(path, tuple(values), **attributes)
    sums = {}
    for start, stop in layout.regions(len(TIMES)):
        sums[str(start)] = {name: write_region(path, name, start, array[start:stop]) for name, array in values.items()}
    finish_store(path, {"done": "yes", "shards_crc32c": sums})
    return layout


@given(
    times=st.integers(1, 100_000),
    rows=st.integers(2, 800),
    columns=st.integers(2, 1500),
    window=st.none() | st.integers(2, 60),
)
def test_layout_properties(times, rows, columns, window):
    grid = Grid(np.linspace(-80, 80, rows), np.linspace(0, 179, columns))
    layout = Layout.plan(grid, window)
    field = 4 * grid.size
    assert layout.chunk >= 1
    assert layout.shard % layout.chunk == 0
    assert layout.chunk * field <= store._CHUNK_BYTES or layout.chunk == 1
    assert layout.shard * field <= store._SHARD_BYTES or layout.shard == layout.chunk
    covered = np.concatenate([np.arange(*region) for region in layout.regions(times)])
    np.testing.assert_array_equal(covered, np.arange(times))
    assert all(start % layout.shard == 0 and stop - start <= layout.shard for start, stop in layout.regions(times))


@given(rows=st.integers(2, 800), columns=st.integers(2, 1500), window=st.integers(2, 60), start=st.integers(0, 10**6))
def test_a_window_touches_few_chunks_and_brings_little_along(rows, columns, window, start):
    grid = Grid(np.linspace(-80, 80, rows), np.linspace(0, 179, columns))
    chunk, field = Layout.plan(grid, window).chunk, 4 * grid.size
    touched = (start + window - 1) // chunk - start // chunk + 1
    if window * field <= 2**20:
        assert touched <= 2
    # what is read beyond the window: a chunk on either side, of at most four windows, or 1 MB where fields are small
    assert (touched * chunk - window) * field <= 2 * max(4 * window * field, 2**20)
    assert touched == 1 or (touched - 2) * chunk < window


@pytest.mark.parametrize(
    ("grid", "window", "chunk"),
    [
        (Grid.regular(0.25), 12, 1),  # a field of 4.2 MB
        (Grid.regular(1.5), 12, 36),  # 4 MB
        (Grid.regular(1.5), 2, 9),  # 1 MB: four windows would be less
        (Grid.regular(0.5, region=(18, 54, 73, 135)), 12, 48),  # four windows: 1.8 MB
        (Grid.regular(0.5, region=(18, 54, 73, 135)), None, 114),  # 4 MB
        (GRID, 12, 2**20 // FIELD),  # seven years of 6-hourly fields are 1 MB
    ],
)
def test_chunks_of_known_grids(grid, window, chunk):
    assert Layout.plan(grid, window).chunk == chunk


def test_round_trip(tmp_path, small):
    values = make_values(("air", "msl"))
    assert build(tmp_path / "a.zarr", values, source="a test") == Layout(2, 4)
    opened = open_store(tmp_path / "a.zarr")
    assert list(opened.data_vars) == ["air", "msl"]
    for name, array in values.items():
        assert opened[name].dims == ("time", "latitude", "longitude")
        assert opened[name].dtype == np.float32
        np.testing.assert_array_equal(opened[name].values, array)
    np.testing.assert_array_equal(opened["time"].values, TIMES)
    assert Grid.of(opened) == GRID
    assert opened["air"].attrs["units"] == "K"
    assert opened["msl"].attrs["standard_name"] == "air_pressure_at_mean_sea_level"
    assert (opened.attrs["source"], opened.attrs["done"]) == ("a test", "yes")
    assert not partial_path(tmp_path / "a.zarr").exists()


def test_the_store_is_sharded_zarr_3(tmp_path, small):
    build(tmp_path / "a.zarr", make_values())
    array = zarr.open_group(tmp_path / "a.zarr", mode="r")["air"]
    assert array.metadata.zarr_format == 3
    assert (array.chunks, array.shards) == ((2, 4, 6), (4, 4, 6))
    shards = [path for path in (tmp_path / "a.zarr" / "air" / "c").rglob("*") if path.is_file()]
    assert len(shards) == 3  # one file a shard


def test_opening_reads_no_field(tmp_path):
    build(tmp_path / "a.zarr", make_values())
    for shard in (tmp_path / "a.zarr" / "air" / "c").rglob("0"):
        if shard.is_file():
            shard.write_bytes(b"")
    assert open_store(tmp_path / "a.zarr").sizes["time"] == len(TIMES)


def test_what_was_not_written_is_missing(tmp_path, small):
    create(tmp_path / "a.zarr")
    write_region(tmp_path / "a.zarr", "air", 4, make_values()["air"][4:8])
    written = zarr.open_group(unfinished_path(tmp_path / "a.zarr"), mode="r")["air"][:]
    assert np.isnan(written).all(axis=(1, 2)).tolist() == [True] * 4 + [False] * 4 + [True] * 3


@pytest.mark.parametrize(("start", "count"), [(1, 4), (2, 2), (0, 2), (0, 8), (8, 2), (8, 4), (4, 3)])
def test_a_region_that_is_not_one_shard_is_refused(tmp_path, small, start, count):
    create(tmp_path / "a.zarr")
    values = np.zeros((count, *GRID.shape), np.float32)
    with pytest.raises(ValueError, match=rf"a.zarr/air: times {start}..{start + count} are not one shard of 4 times"):
        write_region(tmp_path / "a.zarr", "air", start, values)


def test_checksum_tells_values_apart(tmp_path, small):
    create(tmp_path / "a.zarr")
    values = make_values()["air"][:4]
    first = write_region(tmp_path / "a.zarr", "air", 0, values)
    assert write_region(tmp_path / "a.zarr", "air", 0, np.asfortranarray(values)) == first
    assert write_region(tmp_path / "a.zarr", "air", 0, np.nextafter(values, np.float32(0))) != first


def test_a_half_built_store_does_not_open(tmp_path):
    create(tmp_path / "a.zarr")
    with pytest.raises(FileNotFoundError, match=r"no store at .*a.zarr: its build has not finished; run the same"):
        open_store(tmp_path / "a.zarr")


def test_no_store(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no store at .*a.zarr: build it with `climapred run`"):
        open_store(str(tmp_path / "a.zarr"))


def test_another_format_is_refused(tmp_path):
    xr.Dataset({"air": ("x", [1.0])}).to_zarr(tmp_path / "a.zarr", zarr_format=3, consolidated=False)
    with pytest.raises(ValueError, match=r"a.zarr has store format None, this climapred reads 2; build it again"):
        open_store(tmp_path / "a.zarr")
    zarr.open_group(tmp_path / "a.zarr", mode="r+").attrs["climapred_format"] = 1
    for read in (open_store, verify_store):
        with pytest.raises(ValueError, match="store format 1, this climapred reads 2"):
            read(tmp_path / "a.zarr")


def test_the_older_store_stays_until_the_new_one_is_complete(tmp_path, small):
    path, old, new = tmp_path / "a.zarr", make_values(seed=0), make_values(seed=1)
    build(path, old)
    write_statistics(path, make_statistics())
    layout = create(path)
    for start, stop in layout.regions(len(TIMES)):
        write_region(path, "air", start, new["air"][start:stop])
        np.testing.assert_array_equal(open_store(path)["air"].values, old["air"])
    finish_store(path, {})
    np.testing.assert_array_equal(open_store(path)["air"].values, new["air"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zarr"]
    with pytest.raises(FileNotFoundError, match="has no statistics; run the build stage"):
        open_statistics(path)  # those of the old values


def test_create_starts_anew(tmp_path, small):
    path = tmp_path / "a.zarr"
    create(path)
    write_region(path, "air", 0, make_values()["air"][:4])
    create(path)
    assert np.isnan(zarr.open_group(unfinished_path(path), mode="r")["air"][:]).all()


def make_statistics(offset=0.0) -> xr.Dataset:
    climatology = np.arange(2 * 3 * GRID.size, dtype=float).reshape(2, 3, *GRID.shape) + offset
    return xr.Dataset(
        {
            "mean": ("variable", [280.0 + offset, 1e5]),
            "climatology": (
                ("variable", "harmonic", "latitude", "longitude"),
                climatology,
                {"annual": 1, "daily": 0},
            ),
        },
        {"variable": np.array(["air", "msl"]), "latitude": GRID.latitude, "longitude": GRID.longitude},
        {"training_times": 7},
    )


def test_statistics_travel_in_the_store(tmp_path):
    path, values = tmp_path / "a.zarr", make_values()
    build(path, values)
    for offset in (0.0, 1.0):  # the second replaces the first
        write_statistics(path, make_statistics(offset))
        xr.testing.assert_identical(open_statistics(path), make_statistics(offset))
    assert open_statistics(path).sel(variable=["msl"])["mean"].item() == 1e5
    opened = open_store(path)
    assert list(opened.data_vars) == ["air"]  # they are a group of their own
    np.testing.assert_array_equal(opened["air"].values, values["air"])


@pytest.mark.parametrize("names", [("air", "msl", "t2m", "u10"), ("u10", "t2m", "msl", "air")])
def test_variables_keep_the_order_of_the_build(tmp_path, small, names):
    build(tmp_path / "a.zarr", make_values(names), source="a test")
    assert [tuple(open_store(tmp_path / "a.zarr").data_vars) for _ in range(10)] == [names] * 10


# What is lost, and what is not


def test_a_shard_without_values_is_a_file(tmp_path, small):
    """Zarr leaves out what equals the fill value; then a lost shard could not be told from one that never had values."""
    values = {"air": np.full((len(TIMES), *GRID.shape), np.nan, np.float32)}
    build(tmp_path / "a.zarr", values)
    assert verify_store(tmp_path / "a.zarr") == []
    (tmp_path / "a.zarr/air/c/1/0/0").unlink()
    assert verify_store(tmp_path / "a.zarr") == []  # nothing was in it
    values["air"][5] = np.float32(280)
    build(tmp_path / "a.zarr", values)
    (tmp_path / "a.zarr/air/c/1/0/0").unlink()
    assert verify_store(tmp_path / "a.zarr") == [("air", 4, 8)]


@pytest.mark.parametrize("times", [9, 11, 12])
def test_a_shard_has_the_bytes_that_zarr_writes(tmp_path, small, times):
    """Also the last one: of 9 times it ends within a chunk and lacks another, of 11 it ends within its second chunk."""
    days = TIMES[0] + np.arange(times) * np.timedelta64(1, "D")
    values = np.random.default_rng(0).normal(280, 10, (times, *GRID.shape)).astype(np.float32)
    for name in ("ours", "zarr"):
        create_store(tmp_path / name, grid=GRID, times=days, variables=["air"], attributes={})
    theirs = zarr.open_group(unfinished_path(tmp_path / "zarr"), mode="r+")["air"]
    theirs.with_config({"write_empty_chunks": True})[:] = values
    for number, start in enumerate(range(0, times, 4)):
        write_region(tmp_path / "ours", "air", start, values[start : start + 4])
        ours, expected = (unfinished_path(tmp_path / name) / f"air/c/{number}/0/0" for name in ("ours", "zarr"))
        assert ours.read_bytes() == expected.read_bytes()


def test_a_flipped_bit_is_no_weather(tmp_path, small):
    """Blosc decodes many a damaged chunk to other values; the checksum of each chunk is looked at first."""
    path = tmp_path / "a.zarr"
    build(path, make_values())
    shard = path / "air/c/0/0/0"
    content, chunks = shard.read_bytes(), 4 // zarr.open_group(path, mode="r")["air"].chunks[0]
    assert shard_is_sound(shard, chunks)
    for size in (0, 7, len(content) // 2, len(content) - 1):
        shard.write_bytes(content[:size])
        assert not shard_is_sound(shard, chunks)
    for position in range(0, len(content), 40):
        shard.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        with pytest.raises(ValueError, match="checksum do not match"):
            open_store(path)["air"][:4].load()
        assert verify_store(path) == [("air", 0, 4)]
        assert not shard_is_sound(shard, chunks)


def test_a_store_grows(tmp_path, small):
    """Eleven times are shards of 4, 4 and 3; three more: the last shard is written again, the others are the same files."""
    path, values = tmp_path / "a.zarr", make_values(("air", "msl"))
    layout = build(path, values)
    write_statistics(path, make_statistics())
    before, older = {name: (path / name / "c/1/0/0").stat().st_ino for name in values}, open_store(path)
    times = np.append(TIMES, TIMES[-1] + np.arange(1, 4) * np.timedelta64(6, "h"))
    more = {name: np.concatenate([array, array[:3] + 1]) for name, array in values.items()}
    assert extend_store(path, grid=GRID, times=times, attributes={"source": "two"}) == layout
    assert set(store.journalled(path)) == {0, 4}
    xr.testing.assert_identical(open_store(path), older)  # whoever opens it while it grows
    for start in (8, 12):
        for name, array in more.items():
            write_region(path, name, start, array[start : start + 4])
    finish_store(path, {"shards_crc32c": {}})
    opened = open_store(path)
    for name, array in more.items():
        np.testing.assert_array_equal(opened[name], array)
        np.testing.assert_array_equal(older[name], values[name])  # whoever has opened it before
        assert (path / name / "c/1/0/0").stat().st_ino == before[name]
    np.testing.assert_array_equal(opened["time"], times)
    assert opened.attrs["source"] == "two"
    xr.testing.assert_identical(open_statistics(path), make_statistics())
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zarr"]


def test_a_kill_between_two_names(tmp_path, small):
    """The older store has lost its name, the new one has none yet: the older one opens, and gets its name back."""
    path, old = tmp_path / "a.zarr", make_values(seed=0)
    build(path, old)
    create(path)
    path.rename(tmp_path / "a.zarr.old")
    np.testing.assert_array_equal(open_store(path)["air"], old["air"])
    assert verify_store(path) == []
    tidy(path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.zarr", "a.zarr.partial"]
    np.testing.assert_array_equal(open_store(path)["air"], old["air"])


def test_a_kill_after_both_names(tmp_path, small):
    path, new = tmp_path / "a.zarr", make_values(seed=1)
    build(path, new)
    for left in ("a.zarr.old", "a.zarr.partial/journal"):
        (tmp_path / left).mkdir(parents=True)
    tidy(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zarr"]
    np.testing.assert_array_equal(open_store(path)["air"], new["air"])


# A store takes the place of another

FINISHER = """
import os, signal, sys
from pathlib import Path
import zarr  # nothing has been read yet, and no thread runs: from here on, a fork is safe
from climapred.data import store

STEPS = ("os.rename", "os.rmdir", "shutil.rmtree", "ctypes.dlsym")  # the last one precedes the exchange

def killed_at(step):
    left = step
    def count(event, arguments):
        nonlocal left
        if event in STEPS:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    return count

for line in sys.stdin:
    step, store._SWAP, path = (int(word) if word.isdigit() else word for word in line.split())
    pid = os.fork()
    if not pid:
        path = Path(path)
        sums = {str(start): row for start, row in store.journalled(path).items()}
        sys.addaudithook(killed_at(step))
        store.finish_store(path, {"shards_crc32c": sums})
        os._exit(0)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


@pytest.fixture
def finisher():
    """A function that finishes a store in a process of its own, killed before the given step; returns whether it was."""
    zygote = subprocess.Popen(
        [sys.executable, "-c", FINISHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def finish(path, step, swap) -> bool:
        zygote.stdin.write(f"{step} {swap} {path}\n")
        zygote.stdin.flush()
        status = int(zygote.stdout.readline())
        assert status in (0, signal.SIGKILL)
        return status != 0

    yield finish
    zygote.stdin.close()
    zygote.wait(timeout=30)
    zygote.stdout.close()


def write_all(path, values, **attributes) -> None:
    """Write a store under construction, and its journal."""
    for start, stop in create(path, **attributes).regions(len(TIMES)):
        journal_shard(path, start, {"air": write_region(path, "air", start, values[start:stop])})


def finish(path) -> None:
    finish_store(path, {"shards_crc32c": {str(start): row for start, row in journalled(path).items()}})


@pytest.mark.parametrize("swap", [store._SWAP, 2**30], ids=["exchanged", "renamed"])  # the latter no system knows
@pytest.mark.parametrize("replaced", [True, False])
def test_kills_at_every_step_of_a_swap(tmp_path, small, finisher, swap, replaced):
    """Readers have the older store or the new one, whole; the build is gone on with, and nothing is lost or mistaken."""
    old, new = (make_values(seed=seed)["air"] for seed in (0, 1))
    begun = tmp_path / "begun"
    begun.mkdir()
    if replaced:
        write_all(begun / "a.zarr", old, made="old")
        finish(begun / "a.zarr")
    write_all(begun / "a.zarr", new, made="new")
    seen = []
    for step in count():
        path = shutil.copytree(begun, tmp_path / str(step)) / "a.zarr"
        killed = finisher(path, step, swap)
        if replaced or path.exists():
            opened = open_store(path)
            seen.append(opened.attrs["made"])
            np.testing.assert_array_equal(opened["air"], {"old": old, "new": new}[seen[-1]])
            assert verify_store(path) == []
        tidy(path)
        if partial_path(path).exists():
            assert stored_attributes(unfinished_path(path))["made"] == "new"
            assert len(journalled(path)) == 3
            assert not path.exists() or open_store(path).attrs["made"] == "old"
            finish(path)
        np.testing.assert_array_equal(open_store(path)["air"], new)
        assert verify_store(path) == []
        assert [each.name for each in path.parent.iterdir()] == ["a.zarr"]
        if not killed:
            break
    assert seen == sorted(seen, reverse=True)  # old, and then new
    assert set(seen) == ({"old", "new"} if replaced else {"new"})
    assert step > 4


def test_the_same_values_again(tmp_path, small):
    """Checksums cannot tell the two stores apart then: what was exchanged goes, and no folder stays."""
    path, values = tmp_path / "a.zarr", make_values()["air"]
    for made in ("old", "new"):
        write_all(path, values, made=made)
        tidy(path)
        assert partial_path(
            path
        ).exists()  # all shards are those of the store that has the name; it goes on all the same
        finish(path)
        assert open_store(path).attrs["made"] == made
        assert [each.name for each in tmp_path.iterdir()] == ["a.zarr"]


READER = """
import sys
from pathlib import Path
from climapred.data.store import open_store

path, seen = Path(sys.argv[1]), []
print("ready", flush=True)
while not path.with_name("stop").exists():
    assert path.exists() and (path / "air" / "zarr.json").exists()
    opened = open_store(path)
    assert len(opened["time"]) == len(opened["air"]) == opened.attrs["times"]
    assert (opened["air"][:4].values == 280).all()
    seen.append(opened.attrs["times"])
print(len(seen), *set(seen))
"""


def test_a_reader_misses_nothing_in_two_hundred_swaps(tmp_path, small):
    """Stores of 11 and of 7 times take turns, and a process in a tight loop opens and reads them."""
    path, random_, values = tmp_path / "a.zarr", random.Random(3), np.full((11, *GRID.shape), 280, np.float32)
    for times in (11, 7):
        kept = tmp_path / f"{times}.zarr"
        layout = create_store(kept, grid=GRID, times=TIMES[:times], variables=["air"], attributes={"times": times})
        for start, stop in layout.regions(times):
            journal_shard(kept, start, {"air": write_region(kept, "air", start, values[start:stop])})
    shutil.copytree(partial_path(kept), partial_path(path))
    finish(path)
    command, pipe = [sys.executable, "-c", READER, str(path)], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as reader:
        try:
            assert reader.stdout.readline() == "ready\n"
            for swap in range(200):
                shutil.copytree(partial_path(tmp_path / f"{(11, 7)[swap % 2]}.zarr"), partial_path(path))
                finish(path)
                time.sleep(random_.uniform(0, 0.02))
        finally:
            (tmp_path / "stop").touch()
        output, errors = reader.communicate(timeout=60)
    assert (reader.returncode, errors) == (0, "")
    opened, *seen = map(int, output.split())
    assert opened > 20
    assert sorted(seen) == [7, 11]


def test_names_are_exchanged_at_once(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert store._exchanged(tmp_path / "one", tmp_path / "other")
    assert os.listdir(tmp_path / "one") == ["other"]
    assert os.listdir(tmp_path / "other") == ["one"]
    assert not store._exchanged(tmp_path / "one", tmp_path / "absent")
    assert os.listdir(tmp_path / "one") == ["other"]


@pytest.mark.parametrize("calendar", ["noleap", "360_day", "standard"])
def test_cftime_dates_are_refused(tmp_path, small, calendar):
    path = tmp_path / "a.zarr"
    times = xr.date_range("2013-01-01", periods=11, freq="6h", calendar=calendar, use_cftime=True)
    grown: dict = {"grid": GRID, "times": times.values, "attributes": {}}
    wanted = (
        rf"the times of a.zarr follow the calendar '{calendar}', but .* xarray's dataset.convert_calendar\('standard', "
    )
    with pytest.raises(ValueError, match=wanted):
        create_store(path, variables=["air"], **grown)
    assert list(tmp_path.iterdir()) == []
    build(path, make_values())
    with pytest.raises(ValueError, match=wanted + ".* or work in xarray: harmonise"):
        extend_store(path, **grown)
    assert [each.name for each in tmp_path.iterdir()] == ["a.zarr"]
    converted = xr.Dataset(coords={"time": times}).convert_calendar("standard", align_on="date", use_cftime=False)
    create_store(path, variables=["air"], **{**grown, "times": converted["time"].values})  # the way out


def test_unfinished_files_go(tmp_path, small):
    path = tmp_path / "a.zarr"
    create(path)
    for start, stop in Layout(2, 4).regions(len(TIMES)):
        write_region(path, "air", start, make_values()["air"][start:stop])
    whole = {file.relative_to(unfinished_path(path)) for file in unfinished_path(path).rglob("*")}
    for stray in ("0.0123.partial", ".unfinished.12.34.0"):
        (unfinished_path(path) / "air/c/1/0" / stray).write_bytes(b"cut short")
    finish_store(path, {})
    assert {file.relative_to(path) for file in path.rglob("*")} == whole


def test_opened_stores_are_no_dask_graphs(tmp_path):
    """A graph has a task for each chunk: 100 000 of a long series are slow to make and large to hold."""
    build(tmp_path / "a.zarr", make_values())
    opened = open_store(tmp_path / "a.zarr")
    assert opened["air"].chunks is None
    assert opened["air"].encoding["chunks"][1:] == GRID.shape  # whole fields
    assert stored_attributes(tmp_path / "a.zarr")["layout"]["chunk"] == opened["air"].encoding["chunks"][0]


# Bit rounding


@given(
    values=st.lists(st.floats(width=32, allow_subnormal=False, min_value=-(2.0**100), max_value=2.0**100), min_size=1),
    keep_bits=st.integers(1, 23),
)
def test_rounded_values_lie_within_the_bound(values, keep_bits):
    exact = np.array(values, np.float32)
    rounded = round_bits(exact, keep_bits)
    assert rounded.dtype == np.float32
    error = abs(rounded.astype(np.float64) - exact)
    assert (error <= abs(exact.astype(np.float64)) * 2.0 ** -(keep_bits + 1)).all()
    np.testing.assert_array_equal(round_bits(rounded, keep_bits), rounded)
    assert not (rounded.view(np.uint32) & np.uint32((1 << (23 - keep_bits)) - 1)).any()
    oracle = BitRound(keep_bits)
    np.testing.assert_array_equal(oracle.decode(oracle.encode(exact)).view(np.float32), rounded)


def test_ties_go_to_even():
    """With two bits: 1, 1.25, 1.5, 1.75; 1.125 and 1.375 lie half-way."""
    values = np.array([1.125, 1.375, 1.126, -1.375, 1.875], np.float32)
    assert round_bits(values, 2).tolist() == [1.0, 1.5, 1.25, -1.5, 2.0]


def test_rounding_keeps_what_is_no_number():
    odd = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32)
    assert np.isnan(round_bits(odd, 5)).all()
    assert round_bits(np.array([np.inf, -np.inf, 0.0], np.float32), 1).tolist() == [np.inf, -np.inf, 0.0]


def test_the_mean_stays():
    """Rounding to nearest has no bias: the mean of n errors shrinks as 1 / sqrt(n); cutting off would lose 0.016 K."""
    values = np.random.default_rng(0).normal(280, 15, 10**6).astype(np.float32)
    lost = round_bits(values, 12).astype(np.float64) - values
    assert abs(lost.mean()) < 4 * (2**8 / 2**12 / np.sqrt(12)) / 1000


@pytest.mark.parametrize("keep_bits", [0, 24])
def test_bits_out_of_range(keep_bits):
    with pytest.raises(
        ValueError, match=rf"keep_bits must lie in 1 to 23, the bits of a float32's mantissa, got {keep_bits}"
    ):
        round_bits(np.ones(1, np.float32), keep_bits)
