"""Plain NetCDF files go another way, without xarray: to the same result."""

import subprocess
import sys

import netCDF4
import numpy as np
import pytest
import xarray as xr

from climapred.data import regrid_netcdf as module
from climapred.data.regrid_blocks import regrid_blocks
from climapred.data.regrid_netcdf import is_plain_netcdf, read_grid, regrid_netcdf
from climapred.grid import Grid

SETTINGS = {"variables": None, "max_missing": 0.5, "history": "now: regridded", "progress": lambda done, total: None}


def series(**axes):
    """Hourly fields on two levels, with a scalar, a series and text beside them; 3 x 2 of 19 x 36 points, or as told."""
    grid = Grid.regular(10)
    axes = {"lat": grid.latitude, "lon": grid.longitude, **axes}
    shape = (3, 2, len(axes["lat"]), len(axes["lon"]))
    values = np.random.default_rng(0).normal(280, 10, shape).astype(np.float32)
    values[..., axes["lat"] > 5, 2:9] = np.nan
    values[..., 15:24] = np.nan
    time = np.datetime64("2020-01-31", "ns") + np.arange(3) * np.timedelta64(1, "h")
    dataset = xr.Dataset(
        {
            "t": (
                ("time", "level", "lat", "lon"),
                values,
                {"units": "K", "actual_range": [0, 9], "cell_measures": "area"},
            ),
            "z": (("lat", "lon"), values[0, 0].astype(np.float64), {"units": "m"}),
            "co2": ("time", [1.0, np.nan, 3.0], {"units": "ppm"}),
            "station": ("site", np.array(["Kew", "De Bilt"], object)),
            "letters": ("site", np.array([b"ab", b"cde"])),
        },
        {"time": time, "level": [850, 500], "height": ((), 2.0, {"units": "m"}), **axes},
        {"history": "then: born"},
    )
    dataset["lat"].attrs["units"], dataset["lon"].attrs["units"] = "degrees_north", "degrees_east"
    return dataset


def both_ways(path, grid, method="conservative", **settings):
    """Return what the two ways write."""
    found = []
    for way in (regrid_netcdf, regrid_blocks):
        out = path.with_name(f"{way.__name__}.nc")
        way(path, out, grid, method, **(SETTINGS | settings))
        found.append(xr.load_dataset(out))
    return found


def lies(name):
    """Return axes as files have them."""
    grid = Grid.regular(10)
    edges = np.stack([grid.latitude_bounds[:-1], grid.latitude_bounds[1:]], axis=1)
    return {
        "ascending": {},
        "descending": {"lat": grid.latitude[::-1], "lon": grid.longitude[::-1]},
        "from -180": {"lon": (grid.longitude + 180) % 360 - 180},
        "a region": {"lat": grid.latitude[4:15][::-1], "lon": grid.longitude[3:20]},
        "with bounds": {
            "lat": xr.Variable("lat", grid.latitude, {"bounds": "edges"}),
            "edges": (("lat", "two"), edges),
        },
    }[name]


@pytest.mark.parametrize("axes", ["ascending", "descending", "from -180", "a region", "with bounds"])
@pytest.mark.parametrize("method", ["conservative", "bilinear", "nearest"])
def test_both_ways_agree(axes, method, tmp_path):
    dataset = series(**lies(axes)).reset_coords([name for name in ["edges"] if axes == "with bounds"])
    chunks = {"chunksizes": (2, 1, *dataset["t"].shape[2:]), "zlib": True, "_FillValue": np.float32(-99)}
    dataset.to_netcdf(tmp_path / "in.nc", encoding={"t": chunks}, unlimited_dims=["time"])
    assert is_plain_netcdf(tmp_path / "in.nc")
    assert read_grid(tmp_path / "in.nc") == Grid.of(dataset, any_direction=True)
    quick, lazy = both_ways(tmp_path / "in.nc", Grid.regular(7.5, (-30, 30, 45, 180)), method)
    xr.testing.assert_identical(quick, lazy)
    assert np.isnan(quick["t"]).any()
    assert quick.encoding["unlimited_dims"] == {"time"}


