import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from climapred.grid import Grid
from climapred.results.cf import check_cf, from_cf, to_cf
from climapred.results.cf_stream import write_forecasts

GRID = Grid.regular(2.5, region=(20, 30, 200, 215))
STARTS = np.datetime64("2014-02-27T18:00", "ns") + np.arange(7) * np.timedelta64(6, "h")
LEADS = np.array([6, 12]).astype("timedelta64[h]").astype("timedelta64[ns]")
DESCRIBE = partial(to_cf, source="seeded noise")


def made(starts, members=0):
    """Noise that depends on nothing but the start time."""
    dims = ("init_time", *(["realization"] if members else []), "lead_time", "latitude", "longitude")
    shape = (*([members] if members else []), len(LEADS), *GRID.shape)
    fields = [np.random.default_rng(start.astype(int)).normal(280, 5, shape).astype("float32") for start in starts]
    coords = {"init_time": starts, "lead_time": LEADS, **GRID.coordinates()}
    coords["valid_time"] = (("init_time", "lead_time"), starts[:, None] + LEADS)
    if members:
        coords["realization"] = np.arange(members, dtype="int32")
    return xr.Dataset({"t2m": (dims, np.stack(fields))}, coords)


class Batches:
    """Two start times at a time; remembers which were asked for, and stops like a killed process."""

    def __init__(self, stop=None, members=0):
        self.asked, self.stop, self.members = None, stop, members

    def __call__(self, starts):
        self.asked = starts
        for number, first in enumerate(range(0, len(starts), 2)):
            if number == self.stop:
                raise KeyboardInterrupt
            yield made(starts[first : first + 2], self.members)


def write(path, batches, starts=STARTS, **options):
    return write_forecasts(batches, starts, path, **{"describe": DESCRIBE, "identity": "noise", **options})


def read(path):
    options = {"engine": "zarr", "consolidated": False} if path.is_dir() else {}
    with xr.open_dataset(path, **options) as dataset:
        return from_cf(dataset).load()


@pytest.mark.parametrize("name", ["all.nc", "all.zarr"])
@pytest.mark.parametrize("members", [0, 3])
def test_all_start_times_in_one_file(tmp_path, name, members):
    calls = []
    assert write(tmp_path / name, Batches(members=members), progress=lambda *call: calls.append(call)) == [
        tmp_path / name
    ]
    back = read(tmp_path / name)
    xr.testing.assert_equal(back, made(STARTS, members))
    assert back["t2m"].dtype == np.float32
    assert calls == [(2, 7), (4, 7), (6, 7), (7, 7)]
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    if name.endswith(".nc"):
        assert check_cf(tmp_path / name) == []


@pytest.mark.parametrize("name", ["all.nc", "all.zarr", "one_{start}.nc", "one_{start}.zarr"])
def test_a_killed_run_goes_on_with_the_start_times_that_are_missing(tmp_path, name):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / name, Batches(stop=2))
    assert not (tmp_path / name).exists()
    batches = Batches()
    paths = write(tmp_path / name, batches)
    np.testing.assert_array_equal(batches.asked, STARTS[4:])
    back = xr.concat([read(path) for path in paths], "init_time", data_vars="minimal")
    xr.testing.assert_equal(back, made(STARTS))
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    batches = Batches()
    assert write(tmp_path / name, batches) == paths
    assert batches.asked is None  # nothing to do


KILLED = """
import os, pathlib, signal, sys
sys.path.insert(0, sys.argv[1])
import test_cf_stream as test
kill = lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if done == total else None
test.write(pathlib.Path(sys.argv[2]), test.Batches(), progress=kill)
"""


def test_a_process_that_dies_while_it_writes_leaves_no_file_that_looks_whole(tmp_path):
    """Killed before its parts are joined, another part half written: the next run uses what is whole."""
    path = tmp_path / "all.nc"
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(path)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert not path.exists()
    (parts,) = tmp_path.glob(".all.nc.*.parts")
    (parts / ".20140227T1800.nc.0.tmp").write_bytes(b"half")
    batches = Batches()
    write(path, batches)
    assert batches.asked is None
    xr.testing.assert_equal(read(path), made(STARTS))
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_for_each_start_time_has_valid_time_as_its_axis(tmp_path):
    paths = write(tmp_path / "one_{start}.nc", Batches(), STARTS[:3])
    assert [path.name for path in paths] == [
        f"one_{stamp}.nc" for stamp in ("20140227T1800", "20140228T0000", "20140228T0600")
    ]
    with xr.open_dataset(paths[1]) as one:
        assert one["t2m"].dims == ("time", "latitude", "longitude")
    assert check_cf(paths[1]) == []
    assert write(tmp_path / "single.nc", Batches(), STARTS[0]) == [tmp_path / "single.nc"]
    xr.testing.assert_equal(read(tmp_path / "single.nc"), made(STARTS[:1]))


