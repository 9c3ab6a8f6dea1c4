"""Figures of learned links: what is drawn where, on which scale, with which words."""

import cartopy.crs as ccrs
import matplotlib
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.collections import LineCollection, PathCollection, QuadMesh

from climapred.grid import Grid, great_circle_km
from climapred.results.links.adjacency import adjacency_dataset
from climapred.results.links.correlations import hub_map, thinned, weight_by_distance
from climapred.results.links.figures import links_figure
from climapred.results.links.maps import great_circle, plot_correlations, plot_distances, plot_hubs, plot_links
from climapred.results.sheet import save_figure

pytestmark = pytest.mark.usefixtures("no_network")

AMERICA = Grid(np.linspace(15, 75, 25), np.linspace(200, 330, 53))
GLOBE = Grid.regular(10)
SETTINGS = dict(matplotlib.rcParams)


def field(grid, *, name="weight", base=20.0, **attrs):
    latitude, longitude = np.meshgrid(np.radians(grid.latitude), np.radians(grid.longitude), indexing="ij")
    values = base + 10 * np.cos(2 * latitude) + 5 * np.sin(3 * longitude)
    return xr.DataArray(values, grid.coordinates(), ("latitude", "longitude"), name, {"units": "1", **attrs})


def panels(figure):
    return [axes for axes in figure.axes if hasattr(axes, "projection")]


def meshes(figure):
    return [next(c for c in axes.collections if isinstance(c, QuadMesh)) for axes in panels(figure)]


def bar_labels(figure):
    return [axes.get_ylabel() for axes in figure.axes if not hasattr(axes, "projection")]


def grey_line(figure):
    return figure.texts[-1].get_text()


def table(*links):
    columns = ["target_latitude", "target_longitude", "source_latitude", "source_longitude", "weight"]
    return pd.DataFrame(links, columns=columns)


@pytest.mark.parametrize("longitude", [-105.0, 255.0])
def test_correlation_map_marks_the_place_and_is_not_blinded_by_it(longitude):
    weights = field(AMERICA, direction="listens", above_floor=1) / 1e4
    weights.loc[{"latitude": 40, "longitude": 255}] = 1.0
    figure = plot_correlations(weights, point=(40, longitude))
    axes, norm = figure.axes[0], meshes(figure)[0].norm
    assert (norm.vmin, norm.vmax < 0.01) == (0, True)
    (star,) = axes.lines
    expected = axes.projection.transform_point(255, 40, ccrs.PlateCarree())
    np.testing.assert_allclose([star.get_xdata()[0], star.get_ydata()[0]], expected)
    assert figure.get_suptitle() == "Learned weights: what 40°N 105°W listens to"
    assert bar_labels(figure) == ["Learned weight, above the floor"]


def test_correlation_point_outside_the_map_is_refused():
    with pytest.raises(ValueError, match=r"point must be \(latitude, longitude\) inside Grid.*got \(-105, 40\)"):
        plot_correlations(field(AMERICA), point=(-105, 40))


def test_pearson_stands_beside_the_weights_and_what_is_not_significant_is_stippled():
    weights, pearson = (
        field(AMERICA, direction="heard"),
        field(AMERICA, name="correlation", base=0.0, long_name="r") / 20,
    )
    marks = (weights > 20).assign_attrs(level=0.1)
    figure = plot_correlations(weights, point=(40, 255), pearson=pearson, significant=marks)
    learned, plain = meshes(figure)
    np.testing.assert_array_equal(learned.get_array(), weights)
    np.testing.assert_array_equal(plain.get_array(), pearson)
    assert (plain.norm.vmin, plain.norm.vmax, plain.cmap.name) == (-1, 1, "RdBu_r")
    assert bar_labels(figure) == ["Learned weight", "Correlation coefficient"]
    left, right = panels(figure)
    (dots,) = [c for c in left.collections if isinstance(c, PathCollection)]
    assert len(dots.get_offsets()) == int((~marks).sum())
    assert not [c for c in right.collections if isinstance(c, PathCollection)]
    assert "dots: not significant (false discovery rate 0.1)" in grey_line(figure)
    assert len(left.lines) == len(right.lines) == 1  # the star
    gap = right.get_position(original=True).x0 - left.get_position(original=True).x1
    assert gap * figure.get_figwidth() > 1  # room for the bar and its label
    with pytest.raises(ValueError, match="pearson must be on the grid of the weights"):
        plot_correlations(weights, point=(40, 255), pearson=pearson[1:])


