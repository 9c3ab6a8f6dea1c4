import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import netCDF4
import numpy as np
import psutil
import pytest
import xarray as xr
from distributed import LocalCluster

from climapred.data import store
from climapred.data.build import Source, build_store
from climapred.data.store import open_store, partial_path
from climapred.grid import Grid
from climapred.testing import synthetic_temperature, write_era5_grib, write_ncep

TARGET = Grid.regular(5, region=(25, 70, 190, 290))
COUNT = 100  # times: 20 to 31 December 2001, and into 2002


@pytest.fixture(scope="module")
def fields():
    return synthetic_temperature(start="2001-12-20", periods=COUNT).fields


@pytest.fixture(scope="module")
def ncep(fields, tmp_path_factory):
    return tuple(str(path) for path in write_ncep(fields, tmp_path_factory.mktemp("ncep")))


@pytest.fixture(scope="module")
def era5(fields, tmp_path_factory):
    return (str(write_era5_grib(fields, tmp_path_factory.mktemp("era5") / "era5.grib")),)


@pytest.fixture
def small(monkeypatch):
    """Six times a shard of the 5-degree grid: 100 times are 17 shards, the last one of 4."""
    monkeypatch.setattr(store, "_CHUNK_BYTES", 3 * 4 * TARGET.size)
    monkeypatch.setattr(store, "_SHARD_BYTES", 6 * 4 * TARGET.size)


def journal_of(path: Path) -> Path:
    return path.with_name(path.name + ".journal.jsonl")


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in journal_of(path).read_text().splitlines()]


def plain(paths) -> xr.DataArray:
    """The three lines of plain xarray that the store must equal."""
    whole = xr.concat([xr.open_dataset(path)["air"] for path in paths], "time", join="exact")
    return whole.rename(lat="latitude", lon="longitude").sortby("latitude").drop_attrs()


def assert_same_store(one: Path, other: Path) -> None:
    files = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    assert files == {path.relative_to(other) for path in other.rglob("*") if path.is_file()}
    different = [str(file) for file in files if (one / file).read_bytes() != (other / file).read_bytes()]
    assert different == []


def test_netcdf_on_its_own_grid(ncep, tmp_path):
    build_store(Source(ncep, ("air",)), tmp_path / "a.zarr")
    opened = open_store(tmp_path / "a.zarr")
    assert opened["air"].dtype == np.float32
    xr.testing.assert_equal(opened["air"].drop_attrs(), plain(ncep).astype(np.float32))
    assert opened.attrs["regrid_method"] == "none"
    assert [file["name"] for file in json.loads(opened.attrs["source"])] == [Path(path).name for path in ncep]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr"]


def test_netcdf_on_another_grid_in_shards(ncep, tmp_path, small):
    build_store(Source(ncep, ("air",)), tmp_path / "a.zarr", grid=TARGET, method="bilinear")
    opened = open_store(tmp_path / "a.zarr")
    expected = plain(ncep).astype(np.float64).interp(latitude=TARGET.latitude, longitude=TARGET.longitude)
    # two weighted means in another order: rounding of float32 at 300 K is 3e-5
    np.testing.assert_allclose(opened["air"], expected, rtol=0, atol=5e-5)
    np.testing.assert_array_equal(opened["time"], expected["time"])
    assert Grid.of(opened) == TARGET
    assert opened.attrs["regrid_method"] == "bilinear"
    assert len([path for path in (tmp_path / "a.zarr/air/c").rglob("*") if path.is_file()]) == 17


def test_grib(fields, era5, tmp_path, small):
    build_store(Source(era5, ("t2m",)), tmp_path / "a.zarr")
    opened = open_store(tmp_path / "a.zarr")
    # 16 bits over a range of about 100 K: steps of 100 / 65536 K, half of one is lost
    np.testing.assert_allclose(opened["t2m"], fields["t2m"], rtol=0, atol=2e-3)
    assert opened["t2m"].dtype == np.float32
    assert Grid.of(opened) == Grid.of(fields)
    np.testing.assert_array_equal(opened["time"], fields["time"])


def test_checksums_are_those_of_the_shards(ncep, tmp_path, small):
    build_store(Source(ncep, ("air",)), tmp_path / "a.zarr", grid=TARGET)
    opened = open_store(tmp_path / "a.zarr")
    for start, checksums in opened.attrs["shards_sha256"].items():
        values = opened["air"][int(start) : int(start) + 6].values
        assert checksums["air"] == hashlib.sha256(values.tobytes()).hexdigest()
    assert len(opened.attrs["shards_sha256"]) == 17


