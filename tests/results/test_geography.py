"""Where fields lie on maps: projections, edges, seams, coasts and borders."""

from pathlib import Path

import cartopy.crs as ccrs
import numpy as np
import pytest
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from climapred.grid import Grid
from climapred.results import geography
from climapred.results.geography import Geography, from_antimeridian, lines_within

pytestmark = pytest.mark.usefixtures("no_network")

PROJECTIONS = {
    "uk": ccrs.Mercator,
    "fiji": ccrs.Mercator,
    "america": ccrs.LambertConformal,
    "globe": ccrs.Robinson,
    "north": ccrs.NorthPolarStereo,
    "south": ccrs.SouthPolarStereo,
    "tropics": ccrs.PlateCarree,
}


def field(grid: Grid) -> xr.DataArray:
    values = grid.latitude[:, None] + np.sin(np.radians(3 * grid.longitude))
    return xr.DataArray(values, grid.coordinates(), ("latitude", "longitude"))


def draw(grid: Grid, **scale):
    """Draw a field on a small sheet, and return its axes and its mesh."""
    shown = from_antimeridian(field(grid))
    place = Geography.of(shown)
    figure = Figure(figsize=(4.05, 4.05 * place.aspect), dpi=100, facecolor="white")  # an odd number of pixels
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.1, 0.1, 0.8, 0.8), projection=place.projection)
    return axes, place.draw(axes, shown.values, **scale)


def pixels(figure: Figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3] / 255


def test_every_region_shows_all_cells_to_their_edges(region, regions):
    grid = regions[region]
    axes, mesh = draw(grid)
    assert type(axes.projection) is PROJECTIONS[region]
    longitude, latitude = np.meshgrid(grid.longitude_bounds, grid.latitude_bounds)
    points = axes.projection.transform_points(ccrs.PlateCarree(), longitude, latitude)
    (west, east), (south, north) = axes.get_xlim(), axes.get_ylim()
    slack = 1e-3 * (east - west)
    assert points[..., 0].min() >= west - slack
    assert points[..., 0].max() <= east + slack
    assert points[..., 1].min() >= south - slack
    assert points[..., 1].max() <= north + slack
    assert mesh.get_array().shape == grid.shape
    assert pixels(axes.figure).std() > 0.1


@pytest.mark.parametrize("name", ["globe", "north", "south"])
def test_periodic_field_fills_its_map_without_a_seam(regions, name):
    # One colour and no lines: every pixel inside the outline is red, none is white. A row of pixels has a middle one,
    # in which the seam of a polar map lies.
    axes, mesh = draw(regions[name], cmap=ListedColormap(["red"]))
    for artist in [*axes.collections, *axes.texts]:
        if artist is not mesh:
            artist.remove()
    axes.spines["geo"].set_visible(False)
    shown = pixels(axes.figure)
    height, width = shown.shape[:2]
    box = axes.get_position()
    top, bottom = (1 - box.y1) * height, (1 - box.y0) * height
    for row in np.linspace(0.95 * top + 0.05 * bottom, 0.05 * top + 0.95 * bottom, 100).astype(int):
        line = shown[row, int(box.x0 * width) : int(box.x1 * width)]
        inside = np.flatnonzero((line < 0.95).any(axis=-1))
        filled = line[inside[0] + 8 : inside[-1] - 8]  # the outline itself is antialiased
        assert (filled[:, 0] > 0.9).all()
        assert (filled[:, 1:] < 0.1).all()


def test_global_map_is_centred_on_greenwich_and_keeps_values_in_place(regions):
    globe = regions["globe"]
    axes, mesh = draw(globe)
    assert abs(axes.projection.proj4_params["lon_0"]) <= 2.5
    centre = mesh.get_array()[:, globe.longitude.size // 2]
    np.testing.assert_allclose(centre, field(globe).sel(longitude=0))


@pytest.mark.parametrize("longitude", [-105.0, 255.0, 615.0])
def test_a_point_is_placed_in_either_longitude_convention(regions, longitude):
    america = Geography.of(field(regions["america"]))
    expected = america.projection.transform_point(255, 40, ccrs.PlateCarree())
    np.testing.assert_allclose(america.place((40, longitude)), expected)


def test_a_point_outside_the_map_is_refused(regions):
    america = Geography.of(field(regions["america"]))
    for point in ((-105, 40), (40, 0)):
        with pytest.raises(ValueError, match=rf"\(latitude, longitude\) inside Grid.*got \({point[0]}, {point[1]}\)"):
            america.place(point)


def coast_length(grid: Grid, border=False) -> float:
    return sum(np.hypot(*np.diff(line, axis=0).T).sum() for line in lines_within(grid, border=border))


def test_coastlines_are_near_known_capes_in_the_longitudes_of_the_grid(regions):
    # Land's End 50.07 N 5.71 W; North Cape of New Zealand 34.4 S 173.05 E; Cape Horn 55.98 S 67.27 W.
    for grid, place, tolerance in (
        (regions["uk"], (-5.71, 50.07), 0.1),
        (Grid(np.linspace(-48, -34, 8), np.linspace(165, 180, 8)), (173.05, -34.4), 0.1),
        (Grid(np.linspace(-60, -50, 8), np.linspace(280, 300, 8)), (292.73, -55.98), 0.3),
    ):
        points = np.concatenate(list(lines_within(grid, border=False)))
        assert np.hypot(*(points - place).T).min() < tolerance


def test_coast_of_ireland_and_the_border_across_it():
    ireland = Grid(np.linspace(51, 55.5, 5), np.linspace(-10.7, -5.3, 5))
    border = np.concatenate(list(lines_within(ireland, border=True, margin=-0.5)))
    assert border[:, 1].min() > 53.9  # Northern Ireland
    assert coast_length(ireland) > coast_length(ireland, border=True) > 1


@pytest.mark.parametrize("start", [-180.0, -2.5, 0.0, 100.0])
def test_no_line_crosses_the_seam_wherever_it_is(start):
    grid = Grid(np.linspace(-87.5, 87.5, 36), start + np.arange(0, 360, 5.0))
    lines = list(lines_within(grid, border=False))
    assert max(np.abs(np.diff(line[:, 0])).max() for line in lines) < 30
    west, east = grid.longitude_bounds[[0, -1]]
    assert all((line[:, 0] >= west - 1e-9).all() and (line[:, 0] <= east + 1e-9).all() for line in lines)
    # Cut or not, the coasts of the world are as long; sides of 180 E and of the South Pole would add hundreds.
    reference = Grid(np.linspace(-87.5, 87.5, 36), np.arange(-180, 180, 5.0))
    assert coast_length(grid) == pytest.approx(coast_length(reference), rel=1e-6)


def test_cut_at_the_seam_interpolates_the_latitude():
    line = np.array([[179.0, 10], [-179, 20], [-178, 20]])
    points, joined = geography._cut_at_seam(line, np.array([True, True]), 0.0)
    np.testing.assert_allclose(points, [[179, 10], [180, 15], [-180, 15], [-179, 20], [-178, 20]])
    assert joined.tolist() == [True, False, True, True]


def test_coastline_files_are_small():
    folder = Path(geography.__file__).parent
    assert (folder / "coastlines_110m.npz").stat().st_size < 60_000
    assert (folder / "coastlines_50m.npz").stat().st_size < 400_000
