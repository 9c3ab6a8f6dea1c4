import os
import re
from pathlib import Path

import dask
import eccodes
import netCDF4
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from climapred.data.harmonise import harmonise, translate
from climapred.data.regrid import regrid
from climapred.data.sources import open_source
from climapred.grid import Grid

DATA = Path(os.environ.get("CLIMAPRED_DATA", Path(__file__).parents[2] / "../shared/data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="shared data missing")

LATITUDE = np.array([30.0, 40.0, 50.0])
LONGITUDE = np.array([10.0, 20.0, 30.0, 40.0])


def place(latitude, longitude) -> np.ndarray:
    """A field whose value tells its place, whatever convention the longitude follows; one value for each cell."""
    return (1000 * np.asarray(latitude)[:, None] + np.round(np.asarray(longitude) % 360, 2)).astype(np.float32)


def make_source(latitude=LATITUDE, longitude=LONGITUDE, hours=(0, 6, 12), *, name="t2m", units="K") -> xr.Dataset:
    """Fields with value 1000 latitude + longitude + hour, dask-backed."""
    values = place(latitude, longitude) + np.asarray(hours, np.float32)[:, None, None]
    times = np.datetime64("2020-01-01", "ns") + np.asarray(hours) * np.timedelta64(1, "h")
    return xr.Dataset(
        {name: (("time", "latitude", "longitude"), values, {"units": units})},
        coords={"time": times, "latitude": latitude, "longitude": longitude},
    ).chunk(time=1)


def with_attrs(source: xr.Dataset, **attrs) -> xr.Dataset:
    return source.assign(t2m=source.t2m.assign_attrs(attrs))


def forbid_computing(*args, **kwargs):
    raise AssertionError("computed")


def lazily(dataset: xr.Dataset, variables=None, **choices) -> xr.Dataset:
    with dask.config.set(scheduler=forbid_computing):
        return harmonise(dataset, variables, **choices)


def two_versions(source: xr.Dataset, labels=(1, 5)) -> xr.Dataset:
    """As the Climate Data Store wrote months that end in ERA5T: a dimension, each version NaN where the other is."""
    final = np.arange(source.sizes["time"]) < 2
    halves = [source.where(xr.DataArray(mask, dims="time")) for mask in (final, ~final)]
    order = np.argsort([str(label).lstrip("0b'") for label in labels])
    return xr.concat([halves[i] for i in order.argsort()], pd.Index(labels, name="expver")).assign(
        t2m=lambda ds: ds.t2m.assign_attrs(units="K").transpose("time", "expver", ...)
    )


def overlapping_versions(source: xr.Dataset, labels=("0005", "0005", "0001", "0001", "0005")) -> xr.Dataset:
    """As files of the new Climate Data Store look when they are joined: the second time, preliminary and wrong, first."""
    joined = xr.concat([source.isel(time=[1]) + 7, source.isel(time=[0]) + 7, source], "time", combine_attrs="override")
    joined = joined.rename(time="valid_time").assign_coords(number=0, expver=("valid_time", list(labels)))
    return joined.assign(t2m=joined.t2m.assign_attrs(units="K"))


CANONICAL = make_source().load()

# each row: what a file does differently; the result is always CANONICAL
QUIRKS = {
    "nothing": lambda ds: ds,
    "short names": lambda ds: ds.rename(latitude="lat", longitude="lon"),
    "capitals": lambda ds: ds.rename(latitude="Latitude", longitude="LONGITUDE", time="Time"),
    "NEMO names": lambda ds: ds.rename(latitude="nav_lat", longitude="nav_lon", time="time_counter"),
    "NCL names": lambda ds: ds.rename(latitude="g0_lat_1", longitude="g0_lon_2", time="initial_time0_hours"),
    "only units": lambda ds: ds.rename(latitude="y", longitude="x").assign_coords(
        y=("y", LATITUDE, {"units": "degrees_north"}), x=("x", LONGITUDE, {"units": "degrees_east"})
    ),
    "only standard_name": lambda ds: ds.rename(time="t").assign_coords(
        t=("t", ds.time.values, {"standard_name": "time"})
    ),
    "new CDS": lambda ds: ds.rename(time="valid_time").assign_coords(
        number=0, expver=("valid_time", ["0001", "0001", "0005"])
    ),
    "new CDS, final data and ERA5T overlap": overlapping_versions,
    "old CDS, final data and ERA5T side by side": two_versions,
    "ERA5T before final data": lambda ds: two_versions(ds, ["0005", "0001"]),
    "expver as bytes": lambda ds: two_versions(ds, [b"0001", b"0005"]),
    "MERRA-2 names": lambda ds: ds.rename(t2m="T2M", latitude="lat", longitude="lon"),
    "NCL names of GRIB 2": lambda ds: ds.rename(t2m="T2", latitude="lat_0", longitude="lon_0").assign_coords(
        lat_0=("lat_0", LATITUDE, {"units": "degrees_north"}), lon_0=("lon_0", LONGITUDE, {"units": "Degrees_East"})
    ),
    "time called something else": lambda ds: ds.rename(time="date"),
    "real dates as cftime": lambda ds: ds.assign_coords(
        time=xr.date_range("2020-01-01", periods=3, freq="6h", calendar="standard", use_cftime=True)
    ),
    "times decoded from fractions of days": lambda ds: ds.assign_coords(
        time=ds.time + np.array([3, -250, 77_000], "timedelta64[ns]")
    ),
    "time with bounds": lambda ds: ds.assign_coords(
        time=ds.time.assign_attrs(bounds="time_bnds"), time_bnds=(("time", "bnds"), np.stack([ds.time] * 2, 1))
    ),
    "starts, all steps zero": lambda ds: ds.assign_coords(step=np.timedelta64(0, "h")),
    "CF forecast: reference time and period beside the time": lambda ds: ds.assign_coords(
        time=ds.time.assign_attrs(standard_name="time"),
        forecast_reference_time=ds.time - np.timedelta64(6, "h"),
        forecast_period=("time", [6, 6, 6], {"units": "hours"}),
    ),
    "size-1 expver": lambda ds: ds.expand_dims(expver=[1], axis=1),
    "size-1 level and member": lambda ds: ds.expand_dims(level=[500.0], number=[0]),
    "level without label": lambda ds: ds.expand_dims("height"),
    "other order of dims": lambda ds: ds.transpose("longitude", "time", "latitude"),
    "latitude descends": lambda ds: ds.isel(latitude=slice(None, None, -1)),
    "longitude descends": lambda ds: ds.isel(longitude=slice(None, None, -1)),
    "longitude below zero": lambda ds: ds.assign_coords(longitude=ds.longitude - 360),
    "latitude and longitude shuffled": lambda ds: ds.isel(latitude=[2, 0, 1], longitude=[1, 3, 0, 2]),
    "float32 coordinates": lambda ds: ds.assign_coords(
        latitude=ds.latitude.astype("f4"), longitude=ds.longitude.astype("f4")
    ),
    "times out of order": lambda ds: ds.isel(time=[2, 0, 1]),
    "times in seconds": lambda ds: ds.assign_coords(time=ds.time.values.astype("datetime64[s]")),
    "old spelling of units": lambda ds: with_attrs(ds, units="degK"),
    "alias of the variable": lambda ds: ds.rename(t2m="2t"),
    "a variable nobody knows": lambda ds: ds.assign(orography=ds.t2m.isel(time=0)),
    "bounds": lambda ds: ds.assign(time_bnds=(("time", "bnds"), np.zeros((3, 2)))),
    "attributes of all kinds": lambda ds: with_attrs(ds, GRIB_x=1, long_name="?", valid_min=0),
    # start and step as cfgrib gives them: valid_time decides
    "cfgrib, one step": lambda ds: ds.assign_coords(
        time=ds.time - np.timedelta64(6, "h"),
        step=np.timedelta64(6, "h"),
        valid_time=("time", ds.time.values),
    ),
    "cfgrib, one start": lambda ds: ds.rename(time="step").assign_coords(
        time=np.datetime64("2019-12-31", "ns"),
        step=ds.time.values - np.datetime64("2019-12-31", "ns"),
        valid_time=("step", ds.time.values),
    ),
    "2-D valid_time, one step": lambda ds: ds.expand_dims("step", axis=1).assign_coords(
        time=ds.time - np.timedelta64(6, "h"), valid_time=(("time", "step"), ds.time.values[:, None])
    ),
}


@pytest.mark.parametrize("quirk", QUIRKS)
def test_every_quirk_becomes_the_same_dataset(quirk):
    result = lazily(QUIRKS[quirk](make_source()))
    xr.testing.assert_equal(result.load(), CANONICAL)
    assert result.t2m.dims == ("time", "latitude", "longitude")
    assert result.t2m.dtype == np.float32
    assert result.t2m.attrs == {
        "standard_name": "air_temperature",
        "long_name": "2 metre temperature",
        "units": "K",
    }
    assert list(result.coords) == ["time", "latitude", "longitude"]
    assert result.time.dtype == "datetime64[ns]"
    assert result.longitude.attrs == {"standard_name": "longitude", "units": "degrees_east", "axis": "X"}
    assert not result.t2m.encoding


def test_the_source_is_left_alone():
    source, untouched = make_source(), make_source()
    harmonise(source)
    xr.testing.assert_identical(source, untouched)


def test_harmonising_twice_changes_nothing():
    once = harmonise(QUIRKS["latitude descends"](make_source()))
    xr.testing.assert_identical(harmonise(once), once)


def test_cell_methods_of_the_file_stay():
    """Daily means are no instants, and the result says so."""
    source = with_attrs(make_source(), cell_methods="time: mean")
    assert harmonise(source).t2m.attrs["cell_methods"] == "time: mean"


@pytest.mark.parametrize(("units", "at_zero"), [("degC", 273.15), ("degF", 255.3722), ("K", 0.0), ("celsius", 273.15)])
def test_units_become_kelvin_and_float32_stays(units, at_zero):
    result = lazily(with_attrs(0 * make_source(), units=units))
    assert result.t2m.dtype == np.float32
    np.testing.assert_allclose(result.t2m, at_zero, rtol=1e-6)


def test_other_quantities_and_several_variables():
    source = make_source(name="msl", units="hPa")
    source["u10"] = source.msl.assign_attrs(units="m s**-1")
    result = lazily(source, ["10u", "msl"])
    assert list(result.data_vars) == ["u10", "msl"]
    np.testing.assert_allclose(result.msl, 100 * source.msl)
    np.testing.assert_array_equal(result.u10, source.u10)
    assert result.u10.attrs["units"] == "m s-1"


# longitudes as files have them -> longitudes of the data model
LONGITUDES = {
    "Pacific": (np.arange(140.0, 261, 10), np.arange(140.0, 261, 10)),
    "Pacific, -180..180": ([140.0, 160, 180, -160, -140], [140, 160, 180, 200, 220]),
    "United Kingdom": ([-10.0, -6, -2, 2], [-10, -6, -2, 2]),
    "United Kingdom, 0..360": ([350.0, 354, 358, 2], [-10, -6, -2, 2]),
    "United Kingdom, split": ([0.0, 2, 4, 354, 356, 358], [-6, -4, -2, 0, 2, 4]),
    "starts at Greenwich": ([0.0, 5, 10], [0, 5, 10]),
    "ends at Greenwich": ([340.0, 350, 360], [-20, -10, 0]),
    "west of Greenwich": ([-30.0, -20, -10], [330, 340, 350]),
    "beyond 360": ([350.0, 355, 360, 365], [-10, -5, 0, 5]),
    "Americas to Asia": (np.arange(200.0, 471, 10), np.arange(-160.0, 111, 10)),
    "Asia to Europe the long way": (np.arange(100.0, 371, 10), np.arange(100.0, 371, 10)),
    "globe from 0": (np.arange(0.0, 360, 30), np.arange(0.0, 360, 30)),
    "globe from -180": (np.arange(-180.0, 180, 30), np.arange(0.0, 360, 30)),
    "globe from -179.5": (np.arange(-179.5, 180, 1), np.arange(0.5, 360, 1)),
    "globe, cyclic column": (np.arange(0.0, 361, 30), np.arange(0.0, 360, 30)),
    "globe, cyclic column at 180": (np.arange(-180.0, 181, 30), np.arange(0.0, 360, 30)),
    "float32 tenths": (np.arange(3500, 3600).astype("f4") / np.float32(10), np.arange(3500, 3600) / 10),
    "float32 tenths over Greenwich": (np.float32([-0.2, -0.1, 0, 0.1]), [-0.2, -0.1, 0, 0.1]),
    "float32 tenths kept as float64": (np.float32([359.7, 359.8, 359.9]).astype("f8"), [359.7, 359.8, 359.9]),
    "float32 binary fractions": (np.arange(0, 360, 0.28125).astype("f4"), np.arange(0, 360, 0.28125)),
    "float32 multiples": (np.arange(1, 3600, dtype="f4") * np.float32(0.1), np.arange(1, 3600) / 10),
    "thirds": (np.arange(60) / np.float32(3), np.arange(60) / 3),
    "one column": ([5.0], [5.0]),
}


@pytest.mark.parametrize("case", LONGITUDES)
def test_longitude_ascends_is_contiguous_and_moves_its_values(case):
    given, wanted = (np.asarray(values) for values in LONGITUDES[case])
    result = lazily(make_source(longitude=given))
    np.testing.assert_allclose(result.longitude, wanted, rtol=0, atol=4e-7)
    np.testing.assert_allclose(result.t2m[0], place(LATITUDE, wanted), rtol=0, atol=0.02)
    assert result.longitude.dtype == np.float64
    if wanted.size > 1:
        Grid.of(result)  # which refuses what does not increase or covers more than the circle


def test_float32_noise_leaves_no_trace():
    result = harmonise(make_source(longitude=LONGITUDES["float32 tenths"][0]))
    assert result.longitude.values.tolist() == [round(350 + i / 10, 1) for i in range(100)]


def test_nearly_uniform_becomes_uniform():
    sums = np.cumsum(np.full(50, 0.1, "f4"), dtype="f4")  # ends at 4.9999976
    steps = np.diff(harmonise(make_source(longitude=sums)).longitude)
    assert np.ptp(np.diff(sums.astype("f8"))) > 1e-7
    assert np.ptp(steps) < 3e-9


def test_poles_that_float32_overshot():
    """np.arange(-90, 90.05, 0.1, dtype="float32") and the like end beyond the pole."""
    latitude = np.linspace(-90, 90, 1801, dtype="f4")
    latitude[-1] = 90.00002
    result = harmonise(make_source(latitude=latitude))
    np.testing.assert_array_equal(result.latitude, np.round(np.linspace(-90, 90, 1801), 9))


@pytest.mark.parametrize("number", [8, 48, 160])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_gaussian_latitudes_are_not_made_uniform(number, dtype):
    latitude = Grid.gaussian(number).latitude
    result = harmonise(make_source(latitude=latitude.astype(dtype)))
    np.testing.assert_allclose(result.latitude, latitude, rtol=0, atol=1e-9 if dtype == "f8" else 8e-6)
    assert np.ptp(np.diff(result.latitude)) > 1e-3 * np.diff(latitude).mean()


@pytest.mark.parametrize("time", [False, True], ids=["scalar time", "time of size 1"])
def test_one_field_becomes_a_series_of_one(time):
    result = lazily(make_source().isel(time=[1] if time else 1))
    xr.testing.assert_equal(result.load(), CANONICAL.isel(time=[1]))


def test_only_attributes_of_origin_are_kept():
    source = make_source().assign_attrs(title="ERA5", history="today", NCO="5", source="ECMWF", Conventions="CF-1.0")
    assert harmonise(source).attrs == {"title": "ERA5", "history": "today", "source": "ECMWF"}


def test_chunks_along_time_stay():
    source = make_source(np.arange(50.0, 20, -10), [350.0, 0, 10]).chunk(time=(2, 1))
    assert lazily(source).chunks == {"time": (2, 1), "latitude": (3,), "longitude": (3,)}


def without_units(source):
    del source.t2m.attrs["units"]
    return source


def curvilinear(source):
    at = source.rename(latitude="y", longitude="x").drop_vars(["y", "x"])
    return at.assign_coords(lat=(("y", "x"), np.zeros((3, 4))), lon=(("y", "x"), np.zeros((3, 4))))


REFUSED = {
    "no units": (without_units, r"'t2m' has no units; .*dataset\['t2m'\].attrs\['units'\] = 'K'"),
    "strange units": (
        lambda ds: with_attrs(ds, units="furlong"),
        r"'t2m': unknown unit 'furlong'",
    ),
    "wrong quantity": (
        lambda ds: with_attrs(ds, units="Pa"),
        r"'t2m': cannot convert 'Pa' to 'K'",
    ),
    "several levels": (
        lambda ds: xr.concat([ds, ds], pd.Index([500, 850], name="level")),
        r"'t2m' has the extra dimension 'level' of size 2, \[500, 850\]...; .*dataset.isel\(level=0\)",
    ),
    "expver of experiments": (
        lambda ds: xr.concat([ds, ds], pd.Index([1, 70], name="expver")),
        r"extra dimension 'expver' of size 2, \[1, 70\]...; .*dataset.isel\(expver=0\)",
    ),
    "the same expver twice": (
        lambda ds: xr.concat([ds, ds], pd.Index(["0001", "1"], name="expver")),
        r"extra dimension 'expver' of size 2",
    ),
    "expver without labels": (
        lambda ds: xr.concat([ds, ds], "expver"),
        r"extra dimension 'expver' of size 2; ",
    ),
    "times repeated in one expver": (
        lambda ds: overlapping_versions(ds, ["0005", "0001", "0001", "0001", "0005"]),
        r"1 of 5 times in 'valid_time' are repeated: 2020-01-01T00:00...; .*duplicates='first' or 'last'",
    ),
    "times repeated in unknown expver": (
        lambda ds: overlapping_versions(ds, ["0070", "0005", "0001", "0001", "0005"]),
        r"2 of 5 times in 'valid_time' are repeated",
    ),
    "several members": (
        lambda ds: xr.concat([ds, ds], pd.Index([0, 1], name="number")),
        r"extra dimension 'number' of size 2, \[0, 1\]",
    ),
    "still packed": (
        lambda ds: with_attrs(ds, scale_factor=0.01, add_offset=273.15),
        r"'t2m' is still packed: scale_factor, add_offset among its attributes; .*xr.decode_cf\(dataset\)",
    ),
    "missing values not decoded": (lambda ds: with_attrs(ds, _FillValue=-999.0), r"'t2m' is still packed: _FillValue"),
    "text": (lambda ds: ds.assign(t2m=ds.t2m.astype("U8")), r"'t2m' must hold numbers, got <U8"),
    "radians": (
        lambda ds: ds.assign_coords(latitude=("latitude", np.radians(LATITUDE), {"units": "radian"})),
        r"'latitude' is in radians; .*np.degrees\(dataset\['latitude'\]\)",
    ),
    "points": (
        lambda ds: ds.stack(cell=("latitude", "longitude")).reset_index("cell"),
        r"latitude 'latitude' and longitude 'longitude' share the dimension 'cell': points, not a .*remapbil",
    ),
    "no times": (lambda ds: ds.isel(time=[]), r"'time' is empty: the dataset has no times"),
    "no latitudes": (lambda ds: ds.isel(latitude=[]), r"'latitude' is empty: the dataset has no points along it"),
    "long-term mean": (
        lambda ds: ds.assign_coords(time=np.array(["0001-01-01", "0001-02-01", "0001-03-01"], "datetime64[s]")),
        r"'time' runs from 0001-01-01 to 0001-03-01, but only 1678 to 2261 .*long-term mean",
    ),
    "text for times": (lambda ds: ds.assign_coords(time=["a", "b", "c"]), r"'time' must hold datetimes, got <U1"),
    "objects for times": (
        lambda ds: ds.assign_coords(time=np.array(["a", "b", "c"], object)),
        r"'time' must hold datetimes, got object",
    ),
    "starts with steps": (
        lambda ds: ds.assign_coords(step=np.timedelta64(6, "h")),
        r"'time' holds the starts of forecasts, .*valid_time=dataset\['time'\] \+ dataset.step",
    ),
    "starts with leads of WeatherBench": (
        lambda ds: ds.expand_dims(prediction_timedelta=np.array([6, 12], "timedelta64[h]")),
        r"'time' holds the starts of forecasts, .*\+ dataset.prediction_timedelta",
    ),
    "repeated times": (
        lambda ds: ds.isel(time=[0, 1, 1, 2, 2]),
        r"2 of 5 times in 'time' are repeated: 2020-01-01T06:00, 2020-01-01T12:00...; .*duplicates='first' or 'last'",
    ),
    "missing times": (
        lambda ds: ds.assign_coords(time=pd.DatetimeIndex(["2020-01-01", "NaT", "2020-01-02"])),
        r"'time' has 1 missing values \(NaT\) among 3 times",
    ),
    "undecoded times": (
        lambda ds: ds.assign_coords(time=[0, 6, 12]),
        r"'time' must hold datetimes, got int64",
    ),
    "360-day calendar": (
        lambda ds: ds.assign_coords(time=xr.date_range("2020-01-01", periods=3, calendar="360_day", use_cftime=True)),
        r"'time' follows the calendar '360_day'.*convert_calendar",
    ),
    "no-leap calendar": (
        lambda ds: ds.assign_coords(time=xr.date_range("2020-01-01", periods=3, calendar="noleap", use_cftime=True)),
        r"'time' follows the calendar 'noleap'",
    ),
    "starts of forecasts": (
        lambda ds: ds.assign_coords(time=ds.time.assign_attrs(standard_name="forecast_reference_time")),
        r"'time' holds the starts of forecasts, not valid times; .*assign_coords\(valid_time=",
    ),
    "a set of forecasts": (
        lambda ds: xr.concat([ds, ds], pd.Index([0, 1], name="step")).assign_coords(
            valid_time=(("time", "step"), np.zeros((3, 2), "datetime64[ns]"))
        ),
        r"valid times 'valid_time' have dims \('time', 'step'\): a set of forecasts.*dataset.isel\(step=0\)",
    ),
    "no latitude": (
        lambda ds: ds.rename(latitude="y"),
        r"no coordinate 'latitude': none of t2m, .* is called latitude, lat, .*dataset.rename",
    ),
    "curvilinear": (curvilinear, r"latitude 'lat' must be 1-D, got dims \('y', 'x'\); .*remapbil"),
    "one point": (lambda ds: ds.isel(latitude=0), r"latitude 'latitude' must be 1-D, got dims \(\)"),
    "projected": (
        lambda ds: ds.assign_coords(latitude=[0, 1e5, 2e5]),
        r"'latitude' must lie in \[-90, 90\], got 0 to",
    ),
    "longitude in metres": (
        lambda ds: ds.assign_coords(longitude=[0, 1e5, 2e5, 3e5]),
        r"longitude 'longitude' must be in degrees, got 0 to 300000",
    ),
    "repeated latitude": (
        lambda ds: ds.isel(latitude=[0, 1, 1]),
        r"latitude 'latitude' has repeated values: 40",
    ),
    "repeated longitude": (lambda ds: ds.isel(longitude=[0, 1, 1]), r"'longitude' has repeated values: 20"),
    "NaN in latitude": (
        lambda ds: ds.assign_coords(latitude=[0, np.nan, 2]),
        r"'latitude' must be finite, got \[nan\]",
    ),
    "nothing known": (
        lambda ds: ds.rename(t2m="zeta"),
        r"knows no units or standard name for zeta; it knows t2m, ",
    ),
    "the same twice": (
        lambda ds: ds.assign({"2t": ds.t2m}),
        r"'t2m' and '2t' are both 't2m'; name one of them",
    ),
    "no time": (
        lambda ds: ds.assign(t2m=ds.t2m.isel(time=0, drop=True)),
        r"'t2m' must have the dimensions \[",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_harmonised_is_an_error_with_a_way_out(case):
    spoil, complaint = REFUSED[case]
    with pytest.raises(ValueError, match=complaint):
        lazily(spoil(make_source()))


def test_every_reason_is_told_at_once():
    source = with_attrs(make_source(latitude=[30.0, 40, 40]).isel(time=[0, 0, 1]), units="furlong")
    with pytest.raises(ValueError, match="repeated") as caught:
        harmonise(source)
    first, second, third = str(caught.value).splitlines()
    assert first.startswith("1 of 3 times in 'time' are repeated")
    assert second.startswith("latitude 'latitude' has repeated values")
    assert third.startswith("'t2m': unknown unit 'furlong'")


@pytest.mark.parametrize("which", ["first", "last"])
def test_repeated_times_where_one_is_asked_for(which):
    """In the order of the files, also where these are out of order; three fields of one time are one, too."""
    source = make_source(hours=(6, 12, 0, 6, 6))
    source["t2m"] = source.t2m + xr.DataArray(np.arange(5), dims="time") * 0.125  # tells the fields apart
    result = lazily(source, duplicates=which)
    assert ((result.time - np.datetime64("2020-01-01")) / np.timedelta64(1, "h")).values.tolist() == [0, 6, 12]
    wanted = source.isel(time=[2, 0 if which == "first" else 4, 1])
    np.testing.assert_array_equal(result.t2m, wanted.t2m)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["0001", "0005"])), min_size=1, max_size=12),
    st.sampled_from(["first", "last"]),
)
def test_any_mixture_of_times_and_versions(fields, which):
    """Against a loop: final data win, then the first or last of each time."""
    hours, versions = zip(*fields, strict=True)
    best: dict[int, int] = {}
    for number, (hour, version) in enumerate(fields):
        other = best.get(hour)
        if other is None or version < versions[other] or (version == versions[other] and which == "last"):
            best[hour] = number
    numbered = xr.DataArray(np.arange(len(fields), dtype="f4"), dims="time")
    source = make_source(hours=hours).compute().assign_coords(expver=("time", list(versions)))
    source["t2m"] = (0 * source.t2m + numbered).assign_attrs(units="K")
    result = harmonise(source, duplicates=which)
    assert result.t2m[:, 0, 0].values.tolist() == [best[hour] for hour in sorted(best)]
    assert result.indexes["time"].is_monotonic_increasing


