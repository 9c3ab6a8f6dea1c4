"""The tensors: a sharded Zarr v3 store, written shard by shard.

Layout: one array per variable, dims (time, latitude, longitude), float32; an inner chunk is a few MB of whole fields, a
shard is a whole number of chunks and the unit that one task writes. A store under construction carries another name
(``NAME.partial``), so that nobody, with whatever tool, takes it for a finished one.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from zarr.codecs import BloscCodec

from climapred.grid import Grid
from climapred.variables import VARIABLES

FORMAT = 1

_CHUNK_BYTES = 4 * 2**20
_SHARD_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Layout:
    """Times per inner chunk and per shard.

    >>> Layout.plan(2920, Grid.regular(1.5))
    Layout(chunk=36, shard=1152)
    """

    chunk: int
    shard: int

    @classmethod
    def plan(cls, times: int, grid: Grid) -> Layout:
        """Return chunks of about 4 MB of whole fields, and shards of about 128 MB of chunks."""
        field_bytes = 4 * grid.size
        chunk = max(1, min(_CHUNK_BYTES // field_bytes, times))
        chunks = max(1, min(_SHARD_BYTES // (chunk * field_bytes), -(-times // chunk)))
        return cls(chunk, chunk * chunks)

    def regions(self, times: int) -> list[tuple[int, int]]:
        """Return (start, stop) of every shard along time."""
        return [(start, min(start + self.shard, times)) for start in range(0, times, self.shard)]


def partial_path(path: Path) -> Path:
    """Return where the store is while it is built."""
    return path.with_name(path.name + ".partial")


def create_store(
    path: Path,
    *,
    grid: Grid,
    times: npt.NDArray[np.datetime64],
    variables: Sequence[str],
    attributes: Mapping[str, Any],
) -> Layout:
    """Write an empty store at ``partial_path(path)``, replacing one that is there; return its layout."""
    partial = partial_path(path)
    shutil.rmtree(partial, ignore_errors=True)
    layout = Layout.plan(len(times), grid)
    coordinates = xr.Dataset(
        coords={"time": ("time", times, {"standard_name": "time", "axis": "T"}), **grid.coordinates()}
    )
    coordinates.attrs = {**attributes, "variables": list(variables), "climapred_format": FORMAT}
    encoding = {"time": {"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian", "dtype": "int64"}}
    coordinates.to_zarr(partial, mode="w", zarr_format=3, consolidated=False, encoding=encoding)
    group = zarr.open_group(partial, mode="r+")
    for name in variables:
        variable = VARIABLES[name]
        group.create_array(
            name,
            shape=(len(times), *grid.shape),
            chunks=(layout.chunk, *grid.shape),
            shards=(layout.shard, *grid.shape),
            dtype="float32",
            fill_value=np.nan,
            compressors=BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"),
            dimension_names=("time", "latitude", "longitude"),
            attributes={
                "units": variable.units,
                "standard_name": variable.standard_name,
                "long_name": variable.long_name,
            },
        )
    return layout


def write_region(path: Path, variable: str, start: int, values: npt.NDArray[np.float32]) -> str:
    """Write one shard of a store under construction and return the SHA-256 of its values.

    Raises:
        ValueError: if the region is not exactly one shard: two tasks that share a shard would lose each other's data.
    """
    array = zarr.open_group(partial_path(path), mode="r+")[variable]
    shard = array.shards[0]
    stop = start + len(values)
    if start % shard or stop != min(start + shard, array.shape[0]):
        raise ValueError(f"{path.name}/{variable}: times {start}..{stop} are not one shard of {shard} times")
    array[start:stop] = values
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def finish_store(path: Path, attributes: Mapping[str, Any]) -> None:
    """Give a completely written store its attributes and its name; an older store loses its name before its data."""
    zarr.open_group(partial_path(path), mode="r+").attrs.update(attributes)
    older = path.with_name(path.name + ".old")
    shutil.rmtree(older, ignore_errors=True)
    if path.exists():
        path.rename(older)
    partial_path(path).rename(path)
    shutil.rmtree(older, ignore_errors=True)


def open_store(path: str | Path) -> xr.Dataset:
    """Open a finished store lazily: dims (time, latitude, longitude), physical units, variables in the order of the build.

    Raises:
        FileNotFoundError: if there is none; the message says whether one is under construction.
        ValueError: if the store was not written by climapred, or by a newer one.
    """
    path = Path(path)
    if not path.exists():
        started = partial_path(path).exists()
        hint = "its build has not finished; run the same command again" if started else "build it with `climapred run`"
        raise FileNotFoundError(f"no store at {path}: {hint}")
    dataset = xr.open_zarr(path, consolidated=False, chunks=None)
    if (found := dataset.attrs.get("climapred_format")) != FORMAT:
        raise ValueError(f"{path} has store format {found!r}, this climapred reads {FORMAT}; build it again")
    return dataset[dataset.attrs["variables"]]  # Zarr lists the arrays of a group in any order


def write_statistics(path: Path, statistics: xr.Dataset) -> None:
    """Put ``statistics`` into the store, whole or not at all, replacing older ones."""
    names = statistics["variable"].astype(object)  # numpy's fixed-length text has no Zarr v3 specification
    statistics = statistics.assign_coords(variable=names)
    shutil.rmtree(path / "statistics", ignore_errors=True)
    statistics.to_zarr(path, group="statistics.partial", mode="w", zarr_format=3, consolidated=False)
    (path / "statistics.partial").rename(path / "statistics")


def open_statistics(path: str | Path) -> xr.Dataset:
    """Return the statistics of the training times, in memory."""
    if not (Path(path) / "statistics").exists():
        raise FileNotFoundError(f"the store {path} has no statistics; run the build stage")
    statistics = xr.open_zarr(path, group="statistics", consolidated=False, chunks=None).load()
    return statistics.assign_coords(variable=np.array(statistics["variable"].values.tolist(), dtype="U"))
