"""From one NetCDF file to another on another grid, by the NetCDF library alone: no xarray, so that the command starts at once.

For the common case, see ``is_plain_netcdf``; all else goes through climapred.data.regrid_blocks, with the same result. What is
no field is copied as it lies on the disk. The caller's thread reads and writes, another one regrids meanwhile.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import numpy.typing as npt

from climapred.data.regridder import Regridder, still_true
from climapred.data.weights import Method
from climapred.grid import Cells, Grid, horizontal_names, unwrapped
from climapred.variables import select_names

_BLOCK_BYTES = 4 * 2**20  # what is read at once, or whole chunks
_MOST_BYTES = 128 * 2**20  # a chunk that is larger is not read whole
_PACKED = ("scale_factor", "add_offset", "_Unsigned")  # attributes of fields that are integers, or once were
_MISSING = ("_FillValue", "missing_value")

Index = tuple[slice, ...]


def is_plain_netcdf(path: Path) -> bool:
    """Return whether this is a NetCDF-4 file of fields (..., latitude, longitude) in floating point, with nothing unusual.

    Fields that are packed, turned or cut, types of the user, empty axes, and damaged files are the business of others.
    """
    if not path.is_file():
        return False
    with path.open("rb") as start:
        if start.read(8) != b"\x89HDF\r\n\x1a\n":
            return False
    try:
        with _alone(), _opened(path) as file:
            axes, coordinates = _horizontal(file), _coordinates(file)
            cells = {_attributes(file[name]).get("bounds") for name in axes}
            others = [variable for name, variable in file.variables.items() if name not in {*axes, *cells}]
            sizes = [dimension.size for dimension in file.dimensions.values()]
            return all(sizes) and all(_is_plain(variable, axes, coordinates) for variable in others)
    except (OSError, ValueError, RuntimeError):
        return False


def _is_plain(variable: netCDF4.Variable[Any], axes: tuple[str, str], coordinates: set[str]) -> bool:
    if not set(axes) & set(variable.dimensions):
        return isinstance(variable.dtype, np.dtype) or variable.dtype is str
    if not isinstance(variable.dtype, np.dtype) or variable.dtype.kind != "f" or variable.name in coordinates:
        return False
    attrs = _attributes(variable)
    marks = [np.asarray(attrs[name]).dtype.kind for name in _MISSING if name in attrs]
    return variable.dimensions[-2:] == axes and not set(_PACKED) & set(attrs) and set(marks) <= {"f"}


def _alone() -> AbstractContextManager[Any]:
    """Keep xarray from the library meanwhile; where it is not loaded, nobody else is there."""
    if "xarray" not in sys.modules:
        return nullcontext()
    from climapred.data.netcdf import NETCDF_LOCK

    return NETCDF_LOCK


def _opened(path: Path) -> netCDF4.Dataset:
    file = netCDF4.Dataset(path)
    file.set_auto_maskandscale(False)
    file.set_auto_chartostring(False)
    return file


def _attributes(variable: netCDF4.Variable[Any]) -> dict[str, Any]:
    return {name: variable.getncattr(name) for name in variable.ncattrs()}


def _coordinates(file: netCDF4.Dataset) -> set[str]:
    """Return the names of the axes, and of what variables call their coordinates."""
    axes = {name for name, variable in file.variables.items() if variable.dimensions == (name,)}
    told = (str(_attributes(variable).get("coordinates", "")).split() for variable in file.variables.values())
    return axes.union(*told)


def _horizontal(file: netCDF4.Dataset) -> tuple[str, str]:
    axes = {name: _attributes(v) for name, v in file.variables.items() if v.dimensions == (name,)}
    return horizontal_names(axes, list(axes))


def read_grid(path: Path) -> Grid:
    """Return the grid of a file, see ``Grid.of``."""
    with _alone(), _opened(path) as file:
        return _grid(file)[0]


def _grid(file: netCDF4.Dataset) -> tuple[Grid, list[bool]]:
    """Return the grid, and of each axis whether the fields run against it."""
    names = _horizontal(file)
    rows, columns = (file[name][:].astype(np.float64) for name in names)
    columns = unwrapped(columns)
    grid = Grid.along(rows, columns, *(_cells(file, name) for name in names))
    return grid, [bool(axis[0] > axis[-1]) for axis in (rows, columns)]


def _cells(file: netCDF4.Dataset, name: str) -> Cells:
    bounds = _attributes(file[name]).get("bounds")
    return (bounds, np.asarray(file[bounds][:], np.float64)) if bounds in file.variables else None


def regrid_netcdf(
    source: Path,
    out: Path,
    grid: Grid,
    method: Method,
    *,
    variables: Sequence[str] | None,
    max_missing: float,
    history: str,
    progress: Callable[[int, int], None],
) -> None:
    """Write the regridded fields of a plain file to ``out``, see ``regrid_file``."""
    with _files(source, out) as (file, result):
        with _alone():
            fields = _describe(file, result, grid, variables, history)
            window = _Window.of(file, grid, method, max_missing)
            tasks = [(file[name], result[name], index) for name in fields for index in _blocks(file[name])]
        pending: deque[tuple[netCDF4.Variable[Any], Index, Future[Any]]] = deque()
        with ThreadPoolExecutor(1) as pool:
            for done, (field, target, index) in enumerate(tasks, start=1):
                with _alone():
                    values = window.read(field, index)
                pending.append((target, index, pool.submit(window.regrid, values)))
                if len(pending) > 1:
                    _write(*pending.popleft())
                progress(done, len(tasks))
            while pending:
                _write(*pending.popleft())


@contextmanager
def _files(source: Path, out: Path) -> Iterator[tuple[netCDF4.Dataset, netCDF4.Dataset]]:
    with _alone():
        file, result = _opened(source), netCDF4.Dataset(out, "w")
    try:
        yield file, result
    finally:
        with _alone():
            result.close()
            file.close()


def _write(target: netCDF4.Variable[Any], index: Index, values: Future[Any]) -> None:
    content = values.result()
    with _alone():
        target[index] = content


@dataclass(frozen=True)
class _Window:
    """The part of the fields that is needed, and what becomes of it.

    Attributes:
        part: rows and columns as they lie in the file.
        turned: how they are brought into the order of a Grid.
    """

    regrid: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
    part: Index
    turned: Index

    @classmethod
    def of(cls, file: netCDF4.Dataset, grid: Grid, method: Method, max_missing: float) -> _Window:
        own, against = _grid(file)
        turned = tuple(slice(None, None, -1 if backwards else 1) for backwards in against)
        if own.same_points(grid):
            return cls(lambda values: values, (slice(None), slice(None)), turned)
        regridder = Regridder(own, grid, method, max_missing)
        needed = regridder.needed()
        if tuple(side.stop - side.start for side in needed) != own.shape:
            regridder = regridder.on_part(*needed)
        part = tuple(
            slice(size - side.stop, size - side.start) if backwards else side
            for side, size, backwards in zip(needed, own.shape, against, strict=True)
        )
        return cls(regridder, part, turned)

    def read(self, field: netCDF4.Variable[Any], index: Index) -> npt.NDArray[np.floating[Any]]:
        """Return some fields, (..., H, W), NaN where the file says that they are missing."""
        values = field[(*index, *self.part)]
        attrs = _attributes(field)
        for mark in {float(value) for name in _MISSING if name in attrs for value in np.ravel(attrs[name])}:
            if not np.isnan(mark):
                values[values == values.dtype.type(mark)] = np.nan
        return values[(..., *self.turned)]


def _blocks(field: netCDF4.Variable[Any]) -> Iterator[Index]:
    """Yield indices of the leading axes: whole chunks, as many along the first axis as fit into a block."""
    chunks, size = field.chunking(), field.dtype.itemsize * prod(field.shape[-2:])
    leading = field.shape[:-2]
    steps = [1] * len(leading) if chunks == "contiguous" else list(chunks[:-2])
    if size * prod(steps) > _MOST_BYTES:
        steps = [1] * len(leading)
    elif leading:
        steps[0] *= max(1, _BLOCK_BYTES // (size * prod(steps)))
        field.set_var_chunk_cache(0)  # no chunk is wanted twice, and what is not cached is read where it is wanted
    for starts in product(*(range(0, n, step) for n, step in zip(leading, steps, strict=True))):
        yield tuple(slice(a, min(a + step, n)) for a, step, n in zip(starts, steps, leading, strict=True))


def _describe(
    file: netCDF4.Dataset, result: netCDF4.Dataset, grid: Grid, variables: Sequence[str] | None, history: str
) -> list[str]:
    """Write all but the fields, and describe these; return their names."""
    axes, coordinates = _horizontal(file), _coordinates(file)
    cells = {_attributes(file[name]).get("bounds") for name in axes}
    chosen = select_names(
        [name for name in file.variables if name not in coordinates | cells], variables, file.filepath()
    )
    used = {dim for name in chosen for dim in file[name].dimensions}
    fields = [name for name in chosen if set(axes) & set(file[name].dimensions)]
    beside = [name for name in file.variables if name in coordinates and set(file[name].dimensions) <= used - set(axes)]
    kept = [name for name in (*beside, *chosen) if name not in fields]
    for dim in dict.fromkeys(dim for name in (*kept, *fields) for dim in file[name].dimensions if dim not in axes):
        result.createDimension(dim, None if _grows(file, dim) else file.dimensions[dim].size)
    _describe_grid(result, grid, axes)
    same = _grid(file)[0].same_points(grid)
    for name in kept:
        _copy(file[name], result)
    for name in fields:
        attrs = _attributes(file[name]) if same else still_true(_attributes(file[name]))
        if told := [word for word in attrs.pop("coordinates", "").split() if word in kept]:
            attrs["coordinates"] = " ".join(told)
        shape = (*(1 for _ in file[name].shape[:-2]), *grid.shape)
        target = result.createVariable(
            name, file[name].dtype, file[name].dimensions, chunksizes=shape, fill_value=np.nan
        )
        target.setncatts({key: value for key, value in attrs.items() if key not in _MISSING})
    attrs = {"Conventions": "CF-1.11", **{name: file.getncattr(name) for name in file.ncattrs()}}
    if history:
        attrs["history"] = f"{attrs['history']}\n{history}" if attrs.get("history") else history
    result.setncatts(attrs)
    return fields


def _describe_grid(result: netCDF4.Dataset, grid: Grid, names: tuple[str, str]) -> None:
    side = "bnds" if "bnds" not in result.dimensions or result.dimensions["bnds"].size == 2 else "edges"
    if side not in result.dimensions:
        result.createDimension(side, 2)
    for name, (axis, values, attrs) in zip(names, grid.coordinates().values(), strict=True):
        edges = getattr(grid, f"{axis}_bounds")
        result.createDimension(name, values.size)
        result.createVariable(name, "f8", (name,))[:] = values
        result[name].setncatts({**attrs, "bounds": f"{name}_bnds"})
        result.createVariable(f"{name}_bnds", "f8", (name, side))[:] = np.stack([edges[:-1], edges[1:]], axis=1)


def _grows(file: netCDF4.Dataset, name: str) -> bool:
    """Return whether an axis has no fixed length: it had none, or counts time."""
    units = _attributes(file[name]).get("units", "") if name in file.variables else ""
    return bool(file.dimensions[name].isunlimited()) or " since " in str(units)


def _copy(variable: netCDF4.Variable[Any], result: netCDF4.Dataset) -> None:
    attrs = _attributes(variable)
    copy = result.createVariable(
        variable.name, variable.dtype, variable.dimensions, fill_value=attrs.pop("_FillValue", None)
    )
    copy.set_auto_maskandscale(False)
    copy.set_auto_chartostring(False)
    copy.setncatts(attrs)
    copy[...] = variable[...]
