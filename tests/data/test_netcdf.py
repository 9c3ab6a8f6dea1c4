import pickle
import subprocess
import sys
import textwrap

import cftime
import netCDF4
import numpy as np
import pytest
import xarray as xr

from climapred.data.netcdf import NETCDF_LOCK, open_netcdf


def write(path, calendar="standard", units="days since 2001-02-27", count=4, **attributes):
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("time", None)
        time = file.createVariable("time", "f8", ("time",))
        time.setncatts({"units": units, "calendar": calendar})
        time[:] = np.arange(count)
        t2m = file.createVariable("t2m", "i2", ("time",), fill_value=-9)
        t2m.setncatts({"units": "K", **attributes})
        t2m.set_auto_maskandscale(False)
        t2m[:] = [5, -9, -7, 8][:count]
    return path


def test_fill_value_and_missing_value_are_both_missing(tmp_path):
    dataset = open_netcdf(write(tmp_path / "a.nc", missing_value=np.int16(-7), scale_factor=0.5, add_offset=1.0))
    np.testing.assert_array_equal(dataset.t2m, [3.5, np.nan, np.nan, 5])


@pytest.mark.parametrize(("calendar", "third"), [("360_day", (2001, 2, 29)), ("noleap", (2001, 3, 1))])
def test_calendars_stay(tmp_path, calendar, third):
    dataset = open_netcdf(write(tmp_path / "a.nc", calendar))
    assert dataset.time.dt.calendar == calendar
    assert dataset.time.values[2] == cftime.datetime(*third, calendar=calendar)


def test_the_lock_is_reentrant_and_one_in_each_process(tmp_path):
    assert pickle.loads(pickle.dumps(NETCDF_LOCK)) is NETCDF_LOCK
    with NETCDF_LOCK, NETCDF_LOCK:
        assert open_netcdf(write(tmp_path / "a.nc")).t2m.load().size == 4
    with NETCDF_LOCK:
        again = pickle.loads(pickle.dumps(open_netcdf(tmp_path / "a.nc")))
    np.testing.assert_array_equal(again.t2m[::3], [5, 8])


def test_four_threads_open_and_read_at_once(tmp_path):
    """In a process of its own: where the NetCDF library is entered twice, it ends the process."""
    for number in range(6):
        values = np.full((50, 20, 20), number, np.float32)
        dataset = xr.Dataset({f"v{n}": (("time", "y", "x"), values, {"units": "K"}) for n in range(4)})
        encoding = {name: {"zlib": True, "chunksizes": (5, 20, 20)} for name in dataset}
        dataset.to_netcdf(tmp_path / f"{number}.nc", encoding=encoding)
    script = """
        import sys
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path
        import xarray as xr
        from climapred.data.sources import open_source

        xr.set_options(file_cache_maxsize=2)  # files are closed by one thread while others read

        paths = [Path(sys.argv[1]) / f"{number}.nc" for number in range(6)]
        plain = [xr.open_dataset(path) for path in paths]

        def read(turn):
            number = turn % 6
            dataset = open_source(paths[number], block=10)
            mine = {*dataset.v1.values.ravel(), *dataset.v3[3].values.ravel()}
            return mine | {*plain[number].v2[turn // 6].values.ravel()} == {number}  # xarray's reading shares the lock

        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(read, range(120)))
        assert all(results)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)  # or it waits for itself
    assert done.returncode == 0, done.stderr[-2000:]
