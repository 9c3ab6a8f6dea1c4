"""Fields picked from files of any author: axes, times, leads, levels, regions."""

import cftime
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from climapred.grid import Grid
from climapred.results.selection import Choice, as_forecast, at_time, between, cropped, leads_of, pick, upright

LATITUDE, LONGITUDE = np.linspace(60, 40, 5), np.arange(0, 360, 30.0)


def dataset(
    dims=(), coords=None, *, name="t", units="K", longitude=LONGITUDE, latitude=LATITUDE, spelling=("lat", "lon")
):
    """A field whose every value tells its place: latitude + 1000 * longitude (0 to 360), plus the index of each dim."""
    coords = coords or {}
    sizes = [np.size(coords[dim]) if dim in coords else 3 for dim in dims]
    place = latitude[:, None] + 1000.0 * (np.asarray(longitude) % 360)
    steps = np.arange(int(np.prod(sizes))).reshape(*sizes, 1, 1) * 1e6 if dims else 0
    north, east = spelling
    axes = {
        north: (north, latitude, {"units": "degrees_north"}),
        east: (east, np.asarray(longitude), {"units": "degrees_east"}),
    }
    return xr.Dataset({name: ((*dims, north, east), place + steps, {"units": units})}, {**axes, **coords})


@pytest.mark.parametrize(
    ("longitude", "expected"),
    [
        ([0.0, 1, 358, 359], [-2, -1, 0, 1]),  # torn apart at Greenwich
        ([358.0, 359, 0, 1], [-2, -1, 0, 1]),
        ([178.0, 179, -180, -179], [178, 179, 180, 181]),
        ([3.0, 2, 1], [1, 2, 3]),
        ([200.0, 210, 220], [200, 210, 220]),
        (np.arange(-180, 180, 30.0), np.arange(0, 360, 30.0)),
        (np.arange(0, 361, 30.0), np.arange(0, 360, 30.0)),  # a cyclic column
    ],
)
def test_longitudes_of_every_convention_ascend_and_values_keep_their_place(longitude, expected):
    field = pick(dataset(longitude=longitude), Choice(), "file")
    np.testing.assert_array_equal(field["longitude"], expected)
    np.testing.assert_array_equal(field["latitude"], LATITUDE[::-1])
    np.testing.assert_array_equal(field, LATITUDE[::-1, None] + 1000 * (np.asarray(expected) % 360))
    assert Grid.of(field).periodic == (len(expected) == 12)


@pytest.mark.parametrize("west", [-100.0, 260.0])
def test_regions_are_cut_in_either_convention_also_across_greenwich(west):
    globe = pick(dataset(), Choice(), "file")
    part = cropped(globe, (45, 60, west, west + 120))
    np.testing.assert_array_equal(part["longitude"] % 360, [270, 300, 330, 0])
    np.testing.assert_array_equal(part, part["latitude"].values[:, None] + 1000 * (part["longitude"].values % 360))
    assert (np.diff(part["longitude"]) == 30).all()
    with pytest.raises(ValueError, match=r"the region .* must hold 2 x 2 points or more of Grid"):
        pick(dataset(), Choice(region=(0, 10, 0, 90)), "file")


def test_names_units_and_standard_names_find_the_axes():
    found = upright(dataset(spelling=("y", "x")), "file")
    assert {"latitude", "longitude"} <= set(found.dims)
    plane = xr.Dataset({"t": (("y", "x"), np.zeros((2, 3)))}, {"y": [1, 2], "x": [1, 2, 3]})
    with pytest.raises(ValueError, match=r"plane.nc must have 1-D coordinates latitude and longitude .* got y, x"):
        pick(plane, Choice(), "plane.nc")


def test_variables_are_chosen_and_what_is_absent_is_named():
    two = dataset().assign(u=dataset()["t"] * 0, flag=("member", [1, 2]))
    assert pick(two, Choice("u"), "file").name == "u"
    with pytest.raises(ValueError, match=r"file holds several fields: t, u; choose one \(--variable\)"):
        pick(two, Choice(), "file")
    with pytest.raises(ValueError, match="variable 'w' cannot be taken from file, which has only: t, u"):
        pick(two, Choice("w"), "file")
    with pytest.raises(ValueError, match="file holds no field on latitude and longitude; it has flag"):
        pick(two[["flag"]].assign_coords(two.coords), Choice(), "file")


@pytest.mark.parametrize(
    ("units", "scale", "shift"), [("degK", 1, 0), ("degC", 1, 273.15), ("hPa", 100, 0), ("furlong", 1, 0)]
)
def test_temperatures_come_in_kelvin_and_pressures_in_pascal(units, scale, shift):
    found = pick(dataset(units=units), Choice(), "file")
    np.testing.assert_allclose(found, pick(dataset(units="m"), Choice(), "file") * scale + shift)
    assert found.attrs["units"] == {"degK": "K", "degC": "K", "hPa": "Pa"}.get(units, units)


def test_further_dimensions_are_chosen_by_value():
    levels = dataset(("level", "kind"), {"level": [500, 850], "kind": ["a"]})
    np.testing.assert_array_equal(
        pick(levels, Choice(select={"level": 850.0}), "f"), pick(dataset(), Choice(), "f") + 1e6
    )
    with pytest.raises(ValueError, match=r"t in f has 2 level: 500, 850; choose one \(--select level=VALUE\)"):
        pick(levels, Choice(), "f")
    with pytest.raises(ValueError, match="f has no level 700; it has 500, 850"):
        pick(levels, Choice(select={"level": 700}), "f")
    with pytest.raises(ValueError, match="f has no dimension 'depth' to select from; t has level, kind"):
        pick(levels, Choice(select={"depth": 1}), "f")


