"""From files to a file on another grid: what ``climapred regrid`` does."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from climapred.data.regrid_netcdf import is_plain_netcdf, read_grid, regrid_netcdf
from climapred.data.weights import Method
from climapred.grid import Grid, Region
from climapred.whole import replacing

if TYPE_CHECKING:
    from climapred.data.sources import Source

_SUFFIXES = (".nc", ".zarr")


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
    path = Path(name).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"a grid is a spacing in degrees such as 1.5, N48 or F48, or a file; no file {name!r}")
    if is_plain_netcdf(path):
        grid = read_grid(path)
    else:
        from climapred.data.sources import open_source  # brings xarray and Dask, which take a second to start

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
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the fields of ``source``, regridded, to ``out``.

    Names, attributes, the order of times and variables without a horizontal are kept; packed values are written
    unpacked, axes as (..., latitude, longitude), cells as CF bounds. The fields pass through in blocks, so that
    memory does not grow with their number. ``out`` appears when it is whole.

    Args:
        source: files of one kind, see ``open_source``.
        out: .nc (NetCDF-4) or .zarr.
        grid, method, max_missing: see ``regrid``.
        variables: names in the files; None for all.
        history: a line for the attribute ``history``, put after those that are there.
        progress: called with (steps done, steps in all).

    Raises:
        FileExistsError: if ``out`` is there and ``overwrite`` is not set.
        ValueError: if ``out`` has another suffix, a file cannot be read to its end, and as ``open_source`` and ``regrid`` do.
    """
    out = Path(out).expanduser()
    if out.suffix not in _SUFFIXES:
        raise ValueError(f"the output must end in {' or '.join(_SUFFIXES)}, got {out}")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists; remove it, name another, or allow it to be replaced (--overwrite)")
    settings: Any = {"variables": variables, "max_missing": max_missing, "history": history, "progress": progress}
    files = list(source) if isinstance(source, Sequence) and not isinstance(source, str) else [source]
    try:
        with replacing(out) as temporary:
            alone = Path(str(files[0])).expanduser()
            if out.suffix == ".nc" and len(files) == 1 and is_plain_netcdf(alone):
                regrid_netcdf(alone, temporary, grid, method, **settings)
            else:
                from climapred.data.regrid_blocks import regrid_blocks  # xarray and Dask take a second to start

                regrid_blocks(source, temporary, grid, method, **settings)
    except RuntimeError as error:  # the NetCDF library says "HDF error" and no name
        raise ValueError(f"{source} cannot be read, or {out} not be written: {error}") from error
