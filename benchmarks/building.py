"""Build a store of 1.5 degrees from hourly global fields of 0.5 degrees: what ten times the length costs, and a second worker.

The files hold smooth waves under noise of 0.1 K: NetCDF as NCEP writes it (int16, packed, zlib, a field in a chunk), and GRIB
edition 1 as ERA5 is delivered (16 bits, simple packing). Each build regrids conservatively, writes shards of whole fields and
reads each of them again. It runs in processes of its own; time includes their start, memory is the highest sum of what they
hold, without pages of files, which the system takes back when it needs them. All builds of a row run in turns on the same
files.

Wanted: ten times as many fields in the same memory (within a fifth) and ten times the time; two workers 1.7 times as fast.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import eccodes
import netCDF4
import numpy as np
import psutil
import xarray as xr
import zarr

from climapred.data.build import Source, build_store
from climapred.grid import Grid
from climapred.testing import write_era5_grib, write_ncep

KINDS = {"netcdf": ("NetCDF, packed", "air"), "grib": ("GRIB, simple packing", "t2m")}
TIMES = 576  # of a file, two shards; the long series is ten files
SPACING = 0.5
LONG = 10


def make_files(folder: Path, times: int, spacing: float) -> dict[str, list[Path]]:
    """Write the files of both kinds: the first one field by field, the others as copies of other months."""
    grid = Grid.regular(spacing)
    latitude, longitude = np.radians(grid.latitude)[:, None], np.radians(grid.longitude)
    random, fields = np.random.default_rng(0), np.empty((times, *grid.shape), np.float32)
    for hour in range(times):
        waves = sum(np.sin(k * longitude + hour / (5 * k)) / k for k in range(1, 8))
        fields[hour] = 288 - 40 * np.sin(latitude) ** 2 + 8 * np.cos(latitude) * waves
        fields[hour] += random.normal(0, 0.1, grid.shape)
    hours = np.datetime64("2001-01-01", "ns") + np.arange(times) * np.timedelta64(1, "h")
    dataset = xr.Dataset({"t2m": (("time", "latitude", "longitude"), fields)}, {"time": hours})
    dataset = dataset.assign_coords(latitude=grid.latitude, longitude=grid.longitude)
    (first,) = write_ncep(dataset, folder)
    files = {"netcdf": [first], "grib": [write_era5_grib(dataset, folder / "2001.grib")]}
    for number in range(1, LONG):
        later = np.timedelta64(number * times, "h")
        files["netcdf"].append(shift_netcdf(first, folder / f"{number}.nc", later))
        files["grib"].append(shift_grib(files["grib"][0], folder / f"{number}.grib", later))
    return files


def shift_netcdf(file: Path, target: Path, later: np.timedelta64) -> Path:
    shutil.copy(file, target)
    with netCDF4.Dataset(target, "a") as opened:
        opened["time"][:] += later / np.timedelta64(1, "h")
    return target


def shift_grib(file: Path, target: Path, later: np.timedelta64) -> Path:
    with file.open("rb") as source, target.open("wb") as sink:
        while (message := eccodes.codes_grib_new_from_file(source)) is not None:
            date, clock = (eccodes.codes_get_long(message, key) for key in ("dataDate", "dataTime"))
            day = np.datetime64(f"{date // 10000}-{date // 100 % 100:02d}-{date % 100:02d}T{clock // 100:02d}") + later
            text = str(np.datetime_as_string(day, unit="h"))
            eccodes.codes_set_key_vals(message, f"dataDate={text[:10].replace('-', '')},dataTime={text[11:]}00")
            eccodes.codes_write(message, sink)
            eccodes.codes_release(message)
    return target


def measure(kind: str, workers: int, store: Path, files: list[str]) -> dict[str, float]:
    """Return seconds and the highest memory in MB of one build in this process and its workers."""
    peak, began = _Peak(), time.perf_counter()
    grid = Grid.regular(1.5)
    build_store(Source(tuple(files), (KINDS[kind][1],)), store, grid=grid, window=12, workers=workers)
    return {"seconds": time.perf_counter() - began, "memory": peak.stop()}


class _Peak:
    """The highest sum of the memory of this process and its children while it runs, looked at every 20 ms."""

    def __init__(self) -> None:
        self._highest, self._done = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            family = [psutil.Process(), *psutil.Process().children(recursive=True)]
            self._highest = max(self._highest, sum(_anonymous_mb(process.pid) for process in family))

    def stop(self) -> float:
        self._done.set()
        self._thread.join()
        return self._highest


def _anonymous_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1e3


def run(kind: str, workers: int, files: list[Path], folder: Path) -> dict[str, float]:
    store = folder / "tensors.zarr"
    shutil.rmtree(store, ignore_errors=True)
    command = [sys.executable, __file__, "--one", kind, str(workers), str(store), *map(str, files)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def table(found: dict[tuple[str, int, int], dict[str, float]], times: int) -> str:
    """Return time and memory of each build, and their ratios."""
    lines = [
        "| source | workers | fields | time, s | a field, ms | memory, MB | memory, against the short series |"
        " speed, against one worker |",
        "| :-- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for (kind, workers, length), result in found.items():
        short, alone = found[kind, workers, 1], found[kind, 1, length]
        row = [KINDS[kind][0], str(workers), str(times * length), f"{result['seconds']:.1f}"]
        row += [f"{1e3 * result['seconds'] / (times * length):.1f}", f"{result['memory']:.0f}"]
        row += [f"{result['memory'] / short['memory']:.2f}", f"{alone['seconds'] / result['seconds']:.2f}"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "building.md")
    parser.add_argument("--times", type=int, default=TIMES, help="fields of a file")
    parser.add_argument("--spacing", type=float, default=SPACING, help="of the source, degrees")
    parser.add_argument("--rounds", type=int, default=1, help="of which the fastest counts")
    parser.add_argument("--one", nargs="+", metavar="ARGUMENT", help="KIND WORKERS STORE FILES: one build, prints JSON")
    options = parser.parse_args()
    if options.one:
        kind, workers, store, *files = options.one
        print(json.dumps(measure(kind, int(workers), Path(store), files)))
        return
    found: dict[tuple[str, int, int], dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder), options.times, options.spacing)
        for _ in range(options.rounds):
            for kind in KINDS:
                for length in (1, LONG):
                    for workers in (1, 2):
                        result = run(kind, workers, files[kind][:length], Path(folder))
                        key = (kind, workers, length)
                        if key not in found or result["seconds"] < found[key]["seconds"]:
                            found[key] = result
    versions = f"zarr {zarr.__version__}, xarray {xr.__version__}, eccodes {eccodes.__version__}, {platform.machine()}"
    text = f"# Building\n\n{__doc__.strip()}\n\n{versions}.\n\n{table(found, options.times)}\n"
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
