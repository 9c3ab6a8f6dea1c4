"""Fields from one grid to another, lazily: ``regrid`` for datasets; for arrays see climapred.data.regridder."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

import xarray as xr

from climapred.data.regridder import Regridder, result_dtype, still_true
from climapred.data.weights import METHODS, Method
from climapred.grid import Grid, axis_names, descending_axes
from climapred.reduced import ReducedGrid

__all__ = ["METHODS", "Method", "Regridder", "regrid", "source_grid"]

Data = TypeVar("Data", xr.Dataset, xr.DataArray)


def source_grid(data: xr.Dataset | xr.DataArray) -> Grid | ReducedGrid:
    """Return the grid of the data: rectilinear, or reduced Gaussian where points run along a dimension ``values``."""
    return (
        ReducedGrid.of(data) if "values" in data.dims and "values" in data.coords else Grid.of(data, any_direction=True)
    )


def regrid(
    data: Data,
    grid: Grid,
    method: Method = "conservative",
    *,
    max_missing: float = 0.5,
    source: Grid | None = None,
) -> Data:
    """Return ``data`` on ``grid``: lazy if it is lazy, the same values if it has the points of ``grid``.

    Each variable on latitude and longitude (or on the points of a reduced Gaussian grid) is regridded. Order of dims,
    names, attributes and floating types stay (integers become float64), and so do variables and coordinates without
    these dims. Cell bounds, further coordinates and the actual range of the old points go. Dask chunks that split the
    horizontal join; of lazy data, only the part that ``grid`` needs is read.

    Args:
        data: with 1-D coordinates latitude and longitude in either direction, see ``Grid.of``; or with points along a
            dimension "values", see ``ReducedGrid.of``.
        grid: the target.
        method: "conservative", "bilinear" or "nearest", see ``Regridder``.
        max_missing: largest share of NaN in a target cell, see ``Regridder``.
        source: the grid of the data, where its cells do not end half-way between its points.

    Raises:
        ValueError: if the data is not on the source grid, if a variable has only one of the two dims or holds
            no numbers, and as ``Regridder`` does.
    """
    own = source_grid(data)
    if source is not None and not source.same_points(own):
        raise ValueError(f"source must be the grid of the data, {own}, got {source}")
    regridder = Regridder(source or own, grid, method, max_missing)
    if isinstance(own, ReducedGrid):
        return _apply(data, ("values",), regridder)
    names = axis_names(data)
    data = data.isel(dict.fromkeys(descending_axes(data), slice(None, None, -1)))
    if own.same_points(grid):
        return data.assign_coords(_coordinates(grid, names))
    rows, columns = regridder.needed()
    if (rows.stop - rows.start, columns.stop - columns.start) != own.shape:
        data, regridder = data.isel({names[0]: rows, names[1]: columns}), regridder.on_part(rows, columns)
    return _apply(data, names, regridder)


def _apply(data: Data, dims: tuple[str, ...], regridder: Regridder) -> Data:
    if isinstance(data, xr.DataArray):
        return _regrid_variable(data, dims, regridder)
    bounds = {data[name].attrs.get("bounds") for name in dims}
    variables = {
        name: _regrid_variable(variable, dims, regridder) if set(dims) & set(variable.dims) else variable
        for name, variable in data.data_vars.items()
        if name not in bounds
    }
    frame = data.drop_vars(list(data.data_vars)).drop_dims(dims)
    return frame.assign_coords(_coordinates(regridder.target, dims)).assign(variables)


def _coordinates(grid: Grid, dims: tuple[str, ...]) -> dict[str, Any]:
    """Return the coordinates of the target, called as those of the source."""
    names = dims if len(dims) == 2 else ("latitude", "longitude")
    return {name: (name, *rest) for name, (_, *rest) in zip(names, grid.coordinates().values(), strict=True)}


def _regrid_variable(data: xr.DataArray, dims: tuple[str, ...], regridder: Regridder) -> xr.DataArray:
    if not set(dims) <= set(data.dims):
        raise ValueError(
            f"variable {data.name!r} must have both {dims} or neither, got {data.dims}; drop it first, "
            "or name the others in variables="
        )
    if data.dtype.kind not in "fiub":
        raise ValueError(f"variable {data.name!r} must hold numbers, got {data.dtype}; drop it first")
    if data.chunks is not None:
        data = data.chunk(dict.fromkeys(dims, -1))
    coordinates = _coordinates(regridder.target, dims)
    result = xr.apply_ufunc(
        partial(
            Regridder.__call__, regridder
        ),  # dask makes a name of its input, and stumbles over the repr of an object
        data,
        input_core_dims=[dims],
        output_core_dims=[tuple(coordinates)],
        exclude_dims=set(dims),
        dask="parallelized",
        output_dtypes=[result_dtype(data.dtype)],
        dask_gufunc_kwargs={"output_sizes": dict(zip(coordinates, regridder.target.shape, strict=True))},
        keep_attrs=True,
    )
    order = [name for dim in data.dims for name in (tuple(coordinates) if dim == "values" else (dim,))]
    return (
        result.assign_coords(coordinates).transpose(*order).drop_attrs(deep=False).assign_attrs(still_true(data.attrs))
    )
