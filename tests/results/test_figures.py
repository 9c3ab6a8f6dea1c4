"""What ``climapred plot`` draws: of a finished run, and of files of other authors; without a network."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.collections import PathCollection, QuadMesh

from climapred.data.sources import open_source
from climapred.data.statistics import training_statistics
from climapred.data.store import write_statistics
from climapred.grid import Grid
from climapred.results import figures
from climapred.results.figures import Request, draw, parse_place
from climapred.results.links.adjacency import adjacency_dataset
from climapred.results.links.correlations import correlation_map, hub_map
from climapred.results.maps import plot_field, save_figure
from climapred.results.selection import Choice
from climapred.variables import convert_units

GRID = Grid(np.linspace(30, 60, 7), np.linspace(230, 280, 11))
STARTS, LEADS = pd.date_range("2014-01-01", periods=3, freq="6h"), pd.to_timedelta([6, 12], unit="h")
MODELS = ["conv", "graph", "persistence"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A folder laid out as a run leaves it, of plain xarray: its truth is 280 K + hours, forecasts err as they tell."""
    folder = tmp_path_factory.mktemp("runs") / "canada"
    for name in ("forecasts", "correlations"):
        (folder / name).mkdir(parents=True)
    (folder / "recipe.yaml").write_text("name: canada\n")
    hours = np.arange(0, 36, 6)
    pattern = np.add.outer(GRID.latitude, np.zeros(11)) / 10
    truth = xr.Dataset(
        {"air": (("time", "latitude", "longitude"), 280 + hours[:, None, None] + pattern, {"units": "K"})},
        {**GRID.coordinates(), "time": STARTS[0] + pd.to_timedelta(hours, unit="h")},
    )
    truth.to_zarr(folder / "tensors.zarr", consolidated=False, zarr_format=3)
    valid = STARTS.values[:, None] + LEADS.values
    for model, error in (("conv", 1.0), ("graph", -2.0)):
        forecast = truth.sel(time=xr.DataArray(valid, dims=("init_time", "lead_time"))) + error
        forecast = forecast.drop_vars("time").assign_coords(init_time=STARTS, lead_time=LEADS)
        forecast.air.attrs = {"units": "K"}
        forecast.attrs = {"source": f"climapred: {model}", "title": f"Canada: forecasts of {model}"}
        forecast.to_netcdf(folder / f"forecasts/{model}.nc")
    rows = xr.DataArray([1.0, 2.0, 4.0], {"model": MODELS}, ("model",))
    columns = xr.DataArray([1.0, 3.0], {"lead_time": LEADS}, ("lead_time",))
    cells = rows * columns * xr.DataArray(np.ones(GRID.shape), GRID.coordinates(), ("latitude", "longitude"))
    table = {name: (rows * columns).assign_attrs(units="K") for name in ("mae", "rmse", "bias")}
    maps = {f"{name}_map": cells.assign_attrs(units="K") for name in ("mae", "rmse")}
    scores = xr.Dataset({**table, **maps, "mae_lower": rows * columns - 0.5, "mae_upper": rows * columns + 0.5})
    scores.to_netcdf(folder / "scores.nc")
    tidy = scores[["mae", "rmse", "bias"]].to_dataframe().reset_index()
    tidy.insert(1, "lead_hours", tidy.pop("lead_time") / pd.Timedelta(hours=1))
    tidy.to_csv(folder / "scores.csv", index=False)
    weights = np.random.default_rng(0).random((GRID.size, GRID.size))
    adjacency_dataset(weights / weights.sum(axis=1, keepdims=True), GRID).to_netcdf(folder / "correlations/graph.nc")
    return folder


def figure(kind: str, *sources, **request):
    """Return the figure that ``draw`` would save."""
    return getattr(figures, f"_{kind}")(Request([str(source) for source in sources], **request), open_source)


def values(figure) -> list[np.ndarray]:
    panels = [axes for axes in figure.axes if hasattr(axes, "projection")]
    return [np.asarray(next(c for c in axes.collections if isinstance(c, QuadMesh)).get_array()) for axes in panels]


def grey_line(figure) -> str:
    return figure.texts[-1].get_text()


def test_a_field_of_the_tensors_and_of_a_forecast(run):
    (truth,) = values(figure("field", run, choice=Choice(time="2014-01-01T12")))
    np.testing.assert_allclose(truth[0], 280 - 273.15 + 12 + 3, atol=1e-3)
    forecast = figure("field", run, model="conv", choice=Choice(start="2014-01-01T06", leads=[12]))
    np.testing.assert_allclose(values(forecast)[0][0], 280 - 273.15 + 18 + 1 + 3, atol=1e-3)
    assert forecast.get_suptitle().endswith("2014-01-01 18 UTC")
    line = grey_line(forecast)
    assert all(part in line for part in ("climapred: conv", "start 2014-01-01 06 UTC", "lead +12 h", "7 x 11 points"))


