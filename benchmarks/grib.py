"""How fast hourly GRIB fields of 0.25 degrees become a Zarr store: climapred, cfgrib with xarray's to_zarr, and decoding alone.

    python benchmarks/grib.py [--out benchmarks/results/grib.md] [--times 120]

Each file holds 120 global fields (721 x 1440 points, GRIB 2, 16 bits a value) in simple packing or in CCSDS. Each side works
in a process of its own, in turns; the best of three rounds counts. climapred: open_source, harmonise, build_store without
regridding, two workers, with the scan of a file it has not seen, checksums, journal and verification. cfgrib: its usual way,
open_dataset with chunks and to_zarr, the index included, with xarray's and Dask's defaults and two threads; the faster of two
chunkings counts. eccodes: a loop that decodes the messages one after the other and keeps nothing. All sides have loaded their
libraries, and decoded a message and asked for its name, before the clock starts, so that eccodes' tables are there, and find
the file in the system's cache. The first field of each store is compared with eccodes' values.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cfgrib.xarray_plugin  # noqa: F401 - xarray loads it when it opens a file
import dask.array
import eccodes
import numpy as np
import xarray as xr
import zarr

from climapred.data.build import Source, build_store
from climapred.data.store import open_store
from climapred.grid import Grid
from climapred.testing import write_grib

ROUNDS, THREADS = 3, 2
PACKINGS = {"simple": "grid_simple", "CCSDS": "grid_ccsds"}
SIDES = {
    "climapred": "climapred, to a sharded store",
    "cfgrib_1": 'cfgrib, `chunks={"time": 1}`, `to_zarr`',
    "cfgrib_24": 'cfgrib, `chunks={"time": 24}`, `to_zarr`',
    "eccodes": "eccodes, decoding alone, one thread",
}


def write(path: Path, packing: str, times: int) -> None:
    """Write waves that travel over a zonal mean, with a little noise."""
    grid, random = Grid.regular(0.25), np.random.default_rng(0)
    latitude, longitude = np.deg2rad(grid.latitude[::-1])[:, None], np.deg2rad(grid.longitude)
    ends = {"latitudeOfFirstGridPointInDegrees": 90, "latitudeOfLastGridPointInDegrees": -90}
    ends |= {"longitudeOfFirstGridPointInDegrees": 0, "longitudeOfLastGridPointInDegrees": 359.75}
    steps = {"iDirectionIncrementInDegrees": 0.25, "jDirectionIncrementInDegrees": 0.25}
    keys = {"Ni": longitude.size, "Nj": latitude.size, **ends, **steps, "shortName": "2t", "bitsPerValue": 16}
    messages = []
    for hour in range(times):
        waves = sum(8 / k * np.sin(k * longitude - 0.02 * hour * k + 3 * k * latitude) for k in range(1, 12))
        noise = 0.2 * random.standard_normal(grid.shape)
        values = (260 + 35 * np.cos(latitude) + np.cos(latitude) * waves + noise).astype(np.float32)
        when = np.datetime64("2020-01-01T00", "h") + hour
        clock = {"dataDate": int(str(when)[:10].replace("-", "")), "dataTime": 100 * int(str(when)[11:13])}
        messages.append({**keys, **clock, "values": values, "packingType": packing})
    write_grib(path, *messages, sample="regular_ll_sfc_grib2")


def decode(path: Path) -> None:
    with path.open("rb") as file:
        while (handle := eccodes.codes_grib_new_from_file(file)) is not None:
            eccodes.codes_get_values(handle)
            eccodes.codes_release(handle)


def measure(side: str, path: Path, store: Path) -> float:
    """Return seconds."""
    with path.open("rb") as file:
        handle = eccodes.codes_grib_new_from_file(file)
        for key in ("values", "shortName", "name", "units", "typeOfLevel", "stepType", "dataType", "validityTime"):
            eccodes.codes_get_array(handle, key)
        eccodes.codes_release(handle)
    began = time.perf_counter()
    if side == "eccodes":
        decode(path)
    elif side == "climapred":
        build_store(Source((str(path),), ("t2m",)), store, workers=THREADS)
    else:
        with dask.config.set(num_workers=THREADS):
            chunks = {"time": int(side.removeprefix("cfgrib_"))}
            xr.open_dataset(path, engine="cfgrib", chunks=chunks).to_zarr(store)
    return time.perf_counter() - began


def check(side: str, path: Path, store: Path) -> None:
    """Compare the first field with eccodes."""
    if side == "eccodes":
        return
    fields = (open_store(store) if side == "climapred" else xr.open_zarr(store)).t2m.sortby("latitude", ascending=False)
    with path.open("rb") as file:
        first = eccodes.codes_grib_new_from_file(file)
        np.testing.assert_array_equal(fields[0].values.ravel(), eccodes.codes_get_values(first).astype(np.float32))
        eccodes.codes_release(first)


def run(side: str, path: Path) -> float:
    """Measure one side in a process of its own, without an index or a table from before."""
    for index in path.parent.glob("*.idx"):
        index.unlink()
    store, cache = path.parent / "store.zarr", path.parent / "cache"
    for folder in (store, cache):
        shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, __file__, "--one", side, str(path), str(store)]
    environment = {**os.environ, "CLIMAPRED_CACHE": str(cache), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    seconds = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)
    check(side, path, store)
    return float(seconds)


def table(found: dict[tuple[str, str], float], times: int) -> str:
    lines = [
        "| packing | side | ms a field | against decoding alone | cfgrib's time over it |",
        "| :-- | :-- | --: | --: | --: |",
    ]
    for (packing, side), seconds in found.items():
        usual = min(other for (same, name), other in found.items() if same == packing and name.startswith("cfgrib"))
        ratios = f"{seconds / found[packing, 'eccodes']:.2f} | {usual / seconds:.2f}"
        lines.append(f"| {packing} | {SIDES[side]} | {1000 * seconds / times:.1f} | {ratios} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "grib.md")
    parser.add_argument("--times", type=int, default=120)
    parser.add_argument("--one", nargs=3, metavar=("SIDE", "FILE", "STORE"), help="measure one side, print its seconds")
    options = parser.parse_args()
    if options.one:
        side, path, store = options.one
        print(json.dumps(measure(side, Path(path), Path(store))))
        return
    found: dict[tuple[str, str], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for packing, name in PACKINGS.items():
            path = Path(folder) / f"{packing}.grib"
            write(path, name, options.times)
            for _ in range(ROUNDS):
                for side in SIDES:
                    found[packing, side] = min(run(side, path), found.get((packing, side), np.inf))
            path.unlink()
    versions = f"eccodes {eccodes.codes_get_api_version()}, zarr {zarr.__version__}, xarray {xr.__version__}"
    system = f"{THREADS} threads; {options.times} fields; {versions}, {platform.machine()}"
    text = f"# GRIB\n\n{__doc__.strip()}\n\n{system}.\n\n{table(found, options.times)}\n"
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
