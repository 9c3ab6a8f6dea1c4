"""Open files lazily, values untouched: NetCDF, Zarr, and GRIB through climapred.data.grib."""

from __future__ import annotations

import re
from collections.abc import Sequence
from glob import glob
from math import prod
from pathlib import Path
from typing import Literal

import pandas as pd
import xarray as xr

from climapred.data.grib import open_grib
from climapred.variables import select_names

Source = str | Path | Sequence[str | Path]
Kind = Literal["grib", "netcdf", "zarr"]

BLOCK_BYTES = 64 * 2**20

_MAGIC: dict[bytes, Kind] = {b"GRIB": "grib", b"CDF": "netcdf", b"\x89HDF\r\n\x1a\n": "netcdf"}
_ZARR_FILES = ("zarr.json", ".zgroup", ".zmetadata")


def open_source(path: Source, *, variables: Sequence[str] | None = None) -> xr.Dataset:
    """Return the contents of files as one lazy dataset: names, units, order and values are the files' own.

    What a file is, its content tells, not its name. Several files are joined along their time coordinate, in
    the order of their names. Arrays are dask-backed, in blocks of at most 64 MiB along time only, aligned
    with the chunks on disk, so that a year of 6-hourly fields is a few blocks. Packed values are decoded by
    xarray; GRIB values are float32.

    Args:
        path: a file, a Zarr folder, a glob pattern, or a list of these; `~` is expanded.
        variables: names as the file spells them, canonical names or aliases; None for all.

    Raises:
        FileNotFoundError: if nothing matches.
        ValueError: if a file is empty, damaged or of unknown kind, lacks a variable, or does not fit the
            others: another grid, other variables or units.
    """
    paths = expand_paths(path)
    kinds = {file: _kind(file) for file in paths}
    if len(set(kinds.values())) > 1:
        named = "; ".join(f"{file} is {kind}" for file, kind in kinds.items() if kind != kinds[paths[0]])
        raise ValueError(f"files of one source must be of one kind: {paths[0]} is {kinds[paths[0]]}, but {named}")
    if kinds[paths[0]] == "grib":
        return open_grib(paths, variables)
    datasets = [_open_one(file, kinds[file], variables) for file in paths]
    return datasets[0] if len(datasets) == 1 else _concatenate(datasets, paths)


def expand_paths(path: Source) -> list[Path]:
    """Return the files that a path, a glob pattern or a list of these stands for.

    A pattern gives its files in natural order: air.2.nc before air.10.nc. A list keeps its order.

    Raises:
        FileNotFoundError: if a path does not exist or a pattern matches nothing.
    """
    if not isinstance(path, (str, Path)):
        if not path:
            raise FileNotFoundError("no files given: the list of paths is empty")
        return [file for one in path for file in expand_paths(one)]
    wanted = Path(path).expanduser()
    if wanted.exists():
        return [wanted]
    found = sorted(map(Path, glob(str(wanted), recursive=True)), key=_natural_key)
    if not found:
        raise FileNotFoundError(f"no file matches {str(path)!r} (working directory {Path.cwd()})")
    return found


def source_identity(path: Source) -> list[dict[str, str | int]]:
    """Return name, size in bytes and mtime_ns of each file, as build journals keep them.

    A Zarr folder counts as one file: the sum of its sizes, the latest of its times.
    """
    identity: list[dict[str, str | int]] = []
    for file in expand_paths(path):
        parts = [part.stat() for part in (file.rglob("*") if file.is_dir() else [file]) if part.is_file()]
        mtime = max((part.st_mtime_ns for part in parts), default=0)
        identity.append({"name": file.name, "size": sum(part.st_size for part in parts), "mtime_ns": mtime})
    return identity


def _natural_key(path: Path) -> list[str | int]:
    """Return a sorting key in which the digits of a path count as numbers."""
    parts = re.split(r"(\d+)", str(path))  # text and digits take turns, text first
    return [part if number % 2 == 0 else int(part) for number, part in enumerate(parts)]


def _kind(path: Path) -> Kind:
    if path.is_dir():
        if any((path / name).is_file() for name in _ZARR_FILES):
            return "zarr"
        raise ValueError(
            f"{path} is a folder without {' or '.join(_ZARR_FILES)}: not a Zarr store; its files are {path}/*"
        )
    with path.open("rb") as file:
        start = file.read(8)
    if not start:
        raise ValueError(f"{path} is empty; a GRIB, NetCDF or Zarr source was wanted")
    for magic, kind in _MAGIC.items():
        if start.startswith(magic):
            return kind
    raise ValueError(f"{path} is neither GRIB, NetCDF nor Zarr: it begins with {start!r}")