def test_a_forecast_of_a_run_stands_beside_its_truth(run):
    shown = figure("forecast", run, model="graph", choice=Choice(start="2014-01-01T06"))
    maps = values(shown)
    assert len(maps) == 6
    for error in maps[4:]:
        np.testing.assert_allclose(error, -2, atol=1e-3)
    assert "Canada, 7 x 11 points" in grey_line(shown)
    assert shown.get_suptitle().startswith("graph: ")


def test_a_forecast_file_alone_and_with_any_truth_is_drawn(run, tmp_path):
    path = run / "forecasts/conv.nc"
    assert len(values(figure("forecast", path))) == 2
    wider = (
        open_source(run / "tensors.zarr")
        .load()
        .rename(latitude="lat", longitude="lon", air="t2m")
        .isel(lat=slice(None, None, -1))
    )
    wider = wider.assign(t2m=convert_units(wider["t2m"], "K", "degC").assign_attrs(units="degC"))
    wider["lat"].attrs["units"], wider["lon"].attrs["units"] = "degrees_north", "degrees_east"
    wider = wider.assign_coords(lon=wider["lon"] - 360).rename(t2m="air")
    wider.to_netcdf(tmp_path / "observed.nc")
    shown = figure("forecast", path, truth=str(tmp_path / "observed.nc"), choice=Choice(region=(35, 55, -130, -90)))
    np.testing.assert_allclose(values(shown)[-1], 1, atol=1e-3)
    wider.isel(time=slice(0, 2)).to_netcdf(tmp_path / "short.nc")
    with pytest.raises(
        ValueError, match=r"short.nc lacks 1 of the 2 times of the forecast, the first 2014-01-01T12:00"
    ):
        figure("forecast", path, truth=str(tmp_path / "short.nc"))


def test_error_maps_are_the_mean_over_leads_or_those_of_one(run):
    np.testing.assert_allclose([maps.mean() for maps in values(figure("errors", run))], [2, 4, 8])
    late = figure("errors", run, choice=Choice(leads=[12]))
    np.testing.assert_allclose([maps.mean() for maps in values(late)], [3, 6, 12])
    assert "lead +12 h" in grey_line(late)
    rmse = values(figure("errors", run, scores=["rmse"], model="graph"))
    np.testing.assert_allclose(rmse, 2 * np.sqrt((1 + 9) / 2))


def test_skill_maps_leave_out_their_reference_and_are_centred_on_zero(run):
    shown = figure("errors", run, against="persistence")
    np.testing.assert_allclose([maps.mean() for maps in values(shown)], [1 - 1 / 16, 1 - 1 / 4])
    assert shown.get_suptitle() == "Skill against persistence"
    mesh = next(c for c in shown.axes[0].collections if isinstance(c, QuadMesh))
    assert mesh.norm.vmin == -mesh.norm.vmax
    with pytest.raises(ValueError, match="has no model 'gfs'; it has conv, graph, persistence"):
        figure("errors", run, against="gfs")
    with pytest.raises(ValueError, match=r"has no map of 'bias'; it has mae_map, rmse_map"):
        figure("errors", run, scores=["bias"])


@pytest.mark.parametrize(("score", "expected"), [("mae", [1, 2]), ("rmse", [1, 2]), ("bias", [1, -2])])
def test_errors_of_forecast_files_are_worked_out(run, score, expected):
    files = [run / "forecasts/conv.nc", run / "forecasts/graph.nc"]
    shown = figure("errors", *files, truth=str(run / "tensors.zarr"), scores=[score])
    np.testing.assert_allclose([maps.mean() for maps in values(shown)], expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"conv.nc need the truth \(--truth FILE\)"):
        figure("errors", files[0])
    with pytest.raises(ValueError, match="mae, rmse and bias can be mapped, got 'acc'"):
        figure("errors", files[0], scores=["acc"], truth="x")


@pytest.mark.parametrize("source", ["", "scores.nc", "scores.csv"])
def test_scores_of_a_run_and_of_its_files(run, source):
    axes = figure("scores", run / source).axes[0]
    assert [line.get_label() for line in axes.lines] == MODELS
    np.testing.assert_allclose(axes.lines[1].get_ydata(), [2, 6])
    np.testing.assert_allclose(axes.lines[1].get_xdata(), [6, 12])
    assert len(axes.collections) == (0 if source == "scores.csv" else 3)  # intervals


