"""From files to a file on another grid, block by block: what ``climapred regrid`` does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import xarray as xr

from climapred.data.regrid import Method, regrid
from climapred.data.sources import Source, open_source
from climapred.grid import Grid, Region, axis_names
from climapred.whole import replacing

_SUFFIXES = (".nc", ".zarr")
_THREADS = 2  # one reads while the other computes; NetCDF is read by one at a time, and more only take memory


def target_grid(name: str, region: Region | None = None) -> Grid:
    """Return the grid that a command line names: a spacing in degrees, N48 or F48, or a file that is on it.

    Args:
        region: (south, north, west, east) of it.

    Raises:
        FileNotFoundError: if it is neither name nor file.
        ValueError: if the file's grid is not rectilinear, or the region does not fit.
    """
    if re.fullmatch(r"[NFnf]\d+|[\d.]+", name):
        return Grid.named(name, region)
    if not Path(name).expanduser().exists():
        raise FileNotFoundError(f"a grid is a spacing in degrees such as 1.5, N48 or F48, or a file; no file {name!r}")
    grid = Grid.of(open_source(name), any_direction=True)
    return grid if region is None else grid.crop(region)


def regrid_file(
    source: Source,
    out: str | Path,
    grid: Grid,
    method: Method = "conservative",
    *,
    variables: Sequence[str] | None = None,
    max_missing: float = 0.5,
    overwrite: bool = False,
    history: str = "",
) -> xr.Dataset:
    """Write the fields of ``source``, regridded, to ``out``; return what was written, lazily.

    Names, attributes, the order of times and variables without a horizontal are kept; packed values are written
    unpacked, axes as (..., latitude, longitude), cells as CF bounds. The fields pass through in blocks, so that
    memory does not grow with their number. ``out`` appears when it is whole.

    Args:
        source: files of one kind, see ``open_source``.
        out: .nc (NetCDF-4) or .zarr.
        grid, method, max_missing: see ``regrid``.
        variables: names in the files; None for all.
        history: a line for the attribute ``history``, put after those that are there.

    Raises:
        FileExistsError: if ``out`` is there and ``overwrite`` is not set.
        ValueError: if ``out`` has another suffix, a file cannot be read to its end, and as ``open_source`` and ``regrid`` do.
    """
    out = Path(out).expanduser()
    if out.suffix not in _SUFFIXES:
        raise ValueError(f"the output must end in {' or '.join(_SUFFIXES)}, got {out}")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists; remove it, name another, or allow it to be replaced (--overwrite)")
    opened = open_source(source, variables=variables)
    result = _described(regrid(opened, grid, method, max_missing=max_missing), grid, history)
    try:
        with replacing(out) as temporary, dask.config.set(scheduler="threads", num_workers=_THREADS):
            _write(result, temporary, out.suffix)
    except RuntimeError as error:  # the NetCDF library says "HDF error" and no name
        raise ValueError(f"{source} cannot be read, or {out} not be written: {error}") from error
    return result


def _described(result: xr.Dataset, grid: Grid, history: str) -> xr.Dataset:
    """Return the result with CF bounds, history and conventions, and the horizontal as the last axes."""
    latitude, longitude = axis_names(result)
    fields = [name for name, variable in result.data_vars.items() if {latitude, longitude} <= set(variable.dims)]
    result = result.assign({name: result[name].transpose(..., latitude, longitude) for name in fields})
    side = "bnds" if result.sizes.get("bnds", 2) == 2 else "edges"
    for name, edges in ((latitude, grid.latitude_bounds), (longitude, grid.longitude_bounds)):
        plain = {"_FillValue": None, "coordinates": None}  # else xarray lists scalar coordinates
        result[f"{name}_bnds"] = ((name, side), np.stack([edges[:-1], edges[1:]], axis=1), {}, plain)
        result[name].attrs["bounds"] = f"{name}_bnds"
    attrs = {"Conventions": "CF-1.11", **result.attrs}
    if history:
        attrs["history"] = f"{attrs['history']}\n{history}" if attrs.get("history") else history
    return result.assign_attrs(attrs)


def _write(result: xr.Dataset, path: Path, suffix: str) -> None:
    """Write block by block: Dask reads, regrids and stores each in one task, a few at a time."""
    axes = axis_names(result)
    chunks = {
        str(name): tuple(size if dim in axes else 1 for dim, size in variable.sizes.items())
        for name, variable in result.data_vars.items()
        if set(axes) <= set(variable.dims)
    }
    unfilled = {str(name): {"_FillValue": None} for name in result.coords}
    if suffix == ".zarr":
        result.to_zarr(path, mode="w", zarr_format=3, consolidated=False, encoding=unfilled, align_chunks=True)
        return
    unlimited = [
        name for name, index in result.indexes.items() if isinstance(index, (pd.DatetimeIndex, xr.CFTimeIndex))
    ]
    encoding = {name: {"chunksizes": sizes} for name, sizes in chunks.items()} | unfilled
    result.to_netcdf(path, engine="netcdf4", unlimited_dims=unlimited, encoding=encoding)
