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
from climapred.results.cf import (
    adjacency_to_cf,
    check_cf,
    from_cf,
    from_weatherbench,
    pack,
    scores_to_cf,
    to_cf,
    to_weatherbench,
    write_dataset,
    write_netcdf,
    write_zarr,
)
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


def members_of(forecast, count=3):
    """An ensemble whose members differ by whole kelvin."""
    number = xr.DataArray(np.arange(count, dtype="float32"), dims="realization")
    members = {name: (field + number).assign_attrs(field.attrs) for name, field in forecast.items()}
    whole = forecast.assign(members).assign_coords(realization=np.arange(count, dtype="int32"))
    return whole.transpose("init_time", "realization", "lead_time", ...)


@pytest.mark.parametrize("layout", ["starts", "valid"])
@pytest.mark.parametrize("with_members", [False, True])
@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_both_layouts_are_clean_and_exact_in_both_formats(tmp_path, layout, with_members, suffix):
    forecast = make_forecast(1, names=("t2m", "u10"))
    forecast = members_of(forecast) if with_members else forecast
    path = write_dataset(to_cf(forecast, source="noise", layout=layout), tmp_path / f"forecast{suffix}")
    options = {"engine": "zarr", "consolidated": False} if suffix == ".zarr" else {}
    back = read_forecast(path, **options)
    xr.testing.assert_equal(back, forecast)
    assert back["t2m"].dims == forecast["t2m"].dims
    assert back["t2m"].dtype == np.float32
    if suffix == ".nc":
        assert check_cf(path) == []
        with netCDF4.Dataset(path) as file:
            leading = {"starts": ("forecast_reference_time",), "valid": ("time",)}[layout]
            inner = {"starts": ("forecast_period",), "valid": ()}[layout]
            member = ("realization",) if with_members else ()
            assert file["t2m"].dimensions == (*leading, *member, *inner, "latitude", "longitude")
            assert "coordinates" not in file["latitude_bounds"].ncattrs()


def test_a_layout_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"layout must be one of starts, valid, got 'flat'"):
        to_cf(make_forecast(1), source="test", layout="flat")
    with pytest.raises(
        ValueError, match=r"'valid' holds one start time, got 2; write a file for each, or use layout='st"
    ):
        to_cf(make_forecast(2), source="test", layout="valid")


def cdo(*arguments):
    command = ["cdo", "-s", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True)


@pytest.mark.skipif(shutil.which("cdo") is None, reason="cdo is not installed")
@pytest.mark.parametrize("with_members", [False, True])
def test_cdo_reads_the_times_of_a_file_with_one_start_time(tmp_path, with_members):
    forecast = members_of(make_forecast(1)) if with_members else make_forecast(1)
    path = write_netcdf(to_cf(forecast, source="noise", layout="valid"), tmp_path / "forecast.nc")
    found = cdo("sinfon", path)
    assert "t2m" in found.stdout
    assert "time : 3 steps" in found.stdout
    assert "ForecastRefTime =  2014-02-27T18:00:00" in found.stdout
    assert ("realization : 0 to 2" in found.stdout) == with_members
    assert "Inconsistent" not in found.stderr  # the bounds are bounds
    stamps = ["2014-02-28T00:00:00", "2014-02-28T06:00:00", "2014-03-01T06:00:00"]
    assert cdo("showtimestamp", path).stdout.split() == stamps
    mean = cdo("outputf,%.4f,1", "-fldmean", "-seltimestep,3", "-sellevidx,1", "-selname,t2m", path).stdout
    weights = np.cos(np.radians(forecast["latitude"]))
    last = forecast["t2m"].isel(lead_time=-1, init_time=0, **({"realization": 0} if with_members else {}))
    assert float(mean) == pytest.approx(float(last.weighted(weights).mean()), abs=2e-2)


@pytest.mark.skipif(shutil.which("cdo") is None, reason="cdo is not installed")
def test_cdo_takes_many_start_times_for_times_and_periods_for_levels(tmp_path):
    path = write_forecast(tmp_path / "forecast.nc", make_forecast(3))
    stamps = ["2014-02-27T18:00:00", "2014-02-28T00:00:00", "2014-02-28T06:00:00"]
    assert cdo("showtimestamp", path).stdout.split() == stamps
    assert cdo("showlevel", path).stdout.split() == ["6", "12", "36"]


@pytest.mark.parametrize("write", [write_netcdf, write_zarr])
def test_compression_and_chunks_on_request(tmp_path, write):
    dataset = to_cf(make_forecast(4), source="noise")
    chunks = {"forecast_reference_time": 1, "latitude": 2}
    path = write(dataset, tmp_path / "forecast", complevel=0, chunks=chunks)
    options = {"engine": "zarr", "consolidated": False} if path.is_dir() else {}
    with xr.open_dataset(path, **options) as back:
        stored = back["t2m"].encoding
        assert tuple(stored.get("chunksizes", stored.get("chunks"))) == (1, 3, 2, 7)
        assert not stored.get("zlib")
        assert not stored.get("compressors")
        xr.testing.assert_equal(from_cf(back).load(), make_forecast(4))
    smooth = dataset.assign(t2m=xr.zeros_like(dataset["t2m"]))
    sizes = []
    for level in (0, 9):
        path = write(smooth, tmp_path / f"level{level}", complevel=level)
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        sizes.append(sum(file.stat().st_size for file in files))
    assert sizes[1] < sizes[0]
    for wrong in ({"time_of_day": 1}, {"latitude": 0}):
        with pytest.raises(ValueError, match=r"chunks must give some of the dims .* a length of at least 1, got"):
            write(dataset, tmp_path / "wrong", chunks=wrong)
    with pytest.raises(ValueError, match=r"complevel must lie in 0 \(none\) to 9, got 10"):
        write(dataset, tmp_path / "wrong", complevel=10)


