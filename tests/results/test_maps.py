"""Figures: what is drawn, in which units, colours and words; how they are saved."""

import os
import time
from pathlib import Path

import cartopy.crs as ccrs
import matplotlib
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib import image
from matplotlib.collections import QuadMesh

from climapred.grid import Grid, cell_areas
from climapred.results.maps import (
    plot_errors,
    plot_field,
    plot_forecast,
    plot_scores,
    save_figure,
    temperature_colours,
)

pytestmark = pytest.mark.usefixtures("no_network")

DATA = Path(os.environ.get("CLIMAPRED_DATA", Path(__file__).parents[2] / "../shared/data"))
UK = Grid(np.linspace(50, 58, 9), np.linspace(-10, 2, 13))
AMERICA = Grid(np.linspace(15, 75, 25), np.linspace(200, 330, 53))
SETTINGS = dict(matplotlib.rcParams)


def field(grid, *, name="t2m", base=280.0, **attrs):
    latitude, longitude = np.meshgrid(np.radians(grid.latitude), np.radians(grid.longitude), indexing="ij")
    values = base + 10 * np.cos(2 * latitude) + 5 * np.sin(3 * longitude)
    return xr.DataArray(values, grid.coordinates(), ("latitude", "longitude"), name, {"units": "K", **attrs})


def pair(grid=UK, leads=6, seed=0):
    lead_time = pd.to_timedelta(np.arange(1, leads + 1) * 6, unit="h")
    truth = field(grid).expand_dims(lead_time=lead_time)
    forecast = truth + np.random.default_rng(seed).normal(size=truth.shape)
    return truth, forecast.assign_coords(init_time=np.datetime64("2014-01-17T00", "ns"))


def meshes(figure):
    panels = [axes for axes in figure.axes if hasattr(axes, "projection")]
    return [next(c for c in axes.collections if isinstance(c, QuadMesh)) for axes in panels]


def bar_labels(figure):
    return [axes.get_ylabel() for axes in figure.axes if not hasattr(axes, "projection")]


def texts(figure):
    return [text.get_text() for text in figure.texts]


def pixels(figure, tmp_path):
    return image.imread(save_figure(figure, tmp_path / "map.png"))[..., :3]


@pytest.fixture(scope="module")
def field_figure():
    dated = field(UK, source="ERA5").assign_coords(time=np.datetime64("2019-03-02T06", "ns"))
    return plot_field(dated)


@pytest.fixture(scope="module")
def forecast_figure():
    return plot_forecast(*pair(), model="ls_ntp")


def test_temperature_is_drawn_in_celsius(field_figure):
    np.testing.assert_allclose(meshes(field_figure)[0].get_array(), field(UK) - 273.15)
    assert bar_labels(field_figure) == ["2 metre temperature (°C)"]


def test_difference_of_temperatures_is_drawn_in_kelvin_round_zero():
    # xarray keeps units and name of a difference; its values say that it is none of a temperature.
    error = plot_field(field(UK, base=0), centre=0.0)
    (mesh,) = meshes(error)
    np.testing.assert_allclose(mesh.get_array(), field(UK, base=0))
    assert bar_labels(error) == ["2 metre temperature (K)"]
    assert mesh.norm.vmin == -mesh.norm.vmax
    assert mesh.cmap.name == "RdBu_r"


def test_pressure_is_drawn_in_hectopascal_and_limits_are_kept():
    figure = plot_field(field(UK, name="msl", base=101325.0, units="Pa"), limits=(1000, 1020), label="MSLP")
    assert (meshes(figure)[0].norm.vmin, meshes(figure)[0].norm.vmax) == (1000, 1020)
    assert float(meshes(figure)[0].get_array().mean()) == pytest.approx(1013.25, abs=0.2)
    assert bar_labels(figure) == ["MSLP"]


def test_title_names_quantity_and_time_and_the_grey_line_the_grid(field_figure):
    assert field_figure.get_suptitle() == "2 metre temperature, 2019-03-02 06 UTC"
    assert any("ERA5, 9 x 13 points" in text and "climapred" in text for text in texts(field_figure))


