"""Arrays from one grid to another: ``Regridder``, its weights found, applied, saved and loaded.

A field F (H, W) becomes latitude_weights (H', H) @ F @ longitude_weights (W', W) transposed, which is exact: the area of
a cell on the sphere is its width in longitude times its width in sin(latitude). See climapred.data.weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from climapred.data.weights import METHODS, Joint, Method, Separable, find_weights
from climapred.grid import Array, Grid
from climapred.reduced import ReducedGrid
from climapred.whole import replacing

_FORMAT = 1
_NO_SHARE = 1e-9  # what the sum of some weights may be off by
_BLOCK_POINTS = (
    2**21
)  # source points handled at once: fields share calls, which are few enough not to contend for the GIL
_UNTRUE = ("actual_range", "cell_measures")  # attributes that tell of the old points


@dataclass(frozen=True)
class Regridder:
    """The weights from ``source`` to ``target``; call it on arrays.

    - "conservative": the area mean of the source cells under the target cell, each cell taken as constant
      (first order). Keeps the integral over the sphere. A target cell partly outside the source is the mean
      over the part inside, and NaN where that is less than a thousandth of its width.
    - "bilinear": linear in latitude and in longitude between the four source points around the target point.
      NaN outside the outermost source points; but a periodic grid closes the circle, and where its cells
      reach a pole the row next to it is repeated at the pole. (CDO falls back there on inverse distances to
      four points, which jumps from longitude to longitude.) On a reduced grid: along the two rows around the
      target point, then between them.
    - "nearest": the source point nearest in latitude and in longitude; of two equally near, the southern or
      western one. NaN outside the source cells. On a reduced grid: the nearest point on the sphere.

    Missing values: a target cell is NaN if more than ``max_missing`` of its weight inside the source falls on
    NaN; else it is the mean over the rest. So with 0 any NaN shows, and with 1 a single valid source point is
    enough.

    Attributes:
        source, target: the grids, (H, W) or reduced (P,), and (H', W').
        method: one of ``METHODS``.
        max_missing: share in [0, 1].
        weights: found from the grids where not given; a copy in another process finds them anew, so that tasks
            carry coordinates only.

    Raises:
        ValueError: if the method is unknown, ``max_missing`` is no share, or the target lies elsewhere.

    >>> Regridder(Grid.regular(30), Grid.regular(90))(np.full((7, 12), 280.0)).tolist()
    [[280.0, 280.0, 280.0, 280.0], [280.0, 280.0, 280.0, 280.0], [280.0, 280.0, 280.0, 280.0]]
    """

    source: Grid | ReducedGrid
    target: Grid
    method: Method = "conservative"
    max_missing: float = 0.5
    weights: Separable | Joint = field(default=cast(Separable, None), repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if not 0 <= self.max_missing <= 1:
            raise ValueError(f"max_missing must lie in [0, 1], got {self.max_missing}")
        if not self.weights:
            object.__setattr__(self, "weights", find_weights(self.source, self.target, self.method))

    @property
    def latitude_weights(self) -> csr_array:
        """(H', H), float64, where the source is rectilinear."""
        return self._separable.latitude

    @property
    def longitude_weights(self) -> csr_array:
        """(W', W), float64, where the source is rectilinear."""
        return self._separable.longitude

    @property
    def _separable(self) -> Separable:
        if isinstance(self.weights, Joint):
            raise AttributeError(f"the weights from {self.source} are one matrix, regridder.weights.matrix")
        return self.weights

    def __call__(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return ``values`` (..., H, W) or (..., P) as (..., H', W'), float32 for float32, else float64.

        Sums are float64.
        """
        shape = self.source.shape
        if values.shape[-len(shape) :] != shape:
            raise ValueError(f"values must end in the shape of the source {self.source}, got {values.shape}")
        if self.source == self.target:
            return values.astype(result_dtype(values.dtype), copy=False)
        leading = values.shape[: -len(shape)]
        fields = values.reshape(-1, *shape)
        result = np.empty((len(fields), *self.target.shape), result_dtype(values.dtype))
        step = max(1, _BLOCK_POINTS // self.source.size)
        for start in range(0, len(fields), step):
            result[start : start + step] = self._regrid_block(fields[start : start + step])
        if not (covered := self.weights.covered).all():
            result[:, ~covered] = np.nan
        return result.reshape(*leading, *self.target.shape)

    def _regrid_block(self, fields: npt.NDArray[Any]) -> Array:
        with np.errstate(invalid="ignore"):  # infinity times no weight; seen to below
            total = self.weights.apply(fields)
        broken = np.isnan(total).any(axis=(1, 2))  # any NaN that carries weight shows here
        if broken.any():
            total[broken] = self._regrid_valid(fields[broken])
        return total

    def _regrid_valid(self, fields: npt.NDArray[Any]) -> Array:
        valid = ~np.isnan(fields)
        share = self.weights.apply(valid)
        filled = np.where(valid, fields, 0)
        with np.errstate(invalid="ignore"):
            total = self.weights.apply(filled)
        if not np.isfinite(total).all():
            total = self.weights.apply_exactly(filled)
        enough = share >= max(1 - self.max_missing - _NO_SHARE, _NO_SHARE)
        return np.divide(total, share, out=np.full_like(total, np.nan), where=enough)

    def needed(self) -> tuple[slice, slice]:
        """Return the source's rows and columns without which nothing changes: a small target needs few of them."""
        return _hull(self.latitude_weights), _hull(self.longitude_weights)

    def on_part(self, rows: slice, columns: slice) -> Regridder:
        """Return the same regridding for fields cut to some rows and columns of the source, as from ``needed``."""
        if isinstance(self.source, ReducedGrid):
            raise ValueError(f"{self.source} has no columns to cut")
        return Regridder(self.source.part(rows, columns), self.target, self.method, self.max_missing)

    def save(self, path: str | Path) -> None:
        """Write grids, method and weights to a NumPy archive (.npz), whole or not at all."""
        path = Path(path)
        content: dict[str, Any] = {
            "format": np.array(_FORMAT),
            "method": np.array(self.method),
            "max_missing": np.array(self.max_missing),
            "hashes": np.array([self.source.hash, self.target.hash]),
            **_packed_grid("source", self.source),
            **_packed_grid("target", self.target),
        }
        for name, matrix in _matrices(self.weights).items():
            content |= {f"{name}_{part}": getattr(matrix, part) for part in ("data", "indices", "indptr", "shape")}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **content)

    @classmethod
    def load(cls, path: str | Path) -> Regridder:
        """Return what ``save`` wrote; no weight is computed, and nothing in the file is run.

        Raises:
            FileNotFoundError: if there is no file.
            ValueError: if it is not such a file, is damaged, or its grids or weights do not fit each other.
        """
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                content = {name: archive[name] for name in archive.files}
            if int(content["format"]) != _FORMAT:
                raise ValueError(f"it has format {content['format']}, this climapred reads {_FORMAT}")
            source, target = _unpacked_grid("source", content), _unpacked_grid("target", content)
            if [source.hash, target.hash] != content["hashes"].tolist():
                raise ValueError("its grids are not those that its weights were made for")
            weights = _unpacked_weights(content, source, target)
            method: Any = content["method"].item()
            return cls(source, target, method, float(content["max_missing"]), weights)  # type: ignore[arg-type]
        except FileNotFoundError:
            raise
        except (ValueError, KeyError, TypeError, OSError, EOFError, BadZipFile) as error:
            raise ValueError(
                f"{path} holds no usable weights: {error}; write them again with Regridder.save"
            ) from error

    def __reduce__(self) -> tuple[type[Regridder], tuple[Grid | ReducedGrid, Grid, Method, float]]:
        return Regridder, (self.source, self.target, self.method, self.max_missing)

    def __dask_tokenize__(self) -> tuple[str, ...]:
        return "Regridder", self.source.hash, self.target.hash, self.method, repr(self.max_missing)


def result_dtype(dtype: np.dtype[Any]) -> type[np.float32 | np.float64]:
    """Return what a Regridder makes of values of a type."""
    return np.float32 if dtype.kind == "f" and dtype.itemsize <= 4 else np.float64


def still_true(attrs: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return the attributes of a field that hold on any grid."""
    return {name: value for name, value in attrs.items() if name not in _UNTRUE}


def _hull(weights: csr_array) -> slice:
    """Return the used columns and one more at either end, where "nearest" may have to end a cell."""
    return slice(max(int(weights.indices.min()) - 1, 0), min(int(weights.indices.max()) + 2, weights.shape[1]))


def _packed_grid(name: str, grid: Grid | ReducedGrid) -> dict[str, npt.NDArray[Any]]:
    axes = ("points",) if isinstance(grid, ReducedGrid) else tuple(grid.__dataclass_fields__)[:4]
    return {f"{name}_{axis}": np.asarray(getattr(grid, axis)) for axis in axes}


def _unpacked_grid(name: str, content: dict[str, npt.NDArray[Any]]) -> Grid | ReducedGrid:
    if (points := content.get(f"{name}_points")) is not None:
        return ReducedGrid(points.size // 2, tuple(points.tolist()))
    return Grid(*(content[f"{name}_{axis}"] for axis in tuple(Grid.__dataclass_fields__)[:4]))


def _matrices(weights: Separable | Joint) -> dict[str, csr_array]:
    if isinstance(weights, Joint):
        return {"matrix": weights.matrix}
    return {"latitude_weights": weights.latitude, "longitude_weights": weights.longitude}


def _unpacked_weights(
    content: dict[str, npt.NDArray[Any]], source: Grid | ReducedGrid, target: Grid | ReducedGrid
) -> Separable | Joint:
    """Return the weights, checked: shapes, indices, and rows that sum to 1 or are empty."""

    def matrix(name: str, *shape: Any) -> csr_array:
        data, indices, indptr = (content[f"{name}_{part}"] for part in ("data", "indices", "indptr"))
        if content[f"{name}_shape"].tolist() != list(shape):
            raise ValueError(f"{name} has shape {content[f'{name}_shape'].tolist()}, not {list(shape)}")
        found = csr_array((data, indices, indptr), shape=shape)
        found.check_format(full_check=True)
        sums = found.sum(axis=1)
        if not (np.isclose(sums, 1, atol=1e-6) | (sums == 0)).all():
            raise ValueError(f"the rows of {name} must sum to 1, got {sums.min():g} to {sums.max():g}")
        return found

    if not isinstance(target, Grid):
        raise ValueError("its target is a reduced grid")
    if isinstance(source, ReducedGrid):
        return Joint(matrix("matrix", target.size, source.size), target.shape)
    (rows, columns), (height, width) = target.shape, source.shape
    return Separable(matrix("latitude_weights", rows, height), matrix("longitude_weights", columns, width))