def test_preliminary_data_are_never_added_and_fill_only_what_final_data_lack():
    """Pain 12: a sum or mean over expver doubles or spoils the fields where both are there."""
    final = make_source()
    final["t2m"] = final.t2m.where(final.longitude != 20)
    both = xr.concat([final, make_source() + 5], pd.Index([1, 5], name="expver"))
    result = lazily(both.assign(t2m=both.t2m.assign_attrs(units="K")))
    wanted = CANONICAL.t2m.where(CANONICAL.longitude != 20, CANONICAL.t2m + 5)
    np.testing.assert_array_equal(result.t2m, wanted)


@pytest.mark.parametrize("calendar", ["360_day", "noleap", "julian"])
def test_a_calendar_that_is_kept(calendar):
    times = xr.date_range("2020-02-28", periods=3, freq="2D", calendar=calendar, use_cftime=True)
    source = make_source().assign_coords(time=times)
    result = lazily(source.isel(time=[2, 0, 1]), calendar="keep")
    assert isinstance(result.indexes["time"], xr.CFTimeIndex)
    assert result.time.dt.calendar == calendar
    assert result.indexes["time"].equals(times)
    np.testing.assert_array_equal(result.t2m, source.t2m)
    with pytest.raises(ValueError, match=rf"repeated: {times[0]}\.\.\."):
        lazily(source.isel(time=[0, 0, 1]), calendar="keep")
    converted = source.convert_calendar("standard", align_on="date")  # the way out that the error names
    assert harmonise(converted).time.dtype == "datetime64[ns]"


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="duplicates must be one of refuse, first, last, got 'newest'"):
        harmonise(make_source(), duplicates="newest")
    with pytest.raises(ValueError, match="calendar must be one of refuse, keep, got 'convert'"):
        harmonise(make_source(), calendar="convert")


