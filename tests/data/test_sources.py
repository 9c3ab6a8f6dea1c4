import os
import pickle
from pathlib import Path

import dask
import netCDF4
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from climapred.data import sources
from climapred.data.sources import expand_paths, open_source, source_identity
from climapred.testing import write_grib

DATA = Path(os.environ.get("CLIMAPRED_DATA", Path(__file__).parents[2] / "../shared/data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="shared data missing")


def make_dataset(start="2020-01-01", count=8, columns=4, name="t2m", units="K", time="time") -> xr.Dataset:
    values = np.arange(count * 3 * columns, dtype=np.float32).reshape(count, 3, columns)
    return xr.Dataset(
        {name: ((time, "lat", "lon"), values, {"units": units})},
        coords={
            time: pd.date_range(start, periods=count, freq="6h", unit="ns"),
            "lat": [50.0, 40.0, 30.0],
            "lon": 10.0 * np.arange(columns),
        },
    )


def forbid_computing(*args, **kwargs):
    raise AssertionError("computed")


@needs_data
def test_two_ncep_years_equal_netcdf4_python():
    with dask.config.set(scheduler=forbid_computing):
        dataset = open_source(DATA / "air.sig995.*.nc")
    assert dict(dataset.sizes) == {"time": 2920, "lat": 25, "lon": 53}
    assert dataset.air.data.chunks == ((1460, 1460), (25,), (53,))
    assert dataset.air.attrs["units"] == "degK"
    np.testing.assert_array_equal(np.diff(dataset.time), np.timedelta64(6, "h"))
    for year in ("2013", "2014"):
        with netCDF4.Dataset(DATA / f"air.sig995.{year}.nc") as file:
            file.set_auto_maskandscale(False)
            packed = file["air"][:]
        assert (packed != -32767).all()
        np.testing.assert_allclose(dataset.air.sel(time=year), packed * 0.01, rtol=1e-12)


@needs_data
def test_grib_goes_through_the_message_table():
    dataset = open_source(DATA / "era5-2mt-2019-03-uk.grib", variables=["2t"])
    assert dict(dataset.t2m.sizes) == {"time": 744, "latitude": 33, "longitude": 49}


@pytest.mark.parametrize(
    "kind", ["NETCDF4", "NETCDF4_CLASSIC", "NETCDF3_CLASSIC", "NETCDF3_64BIT", "NETCDF3_64BIT_DATA", "zarr 2", "zarr 3"]
)
def test_kind_is_told_by_content_and_values_stay(tmp_path, kind):
    expected = make_dataset()
    path = tmp_path / "data.bin"  # the suffix says nothing
    if kind.startswith("zarr"):
        expected.to_zarr(path, zarr_format=int(kind[-1]), consolidated=False)
    else:
        expected.to_netcdf(path, format=kind, engine="netcdf4")
    dataset = open_source(str(path))
    assert dataset.chunks == {"time": (8,), "lat": (3,), "lon": (4,)}
    xr.testing.assert_equal(dataset.load(), expected)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
def test_consolidated_zarr(tmp_path, version):
    make_dataset().to_zarr(tmp_path / "c.zarr", zarr_format=version, consolidated=True)
    xr.testing.assert_equal(open_source(tmp_path / "c.zarr").load(), make_dataset())


def test_files_join_in_natural_order_of_their_names(tmp_path):
    for number, start in ((2, "2020-01-01"), (10, "2020-01-03"), (1, "2019-12-30")):
        make_dataset(start).to_netcdf(tmp_path / f"t.{number}.nc")
    assert [path.name for path in expand_paths(tmp_path / "t.*.nc")] == ["t.1.nc", "t.2.nc", "t.10.nc"]
    dataset = open_source(tmp_path / "t.*.nc")
    assert dataset.indexes["time"].is_monotonic_increasing
    assert dataset.t2m.data.chunks[0] == (8, 8, 8)
    one, ten = (make_dataset(start) for start in ("2019-12-30", "2020-01-03"))
    xr.testing.assert_equal(dataset.isel(time=slice(0, 8)).load(), one)
    xr.testing.assert_equal(open_source([tmp_path / "t.10.nc"]).load(), ten)


def test_packed_files_with_different_scales_decode_each_with_its_own(tmp_path):
    for name, start, scale in (("a", "2020-01-01", 0.5), ("b", "2020-01-03", 2.0)):
        packing = {"dtype": "int16", "scale_factor": scale, "_FillValue": -1}
        dataset = make_dataset(start)
        dataset["t2m"] = dataset.t2m.where(dataset.t2m != 6) // 2 * 2
        dataset.to_netcdf(tmp_path / f"{name}.nc", encoding={"t2m": packing})
    joined = open_source(tmp_path / "*.nc").t2m
    expected = make_dataset().t2m.where(make_dataset().t2m != 6) // 2 * 2
    np.testing.assert_array_equal(joined, np.concatenate([expected, expected]))
    assert not joined.encoding


def test_time_may_have_another_name_and_other_variables_may_lack_it(tmp_path):
    for name, start in (("a", "2020-01-01"), ("b", "2020-01-03")):
        dataset = make_dataset(start, time="valid_time")
        dataset["lsm"] = (("lat", "lon"), np.eye(3, 4))
        dataset.to_netcdf(tmp_path / f"{name}.nc")
    joined = open_source(tmp_path / "*.nc")
    assert dict(joined.t2m.sizes) == {"valid_time": 16, "lat": 3, "lon": 4}
    np.testing.assert_array_equal(joined.lsm, np.eye(3, 4))


# 8 steps of 48 bytes each; a block of 150 bytes holds 3 of them, of 2 on disk each: so 2; a chunk of 5 stays whole; one of 8 is
# more than two such blocks, and is cut
@pytest.mark.parametrize(("on_disk", "blocks"), [(None, (3, 3, 2)), (2, (2, 2, 2, 2)), (5, (5, 3)), (8, (3, 3, 2))])
def test_blocks_run_along_time_and_begin_where_disk_chunks_begin(tmp_path, monkeypatch, on_disk, blocks):
    monkeypatch.setattr(sources, "BLOCK_BYTES", 150)
    monkeypatch.setattr(sources, "_MOST_BLOCKS", 2)
    encoding = {"t2m": {"chunksizes": (on_disk, 3, 4)}} if on_disk else {}
    make_dataset().to_netcdf(tmp_path / "a.nc", encoding=encoding)
    assert open_source(tmp_path / "a.nc").t2m.data.chunks == (blocks, (3,), (4,))


def test_blocks_are_as_long_as_one_wants(tmp_path):
    make_dataset().to_netcdf(tmp_path / "a.nc")
    assert open_source(tmp_path / "a.nc", block=5).t2m.data.chunks[0] == (5, 3)
    assert open_source(tmp_path / "a.nc", block=50).t2m.data.chunks[0] == (8,)
    make_dataset().to_netcdf(tmp_path / "b.nc", encoding={"t2m": {"chunksizes": (2, 3, 4)}})
    assert open_source(tmp_path / "b.nc", block=5).t2m.data.chunks[0] == (4, 4)


@pytest.mark.parametrize("calendar", ["360_day", "noleap", "all_leap", "julian"])
def test_calendars_stay_and_do_not_mix(tmp_path, calendar):
    for name, start in (("a", "2001-02-27"), ("b", "2001-03-01")):
        times = xr.date_range(start, periods=8, freq="6h", calendar=calendar, use_cftime=True)
        make_dataset().assign_coords(time=times).to_netcdf(tmp_path / f"{name}.nc")
    make_dataset("2001-04-01").to_netcdf(tmp_path / "c.nc")
    dataset = open_source([tmp_path / "a.nc", tmp_path / "b.nc"])
    assert dataset.time.dt.calendar == calendar
    assert dataset.t2m.data.chunks[0] == (8, 8)
    assert str(dataset.time.values[8])[:10] == "2001-03-01"
    with pytest.raises(
        ValueError, match=rf"c.nc does not fit .*: its calendar is 'proleptic_gregorian', not '{calendar}'"
    ):
        open_source(tmp_path / "*.nc")


def test_unlimited_time_that_is_still_empty_is_an_error(tmp_path):
    make_dataset(count=0).to_netcdf(tmp_path / "a.nc", unlimited_dims="time", format="NETCDF3_CLASSIC")
    with pytest.raises(ValueError, match=r"a.nc holds no times: its 'time' is empty"):
        open_source(tmp_path / "a.nc")


def test_messages_are_selected_in_grib_alone(tmp_path):
    make_dataset().to_netcdf(tmp_path / "a.nc")
    with pytest.raises(ValueError, match=r"select= chooses GRIB messages, but .*a.nc is netcdf; use dataset.sel"):
        open_source(tmp_path / "a.nc", select={"level": 500})
    messages = [{"shortName": "t", "typeOfLevel": "isobaricInhPa", "level": level} for level in (500, 850)]
    path = write_grib(tmp_path / "a.grib", *messages)
    assert open_source(path, select={"level": 500})["t"].shape == (1, 31, 16)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="1 good messages"):
        assert open_source(path, damaged="skip")["t"].shape == (1, 31, 16)


def test_variables_are_found_by_any_of_their_names(tmp_path):
    dataset = make_dataset(name="VAR_2T")
    dataset["height"] = dataset.VAR_2T * 0
    dataset.to_netcdf(tmp_path / "a.nc")
    for name in ("VAR_2T", "t2m", "2t"):
        assert list(open_source(tmp_path / "a.nc", variables=[name]).data_vars) == ["VAR_2T"]
    assert list(open_source(tmp_path / "a.nc").data_vars) == ["VAR_2T", "height"]
    with pytest.raises(ValueError, match=r"variable 'msl' cannot be taken from .*a.nc, which has only: VAR_2T, height"):
        open_source(tmp_path / "a.nc", variables=["t2m", "msl"])


def test_variables_in_hours_do_not_disturb(tmp_path):
    dataset = make_dataset().assign_coords(step=((), 6, {"units": "hours"}))
    dataset["sunshine"] = ("time", np.ones(8), {"units": "hours"})
    dataset.to_netcdf(tmp_path / "a.nc")
    np.testing.assert_array_equal(open_source(tmp_path / "a.nc").sunshine, np.ones(8))


def test_dataset_can_be_pickled_for_workers(tmp_path):
    make_dataset().to_netcdf(tmp_path / "a.nc")
    dataset = open_source(tmp_path / "a.nc")
    xr.testing.assert_equal(pickle.loads(pickle.dumps(dataset)).load(), make_dataset())


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (
            make_dataset("2021-01-01", columns=5),
            r"b.nc does not fit .*a.nc: 'lon' is 0.0..40.0 \(5 points\), not",
        ),
        (
            make_dataset("2021-01-01", units="degC"),
            r"b.nc does not fit .*a.nc: 't2m' has units 'degC', not 'K'",
        ),
        (
            make_dataset("2021-01-01", name="air"),
            r"b.nc does not fit .*: its variables are \['air'\], not \['t2m'\]",
        ),
        (make_dataset("2021-01-01", time="date"), r"b.nc does not fit .*: it has no coordinate 'time', only"),
        (
            make_dataset("2021-01-01").transpose("time", "lon", "lat"),
            r"'t2m' has dimensions \('time', 'lon', 'lat'\)",
        ),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, other, complaint):
    make_dataset().to_netcdf(tmp_path / "a.nc")
    other.to_netcdf(tmp_path / "b.nc")
    with pytest.raises(ValueError, match=complaint):
        open_source(tmp_path / "*.nc")