def test_number_of_workers_and_shards_do_not_matter(ncep, tmp_path, monkeypatch):
    source = Source(ncep, ("air",))
    build_store(source, tmp_path / "whole.zarr", grid=TARGET, workers=1)
    monkeypatch.setattr(store, "_SHARD_BYTES", 10 * 4 * TARGET.size)
    monkeypatch.setattr(store, "_CHUNK_BYTES", 5 * 4 * TARGET.size)
    build_store(source, tmp_path / "many.zarr", grid=TARGET, workers=4)
    whole, many = open_store(tmp_path / "whole.zarr"), open_store(tmp_path / "many.zarr")
    xr.testing.assert_equal(whole, many)


def test_progress_counts_shards(ncep, tmp_path, small):
    seen = []
    build_store(
        Source(ncep, ("air",)),
        tmp_path / "a.zarr",
        grid=TARGET,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 17) for done in range(18)]


@pytest.fixture
def scheduler(tmp_path):
    """The address of a scheduler with one worker: a process of its own, that stands in another folder."""
    (tmp_path / "elsewhere").mkdir()
    with LocalCluster(processes=False, n_workers=0, dashboard_address="127.0.0.1:0", protocol="tcp://") as cluster:
        command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address]
        child = subprocess.Popen(
            [*command, "--no-nanny", "--nthreads", "2", "--no-dashboard"],
            cwd=tmp_path / "elsewhere",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
            stderr=subprocess.DEVNULL,
        )
        yield cluster.scheduler_address
        child.terminate()
        child.wait(timeout=30)


def test_a_running_scheduler(ncep, tmp_path, small, scheduler, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ncep:
        shutil.copy2(path, tmp_path)
    source = Source(("air.sig995.*.nc",), ("air",))  # relative: the worker's own folder holds no such files
    build_store(source, Path("here.zarr"), grid=TARGET)
    build_store(source, Path("there.zarr"), grid=TARGET, scheduler=scheduler)
    assert_same_store(Path("here.zarr"), Path("there.zarr"))


KILLED = """
import sys
from climapred.data import store
from climapred.data.build import Source, build_store
from climapred.grid import Grid
from pathlib import Path
target = Grid.regular(5, region=(25, 70, 190, 290))
store._CHUNK_BYTES = store._SHARD_BYTES = 4 * target.size
build_store(Source(tuple(sys.argv[2:]), ("air",)), Path(sys.argv[1]), grid=target)
"""


@pytest.fixture
def killed(ncep, tmp_path):
    """A build of 100 shards of one time that was killed when its journal knew some of them."""
    path = tmp_path / "killed.zarr"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(path), *ncep], stderr=subprocess.PIPE)
    while not (journal_of(path).exists() and journal_of(path).read_text().count("\n") >= 6):
        assert child.poll() is None, child.stderr.read().decode()
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    return path


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(store, "_CHUNK_BYTES", 4 * TARGET.size)
    monkeypatch.setattr(store, "_SHARD_BYTES", 4 * TARGET.size)


def shard_times(folder: Path, rows: list[dict]) -> dict[int, int]:
    """Return when each journalled shard was written: with one time a shard, its number is its start."""
    return {row["start"]: (folder / "air" / "c" / str(row["start"]) / "0" / "0").stat().st_mtime_ns for row in rows}


def test_a_killed_build_goes_on(ncep, killed, tiny, tmp_path):
    with journal_of(killed).open("a") as journal:
        journal.write('{"start": 99, "sto')  # as a kill inside a write leaves it
    lines = journal_of(killed).read_text().splitlines()
    done = [json.loads(line) for line in lines[1:-1]]
    assert 5 <= len(done) < COUNT
    with pytest.raises(FileNotFoundError, match="its build has not finished"):
        open_store(killed)
    before = shard_times(partial_path(killed), done)
    seen = []
    build_store(Source(ncep, ("air",)), killed, grid=TARGET, progress=lambda *count: seen.append(count))
    assert seen[0] == (len(done), COUNT)
    assert shard_times(killed, done) == before
    build_store(Source(ncep, ("air",)), tmp_path / "undisturbed.zarr", grid=TARGET)
    assert_same_store(killed, tmp_path / "undisturbed.zarr")
    assert not journal_of(killed).exists()


def test_another_grid_or_method_starts_anew(ncep, killed, tiny, tmp_path):
    seen = []
    build_store(
        Source(ncep, ("air",)), killed, grid=TARGET, method="nearest", progress=lambda *count: seen.append(count)
    )
    assert seen[0] == (0, COUNT)
    expected = plain(ncep).sel(latitude=TARGET.latitude, longitude=TARGET.longitude).astype(np.float32)
    np.testing.assert_array_equal(open_store(killed)["air"], expected)


