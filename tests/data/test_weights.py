"""Interval arithmetic against loops, blocks against whole matrices, reduced grids against CDO."""

import shutil
import subprocess
from itertools import pairwise

import eccodes
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from climapred.data.regrid import METHODS, Regridder, regrid
from climapred.data.weights import Separable, conservative_longitude, find_weights, overlaps
from climapred.grid import Grid, cell_areas, great_circle_km
from climapred.reduced import ReducedGrid


def interval(low, high):
    return max(0.0, high - low)


increasing = st.lists(st.integers(-400, 400), min_size=2, max_size=12, unique=True).map(
    lambda edges: np.sort(np.array(edges, dtype=np.float64) / 4)
)


@settings(max_examples=60, deadline=None)
@given(increasing, increasing)
def test_overlaps_equal_loops(source, target):
    expected = [
        [interval(max(left, low), min(right, high)) / (high - low) for left, right in pairwise(source)]
        for low, high in pairwise(target)
    ]
    weights = overlaps(source, target).toarray()
    np.testing.assert_allclose(weights, expected, rtol=1e-12, atol=1e-14)
    inside = (target[:-1] >= source[0]) & (target[1:] <= source[-1])
    np.testing.assert_allclose(weights.sum(axis=1)[inside], 1, rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(increasing, increasing, st.integers(-3, 3), st.integers(-3, 3))
def test_turns_of_the_circle_change_no_weight(source, target, source_turns, target_turns):
    expected = conservative_longitude(source, target).toarray()
    turned = conservative_longitude(source + 360 * source_turns, target + 360 * target_turns).toarray()
    np.testing.assert_allclose(turned, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (Grid.regular(2.5), Grid.gaussian(16)),
        (Grid.regular(10), Grid.regular(3, region=(-30, 30, -60, 60))),
        (Grid.regular(1, region=(0, 90, 0, 3)), Grid.regular(1.5, region=(10, 70, -3, 6))),  # longitude goes first
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_blocks_equal_the_whole_matrices(source, target, method):
    weights = find_weights(source, target, method)
    fields = np.random.default_rng(0).normal(0, 1, (3, *source.shape))
    expected = weights.latitude.toarray() @ fields @ weights.longitude.toarray().T
    np.testing.assert_allclose(weights.apply(fields), expected, atol=1e-13)
    np.testing.assert_allclose(weights.apply_exactly(fields), expected, atol=1e-13)
    np.testing.assert_array_equal(weights.covered, np.outer(weights.latitude.sum(1) > 0, weights.longitude.sum(1) > 0))


sparse = st.integers(0, 2**32 - 1).map(lambda seed: random_operator(np.random.default_rng(seed)))


def random_operator(rng):
    dense = rng.random(rng.integers(1, 90, 2)) * (rng.random() < 0.9)
    return csr_array(np.where(rng.random(dense.shape) < rng.random(), dense, 0))


@settings(max_examples=60, deadline=None)
@given(sparse, sparse)
def test_blocks_of_any_operators(latitude, longitude):
    fields = np.random.default_rng(0).normal(0, 1, (2, latitude.shape[1], longitude.shape[1])).astype(np.float32)
    expected = latitude.toarray() @ fields.astype(np.float64) @ longitude.toarray().T
    np.testing.assert_allclose(Separable(latitude, longitude).apply(fields), expected, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("method", ["nearest", "bilinear"])
@pytest.mark.parametrize("target", [Grid.regular(12), Grid.regular(8, region=(20, 76, -41, 47))])
def test_picked_points_give_what_products_of_blocks_give(target, method):
    """Also where the target leaves the source, and where a target lies on a point."""
    source = Grid.regular(1.25, region=(10, 80, -60, 30))
    weights = find_weights(source, target, method)
    fields = np.random.default_rng(1).normal(280, 10, (3, *source.shape)).astype(np.float32)
    assert weights._corners is not None
    assert weights._corners[1].shape[1] == (1 if method == "nearest" else 4)
    expected = weights._apply_blocks(fields)
    np.testing.assert_allclose(weights.apply(fields), expected, rtol=1e-14, atol=0)
    from_north = np.ascontiguousarray(fields[:, ::-1])
    np.testing.assert_allclose(weights.apply(from_north[:, ::-1]), expected, rtol=1e-14, atol=0)


def test_weights_are_kept_by_the_grids_and_the_method():
    find_weights.cache_clear()
    first = find_weights(Grid.regular(30), Grid.regular(45), "bilinear")
    assert find_weights(Grid.regular(30), Grid.regular(45), "bilinear") is first
    assert find_weights(Grid.regular(30), Grid.regular(45), "nearest") is not first
    assert find_weights(Grid.regular(30), Grid.regular(90), "bilinear") is not first
    for count in range(4, 44):  # two points apart, to 360 / 43
        find_weights(Grid.regular(30), Grid(np.linspace(-80, 80, count), [0.0, 1.0]), "bilinear")
    assert find_weights.cache_info().currsize == find_weights.cache_info().maxsize


# The rows of eccodes' sample N32, and smaller ones.
N32 = (20, 27, 36, 40, 45, 50, 60, 64, 72, 75, 80, 90, 90, 96, 100, 108, 108, 120, 120, 120, *[128] * 12)
REDUCED = {
    "N32": ReducedGrid(32, (*N32, *reversed(N32))),
    "O8": ReducedGrid.octahedral(8),
    "O16": ReducedGrid.octahedral(16),
}
TARGETS = {
    "globe": Grid.regular(5),
    "Gaussian": Grid.gaussian(12),
    "over Greenwich": Grid.regular(2.5, region=(35, 65, -15, 30)),
}


def random_points(grid, times=2):
    latitude, longitude = grid.centres()
    wave = 20 * np.cos(np.radians(latitude)) * np.cos(np.radians(2 * longitude))
    return 280 + wave + np.random.default_rng(1).normal(0, 3, (times, grid.size))


def as_read(grid, values):
    """What open_source makes of such GRIB messages."""
    latitude, longitude = grid.centres()
    attrs = {"gridType": "reduced_gg", "N": grid.number, "pl": list(grid.points)}
    coordinates = {
        "time": np.arange(len(values)),
        "values": ("values", np.arange(grid.size), attrs),
        "latitude": ("values", latitude),
        "longitude": ("values", longitude),
    }
    return xr.DataArray(values, coordinates, ("time", "values"), name="t", attrs={"units": "K"})


def write_grib(grid, values, path):
    handle = eccodes.codes_grib_new_from_samples("reduced_gg_pl_32_grib2")
    try:
        eccodes.codes_set(handle, "N", grid.number)
        eccodes.codes_set_array(handle, "pl", grid.points)
        eccodes.codes_set(handle, "bitsPerValue", 24)
        eccodes.codes_set_values(handle, values)
        with path.open("wb") as file:
            eccodes.codes_write(handle, file)
    finally:
        eccodes.codes_release(handle)


def cdo(chain, folder, target=None):
    if target is not None:
        rows, columns = (" ".join(map(repr, axis.tolist())) for axis in (target.latitude, target.longitude))
        size = f"xsize = {target.shape[1]}\nysize = {target.shape[0]}\n"
        (folder / "target.txt").write_text(f"gridtype = lonlat\n{size}xvals = {columns}\nyvals = {rows}\n")
    command = ["cdo", "-s", "-f", "nc4", "-b", "F64", *chain.split(), "target.nc"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    with xr.open_dataset(folder / "target.nc") as result:
        return result[list(result.data_vars)[-1]].squeeze().values


needs_cdo = pytest.mark.skipif(shutil.which("cdo") is None, reason="cdo is not installed")


@needs_cdo
@pytest.mark.parametrize("target", TARGETS)
def test_nearest_from_a_reduced_grid_equals_cdo(target, tmp_path):
    grid, target = REDUCED["N32"], TARGETS[target]
    index = np.arange(grid.size, dtype=np.float64)
    write_grib(grid, index, tmp_path / "source.grib")
    expected = np.rint(cdo("remapnn,target.txt source.grib", tmp_path, target)).astype(int)
    result = Regridder(grid, target, "nearest")(index).astype(int)
    points, places = np.stack(grid.centres()), np.meshgrid(target.latitude, target.longitude, indexing="ij")
    distances = [great_circle_km(*places, *points[:, chosen]) for chosen in (result, expected)]
    np.testing.assert_allclose(*distances, atol=1e-3)  # where the points differ, they are equally near
    assert (result == expected).mean() > 0.9


@needs_cdo
@pytest.mark.parametrize("rows", ["globe", "Gaussian"])
def test_bilinear_from_a_reduced_grid_equals_cdo(rows, tmp_path):
    """CDO refuses remapbil from reduced grids, but fills their rows linearly to 4 N points: compared at some of these."""
    grid, latitude = REDUCED["N32"], TARGETS[rows].latitude
    target = Grid(latitude[np.abs(latitude) < 87], np.arange(0, 360, 4 * 90 / 32))
    values = random_points(grid)[0]
    write_grib(grid, values, tmp_path / "source.grib")
    expected = cdo("remapbil,target.txt -setgridtype,regular source.grib", tmp_path, target)
    np.testing.assert_allclose(Regridder(grid, target, "bilinear")(values), expected, rtol=0, atol=1e-4)


@needs_cdo
@pytest.mark.parametrize("name", ["O8", "O16"])
@pytest.mark.parametrize("target", TARGETS)
def test_conservative_from_a_reduced_grid_equals_cdo(name, target, tmp_path):
    """CDO knows no cells of reduced grids: given to it is the same field on all columns that edges of any row cut."""
    grid, target = REDUCED[name], TARGETS[target]
    edges = np.unique(np.concatenate([(np.arange(n) + 0.5) * 360 / n for n in set(grid.points)]).round(10))
    edges = np.append(edges, edges[0] + 360)
    centres = (edges[1:] + edges[:-1]) / 2
    fine = Grid(grid.rows.latitude, centres, grid.rows.latitude_bounds, edges)
    values = random_points(grid)[0]
    first = np.cumsum([0, *grid.points[:-1]])
    rows = [
        values[start + np.rint(centres / 360 * n).astype(int) % n] for start, n in zip(first, grid.points, strict=True)
    ]
    dataset = xr.Dataset({"x": (("latitude", "longitude"), rows[::-1])}, fine.coordinates())
    for name, bounds in (("latitude", fine.latitude_bounds), ("longitude", fine.longitude_bounds)):
        dataset[f"{name}_bounds"] = ((name, "side"), np.stack([bounds[:-1], bounds[1:]], axis=1))
        dataset[name].attrs["bounds"] = f"{name}_bounds"
    dataset.to_netcdf(tmp_path / "source.nc")
    plain = Grid(target.latitude, target.longitude)  # CDO ends the target's cells half-way
    expected = cdo("remapcon,target.txt -selname,x source.nc", tmp_path, plain)
    np.testing.assert_allclose(Regridder(grid, plain)(values), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", REDUCED)
def test_reduced_grids_keep_constants_and_integrals(name, method):
    grid, target = REDUCED[name], Grid.regular(4)
    regridder = Regridder(grid, target, method)
    np.testing.assert_allclose(regridder(np.full(grid.size, 287.3)), 287.3, rtol=1e-13)
    if method == "conservative":
        values = random_points(grid)
        heights = np.diff(np.sin(np.radians(grid.rows.latitude_bounds)))[::-1] / 2
        before = values @ np.repeat(heights / grid.points, grid.points)
        area = cell_areas(target)
        np.testing.assert_allclose((regridder(values) * area).sum(axis=(1, 2)) / area.sum(), before, rtol=1e-12)


@pytest.mark.parametrize("chunks", [None, {"time": 1}, {"values": 500}])
def test_regrid_from_points(chunks):
    grid, target = REDUCED["N32"], Grid.regular(10)
    data = as_read(grid, random_points(grid))
    data[0, :40] = np.nan
    expected = Regridder(grid, target)(data.values)
    assert np.isnan(expected).any(axis=(1, 2)).tolist() == [True, False]
    result = regrid(data if chunks is None else data.chunk(chunks), target)
    assert (result.chunks is None) == (chunks is None)
    assert (result.dims, result.attrs) == (("time", "latitude", "longitude"), {"units": "K"})
    np.testing.assert_array_equal(result.compute(scheduler="single-threaded").values, expected)
    both = regrid(data.to_dataset().assign(count=("time", [1, 2])), target)
    assert set(both.variables) == {"t", "count", "time", "latitude", "longitude"}
    assert Grid.of(both) == target


def test_points_that_are_not_those_of_the_grid():
    grid = REDUCED["O8"]
    data = as_read(grid, random_points(grid))
    with pytest.raises(ValueError, match=r"attributes N and pl, got \{\}"):
        ReducedGrid.of(data.assign_coords(values=np.arange(grid.size)))
    moved = data.assign_coords(longitude=data["longitude"] + 1)
    with pytest.raises(ValueError, match=r"values of 'longitude' must be the 544 of ReducedGrid\(O8, 544 points\)"):
        regrid(moved, Grid.regular(10))
    with pytest.raises(ValueError, match=r"N8 has 16 rows of 2 points or more, got 3 rows, the shortest of 20"):
        ReducedGrid(8, (20, 24, 28))
    with pytest.raises(AttributeError, match=r"weights from ReducedGrid\(O8, 544 points\) are one matrix"):
        _ = Regridder(grid, Grid.regular(10)).latitude_weights