def test_tables_that_are_no_scores_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"scores.nc has no score 'ssim'; it has mae, rmse, bias"):
        figure("scores", run, scores=["ssim"])
    with pytest.raises(ValueError, match="holds no scores: wanted models, lead times and columns such as mae, got air"):
        figure("scores", run / "tensors.zarr")
    (tmp_path / "table.csv").write_text("name,mae\na,1\n")
    with pytest.raises(ValueError, match=r"it lacks the columns \['lead_hours', 'model'\]"):
        figure("scores", tmp_path / "table.csv")


@pytest.mark.parametrize("source", ["", "correlations/graph.nc"])
@pytest.mark.parametrize("direction", ["listens", "heard"])
def test_correlations_of_a_place(run, source, direction):
    shown = figure("correlations", run / source, place=(45, -105), direction=direction)
    expected = correlation_map(open_source(run / "correlations/graph.nc").load(), 45, 255, direction=direction)
    np.testing.assert_array_equal(values(shown)[0], expected)
    assert "45°N 105°W" in shown.get_suptitle()


@pytest.mark.parametrize("source", ["", "correlations/graph.nc"])
def test_links_of_a_run_as_arcs_hubs_and_by_distance(run, source):
    adjacency = open_source(run / "correlations/graph.nc").load()
    hubs = values(figure("correlations", run / source, show="hubs", min_km=1500.0))
    for shown, name in zip(hubs, ("listens", "heard"), strict=True):
        np.testing.assert_allclose(shown, hub_map(adjacency, min_km=1500)[name])
    arcs = figure("correlations", run / source, show="arcs", count=3, min_km=2000.0)
    assert arcs.get_suptitle() == "Learned links beyond 2,000 km, the strongest"
    assert len([marker for marker in arcs.axes[0].lines if marker.get_markerfacecolor() == "white"]) == 3
    (axes,) = figure("correlations", run / source, show="distance").axes
    assert axes.lines[0].get_ydata().size == 40


