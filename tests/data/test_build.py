import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import netCDF4
import numpy as np
import psutil
import pytest
import xarray as xr
from distributed import LocalCluster

from climapred.data import build, sources, store, workers
from climapred.data.build import Source, build_store, finish_parts, repair_store
from climapred.data.locks import Busy
from climapred.data.regrid import regrid
from climapred.data.store import open_statistics, open_store, partial_path, round_bits, verify_store, write_statistics
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


def journal_of(path: Path) -> set[str]:
    """The starts of the shards that are journalled."""
    return {file.stem for file in (partial_path(path) / "journal").glob("[0-9]*.json")}


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
    for start, checksums in opened.attrs["shards_crc32c"].items():
        values = opened["air"][int(start) : int(start) + 6].values
        assert checksums["air"] == f"{google_crc32c.value(values.tobytes()):08x}"
    assert len(opened.attrs["shards_crc32c"]) == 17


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
    said = []
    build_store(source, Path("here.zarr"), grid=TARGET)
    build_store(source, Path("there.zarr"), grid=TARGET, scheduler=scheduler, announce=said.append)
    assert_same_store(Path("here.zarr"), Path("there.zarr"))
    assert said[0].startswith("Dask dashboard: http://127.0.0.1:")


# Kill and resume

PRELUDE = """
import os, sys
from climapred.data import build, store
from climapred.data.build import Source, build_store
from climapred.grid import Grid
from pathlib import Path
target = Grid.regular(5, region=(25, 70, 190, 290))
store._CHUNK_BYTES = store._SHARD_BYTES = 4 * target.size
"""


@pytest.fixture
def killed(ncep, tmp_path):
    """A build of 100 shards of one time that was killed when its journal knew some of them."""
    path = tmp_path / "killed.zarr"
    code = PRELUDE + "build_store(Source(tuple(sys.argv[2:]), ('air',)), Path(sys.argv[1]), grid=target)"
    child = subprocess.Popen([sys.executable, "-c", code, str(path), *ncep], stderr=subprocess.PIPE)
    while len(journal_of(path)) < 5:
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