def test_gaps_stay_gaps():
    """Pain 19: the missing times are neither filled in nor told as if they were there."""
    result = lazily(make_source(hours=(0, 6, 24, 30)))
    assert (np.diff(result.time) / np.timedelta64(1, "h")).tolist() == [6, 18, 6]
    assert result.t2m.notnull().all()


UK = {
    "-180..180": np.arange(-10.0, 2.1, 2),
    "0..360, torn apart": np.array([0.0, 2, 350, 352, 354, 356, 358]),
    "0..360, in order": np.array([350.0, 352, 354, 356, 358, 0, 2]),
    "descending": np.arange(-10.0, 2.1, 2)[::-1],
    "around 360": np.arange(350.0, 362.1, 2),
}


@pytest.mark.parametrize("convention", UK)
def test_a_box_over_greenwich_is_one_box(convention):
    """Pain 13: selections over 0 degrees come out whole, whatever the file's convention."""
    box = lazily(make_source(longitude=UK[convention])).sel(longitude=slice(-5, 1))
    assert box.longitude.values.tolist() == [-4, -2, 0]
    np.testing.assert_array_equal(box.t2m[0], place(LATITUDE, [-4, -2, 0]))


@pytest.mark.parametrize("west", [0, -180])
def test_a_box_over_greenwich_comes_whole_out_of_a_globe(west):
    """Pain 13."""
    globe = harmonise(make_source(np.arange(90.0, -91, -10), np.arange(west, west + 360, 10.0)))
    box = regrid(globe, Grid.regular(10, region=(40, 60, -20, 20)), method="nearest")
    np.testing.assert_array_equal(box.t2m[0], place([40, 50, 60], [-20, -10, 0, 10, 20]))