def test_a_map_of_a_run_has_pearson_beside_it_and_stipples_what_is_not_significant(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    random = np.random.default_rng(3)
    times = pd.date_range("2013-01-01", periods=40, freq="6h")
    noise = 280 + random.standard_normal((40, *GRID.shape))
    shutil.rmtree(folder / "tensors.zarr")
    tensors = xr.Dataset(
        {"air": (("time", "latitude", "longitude"), noise, {"units": "K"})}, {**GRID.coordinates(), "time": times}
    )
    tensors.to_zarr(folder / "tensors.zarr", consolidated=False, zarr_format=3)
    known = training_statistics(tensors.isel(time=slice(0, 30)), annual=0, daily=0)
    write_statistics(folder / "tensors.zarr", known)
    path = folder / "correlations/graph.nc"
    with xr.open_dataset(path) as stored:
        adjacency = stored.load()
    p_values = random.random((GRID.size, GRID.size))
    here = int(np.ravel_multi_index((3, 5), GRID.shape))  # 45 N, 105 W
    p_values[here, 7] = 1e-9
    adjacency.assign(p_value=(("node_target", "node_source"), p_values)).to_netcdf(path)
    shown = figure("correlations", folder, place=(45, -105))
    expected = np.corrcoef(noise[:30].reshape(30, -1).T)[here].reshape(GRID.shape)
    np.testing.assert_allclose(values(shown)[1], expected, atol=1e-6)
    dots = [c for c in shown.axes[0].collections if isinstance(c, PathCollection)][-1]
    assert len(dots.get_offsets()) == GRID.size - 1
    arcs = figure("correlations", folder, show="arcs", min_km=0.0)
    assert len([marker for marker in arcs.axes[0].lines if marker.get_markerfacecolor() == "white"]) == 1


def test_places_that_are_none_are_refused(run):
    with pytest.raises(ValueError, match="a correlation map is of a place"):
        figure("correlations", run)
    with pytest.raises(ValueError, match="lies outside the region"):
        figure("correlations", run, place=(0, 0))
    for place in (("Chicago", "Illinois"), ("91N", "0E"), ("40E", "100W"), ("", "")):
        with pytest.raises(ValueError, match="a place is a latitude and a longitude such as 40N 100W or 40 -100, got"):
            parse_place(*place)
    assert parse_place("33.9S", "260") == (-33.9, 260)


def test_models_of_a_run_are_named(run):
    with pytest.raises(ValueError, match=r"holds forecasts of several models: conv, graph; choose one \(--model\)"):
        figure("forecast", run)
    with pytest.raises(ValueError, match="holds no forecasts of 'gru', only of conv, graph"):
        figure("forecast", run, model="gru")


def test_a_run_without_correlations_is_told_so(run, tmp_path):
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(ValueError, match="holds no correlations; is the run finished"):
        figure("correlations", tmp_path, place=(0, 0))


def test_films_of_a_forecast_and_of_a_series(run, tmp_path):
    request = Request([str(run)], model="conv")
    assert draw("animation", request, tmp_path / "a.gif", open_source).read_bytes().startswith(b"GIF89a")
    series = Request([str(run / "tensors.zarr")], Choice(time="2014-01-01/2014-01-01"))
    assert draw("animation", series, tmp_path / "b.gif", open_source).stat().st_size > 1000


def test_too_long_a_film_and_too_many_files_are_refused(run, tmp_path):
    long = xr.Dataset(
        {"t": (("time", "lat", "lon"), np.zeros((501, 2, 2)))},
        {"time": np.arange(501).astype("datetime64[h]").astype("datetime64[ns]"), "lat": [1.0, 2], "lon": [1.0, 2]},
    )
    long.to_netcdf(tmp_path / "long.nc")
    with pytest.raises(ValueError, match=r"long.nc has 501 times; choose at most 500 \(--time FROM/TO\)"):
        draw("animation", Request([str(tmp_path / "long.nc")]), tmp_path / "a.gif", open_source)
    with pytest.raises(ValueError, match="a figure of kind 'field' is made from one file or run, got 2"):
        draw("field", Request(["a", "b"]), tmp_path / "a.png", open_source)


def test_insignificant_cells_are_hatched(run, tmp_path):
    field = xr.Dataset(
        {"d": (("latitude", "longitude"), np.ones(GRID.shape)), "p": (("latitude", "longitude"), np.eye(7, 11))},
        GRID.coordinates(),
    )
    field.to_netcdf(tmp_path / "d.nc")
    shown = figure("field", tmp_path / "d.nc", choice=Choice("d"), hatched="p", centre=0.0)
    (patch,) = [patch for patch in shown.axes[0].patches if patch.get_hatch()]
    assert len(patch.get_path().to_polygons()) == 7  # the diagonal
    assert "hatched: not significant" in grey_line(shown)


OFFLINE = """
import socket, sys
class Refused(socket.socket):
    def __init__(self, family=socket.AF_INET, *rest, **keywords):
        if family != socket.AF_UNIX:  # pairs of these wake the loop in which zarr reads files
            raise AssertionError("a figure must not open a socket")
        super().__init__(family, *rest, **keywords)
def refuse(*_, **__):
    raise AssertionError("a figure must not look for a host")
socket.socket, socket.create_connection, socket.getaddrinfo = Refused, refuse, refuse
from pathlib import Path
from climapred.data.sources import open_source
from climapred.results.figures import Request, draw
run, out = sys.argv[1], Path(sys.argv[2])
for name in ("field.png", "forecast.pdf", "errors.svg", "scores.png", "correlations.png", "animation.gif"):
    kind = name.partition(".")[0]
    model = "graph" if kind in ("forecast", "correlations", "animation") else None
    draw(kind, Request([run], model=model, place=(45.0, 255.0)), out / name, open_source)
for package in ("torch", "lightning", "requests", "pooch"):
    assert package not in sys.modules, package
"""


def test_every_figure_is_drawn_without_a_network(run, tmp_path):
    """In a process of its own, where nothing is cached and every socket is refused; without torch, too."""
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", OFFLINE, str(run), str(tmp_path)], capture_output=True, text=True
    )
    assert (child.returncode, child.stderr) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {
        "field.png",
        "forecast.pdf",
        "errors.svg",
        "scores.png",
        "correlations.png",
        "animation.gif",
    }


def test_a_global_map_of_a_quarter_degree_takes_less_than_three_seconds(tmp_path):
    globe = Grid.regular(0.25)
    north, east = np.meshgrid(np.radians(globe.latitude), np.radians(globe.longitude), indexing="ij")
    temperature = xr.DataArray(
        300 - 45 * np.sin(north) ** 2 + 5 * np.cos(4 * east),
        globe.coordinates(),
        ("latitude", "longitude"),
        "t2m",
        {"units": "K"},
    )
    began = time.process_time()
    save_figure(plot_field(temperature), tmp_path / "globe.png")
    assert time.process_time() - began < 3