def test_a_changed_file_starts_anew(fields, killed, tiny, tmp_path):
    other = write_ncep(fields + 1, tmp_path)
    seen = []
    build_store(
        Source(tuple(map(str, other)), ("air",)), killed, grid=TARGET, progress=lambda *count: seen.append(count)
    )
    assert seen[0] == (0, COUNT)
    np.testing.assert_allclose(
        open_store(killed)["air"].mean(), plain(other).sel(latitude=slice(25, 70)).mean(), atol=1
    )


def test_a_file_that_changes_between_two_builds_is_read_again(fields, tmp_path):
    paths = tuple(map(str, write_ncep(fields, tmp_path)))
    build_store(Source(paths, ("air",)), tmp_path / "a.zarr")
    before = open_store(tmp_path / "a.zarr")["air"].load()
    write_ncep(fields + 1, tmp_path)
    build_store(Source(paths, ("air",)), tmp_path / "a.zarr")
    # packed in steps of 0.01 K: a value on the edge of a step may fall to either side
    np.testing.assert_allclose(open_store(tmp_path / "a.zarr")["air"] - before, 1, atol=0.011)


def test_a_journal_without_its_store_is_not_believed(ncep, tmp_path, small):
    """Killed after an empty store was made for other arguments: nothing of the older journal may count."""
    path, source = tmp_path / "a.zarr", Source(ncep, ("air",))
    build_store(source, tmp_path / "good.zarr", grid=TARGET)

    class Stop(Exception):
        pass

    def stop_at_five(done, total):
        if done == 5:
            raise Stop

    with pytest.raises(Stop):
        build_store(source, path, grid=TARGET, progress=stop_at_five)
    assert len(rows_of(path)) == 6
    with pytest.raises(Stop):  # another plan: its store is new and empty
        build_store(source, path, grid=TARGET, method="nearest", progress=stop_at_five)
    seen = []
    build_store(source, path, grid=TARGET, progress=lambda *count: seen.append(count))
    assert seen[0] == (0, 17)
    assert_same_store(path, tmp_path / "good.zarr")


def test_nothing_listens_to_the_network(ncep, tmp_path):
    """Dask's default is an HTTP port open to the network, the same one for all schedulers of a machine."""
    addresses = []

    def look(done, total):
        connections = psutil.Process().net_connections("inet")
        addresses.extend(each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN)

    build_store(Source(ncep, ("air",)), tmp_path / "a.zarr", progress=look)
    assert set(addresses) <= {"127.0.0.1"}


def test_threads_open_a_source_at_once(fields, tmp_path):
    """The NetCDF library is not safe for that: one of them opens it, for all. Otherwise workers crash now and then."""
    source = Source(tuple(map(str, write_ncep(fields, tmp_path))), ("air",))
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: source.open(), range(4)))
    assert all(each is opened[0] for each in opened)


@pytest.fixture
def with_good_store(ncep, tmp_path):
    path = tmp_path / "a.zarr"
    build_store(Source(ncep, ("air",)), path)
    return path, open_store(path).load()


def test_missing_file(with_good_store, tmp_path):
    path, before = with_good_store
    with pytest.raises(FileNotFoundError, match=r"no file matches '.*absent.nc'"):
        build_store(Source((str(tmp_path / "absent.nc"),), ("air",)), path)
    xr.testing.assert_identical(open_store(path).load(), before)


@pytest.mark.parametrize("kind", ["netcdf", "grib"])
def test_truncated_file(with_good_store, ncep, era5, tmp_path, kind):
    path, before = with_good_store
    whole, name = (ncep[0], "air") if kind == "netcdf" else (era5[0], "t2m")
    cut = tmp_path / f"cut.{kind}"
    cut.write_bytes(Path(whole).read_bytes()[:-5000])
    with pytest.raises(ValueError, match=rf"cut.{kind} is .*truncated"):
        build_store(Source((str(cut),), (name,)), path)
    xr.testing.assert_identical(open_store(path).load(), before)


def test_damaged_values(with_good_store, ncep, tmp_path):
    """The headers are whole, a compressed chunk is not: found while the shard is read, and the file is named."""
    path, before = with_good_store
    damaged = tmp_path / "damaged.nc"
    content = bytearray(Path(ncep[0]).read_bytes())
    content[-20000:-10000] = bytes(10000)
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match=r"air cannot be read from .*damaged.nc"):
        build_store(Source((str(damaged),), ("air",)), path)
    xr.testing.assert_identical(open_store(path).load(), before)
    netCDF4.Dataset(damaged).close()  # the headers are whole


def test_missing_variable(ncep, tmp_path):
    with pytest.raises(ValueError, match=r"variable 'msl' cannot be taken from .*air.sig995.2001.nc"):
        build_store(Source(ncep, ("msl",)), tmp_path / "a.zarr")
    assert list(tmp_path.iterdir()) == []