@pytest.mark.parametrize("method", ["nearest", "bilinear", "conservative"])
def test_descending_latitude_regrids_like_ascending(method):
    """Pain 16: elsewhere nearest is flipped and bilinear all NaN."""
    target = Grid.regular(5, region=(30, 50, 10, 40))
    down, up = (
        regrid(harmonise(make_source(latitude=latitude)), target, method=method)
        for latitude in (LATITUDE[::-1], LATITUDE)
    )
    xr.testing.assert_identical(down, up)
    assert up.t2m.notnull().all()
    assert (up.t2m.diff("latitude") >= 0).all()
    assert up.t2m[0, -1, 0] - up.t2m[0, 0, 0] > 15_000  # from 30 to 50 degrees, 1000 a degree


@pytest.mark.parametrize("quirk", ["latitude descends", "longitude below zero", "latitude and longitude shuffled"])
def test_no_cell_and_no_attribute_is_lost_or_invented(quirk):
    """Pain 17."""
    source = QUIRKS[quirk](make_source()).assign_attrs(title="x", references="y")
    result = harmonise(source)
    assert sorted(result.t2m.values.ravel()) == sorted(source.t2m.values.ravel())
    assert result.attrs == {"title": "x", "references": "y"}
    regridded = regrid(result, Grid.regular(10, region=(20, 60, 0, 50)), method="bilinear")
    inside = regridded.t2m.notnull().all("time").load()
    assert regridded.latitude[inside.any("longitude")].values.tolist() == LATITUDE.tolist()
    assert regridded.longitude[inside.any("latitude")].values.tolist() == LONGITUDE.tolist()
    assert regridded.t2m.attrs["units"] == "K"