def test_start_times_of_interrupted_runs_come_into_order(tmp_path):
    path = tmp_path / "all.nc"
    for some in (STARTS[[1, 4]], STARTS[[0, 3, 5]]):
        with pytest.raises(ValueError, match="a forecast for every start time"):
            write(path, lambda missing, some=some: [made(some)])
    write(path, Batches())
    xr.testing.assert_equal(read(path), made(STARTS))


@pytest.mark.parametrize("name", ["all.nc", "all.zarr"])
def test_packing_is_the_same_for_all_start_times(tmp_path, name):
    def drifting(starts):
        for number in range(len(starts)):
            one = made(starts[[number]])
            yield one.assign(t2m=one["t2m"] + np.float32(20 * number))

    write(tmp_path / name, drifting, largest_error=0.01)
    whole = xr.concat(list(drifting(STARTS)), "init_time", data_vars="minimal")
    back = read(tmp_path / name)
    assert back["t2m"].dtype == np.float32
    error = float(abs(back["t2m"].astype("float64") - whole["t2m"].values).max())
    assert 0.004 < error <= back["t2m"].attrs["largest_packing_error"] <= 0.01


def test_times_to_the_second_are_kept_whatever_the_first_batch_counts_in(tmp_path):
    starts = np.array(["2014-02-27T18:00", "2014-02-27T19:00", "2014-02-27T19:00:07"], "M8[ns]")
    write(tmp_path / "all.nc", lambda missing: (made(missing[[n]]) for n in range(3)), starts)
    xr.testing.assert_equal(read(tmp_path / "all.nc"), made(starts))
    paths = write(tmp_path / "{start}.nc", Batches(), starts)
    assert paths[2].name == "20140227T190007.nc"


@pytest.mark.parametrize("name", ["all.nc", "all.zarr", "one_{start}.nc"])
def test_files_with_something_else_are_replaced_on_request_only(tmp_path, name):
    paths = write(tmp_path / name, Batches())
    message = re.escape(str(paths[0])) + " exists and holds something else, or forecasts of another model.*--overwrite"
    with pytest.raises(FileExistsError, match=message):
        write(tmp_path / name, Batches(), identity="another model")
    batches = Batches()
    write(tmp_path / name, batches, identity="another model", overwrite=True)
    np.testing.assert_array_equal(batches.asked, STARTS)


def test_other_files_are_safe(tmp_path):
    (tmp_path / "all.nc").write_text("thesis")
    with pytest.raises(FileExistsError, match="holds something else"):
        write(tmp_path / "all.nc", Batches())
    assert (tmp_path / "all.nc").read_text() == "thesis"


def test_errors_name_what_does_not_fit(tmp_path):
    with pytest.raises(ValueError, match=r"the output must end in .nc or .zarr, got .*all.grib"):
        write(tmp_path / "all.grib", Batches())
    with pytest.raises(FileNotFoundError, match=r"the folder .*absent does not exist, create it first"):
        write(tmp_path / "absent/all.nc", Batches())
    with pytest.raises(ValueError, match="batches must yield a forecast for every start time, got 2 of 7"):
        write(tmp_path / "all.nc", lambda starts: [made(starts[:2])])


MEMORY = """
import resource, sys
from functools import partial
import numpy as np, xarray as xr
from climapred.grid import Grid
from climapred.results.cf import to_cf
from climapred.results.cf_stream import write_forecasts

grid, leads = Grid.regular(1.5), np.array([6]).astype("timedelta64[h]").astype("timedelta64[ns]")
def batches(starts):
    for first in range(0, len(starts), 25):
        some = starts[first : first + 25]
        field = np.full((len(some), 1, *grid.shape), 280, "float32")
        coords = {"init_time": some, "lead_time": leads, "valid_time": (("init_time", "lead_time"), some[:, None] + leads)}
        yield xr.Dataset({"t2m": (("init_time", "lead_time", "latitude", "longitude"), field)}, coords | grid.coordinates())
for count in (50, 400):
    starts = np.datetime64("2014-01-01", "ns") + np.arange(count) * np.timedelta64(6, "h")
    out = f"{count}_{sys.argv[1]}"
    write_forecasts(batches, starts, out, describe=partial(to_cf, source="test"), identity="", complevel=0)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.parametrize("name", ["all.nc", "all.zarr"])
def test_memory_does_not_grow_with_the_number_of_start_times(tmp_path, name):
    """In a process of its own, whose largest memory (MB) the kernel knows: 6 and 46 MB of forecasts, in batches of 3 MB."""

    command = [sys.executable, "-c", MEMORY, name]
    child = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    few, many = map(float, child.stdout.split())
    assert many - few < 15