def test_files_without_dates_cannot_be_joined(tmp_path):
    for name in "ab":
        make_dataset().isel(time=0, drop=True).to_netcdf(tmp_path / f"{name}.nc")
    with pytest.raises(ValueError, match=r"a.nc has no dates to join 2 files along; its axes are \['lat', 'lon'\]"):
        open_source(tmp_path / "*.nc")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", r"x.nc is empty; a GRIB, NetCDF or Zarr source was wanted"),
        (b"PK\x03\x04zipped", r"x.nc is neither GRIB, NetCDF nor Zarr: it begins with b'PK.x03.x04zipp'"),
        (b"CDF\x01", r"x.nc is a netcdf source, but truncated or not"),
    ],
)
def test_files_of_no_known_kind_are_named(tmp_path, content, complaint):
    (tmp_path / "x.nc").write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        open_source(tmp_path / "x.nc")


@pytest.mark.parametrize("format", ["NETCDF4", "NETCDF3_CLASSIC"])
def test_truncated_netcdf_is_an_error(tmp_path, format):
    path = tmp_path / "cut.nc"
    make_dataset(count=500).to_netcdf(path, format=format)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"cut.nc .*truncated"):
        open_source(path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file matches '.*absent-\*.nc'"):
        open_source(tmp_path / "absent-*.nc")
    with pytest.raises(FileNotFoundError, match=r"no file matches '.*absent.nc'"):
        open_source(tmp_path / "absent.nc")
    with pytest.raises(FileNotFoundError, match="list of paths is empty"):
        open_source([])


def test_mixed_kinds_and_plain_folders_are_refused(tmp_path):
    make_dataset().to_netcdf(tmp_path / "a.nc")
    make_dataset().to_zarr(tmp_path / "b.zarr", zarr_format=3, consolidated=False)
    with pytest.raises(ValueError, match=r"one kind: .*a.nc is netcdf, but .*b.zarr is zarr"):
        open_source([tmp_path / "a.nc", tmp_path / "b.zarr"])
    with pytest.raises(ValueError, match=r"is a folder without zarr.json or .*: not a Zarr store"):
        open_source(tmp_path)


def test_tilde_and_brackets_in_names(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run[1].nc").touch()
    assert expand_paths("~/run[1].nc") == [tmp_path / "run[1].nc"]
    assert expand_paths("~/*.nc") == [tmp_path / "run[1].nc"]


def test_source_identity_is_plain_and_notices_changes(tmp_path):
    (tmp_path / "a.nc").write_bytes(b"12345")
    os.utime(tmp_path / "a.nc", ns=(7, 7))
    (tmp_path / "b.zarr/c").mkdir(parents=True)
    for name, content, mtime in (("zarr.json", b"{}", 3), ("c/0", b"abc", 9)):
        (tmp_path / "b.zarr" / name).write_bytes(content)
        os.utime(tmp_path / "b.zarr" / name, ns=(mtime, mtime))
    assert source_identity(tmp_path / "*") == [
        {"name": "a.nc", "size": 5, "mtime_ns": 7},
        {"name": "b.zarr", "size": 5, "mtime_ns": 9},
    ]
