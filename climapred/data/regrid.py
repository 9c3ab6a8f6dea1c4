"""Fields from one Grid to another: weights as two sparse 1-D operators, applied lazily.

Both grids are rectilinear, so that each 2-D weight is a product: a target cell overlaps a source cell as far
as both their latitudes and their longitudes do. A field F becomes

    latitude_weights (H', H)  @  F (H, W)  @  longitude_weights (W', W) transposed

which needs about H + W weights, not H W, and is exact: the area of a cell on the sphere is its width in
longitude times its width in sin(latitude).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy.sparse import csr_array

from climapred.grid import Array, Grid

Method = Literal["nearest", "bilinear", "conservative"]
METHODS: tuple[str, ...] = get_args(Method)

Data = TypeVar("Data", xr.Dataset, xr.DataArray)

_HORIZONTAL = ("latitude", "longitude")
_ROUNDING = 1e-4  # degrees: coordinates stored as float32 are off by up to 2e-5
_LEAST_COVER = 1e-3  # a conservative cell with less of its width inside the source counts as outside
_NO_SHARE = 1e-9  # what the sum of some weights may be off by
_BLOCK_POINTS = 2**16  # source points handled at once: small fields share a call, and all stays in the cache


@dataclass(frozen=True)
class Regridder:
    """The weights from ``source`` to ``target``; call it on arrays.

    - "conservative": the area mean of the source cells under the target cell, each cell taken as constant
      (first order). Keeps the integral over the sphere. A target cell partly outside the source is the mean
      over the part inside, and NaN where that is less than a thousandth of its width.
    - "bilinear": linear in latitude and in longitude between the four source points around the target point.
      NaN outside the outermost source points; but a periodic grid closes the circle, and where its cells
      reach a pole the row next to it is repeated at the pole. (CDO falls back there on inverse distances to
      four points, which jumps from longitude to longitude.)
    - "nearest": the source point nearest in latitude and in longitude; of two equally near, the southern or
      western one. NaN outside the source cells.

    Missing values: a target cell is NaN if more than ``max_missing`` of its weight inside the source falls on
    NaN; else it is the mean over the rest. So with 0 any NaN shows, and with 1 a single valid source point is
    enough.

    Attributes:
        source, target: the grids, (H, W) and (H', W').
        method: one of ``METHODS``.
        max_missing: share in [0, 1].
        latitude_weights, longitude_weights: (H', H) and (W', W), float64; a row sums to 1, or is empty where
            the target lies outside the source.

    Raises:
        ValueError: if the method is unknown, ``max_missing`` is no share, or the target lies elsewhere.

    >>> Regridder(Grid.regular(30), Grid.regular(90))(np.full((7, 12), 280.0)).tolist()
    [[280.0, 280.0, 280.0, 280.0], [280.0, 280.0, 280.0, 280.0], [280.0, 280.0, 280.0, 280.0]]
    """

    source: Grid
    target: Grid
    method: Method = "conservative"
    max_missing: float = 0.5
    latitude_weights: csr_array = field(init=False, repr=False, compare=False)
    longitude_weights: csr_array = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if not 0 <= self.max_missing <= 1:
            raise ValueError(f"max_missing must lie in [0, 1], got {self.max_missing}")
        source, target = self.source, self.target
        if self.method == "conservative":
            latitude = _conservative_latitude(source.latitude_bounds, target.latitude_bounds)
            longitude = _conservative_longitude(source.longitude_bounds, target.longitude_bounds)
        else:
            latitude = _point_latitude(source, target.latitude, nearest=self.method == "nearest")
            longitude = _point_longitude(source, target.longitude, nearest=self.method == "nearest")
        if not (latitude.nnz and longitude.nnz):
            raise ValueError(f"no point of the target lies in the source: source is {source}, target is {target}")
        object.__setattr__(self, "latitude_weights", latitude)
        object.__setattr__(self, "longitude_weights", longitude)

    def __call__(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return ``values`` (..., H, W) on the target grid: (..., H', W'), float32 for float32, else float64.

        Sums are float64.
        """
        if values.shape[-2:] != self.source.shape:
            raise ValueError(f"values must end in the shape of the source {self.source}, got {values.shape}")
        if self.source == self.target:
            return values.astype(_result_dtype(values.dtype), copy=False)
        fields = values.reshape(-1, *self.source.shape)
        result = np.empty((len(fields), *self.target.shape), _result_dtype(values.dtype))
        step = max(1, _BLOCK_POINTS // self.source.size)
        for start in range(0, len(fields), step):
            result[start : start + step] = self._regrid_block(fields[start : start + step])
        result[:, np.diff(self.latitude_weights.indptr) == 0] = np.nan
        result[:, :, np.diff(self.longitude_weights.indptr) == 0] = np.nan
        return result.reshape(*values.shape[:-2], *self.target.shape)

    def _regrid_block(self, fields: npt.NDArray[Any]) -> Array:
        total = self._weighted_sum(fields)
        if not np.isnan(total).any():  # any NaN that carries weight would show here
            return total
        valid = ~np.isnan(fields)
        share = self._weighted_sum(valid)
        total = self._weighted_sum(np.where(valid, fields, 0))
        enough = share >= max(1 - self.max_missing - _NO_SHARE, _NO_SHARE)
        return np.divide(total, share, out=np.full_like(total, np.nan), where=enough)

    def _weighted_sum(self, fields: npt.NDArray[Any]) -> Array:
        """Return (N, H', W') of (N, H, W): first the operator that leaves fewer values for the other."""
        (rows, height), (columns, width) = self.latitude_weights.shape, self.longitude_weights.shape
        if rows * width <= height * columns:
            first = self.latitude_weights @ _as_matrix(fields.transpose(1, 0, 2))  # (H', N W)
            both = self.longitude_weights @ first.reshape(-1, width).T  # (W', H' N)
            return both.reshape(columns, rows, -1).transpose(2, 1, 0)
        first = self.longitude_weights @ _as_matrix(fields.transpose(2, 0, 1))  # (W', N H)
        both = self.latitude_weights @ first.reshape(-1, height).T  # (H', W' N)
        return both.reshape(rows, columns, -1).transpose(2, 0, 1)

    def __dask_tokenize__(self) -> tuple[str, ...]:
        return "Regridder", self.source.hash, self.target.hash, self.method, repr(self.max_missing)


def _as_matrix(block: npt.NDArray[Any]) -> Array:
    return np.ascontiguousarray(block, dtype=np.float64).reshape(len(block), -1)


def _result_dtype(dtype: np.dtype[Any]) -> type[np.float32 | np.float64]:
    return np.float32 if dtype.kind == "f" and dtype.itemsize <= 4 else np.float64


def _conservative_latitude(source_bounds: Array, target_bounds: Array) -> csr_array:
    """Return the share of each source cell in each target cell, (H', H), from edges (H + 1,) and (H' + 1,).

    The area between two latitudes is proportional to the difference of their sines (Archimedes).
    """
    return _normalised(_overlaps(np.sin(np.radians(source_bounds)), np.sin(np.radians(target_bounds))))


def _conservative_longitude(source_bounds: Array, target_bounds: Array) -> csr_array:
    """Return the share of each source cell in each target cell, (W', W), from edges (W + 1,) and (W' + 1,).

    The source repeats every 360 degrees: a target from -10 to 2 finds its cells at 350 to 360 and at 0 to 2.
    """
    first = math.floor((target_bounds[0] - source_bounds[-1]) / 360)
    last = math.ceil((target_bounds[-1] - source_bounds[0]) / 360)
    turns = [_overlaps(source_bounds + 360 * turn, target_bounds) for turn in range(first, last + 1)]
    return _normalised(csr_array(sum(turns[1:], start=turns[0])))


def _overlaps(source: Array, target: Array) -> csr_array:
    """Return the length of the overlap of target interval i with source interval j, as share of i: (T, S).

    All edges together cut the line into pieces, each in at most one interval of either side.
    """
    edges = np.union1d(source, target)
    middle = (edges[1:] + edges[:-1]) / 2
    column, row = (np.searchsorted(side, middle) - 1 for side in (source, target))
    share = np.diff(edges) / np.diff(target)[np.clip(row, 0, target.size - 2)]
    kept = (column >= 0) & (column < source.size - 1) & (row >= 0) & (row < target.size - 1)
    return csr_array((share[kept], (row[kept], column[kept])), shape=(target.size - 1, source.size - 1))


def _normalised(overlaps: csr_array) -> csr_array:
    """Return each row over its sum; a row too short to tell from rounded edges becomes empty."""
    covered = overlaps.sum(axis=1)
    scale = np.divide(1, covered, out=np.zeros_like(covered), where=covered > _LEAST_COVER)
    data = overlaps.data * np.repeat(scale, np.diff(overlaps.indptr))
    weights = csr_array((data, overlaps.indices, overlaps.indptr), shape=overlaps.shape)
    weights.eliminate_zeros()
    return weights


def _point_latitude(source: Grid, targets: Array, *, nearest: bool) -> csr_array:
    """Return weights (H', H); a row whose cell reaches a pole is repeated at the pole."""
    points, rows = source.latitude, np.arange(source.latitude.size)
    south, north = source.latitude_bounds[[0, -1]]
    if south <= -90 + _ROUNDING < points[0]:
        points, rows = np.append(-90.0, points), np.append(0, rows)
    if north >= 90 - _ROUNDING > points[-1]:
        points, rows = np.append(points, 90.0), np.append(rows, rows[-1])
    inside = (south, north) if nearest else (points[0], points[-1])
    return _between_points(points, rows, targets, inside, nearest)


def _point_longitude(source: Grid, targets: Array, *, nearest: bool) -> csr_array:
    """Return weights (W', W); targets turn by 360 degrees to the source; a periodic one closes the circle."""
    points, columns = source.longitude, np.arange(source.longitude.size)
    west, east = source.longitude_bounds[[0, -1]]
    targets = targets + 360 * np.ceil((west - _ROUNDING - targets) / 360)
    if source.periodic:
        points = np.concatenate([points[-1:] - 360, points, points[:1] + 360])
        columns = np.concatenate([columns[-1:], columns, columns[:1]])
    inside = (west, east) if nearest else (points[0], points[-1])
    return _between_points(points, columns, targets, inside, nearest)


def _between_points(
    points: Array, indices: npt.NDArray[np.intp], targets: Array, inside: tuple[float, float], nearest: bool
) -> csr_array:
    """Return the weights of the two points around each target: linear, or for nearest rounded to 0 and 1.

    ``points`` increase; ``indices`` are the source indices that they stand for. Targets outside ``inside``
    get none.
    """
    row = np.flatnonzero((targets >= inside[0] - _ROUNDING) & (targets <= inside[1] + _ROUNDING))
    right = np.clip(np.searchsorted(points, targets[row]), 1, points.size - 1)
    share = np.clip((targets[row] - points[right - 1]) / (points[right] - points[right - 1]), 0, 1)
    if nearest:
        share = (share > 0.5).astype(np.float64)
    weights = csr_array(
        (np.concatenate([1 - share, share]), (np.tile(row, 2), indices[np.concatenate([right - 1, right])])),
        shape=(targets.size, int(indices.max()) + 1),
    )
    weights.eliminate_zeros()
    return weights


def regrid(
    data: Data,
    grid: Grid,
    method: Method = "conservative",
    *,
    max_missing: float = 0.5,
    source: Grid | None = None,
) -> Data:
    """Return ``data`` on ``grid``: lazy if it is lazy, the same values if it has the points of ``grid``.

    Each variable with dims (..., "latitude", "longitude", ...) is regridded. Order of dims, names, attributes
    and floating types stay (integers become float64), and so do variables and coordinates without these dims.
    Cell bounds and further coordinates of the old points go. Dask chunks that split the horizontal join.

    Args:
        data: with coordinates "latitude" and "longitude".
        grid: the target.
        method: "conservative", "bilinear" or "nearest", see ``Regridder``.
        max_missing: largest share of NaN in a target cell, see ``Regridder``.
        source: the grid of the data, where its cells do not end half-way between its points.

    Raises:
        ValueError: if the data is not on the source grid, if a variable has only one of the two dims or holds
            no numbers, and as ``Regridder`` does.
    """
    own = Grid.of(data)
    source = source or own
    if not _same_points(source, own):
        raise ValueError(f"source must be the grid of the data, {own}, got {source}")
    regridder = Regridder(source, grid, method, max_missing)
    if _same_points(source, grid):
        return data.assign_coords(grid.coordinates())
    if isinstance(data, xr.DataArray):
        return _regrid_variable(data, regridder)
    bounds = {data[name].attrs.get("bounds") for name in _HORIZONTAL}
    variables = {
        name: _regrid_variable(variable, regridder) if set(_HORIZONTAL) & set(variable.dims) else variable
        for name, variable in data.data_vars.items()
        if name not in bounds
    }
    frame = data.drop_vars(list(data.data_vars)).drop_dims(_HORIZONTAL)
    return frame.assign_coords(grid.coordinates()).assign(variables)


def _same_points(one: Grid, other: Grid) -> bool:
    return one.shape == other.shape and all(
        np.allclose(getattr(one, name), getattr(other, name), rtol=0, atol=_ROUNDING) for name in _HORIZONTAL
    )


def _regrid_variable(data: xr.DataArray, regridder: Regridder) -> xr.DataArray:
    if not set(_HORIZONTAL) <= set(data.dims):
        raise ValueError(
            f"variable {data.name!r} must have both {_HORIZONTAL} or neither, got {data.dims}; drop it first"
        )
    if data.dtype.kind not in "fiub":
        raise ValueError(f"variable {data.name!r} must hold numbers, got {data.dtype}; drop it first")
    if data.chunks is not None:
        data = data.chunk(dict.fromkeys(_HORIZONTAL, -1))
    result = xr.apply_ufunc(
        regridder.__call__,  # dask makes a name of its input, and stumbles over the repr of an object
        data,
        input_core_dims=[_HORIZONTAL],
        output_core_dims=[_HORIZONTAL],
        exclude_dims=set(_HORIZONTAL),
        dask="parallelized",
        output_dtypes=[_result_dtype(data.dtype)],
        dask_gufunc_kwargs={"output_sizes": dict(zip(_HORIZONTAL, regridder.target.shape, strict=True))},
        keep_attrs=True,
    )
    return result.assign_coords(regridder.target.coordinates()).transpose(*data.dims)
