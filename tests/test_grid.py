"""Grids: published latitudes, areas of the sphere, distances, and what is refused."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from climapred.grid import EARTH_RADIUS_KM, Grid, axis_names, cell_areas, descending_axes, great_circle_km
from climapred.reduced import ReducedGrid

SPHERE = 4 * np.pi * (EARTH_RADIUS_KM * 1000) ** 2
GLOBAL = {
    "with poles": Grid.regular(2.5),
    "without pole rows": Grid(np.linspace(-88.75, 88.75, 72), np.arange(72) * 5.0),
    "Gaussian": Grid.gaussian(32),
    "Gaussian read from a file": Grid(Grid.gaussian(32).latitude, Grid.gaussian(32).longitude),
    "from -180": Grid(np.linspace(-90, 90, 19), np.linspace(-180, 170, 36)),
    "float32": Grid(np.linspace(-90, 90, 721, dtype="f4"), np.arange(1440, dtype="f4") * np.float32(0.25)),
}


@pytest.mark.parametrize("name", GLOBAL)
def test_cells_of_a_global_grid_fill_the_sphere(name):
    grid = GLOBAL[name]
    assert grid.periodic
    assert grid.includes_poles
    np.testing.assert_allclose(cell_areas(grid).sum(), SPHERE, rtol=1e-12)
    assert cell_areas(grid).shape == grid.shape


def test_area_of_a_cell():
    # Between the equator and 30 N lies a quarter of the sphere (sin 30 = 1/2, of -1..1); a quarter of that
    # lies within 90 degrees of longitude.
    grid = Grid([15.0, 45.0], [45.0, 135.0], latitude_bounds=[0.0, 30.0, 60.0])
    assert cell_areas(grid)[0, 0] == pytest.approx(SPHERE / 16, rel=1e-12)


@pytest.mark.parametrize(
    ("number", "first", "second"),
    [(32, 87.8638, 85.0965), (48, 88.5722, 86.7225)],  # ECMWF's tables
)
def test_gaussian_latitudes(number, first, second):
    grid = Grid.gaussian(number)
    assert grid.shape == (2 * number, 4 * number)
    np.testing.assert_allclose(grid.latitude[[-1, -2]], [first, second], atol=6e-5)
    np.testing.assert_allclose(grid.latitude, -grid.latitude[::-1], atol=1e-12)
    assert grid.longitude[1] == 90 / number


def test_gaussian_areas_integrate_polynomials_exactly():
    # Gauss-Legendre quadrature with n points is exact to degree 2 n - 1; sin(latitude)^14 has mean 1 / 15.
    grid = Grid.gaussian(4)
    weights = cell_areas(grid).sum(axis=1) / SPHERE
    assert (weights * np.sin(np.radians(grid.latitude)) ** 14).sum() == pytest.approx(1 / 15, rel=1e-12)


def test_polar_edges():
    np.testing.assert_array_equal(Grid.regular(1.5).latitude_bounds[[0, 1, -2, -1]], [-90, -89.25, 89.25, 90])
    # One row is missing: half a cell stays open, and the grid does not reach the pole.
    missing = Grid(np.linspace(-87.5, 87.5, 71), np.arange(144) * 2.5)
    assert not missing.includes_poles
    np.testing.assert_array_equal(missing.latitude_bounds[[0, -1]], [-88.75, 88.75])
    given_edges = Grid([0.0, 89.0], [0.0, 1.0], latitude_bounds=[-1.0, 1.0, 89.5])
    assert given_edges.latitude_bounds[-1] == 89.5


@pytest.mark.parametrize(
    ("spacing", "region", "shape"),
    [
        (0.25, None, (721, 1440)),
        (1.5, None, (121, 240)),
        (0.5, (18, 54, 73, 135), (73, 125)),
        (0.25, (49, 61, -10, 2), (49, 49)),
        (0.1, (0, 0.3, 0, 0.7), (4, 8)),
        (30, (-90, 90, -180, 180), (7, 12)),
    ],
)
def test_regular_counts(spacing, region, shape):
    grid = Grid.regular(spacing, region)
    assert grid.shape == shape
    assert grid.size == shape[0] * shape[1]
    np.testing.assert_allclose(np.diff(grid.latitude), spacing, rtol=1e-9)
    south, north, west, east = region or (-90, 90, 0, 360 - spacing)
    assert (grid.latitude[0], grid.latitude[-1], grid.longitude[0]) == (south, north, west)
    assert grid.longitude[-1] == pytest.approx(east if east < 180 or region is None else east - spacing)
    assert grid.periodic == (region is None or east - west == 360)
    assert grid.includes_poles == (region is None or south == -90)


def test_hash_is_the_same_in_every_process():
    code = "from climapred.grid import Grid; print(Grid.regular(2.5).hash, Grid.gaussian(32).hash)"
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert answer.split() == [Grid.regular(2.5).hash, Grid.gaussian(32).hash]


def test_equality():
    grid = Grid.regular(30)
    assert grid == Grid(np.linspace(-90, 90, 7), np.arange(12) * 30.0 + 1e-9)
    assert grid == Grid(np.linspace(-90, 90, 7, dtype="f4"), np.arange(12, dtype="f4") * 30)
    assert len({grid, Grid.regular(30), Grid.regular(45)}) == 2
    assert grid != Grid(grid.latitude, grid.longitude - 180)
    assert grid != "a grid"
    gaussian = Grid.gaussian(8)
    assert gaussian != Grid(gaussian.latitude, gaussian.longitude)  # the same points, other cells
    assert pickle.loads(pickle.dumps(gaussian)) == gaussian


def test_a_grid_is_frozen():
    latitude = np.linspace(-90, 90, 7)
    grid = Grid(latitude, np.arange(12) * 30.0)
    latitude[0] = 0
    assert grid.latitude[0] == -90
    with pytest.raises(ValueError, match="read-only"):
        grid.latitude[0] = 0
    with pytest.raises(AttributeError, match="cannot assign"):
        grid.periodic = False


def test_of_a_dataset_and_back():
    grid = Grid.regular(0.5, region=(49, 61, -10, 2))
    data = xr.DataArray(np.zeros(grid.shape), grid.coordinates(), ("latitude", "longitude"), name="t2m")
    assert Grid.of(data) == Grid.of(data.to_dataset()) == grid
    assert data["longitude"].attrs == {"standard_name": "longitude", "units": "degrees_east", "axis": "X"}
    assert repr(grid) == "Grid(25 x 25, 49..61 N, -10..2 E)"
    assert repr(Grid.regular(30)) == "Grid(7 x 12, -90..90 N, 0..330 E, periodic)"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grid([1, 0], [0, 1]), r"latitude must increase, got \[1\. 0\.\].*harmonise\(\)"),
        (lambda: Grid([0, 1], [0, 1, 1]), "longitude must increase"),
        (lambda: Grid([0], [0, 1]), r"latitude must be 1-D.*at least 2 points, got shape \(1,\)"),
        (lambda: Grid([0, np.nan], [0, 1]), "latitude must be 1-D, finite"),
        (lambda: Grid(np.zeros((2, 2)), [0, 1]), r"latitude must be 1-D.*got shape \(2, 2\)"),
        (lambda: Grid([-95, 0], [0, 1]), r"latitude must lie in \[-90, 90\], got -95\.0 to 0\.0"),
        (lambda: Grid([0, 91], [0, 1]), r"latitude must lie in \[-90, 90\], got 0\.0 to 91\.0"),
        (
            lambda: Grid([0, 1], np.arange(0, 361, 10)),
            "at most 360 degrees, got 370.0; is the first point rep",
        ),
        (lambda: Grid([0, 1], [0, 1], latitude_bounds=[0, 1]), "latitude_bounds must enclose each of the 2"),
        (lambda: Grid([0, 1], [0, 1], longitude_bounds=[0, 2, 3]), "longitude_bounds must enclose"),
        (lambda: Grid.regular(0), "spacing must be positive, got 0"),
        (lambda: Grid.regular(0.7), "spacing 0.7 must divide the range"),
        (lambda: Grid.regular(1, (10, 5, 0, 1)), r"region must be \(south, north, west, east\).*got \(10, 5"),
        (lambda: Grid.regular(1, (0, 5, 350, 10)), "west < east"),
        (lambda: Grid.gaussian(0), "a Gaussian grid needs number >= 1, got 0"),
        (lambda: Grid.of(xr.Dataset(coords={"lat": [0, 1]})), r"1-D coordinate 'longitude', got \['lat'\]"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("one", "other", "kilometres"),
    [
        ((51.5074, -0.1278), (40.7128, -74.0060), 5570),  # London, New York
        ((51.5074, 359.8722), (40.7128, 285.9940), 5570),  # the same, longitudes from 0
        ((0, 0), (0, 90), np.pi / 2 * EARTH_RADIUS_KM),
        ((90, 12), (-90, 77), np.pi * EARTH_RADIUS_KM),
        ((10, 179.5), (10, -180.5), 0),
        ((0, 0), (1e-6, 0), np.radians(1e-6) * EARTH_RADIUS_KM),  # 11 cm: where the arc cosine fails
    ],
)
def test_known_distances(one, other, kilometres):
    assert great_circle_km(*one, *other) == pytest.approx(kilometres, rel=3e-4, abs=1e-9)


angles = st.tuples(st.floats(-90, 90), st.floats(-360, 360))


@given(angles, angles)
def test_distance_equals_the_angle_between_vectors(one, other):
    def vector(latitude, longitude):
        phi, lam = np.radians([latitude, longitude])
        return np.array([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)])

    a, b = vector(*one), vector(*other)
    expected = EARTH_RADIUS_KM * np.arctan2(np.linalg.norm(np.cross(a, b)), a @ b)
    # At antipodes the haversine keeps half the digits: 1e-8 of the radius.
    assert great_circle_km(*one, *other) == pytest.approx(expected, rel=1e-7, abs=1e-6)
    assert great_circle_km(*other, *one) == pytest.approx(great_circle_km(*one, *other), abs=1e-3)


def test_distances_broadcast():
    latitude, longitude = np.linspace(-60, 60, 5), np.linspace(0, 300, 7)
    distances = great_circle_km(latitude[:, None], longitude, 10, 20)
    assert distances.shape == (5, 7)
    assert distances[3, 2] == great_circle_km(latitude[3], longitude[2], 10, 20)


def on_axes(latitude, longitude, **bounds):
    """A dataset as a file has it: names lat and lon, CF bounds where given."""
    dataset = xr.Dataset(coords={"lat": np.asarray(latitude, float), "lon": np.asarray(longitude, float)})
    for name, edges in bounds.items():
        dataset[name].attrs["bounds"] = f"{name}_bnds"
        dataset[f"{name}_bnds"] = ((name, "bnds"), np.stack([edges[:-1], edges[1:]], axis=1))
    return dataset


@pytest.mark.parametrize(
    ("longitude", "expected"),
    [
        ([0, 90, 180, 270], [0, 90, 180, 270]),
        ([0, 90, 180, -90], [0, 90, 180, 270]),
        ([180, -90, 0, 90], [180, 270, 360, 450]),
        ([-180, -90, 0, 90], [-180, -90, 0, 90]),
        ([90, 0, -90, 180], [-180, -90, 0, 90]),
        ([350, 355, 0, 5], [-10, -5, 0, 5]),
        ([170, 175, -180, -175], [170, 175, 180, 185]),
        ([5, 0, 355, 350], [-10, -5, 0, 5]),
    ],
)
@pytest.mark.parametrize("latitude", [[10, 20, 30], [30, 20, 10]])
def test_of_axes_in_any_direction(latitude, longitude, expected):
    dataset = on_axes(latitude, longitude)
    grid = Grid.of(dataset, any_direction=True)
    np.testing.assert_array_equal(grid.latitude, [10, 20, 30])
    np.testing.assert_array_equal((grid.longitude - expected) % 360, 0)
    np.testing.assert_array_equal(np.diff(grid.longitude), np.diff(expected))
    falls = [name for name, axis in (("lat", latitude), ("lon", longitude)) if axis[0] > axis[1] and axis[0] != 180]
    assert descending_axes(dataset) == falls


def test_of_brings_the_cells_of_the_file():
    gaussian = Grid.gaussian(8)
    edges = {"lat": gaussian.latitude_bounds, "lon": gaussian.longitude_bounds}
    assert Grid.of(on_axes(gaussian.latitude, gaussian.longitude, **edges)) == gaussian
    falling = {"lat": gaussian.latitude_bounds[::-1], "lon": gaussian.longitude_bounds}
    turned = on_axes(gaussian.latitude[::-1], gaussian.longitude, **falling)
    assert Grid.of(turned, any_direction=True) == gaussian
    with pytest.raises(ValueError, match=r"lat must increase; call harmonise\(\) first"):
        Grid.of(turned)  # a field's rows would not be those of the grid
    regular = Grid.regular(30)
    noisy = {"lat": regular.latitude_bounds + 2e-5, "lon": regular.longitude_bounds}
    assert Grid.of(on_axes(regular.latitude, regular.longitude, **noisy)) == regular
    jumping = on_axes([0, 1], [0, 120, -120], lon=np.array([-60, 60, 180, 300.0]))
    np.testing.assert_array_equal(Grid.of(jumping, any_direction=True).longitude_bounds, [-60, 60, 180, 300])
    apart = on_axes([0, 1], [0, 1], lat=np.array([-0.5, 0.5, 1.5]))
    apart["lat_bnds"][1, 0] = 0.7
    with pytest.raises(ValueError, match=r"cells in 'lat_bnds' must touch each other; drop it first"):
        Grid.of(apart)
    other = apart.assign(lat_bnds=(("other", "bnds"), np.zeros((3, 2))))
    with pytest.raises(ValueError, match=r"the bounds 'lat_bnds' must have shape \(2, 2\), got \(3, 2\)"):
        Grid.of(other)


def test_axes_are_found_by_name_standard_name_or_units():
    axes = {"y": ("y", [0.0, 1.0], {"standard_name": "latitude"}), "x": ("x", [0.0, 1.0], {"units": "degrees_east"})}
    assert axis_names(xr.Dataset(coords=axes)) == ("y", "x")
    assert axis_names(xr.Dataset(coords={**axes, "lat": [0.0, 1.0]})) == ("lat", "x")


@pytest.mark.parametrize(
    ("name", "grid"), [("1.5", Grid.regular(1.5)), ("N8", Grid.gaussian(8)), ("f8", Grid.gaussian(8))]
)
def test_named(name, grid):
    assert Grid.named(name) == grid


def test_named_in_a_region():
    assert Grid.named("2.5", (20, 70, -20, 30)) == Grid.regular(2.5, (20, 70, -20, 30))
    inside = Grid.named("N16", (20, 70, -20, 30))
    full = Grid.gaussian(16)
    np.testing.assert_array_equal(inside.latitude, full.latitude[(full.latitude >= 20) & (full.latitude <= 70)])
    np.testing.assert_allclose(inside.longitude, 5.625 * np.arange(-3, 6))
    assert set(inside.latitude_bounds.round(9)) <= set(full.latitude_bounds.round(9))
    with pytest.raises(ValueError, match=r"a grid is a spacing in degrees such as 1\.5, or N48 or F48, got 'T63'"):
        Grid.named("T63")


@pytest.mark.parametrize("west", [-360, -180, -90.0, 0, 3, 90, 355, 700])
def test_crop_turns_to_the_region(west):
    grid = Grid(np.linspace(-90, 90, 19), np.linspace(-180, 170, 36))
    part = grid.crop((-30, 40, west, west + 95))
    first = np.ceil(west / 10) * 10
    np.testing.assert_allclose(part.longitude, np.arange(first, west + 96, 10)[: part.shape[1]], atol=1e-9)
    assert part.longitude[-1] > west + 85
    np.testing.assert_array_equal(part.latitude, np.arange(-30, 41, 10))
    np.testing.assert_allclose(part.longitude_bounds[[0, -1]], part.longitude[[0, -1]] + [-5, 5])


def test_crop_of_a_region():
    box = Grid.regular(1, region=(50, 60, 350, 362))
    assert box.crop((52, 55, -5, 1)) == Grid.regular(1, region=(52, 55, -5, 1))
    assert box.crop((0, 90, -40, 40)) == box._shifted(0)
    with pytest.raises(ValueError, match=r"region \(south, north, west, east\) \(0, 10, 0, 5\) must hold 2 x 2 points"):
        box.crop((0, 10, 0, 5))


def test_points_are_the_same_up_to_the_noise_of_float32():
    grid = Grid.regular(0.3, region=(20, 50, 200, 260))
    noisy = Grid(grid.latitude.astype(np.float32).astype(float), grid.longitude.astype(np.float32).astype(float))
    assert noisy != grid
    assert grid.same_points(noisy)
    assert not grid.same_points(Grid(grid.latitude + 2e-4, grid.longitude))
    assert not grid.same_points(grid.crop((20, 40, 200, 260)))
    assert not Grid.gaussian(4).same_points(ReducedGrid.octahedral(4))
