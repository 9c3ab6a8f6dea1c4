"""How fast global 0.25-degree fields come to 128 x 256 points: climapred and CDO, file to file; and in memory.

    python benchmarks/regridding.py [--out benchmarks/results/regridding.md] [--times 240]

240 hourly fields of 721 x 1440 points (float32, NetCDF-4, not compressed, one field a chunk, in the page cache) to the Gaussian
grid F64, whose cells both sides read from one file. Each side works in a process of its own, in turns; the best of five rounds
counts. "command" is the whole process from its start to its end, as it is for CDO; "call" is `regrid_file` in a Python that has
loaded its libraries. Memory is the highest resident size of the process, looked at every 5 ms.

In memory: milliseconds per field. CDO's are its time file to file less the time that it takes to read the same file
(`selindexbox` of one point); climapred's are a Regridder on float32 arrays of 24 fields, whose rows lie from north to south in
the file; "full matrix" is scipy's product of all weights with each field, already turned; of both the best of twenty rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import netCDF4
import numpy as np
import psutil
import scipy
import xarray as xr

from climapred.data.regrid import Method, Regridder
from climapred.data.regrid_file import regrid_file, target_grid
from climapred.grid import Grid

SOURCE, TARGET, ROUNDS, THREADS, IN_MEMORY = Grid.regular(0.25), Grid.gaussian(64), 5, 2, 24
OPERATORS: dict[Method, str] = {"conservative": "remapcon", "bilinear": "remapbil"}


def make_files(folder: Path, times: int) -> None:
    """Write in.nc, smooth waves and noise that drift, and grid.nc, the target with its cells."""
    random = np.random.default_rng(0)
    latitude, longitude = np.deg2rad(SOURCE.latitude)[:, None], np.deg2rad(SOURCE.longitude)
    waves = 280 + 30 * np.cos(latitude) + 8 * np.cos(latitude) ** 2 * np.cos(3 * longitude + 2 * latitude)
    field = (waves + random.normal(0, 2, SOURCE.shape)).astype(np.float32)[::-1]
    with netCDF4.Dataset(folder / "in.nc", "w") as file:
        for name, axis, units in (
            ("time", np.arange(times), "hours since 2020-01-01"),
            ("latitude", SOURCE.latitude[::-1], "degrees_north"),
            ("longitude", SOURCE.longitude, "degrees_east"),
        ):
            file.createDimension(name, None if name == "time" else axis.size)
            file.createVariable(name, "f8", (name,)).units = units
            file[name].standard_name = name
            file[name][:] = axis
        t2m = file.createVariable("t2m", "f4", ("time", "latitude", "longitude"), chunksizes=(1, *SOURCE.shape))
        t2m.units = "K"
        for number in range(times):
            t2m[number] = np.roll(field, 7 * number, axis=1)
    grid = xr.Dataset({"mask": (("latitude", "longitude"), np.ones(TARGET.shape, "f4"))}, TARGET.coordinates())
    for name, edges in (("latitude", TARGET.latitude_bounds), ("longitude", TARGET.longitude_bounds)):
        grid[f"{name}_bnds"] = ((name, "bnds"), np.stack([edges[:-1], edges[1:]], axis=1))
        grid[name].attrs["bounds"] = f"{name}_bnds"
    grid.to_netcdf(folder / "grid.nc")


def command(side: str, method: Method, folder: Path) -> list[str]:
    """Return the command line of one side."""
    if side == "cdo":
        return ["cdo", "-s", "-P", str(THREADS), f"{OPERATORS[method]},grid.nc", "in.nc", f"cdo_{method}.nc"]
    if side == "read":
        return ["cdo", "-s", "-P", str(THREADS), "selindexbox,1,1,1,1", "in.nc", "point.nc"]
    if side == "call":
        return [sys.executable, str(Path(__file__).absolute()), "--one", method, str(folder)]
    arguments = ["in.nc", f"command_{method}.nc", "--grid", "grid.nc", "--method", method, "--overwrite"]
    return [sys.executable, "-m", "climapred.cli", "regrid", *arguments]


def measure(side: str, method: Method, folder: Path) -> dict[str, float]:
    """Return seconds and the peak of memory in MB."""
    began, peak = time.perf_counter(), 0
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled
    with psutil.Popen(
        command(side, method, folder), cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    ) as child:
        while child.poll() is None:
            try:
                peak = max(peak, child.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.005)
        output = child.communicate()[0]
        seconds = time.perf_counter() - began
    if child.returncode:
        raise RuntimeError(f"{side} {method} ended with status {child.returncode}")
    return {"seconds": json.loads(output) if side == "call" else seconds, "memory": peak / 1e6}


def one_call(method: Method, folder: Path) -> float:
    """Regrid in this process, whose libraries are loaded; return seconds."""
    began = time.perf_counter()
    grid = target_grid(str(folder / "grid.nc"))
    regrid_file(folder / "in.nc", folder / f"call_{method}.nc", grid, method, overwrite=True)
    return time.perf_counter() - began


def file_to_file(folder: Path) -> tuple[str, dict[Method, dict[str, dict[str, float]]]]:
    """Return the table, and the best of all rounds by method and side."""
    best: dict[Method, dict[str, dict[str, float]]] = {method: {} for method in OPERATORS}
    for _ in range(ROUNDS):
        for method, sides in best.items():
            for side in ("cdo", "call", "command", "read"):
                found = measure(side, method, folder)
                sides[side] = min(sides.get(side, found), found, key=lambda result: result["seconds"])
    lines = [
        "| file to file | seconds | times as fast as CDO | peak memory, MB | largest difference to CDO, K |",
        "| :-- | --: | --: | --: | --: |",
    ]
    for method, sides in best.items():
        reference = xr.open_dataset(folder / f"cdo_{method}.nc")["t2m"].sortby("latitude")
        for side, name in (
            ("cdo", f"`cdo -P {THREADS} {OPERATORS[method]}`"),
            ("call", f"climapred {method}, call"),
            ("command", f"climapred {method}, command"),
        ):
            seconds, memory = sides[side]["seconds"], sides[side]["memory"]
            ours = xr.open_dataset(folder / f"{side}_{method}.nc")["t2m"].sortby("latitude")
            difference = "" if side == "cdo" else f"{largest_difference(ours, reference):.1e}"
            ratio = sides["cdo"]["seconds"] / seconds
            lines.append(f"| {name} | {seconds:.2f} | {ratio:.2f} | {memory:.0f} | {difference} |")
    return "\n".join(lines), best


def largest_difference(ours: xr.DataArray, reference: xr.DataArray) -> float:
    assert (ours["time"].values == reference["time"].values).all()
    return float(np.abs(ours.values.astype(np.float64) - reference.values).max())


def in_memory(folder: Path, best: dict[Method, dict[str, dict[str, float]]], times: int) -> str:
    """Return the table of milliseconds per field."""
    count = min(times, IN_MEMORY)
    fields = netCDF4.Dataset(folder / "in.nc")["t2m"][:count].filled()[:, ::-1]
    turned = np.ascontiguousarray(fields)  # so that the full matrix need not
    lines = [
        "| in memory, ms per field | CDO less reading, 2 threads | full matrix | climapred, 1 thread | 2 threads | "
        "times as fast as CDO | as the full matrix |",
        "| :-- | --: | --: | --: | --: | --: | --: |",
    ]
    for method, sides in best.items():
        regridder = Regridder(SOURCE, TARGET, method)
        full = scipy.sparse.kron(regridder.latitude_weights, regridder.longitude_weights, format="csr")
        cdo = 1000 * (sides["cdo"]["seconds"] - sides["read"]["seconds"]) / times
        found = {"full": np.inf, "one": np.inf, "two": np.inf}
        with ThreadPoolExecutor(THREADS) as pool:
            runs = {
                "full": lambda: [full @ field.ravel() for field in turned],  # noqa: B023
                "one": lambda: regridder(fields),  # noqa: B023
                "two": lambda: list(pool.map(regridder, np.split(fields, THREADS))),  # noqa: B023
            }
            for _ in range(4 * ROUNDS):
                for name, run in runs.items():
                    began = time.perf_counter()
                    run()
                    found[name] = min(found[name], 1000 * (time.perf_counter() - began) / count)
        ratios = f"{cdo / found['two']:.1f} | {found['full'] / found['two']:.1f}"
        lines.append(
            f"| {method} | {cdo:.2f} | {found['full']:.2f} | {found['one']:.2f} | {found['two']:.2f} | {ratios} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "regridding.md")
    parser.add_argument("--times", type=int, default=240, help="fields; even")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "FOLDER"), help="measure one call, print seconds")
    options = parser.parse_args()
    if options.one:
        print(one_call(options.one[0], Path(options.one[1])))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_files(folder, options.times)
        files, best = file_to_file(folder)
        memory = in_memory(folder, best, options.times)
    said = subprocess.run(["cdo", "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
    libraries = f"numpy {np.__version__}, scipy {scipy.__version__}, xarray {xr.__version__}"
    versions = f"{said.split('(')[0].strip()}, {libraries}, {platform.machine()}, {os.cpu_count()} cores"
    text = f"# Regridding\n\n{__doc__.strip()}\n\n{options.times} fields; {versions}.\n\n{files}\n\n{memory}\n"
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