def test_marks_of_missing_values(tmp_path):
    with netCDF4.Dataset(tmp_path / "in.nc", "w") as file:
        for name, axis in (("latitude", np.linspace(-80, 80, 9)), ("longitude", np.arange(0, 360, 20))):
            file.createDimension(name, axis.size)
            file.createVariable(name, "f4", (name,))[:] = axis
        field = file.createVariable("t", "f4", ("latitude", "longitude"), fill_value=1e20)
        field.missing_value = np.float32(-7)
        field.valid_min = np.float32(0)  # xarray lets values below it pass, and so does this
        content = np.full((9, 18), 280, np.float32)
        content[2, :5], content[5, 3:9], content[7, 0] = 1e20, -7, -1
        field.set_auto_mask(False)
        field[:] = content
    with pytest.warns(xr.SerializationWarning, match="multiple fill values"):
        xr.open_dataset(tmp_path / "in.nc").close()
    quick, lazy = both_ways(tmp_path / "in.nc", Grid.regular(20), "nearest")
    xr.testing.assert_identical(quick, lazy)
    assert set(np.unique(quick["t"].values[~np.isnan(quick["t"].values)])) == {-1, 280}


def test_chosen_variables_and_the_same_grid(tmp_path):
    dataset = series(lat=Grid.regular(10).latitude[::-1])
    dataset.to_netcdf(tmp_path / "in.nc")
    quick, lazy = both_ways(tmp_path / "in.nc", Grid.regular(10), variables=["t"])
    xr.testing.assert_identical(quick, lazy)
    assert set(quick.data_vars) == {"t", "lat_bnds", "lon_bnds"}
    xr.testing.assert_equal(quick["t"], dataset["t"].sortby("lat"))
    with pytest.raises(ValueError, match=r"'u' cannot be taken from .*in\.nc.*: t, z, co2"):
        both_ways(tmp_path / "in.nc", Grid.regular(10), variables=["u"])


@pytest.mark.parametrize("block_bytes", [1, 4000, 10**9])
def test_blocks_of_any_size(block_bytes, tmp_path, monkeypatch):
    chunks = {"chunksizes": (2, 1, 19, 36)}
    series().to_netcdf(tmp_path / "in.nc", encoding={"t": chunks})
    monkeypatch.setattr(module, "_BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(module, "_MOST_BYTES", 10**9 if block_bytes > 1 else 5000)  # less than a chunk
    done = []
    quick, lazy = both_ways(tmp_path / "in.nc", Grid.regular(30), progress=lambda *counts: done.append(counts))
    xr.testing.assert_identical(quick, lazy)
    steps = {1: 7, 4000: 5, 10**9: 3}[block_bytes]
    assert done[:steps] == [(number, steps) for number in range(1, steps + 1)]


@pytest.mark.parametrize(
    ("change", "plain"),
    [
        (lambda dataset: dataset, True),
        (lambda dataset: dataset.transpose("lat", "lon", ...), False),
        (lambda dataset: dataset.assign(t=dataset.t.fillna(0).astype(np.int16)), False),
        (lambda dataset: dataset.assign(mean=dataset.t.mean("lon")), False),
        (lambda dataset: dataset.set_coords("z"), False),
        (lambda dataset: dataset.isel(time=slice(0)), False),
        (lambda dataset: dataset.isel(lat=0), False),
    ],
    ids=["plain", "turned", "integers", "one axis", "coordinate", "empty", "no axis"],
)
def test_what_is_plain(change, plain, tmp_path):
    change(series()).to_netcdf(tmp_path / "in.nc")
    assert is_plain_netcdf(tmp_path / "in.nc") is plain


def test_packed_classic_damaged_or_absent_is_not_plain(tmp_path):
    path = tmp_path / "in.nc"
    assert not is_plain_netcdf(path)
    series().to_netcdf(path, encoding={"t": {"dtype": "i2", "scale_factor": 0.01, "_FillValue": -9}})
    assert not is_plain_netcdf(path)
    series().drop_vars("station").to_netcdf(path, format="NETCDF3_CLASSIC")
    assert not is_plain_netcdf(path)
    path.write_bytes(b"\x89HDF\r\n\x1a\n and no more")
    assert not is_plain_netcdf(path)


def test_the_command_starts_without_xarray(tmp_path):
    series().to_netcdf(tmp_path / "in.nc")
    code = (
        "import sys; from climapred.cli import app\n"
        "app(['regrid', *sys.argv[1:]], standalone_mode=False)\n"
        "print([name for name in ('xarray', 'pandas', 'dask', 'fsspec', 'rich', 'pyproj') if name in sys.modules])"
    )
    files = [str(tmp_path / name) for name in ("in.nc", "out.nc")]
    command = [sys.executable, "-c", code, *files, "--grid", files[0]]
    child = subprocess.run(command, capture_output=True, text=True)
    assert (child.returncode, child.stdout.splitlines()[-1]) == (0, "[]"), child.stderr
    xr.testing.assert_equal(xr.load_dataset(files[1])["t"], series()["t"])
