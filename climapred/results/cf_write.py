"""Datasets as files that appear whole or not at all: write_netcdf, write_zarr; values packed to 16 bits: pack."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import dask
import netCDF4
import numpy as np
import numpy.typing as npt
import xarray as xr

from climapred.whole import replacing

Chunks = Mapping[str, int]
Ranges = Mapping[str, tuple[float, float]]
LargestError = float | Mapping[str, float]

SUFFIXES = (".nc", ".zarr")

_CHUNK_BYTES = 4 * 2**20
_PACKED_MISSING = np.int16(-(2**15))


def write_netcdf(
    dataset: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    complevel: int = 1,
    chunks: Chunks | None = None,
    largest_error: LargestError | None = None,
) -> Path:
    """Write a dataset to a NetCDF-4 file that appears whole or not at all, and return its path.

    The data go to a temporary file in the same folder, reach the disk, and take their name last. Numeric data
    are shuffled and compressed in chunks of whole fields (about 4 MB); only floating-point data get a
    ``_FillValue``, NaN.

    Args:
        dataset: in memory or lazy (dask); a lazy one is computed chunk by chunk.
        path: the file; its folder exists, and an older file of this name is replaced.
        complevel: 0 (none) to 9 of zlib.
        chunks: length along some of the dims, instead of what makes about 4 MB.
        largest_error: pack to 16 bits so that no value changes by more; see ``pack``.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if the level or a chunk makes no sense, or the values cannot be packed so.
    """
    path, dataset = Path(path), _prepared(dataset, _netcdf_storage, complevel, chunks, largest_error)
    with replacing(path) as temporary:
        dataset.to_netcdf(temporary, engine="netcdf4", format="NETCDF4")
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
    return path


def write_zarr(
    dataset: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    complevel: int = 1,
    chunks: Chunks | None = None,
    largest_error: LargestError | None = None,
) -> Path:
    """Write a dataset to a Zarr v3 folder that appears whole or not at all, and return its path.

    Names, attributes, packing and chunks are those of ``write_netcdf``, which says what the arguments mean; the
    compression is that of Zstandard.

    Raises:
        FileNotFoundError: if the folder around it does not exist.
        ValueError: as ``write_netcdf`` does.
    """
    path, dataset = Path(path), _prepared(dataset, _zarr_storage, complevel, chunks, largest_error)
    with replacing(path) as temporary:
        dataset.to_zarr(temporary, mode="w", zarr_format=3, consolidated=False, align_chunks=True)
    return path


def write_dataset(dataset: xr.Dataset, path: str | os.PathLike[str], **storage: Any) -> Path:
    """Write a dataset as the suffix of ``path`` says, .nc or .zarr; ``storage`` as ``write_netcdf`` takes it."""
    return _writer(Path(path))(dataset, path, **storage)


def _writer(path: Path) -> Callable[..., Path]:
    if path.suffix not in SUFFIXES:
        raise ValueError(f"the output must end in {' or '.join(SUFFIXES)}, got {path}")
    return write_netcdf if path.suffix == ".nc" else write_zarr


def write_blocks(
    shell: xr.Dataset,
    blocks: Iterable[xr.Dataset],
    path: str | os.PathLike[str],
    *,
    dim: str,
    complevel: int = 1,
    chunks: Chunks | None = None,
) -> Path:
    """Write a dataset that memory need not hold, as the suffix of ``path`` says; it appears whole or not at all.

    Args:
        shell: all but the fields along ``dim``, whose lazy values (dask) nobody looks at.
        blocks: in memory, one after another along ``dim``; packed where the shell is.
        path, complevel, chunks: see ``write_netcdf``.
    """
    path = Path(path)
    zarr = _writer(path) is write_zarr
    shell = _prepared(shell, _zarr_storage if zarr else _netcdf_storage, complevel, chunks, None)
    fields = [name for name, field in shell.items() if dim in field.dims]
    first = 0
    with replacing(path) as temporary:
        if zarr:
            shell.to_zarr(temporary, mode="w", zarr_format=3, consolidated=False, compute=False)
        else:
            shell.to_netcdf(temporary, engine="netcdf4", format="NETCDF4", compute=False)
        for block in blocks:
            place = slice(first, first := first + block.sizes[dim])
            if zarr:
                _put_zarr(block[fields], temporary, {dim: place})
            else:
                _put_netcdf(block[fields], temporary, {dim: place})
    return path


def _put_netcdf(fields: xr.Dataset, path: Path, region: Mapping[str, slice]) -> None:
    with netCDF4.Dataset(path, "r+") as file:
        file.set_auto_maskandscale(False)
        for name, field in fields.items():
            file[str(name)][tuple(region.get(str(dim), slice(None)) for dim in field.dims)] = field.values


def _put_zarr(fields: xr.Dataset, path: Path, region: Mapping[str, slice]) -> None:
    # Zarr's stored packing is applied by xarray on the way, to values that pack() has brought onto its steps.
    unpacked = xr.decode_cf(fields.drop_vars(list(fields.coords)), decode_times=False)
    unpacked.drop_encoding().to_zarr(path, region=dict(region), zarr_format=3, consolidated=False)


def _prepared(
    dataset: xr.Dataset,
    storage: Callable[[xr.Dataset, str, int, Chunks], dict[str, Any]],
    complevel: int,
    chunks: Chunks | None,
    largest_error: LargestError | None,
) -> xr.Dataset:
    """Return a shallow copy whose variables know how they are stored; what the file they came from did is forgotten."""
    if not 0 <= complevel <= 9:
        raise ValueError(f"complevel must lie in 0 (none) to 9, got {complevel}")
    for dim, length in (chunks or {}).items():
        if dim not in dataset.dims or length < 1:
            raise ValueError(
                f"chunks must give some of the dims {list(dataset.dims)} a length of at least 1, got {dim!r}: {length}"
            )
    prepared = dataset.copy() if largest_error is None else pack(dataset, largest_error)
    for name, variable in prepared.variables.items():
        variable.encoding = _meaning(prepared, str(name)) | storage(prepared, str(name), complevel, chunks or {})
    return prepared


def _is_data(dataset: xr.Dataset, name: str) -> bool:
    variable = dataset[name].variable
    is_field = name in dataset.data_vars and not name.endswith("_bounds")
    return is_field and variable.ndim > 0 and variable.dtype.kind in "fiu"


def _meaning(dataset: xr.Dataset, name: str) -> dict[str, Any]:
    """Return what the stored numbers of a variable mean: units of times, missing values."""
    variable = dataset[name].variable
    encoding: dict[str, Any] = {"_FillValue": None} if "_FillValue" not in variable.attrs else {}
    if variable.dtype.kind in "mM":
        kept = ("units", "calendar", "dtype")
        encoding |= {key: variable.encoding[key] for key in kept if key in variable.encoding}
    if _is_data(dataset, name) and variable.dtype.kind == "f":
        encoding["_FillValue"] = variable.dtype.type(np.nan)
    if name.endswith("_bounds"):
        encoding["coordinates"] = None  # CDO takes bounds with coordinates of their own for fields
    return encoding


def _netcdf_storage(dataset: xr.Dataset, name: str, complevel: int, chunks: Chunks) -> dict[str, Any]:
    variable, storage = dataset[name].variable, dict[str, Any]()
    if _is_data(dataset, name):
        storage = {"zlib": complevel > 0, "complevel": complevel, "shuffle": True}
    if storage or set(variable.dims) & set(dataset.encoding.get("unlimited_dims", ())):
        storage["chunksizes"] = _chunk_shape(variable, chunks)
    if variable.dtype.kind in "OTU":
        storage["dtype"] = "S1"  # characters: a coordinate variable must be a number, says CF
    return storage


def _zarr_storage(dataset: xr.Dataset, name: str, complevel: int, chunks: Chunks) -> dict[str, Any]:
    if not _is_data(dataset, name):
        return {}
    zstd = {"name": "zstd", "configuration": {"level": complevel, "checksum": False}}
    return {"compressors": [zstd] if complevel else None, "chunks": _chunk_shape(dataset[name].variable, chunks)}


def _chunk_shape(variable: xr.Variable, chunks: Chunks) -> tuple[int, ...]:
    """Return a chunk of at most 4 MB that is whole in as many of the last dimensions as fit, but as ``chunks`` says.

    >>> _chunk_shape(xr.Variable(("t", "s", "y", "x"), np.empty((1449, 6, 25, 53), "float32")), {})
    (131, 6, 25, 53)
    >>> _chunk_shape(xr.Variable(("t", "s", "y", "x"), np.empty((1449, 6, 25, 53), "float32")), {"s": 1})
    (791, 1, 25, 53)
    """
    room, shape = _CHUNK_BYTES // variable.dtype.itemsize, []
    for dim, size in reversed(variable.sizes.items()):
        shape.append(max(1, min(size, chunks.get(str(dim), room))))
        room //= shape[-1]
    return tuple(reversed(shape))


def pack(dataset: xr.Dataset, largest_error: LargestError, ranges: Ranges | None = None) -> xr.Dataset:
    """Return a dataset with floating-point fields as 16-bit integers, scale and offset as CF describes them.

    ``scale_factor`` is a power of two and ``add_offset`` a multiple of it, so that every packed value is a float32
    number: unpacking rounds nothing, and packing what was packed changes nothing. Each field states its largest error
    in the attribute ``largest_packing_error``, at most what was asked for. NaN stay.

    Args:
        dataset: in memory or lazy; of a lazy one the lowest and highest value are computed.
        largest_error: in the units of the field; one for all fields, or {name: error} for some.
        ranges: {name: (lowest, highest)} value of the fields, where the dataset is a part of what is packed alike.

    Raises:
        ValueError: if 65535 steps of twice this error do not cover the values, or if float32 itself is coarser.

    >>> packed = pack(xr.Dataset({"t2m": ("x", np.array([280.123, 281], "float32"))}), 0.005)["t2m"]
    >>> packed.attrs["scale_factor"], packed.attrs["largest_packing_error"], packed.dtype
    (np.float32(0.0078125), 0.00390625, dtype('int16'))
    """
    fields = [str(name) for name in dataset.data_vars if _is_data(dataset, str(name))]
    errors = dict(largest_error) if isinstance(largest_error, Mapping) else dict.fromkeys(fields, float(largest_error))
    if unknown := set(errors) - set(fields):
        raise ValueError(f"largest_error names {sorted(unknown)}, the fields are {fields}")
    floating = {name: error for name, error in errors.items() if dataset[name].dtype.kind == "f"}
    return dataset.assign(
        {name: _packed(dataset[name], error, (ranges or {}).get(name)) for name, error in floating.items()}
    )


def _packed(field: xr.DataArray, error: float, extent: tuple[float, float] | None) -> xr.DataArray:
    if not 0 < error < np.inf:
        raise ValueError(f"the largest error of {field.name!r} must be positive, got {error}")
    scale = 2.0 ** np.floor(np.log2(2 * error))
    lowest, highest = extent or (float(value) for value in dask.compute(field.min().data, field.max().data))
    if np.isnan(lowest):  # nothing but missing values
        lowest = highest = 0.0
    offset = np.round((lowest + highest) / 2 / scale) * scale
    finest = float(np.spacing(np.float32(max(abs(lowest), abs(highest), abs(offset)))))
    needed = max(highest - offset, offset - lowest) / (2**15 - 1) / 2
    if finest > scale or not needed <= scale / 2:
        reason = (
            f"float32 values of this size are {finest:.2g} apart; ask for more, or for no packing"
            if finest > scale
            else f"16 bits reach {needed:.2g} between {lowest:g} and {highest:g}; ask for twice that, or for no packing"
        )
        raise ValueError(f"{field.name!r} cannot be packed with a largest error of {error:g}: {reason}")

    def block(values: npt.NDArray[np.floating]) -> npt.NDArray[np.int16]:
        steps = np.rint((values.astype(np.float64) - offset) / scale)
        return np.where(np.isnan(steps), _PACKED_MISSING, steps).astype(np.int16)

    packed: xr.DataArray = xr.apply_ufunc(block, field, dask="parallelized", output_dtypes=[np.int16])
    packing = {"scale_factor": np.float32(scale), "add_offset": np.float32(offset), "_FillValue": _PACKED_MISSING}
    return packed.assign_attrs(field.attrs | packing | {"largest_packing_error": float(scale / 2)})


def whole_unit(times: npt.NDArray[np.datetime64]) -> str:
    """Return the longest of hours, minutes and seconds that counts all times since 1970 in integers.

    Raises:
        ValueError: if times are not whole seconds.
    """
    since = times.astype("datetime64[ns]") - np.datetime64("1970-01-01", "ns")
    units = {
        "hours": np.timedelta64(1, "h"),
        "minutes": np.timedelta64(1, "m"),
        "seconds": np.timedelta64(1, "s"),
    }
    for name, unit in units.items():
        if not (since % unit).astype(np.int64).any():
            return name
    raise ValueError(f"times must be whole seconds, got {times.flat[0]}...; round them first")
