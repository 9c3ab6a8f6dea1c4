"""Regridding weights: pure functions of coordinates, and how they meet fields.

Between two rectilinear grids each 2-D weight is a product: a target cell overlaps a source cell as far as both their
latitudes and their longitudes do. So two small operators do, ``Separable``: about H + W weights, not H W. From a reduced
grid, whose rows have points of their own, one matrix does, ``Joint``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array, hstack, kron

from climapred.grid import ROUNDING, Array, Grid
from climapred.reduced import ReducedGrid

Method = Literal["nearest", "bilinear", "conservative"]
METHODS: tuple[str, ...] = get_args(Method)

_TIE = 1e-9  # share of a cell by which a nearest point must be nearer, or rounding would decide
_LEAST_COVER = 1e-3  # a conservative cell with less of its width inside the source counts as outside
_PRODUCT = 2**18  # multiplications of one small matrix product: fewer than BLAS would share among threads
_PICKED = 2  # points in the time of one picked point, by products of blocks; measured
_SOURCES, _MOST_ROWS = 48, 32  # of one such product; measured: fewer cost calls, more multiply zeros


class _Block(NamedTuple):
    """Some rows of an operator as a small dense matrix: a product that costs no index arithmetic, and frees the GIL."""

    targets: slice
    sources: slice | npt.NDArray[np.integer[Any]]
    weights: Array  # (targets, sources)


@dataclass(frozen=True, eq=False)
class Separable:
    """Weights that are products: latitude (H', H) times longitude (W', W), a row sums to 1 or is empty."""

    latitude: csr_array
    longitude: csr_array

    @property
    def covered(self) -> npt.NDArray[np.bool_]:
        """Where the target lies inside the source, (H', W')."""
        rows, columns = (np.diff(axis.indptr) > 0 for axis in (self.latitude, self.longitude))
        return rows[:, None] & columns

    @cached_property
    def _blocks(self) -> tuple[bool, list[_Block], list[_Block]]:
        """Whether latitude goes first, and the blocks of both: it works on whole rows, unless it leaves far more values."""
        (rows, height), (columns, width) = self.latitude.shape, self.longitude.shape
        latitude_first = rows * width <= 2 * height * columns
        vectors = (width, rows) if latitude_first else (columns, height)
        # Unused rows are left out, which saves their conversion to float64; single columns are slow to pick.
        latitude = _dense_blocks(self.latitude, vectors[0], least_used=0.75)
        longitude = _dense_blocks(self.longitude, vectors[1], least_used=0.1)
        return latitude_first, latitude, longitude

    @cached_property
    def _corners(self) -> tuple[npt.NDArray[np.intp], Array] | None:
        """Flat indices (2, H', K, W') and weights (H', K, W') of the one, two or four points under each target.

        The second indices are those where the rows of the source lie in memory from north to south. None where there are
        more points, or so many targets that products of blocks are faster than picking.
        """
        axes = (self.latitude, self.longitude)
        most = [max(1, int(np.diff(axis.indptr).max())) for axis in axes]
        (rows, height), (columns, width) = self.latitude.shape, self.longitude.shape
        if max(most) > 2 or not (self.latitude.nnz and self.longitude.nnz):
            return None
        if max(most) == 2 and _PICKED * math.prod(most) * rows * columns > height * width:
            return None
        (row, row_weight), (column, column_weight) = (_padded(*pair) for pair in zip(axes, most, strict=True))
        weights = row_weight.T[:, :, None, None] * column_weight
        places = [northwards.T[:, :, None, None] * width + column for northwards in (row, height - 1 - row)]
        return np.stack(places).reshape(2, rows, -1, columns), weights.reshape(rows, -1, columns)

    def apply(self, fields: npt.NDArray[Any]) -> Array:
        """Return (N, H', W') of (N, H, W). A NaN reaches the targets it has weight in, and some around them."""
        return self._apply_blocks(fields) if self._corners is None else self._apply_corners(*self._corners, fields)

    def _apply_corners(self, places: npt.NDArray[np.intp], weights: Array, fields: npt.NDArray[Any]) -> Array:
        turned = fields.strides[1] < 0  # a view of rows from north to south, which would be copied
        fields, picked = fields[:, :: -1 if turned else 1], places[int(turned)]
        result = np.empty((len(fields), weights.shape[0], weights.shape[2]))
        for field, out in zip(fields, result, strict=True):
            np.einsum("rkc,rkc->rc", field.reshape(-1).take(picked, mode="clip"), weights, out=out)
        return result

    def _apply_blocks(self, fields: npt.NDArray[Any]) -> Array:
        latitude_first, latitude, longitude = self._blocks
        (rows, height), (columns, width) = self.latitude.shape, self.longitude.shape
        middle = np.empty((len(fields), *((rows, width) if latitude_first else (height, columns))))
        result = np.empty((len(fields), rows, columns))
        if latitude_first:
            _along_rows(latitude, fields, middle)
            _along_columns(longitude, middle, result)
        else:
            _along_columns(longitude, fields, middle)
            _along_rows(latitude, middle, result)
        return result

    def apply_exactly(self, fields: npt.NDArray[Any]) -> Array:
        """Return the same; a point without weight has no say, be it infinite. Slower."""
        values = fields.astype(np.float64)
        return np.stack(
            [self.longitude @ np.ascontiguousarray((self.latitude @ field).T) for field in values]
        ).transpose(0, 2, 1)


@dataclass(frozen=True, eq=False)
class Joint:
    """Weights as one matrix (H' W', P), a row sums to 1; ``shape`` is (H', W')."""

    matrix: csr_array
    shape: tuple[int, int]

    @property
    def covered(self) -> npt.NDArray[np.bool_]:
        """Where the target lies inside the source, (H', W')."""
        return np.asarray(np.diff(self.matrix.indptr) > 0).reshape(self.shape)

    def apply(self, fields: npt.NDArray[Any]) -> Array:
        """Return (N, H', W') of (N, P)."""
        flat = np.stack([self.matrix @ field.astype(np.float64) for field in fields])
        return flat.reshape(-1, *self.shape)

    apply_exactly = apply


def _dense_blocks(weights: csr_array, vectors: int, *, least_used: float) -> list[_Block]:
    """Return the rows of ``weights`` in small dense blocks; a block with a smaller share of used columns lists them."""
    rows, columns = weights.shape
    ratio = rows / columns
    step = int(np.clip(min(math.sqrt(_PRODUCT / vectors * ratio), _SOURCES * ratio), 2, _MOST_ROWS))
    blocks = []
    for start in range(0, rows, step):
        part = weights[start : start + step]
        used = np.unique(part.indices)
        hull = slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0, 0)  # no source: the product is zero
        sources = hull if used.size >= least_used * (hull.stop - hull.start) else used
        dense = part.toarray()[:, sources]
        blocks.append(_Block(slice(start, start + step), sources, dense))
    return blocks


def _padded(weights: csr_array, most: int) -> tuple[npt.NDArray[np.intp], Array]:
    """Return the indices and weights of each row, (most, rows); a shorter row repeats its first index with weight zero."""
    counts = np.diff(weights.indptr)
    turn = np.arange(most)[:, None]
    kept = turn < counts
    entry = np.minimum(weights.indptr[:-1] + np.where(kept, turn, 0), weights.nnz - 1)
    return weights.indices[entry].astype(np.intp), np.where(kept, weights.data[entry], 0)


def _along_rows(blocks: list[_Block], fields: npt.NDArray[Any], out: Array) -> None:
    for targets, sources, weights in blocks:
        np.matmul(weights, fields[:, sources].astype(np.float64, copy=False), out=out[:, targets])


def _along_columns(blocks: list[_Block], fields: npt.NDArray[Any], out: Array) -> None:
    for targets, sources, weights in blocks:
        np.matmul(fields[:, :, sources].astype(np.float64, copy=False), weights.T, out=out[:, :, targets])


@lru_cache(maxsize=16)
def find_weights(source: Grid | ReducedGrid, target: Grid, method: Method) -> Separable | Joint:
    """Return the weights from ``source`` to ``target``, as ``Regridder`` defines them; the last ones asked for are kept.

    Raises:
        ValueError: if the target lies elsewhere.
    """
    if isinstance(source, ReducedGrid):
        return Joint(_reduced_matrix(source, target, method), target.shape)
    latitude, longitude = _latitude_weights(source, target, method), _longitude_weights(source, target, method)
    if not (latitude.nnz and longitude.nnz):
        raise ValueError(f"no point of the target lies in the source: source is {source}, target is {target}")
    return Separable(latitude, longitude)


def _latitude_weights(source: Grid, target: Grid, method: Method) -> csr_array:
    if method == "conservative":
        return conservative_latitude(source.latitude_bounds, target.latitude_bounds)
    return _point_latitude(source, target.latitude, nearest=method == "nearest")


def _longitude_weights(source: Grid, target: Grid, method: Method) -> csr_array:
    if method == "conservative":
        return conservative_longitude(source.longitude_bounds, target.longitude_bounds)
    return _point_longitude(source, target.longitude, nearest=method == "nearest")


def _reduced_matrix(source: ReducedGrid, target: Grid, method: Method) -> csr_array:
    """Return (H' W', P): per row of the source, its latitude weights times the longitude weights of its own points."""
    if method == "nearest":
        return _nearest_on_the_sphere(source, target)
    latitude = _latitude_weights(source.rows, target, method)
    rows = {
        count: Grid(np.array([-1.0, 1.0]), np.arange(count) * np.float64(360 / count)) for count in set(source.points)
    }
    longitude = {count: _longitude_weights(row, target, method) for count, row in rows.items()}
    last = len(source.points) - 1  # the points run from north to south, the latitude weights from south to north
    parts = [kron(latitude[:, [last - row]], longitude[count]) for row, count in enumerate(source.points)]
    return csr_array(hstack(parts, format="csr"))


def _nearest_on_the_sphere(source: ReducedGrid, target: Grid) -> csr_array:
    from scipy.spatial import KDTree  # loaded where used: it takes longer than all the rest

    latitude, longitude = np.meshgrid(target.latitude, target.longitude, indexing="ij")
    nearest = KDTree(_vectors(*source.centres())).query(_vectors(latitude.ravel(), longitude.ravel()))[1]
    rows = np.arange(target.size)
    return csr_array((np.ones(target.size), (rows, nearest)), shape=(target.size, source.size))


def _vectors(latitude: Array, longitude: Array) -> Array:
    """Return unit vectors (P, 3) of points in degrees."""
    phi, lam = np.radians(latitude), np.radians(longitude)
    return np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], axis=-1)


def conservative_latitude(source_bounds: Array, target_bounds: Array) -> csr_array:
    """Return the share of each source cell in each target cell, (H', H), from edges (H + 1,) and (H' + 1,).

    The area between two latitudes is proportional to the difference of their sines (Archimedes).
    """
    return _normalised(overlaps(np.sin(np.radians(source_bounds)), np.sin(np.radians(target_bounds))))


def conservative_longitude(source_bounds: Array, target_bounds: Array) -> csr_array:
    """Return the share of each source cell in each target cell, (W', W), from edges (W + 1,) and (W' + 1,).

    The source repeats every 360 degrees: a target from -10 to 2 finds its cells at 350 to 360 and at 0 to 2.
    """
    first = math.floor((target_bounds[0] - source_bounds[-1]) / 360)
    last = math.ceil((target_bounds[-1] - source_bounds[0]) / 360)
    turns = [overlaps(source_bounds + 360 * turn, target_bounds) for turn in range(first, last + 1)]
    return _normalised(csr_array(sum(turns[1:], start=turns[0])))


def overlaps(source: Array, target: Array) -> csr_array:
    """Return the length of the overlap of target interval i with source interval j, as share of i: (T, S).

    All edges together cut the line into pieces, each in at most one interval of either side.

    >>> overlaps(np.array([0.0, 1.0, 4.0]), np.array([0.0, 2.0])).toarray()
    array([[0.5, 0.5]])
    """
    edges = np.union1d(source, target)
    middle = (edges[1:] + edges[:-1]) / 2
    column, row = (np.searchsorted(side, middle) - 1 for side in (source, target))
    share = np.diff(edges) / np.diff(target)[np.clip(row, 0, target.size - 2)]
    kept = (column >= 0) & (column < source.size - 1) & (row >= 0) & (row < target.size - 1)
    return csr_array((share[kept], (row[kept], column[kept])), shape=(target.size - 1, source.size - 1))


def _normalised(shares: csr_array) -> csr_array:
    """Return each row over its sum; a row too short to tell from rounded edges becomes empty."""
    covered = shares.sum(axis=1)
    scale = np.divide(1, covered, out=np.zeros_like(covered), where=covered > _LEAST_COVER)
    data = shares.data * np.repeat(scale, np.diff(shares.indptr))
    weights = csr_array((data, shares.indices, shares.indptr), shape=shares.shape)
    weights.eliminate_zeros()
    return weights


def _point_latitude(source: Grid, targets: Array, *, nearest: bool) -> csr_array:
    """Return weights (H', H); a row whose cell reaches a pole is repeated at the pole."""
    points, rows = source.latitude, np.arange(source.latitude.size)
    south, north = source.latitude_bounds[[0, -1]]
    if south <= -90 + ROUNDING < points[0]:
        points, rows = np.append(-90.0, points), np.append(0, rows)
    if north >= 90 - ROUNDING > points[-1]:
        points, rows = np.append(points, 90.0), np.append(rows, rows[-1])
    inside = (south, north) if nearest else (points[0], points[-1])
    return _between_points(points, rows, targets, inside, nearest)


def _point_longitude(source: Grid, targets: Array, *, nearest: bool) -> csr_array:
    """Return weights (W', W); targets turn by 360 degrees to the source; a periodic one closes the circle."""
    points, columns = source.longitude, np.arange(source.longitude.size)
    west, east = source.longitude_bounds[[0, -1]]
    targets = targets + 360 * np.ceil((west - ROUNDING - targets) / 360)
    if source.periodic:
        points = np.concatenate([points[-1:] - 360, points, points[:1] + 360])
        columns = np.concatenate([columns[-1:], columns, columns[:1]])
    inside = (west, east) if nearest else (points[0], points[-1])
    return _between_points(points, columns, targets, inside, nearest)


def _between_points(
    points: Array, indices: npt.NDArray[np.intp], targets: Array, inside: tuple[float, float], nearest: bool
) -> csr_array:
    """Return the weights of the two points around each target: linear, or for nearest rounded to 0 and 1.

    ``points`` increase; ``indices`` are the source indices that they stand for. Targets outside ``inside`` get none.
    """
    row = np.flatnonzero((targets >= inside[0] - ROUNDING) & (targets <= inside[1] + ROUNDING))
    right = np.clip(np.searchsorted(points, targets[row]), 1, points.size - 1)
    share = np.clip((targets[row] - points[right - 1]) / (points[right] - points[right - 1]), 0, 1)
    if nearest:
        share = (share > 0.5 + _TIE).astype(np.float64)
    weights = csr_array(
        (np.concatenate([1 - share, share]), (np.tile(row, 2), indices[np.concatenate([right - 1, right])])),
        shape=(targets.size, int(indices.max()) + 1),
    )
    weights.eliminate_zeros()
    return weights