TIMES = pd.date_range("2014-01-01", periods=3, freq="6h")
LEADS = pd.to_timedelta([6, 12], unit="h")


def test_the_first_time_is_taken_or_the_one_asked_for():
    series = pick(dataset(("time",), {"time": TIMES}), Choice(), "f")
    assert float(at_time(series, Choice(), "f")[0, 0]) == 40
    chosen = at_time(series, Choice(time="2014-01-01T12"), "f")
    assert (float(chosen[0, 0]), chosen["time"].values) == (2e6 + 40, TIMES[2])
    with pytest.raises(ValueError, match="f has no time 2015; it holds 3, 2014-01-01 00 UTC to 2014-01-01 12 UTC"):
        at_time(series, Choice(time="2015"), "f")
    with pytest.raises(ValueError, match="a time must be like 2014-01-17T06, got 'noon'"):
        at_time(series, Choice(time="noon"), "f")


def test_intervals_of_time_hold_both_ends():
    series = pick(dataset(("time",), {"time": TIMES}), Choice(), "f")
    assert between(series, "2014-01-01T06/2014-01-02", "f").sizes["time"] == 2
    assert between(series, "2014-01-01T06", "f").sizes["time"] == 1
    assert between(series, None, "f").sizes["time"] == 3
    with pytest.raises(ValueError, match="f has no time in 2015/2016"):
        between(series, "2015/2016", "f")
    with pytest.raises(ValueError, match="f has no times to go through"):
        between(series[0], None, "f")


def test_dates_of_other_calendars_are_found():
    dates = [cftime.Datetime360Day(2014, 2, day) for day in (28, 29, 30)]
    series = pick(dataset(("time",), {"time": dates}), Choice(), "f")
    assert float(at_time(series, Choice(time="2014-02-28"), "f")[0, 0]) == 40
    with pytest.raises(ValueError, match=r"it holds 3, 2014-02-28 00:00 \(360_day\) to 2014-02-30 00:00 \(360_day\)"):
        at_time(series, Choice(time="2015-01-01"), "f")


CF = {"forecast_reference_time": TIMES, "forecast_period": ("forecast_period", [6.0, 12.0], {"units": "hours"})}
VALID = TIMES.values[:, None] + LEADS.values


@pytest.mark.parametrize(
    ("dims", "coords"),
    [
        (("init_time", "lead_time"), {"init_time": TIMES, "lead_time": LEADS}),
        (("forecast_reference_time", "forecast_period"), CF | {"time": (tuple(CF), VALID)}),
        (("time", "prediction_timedelta"), {"time": TIMES, "prediction_timedelta": LEADS}),
        (("time", "step"), {"time": TIMES, "step": LEADS, "valid_time": (("time", "step"), VALID)}),
        (
            ("a", "b"),
            {
                "a": ("a", TIMES, {"standard_name": "forecast_reference_time"}),
                "b": ("b", [0.25, 0.5], {"units": "days", "standard_name": "forecast_period"}),
            },
        ),
    ],
    ids=["climapred", "cf", "weatherbench", "cfgrib", "standard names"],
)
def test_forecasts_of_every_layout_are_read(dims, coords):
    axes = {name: coords[name][1] if isinstance(coords[name], tuple) else coords[name] for name in dims}
    raw = dataset(dims, axes).assign_coords(coords)
    everything = pick(raw, Choice(), "f")
    forecast = as_forecast(everything, Choice(start="2014-01-01T06", leads=[12]), "f")
    assert forecast.dims == ("lead_time", "latitude", "longitude")
    assert (forecast["lead_time"].values, forecast["init_time"].values) == (LEADS[1:].values, TIMES[1])
    assert float(forecast[0, 0, 0]) == 3e6 + 40
    field = at_time(everything, Choice(start="2014-01-01T06", leads=[12]), "f")
    assert field["time"].values == np.datetime64("2014-01-01T18")
    assert leads_of(everything, Choice(), "f").sizes["lead_time"] == 2
    with pytest.raises(ValueError, match=r"f has no lead \+7 h; it has \+6 h, \+12 h"):
        as_forecast(everything, Choice(leads=[7]), "f")
    with pytest.raises(ValueError, match="f has no start 2013; it holds 3"):
        as_forecast(everything, Choice(start="2013"), "f")


def test_one_forecast_along_its_valid_times_is_read():
    start = ((), np.datetime64("2013-12-31T18", "ns"), {"standard_name": "forecast_reference_time"})
    raw = dataset(("time",), {"time": TIMES}).assign_coords(reference=start)
    forecast = as_forecast(pick(raw, Choice(), "f"), Choice(leads=[12]), "f")
    assert forecast["lead_time"].values == np.timedelta64(12, "h")
    assert float(forecast[0, 0, 0]) == 1e6 + 40
    with pytest.raises(ValueError, match="f has no start 2014-02-01; it holds one, 2013-12-31 18 UTC"):
        as_forecast(pick(raw, Choice(), "f"), Choice(start="2014-02-01"), "f")


def test_what_is_no_forecast_is_refused():
    series = pick(dataset(("time",), {"time": TIMES}), Choice(), "f")
    with pytest.raises(ValueError, match=r"f is no forecast: it needs lead times, .* forecast_period"):
        as_forecast(series, Choice(), "f")
    months = dataset(("init_time", "lead"), {"init_time": TIMES, "lead": [1, 2]})
    months["lead"].attrs["units"] = "months"
    with pytest.raises(ValueError, match=r"lead_time must be in one of hours, .* got 'months'"):
        pick(months, Choice(), "f")