def test_a_fine_grid_is_stippled_thinly():
    fine = field(Grid.regular(1))
    figure = plot_correlations(fine, point=(40, 255), significant=xr.zeros_like(fine, dtype=bool))
    (dots,) = [c for c in panels(figure)[0].collections if isinstance(c, PathCollection)]
    assert 1000 < len(dots.get_offsets()) < 3000


@pytest.mark.parametrize(
    ("start", "stop"),
    [
        ((0, 0), (0, 90)),
        ((40, 100), (-20, 260)),
        ((60, -170), (50, 160)),
        ((-80, 10), (75, 200)),
        ((10, 20), (-10, 200)),
    ],
)
def test_an_arc_is_the_shortest_way_in_equal_steps(start, stop):
    arc = great_circle(start, stop, count=41)
    steps = great_circle_km(arc[:-1, 1], arc[:-1, 0], arc[1:, 1], arc[1:, 0])
    np.testing.assert_allclose(steps, great_circle_km(*start, *stop) / 40, rtol=1e-6)
    np.testing.assert_allclose(arc[0], start[::-1], atol=1e-9)
    np.testing.assert_allclose((arc[-1] - stop[::-1] + 180) % 360, 180, atol=1e-6)


def arcs_of(figure):
    """Return the lines of every arc; coasts and graticules lie below."""
    return [c for c in panels(figure)[0].collections if isinstance(c, LineCollection) and c.get_zorder() >= 3]


def test_arcs_lead_from_source_to_target_and_the_strongest_is_on_top():
    links = table((60, 280, 30, 210, 0.2), (25, 270, 60, 205, 0.5))
    figure = plot_links(links, AMERICA, source="ls_ntp")
    weak, strong = arcs_of(figure)
    assert strong.get_zorder() > weak.get_zorder()
    assert strong.get_linewidths() > weak.get_linewidths()
    axes = panels(figure)[0]
    project = axes.projection.transform_point
    for arc, link in zip((weak, strong), links.itertuples(), strict=True):
        (line,) = arc.get_segments()
        np.testing.assert_allclose(line[0], project(link.source_longitude, link.source_latitude, ccrs.PlateCarree()))
        np.testing.assert_allclose(line[-1], project(link.target_longitude, link.target_latitude, ccrs.PlateCarree()))
    rings = [marker for marker in axes.lines if marker.get_markerfacecolor() == "white"]
    assert len(axes.lines) == 4
    np.testing.assert_allclose(rings[1].get_xydata()[0], strong.get_segments()[0][0])
    assert "ring: source, dot: target" in grey_line(figure)
    assert figure.get_suptitle() == "Learned links, the strongest"


def test_an_arc_over_the_date_line_leaves_a_map_of_the_globe_and_comes_in_again():
    figure = plot_links(table((35, 140, 40, 235, 0.5), (50, 0, 10, 60, 0.2)), GLOBE)
    inside, over = arcs_of(figure)
    assert (len(inside.get_segments()), len(over.get_segments())) == (1, 2)
    edge = panels(figure)[0].projection.transform_point(180, 45, ccrs.PlateCarree())[0]
    out, back = over.get_segments()
    assert abs(out[-1, 0]) == pytest.approx(abs(back[0, 0]))
    assert out[-1, 0] * back[0, 0] < 0
    assert abs(out[-1, 0]) > 0.9 * edge
    pacific = Grid(np.linspace(10, 60, 11), np.linspace(120, 260, 29))
    assert len(arcs_of(plot_links(table((35, 140, 40, 235, 0.5)), pacific))[0].get_segments()) == 1