# quirk -> what translate tells about it
TOLD = {
    "nothing": [],
    "new CDS": [
        ("time", "called 'valid_time'", "renamed to time"),
        ("time", "expver mixed: 1 (final) at 2, 5 (preliminary, ERA5T) at 1 of 3 times", "kept, both"),
    ],
    "new CDS, final data and ERA5T overlap": [
        ("time", "called 'valid_time'", "renamed to time"),
        ("time", "expver mixed: 1 (final) at 2, 5 (preliminary, ERA5T) at 3 of 5 times", "kept, both"),
        ("time", "times are out of order", "sorted, with their fields"),
        ("time", "2 times in both expver 1 and 5", "dropped those of 5: final data (1) before ERA5T (5)"),
    ],
    "old CDS, final data and ERA5T side by side": [
        (
            "t2m",
            "expver 1 and 5 side by side, along a dimension",
            "combined: final data (1) before ERA5T (5), point by point",
        )
    ],
    "size-1 level and member": [
        ("t2m", "dimension 'level' of size 1, [500.0]", "dropped"),
        ("t2m", "dimension 'number' of size 1, [0]", "dropped"),
    ],
    "latitude descends": [("latitude", "descends from 50 to 30", "sorted to ascend")],
    "longitude below zero": [("longitude", "runs from -350 to -320", "moved to 10 to 40")],
    "latitude and longitude shuffled": [
        ("latitude", "is out of order", "sorted to ascend"),
        ("longitude", "is out of order", "sorted to ascend"),
    ],
    "times out of order": [("time", "times are out of order", "sorted, with their fields")],
    "times decoded from fractions of days": [
        ("time", "3 times miss a whole second by up to 77 us", "rounded: noise of fractional units")
    ],
    "old spelling of units": [("t2m", "units 'degK'", "called K")],
    "alias of the variable": [("2t", "is 2 metre temperature", "renamed to t2m")],
    "a variable nobody knows": [("orography", "unknown to climapred", "left out")],
}


