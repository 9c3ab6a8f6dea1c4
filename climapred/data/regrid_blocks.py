"""From any source to a file on another grid, block by block, by xarray and Dask: many files, GRIB, Zarr, packed values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import xarray as xr
from dask.callbacks import Callback

from climapred.data.regrid import Method, regrid
from climapred.data.sources import Source, open_source
from climapred.grid import Grid, axis_names

_THREADS = 2  # one reads while the other computes; NetCDF is read by one at a time, and more only take memory


def regrid_blocks(
    source: Source,
    out: Path,
    grid: Grid,
    method: Method,
    *,
    variables: Sequence[str] | None,
    max_missing: float,
    history: str,
    progress: Callable[[int, int], None],
) -> None:
    """Write the regridded fields to ``out``, see ``regrid_file``."""
    opened = open_source(source, variables=variables)
    result = _described(regrid(opened, grid, method, max_missing=max_missing), grid, history)
    told = Callback(posttask=lambda key, value, graph, state, worker: progress(*_counted(state)))
    with told, dask.config.set(scheduler="threads", num_workers=_THREADS):
        _store(result, out)


def _counted(state: Mapping[str, Any]) -> tuple[int, int]:
    """Return the number of Dask's tasks that are done, and of all."""
    done = len(state["finished"])
    return done, done + sum(len(state[kind]) for kind in ("ready", "waiting", "running"))


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


def _store(result: xr.Dataset, path: Path) -> None:
    """Write block by block: Dask reads, regrids and stores each in one task, a few at a time."""
    axes = axis_names(result)
    chunks = {
        str(name): tuple(size if dim in axes else 1 for dim, size in variable.sizes.items())
        for name, variable in result.data_vars.items()
        if set(axes) <= set(variable.dims)
    }
    unfilled = {str(name): {"_FillValue": None} for name in result.coords}
    if path.suffix == ".zarr":
        result.to_zarr(path, mode="w", zarr_format=3, consolidated=False, encoding=unfilled, align_chunks=True)
        return
    unlimited = [
        name for name, index in result.indexes.items() if isinstance(index, (pd.DatetimeIndex, xr.CFTimeIndex))
    ]
    encoding = {name: {"chunksizes": sizes} for name, sizes in chunks.items()} | unfilled
    result.to_netcdf(path, engine="netcdf4", unlimited_dims=unlimited, encoding=encoding)
