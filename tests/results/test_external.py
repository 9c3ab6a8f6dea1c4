import numpy as np
import pytest
import xarray as xr

from climapred.data.regrid import regrid
from climapred.data.sources import open_source
from climapred.grid import Grid
from climapred.results.cf import to_cf, to_weatherbench, write_netcdf
from climapred.results.evaluate import evaluate
from climapred.results.external import external_forecast
from climapred.testing import write_grib

GRID = Grid.regular(10, region=(20, 50, 200, 230))
HOUR = np.timedelta64(1, "h")
STARTS = np.datetime64("2014-01-01", "ns") + np.arange(4) * 12 * HOUR
LEADS = np.arange(1, 9) * 6 * HOUR
WANTED = {"init_time": STARTS[1:3], "lead_time": LEADS[:3]}
DIMS = ("init_time", "lead_time", "latitude", "longitude")


def make_forecast(grid=GRID):
    """Every value tells its start, its lead and its cell."""
    shape = (STARTS.size, LEADS.size, *grid.shape)
    values = 200 + np.arange(np.prod(shape)).reshape(shape) / 8
    valid = (("init_time", "lead_time"), STARTS[:, None] + LEADS)
    coordinates = {"init_time": STARTS, "lead_time": LEADS, "valid_time": valid, **grid.coordinates()}
    return xr.Dataset({"t2m": (DIMS, values.astype("float32"), {"units": "K"})}, coordinates)


def take(dataset, **options):
    given = {"init_times": WANTED["init_time"], "lead_times": WANTED["lead_time"]} | options
    return external_forecast(dataset, "t2m", GRID, **given)


def as_cfgrib(forecast):
    names = {"init_time": "time", "lead_time": "step"}
    forecast = forecast.rename(names).isel(latitude=slice(None, None, -1)).assign_coords(heightAboveGround=2.0)
    return forecast.rename(t2m="2t").assign_coords(surface=0.0)


def as_hours(forecast):
    hours = (LEADS / HOUR).astype(float)
    return forecast.assign_coords(lead_time=("lead_time", hours, {"units": "hours"})).drop_vars("valid_time")