@pytest.mark.parametrize("write", [write_netcdf, write_zarr])
@pytest.mark.parametrize("lazy", [False, True])
def test_packed_values_are_as_near_as_the_file_states(tmp_path, write, lazy):
    forecast = make_forecast(names=("t2m", "u10")).copy(deep=True)
    forecast["t2m"][0, 1, 2, 3] = np.nan
    dataset = to_cf(forecast.chunk(init_time=1) if lazy else forecast, source="noise")
    path = write(dataset, tmp_path / "packed.nc", largest_error={"t2m": 0.01})
    options = {"engine": "zarr", "consolidated": False} if path.is_dir() else {}
    back = read_forecast(path, **options)
    stated = back["t2m"].attrs["largest_packing_error"]
    error = np.abs(back["t2m"].values.astype("float64") - forecast["t2m"].values)
    assert 0.005 < stated <= 0.01
    assert 0.9 * stated < np.nanmax(error) <= stated
    np.testing.assert_array_equal(np.isnan(back["t2m"]), np.isnan(forecast["t2m"]))
    assert back["t2m"].dtype == np.float32
    np.testing.assert_array_equal(back["u10"], forecast["u10"])
    # Packed once more, nothing changes.
    again = write(to_cf(back, source="noise"), tmp_path / "again.nc", largest_error={"t2m": 0.01})
    xr.testing.assert_equal(read_forecast(again, **options), back)
    if path.is_file():
        assert check_cf(path) == []
        with netCDF4.Dataset(path) as file:
            assert file["t2m"].dtype == np.int16


def test_packing_that_cannot_keep_its_word_is_refused():
    dataset = to_cf(make_forecast(names=("t2m", "u10")), source="noise")
    with pytest.raises(
        ValueError, match=r"'t2m' cannot be packed with .* of 0.0001: 16 bits reach .*; ask for twice that"
    ):
        pack(dataset, 0.0001)
    flat = dataset.assign(t2m=dataset["t2m"] * 0 + np.float32(280))
    with pytest.raises(ValueError, match=r"of 1e-06: float32 values of this size are 3.1e-05 apart; ask for more"):
        pack(flat, {"t2m": 1e-6})
    with pytest.raises(ValueError, match="the largest error of 't2m' must be positive, got 0"):
        pack(dataset, 0)
    with pytest.raises(ValueError, match=r"largest_error names \['msl'\], the fields are \['t2m', 'u10'\]"):
        pack(dataset, {"msl": 1})


def test_a_field_of_nothing_but_gaps_is_packed():
    dataset = to_cf(make_forecast(1), source="noise")
    empty = pack(dataset.assign(t2m=dataset["t2m"] * np.nan), 0.01)
    assert xr.decode_cf(empty)["t2m"].isnull().all()


def test_a_zarr_folder_is_replaced_whole(tmp_path):
    for count in (4, 2):
        path = write_zarr(to_cf(make_forecast(count), source="noise"), tmp_path / "forecast.zarr")
        xr.testing.assert_equal(read_forecast(path, engine="zarr", consolidated=False), make_forecast(count))
    assert [entry.name for entry in tmp_path.iterdir()] == ["forecast.zarr"]
    with pytest.raises(ValueError, match=r"the output must end in .nc or .zarr, got forecast.grib"):
        write_dataset(to_cf(make_forecast(), source="noise"), "forecast.grib")


@pytest.mark.parametrize("with_members", [False, True])
def test_weatherbench_names_there_and_back(tmp_path, with_members):
    forecast = make_forecast(names=("t2m", "u10", "msl", "air"))
    forecast = members_of(forecast) if with_members else forecast
    found = to_weatherbench(forecast)
    names = {"2m_temperature", "10m_u_component_of_wind", "mean_sea_level_pressure", "air"}
    assert set(found.data_vars) == names
    member = ("number",) if with_members else ()
    dims = ("time", *member, "prediction_timedelta", "latitude", "longitude")
    assert found["2m_temperature"].dims == dims
    np.testing.assert_array_equal(found["time"], forecast["init_time"])
    np.testing.assert_array_equal(found["prediction_timedelta"], forecast["lead_time"])
    np.testing.assert_array_equal(found["2m_temperature"], forecast["t2m"])
    assert to_weatherbench(to_cf(forecast, source="noise")).equals(found)
    path = write_zarr(found, tmp_path / "wb.zarr")
    with xr.open_zarr(path, consolidated=False, decode_timedelta=True) as stored:
        xr.testing.assert_equal(from_weatherbench(stored).load(), forecast)


def test_what_is_not_weatherbench_is_refused():
    found = to_weatherbench(make_forecast())
    with pytest.raises(
        ValueError, match="must have the dimension 'prediction_timedelta' with values of type timedelta64"
    ):
        from_weatherbench(found.assign_coords(prediction_timedelta=[6, 12, 36]))
    with pytest.raises(ValueError, match="must have the dimension 'time' with values of type datetime64"):
        from_weatherbench(make_forecast())


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
    path = write_netcdf(scores_to_cf(scores, source="test"), tmp_path / "scores.nc")
    with xr.open_dataset(path) as back:
        xr.testing.assert_equal(back.load(), scores)
        assert back["mae"].attrs["units_metadata"] == "temperature: difference"
        assert back["skill_persistence"].attrs["units"] == "1"
    assert check_cf(path) == []


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