def test_missing_values_are_left_out_and_constant_fields_drawn(tmp_path):
    masked = plot_field(field(UK).where(field(UK).longitude > -6))
    assert np.isfinite([meshes(masked)[0].norm.vmin, meshes(masked)[0].norm.vmax]).all()
    assert (pixels(masked, tmp_path) == np.float32(0xDD / 255)).all(axis=-1).mean() > 0.05
    constant = meshes(plot_field(field(UK) * 0 + 280))[0].norm
    assert constant.vmin < 280 - 273.15 < constant.vmax


def test_fields_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match=r"t2m must have the dims \('latitude', 'longitude'\).*select or average"):
        plot_field(field(UK).expand_dims(time=2))
    with pytest.raises(ValueError, match="latitude must increase"):
        plot_field(field(UK)[::-1])
    with pytest.raises(ValueError, match="no finite value"):
        plot_field(field(UK) * np.nan)


def test_forecast_and_truth_share_a_scale_and_errors_are_symmetric(forecast_figure):
    truth, forecast = pair()
    drawn = meshes(forecast_figure)
    assert len(drawn) == 9
    assert len({id(mesh.norm) for mesh in drawn[:6]}) == 1
    assert len({id(mesh.norm) for mesh in drawn[6:]}) == 1
    assert drawn[6].norm.vmin == -drawn[6].norm.vmax < 0
    for column, lead in enumerate((0, 2, 5)):
        np.testing.assert_allclose(drawn[column].get_array(), truth[lead] - 273.15)
        np.testing.assert_allclose(drawn[3 + column].get_array(), forecast[lead] - 273.15)
        np.testing.assert_allclose(drawn[6 + column].get_array(), forecast[lead] - truth[lead], atol=1e-6)


def test_forecast_texts_name_model_start_leads_rows_and_units(forecast_figure):
    assert forecast_figure.get_suptitle() == "ls_ntp: 2 metre temperature, start 2014-01-17 00 UTC"
    assert [axes.get_title() for axes in forecast_figure.axes[:3]] == [
        "+6 h, 2014-01-17 06 UTC",
        "+18 h, 2014-01-17 18 UTC",
        "+36 h, 2014-01-18 12 UTC",
    ]
    rows = {text.get_text() for axes in forecast_figure.axes for text in axes.texts}
    assert rows >= {"Truth", "Forecast", "Error"}
    assert bar_labels(forecast_figure) == ["2 metre temperature (°C)", "Forecast − truth (K)"]
    truth, forecast = pair()
    error = (forecast - truth)[0].values
    mean = np.average(np.abs(error), weights=cell_areas(UK))
    assert forecast_figure.axes[6].get_title().startswith(f"MAE {mean:.3g} K")


def test_one_of_several_starts_is_chosen():
    truth, forecast = pair()
    starts = pd.date_range("2014-01-17", periods=3, freq="D")
    several = xr.concat([forecast + step for step in range(3)], pd.Index(starts, name="init_time"), coords="minimal")
    figure = plot_forecast(truth, several, model="x", init_time="2014-01-18", leads=[6, np.timedelta64(36, "h")])
    for mesh, lead in zip(meshes(figure)[2:4], (0, 5), strict=True):
        np.testing.assert_allclose(mesh.get_array(), forecast[lead] + 1 - 273.15)
    assert "start 2014-01-18 00 UTC" in figure.get_suptitle()
    with pytest.raises(ValueError, match="forecast holds 3 starts, 2014-01-17 00 UTC to 2014-01-19 00 UTC; choose"):
        plot_forecast(truth, several, model="x")
    with pytest.raises(ValueError, match="forecast has no start 2015-01-01 00 UTC"):
        plot_forecast(truth, several, model="x", init_time="2015-01-01")


