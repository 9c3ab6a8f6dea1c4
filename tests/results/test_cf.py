import shutil
import stat
import subprocess
import sys

import netCDF4
import numpy as np
import pytest
import xarray as xr

from climapred.grid import Grid
from climapred.results.baselines import persistence
from climapred.results.cf import adjacency_to_cf, check_cf, from_cf, to_cf, write_netcdf
from climapred.results.evaluate import evaluate

HOUR, MINUTE = np.timedelta64(1, "h"), np.timedelta64(1, "m")
GRID = Grid.regular(2.5, region=(20, 30, 200, 215))
LEADS = np.array([6, 12, 36]) * HOUR


def make_forecast(count=4, *, names=("t2m",), leads=LEADS, step=6 * HOUR, grid=GRID, seed=0):
    times = np.datetime64("2014-02-27T18:00", "ns") + np.arange(count) * step
    random = np.random.default_rng(seed)
    dims = ("time", "latitude", "longitude")
    variables = {name: (dims, random.normal(280, 5, (count, *grid.shape)).astype("float32")) for name in names}
    fields = xr.Dataset(variables, coords={"time": times, **grid.coordinates()})
    return persistence(fields, times, leads)


def write_forecast(path, forecast, **attributes):
    return write_netcdf(to_cf(forecast, source="persistence of seeded noise", **attributes), path)


def read_forecast(path, **options):
    with xr.open_dataset(path, **options) as dataset:
        return from_cf(dataset).load()


@pytest.mark.parametrize("count", [4, 1])
def test_a_forecast_file_is_clean_to_a_strict_checker(tmp_path, count):
    names = ("t2m", "air", "d2m", "skt", "t", "u10", "v10", "msl")
    path = write_forecast(tmp_path / "forecast.nc", make_forecast(count, names=names), references="none yet")
    assert check_cf(path) == []


@pytest.mark.parametrize(
    ("leads", "step"),
    [
        (LEADS, 6 * HOUR),
        (np.array([10, 20, 50]) * MINUTE, 10 * MINUTE),
        (np.array([24, 8784, 87_672]) * HOUR, np.timedelta64(97, "s")),
    ],
)
def test_the_round_trip_is_exact(tmp_path, leads, step):
    forecast = make_forecast(names=("t2m", "u10"), leads=leads, step=step)
    path = write_forecast(tmp_path / "forecast.nc", forecast)
    for back in (from_cf(to_cf(forecast, source="memory")), read_forecast(path)):
        xr.testing.assert_equal(back, forecast)
        assert back["t2m"].dtype == np.float32
        assert back["t2m"].dims == forecast["t2m"].dims
        assert "bounds" not in back["latitude"].attrs
    again = write_forecast(tmp_path / "again.nc", read_forecast(path))
    xr.testing.assert_equal(read_forecast(again), forecast)


def test_periods_are_read_whether_xarray_decoded_them_or_not(tmp_path):
    forecast = make_forecast()
    path = write_forecast(tmp_path / "forecast.nc", forecast)
    for choice in (True, False):
        xr.testing.assert_equal(read_forecast(path, decode_timedelta=choice), forecast)


def test_missing_values_survive(tmp_path):
    forecast = make_forecast().copy(deep=True)
    forecast["t2m"][0, 1, 2, 3] = np.nan
    path = write_forecast(tmp_path / "forecast.nc", forecast)
    xr.testing.assert_equal(read_forecast(path), forecast)


def test_the_layout_is_that_of_the_conventions(tmp_path):
    path = write_forecast(
        tmp_path / "forecast.nc", make_forecast(), title="Test", attributes={"institution": "Nowhere"}
    )
    with netCDF4.Dataset(path) as file:
        field = file["t2m"]
        assert field.dimensions == ("forecast_reference_time", "forecast_period", "latitude", "longitude")
        assert field.units_metadata == "temperature: on_scale"
        assert field.coordinates == "time"
        assert field.filters()["zlib"]
        assert field.filters()["shuffle"]
        assert field.chunking() == list(field.shape)
        assert file["time"].dimensions == ("forecast_reference_time", "forecast_period")
        assert file["time"].units == "hours since 1970-01-01"
        # 2014-02-28T00 is 16129 days after 1970-01-01: 44 years, 11 leap days, 31 + 27 days.
        assert file["time"][0, 0] == 24 * (44 * 365 + 11 + 31 + 27)
        assert list(file["forecast_period"][:]) == [6, 12, 36]
        np.testing.assert_array_equal(file["latitude_bounds"][:2], [[18.75, 21.25], [21.25, 23.75]])
        for name in ("time", "forecast_reference_time", "forecast_period", "latitude", "longitude"):
            assert "_FillValue" not in file[name].ncattrs()
        assert file.Conventions == "CF-1.11"
        assert file.title == "Test"
        assert file.institution == "Nowhere"
        assert "references" not in file.ncattrs()


def test_an_unknown_variable_needs_units_and_keeps_its_attributes(tmp_path):
    forecast = make_forecast().rename(t2m="chill")
    forecast["chill"].attrs = {}
    with pytest.raises(ValueError, match="variable 'chill' has no units; set them, or use one of"):
        to_cf(forecast, source="test")
    forecast["chill"].attrs = {"units": "K", "units_metadata": "temperature: difference"}
    path = write_forecast(tmp_path / "forecast.nc", forecast)
    with netCDF4.Dataset(path) as file:
        assert file["chill"].units_metadata == "temperature: difference"
        assert file["chill"].long_name == "chill"
    assert check_cf(path) == []


def test_lazy_forecasts_are_written_chunk_by_chunk(tmp_path):
    forecast = make_forecast(9)
    lazy = to_cf(forecast.chunk(init_time=2, latitude=3), source="dask")
    assert lazy["t2m"].chunks
    path = write_netcdf(lazy, tmp_path / "forecast.nc")
    xr.testing.assert_equal(read_forecast(path), forecast)