SPELLINGS = {
    "ours": lambda forecast: forecast,
    "cf": lambda forecast: to_cf(forecast, source="test"),
    "weatherbench": to_weatherbench,
    "cfgrib": as_cfgrib,
    "hours": as_hours,
    "celsius": lambda forecast: forecast.assign(t2m=(forecast["t2m"] - 273.15).assign_attrs(units="degC")),
    "out of order": lambda forecast: forecast.isel(init_time=[2, 0, 3, 1], lead_time=slice(None, None, -1)),
    "short names": lambda forecast: forecast.rename(latitude="lat", longitude="lon"),
    "level": lambda forecast: forecast.expand_dims(height=[2.0], axis=1),
    "lazy": lambda forecast: forecast.chunk(init_time=1, lead_time=3),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_forecast_is_the_same_in_every_spelling(spelling):
    forecast = make_forecast()
    found = take(SPELLINGS[spelling](forecast))
    assert found["t2m"].dims == DIMS
    assert found["t2m"].dtype == np.float32
    assert found["t2m"].attrs["units"] == "K"
    assert set(found.coords) == {*DIMS, "valid_time"}
    expected = forecast.sel(WANTED)
    np.testing.assert_allclose(found["t2m"], expected["t2m"], atol=1e-4)
    np.testing.assert_array_equal(found["valid_time"], expected["valid_time"])
    assert bool(found["t2m"].chunks) == (spelling == "lazy")


def test_a_file_of_one_start_along_leads_or_valid_times():
    forecast = make_forecast()
    one = {"init_times": STARTS[:1], "lead_times": LEADS[:3]}
    expected = forecast["t2m"].sel(init_time=STARTS[:1], lead_time=LEADS[:3])
    single = forecast.isel(init_time=0)
    np.testing.assert_array_equal(take(as_cfgrib(forecast).isel(time=0), **one)["t2m"], expected)
    np.testing.assert_array_equal(
        take(to_cf(forecast.isel(init_time=[0]), source="", layout="valid"), **one)["t2m"], expected
    )
    valid = single.swap_dims(lead_time="valid_time").drop_vars("lead_time").rename(valid_time="time")
    np.testing.assert_array_equal(take(valid, **one)["t2m"], expected)


def test_members_keep_their_dimension():
    forecast = xr.concat([make_forecast(), make_forecast() + 1], dim="realization").assign_coords(realization=[0, 1])
    forecast["t2m"].attrs["units"] = "K"
    found = take(to_weatherbench(forecast))
    assert found["t2m"].dims == ("init_time", "realization", *DIMS[1:])
    np.testing.assert_allclose(found["t2m"].isel(realization=1), make_forecast().sel(WANTED)["t2m"] + 1)


def test_an_older_start_takes_the_place_of_a_missing_one():
    # Starts at 00 and 12, wanted at 12, 18 and 00 UTC: that of 18 is the one of 12, with leads six hours longer.
    forecast = make_forecast()
    starts = STARTS[1] + np.arange(3) * 6 * HOUR
    found = take(forecast, init_times=starts, max_delay=6 * HOUR)["t2m"]
    np.testing.assert_array_equal(found["init_time"], starts)
    for k, lead in enumerate(LEADS[:3]):
        np.testing.assert_array_equal(found[0, k], forecast["t2m"].sel(init_time=STARTS[1], lead_time=lead))
        np.testing.assert_array_equal(found[1, k], forecast["t2m"].sel(init_time=STARTS[1], lead_time=lead + 6 * HOUR))
        np.testing.assert_array_equal(found[2, k], forecast["t2m"].sel(init_time=STARTS[2], lead_time=lead))
    with pytest.raises(ValueError, match=r"lacks 1 of 3 starts, first 2014-01-01T18.* allow older ones: max_delay="):
        take(forecast, init_times=starts)
    with pytest.raises(ValueError, match="lacks 1 of 3 starts"):
        take(forecast.isel(lead_time=slice(0, 3)), init_times=starts, max_delay=6 * HOUR)


def test_a_file_on_another_grid_is_regridded_and_scored(tmp_path):
    # A global forecast from 90 to -90, of a field that is linear in latitude: bilinear weights keep it.
    grid = Grid.regular(5)
    forecast = make_forecast(grid)
    forecast["t2m"] = (
        (250 + forecast["latitude"] / 2).broadcast_like(forecast["t2m"]).transpose(*DIMS).astype("float32")
    )
    forecast["t2m"].attrs["units"] = "K"
    path = write_netcdf(to_cf(forecast, source="test").isel(latitude=slice(None, None, -1)), tmp_path / "gfs.nc")
    with xr.open_dataset(path) as stored:
        fields = stored[["t2m"]].drop_vars("time")
        with pytest.raises(
            ValueError, match=r"must be on the grid of the truth, Grid\(4 x 4.*, got .*; regrid\(\) it first"
        ):
            take(fields)
        found = take(regrid(fields, GRID, "bilinear")).load()
    times = np.unique(found["valid_time"])
    truth = xr.Dataset(coords={"time": times, **GRID.coordinates()})
    truth["t2m"] = (250 + truth["latitude"] / 2).expand_dims(time=times, longitude=GRID.longitude)
    truth["t2m"].attrs = {"units": "degK"}
    scores = evaluate({"gfs": found}, truth.transpose("time", "latitude", "longitude"))
    np.testing.assert_allclose(scores["mae"], 0, atol=1e-4)


def write_gfs(path, forecast, edition):
    """Write a global forecast as NCEP does: a message for each start and lead, from north to south, in kelvin."""
    grid, messages = Grid.of(forecast), []
    level = {"typeOfLevel": "heightAboveGround", "level": 2} if edition == 2 else {}
    keys = {"centre": "kwbc", "shortName": "2t", **level, "Ni": grid.shape[1], "Nj": grid.shape[0], "bitsPerValue": 24}
    for name, axis in (("latitude", grid.latitude[::-1]), ("longitude", grid.longitude)):
        keys |= {f"{name}OfFirstGridPointInDegrees": axis[0], f"{name}OfLastGridPointInDegrees": axis[-1]}
    keys |= {"iDirectionIncrementInDegrees": 5, "jDirectionIncrementInDegrees": 5}
    for start in forecast["init_time"].values:
        clock = str(start)
        when = {"dataDate": int(clock[:10].replace("-", "")), "dataTime": int(clock[11:13]) * 100}
        for lead in forecast["lead_time"].values:
            values = forecast["t2m"].sel(init_time=start, lead_time=lead).values[::-1]
            messages.append(
                {**keys, **when, "indicatorOfUnitOfTimeRange": 1, "step": int(lead / HOUR), "values": values}
            )
    return write_grib(path, *messages, sample=f"regular_ll_sfc_grib{edition}")


@pytest.mark.parametrize("edition", [1, 2])
def test_a_gfs_file_is_regridded_matched_and_scored_like_plain_xarray(tmp_path, edition):
    """Four starts, twice a day, with eight leads each; wanted at 18 UTC too, where the start of 12 UTC stands in."""
    random = np.random.default_rng(edition)
    forecast = make_forecast(Grid.regular(5))
    forecast["t2m"] = forecast["t2m"].copy(data=random.normal(280, 9, forecast["t2m"].shape).astype("float32"))
    opened = open_source(write_gfs(tmp_path / "gfs.grib", forecast, edition), variables=["2t"], forecasts=True)
    assert opened["t2m"].dims == DIMS
    starts, leads = STARTS[1] + np.arange(3) * 6 * HOUR, LEADS[:3]
    found = take(regrid(opened, GRID, "bilinear"), init_times=starts, lead_times=leads, max_delay=6 * HOUR)["t2m"]
    assert found.chunks
    axes = {"latitude": GRID.latitude, "longitude": GRID.longitude}
    theirs = forecast["t2m"].astype("float64").interp(axes)  # bilinear too
    run = [STARTS[1], STARTS[1], STARTS[2]]
    for i, (start, own) in enumerate(zip(starts, run, strict=True)):
        for k, lead in enumerate(leads):
            expected = theirs.sel(init_time=own, lead_time=start + lead - own)
            np.testing.assert_allclose(found[i, k], expected, atol=1e-4)  # 24 bits over some 60 K
    times = np.unique(found["valid_time"])
    truth = make_truth(times)
    errors = found - truth["t2m"].sel(time=found["valid_time"]).drop_vars("time").astype("float64")
    scores = evaluate({"gfs": found.to_dataset(name="t2m")}, truth)
    np.testing.assert_allclose(scores["rmse"].values[0], np.sqrt((errors**2).mean([DIMS[0], *DIMS[2:]])), rtol=1e-6)


def make_truth(times):
    values = np.random.default_rng(9).normal(280, 5, (times.size, *GRID.shape)).astype("float32")
    return xr.Dataset({"t2m": (("time", *DIMS[2:]), values, {"units": "K"})}, {"time": times, **GRID.coordinates()})


def test_errors_say_what_cannot_be_told():
    forecast = make_forecast()
    with pytest.raises(ValueError, match=r"the forecast lacks all starts: the two have no time in common, first 2015"):
        take(forecast, init_times=STARTS + 365 * 24 * HOUR)
    with pytest.raises(ValueError, match="variable 't2m' cannot be taken from the forecast, which has only: msl"):
        take(forecast.rename(t2m="msl"))
    with pytest.raises(ValueError, match="variable 't2m' of the forecast has no units; set them"):
        take(forecast.drop_attrs())
    with pytest.raises(ValueError, match="cannot convert 'Pa' to 'K'"):
        take(forecast.assign(t2m=forecast["t2m"].assign_attrs(units="Pa")))
    with pytest.raises(
        ValueError, match=r"the leads 'lead_time' must be times or numbers with units .*'units'\] = 'hours'"
    ):
        take(as_hours(forecast).assign_coords(lead_time=np.arange(8)))
    with pytest.raises(ValueError, match="a series of valid times is no forecast"):
        take(forecast.isel(lead_time=0, drop=True).drop_vars("valid_time").rename(init_time="time"))
    with pytest.raises(ValueError, match="a forecast without leads must have one start and valid times"):
        take(forecast.isel(lead_time=0).drop_vars(["lead_time", "valid_time"]))
    with pytest.raises(ValueError, match=r"lead_times must be positive, got -1 days"):
        take(forecast, lead_times=[-6 * HOUR])
    with pytest.raises(
        ValueError, match=r"the forecast has further dims \[\('height', 2\)\]; select one label of each"
    ):
        take(forecast.expand_dims(height=[2.0, 10.0]))
    with pytest.raises(ValueError, match="'init_time' of the forecast repeats 2014-01-01"):
        take(forecast.isel(init_time=[0, 0, 1, 2]))
    with pytest.raises(ValueError, match="climapred does not know the units of 'ozone'; pass units="):
        external_forecast(forecast.rename(t2m="ozone"), "ozone", GRID, init_times=STARTS, lead_times=LEADS)