def test_forecast_errors_say_what_is_wrong():
    truth, forecast = pair()
    with pytest.raises(ValueError, match=r"has no lead \+5 h; it has \+6 h, \+12 h"):
        plot_forecast(truth, forecast, model="x", leads=[5])
    with pytest.raises(ValueError, match=r"truth has no lead \+36 h"):
        plot_forecast(truth[:3], forecast, model="x")
    with pytest.raises(ValueError, match=r"on the grid of truth, Grid\(9 x 13"):
        plot_forecast(truth, forecast[:, 1:], model="x")
    with pytest.raises(ValueError, match="units of truth, 'K', got 'degC'"):
        plot_forecast(truth, forecast.assign_attrs(units="degC"), model="x")


def test_error_maps_share_one_scale_from_zero():
    errors = {f"model {n}": field(UK, base=11.0 + n) / 10 for n in range(5)}
    figure = plot_errors(errors)
    assert len(meshes(figure)) == 5
    assert len({id(mesh.norm) for mesh in meshes(figure)}) == 1
    assert meshes(figure)[0].norm.vmin == 0
    assert bar_labels(figure) == ["Mean absolute error (K)"]
    mean = np.average(errors["model 4"], weights=cell_areas(UK))
    assert figure.axes[4].get_title() == f"model 4: {mean:.3g} K"
    stacked = xr.concat(list(errors.values()), pd.Index(list(errors), name="model"), coords="minimal")[2:4]
    np.testing.assert_array_equal(meshes(plot_errors(stacked))[1].get_array(), meshes(figure)[3].get_array())


def scores():
    leads = pd.to_timedelta([6, 12, 18, 24], unit="h")
    names = ["ls_ntp", "convlstm", "persistence"]
    values = np.arange(12.0).reshape(3, 4) / 10
    return xr.Dataset(
        {
            name: (("model", "lead_time"), values * scale, {"units": "K"})
            for name, scale in (("mae", 1), ("rmse", 2), ("bias", -1))
        },
        {"model": names, "lead_time": leads},
    )


def test_score_curves_are_against_hours_and_baselines_are_grey_and_dashed():
    figure = plot_scores(scores())
    mae, rmse, bias = figure.axes
    lines = {line.get_label(): line for line in mae.lines}
    np.testing.assert_array_equal(lines["convlstm"].get_xdata(), [6, 12, 18, 24])
    np.testing.assert_array_equal(lines["convlstm"].get_ydata(), scores()["mae"][1])
    np.testing.assert_array_equal(rmse.lines[0].get_ydata(), scores()["rmse"][0])
    assert lines["persistence"].get_linestyle() == "--"
    red, green, blue = matplotlib.colors.to_rgb(lines["persistence"].get_color())
    assert red == green == blue
    assert lines["ls_ntp"].get_color() == "#0072B2"
    assert [axes.get_ylabel() for axes in (mae, rmse, bias)] == ["MAE (K)", "RMSE (K)", "Bias (K)"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "ls_ntp",
        "convlstm",
        "persistence",
    ]
    with pytest.raises(ValueError, match=r"scores lack the variables \['rmse'\]"):
        plot_scores(scores().drop_vars("rmse"))