@pytest.mark.parametrize("quirk", TOLD)
def test_what_is_done_is_told(quirk):
    told = translate(QUIRKS[quirk](make_source())).findings
    assert [(finding.subject, finding.found, finding.action) for finding in told] == TOLD[quirk]


def test_what_is_done_to_numbers_is_told():
    longitude = np.float32([-180, -90, 0, 90, 180]) + np.float32(0.1)
    source = with_attrs(make_source(longitude=longitude), units="degC")
    told = [(finding.found, finding.action) for finding in translate(source).findings]
    assert told == [
        ("runs from -179.9 to 180.1", "moved to 0.1 to 270.1"),
        ("misses even steps or decimals by up to 6e-06 degrees", "rounded: noise of float32"),
        ("the column at -179.9 is there again at 180.1", "dropped"),
        ("units 'degC'", "converted to K"),
    ]


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_a_finding_of_translate(case):
    spoil, complaint = REFUSED[case]
    translation = translate(spoil(make_source()))
    assert translation.fields is None
    refused = [finding.found for finding in translation.findings if finding.refused]
    assert any(re.search(complaint, found) for found in refused)
    assert len(refused) == 1


def test_variables_asked_for_must_be_there_and_known():
    source = make_source().assign(orography=make_source().t2m)
    with pytest.raises(
        ValueError, match=r"variable 'msl' cannot be taken from the dataset, which has only: t2m, orography"
    ):
        harmonise(source, ["msl"])
    with pytest.raises(ValueError, match=r"no units or standard name for orography; .*dataset has t2m, orography"):
        harmonise(source, ["orography"])
    assert list(harmonise(source, ["2m_temperature"]).data_vars) == ["t2m"]


