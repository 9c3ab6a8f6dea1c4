"""Open files lazily, values untouched: NetCDF, Zarr, and GRIB through climapred.data.grib; local or behind URLs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import xarray as xr

from climapred.data.netcdf import open_netcdf
from climapred.data.remote import ZARR_DOCUMENTS, RemoteFile, expand_url, is_url
from climapred.variables import select_names

if TYPE_CHECKING:
    from climapred.data.messages import Damaged

Location = Path | RemoteFile
Source = str | Location | Sequence[str | Location]
Kind = Literal["grib", "netcdf", "zarr"]

BLOCK_BYTES = 16 * 2**20
_MOST_BLOCKS = 8  # in a chunk on disk that is still read whole

_MAGIC: dict[bytes, Kind] = {b"GRIB": "grib", b"CDF": "netcdf", b"\x89HDF\r\n\x1a\n": "netcdf"}


def open_source(
    path: Source,
    *,
    variables: Sequence[str] | None = None,
    select: Mapping[str, Any] | None = None,
    damaged: Damaged = "error",
    block: int | None = None,
    forecasts: bool = False,
) -> xr.Dataset:
    """Return the contents of files as one lazy dataset: names, units, order and values are the files' own.

    What a file is, its content tells, not its name. Several files are joined along their time coordinate, in the order of their
    names. Packed values are decoded by xarray; GRIB values are float32; calendars other than the standard one stay as they are,
    with cftime dates.

    Arrays are dask-backed, in blocks along time only: of about 16 MiB and aligned with the chunks on disk, which are not cut
    unless they are larger than 128 MiB; of GRIB, about 4 MiB (see ``open_grib``).

    Args:
        path: a file, a Zarr folder, a URL (http, s3, gs: see climapred.data.remote), a glob pattern, or a list of these; `~` is
            expanded.
        variables: names as the file spells them, canonical names or aliases; None for all.
        select: GRIB messages to take, such as {"level": 500}; see ``open_grib``.
        damaged: what to do about damaged GRIB messages: "error", or "skip" them with a warning.
        block: times in a dask block, as far as chunks on disk allow it; None for the above.
        forecasts: of GRIB, keep starts and leads apart, dims (init_time, lead_time, ...), instead of placing fields by their
            valid time; other files have the axes that they have.

    Raises:
        FileNotFoundError: if nothing matches.
        ImportError: if a URL needs packages that are not installed.
        OSError: if a server cannot be reached or refuses.
        ValueError: if a file is empty, damaged or of unknown kind, lacks a variable, or does not fit the others: another grid,
            other variables, units or calendar.
    """
    paths = expand_paths(path)
    places = [_locate(file) for file in paths]
    kinds = [_kind(file, place) for file, place in zip(paths, places, strict=True)]
    kind = kinds[0]
    if len(set(kinds)) > 1:
        named = "; ".join(f"{file} is {other}" for file, other in zip(paths, kinds, strict=True) if other != kind)
        raise ValueError(f"files of one source must be of one kind: {paths[0]} is {kind}, but {named}")
    if kind == "grib":
        from climapred.data.grib import open_grib  # eccodes is slow to load, and not needed for other files

        files = [str(place) for place in places]
        return open_grib(files, variables, select=select, damaged=damaged, block=block, forecasts=forecasts)
    if select:
        raise ValueError(
            f"select= chooses GRIB messages, but {paths[0]} is {kind}; use dataset.sel(...) on what is opened"
        )
    datasets = [_open_one(file, place, variables, block) for file, place in zip(paths, places, strict=True)]
    return datasets[0] if len(datasets) == 1 else _concatenate(datasets, paths)


def expand_paths(path: Source) -> list[Location]:
    """Return the files that a path, a URL, a glob pattern or a list of these stands for.

    A pattern gives its files in natural order: air.2.nc before air.10.nc. A list keeps its order.

    Raises:
        FileNotFoundError: if a path does not exist or a pattern matches nothing. A URL without a pattern is not looked up.
    """
    if isinstance(path, RemoteFile):
        return [path]
    if not isinstance(path, (str, Path)):
        if not path:
            raise FileNotFoundError("no files given: the list of paths is empty")
        return [file for one in path for file in expand_paths(one)]
    wanted = Path(path).expanduser()
    found: list[Location]
    if is_url(path):
        found = [*expand_url(str(path))]
    elif wanted.exists():
        return [wanted]
    else:
        found = [Path(file) for file in glob(str(wanted), recursive=True)]
    if not found:
        raise FileNotFoundError(
            f"no file matches {str(path)!r}" + ("" if is_url(path) else f" (working directory {Path.cwd()})")
        )
    return sorted(found, key=_natural_key)


def source_identity(path: Source) -> list[dict[str, str | int]]:
    """Return what tells a file from a changed one, as build journals keep it, for each file.

    Of a local file name, size in bytes and mtime_ns; a Zarr folder counts as one file: the sum of its sizes, the latest of its
    times. Of a URL name, size, etag and date of change as far as the server tells them; of a Zarr store behind a URL the
    checksum of its description.
    """
    identity: list[dict[str, str | int]] = []
    for file in expand_paths(path):
        if isinstance(file, RemoteFile):
            identity.append(file.identity())
            continue
        parts = [part.stat() for part in (file.rglob("*") if file.is_dir() else [file]) if part.is_file()]
        mtime = max((part.st_mtime_ns for part in parts), default=0)
        identity.append({"name": file.name, "size": sum(part.st_size for part in parts), "mtime_ns": mtime})
    return identity


def _natural_key(path: Location) -> list[str | int]:
    """Return a sorting key in which the digits of a path count as numbers."""
    parts = re.split(r"(\d+)", str(path))  # text and digits take turns, text first
    return [part if number % 2 == 0 else int(part) for number, part in enumerate(parts)]


def _locate(file: Location) -> Location:
    """Return where a file is read: a file behind a URL in its copy, a Zarr store where it is."""
    return file.local_copy() if isinstance(file, RemoteFile) and not file.is_zarr() else file


def _kind(file: Location, place: Location) -> Kind:
    if isinstance(place, RemoteFile):
        return "zarr"
    if place.is_dir():
        if any((place / name).is_file() for name in ZARR_DOCUMENTS):
            return "zarr"
        raise ValueError(
            f"{file} is a folder without {' or '.join(ZARR_DOCUMENTS)}: not a Zarr store; its files are {file}/*"
        )
    with place.open("rb") as opened:
        start = opened.read(8)
    if not start:
        raise ValueError(f"{file} is empty; a GRIB, NetCDF or Zarr source was wanted")
    for magic, kind in _MAGIC.items():
        if start.startswith(magic):
            return kind
    raise ValueError(f"{file} is neither GRIB, NetCDF nor Zarr: it begins with {start!r}")


def _open_one(file: Location, place: Location, variables: Sequence[str] | None, block: int | None) -> xr.Dataset:
    is_file = isinstance(place, Path) and place.is_file()
    try:
        dataset = open_netcdf(Path(str(place))) if is_file else _open_zarr(place)
    except (OSError, ValueError, KeyError) as error:
        kind = "netcdf" if is_file else "zarr"
        raise ValueError(f"{file} is a {kind} source, but truncated or not decodable: {error}") from error
    dataset = dataset[select_names(map(str, dataset.data_vars), variables, str(file))]
    time = _time_dimension(dataset)
    if time is not None and not dataset.sizes[time]:
        raise ValueError(f"{file} holds no times: its {time!r} is empty")
    blocks = {name: _blocked(dataset[name].variable, time, block) for name in dataset.data_vars}
    return dataset.assign(blocks).drop_encoding()


def _open_zarr(place: Location) -> xr.Dataset:
    consolidated = place.is_consolidated() if isinstance(place, RemoteFile) else (place / ".zmetadata").is_file()
    dataset = xr.open_zarr(str(place), chunks=None, consolidated=consolidated)
    if not dataset.variables:
        raise ValueError(
            "no arrays are found; behind http it needs consolidated metadata: zarr.consolidate_metadata(...)"
        )
    return dataset


def _time_dimension(dataset: xr.Dataset) -> str | None:
    """Return the dimension whose coordinate holds dates."""
    for name, index in dataset.indexes.items():
        if isinstance(index, (pd.DatetimeIndex, xr.CFTimeIndex)):
            return str(name)
    return None


def _blocked(variable: xr.Variable, time: str | None, block: int | None) -> xr.Variable:
    """Return the variable as a dask array, in blocks along time that begin where chunks on disk begin."""
    if time not in variable.sizes:
        return variable.chunk()
    count = variable.sizes[time]
    on_disk = variable.encoding.get("preferred_chunks", {}).get(time, 1)
    fitting = max(1, BLOCK_BYTES * count // max(variable.nbytes, 1))
    if (
        on_disk > _MOST_BLOCKS * fitting
    ):  # a chunk that spans years is read again and again: nothing else fits into memory
        on_disk = 1
    steps = fitting if block is None else block
    return variable.chunk({time: min(max(1, steps // on_disk) * on_disk, count)})


def _concatenate(datasets: list[xr.Dataset], paths: list[Location]) -> xr.Dataset:
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
    calendars = [dataset[time].dt.calendar for dataset in (first, other)]
    if calendars[0] != calendars[1]:
        raise ValueError(f"{complaint}: its calendar is {calendars[1]!r}, not {calendars[0]!r}")
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