@pytest.mark.skipif(shutil.which("cdo") is None, reason="cdo is not installed")
def test_cdo_reads_a_forecast(tmp_path):
    path = write_forecast(tmp_path / "forecast.nc", make_forecast(1))

    def cdo(operator):
        return subprocess.run(["cdo", "-s", operator, str(path)], check=True, capture_output=True, text=True).stdout

    assert "t2m" in cdo("sinfon")
    assert cdo("showtimestamp").split() == ["2014-02-27T18:00:00"]


def test_learned_weights_are_clean_and_say_which_way_they_point(tmp_path):
    grid = Grid.regular(10, region=(0, 20, 100, 130))
    weights = np.random.default_rng(0).random((grid.size, grid.size)).astype("float32")
    path = write_netcdf(adjacency_to_cf(weights, grid, source="seeded noise"), tmp_path / "adjacency.nc")
    assert check_cf(path) == []
    with xr.open_dataset(path) as back:
        assert back["weight"].dims == ("node_target", "node_source")
        assert "(row)" in back["weight"].attrs["long_name"]
        np.testing.assert_array_equal(back["weight"], weights)
        # Node 5 of a 3 x 4 grid is row 1, column 1.
        assert (back["target_latitude"][5], back["source_longitude"][5]) == (10, 110)
    named = adjacency_to_cf(weights, grid, source="seeded noise", long_name="row from column")
    assert named["weight"].attrs["long_name"] == "row from column"
    with pytest.raises(ValueError, match=r"weights must have shape \(12, 12\) for Grid\(3 x 4.*got \(3, 3\)"):
        adjacency_to_cf(weights[:3, :3], grid, source="test")


def test_scores_can_be_written_and_read(tmp_path):
    forecast = make_forecast()
    truth = forecast["t2m"].isel(lead_time=0).swap_dims(init_time="valid_time")
    truth = truth.drop_vars(["init_time", "lead_time"]).rename(valid_time="time").to_dataset()
    scores = evaluate({"persistence": forecast.isel(lead_time=[0])}, truth)
    path = write_netcdf(scores, tmp_path / "scores.nc")
    with xr.open_dataset(path, decode_timedelta=True) as back:
        xr.testing.assert_equal(back.load(), scores)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write_forecast(tmp_path / "forecast.nc", make_forecast())
    before = path.read_bytes()

    def fail(block):
        raise RuntimeError("the disk is on fire")

    lazy = to_cf(make_forecast().chunk(init_time=1), source="test")
    broken = lazy.assign(
        t2m=lazy["t2m"].copy(data=lazy["t2m"].data.map_blocks(fail, dtype="float32", meta=np.empty(0)))
    )
    with pytest.raises(RuntimeError, match="on fire"):
        write_netcdf(broken, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["forecast.nc"]
    assert path.read_bytes() == before
    with pytest.raises(FileNotFoundError, match=r"the folder .*missing does not exist, create it first"):
        write_netcdf(broken, tmp_path / "missing" / "forecast.nc")


def test_a_written_file_has_the_permissions_of_any_other(tmp_path):
    other = tmp_path / "other"
    other.touch()
    path = write_forecast(tmp_path / "forecast.nc", make_forecast())
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


def test_the_checker_finds_what_is_wrong_quietly(tmp_path, capfd):
    dataset = to_cf(make_forecast(), source="test")
    dataset["t2m"].attrs |= {"units": "blorp", "standard_name": "air_warmth"}
    del dataset["t2m"].attrs["units_metadata"]
    dataset["latitude"].attrs["units"] = "degrees_up"
    dataset.attrs["Conventions"] = "CF-0.1"
    # A vocabulary that names a version makes the original checker download it.
    dataset.attrs["standard_name_vocabulary"] = "CF Standard Name Table v27"
    before = set(sys.modules)
    messages = check_cf(write_netcdf(dataset, tmp_path / "broken.nc"))
    # The checker imports pyproj, which crashes beside eccodes: it must stay out of this process.
    assert not {"compliance_checker", "pyproj"} & (set(sys.modules) - before)
    for fragment in ("blorp", "air_warmth", "latitude", "Conventions"):
        assert any(fragment in message for message in messages), fragment
    assert all(message.startswith("§") for message in messages)
    assert not any("does not cross 1582" in message for message in messages)
    assert capfd.readouterr() == ("", "")


def test_the_checker_names_a_file_that_is_not_netcdf_and_the_extra_that_is_missing(tmp_path, monkeypatch):
    text = tmp_path / "text.nc"
    text.write_text("not a NetCDF file")
    with pytest.raises(OSError, match=r"text\.nc"):
        check_cf(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "compliance_checker", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'climapred\[dev\]'"):
        check_cf(text)


def test_errors_name_what_a_forecast_lacks():
    forecast = make_forecast()
    with pytest.raises(ValueError, match=r"forecast must have the coordinates \['valid_time'\]"):
        to_cf(forecast.drop_vars("valid_time"), source="test")
    with pytest.raises(ValueError, match=r"a CF forecast must hold \['forecast_period', .*made by to_cf"):
        from_cf(forecast)
    shifted = forecast.assign_coords(init_time=forecast["init_time"] + np.timedelta64(500, "ms"))
    with pytest.raises(ValueError, match=r"times must be whole seconds, got 2014-02-27T18:00:00\.5"):
        to_cf(shifted, source="test")
    days = to_cf(forecast, source="test")
    days["forecast_period"].attrs["units"] = "days"
    with pytest.raises(ValueError, match="forecast_period must be in hours, got units 'days'"):
        from_cf(days)
