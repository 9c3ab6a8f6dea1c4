import numpy as np
import pytest
import xarray as xr

from climapred.data.build import Source, build_store
from climapred.grid import Grid
from climapred.learning.ensemble import Perturbation, combine_members
from climapred.learning.forecast import forecast
from climapred.learning.new_data import forecast_batches, open_fields, start_times
from climapred.testing import synthetic_temperature, write_era5_grib, write_ncep

HOUR = np.timedelta64(1, "h")


@pytest.fixture
def model(make_model):
    return make_model()


@pytest.fixture
def netcdf(fields, tmp_path):
    """The fields as another maker would write them: other names and units, latitude descending."""
    other = (fields[["t2m"]] - 273.15).rename(t2m="2t", latitude="lat", longitude="lon").isel(lat=slice(None, None, -1))
    other["2t"].attrs["units"] = "degC"
    other.to_netcdf(tmp_path / "new.nc")
    return tmp_path / "new.nc"


def test_netcdf_of_other_habits_gives_the_fields(model, fields, netcdf):
    found = open_fields(model, netcdf)
    assert list(found.data_vars) == ["t2m"]
    xr.testing.assert_allclose(found["t2m"].drop_attrs(), fields["t2m"].drop_attrs(), rtol=0, atol=1e-4)
    assert start_times(model, found["time"].values) == fields["time"].values[-1:]
    xr.testing.assert_allclose(forecast(model, found), forecast(model, fields), rtol=0, atol=0.02)


def test_grib_and_stores_give_the_fields(make_model, fields, netcdf, tmp_path):
    model = make_model()
    path = write_era5_grib(fields[["t2m"]].isel(time=slice(0, 8)), tmp_path / "new.grib")
    assert open_fields(model, [path]).sizes == {"time": 8, "latitude": 5, "longitude": 7}
    build_store(Source((str(netcdf),), ("t2m",)), tmp_path / "tensors.zarr", workers=1)
    found = open_fields(model, tmp_path / "tensors.zarr")
    np.testing.assert_allclose(found["t2m"], fields["t2m"], rtol=0, atol=1e-4)


def test_another_grid_is_refused_or_regridded_on_request(model, tmp_path):
    wide = synthetic_temperature(Grid.regular(5, (10, 70, 190, 270)), periods=8, links=()).fields
    path = tmp_path / "wide.nc"
    wide.to_netcdf(path)
    with pytest.raises(ValueError, match=r"is for Grid\(5 x 7, .*, the data are on Grid\(13 x 17, .*--regrid bilinear"):
        open_fields(model, path)
    found = open_fields(model, path, regrid_method="bilinear")
    inner = wide["t2m"].sel(latitude=model.grid.latitude, longitude=model.grid.longitude)
    np.testing.assert_allclose(found["t2m"], inner, rtol=0, atol=1e-4)
    assert forecast(model, found).sizes["init_time"] == 1


def test_a_variable_that_is_missing_or_of_other_units(make_model, fields, netcdf, tmp_path):
    with pytest.raises(ValueError, match=r"variable 'skt' cannot be taken from .*new.nc, which has only: 2t"):
        open_fields(make_model(variables=("skt", "t2m")), netcdf)
    pressure = fields[["t2m"]].copy()
    pressure["t2m"].attrs = {"units": "hPa"}
    pressure.to_netcdf(tmp_path / "pressure.nc")
    with pytest.raises(ValueError, match="'t2m': cannot convert 'hPa' to 'K'"):
        open_fields(make_model(), tmp_path / "pressure.nc")
    with pytest.raises(FileNotFoundError, match="no file matches"):
        open_fields(make_model(), tmp_path / "absent.nc")


def test_ncep_files_need_a_model_of_their_variable(model, tmp_path):
    path = write_ncep(synthetic_temperature(periods=8).fields, tmp_path)[0]
    with pytest.raises(ValueError, match="variable 't2m' cannot be taken from"):
        open_fields(model, path)


def test_start_times(model, fields):
    times = fields["time"].values
    assert start_times(model, times) == times[-1]
    assert start_times(model, np.delete(times, -2)) == times[-3]  # the last lacks the one before
    several = start_times(model, times, "2001-01-03T06:00Z/2001-01-02")
    np.testing.assert_array_equal(several, times[[4, 9]])
    np.testing.assert_array_equal(start_times(model, times, "2001-01-02/to/2001-01-03"), times[4:9])
    for step in ("12", "12h"):
        np.testing.assert_array_equal(start_times(model, times, f"2001-01-02/to/2001-01-03T06/by/{step}"), times[4:9:2])
    np.testing.assert_array_equal(start_times(model, times, "2001-01-02/to/2001-01-05/by/1d"), times[4:17:4])
    hourly = times[0] + np.arange(60) * HOUR  # finer data hold all that is needed
    assert start_times(model, hourly) == hourly[-1]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            "1999-01-01",
            r"no field at 1999-01-01T00:00 \(1 of 1 start times .*\); the data hold 60 times from 2001-01-01T",
        ),
        ("2001-01-03/2001-01-03T03", r"no field at 2001-01-03T03:00 \(1 of 2 start .* to 2001-01-15T18:00, 6 h apart"),
        (
            "2001-01-01T06/2001-01-03",
            "needs 3 frames, 6 h apart, up to 2001-01-01T06:00; 1 are missing, the first is 2000-12-31T18:00; the first "
            "start time that has them is 2001-01-01T12:00",
        ),
        ("yesterday", "start times are latest, TIME, .* such as 2014-02-27T18, got 'yesterday' in 'yesterday'"),
        ("2001-01-02/", "got '' in '2001-01-02/'"),
        ("2001-01-02/to", "a range of start times is TIME/to/TIME or TIME/to/TIME/by/STEP, got '2001-01-02/to'"),
        ("2001-01-02/to/2001-01-03/each/6", "a range of start times is TIME/to/TIME"),
        ("2001-01-03/to/2001-01-02", "must end after it begins, got '2001-01-03/to/2001-01-02'"),
        ("2001-01-02/to/2001-01-03/by/0", r"is a number of hours \(24, 24h\) or days \(1d\), got '0'"),
        ("2001-01-02/to/2001-01-03/by/1w", "got '1w'"),
    ],
)
def test_start_times_that_are_none(model, fields, wanted, message):
    with pytest.raises(ValueError, match=message):
        start_times(model, fields["time"].values, wanted)


def test_data_of_another_step_or_too_short_have_no_start(model, fields):
    times = fields["time"].values
    with pytest.raises(
        ValueError,
        match=r"needs 3 frames, 6 h apart, up to a start time; no time has them: the data hold 15 .* 24 h apart",
    ):
        start_times(model, times[::4])
    with pytest.raises(ValueError, match="no time has them: the data hold 1 times"):
        start_times(model, times[:1])
    with pytest.raises(ValueError, match=r"2 are missing, .*; none has; the data hold 15 times"):
        start_times(model, times[::4], "2001-01-05")


def test_batches_of_one_model_are_its_forecast_and_of_two_an_ensemble(make_model, fields):
    one, two = make_model(), make_model(seed=1)
    starts = fields["time"].values[[10, 20, 30]]
    (alone,) = forecast_batches([one], [fields], starts, steps=3)
    assert alone.identical(forecast(one, fields, starts, steps=3))
    (both,) = forecast_batches([one, two], [fields, fields], starts, perturbation=Perturbation(2))
    expected = combine_members([forecast(m, fields, starts, perturbation=Perturbation(2)) for m in (one, two)])
    xr.testing.assert_equal(both, expected)
    assert both.sizes["realization"] == 4
