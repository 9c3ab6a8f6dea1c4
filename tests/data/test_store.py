import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

from climapred.data import store
from climapred.data.store import (
    Layout,
    create_store,
    finish_store,
    open_statistics,
    open_store,
    partial_path,
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
    for name, array in values.items():
        for start, stop in layout.regions(len(TIMES)):
            write_region(path, name, start, array[start:stop])
    finish_store(path, {"done": "yes"})
    return layout


@given(times=st.integers(1, 100_000), rows=st.integers(2, 800), columns=st.integers(2, 1500))
def test_layout_properties(times, rows, columns):
    grid = Grid(np.linspace(-80, 80, rows), np.linspace(0, 179, columns))
    layout = Layout.plan(times, grid)
    assert layout.shard % layout.chunk == 0
    assert 1 <= layout.chunk <= times
    assert layout.chunk * 4 * grid.size <= store._CHUNK_BYTES or layout.chunk == 1
    assert layout.shard * 4 * grid.size <= store._SHARD_BYTES
    assert layout.shard < times + layout.chunk  # never a chunk more than the times need
    covered = np.concatenate([np.arange(*region) for region in layout.regions(times)])
    np.testing.assert_array_equal(covered, np.arange(times))
    assert all(start % layout.shard == 0 and stop - start <= layout.shard for start, stop in layout.regions(times))


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
    written = zarr.open_group(partial_path(tmp_path / "a.zarr"), mode="r")["air"][:]
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
    with pytest.raises(ValueError, match=r"a.zarr has store format None, this climapred reads 1; build it again"):
        open_store(tmp_path / "a.zarr")
    zarr.open_group(tmp_path / "a.zarr", mode="r+").attrs["climapred_format"] = 2
    with pytest.raises(ValueError, match="store format 2"):
        open_store(tmp_path / "a.zarr")


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
    assert np.isnan(zarr.open_group(partial_path(path), mode="r")["air"][:]).all()


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