@needs_data
def test_two_years_of_ncep():
    with dask.config.set(scheduler=forbid_computing):
        result = harmonise(open_source(DATA / "air.sig995.*.nc"), ["air"])
    assert dict(result.sizes) == {"time": 2920, "latitude": 25, "longitude": 53}
    assert result.indexes["time"].is_monotonic_increasing
    assert Grid.of(result) == Grid.regular(2.5, region=(15, 75, 200, 330))
    assert result.air.attrs["units"] == "K"
    years = []
    for year in ("2013", "2014"):
        with netCDF4.Dataset(DATA / f"air.sig995.{year}.nc") as file:
            years.append(np.asarray(file["air"][:, ::-1]))  # the files run from 75 N to 15 N
    np.testing.assert_allclose(result.air, np.concatenate(years), rtol=1e-6)
    assert float(result.air.min()) > 200
    south, north = result.air.mean(("time", "longitude")).values[[0, -1]]
    assert south > north + 20  # 15 N is warmer than 75 N: latitude and values moved together


@needs_data
def test_one_month_of_era5():
    with dask.config.set(scheduler=forbid_computing):
        result = harmonise(open_source(DATA / "era5-2mt-2019-03-uk.grib"))
    assert dict(result.sizes) == {"time": 744, "latitude": 33, "longitude": 49}
    assert Grid.of(result) == Grid.regular(0.25, region=(50, 58, -10, 2))
    lowest, highest, total, count = np.inf, -np.inf, 0.0, 0
    with (DATA / "era5-2mt-2019-03-uk.grib").open("rb") as file:
        while (handle := eccodes.codes_grib_new_from_file(file)) is not None:
            values = eccodes.codes_get_values(handle)
            eccodes.codes_release(handle)
            lowest, highest = min(lowest, values.min()), max(highest, values.max())
            total, count = total + values.sum(), count + values.size
    assert count == result.t2m.size
    field = result.t2m.load()
    np.testing.assert_allclose([field.min(), field.max()], [lowest, highest], rtol=1e-7)
    np.testing.assert_allclose(field.mean(dtype=np.float64), total / count, rtol=1e-7)


@needs_data
@pytest.mark.parametrize("name", ["scanning_mode_64", "regular_ll_sfc"])
def test_scanning_direction_does_not_matter(name):
    result = harmonise(open_source(DATA / f"grib/{name}.grib"))
    assert Grid.of(result) == Grid.regular(5)
    other = harmonise(open_source(DATA / "grib/regular_ll_sfc.grib"))
    np.testing.assert_allclose(result.skt, other.skt, atol=0.02)  # the two files are packed with different precision
