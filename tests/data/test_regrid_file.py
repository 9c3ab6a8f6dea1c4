"""Files to files: what is kept, what appears when, and how much memory that takes."""

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from climapred.data.regrid import regrid
from climapred.data.regrid_file import regrid_file, target_grid
from climapred.data.sources import open_source
from climapred.grid import Grid
from climapred.testing import synthetic_temperature, write_era5_grib

TARGET = Grid.gaussian(8)


@pytest.fixture
def fields():
    """Six fields as files have them: north to south, with a land mask, bounds, attributes and a series beside them."""
    grid = Grid.regular(10)
    values = np.random.default_rng(0).normal(280, 10, (6, *grid.shape)).astype(np.float32)
    values[:, :4, :9] = np.nan
    time = np.datetime64("2020-01-31", "ns") + np.arange(6) * np.timedelta64(1, "h")
    dataset = xr.Dataset(
        {
            "sst": (
                ("time", "lat", "lon"),
                values,
                {"units": "K", "cell_methods": "time: mean", "actual_range": [0, 9]},
            ),
            "orography": (("lat", "lon"), values[1], {"units": "m"}),
            "co2": ("time", np.arange(6.0), {"units": "ppm"}),
        },
        {"time": time, "lat": grid.latitude, "lon": grid.longitude, "height": ((), 2.0, {"units": "m"})},
        {"history": "2020-02-01: born", "institution": "ours", "Conventions": "CF-1.6"},
    )
    dataset["lat"].attrs |= {"units": "degrees_north", "bounds": "lat_bnds"}
    dataset["lon"].attrs |= {"units": "degrees_east"}
    edges = grid.latitude_bounds
    dataset["lat_bnds"] = (("lat", "bnds"), np.stack([edges[:-1], edges[1:]], axis=1))
    return dataset.isel(lat=slice(None, None, -1))


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
@pytest.mark.parametrize("files", [1, 3])
def test_a_file_on_another_grid(fields, files, suffix, tmp_path):
    for number in range(files):
        part = fields.isel(time=slice(6 // files * number, 6 // files * (number + 1)))
        part.to_netcdf(tmp_path / f"in.{number}.nc", unlimited_dims=["time"])
    out = tmp_path / f"out{suffix}"
    regrid_file(str(tmp_path / "in.*.nc"), out, TARGET, variables=None, history="2021-01-01: regridded")
    assert sorted(path.name for path in tmp_path.iterdir() if "out" in path.name) == [out.name]
    opener = xr.open_zarr if suffix == ".zarr" else xr.open_dataset
    with opener(out, **({"consolidated": False} if suffix == ".zarr" else {})) as result:
        expected = regrid(fields, TARGET)
        for name in ("sst", "orography", "co2"):
            np.testing.assert_array_equal(result[name].values, expected[name].values)
            assert result[name].attrs == {key: v for key, v in fields[name].attrs.items() if key != "actual_range"}
            assert result[name].dtype == fields[name].dtype
        assert 0 < np.isnan(result["sst"].values).mean() < 0.3
        np.testing.assert_array_equal(result["time"], fields["time"])
        assert result.attrs["history"] == "2020-02-01: born\n2021-01-01: regridded"
        assert {key: result.attrs[key] for key in ("institution", "Conventions")} == {
            "institution": "ours",
            "Conventions": "CF-1.6",
        }
        assert Grid.of(result) == TARGET  # the cells came along: Gaussian ones, not half-way
        assert result["lat_bnds"].dims == ("lat", "bnds")
        assert float(result["height"]) == 2
        assert "coordinates" not in {*result["lat_bnds"].encoding, *result["lat_bnds"].attrs}
        if suffix == ".nc":
            assert result.encoding["unlimited_dims"] == {"time"}
            assert all("_FillValue" not in result[name].encoding for name in ("lat", "lon", "lat_bnds"))


def test_from_grib_and_zarr(tmp_path):
    sample = synthetic_temperature(periods=5).fields
    grib = write_era5_grib(sample, tmp_path / "in.grib")
    target = Grid.of(sample).crop((30, 60, 200, 260))
    regrid_file(grib, tmp_path / "first.zarr", target, "nearest")
    regrid_file(tmp_path / "first.zarr", tmp_path / "second.nc", target)
    wanted = sample["t2m"].sel(latitude=slice(30, 60), longitude=slice(200, 260))
    with xr.open_dataset(tmp_path / "second.nc") as result:
        np.testing.assert_allclose(result["t2m"].values, wanted.values, atol=2e-3)  # packed into 16 bits
        np.testing.assert_array_equal(result["t2m"]["longitude"], wanted["longitude"])


def test_chosen_variables_and_levels(fields, tmp_path):
    levels = fields["sst"].expand_dims(level=[850.0, 500.0], axis=3)  # an axis after the horizontal
    xr.Dataset({"t": levels, "zonal": fields["sst"].mean("lon")}).to_netcdf(tmp_path / "in.nc")
    with pytest.raises(ValueError, match=r"'zonal' must have both \('lat', 'lon'\) or neither.*variables="):
        regrid_file(tmp_path / "in.nc", tmp_path / "out.nc", TARGET)
    regrid_file(tmp_path / "in.nc", tmp_path / "out.nc", TARGET, variables=["t"])
    with xr.open_dataset(tmp_path / "out.nc") as result:
        assert result["t"].dims == ("time", "level", "lat", "lon")
        np.testing.assert_array_equal(result["t"].sel(level=500).values, regrid(fields["sst"], TARGET).values)


def test_nothing_is_overwritten_unasked(fields, tmp_path):
    fields.to_netcdf(tmp_path / "in.nc")
    for name in ("out.nc", "out.zarr"):
        regrid_file(tmp_path / "in.nc", tmp_path / name, TARGET)
        with pytest.raises(FileExistsError, match=rf"{name} exists; remove it, name another.*--overwrite"):
            regrid_file(tmp_path / "in.nc", tmp_path / name, Grid.regular(30))
        regrid_file(tmp_path / "in.nc", tmp_path / name, Grid.regular(30), overwrite=True)
        assert Grid.of(open_source(tmp_path / name)) == Grid.regular(30)
    with pytest.raises(ValueError, match=r"output must end in \.nc or \.zarr, got .*out\.grib"):
        regrid_file(tmp_path / "in.nc", tmp_path / "out.grib", TARGET)


@pytest.mark.parametrize("name", ["out.nc", "out.zarr"])
def test_a_damaged_source_leaves_the_old_output(fields, name, tmp_path):
    fields.to_netcdf(tmp_path / "in.nc")
    regrid_file(tmp_path / "in.nc", tmp_path / name, TARGET)
    big = xr.concat([fields[["sst"]]] * 40, "time")
    big.to_netcdf(tmp_path / "in.nc", encoding={"sst": {"zlib": True, "chunksizes": (1, 19, 36)}})
    content = bytearray((tmp_path / "in.nc").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 20000] = bytes(20000)
    (tmp_path / "in.nc").write_bytes(content)
    with pytest.raises(ValueError, match=r"in\.nc cannot be read, or .*out\.\w+ not be written: .*HDF"):
        regrid_file(tmp_path / "in.nc", tmp_path / name, Grid.regular(30), overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.nc", name]
    assert Grid.of(open_source(tmp_path / name)) == TARGET


def test_no_field_on_a_grid(fields, tmp_path):
    fields[["co2"]].to_netcdf(tmp_path / "in.nc")
    with pytest.raises(ValueError, match=r"must have a 1-D coordinate 'latitude', got \['time'.*harmonise\(\)"):
        regrid_file(tmp_path / "in.nc", tmp_path / "out.nc", TARGET)


def test_target_grid(fields, tmp_path):
    assert target_grid("2.5") == Grid.regular(2.5)
    assert target_grid("F16", (20, 60, 0, 40)) == Grid.gaussian(16).crop((20, 60, 0, 40))
    fields.to_netcdf(tmp_path / "grid.nc")
    assert target_grid(str(tmp_path / "grid.nc")) == Grid.regular(10)
    assert target_grid(str(tmp_path / "grid.nc"), (20, 60, -20, 20)) == Grid.regular(10, (20, 60, -20, 20))
    with pytest.raises(
        FileNotFoundError, match=r"spacing in degrees such as 1\.5, N48 or F48, or a file; no file 'T63'"
    ):
        target_grid("T63")


def test_memory_does_not_grow_with_time(tmp_path):
    """Three times the fields, hardly more memory, in processes of their own: their peaks count."""
    code = (  # ru_maxrss would be that of pytest, from which the process was forked
        "import sys; from climapred.data.regrid_file import regrid_file; from climapred.grid import Grid\n"
        "regrid_file(sys.argv[1], sys.argv[2], Grid.regular(5))\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    grid, peaks = Grid.regular(0.5), []
    for times in (130, 390):  # two blocks, six blocks
        axes = {"time": np.arange(times).astype("datetime64[h]").astype("datetime64[ns]"), **grid.coordinates()}
        fields = np.broadcast_to(np.float32(280), (times, *grid.shape))
        dataset = xr.Dataset({"t": (("time", "latitude", "longitude"), fields, {"units": "K"})}, axes)
        compressed = {"t": {"zlib": True, "complevel": 1, "chunksizes": (1, *grid.shape)}}
        dataset.to_netcdf(tmp_path / "in.nc", encoding=compressed)
        command = [sys.executable, "-c", code, str(tmp_path / "in.nc"), str(tmp_path / f"out{times}.nc")]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    more = 260 * grid.size * 4 / 1024
    assert peaks[1] - peaks[0] < more / 2