def _open_one(path: Path, kind: Kind, variables: Sequence[str] | None) -> xr.Dataset:
    try:
        if kind == "zarr":
            dataset = xr.open_zarr(path, chunks=None, consolidated=(path / ".zmetadata").is_file())
        else:
            dataset = xr.open_dataset(path, engine="netcdf4", chunks=None)
            _check_classic_size(path, dataset)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is a {kind} source, but truncated or not decodable: {error}") from error
    dataset = dataset[select_names(map(str, dataset.data_vars), variables, str(path))]
    time = _time_dimension(dataset)
    blocks = {name: _blocked(dataset[name].variable, time) for name in dataset.data_vars}
    return dataset.assign(blocks).drop_encoding()


def _check_classic_size(path: Path, dataset: xr.Dataset) -> None:
    """Refuse a classic NetCDF file that is shorter than its uncompressed variables.

    The NetCDF library reads zeros past the end of such a file. A cut of less than the header's length is not
    noticed.
    """
    with path.open("rb") as file:
        if file.read(3) != b"CDF":
            return
    encodings = (variable.encoding for variable in dataset.variables.values())
    wanted = sum(prod(e["original_shape"]) * e["dtype"].itemsize for e in encodings if "original_shape" in e)
    if path.stat().st_size < wanted:
        raise ValueError(f"its variables need {wanted} bytes, the file has {path.stat().st_size}")


def _time_dimension(dataset: xr.Dataset) -> str | None:
    """Return the dimension whose coordinate holds dates."""
    for name, index in dataset.indexes.items():
        if isinstance(index, (pd.DatetimeIndex, xr.CFTimeIndex)):
            return str(name)
    return None


def _blocked(variable: xr.Variable, time: str | None) -> xr.Variable:
    """Return the variable as a dask array, in blocks along time that begin where chunks on disk begin."""
    if time not in variable.sizes:
        return variable.chunk()
    count = variable.sizes[time]
    on_disk = variable.encoding.get("preferred_chunks", {}).get(time, 1)
    steps = min(max(1, BLOCK_BYTES * count // max(variable.nbytes, 1)), count)
    return variable.chunk({time: steps // on_disk * on_disk or steps})


def _concatenate(datasets: list[xr.Dataset], paths: list[Path]) -> xr.Dataset:
    first = datasets[0]
    time = _time_dimension(first)
    if time is None:
        raise ValueError(
            f"{paths[0]} has no dates to join {len(paths)} files along; its axes are {list(first.indexes)}"
        )
    for dataset, path in zip(datasets, paths, strict=True):
        _check_fits(first, dataset, time, f"{path} does not fit {paths[0]}")
    return xr.concat(
        datasets,
        dim=time,
        data_vars="minimal",
        coords="minimal",
        compat="equals",
        join="exact",
        combine_attrs="drop_conflicts",
    )


def _check_fits(first: xr.Dataset, other: xr.Dataset, time: str, complaint: str) -> None:
    if set(first.data_vars) != set(other.data_vars):
        raise ValueError(
            f"{complaint}: its variables are {list(other.data_vars)}, not {list(first.data_vars)}; "
            "name those wanted in variables="
        )
    if time not in other.indexes:
        raise ValueError(f"{complaint}: it has no coordinate {time!r}, only {list(other.indexes)}")
    for name, variable in first.data_vars.items():
        if variable.attrs.get("units") != (found := other[name].attrs.get("units")):
            raise ValueError(f"{complaint}: {name!r} has units {found!r}, not {variable.attrs.get('units')!r}")
        if variable.dims != other[name].dims:
            raise ValueError(f"{complaint}: {name!r} has dimensions {other[name].dims}, not {variable.dims}")
    for dim in first.dims:
        here, there = first.get_index(dim), other.get_index(dim)
        if dim != time and not here.equals(there):
            raise ValueError(
                f"{complaint}: {dim!r} is {_summary(there)}, not {_summary(here)}; "
                "open the files one by one and regrid them to a common grid"
            )


def _summary(index: pd.Index) -> str:
    return f"{index[0]}..{index[-1]} ({len(index)} points)" if len(index) else "empty"