def test_without_links_the_map_says_so():
    none = table()
    none.attrs["min_km"] = 1000.0
    figure = plot_links(none, AMERICA)
    assert figure.get_suptitle() == "No learned link beyond 1,000 km"
    assert not arcs_of(figure)


def test_links_that_may_be_luck_are_not_called_none():
    """One link among nodes that are far apart: drawn if it is significant; the title says what is there, or lacking."""
    grid = Grid(np.array([30.0, 60.0]), np.array([230.0, 280.0]))
    weights = np.full((4, 4), 0.1)
    weights[0, 3] = 0.7
    adjacency = adjacency_dataset(weights, grid)
    for p_value, title, arcs in (
        (1e-6, "Significant learned links beyond 1,000 km, the strongest", 1),
        (0.5, "No significant learned link beyond 1,000 km", 0),
    ):
        p_values = xr.full_like(adjacency["weight"], 1.0)
        p_values[0, 3] = p_value
        figure = links_figure("arcs", adjacency.assign(p_value=p_values))
        assert figure.get_suptitle() == title
        assert len(arcs_of(figure)) == arcs


def test_neighbours_of_a_stronger_link_are_left_out():
    links = table((60, 280, 30, 210, 0.9), (61, 281, 31, 211, 0.8), (60, 280, 60, 205, 0.7), (30, 210, 60, 280, 0.6))
    kept = thinned(links, 10, apart_km=1000)
    assert kept["weight"].tolist() == [0.9, 0.7, 0.6]  # another source; the other direction
    assert thinned(links, 2)["weight"].tolist() == [0.9, 0.7]
    assert thinned(links, 10, apart_km=1)["weight"].tolist() == [0.9, 0.8, 0.7, 0.6]


def adjacency(grid):
    weights = np.random.default_rng(0).random((grid.size, grid.size)) ** 8
    return adjacency_dataset(weights / weights.sum(axis=1, keepdims=True), grid)


def test_hubs_share_one_scale_from_zero():
    grid = Grid(np.linspace(20, 60, 5), np.linspace(220, 300, 9))
    hubs = hub_map(adjacency(grid), min_km=1000)
    figure = plot_hubs(hubs, source="ls_ntp")
    listens, heard = meshes(figure)
    np.testing.assert_array_equal(listens.get_array(), hubs["listens"])
    np.testing.assert_array_equal(heard.get_array(), hubs["heard"])
    assert listens.norm.vmin == heard.norm.vmin == 0
    assert listens.norm.vmax == heard.norm.vmax
    assert figure.get_suptitle() == "Hubs of the learned links beyond 1,000 km"
    assert bar_labels(figure) == ["Sum of weights, above the floor"]


def test_weight_against_distance_is_a_curve_for_each_model(tmp_path):
    grid = Grid(np.linspace(20, 60, 5), np.linspace(220, 300, 9))
    curve = weight_by_distance(adjacency(grid), np.linspace(0, 8000, 11))
    figure = plot_distances({"ls_ntp": curve, "agcrn": curve * 2}, uniform=1 / grid.size)
    (axes,) = figure.axes
    first, second, flat = axes.lines
    np.testing.assert_array_equal(first.get_ydata(), curve["weight"].where(curve["weight"] > 0))
    np.testing.assert_array_equal(first.get_xdata(), curve["distance"])
    assert (first.get_label(), second.get_label()) == ("ls_ntp", "agcrn")
    assert set(flat.get_ydata()) == {1 / grid.size}
    assert (axes.get_xlabel(), axes.get_yscale()) == ("Great-circle distance (km)", "log")
    for kind in ("png", "pdf", "svg"):
        assert save_figure(figure, tmp_path / f"d.{kind}").stat().st_size > 1000
    assert dict(matplotlib.rcParams) == SETTINGS