def shard_files(folder: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of each shard of a variable."""
    stats = {path.parent.parent.name: path.stat() for path in (folder / "air/c").glob("*/0/0")}
    return {number: (stat.st_ino, stat.st_mtime_ns) for number, stat in stats.items()}


def test_a_killed_build_goes_on(ncep, killed, tiny, tmp_path):
    (partial_path(killed) / "journal" / ".99.json.4a0").write_text('{"air": "sto')  # as a kill inside a write leaves it
    done = journal_of(killed)
    assert 5 <= len(done) < COUNT
    with pytest.raises(FileNotFoundError, match="its build has not finished"):
        open_store(killed)
    with pytest.raises(ValueError, match="is a store under construction"):
        open_store(partial_path(killed) / "unfinished.zarr")
    before = shard_files(partial_path(killed) / "unfinished.zarr")
    seen, said = [], []
    build_store(
        Source(ncep, ("air",)),
        killed,
        grid=TARGET,
        progress=lambda *count: seen.append(count),
        announce=said.append,
    )
    assert seen[0] == (len(done), COUNT)
    assert said == [f"{len(done)} of 100 shards are there already"]
    after = shard_files(killed)
    assert {number: after[number] for number in done} == {number: before[number] for number in done}
    build_store(Source(ncep, ("air",)), tmp_path / "undisturbed.zarr", grid=TARGET)
    assert_same_store(killed, tmp_path / "undisturbed.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.zarr", "undisturbed.zarr"]


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


def test_a_finished_store_is_left_as_it_is(ncep, tmp_path, small):
    path, source, seen = tmp_path / "a.zarr", Source(ncep, ("air",)), []
    build_store(source, path, grid=TARGET)
    before = shard_files(path)
    build_store(source, path, grid=TARGET, window=7, progress=lambda *count: seen.append(count))
    assert (shard_files(path), seen) == (before, [])


def test_a_file_that_changes_between_two_builds_is_read_again(fields, tmp_path):
    paths = tuple(map(str, write_ncep(fields, tmp_path)))
    build_store(Source(paths, ("air",)), tmp_path / "a.zarr")
    before = open_store(tmp_path / "a.zarr")["air"].load()
    write_ncep(fields + 1, tmp_path)
    build_store(Source(paths, ("air",)), tmp_path / "a.zarr")
    # packed in steps of 0.01 K: a value on the edge of a step may fall to either side
    np.testing.assert_allclose(open_store(tmp_path / "a.zarr")["air"] - before, 1, atol=0.011)


class Stop(Exception):
    pass


def stop_at(count):
    def progress(done, total):
        if done == count:
            raise Stop

    return progress


def test_a_journal_speaks_for_its_own_store(ncep, tmp_path, small):
    """Stopped after an empty store was made for other arguments: nothing of the older journal may count."""
    path, source = tmp_path / "a.zarr", Source(ncep, ("air",))
    build_store(source, tmp_path / "good.zarr", grid=TARGET)
    with pytest.raises(Stop):
        build_store(source, path, grid=TARGET, progress=stop_at(5))
    assert len(journal_of(path)) >= 5
    with pytest.raises(Stop):  # another plan: its store is new and empty
        build_store(source, path, grid=TARGET, method="nearest", progress=stop_at(0))
    assert journal_of(path) == set()
    seen = []
    build_store(source, path, grid=TARGET, progress=lambda *count: seen.append(count))
    assert seen[0] == (0, 17)
    assert_same_store(path, tmp_path / "good.zarr")


ZYGOTE = """
import signal, time
import netCDF4, zarr  # nothing has been read yet, and no thread runs: from here on, a fork is safe
store._SHARD_BYTES = 3 * 4 * target.size  # 34 shards
for line in sys.stdin:
    seconds, path, *files = line.split()
    pid = os.fork()
    if not pid:
        build_store(Source(tuple(files), ("air",)), Path(path), grid=target, workers=2)
        os._exit(0)
    end, ended = time.monotonic() + float(seconds), (0, 0)
    while not ended[0] and time.monotonic() < end:
        time.sleep(0.0005)
        ended = os.waitpid(pid, os.WNOHANG)
    if not ended[0]:
        os.kill(pid, signal.SIGKILL)
        ended = os.waitpid(pid, 0)
    print(ended[1], flush=True)
"""


@pytest.fixture
def forked():
    """A function that runs a build in a process of its own, killed after so many seconds; returns whether it was."""
    zygote = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + ZYGOTE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def run(path: Path, files, seconds: float) -> bool:
        zygote.stdin.write(" ".join([str(seconds), str(path), *files]) + "\n")
        zygote.stdin.flush()
        status = int(zygote.stdout.readline())
        assert status in (0, signal.SIGKILL)
        return status != 0

    yield run
    zygote.stdin.close()
    zygote.wait(timeout=30)
    zygote.stdout.close()


@pytest.mark.slow
def test_thirty_kills(ncep, tiny, tmp_path, forked):
    """Killed 30 times at random moments of building the first year and appending the second, and each time gone on with."""
    undisturbed, path, random_ = tmp_path / "good.zarr", tmp_path / "a.zarr", random.Random(20)
    began = time.monotonic()
    assert not forked(undisturbed, ncep[:1], 60)
    assert not forked(undisturbed, ncep, 60)
    length = (time.monotonic() - began) / 2
    whole = open_store(undisturbed)["air"].load()
    kills = finished = 0
    while kills < 30 or finished < 2:
        files = ncep if path.exists() else ncep[:1]
        kills += forked(path, files, random_.uniform(0, length) if kills < 30 else 60)
        if path.exists():  # whatever has its name is whole
            opened = open_store(path)["air"]
            assert len(opened) in (48, COUNT)
            np.testing.assert_array_equal(opened, whole[: len(opened)])
            if len(opened) == COUNT:
                assert_same_store(path, undisturbed)
                finished += 1
                shutil.rmtree(path)
    assert kills == 30


# Processes, threads, parts


def test_processes(ncep, tmp_path, small, monkeypatch):
    """Started from a process that has used Zarr: forked ones might wait for ever."""
    source = Source(ncep, ("air",))
    build_store(source, tmp_path / "one.zarr", grid=TARGET, workers=1)
    monkeypatch.setattr(workers, "_PROCESSES_FROM", 0)
    build_store(source, tmp_path / "two.zarr", grid=TARGET, workers=2)
    assert_same_store(tmp_path / "one.zarr", tmp_path / "two.zarr")


def test_a_worker_process_that_dies(ncep, tmp_path, tiny, monkeypatch):
    """As the system kills one when memory runs out: what is written stays."""
    monkeypatch.setattr(workers, "_PROCESSES_FROM", 0)

    def kill_one(done, total):
        if done == 3:
            psutil.Process().children(recursive=True)[-1].kill()

    path, source = tmp_path / "a.zarr", Source(ncep, ("air",))
    with pytest.raises(RuntimeError, match="a worker process has died"):
        build_store(source, path, grid=TARGET, workers=2, progress=kill_one)
    assert len(journal_of(path)) >= 3
    build_store(source, path, grid=TARGET)
    build_store(source, tmp_path / "good.zarr", grid=TARGET)
    assert_same_store(path, tmp_path / "good.zarr")


def test_two_stores_at_once_in_threads(ncep, tmp_path, small):
    paths = [tmp_path / f"{number}.zarr" for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda path: build_store(Source(ncep, ("air",)), path, grid=TARGET), paths))
    for path in paths[1:]:
        assert_same_store(path, paths[0])


def test_a_second_builder_is_refused(ncep, tmp_path, small):
    path, source, refused = tmp_path / "a.zarr", Source(ncep, ("air",)), []

    def try_also(done, total):
        if done == 3:
            for options in ({}, {"method": "nearest"}, {"part": (1, 2)}):
                with pytest.raises(Busy, match=rf"another build writes .*a.zarr; wait .* \(process {os.getpid()} on "):
                    build_store(source, path, grid=TARGET, **options)
                refused.append(options)
            with pytest.raises(Busy):
                finish_parts(source, path, grid=TARGET)
            with pytest.raises(Busy):
                repair_store(source, path, grid=TARGET)

    build_store(source, path, grid=TARGET, progress=try_also)
    assert len(refused) == 3
    build_store(source, tmp_path / "good.zarr", grid=TARGET)
    assert_same_store(path, tmp_path / "good.zarr")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.zarr", "good.zarr"]  # no lock stays


def test_many_builders_of_one_store(ncep, tmp_path, small):
    path, source = tmp_path / "a.zarr", Source(ncep, ("air",))

    def try_it(number):
        try:
            build_store(source, path, grid=TARGET)
        except Busy:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert any(pool.map(try_it, range(8)))
    build_store(source, tmp_path / "good.zarr", grid=TARGET)
    assert_same_store(path, tmp_path / "good.zarr")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.zarr", "good.zarr"]


def test_parts_at_once_from_nothing(ncep, tmp_path, small):
    """A batch array begins in an empty folder; an unfinished store of other arguments lies in the way."""
    path, source = tmp_path / "a.zarr", Source(ncep, ("air",))
    with pytest.raises(Stop):
        build_store(source, path, grid=TARGET, method="nearest", progress=stop_at(5))
    totals = []

    def one(number):
        build_store(source, path, grid=TARGET, part=(number, 5), progress=lambda done, total: totals.append(total))

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(one, range(1, 6)))
    assert set(totals) == {3, 4}  # 17 shards
    assert not path.exists()
    with pytest.raises(FileNotFoundError, match="its build has not finished"):
        open_store(path)
    finish_parts(source, path, grid=TARGET)
    build_store(source, tmp_path / "good.zarr", grid=TARGET)
    assert_same_store(path, tmp_path / "good.zarr")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.zarr", "good.zarr"]
    finish_parts(source, path, grid=TARGET)  # again: nothing to do
    one(3)
    assert_same_store(path, tmp_path / "good.zarr")


def test_parts_in_processes(ncep, tmp_path):
    code = PRELUDE + (
        "part = (int(sys.argv[2]), 3)\n"
        "build_store(Source(tuple(sys.argv[3:]), ('air',)), Path(sys.argv[1]), grid=target, part=part)"
    )
    path = tmp_path / "a.zarr"
    jobs = [
        subprocess.Popen([sys.executable, "-c", code, str(path), str(number), *ncep], stderr=subprocess.PIPE)
        for number in (1, 2, 3)
    ]
    for job in jobs:
        assert job.communicate()[1].decode() == ""
    assert len(journal_of(path)) == COUNT
    build_store(Source(ncep, ("air",)), path, grid=TARGET)  # a whole build finishes it as well
    assert verify_store(path) == []


def test_what_a_part_may_not(ncep, tmp_path, small):
    path, source, refused = tmp_path / "a.zarr", Source(ncep, ("air",)), []

    def try_also(done, total):
        if done == 1:
            with pytest.raises(Busy, match=r"another process builds part 2/3 \(process"):
                build_store(source, path, grid=TARGET, part=(2, 3))
            with pytest.raises(Busy, match=r"another build writes .*a.zarr.*its arguments are others"):
                build_store(source, path, grid=TARGET, method="nearest", part=(1, 3))
            for whole in (build_store, finish_parts):
                with pytest.raises(Busy, match="another build writes"):
                    whole(source, path, grid=TARGET)
            build_store(source, path, grid=TARGET, part=(3, 3))
            refused.append(done)

    build_store(source, path, grid=TARGET, part=(2, 3), progress=try_also)
    assert refused == [1]
    with pytest.raises(
        ValueError, match=r"a.zarr: 6 of 17 shards \(first: times 0..6\) are not written; run their parts"
    ):
        finish_parts(source, path, grid=TARGET)
    with pytest.raises(ValueError, match=r"no part of .*a.zarr was built with these arguments; build the parts first"):
        finish_parts(source, path, grid=TARGET, method="nearest")
    for part in ((0, 3), (4, 3)):
        with pytest.raises(ValueError, match=r"part must be \(i, n\) with i in 1 to n, got \([04], 3\)"):
            build_store(source, path, grid=TARGET, part=part)


def test_a_damaged_part_is_not_finished(ncep, tmp_path, small):
    path, source = tmp_path / "a.zarr", Source(ncep, ("air",))
    for number in (1, 2):
        build_store(source, path, grid=TARGET, part=(number, 2))
    (partial_path(path) / "unfinished.zarr/air/c/3/0/0").unlink()
    damage(partial_path(path) / "unfinished.zarr/air/c/4/0/0")
    with pytest.raises(
        ValueError, match=r"a.zarr: 2 of 17 shards \(first: times 18..24\) are damaged; run their parts"
    ):
        finish_parts(source, path, grid=TARGET)
    seen = []
    build_store(source, path, grid=TARGET, part=(1, 2), progress=lambda *count: seen.append(count))
    assert seen == [(7, 9), (8, 9), (9, 9)]
    finish_parts(source, path, grid=TARGET)
    assert verify_store(path) == []


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


# More times, and a bad shard


@pytest.mark.parametrize("kind", ["netcdf", "grib"])
def test_new_files_are_appended(fields, tmp_path, small, kind):
    if kind == "netcdf":
        files, name = tuple(map(str, write_ncep(fields, tmp_path))), "air"
    else:
        halves = [fields.isel(time=slice(0, 48)), fields.isel(time=slice(48, None))]
        files = tuple(str(write_era5_grib(half, tmp_path / f"{i}.grib")) for i, half in enumerate(halves))
        name = "t2m"
    path, said, seen = tmp_path / "a.zarr", [], []
    build_store(Source(files[:1], (name,)), path, grid=TARGET)
    before, older = shard_files_of(path, name), open_store(path)
    expected = older[name].values.copy()
    statistics = xr.Dataset({"mean": ("variable", [280.0])}, {"variable": [name]})
    write_statistics(path, statistics)
    build_store(
        Source(files, (name,)), path, grid=TARGET, announce=said.append, progress=lambda *count: seen.append(count)
    )
    assert said == ["52 times are appended to 48", "8 of 17 shards are there already"]
    assert seen[0] == (8, 17)
    after = shard_files_of(path, name)
    assert len(after) == 17
    assert {number: after[number] for number in before} == before  # 48 times are 8 whole shards: the same files
    np.testing.assert_array_equal(older[name].values, expected)  # who has it open goes on
    build_store(Source(files, (name,)), tmp_path / "good.zarr", grid=TARGET)
    shutil.rmtree(path / "statistics") if open_statistics(path).equals(statistics) else None
    assert_same_store(path, tmp_path / "good.zarr")


def shard_files_of(path: Path, name: str) -> dict[str, int]:
    return {file.parent.parent.name: file.stat().st_ino for file in (path / name / "c").glob("*/0/0")}


@pytest.fixture
def growing(fields, tmp_path):
    """A file that holds 70 times, and a function that makes it hold all."""
    folder = tmp_path / "files"
    folder.mkdir()
    january = fields.isel(time=slice(48, None))
    (path,) = write_ncep(january.isel(time=slice(0, 22)), folder)

    def grow(offset=0.0):
        write_ncep(january + offset, folder)

    return Source((str(path),), ("air",)), grow


def test_a_file_that_has_grown_is_appended_on_request(growing, tmp_path, small):
    (source, grow), path, said = growing, tmp_path / "a.zarr", []
    build_store(source, path, grid=TARGET)
    before = shard_files(path)
    grow()
    build_store(source, path, grid=TARGET, grown=True, announce=said.append)
    assert said == ["30 times are appended to 22", "3 of 9 shards are there already"]
    after = shard_files(path)
    assert [number for number in before if after[number] != before[number]] == [
        "3"
    ]  # 22 times: the fourth is incomplete
    build_store(source, tmp_path / "good.zarr", grid=TARGET)
    assert_same_store(path, tmp_path / "good.zarr")


@pytest.mark.parametrize(("grown", "offset"), [(False, 0.0), (True, 1.0)])
def test_a_file_that_is_another_is_built_anew(growing, tmp_path, small, grown, offset):
    (source, grow), path, said = growing, tmp_path / "a.zarr", []
    build_store(source, path, grid=TARGET)
    before = shard_files(path)
    grow(offset)
    build_store(source, path, grid=TARGET, grown=grown, announce=said.append)
    assert said == []
    after = shard_files(path)
    assert all(after[number] != before[number] for number in before)
    build_store(source, tmp_path / "good.zarr", grid=TARGET)
    assert_same_store(path, tmp_path / "good.zarr")


def test_times_that_come_before_are_built_anew(ncep, tmp_path, small):
    path = tmp_path / "a.zarr"
    build_store(Source(ncep[1:], ("air",)), path, grid=TARGET)
    build_store(Source(ncep, ("air",)), path, grid=TARGET)
    build_store(Source(ncep, ("air",)), tmp_path / "good.zarr", grid=TARGET)
    assert_same_store(path, tmp_path / "good.zarr")


def test_a_stopped_append_leaves_the_older_store(ncep, tmp_path, small):
    path, whole = tmp_path / "a.zarr", Source(ncep, ("air",))
    build_store(Source(ncep[:1], ("air",)), path, grid=TARGET)
    before = open_store(path).load()
    with pytest.raises(Stop):
        build_store(whole, path, grid=TARGET, progress=stop_at(11))
    xr.testing.assert_identical(open_store(path).load(), before)
    assert verify_store(path) == []
    seen = []
    build_store(whole, path, grid=TARGET, progress=lambda *count: seen.append(count))
    assert seen[0][0] >= 11
    assert len(open_store(path)["time"]) == COUNT


def test_readers_see_whole_versions_while_a_store_grows(ncep, tmp_path, small):
    path, whole, stop, seen = tmp_path / "a.zarr", plain(ncep).astype(np.float32).values, threading.Event(), set()
    build_store(Source(ncep[:1], ("air",)), path)

    def read():
        while not stop.is_set():
            opened = open_store(path)
            wanted = whole[: len(opened["time"])]
            np.testing.assert_array_equal(opened["air"], wanted)
            seen.add(len(wanted))

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        build_store(Source(ncep, ("air",)), path)
        while COUNT not in seen and not any(reader.done() for reader in readers):
            time.sleep(0.01)
        stop.set()
        for reader in readers:
            reader.result()
    assert seen == {48, COUNT}


def test_the_older_store_is_not_gone_on_with(ncep, tmp_path, small):
    """A kill after two stores have changed places: the older one lies where stores are built, with the journal of the new.

    The older arguments are wanted again; its shards, which that journal lists, are not those of the new store.
    """
    path, source = tmp_path / "a.zarr", Source(ncep, ("air",))
    build_store(source, tmp_path / "good.zarr", grid=TARGET)
    damage(shutil.copytree(tmp_path / "good.zarr", tmp_path / "older.zarr") / "air/c/2/0/0")
    build_store(source, path, grid=TARGET, method="nearest")
    for start, row in json.loads((path / "zarr.json").read_text())["attributes"]["shards_crc32c"].items():
        (partial_path(path) / "journal").mkdir(parents=True, exist_ok=True)
        store.journal_shard(path, int(start), row)
    (tmp_path / "older.zarr").rename(store.unfinished_path(path))
    seen = []
    build_store(source, path, grid=TARGET, progress=lambda *count: seen.append(count))
    assert seen[0] == (0, 17)
    assert_same_store(path, tmp_path / "good.zarr")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.zarr", "good.zarr"]


def test_bad_shards_are_found_and_written_anew(ncep, tmp_path, small):
    path, source = tmp_path / "a.zarr", Source(ncep, ("air",))
    build_store(source, path, grid=TARGET)
    shutil.copytree(path, tmp_path / "good.zarr")
    damage(path / "air/c/2/0/0")
    (path / "air/c/5/0/0").write_bytes((path / "air/c/5/0/0").read_bytes()[:-40])
    (path / "air/c/16/0/0").unlink()
    shutil.copy(path / "air/c/8/0/0", path / "air/c/9/0/0")  # whole, and in the wrong place
    before = shard_files(path)
    bad = [("air", 12, 18), ("air", 30, 36), ("air", 54, 60), ("air", 96, 100)]
    assert verify_store(path) == bad
    assert repair_store(source, path, grid=TARGET) == bad
    assert_same_store(path, tmp_path / "good.zarr")
    after = shard_files(path)
    assert {number for number in after if after[number] != before.get(number)} == {"2", "5", "9", "16"}
    assert verify_store(path) == []
    assert repair_store(source, path, grid=TARGET) == []


def test_a_bad_shard_of_another_source_stays_bad(ncep, tmp_path, small):
    file, path = tmp_path / "air.nc", tmp_path / "a.zarr"
    write_classic(ncep, file)
    source, stat = Source((str(file),), ("air",)), file.stat()
    build_store(source, path, grid=TARGET)
    damage(path / "air/c/2/0/0")
    with pytest.raises(
        ValueError, match=r"1 shards of .*a.zarr are damaged, and it was built from other files or with oth"
    ):
        repair_store(source, path, grid=TARGET, method="nearest")
    with netCDF4.Dataset(file, "a") as opened:
        opened["air"][:] += 1
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # behind our back
    build._open_once.cache_clear()
    with pytest.raises(
        ValueError, match=r"a.zarr/air: the source no longer gives what times 12..18 held; build the store an"
    ):
        repair_store(source, path, grid=TARGET)
    assert verify_store(path) == [("air", 12, 18)]


def write_classic(ncep, file) -> None:
    plain(ncep).to_dataset().to_netcdf(file, format="NETCDF3_64BIT", encoding={"air": {"dtype": "f4"}})
    with netCDF4.Dataset(file, "a") as opened:
        opened["air"].units = "K"


# What is read


def test_blocks_smaller_than_a_shard_lose_nothing(fields, tmp_path, small, monkeypatch):
    """Dask blocks of one time, shards of six, chunks of three on disk that fit neither: no two tasks share a shard."""
    t2m = fields["t2m"].isel(time=slice(0, 40)).assign_attrs(units="K").astype(np.float32)
    t2m.to_dataset().to_zarr(tmp_path / "s.zarr", encoding={"t2m": {"chunks": (5, 4, 7)}}, consolidated=False)
    monkeypatch.setattr(sources, "BLOCK_BYTES", 1)
    source = Source((str(tmp_path / "s.zarr"),), ("t2m",))
    assert max(source.open()["t2m"].chunks[0]) <= 5
    build_store(source, tmp_path / "a.zarr", workers=4)
    np.testing.assert_array_equal(open_store(tmp_path / "a.zarr")["t2m"], t2m)


def test_rounded_values(ncep, tmp_path):
    source = Source(ncep, ("air",))
    build_store(source, tmp_path / "whole.zarr", grid=TARGET)
    build_store(source, tmp_path / "rounded.zarr", grid=TARGET, keep_bits=10)
    whole, rounded = (open_store(tmp_path / f"{name}.zarr") for name in ("whole", "rounded"))
    np.testing.assert_array_equal(rounded["air"], round_bits(whole["air"].values, 10))
    assert abs(rounded["air"] - whole["air"]).max() <= 310 * 2**-11
    assert rounded.attrs["keep_bits"] == 10
    sizes = [(tmp_path / f"{name}.zarr/air/c/0/0/0").stat().st_size for name in ("whole", "rounded")]
    assert sizes[1] < 0.5 * sizes[0]
    assert verify_store(tmp_path / "rounded.zarr") == []


def test_the_window_shapes_the_chunks(ncep, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_LEAST_CHUNK_BYTES", 1)
    build_store(Source(ncep, ("air",)), tmp_path / "a.zarr", grid=TARGET, window=3)
    opened = open_store(tmp_path / "a.zarr")
    assert opened["air"].encoding["chunks"][0] == 12
    assert opened.attrs["layout"] == {"chunk": 12, "shard": 12 * (2**25 // (12 * 4 * TARGET.size)), "window": 3}


def test_the_store_holds_what_regrid_gives(ncep, tmp_path, small):
    source = Source(ncep, ("air",))
    build_store(source, tmp_path / "a.zarr", grid=TARGET)
    np.testing.assert_array_equal(open_store(tmp_path / "a.zarr")["air"], regrid(source.open(), TARGET)["air"])


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


# What goes wrong


def change(path):
    Path(path).write_bytes(Path(path).read_bytes() + b"1")


def vanish(path):
    Path(path).unlink()


def truncate(path):
    os.truncate(path, os.path.getsize(path) // 2)


@pytest.mark.parametrize(("harm", "says"), [(change, "changed"), (truncate, "changed"), (vanish, "vanished")])
@pytest.mark.parametrize("kind", ["netcdf", "classic", "grib"])
def test_a_file_that_changes_during_the_build(fields, ncep, tmp_path, small, kind, harm, says):
    """Named; nothing of it is in the journal; what stood there before stays; with the old file the build goes on."""
    path, name, copy = tmp_path / "a.zarr", "air", tmp_path / "copy"
    build_store(Source(ncep[:1], ("air",)), path)
    before = open_store(path).load()
    file = tmp_path / f"file.{kind}"
    if kind == "grib":
        name = "t2m"
        write_era5_grib(fields, file)
    elif kind == "classic":  # the NetCDF library reads zeros past its end
        write_classic(ncep, file)
    else:
        shutil.copy2(ncep[1], file)
    shutil.copy2(file, copy)
    source, harmed = Source((str(file),), (name,)), []

    def progress(done, total):
        if done == 3 and not harmed:
            harm(file)
            harmed.append(done)

    error = FileNotFoundError if says == "vanished" else ValueError
    with pytest.raises(
        error, match=rf"file.{kind} has {says} during the build.*what is written stays: with the old file"
    ):
        build_store(source, path, grid=TARGET, workers=1, progress=progress)
    xr.testing.assert_identical(open_store(path).load(), before)
    assert len(journal_of(path)) >= 3
    shutil.copy2(copy, file)
    seen = []
    build_store(source, path, grid=TARGET, progress=lambda *count: seen.append(count))
    assert seen[0][0] >= 3
    build_store(source, tmp_path / "good.zarr", grid=TARGET)
    assert_same_store(path, tmp_path / "good.zarr")


@pytest.mark.parametrize("workers", [1, 3])
def test_a_full_disk(ncep, tmp_path, small, workers):
    """No file may grow beyond 100 bytes from the third shard on."""
    path, source = tmp_path / "a.zarr", Source(ncep, ("air",))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def progress(done, total):
        if done == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))

    try:
        with pytest.raises(
            OSError, match=r"a.zarr/air: times \d+..\d+ cannot be written to .*; what is written stays valid"
        ):
            build_store(source, path, grid=TARGET, workers=workers, progress=progress)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    seen = []
    build_store(source, path, grid=TARGET, progress=lambda *count: seen.append(count))
    assert seen[0][0] >= 3
    build_store(source, tmp_path / "good.zarr", grid=TARGET)
    assert_same_store(path, tmp_path / "good.zarr")


def test_a_disk_that_is_full_from_the_start(ncep, tmp_path, small):
    path, (soft, hard) = tmp_path / "a.zarr", resource.getrlimit(resource.RLIMIT_FSIZE)
    build_store(Source(ncep[:1], ("air",)), path)
    before = open_store(path).load()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(
            OSError, match=r"the longer version of a.zarr cannot be written to .*; what is written stays valid"
        ):
            build_store(Source(ncep, ("air",)), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    xr.testing.assert_identical(open_store(path).load(), before)
    build_store(Source(ncep, ("air",)), path)
    assert len(open_store(path)["time"]) == COUNT


def test_a_disk_that_returns_something_else(ncep, tmp_path, small, monkeypatch):
    """The shard is read again after it was written; on request it is not."""
    path, source, read = tmp_path / "a.zarr", Source(ncep, ("air",)), Path.read_bytes

    def one_bit_off(file):
        content = bytearray(read(file))
        content[len(content) // 3] ^= 8 if "unfinished.zarr" in str(file) and file.name == "0" else 0
        return bytes(content)

    monkeypatch.setattr(Path, "read_bytes", one_bit_off)
    with pytest.raises(OSError, match=r"a.zarr/air: times 0..6 do not come back as they were written"):
        build_store(source, path, grid=TARGET, workers=1)
    build_store(source, path, grid=TARGET, workers=1, verify=False)
    assert open_store(path).sizes["time"] == COUNT


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


@pytest.mark.parametrize("calendar", ["noleap", "360_day"])
def test_calendars_that_are_not_the_real_one(with_good_store, tmp_path, calendar):
    path, before = with_good_store
    times = xr.date_range("2001-01-01", periods=4, freq="D", calendar=calendar, use_cftime=True)
    air = before["air"][:4].assign_coords(time=times).drop_encoding()
    for name in ("a", "b"):
        air.to_dataset().to_netcdf(tmp_path / f"{name}.nc")
        air = air.assign_coords(time=times.shift(4, "D"))
    files = (str(tmp_path / "a.nc"), str(tmp_path / "b.nc"))
    wanted = (
        rf"the times of .*a.nc and 1 more follow the calendar '{calendar}', but a store counts time on the real one"
    )
    for refuse in (Source(files, ("air",)).open, lambda: build_store(Source(files, ("air",)), path)):
        with pytest.raises(ValueError, match=wanted):
            refuse()
    xr.testing.assert_identical(open_store(path).load(), before)
    with xr.open_mfdataset(files) as opened:  # the way out that the error names
        converted = opened.convert_calendar("standard", align_on="date", use_cftime=False)
        converted.to_netcdf(tmp_path / "c.nc")
    build_store(Source((str(tmp_path / "c.nc"),), ("air",)), path)
    assert open_store(path)["time"].dtype == "M8[ns]"


def test_missing_variable(ncep, tmp_path):
    with pytest.raises(ValueError, match=r"variable 'msl' cannot be taken from .*air.sig995.2001.nc"):
        build_store(Source(ncep, ("msl",)), tmp_path / "a.zarr")
    assert list(tmp_path.iterdir()) == []