def oklab(colours):
    """Ottosson's Oklab of sRGB colours, shape (n, 3)."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    to_lms = [
        [0.41222147, 0.53633254, 0.05144599],
        [0.21190350, 0.68069955, 0.10739696],
        [0.08830246, 0.28171884, 0.62997870],
    ]
    to_lab = [
        [0.21045426, 0.79361779, -0.00407205],
        [1.97799850, -2.42859221, 0.45059371],
        [0.02590404, 0.78277177, -0.80867577],
    ]
    return np.cbrt(linear @ np.transpose(to_lms)) @ np.transpose(to_lab)


def test_temperature_colours_step_evenly_and_lightness_peaks_in_the_middle():
    colours = oklab(temperature_colours()(np.arange(256))[:, :3])
    steps = np.linalg.norm(np.diff(colours[::8], axis=0), axis=1)
    assert steps.std() < 0.06 * steps.mean()
    lightness = np.diff(colours[:, 0])
    assert (lightness[:125] > 0).all()
    assert (lightness[131:] < 0).all()


def test_temperature_colours_are_told_apart_without_green_cones():
    # Deuteranopia in linear light after Vienot, Brettel and Mollon (1999): red and green see the same.
    colours = temperature_colours()(np.arange(256))[:, :3] ** 2.2
    seen = colours @ np.transpose([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    lab = oklab(np.clip(seen, 0, 1) ** (1 / 2.2))
    assert np.linalg.norm(lab[:110] - lab[:145:-1], axis=1).min() > 0.08  # cold against warm of the same lightness


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_figure_is_saved_with_its_title_and_without_a_date(field_figure, tmp_path, suffix, magic):
    path = save_figure(field_figure, tmp_path / f"map.{suffix}")
    content = path.read_bytes()
    assert content.startswith(magic)
    assert b"2 metre temperature, 2019-03-02 06 UTC" in content
    assert b"CreationDate" not in content
    assert b"dc:date" not in content
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_failed_save_leaves_the_old_file(field_figure, tmp_path, monkeypatch):
    path = tmp_path / "map.png"
    path.write_text("old")

    def broken(file, **_):
        Path(file).write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(field_figure, "savefig", broken)
    with pytest.raises(OSError, match="disk full"):
        save_figure(field_figure, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match=r"path must end in .png, .pdf or .svg, got 'map.jpg'"):
        save_figure(field_figure, tmp_path / "map.jpg")


def test_nothing_global_changes(field_figure, forecast_figure):
    assert dict(matplotlib.rcParams) == SETTINGS


def overlaps(figure):
    """Return pairs of texts that are drawn over each other."""
    renderer = figure.canvas.get_renderer()
    figure.draw_without_rendering()
    artists = list(figure.texts)
    for axes in figure.axes:
        artists += [*axes.texts, axes.title]
        if not hasattr(axes, "projection"):
            artists += [axes.yaxis.label, *axes.get_yticklabels()]
    drawn = [(a.get_text(), a.get_window_extent(renderer)) for a in artists if a.get_text() and a.get_visible()]
    return [
        (first, second)
        for index, (first, box) in enumerate(drawn)
        for second, other in drawn[:index]
        if box.overlaps(other)
    ]


def test_no_texts_overlap_in_a_map(region, regions):
    assert not overlaps(plot_field(field(regions[region], source="a source of data")))


@pytest.mark.parametrize("name", ["uk", "america", "globe", "south", "tropics"])  # one of each projection
def test_no_texts_overlap_in_rows_of_maps(name, regions):
    assert not overlaps(plot_forecast(*pair(regions[name]), model="a_model_with_a_name", leads=[6, 12, 24, 36]))


@pytest.mark.skipif(not (DATA / "air.sig995.2013.nc").exists(), reason="shared data missing")
def test_real_forecast_figure_is_fast_and_not_blank(tmp_path):
    with xr.open_dataset(DATA / "air.sig995.2013.nc") as dataset:
        air = dataset["air"].rename(lat="latitude", lon="longitude").sortby("latitude")[60:67].load()
    leads = pd.to_timedelta(np.arange(1, 7) * 6, unit="h")
    truth = air[1:].rename(time="lead_time").assign_coords(lead_time=leads).assign_attrs(units="K")
    forecast = truth.copy(data=np.broadcast_to(air[0], truth.shape)).assign_coords(init_time=air["time"].values[0])
    start = time.process_time()
    shown = pixels(plot_forecast(truth, forecast, model="persistence"), tmp_path)
    assert time.process_time() - start < 3
    assert shown.std() > 0.1


def test_without_a_truth_the_forecast_stands_alone():
    figure = plot_forecast(None, pair()[1], model="ls_ntp")
    assert len(meshes(figure)) == 3
    assert bar_labels(figure) == ["2 metre temperature (°C)"]
    assert figure.axes[2].get_title() == "+36 h, 2014-01-18 12 UTC"
    assert not overlaps(figure)


def test_grey_line_tells_model_data_start_lead_and_software():
    truth, forecast = pair()
    figure = plot_forecast(truth.assign_attrs(source="ERA5"), forecast.assign_attrs(source="ls_ntp (d6c41)"), model="x")
    line = texts(figure)[-1]
    assert line.startswith("ls_ntp (d6c41)  ·  ERA5, 9 x 13 points  ·  start 2014-01-17 00 UTC")
    assert "climapred" in line
    assert "start 2014-01-17 00 UTC  ·  lead +12 h" in texts(plot_field(forecast[1]))[-1]


def hatches(figure):
    return [
        [patch for patch in axes.patches if patch.get_hatch()] for axes in figure.axes if hasattr(axes, "projection")
    ]


@pytest.mark.parametrize("name", ["america", "globe", "north"])
def test_hatching_covers_the_cells_of_its_mask_and_no_others(name, regions):
    mask = field(regions[name]) > float(field(regions[name]).quantile(0.6))
    figure = plot_field(field(regions[name]), hatched=mask)
    [[patch]] = hatches(figure)
    path, projection = patch.get_path(), figure.axes[0].projection
    outlines = path.to_polygons(closed_only=False)
    latitude, longitude = np.meshgrid(mask.latitude, mask.longitude, indexing="ij")
    centres = projection.transform_points(ccrs.PlateCarree(), longitude, latitude)[..., :2].reshape(-1, 2)
    inside = np.any([matplotlib.path.Path(outline).contains_points(centres) for outline in outlines], axis=0)
    away = np.abs(latitude.ravel()) < 87  # cells at a pole have no corner of their own
    assert (inside == mask.values.ravel())[away].all()
    assert any("hatched: not significant" in text for text in texts(figure))


def test_nothing_is_hatched_where_all_is_significant_and_other_masks_are_refused():
    assert hatches(plot_field(field(UK), hatched=field(UK) < 0)) == [[]]
    with pytest.raises(ValueError, match=r"hatched must be bool on Grid\(9 x 13.*got float64 on Grid\(9 x 13"):
        plot_field(field(UK), hatched=field(UK))
    with pytest.raises(ValueError, match=r"hatched must be bool on Grid\(9 x 13.*got bool on Grid\(8 x 13"):
        plot_field(field(UK), hatched=(field(UK) > 0)[1:])


def test_skill_maps_diverge_round_zero_and_are_hatched_model_by_model():
    skill = xr.concat(
        [field(UK, base=-11.0), field(UK, base=5.0)], pd.Index(["a", "b"], name="model"), coords="minimal"
    )
    skill = (skill / 20).assign_attrs(units="1")
    mask = skill.isel(model=[1, 0]) > 0  # another order of the models
    figure = plot_errors(skill, score="Skill against climatology", centre=0.0, cmap="BrBG", hatched=mask)
    mesh = meshes(figure)[0]
    assert (mesh.norm.vmin, mesh.cmap.name) == (-mesh.norm.vmax, "BrBG")
    assert [len(found) for found in hatches(figure)] == [int((skill[0] > 0).any()), 1]
    assert bar_labels(figure) == ["Skill against climatology"]
    assert "−" in figure.axes[0].get_title()


@pytest.mark.parametrize("name", ["north", "globe"])
def test_freezing_line_runs_across_the_seam(name, regions):
    # Zonal values: the line is a parallel, closed about the pole, and from edge to edge of a global map.
    grid = regions[name]
    zonal = field(grid) * 0 + 273.15 + (60.1 - np.abs(xr.DataArray(grid.latitude, {"latitude": grid.latitude})))
    axes = plot_field(zonal.assign_attrs(units="K")).axes[0]
    middle = axes.projection.proj4_params["lon_0"]
    (line,) = [c for c in axes.collections if type(c).__name__ == "GeoContourSet"]
    for path in line.get_paths()[0]._iter_connected_components():
        points = path.vertices
        if name == "north":
            np.testing.assert_allclose(points[0], points[-1], atol=1)
        else:
            edge = axes.projection.transform_point(middle + 179.999, 60.1, ccrs.PlateCarree())[0]
            assert np.abs(points[:, 0]).max() == pytest.approx(edge, rel=0.01)
