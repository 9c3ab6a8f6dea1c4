"""Regridding against CDO, brute force and theory."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

from climapred.data.regrid import METHODS, Regridder, regrid
from climapred.grid import Grid, cell_areas, great_circle_km
from climapred.reduced import ReducedGrid

DATA = Path(os.environ.get("CLIMAPRED_DATA", Path(__file__).parents[2] / "../shared/data"))
NCEP = DATA / "air.sig995.2013.nc"
OPERATORS = {"conservative": "remapcon", "bilinear": "remapbil", "nearest": "remapnn"}

BOX = (36, 62, -12, 27)
PAIRS = {
    "coarser": (Grid.regular(2.5), Grid.regular(6)),
    "finer": (Grid.regular(6), Grid.regular(2.5)),
    "to Gaussian": (Grid.regular(2.5), Grid.gaussian(32)),
    "from Gaussian": (Grid.gaussian(16), Grid.regular(5)),
    "Gaussian to Gaussian": (Grid.gaussian(24), Grid.gaussian(16)),
    "Gaussian without its cells": (Grid(Grid.gaussian(16).latitude, Grid.gaussian(16).longitude), Grid.gaussian(10)),
    "region to region": (
        Grid.regular(1, region=(30, 60, 0, 40)),
        Grid.regular(1.7, region=(28.1, 62.1, -4.3, 41.6)),
    ),
    "over Greenwich": (Grid.regular(2.5), Grid.regular(1.3, region=BOX)),
    "over Greenwich from a box": (Grid.regular(2, region=(30, 70, 310, 400)), Grid.regular(1.3, region=BOX)),
    "over the date line": (
        Grid.regular(2, region=(-20, 20, 150, 210)),
        Grid.regular(1.1, region=(-15.4, 15.4, -205, -161)),
    ),
    "from -180": (Grid.regular(3, region=(-90, 90, -180, 180)), Grid.regular(4)),
    "to -180": (Grid.regular(3), Grid.regular(4.5, region=(-90, 90, -180, 180))),
    "points between the poles": (Grid(np.linspace(-88.5, 88.5, 60), 1.5 + 3.0 * np.arange(120)), Grid.regular(4)),
    "round the pole": (Grid.regular(2, region=(50, 90, -180, 180)), Grid.regular(3, region=(60, 90, 0, 360))),
    "uneven": (
        Grid(90 * np.sin(np.radians(np.linspace(-85, 85, 40))), np.cumsum(3 + np.cos(np.arange(90.0)))),
        Grid.regular(3.5, region=(-70, 70, 10, 157)),
    ),
}


def random_field(grid, seed=0, times=3, **kwargs):
    """A smooth field round 280 K with noise: DataArray (time, latitude, longitude), float64."""
    noise = np.random.default_rng(seed).normal(0, 5, (times, *grid.shape))
    wave = 20 * np.cos(np.radians(grid.latitude))[:, None] * np.cos(np.radians(2 * grid.longitude))
    coordinates = {"time": np.arange(times), **grid.coordinates()}
    dims = ("time", "latitude", "longitude")
    return xr.DataArray(280 + wave + noise, coordinates, dims, name="t2m", attrs={"units": "K"}, **kwargs)


def cdo(operator, data, source, target, folder, **environment):
    """Return what CDO makes of ``data``, with the cell edges of both grids given to it."""
    dataset = data.to_dataset(name="x")
    for name in ("latitude", "longitude"):
        edges = getattr(source, f"{name}_bounds")
        dataset[name].attrs["bounds"] = f"{name}_bounds"
        dataset[f"{name}_bounds"] = ((name, "side"), np.stack([edges[:-1], edges[1:]], axis=1))
    dataset.to_netcdf(folder / "source.nc")

    def numbers(values):
        return " ".join(repr(float(value)) for value in np.ravel(values))

    def pairs(edges):
        return numbers(np.stack([edges[:-1], edges[1:]], axis=1))

    rows, columns = target.shape
    (folder / "target.txt").write_text(
        f"gridtype = lonlat\nxsize = {columns}\nysize = {rows}\n"
        f"xvals = {numbers(target.longitude)}\nxbounds = {pairs(target.longitude_bounds)}\n"
        f"yvals = {numbers(target.latitude)}\nybounds = {pairs(target.latitude_bounds)}\n"
    )
    command = ["cdo", "-s", "-b", "F64", f"{operator},target.txt", "source.nc", "target.nc"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env={**os.environ, **environment})
    with xr.open_dataset(folder / "target.nc") as result:
        return result["x"].values


@pytest.mark.skipif(shutil.which("cdo") is None, reason="cdo is not installed")
@pytest.mark.parametrize("method", OPERATORS)
@pytest.mark.parametrize("pair", PAIRS)
def test_equals_cdo(pair, method, tmp_path):
    """Within 1e-4 K, with the same cells missing. What is left out, and why:

    - bilinear: targets beyond the outermost rows, where CDO weights any four points by inverse distance: not linear;
      here a row at a pole is repeated. CDO also leaves such rows of a region empty, as here.
    - nearest: CDO measures along great circles, here latitude and longitude count apart. Both are checked by indices:
      where they differ, CDO's point must be as near or nearer on the sphere, and ours as near or nearer in latitude and in
      longitude: ties (CDO's are decided by the curvature of parallels), and steep cells towards the poles.
      Outside the source CDO extrapolates.
    """
    source, target = PAIRS[pair]
    data = random_field(source)
    if method == "nearest":
        data[:] = np.arange(source.size).reshape(source.shape)
    result = Regridder(source, target, method)(data.values)
    expected = cdo(OPERATORS[method], data, source, target, tmp_path)
    if method == "nearest":
        inside = ~np.isnan(result[0])
        assert inside.mean() > 0.5
        explain_nearest(source, target, inside, result[0][inside].astype(int), expected[0][inside].astype(int))
        return
    rows = slice(None)
    if method == "bilinear":
        rows = (target.latitude >= source.latitude[0]) & (target.latitude <= source.latitude[-1])
        assert rows.mean() > 0.8
    np.testing.assert_allclose(result[:, rows], expected[:, rows], rtol=0, atol=1e-4)
    assert np.isfinite(expected[:, rows]).mean() > 0.5


def explain_nearest(source, target, inside, ours, theirs):
    """Check that every difference of two sets of source indices is one of the metric, or a tie."""
    latitude, longitude = (axis[inside] for axis in np.meshgrid(target.latitude, target.longitude, indexing="ij"))
    distances, gaps = [], []
    for index in (ours, theirs):
        row, column = np.unravel_index(index, source.shape)
        distances.append(great_circle_km(latitude, longitude, source.latitude[row], source.longitude[column]))
        turn = (longitude - source.longitude[column] + 180) % 360 - 180
        gaps.append((np.abs(latitude - source.latitude[row]), np.abs(turn)))
    differ = ours != theirs
    assert (distances[1][differ] <= distances[0][differ] + 1e-3).all()
    for own, other in zip(*gaps, strict=True):
        assert (own[differ] <= other[differ] + 1e-6).all()
    tie = np.all([np.isclose(own, other, atol=1e-6) for own, other in zip(*gaps, strict=True)], axis=0)
    assert (differ & ~tie & (np.abs(latitude) < 60)).mean() < 0.05


@pytest.mark.skipif(not NCEP.exists(), reason="shared data missing")
@pytest.mark.parametrize("method", ["conservative", "bilinear"])
def test_ncep_equals_cdo(method, tmp_path):
    """As it comes: rows from north to south, names lat and lon, float32."""
    with xr.open_dataset(NCEP) as dataset:
        air = dataset["air"].isel(time=slice(0, 4)).astype(np.float32)
    air.encoding = {}
    target = Grid.regular(1.5)
    canonical = air.rename(lat="latitude", lon="longitude").sortby("latitude").astype(np.float64)
    expected = cdo(OPERATORS[method], canonical, Grid.of(canonical), target, tmp_path)
    result = regrid(air, target, method)
    assert (result.dims, result.dtype) == (("time", "lat", "lon"), np.float32)
    np.testing.assert_allclose(result.values, expected, rtol=0, atol=1e-4)
    assert {*result.attrs} == {*air.attrs} - {"actual_range"}


@pytest.mark.parametrize("max_missing", [1.0, 0.5])
def test_missing_values_equal_cdo(max_missing, tmp_path):
    source, target = PAIRS["coarser"]
    data = random_field(source)
    data = data.where(np.random.default_rng(1).random(data.shape) > 0.45)
    # CDO keeps a cell if its valid share of the area is larger than this minimum; the default is none.
    environment = {} if max_missing == 1 else {"REMAP_AREA_MIN": str(1 - max_missing)}
    expected = cdo("remapcon", data, source, target, tmp_path, **environment)
    result = Regridder(source, target, max_missing=max_missing)(data.values)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4)
    assert (np.isnan(result).mean() > 0.1) == (max_missing < 1)


def interval(low, high):
    return max(0.0, high - low)


def brute_force_conservative(source, target, values):
    """The mean over 2-D overlaps, cell by cell, with the source at every turn of the circle."""
    result = np.full(target.shape, np.nan)
    for i, j in np.ndindex(target.shape):
        total = area = 0.0
        south, north = target.latitude_bounds[i : i + 2]
        west, east = target.longitude_bounds[j : j + 2]
        for k, m in np.ndindex(source.shape):
            low, high = max(south, source.latitude_bounds[k]), min(north, source.latitude_bounds[k + 1])
            if high <= low:
                continue
            height = np.sin(np.radians(high)) - np.sin(np.radians(low))
            for turn in (-720, -360, 0, 360, 720):
                left, right = source.longitude_bounds[m : m + 2] + turn
                overlap = height * interval(max(west, left), min(east, right))
                total += overlap * values[k, m]
                area += overlap
        if area > 1e-9:
            result[i, j] = total / area
    return result


def random_grid(rng, west):
    rows, columns = rng.integers(4, 7, 2)
    latitude = np.linspace(-70, 80, rows) + rng.uniform(-9, 9, rows)
    longitude = west + np.linspace(0, 200, columns) + rng.uniform(-9, 9, columns)
    return Grid(latitude, longitude)


@pytest.mark.parametrize("seed", range(6))
def test_conservative_equals_two_dimensionaloverlaps(seed):
    rng = np.random.default_rng(seed)
    source, target = random_grid(rng, west=0), random_grid(rng, west=-180 + 60 * seed)
    values = rng.normal(280, 10, source.shape)
    expected = brute_force_conservative(source, target, values)
    np.testing.assert_allclose(Regridder(source, target)(values), expected, rtol=1e-9)


@pytest.mark.parametrize("pair", PAIRS)
def test_nearest_equals_loops(pair):
    source, target = PAIRS[pair]
    values = random_field(source).values[0]
    expected = np.full(target.shape, np.nan)
    for i, j in np.ndindex(target.shape):
        latitude = target.latitude[i]
        west = source.longitude_bounds[0]
        longitude = west + (target.longitude[j] - west) % 360
        if longitude > source.longitude_bounds[-1] + 1e-9:
            continue
        if not source.latitude_bounds[0] - 1e-9 <= latitude <= source.latitude_bounds[-1] + 1e-9:
            continue
        gap = np.abs((source.longitude - longitude + 180) % 360 - 180)
        near = np.flatnonzero(gap < gap.min() + 1e-9)
        column = near[0] if near.size == 1 or near[1] == near[0] + 1 else near[-1]  # the western one of two
        row = np.argmin(np.abs(source.latitude - latitude).round(9))  # the southern one of two
        expected[i, j] = values[row, column]
    np.testing.assert_array_equal(Regridder(source, target, "nearest")(values), expected)


@pytest.mark.parametrize("spacing", [1.0, 4.0, 9.0])
def test_conservative_keeps_the_integral(spacing):
    source, target = Grid.regular(2.5), Grid.regular(spacing)
    values = random_field(source).values
    before = (values * cell_areas(source)).sum(axis=(1, 2))
    after = (Regridder(source, target)(values) * cell_areas(target)).sum(axis=(1, 2))
    np.testing.assert_allclose(after, before, rtol=1e-12)
    single = Regridder(source, target)(values.astype(np.float32)).astype(np.float64)
    np.testing.assert_allclose((single * cell_areas(target)).sum(axis=(1, 2)), before, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pair", PAIRS)
def test_constant_stays_constant(pair, method):
    source, target = PAIRS[pair]
    regridder = Regridder(source, target, method)
    result = regridder(np.full(source.shape, 287.3))
    np.testing.assert_allclose(result[~np.isnan(result)], 287.3, rtol=1e-13)
    assert np.isnan(result).any() == (pair == "region to region")
    for weights in (regridder.latitude_weights, regridder.longitude_weights):
        sums = weights.sum(axis=1)
        np.testing.assert_allclose(sums[sums > 0], 1, rtol=1e-13)
        assert weights.data.min() > 0


def test_bilinear_reproduces_a_linear_field():
    source, target = Grid.regular(5, region=(-40, 60, 10, 90)), Grid.regular(1.7, region=(-20, 31, 20, 71))

    def linear(grid):
        return 3 + 0.5 * grid.latitude[:, None] - 0.2 * grid.longitude + 0.01 * np.outer(grid.latitude, grid.longitude)

    np.testing.assert_allclose(Regridder(source, target, "bilinear")(linear(source)), linear(target), rtol=1e-12)


def test_bilinear_closes_the_circle_and_keeps_the_last_row_to_the_pole():
    source = Grid.gaussian(4)
    values = random_field(source).values[0]
    target = Grid([-90.0, source.latitude[0], 0.0, 90.0], [-11.25, 348.75 - 337.5])
    result = Regridder(source, target, "bilinear")(values)
    half_way = (values[:, -1] + values[:, 0]) / 2  # longitudes 337.5 and 0 enclose -11.25
    np.testing.assert_allclose(result[[0, 1, 3], 0], half_way[[0, 0, -1]], rtol=1e-13)
    assert not np.isnan(result).any()


@pytest.mark.parametrize("method", METHODS)
def test_outside_the_source_is_nan(method):
    source = Grid.regular(10, region=(0, 60, 0, 60))
    target = Grid.regular(2.5, region=(-15, 75, -15, 75))
    result = Regridder(source, target, method)(np.ones(source.shape))
    # Centres end at 0 and 60, cells at -5 and 65; a conservative target cell reaches 1.25 beyond its centre.
    reach = {"nearest": 5, "bilinear": 0, "conservative": 5 + 1.25 - 1e-9}[method]
    covered = (target.latitude >= -reach) & (target.latitude <= 60 + reach)
    np.testing.assert_array_equal(~np.isnan(result), covered[:, None] & covered)


def test_edges_that_differ_by_rounding_do_not_overlap():
    source = Grid(np.float32([10.1, 10.2, 10.3]), np.float32([20.1, 20.2, 20.3]))
    target = Grid([10.1, 10.2, 10.3, 10.4], [20.1, 20.2, 20.3, 20.4])
    result = Regridder(source, target)(np.ones((3, 3)))
    assert np.isnan(result[3]).all()
    assert np.isnan(result[:, 3]).all()
    assert not np.isnan(result[:3, :3]).any()


@pytest.mark.parametrize("method", METHODS)
def test_longitudes_from_minus_180_are_a_permutation(method):
    source = Grid.regular(5)
    target = Grid(source.latitude, np.linspace(-180, 175, 72))
    values = random_field(source).values
    result = Regridder(source, target, method)(values)
    np.testing.assert_allclose(result, np.roll(values, 36, axis=-1), rtol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_same_grid_is_identity(method):
    target = Grid.gaussian(8)  # its cells are not half-way between its points, as those of the data are
    data = random_field(target).astype(np.float32)
    xr.testing.assert_identical(regrid(data, target, method), data)
    stored = data.assign_coords(latitude=data["latitude"].astype("f4"), longitude=data["longitude"].astype("f4"))
    xr.testing.assert_identical(regrid(stored, target, method), data)
    regridder = Regridder(Grid.regular(10), Grid.regular(10), method)
    values = random_field(Grid.regular(10)).values
    np.testing.assert_array_equal(regridder(values), values)


def test_missing_share_decides():
    # One target cell over 2 x 2 source cells at the equator: each has a quarter of its area.
    source = Grid([-1.0, 1.0, 3.0, 5.0], [1.0, 3.0, 5.0, 7.0])
    target = Grid([0.0, 4.0], [2.0, 6.0])
    values = np.ones(source.shape)
    values[0, 0], values[1, 0], values[0, 1] = np.nan, 5.0, 2.0
    mean = (5 + 2 + 1) / 3
    assert Regridder(source, target, max_missing=0.3)(values)[0, 0] == pytest.approx(mean, rel=1e-12)
    assert Regridder(source, target, max_missing=0.25)(values)[0, 0] == pytest.approx(mean, rel=1e-12)
    assert np.isnan(Regridder(source, target, max_missing=0.2)(values)[0, 0])
    assert np.isnan(Regridder(source, target, max_missing=0)(values)[0, 0])
    assert Regridder(source, target, max_missing=0)(values)[1, 1] == 1
    values[:2, :2] = np.nan
    for max_missing in (0, 0.5, 1):
        assert np.isnan(Regridder(source, target, max_missing=max_missing)(values)[0, 0])
    values[1, 1] = 7.0
    assert Regridder(source, target, max_missing=1)(values)[0, 0] == pytest.approx(7, rel=1e-12)


def test_missing_values_of_one_field_stay_in_it():
    source, target = Grid.regular(10), Grid.regular(15)
    values = random_field(source, times=4).values
    clean = Regridder(source, target, max_missing=0)(values)
    values[2, :, 5] = np.nan
    result = Regridder(source, target, max_missing=0)(values)
    np.testing.assert_allclose(result[[0, 1, 3]], clean[[0, 1, 3]], rtol=1e-13)
    assert np.isnan(result[2]).any(axis=0).sum() == 2  # cells 37.5..52.5 and 52.5..67.5 meet 45..55


def test_infinite_values_stay_where_they_have_weight():
    source, target = Grid.regular(10), Grid.regular(15)
    values = random_field(source, times=2).values
    clean = Regridder(source, target)(values)
    values[0, 9, 5] = np.inf
    result = Regridder(source, target)(values)
    assert np.isinf(result[0]).sum() == 2  # the row -7.5..7.5, columns 37.5..52.5 and 52.5..67.5
    finite = np.isfinite(result)
    np.testing.assert_allclose(result[finite], clean[finite], rtol=1e-13)


def test_missing_share_counts_only_what_the_source_covers():
    source = Grid.regular(10, region=(0, 60, 0, 60))
    target = Grid.regular(20, region=(-10, 50, -10, 50))
    values = np.ones(source.shape)
    result = Regridder(source, target, max_missing=0)(values)
    assert result[0, 0] == pytest.approx(1)  # from -20 to 0; the source starts at -5


def raise_on_compute(graph, keys, **kwargs):
    raise AssertionError("regrid computed a lazy field")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("chunks", [{"time": 1}, {"time": 3, "latitude": 5}, {"latitude": 4, "longitude": 7}, {}])
@pytest.mark.parametrize("target", [Grid.gaussian(6), Grid.regular(5, region=(20, 50, 40, 90))])
def test_lazy_equals_eager_for_any_chunks(method, chunks, target):
    data = random_field(Grid.regular(10), times=7).astype(np.float32)
    data[2, :9, 4:7] = np.nan
    with dask.config.set(scheduler=raise_on_compute):
        lazy = regrid(data.chunk(chunks), target, method)
        assert lazy.chunks is not None
    xr.testing.assert_identical(lazy.compute(scheduler="single-threaded"), regrid(data, target, method))


def test_time_chunks_stay():
    lazy = regrid(random_field(Grid.regular(10), times=7).chunk(time=3, latitude=2), Grid.regular(30))
    assert lazy.chunks == ((3, 3, 1), (7,), (12,))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("f4", "f4"), ("f8", "f8"), (">f4", "f4"), ("i2", "f8"), ("bool", "f8"), ("f2", "f4")],
)
def test_dtypes(dtype, expected):
    data = (random_field(Grid.regular(30)) > 280).astype(dtype)
    for given_data in (data, data.chunk(time=1)):
        result = regrid(given_data, Grid.regular(45))
        assert result.dtype == np.dtype(expected)
        assert result.compute(scheduler="single-threaded").dtype == np.dtype(expected)


def test_float32_sums_in_float64():
    source, target = Grid.regular(1), Grid.regular(90)
    values = random_field(source, times=1).values.astype(np.float32)
    expected = Regridder(source, target)(values.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(Regridder(source, target)(values), expected)


def test_dataset_keeps_what_is_not_horizontal():
    data = random_field(Grid.regular(30))
    dataset = data.transpose("latitude", "time", "longitude").to_dataset()
    dataset["orbit"] = ("time", np.arange(3.0), {"units": "1"})
    dataset["latitude"].attrs["bounds"] = "latitude_edges"
    edges = Grid.regular(30).latitude_bounds
    dataset["latitude_edges"] = (("latitude", "side"), np.stack([edges[:-1], edges[1:]], axis=1))
    dataset = dataset.assign_coords(
        member=3,
        season=("time", list("abc")),
        unused=[1, 2],
        land=(("latitude", "longitude"), np.ones((7, 12))),
    ).assign_attrs(title="a title")
    target = Grid.regular(45)
    result = regrid(dataset, target)
    assert list(result.data_vars) == ["t2m", "orbit"]
    assert result["t2m"].dims == ("latitude", "time", "longitude")
    assert result["t2m"].attrs == {"units": "K"}
    assert result.attrs == {"title": "a title"}
    assert set(result.coords) == {"time", "latitude", "longitude", "member", "season", "unused"}
    xr.testing.assert_identical(result["orbit"].drop_vars("unused", errors="ignore"), dataset["orbit"])
    assert Grid.of(result) == target
    assert result["latitude"].attrs["standard_name"] == "latitude"
    one = regrid(dataset["t2m"], target)
    assert one.name == "t2m"
    assert set(one.coords) == {"time", "latitude", "longitude", "member", "season"}
    np.testing.assert_array_equal(one.transpose(*data.dims).values, Regridder(Grid.of(data), target)(data.values))


def test_any_leading_dims():
    source, target = Grid.regular(30), Grid.regular(45)
    values = random_field(source, times=6).values
    regridder = Regridder(source, target)
    expected = regridder(values)
    np.testing.assert_array_equal(regridder(values.reshape(2, 3, *source.shape)).reshape(expected.shape), expected)
    np.testing.assert_allclose(regridder(values[4]), expected[4], rtol=1e-14)
    assert regridder(values[:0]).shape == (0, *target.shape)


def test_source_grid_with_other_cells():
    source, target = Grid.gaussian(8), Grid.regular(10)
    data = random_field(source)
    expected = Regridder(source, target)(data.values)
    np.testing.assert_array_equal(regrid(data, target, source=source).values, expected)
    with pytest.raises(ValueError, match=r"source must be the grid of the data, Grid\(16 x 32.*got Grid\(12 x 24"):
        regrid(data, target, source=Grid.gaussian(6))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("falling", [["latitude"], ["longitude"], ["latitude", "longitude"]])
def test_direction_changes_nothing(method, falling):
    """Rows from north to south, as most files have them: others flip the field, or find no row at all."""
    data, target = random_field(Grid.regular(10)), Grid.regular(7, region=(-35, 35, 10, 80))
    turned = data.isel({name: slice(None, None, -1) for name in falling})
    xr.testing.assert_identical(regrid(turned, target, method), regrid(data, target, method))
    xr.testing.assert_identical(regrid(turned, Grid.of(data), method), data)


@pytest.mark.parametrize("method", METHODS)
def test_longitudes_may_jump(method):
    """0..180, -170..-10: the field is the same, only the names of its columns jump."""
    data, target = random_field(Grid.regular(10)), Grid.gaussian(8)
    jumping = data.assign_coords(longitude=(data["longitude"] + 179) % 360 - 179)
    assert float(jumping["longitude"].min()) == -170
    xr.testing.assert_allclose(regrid(jumping, target, method), regrid(data, target, method), rtol=1e-12)


def test_only_what_the_target_needs_is_read(capsys):
    class Field:
        shape, dtype, ndim = (1, 181, 360), np.dtype(float), 3

        def __getitem__(self, index):
            values = np.zeros(self.shape)[index]
            print(values.shape)
            return values

    fields = da.from_array(Field(), chunks=-1, meta=np.zeros((0, 0, 0)))
    data = xr.DataArray(fields, Grid.regular(1).coordinates(), ("time", "latitude", "longitude"))
    regrid(data, Grid.regular(2, region=(10, 20, 30, 50))).compute(scheduler="single-threaded")
    # Cells of 9..21 N and 29..51 E, which halve the outermost ones, and one point more at either end.
    assert capsys.readouterr().out == "(1, 15, 25)\n"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pair", [name for name, (_, target) in PAIRS.items() if not target.periodic])
def test_a_part_of_the_source_gives_what_the_whole_gives(pair, method):
    source, target = PAIRS[pair]
    data = random_field(source)
    expected = Regridder(source, target, method)(data.values)
    np.testing.assert_allclose(regrid(data, target, method, source=source).values, expected, rtol=1e-12)


def test_needs_no_more_than_numpy_and_scipy():
    code = "import sys, climapred.data.regrid; print(*{'ESMF', 'esmpy', 'xesmf', 'numba', 'sparse'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert found.split() == []


def test_weights_do_not_travel():
    """A task carries coordinates; weights copied into each would be what fills the memory of other tools."""
    source, target = Grid.regular(1), Grid.gaussian(48)
    regridder = Regridder(source, target)
    coordinates = sum(axis.nbytes for grid in (source, target) for axis in (grid.latitude, grid.longitude))
    assert len(pickle.dumps(regridder)) < 3 * coordinates + 2000
    assert pickle.loads(pickle.dumps(regridder)).weights is regridder.weights
    graphs = {}
    for times in (10, 40):
        zeros = da.zeros((times, *source.shape), chunks=(1, -1, -1), dtype="f4")
        lazy = regrid(xr.DataArray(zeros, source.coordinates(), ("time", "latitude", "longitude")), target)
        graphs[times] = len(pickle.dumps(dict(lazy.__dask_graph__())))
    weights = sum(matrix.data.nbytes for matrix in (regridder.latitude_weights, regridder.longitude_weights))
    assert (graphs[40] - graphs[10]) / 30 < weights / 10


@pytest.mark.parametrize("source", [Grid.gaussian(8), ReducedGrid.octahedral(8)])
@pytest.mark.parametrize("method", METHODS)
def test_saved_weights(source, method, tmp_path, monkeypatch):
    regridder = Regridder(source, Grid.regular(10), method, max_missing=0.2)
    regridder.save(tmp_path / "weights.npz")
    assert [file.name for file in tmp_path.iterdir()] == ["weights.npz"]
    monkeypatch.setattr("climapred.data.regridder.find_weights", lambda *grids: pytest.fail("computed"))
    loaded = Regridder.load(tmp_path / "weights.npz")
    assert loaded == regridder
    values = np.random.default_rng(0).normal(0, 1, source.shape)
    np.testing.assert_array_equal(loaded(values), regridder(values))


def test_saved_weights_are_checked(tmp_path):
    path = tmp_path / "weights.npz"
    with pytest.raises(FileNotFoundError):
        Regridder.load(path)
    Regridder(Grid.gaussian(8), Grid.regular(10)).save(path)
    with np.load(path) as archive:
        content = dict(archive)

    def refused(message, **changes):
        np.savez(path, **(content | changes))
        with pytest.raises(ValueError, match=rf"weights.npz holds no usable weights: .*{message}.*Regridder.save"):
            Regridder.load(path)

    data, indices = content["latitude_weights_data"], content["latitude_weights_indices"]
    refused("format 2, this climapred reads 1", format=np.array(2))
    refused("not those that its weights were made for", source_latitude=content["source_latitude"] + 0.01)
    refused("rows of latitude_weights must sum to 1, got 2", latitude_weights_data=2 * data)
    refused("indices", latitude_weights_indices=indices + 16)
    refused(r"latitude_weights has shape \[19, 17\], not \[19, 16\]", latitude_weights_shape=np.array([19, 17]))
    refused("method must be one of", method=np.array("cubic"))
    refused("allow_pickle=False", method=np.array(print, dtype=object))
    np.savez(path, format=np.array(1))
    with pytest.raises(ValueError, match=r"weights\.npz holds no usable weights"):
        Regridder.load(path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"weights\.npz holds no usable weights"):
        Regridder.load(path)


def test_survives_pickle():
    source, target = Grid.regular(30), Grid.gaussian(4)
    regridder = Regridder(source, target, "bilinear", max_missing=0.2)
    copy = pickle.loads(pickle.dumps(regridder))
    values = random_field(source).values
    np.testing.assert_array_equal(copy(values), regridder(values))
    assert copy == regridder
    assert dask.base.tokenize(copy) == dask.base.tokenize(regridder)
    assert dask.base.tokenize(copy) != dask.base.tokenize(Regridder(source, target, "bilinear"))


def test_errors():
    source, target = Grid.regular(30), Grid.regular(45)
    data = random_field(source)
    with pytest.raises(ValueError, match="method must be one of nearest, bilinear, conservative, got 'cubic'"):
        regrid(data, target, "cubic")
    with pytest.raises(ValueError, match=r"max_missing must lie in \[0, 1\], got 1.5"):
        regrid(data, target, max_missing=1.5)
    with pytest.raises(ValueError, match=r"shape of the source Grid\(7 x 12.*got \(3, 12, 7\)"):
        Regridder(source, target)(np.zeros((3, 12, 7)))
    with pytest.raises(ValueError, match=r"must have a 1-D coordinate 'latitude'.*harmonise"):
        regrid(data.rename(latitude="y").drop_attrs(), target)
    with pytest.raises(ValueError, match=r"latitude must increase.*harmonise"):
        regrid(data.isel(latitude=[0, 2, 1, 3]), target)
    with pytest.raises(ValueError, match=r"a gap of 270 degrees.*torn apart; call harmonise\(\) first"):
        regrid(data.sel(longitude=[0, 30, 60, 330]), target)
    with pytest.raises(ValueError, match=r"at most 360 degrees, got 390.0; is the first point repeated"):
        regrid(data.isel(longitude=[*range(12), 0]), target)
    with pytest.raises(ValueError, match=r"variable 'zonal' must have both.*drop it first"):
        regrid(data.to_dataset().assign(zonal=data[0].mean("longitude")), target)
    with pytest.raises(ValueError, match="variable 't2m' must hold numbers, got datetime64"):
        regrid(data.astype("datetime64[s]"), target)


@pytest.mark.parametrize("method", METHODS)
def test_grids_apart(method):
    source, target = Grid.regular(1, region=(0, 10, 0, 10)), Grid.regular(1, region=(0, 10, 20, 30))
    with pytest.raises(ValueError, match=r"source is Grid\(.* 0\.\.10 E\), target is Grid\(.* 20\.\.30 E\)"):
        Regridder(source, target, method)
