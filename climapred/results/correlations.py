"""Learned adjacency as fields: whom a place listens to, who listens to it, and over what distance.

An adjacency is a Dataset with the variable ``weight`` and the dims (node_target, node_source): row i says how
strongly the forecast at node i uses every node j. Nodes are the points of a Grid, flattened in C order
(latitude, longitude). Rows sum to 1 where they come from a softmax. Softmax after ReLU leaves about 1 / N
under every pair, linked or not: a raw map looks flat. That floor is the minimum of the row;
``correlation_map`` takes it off.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from climapred.grid import Grid, great_circle_km

Direction = Literal["listens", "heard"]
Array = npt.NDArray[np.float64]

_BLOCK_PAIRS = (
    2_000_000  # pairs held at once: an adjacency that is larger than memory streams through in blocks of rows
)


def adjacency_dataset(weights: npt.NDArray[np.floating], grid: Grid) -> xr.Dataset:
    """Return the adjacency of ``grid`` as a Dataset, the layout of every function here and of the file.

    Args:
        weights: shape (N, N) with N = grid.size; row = target, the node that listens; column = source.
        grid: the points, flattened (latitude, longitude) in C order.

    Raises:
        ValueError: if the shape is not (N, N) or a weight is not finite.

    >>> adjacency_dataset(np.eye(6), Grid([0, 1], [5, 6, 7])).sizes
    Frozen({'node_target': 6, 'node_source': 6})
    """
    if weights.shape != (grid.size, grid.size):
        raise ValueError(f"weights must have shape ({grid.size}, {grid.size}) for {grid!r}, got {weights.shape}")
    if not np.isfinite(weights).all():
        raise ValueError(f"weights must be finite, got {np.count_nonzero(~np.isfinite(weights))} values that are not")
    dataset = xr.Dataset({"weight": (("node_target", "node_source"), weights)})
    dataset["weight"].attrs = {
        "units": "1",
        "long_name": "learned weight with which the target node (row) listens to the source node (column)",
    }
    latitude, longitude = _nodes(grid)
    return dataset.assign_coords(
        {
            f"{side}_{name}": (f"node_{side}", values, {"standard_name": name, "units": units})
            for side in ("target", "source")
            for name, values, units in (
                ("latitude", latitude, "degrees_north"),
                ("longitude", longitude, "degrees_east"),
            )
        }
    )


def correlation_map(
    adjacency: xr.Dataset,
    latitude: float,
    longitude: float,
    *,
    direction: Direction = "listens",
    above_floor: bool = True,
) -> xr.DataArray:
    """Return the learned weights of one place as a field (latitude, longitude).

    Args:
        adjacency: dims (node_target, node_source), see ``adjacency_dataset``.
        latitude: of the place, degrees north.
        longitude: of the place, degrees east; 240 and -120 are the same.
        direction: "listens" gives the row of the place (the points it listens to), "heard" its column (the
            points that listen to it).
        above_floor: subtract from each weight the minimum of its row, the share that softmax gives every
            pair.

    Returns:
        Field on the grid of the nodes; its attributes ``point_latitude`` and ``point_longitude`` tell the
        grid point that was used, the nearest one.

    Raises:
        ValueError: if the place lies outside the region, or the nodes are not a latitude-longitude grid.
    """
    if direction not in get_args(Direction):
        raise ValueError(f"direction must be one of {', '.join(get_args(Direction))}, got {direction!r}")
    grid = _grid_of(adjacency)
    node = _nearest_node(grid, latitude, longitude)
    weight = adjacency["weight"]
    row_or_column = weight.isel(node_target=node) if direction == "listens" else weight.isel(node_source=node)
    if above_floor:
        rows = row_or_column if direction == "listens" else weight
        row_or_column = row_or_column - rows.min("node_source", skipna=False)
    row, column = np.unravel_index(node, grid.shape)
    point_latitude, point_longitude = float(grid.latitude[row]), float(grid.longitude[column])
    place = f"{point_latitude:g} N, {point_longitude:g} E"
    listener, source = (place, "each point") if direction == "listens" else ("each point", place)
    return xr.DataArray(
        row_or_column.data.reshape(grid.shape),
        dims=("latitude", "longitude"),
        coords=grid.coordinates(),
        name="weight",
        attrs={
            "units": "1",
            "long_name": f"learned weight with which {listener} listens to {source}"
            + (", above the floor of its row" if above_floor else ""),
            "direction": direction,
            "above_floor": int(above_floor),
            "point_latitude": point_latitude,
            "point_longitude": point_longitude,
        },
    )


def strongest_links(adjacency: xr.Dataset, k: int = 20, *, min_km: float = 0.0) -> pd.DataFrame:
    """Return the ``k`` largest weights between points at least ``min_km`` apart, largest first.

    A point and itself are 0 km apart: they count only when ``min_km`` is 0. Fewer than ``k`` rows come back
    where fewer pairs are that far apart. Equal weights are in the order of the nodes.

    Returns:
        Columns target_latitude, target_longitude, source_latitude, source_longitude (degrees), distance_km
        and weight, the raw one.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    grid = _grid_of(adjacency)
    best = {name: np.empty(0) for name in ("weight", "distance_km", "target", "source")}
    for start, weights, distances in _row_blocks(adjacency, grid):
        far = np.flatnonzero(distances.ravel() >= min_km)
        values = weights.ravel()[far]
        if far.size > k:
            largest = np.argpartition(values, -k)[-k:]
            far, values = far[largest], values[largest]
        block = (values, distances.ravel()[far], start + far // grid.size, far % grid.size)
        best = {name: np.concatenate([old, new]) for (name, old), new in zip(best.items(), block, strict=True)}
        order = np.lexsort((best["source"], best["target"], -best["weight"]))[:k]
        best = {name: values[order] for name, values in best.items()}
    latitude, longitude = _nodes(grid)
    ends = {
        f"{side}_{name}": values[best[side].astype(int)]
        for side in ("target", "source")
        for name, values in (("latitude", latitude), ("longitude", longitude))
    }
    return pd.DataFrame({**ends, "distance_km": best["distance_km"], "weight": best["weight"]})


def weight_by_distance(adjacency: xr.Dataset, bins_km: npt.ArrayLike) -> xr.Dataset:
    """Return the mean weight of the pairs in each bin of great-circle distance.

    Args:
        adjacency: dims (node_target, node_source).
        bins_km: edges of the bins, km, increasing; a bin holds its lower edge, the last one both. Pairs
            outside all bins are not counted.

    Returns:
        Dims ("distance",), the centres of the bins in km; variables ``weight`` (the mean; NaN where a bin is
        empty) and ``count`` (pairs); coordinates ``distance_lower`` and ``distance_upper``.
    """
    edges = np.asarray(bins_km, dtype=np.float64)
    if edges.ndim != 1 or edges.size < 2 or not (np.diff(edges) > 0).all():
        raise ValueError(f"bins_km must be at least two increasing edges in km, got {edges}")
    total, count = np.zeros(edges.size - 1), np.zeros(edges.size - 1, dtype=np.int64)
    for _, weights, distances in _row_blocks(adjacency, _grid_of(adjacency)):
        count += np.histogram(distances, edges)[0]
        total += np.histogram(distances, edges, weights=weights)[0]
    mean = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return xr.Dataset(
        {
            "weight": (
                "distance",
                mean,
                {"units": "1", "long_name": "mean learned weight of the pairs at this distance"},
            ),
            "count": ("distance", count, {"units": "1", "long_name": "number of pairs at this distance"}),
        },
        coords={
            "distance": (
                "distance",
                (edges[1:] + edges[:-1]) / 2,
                {"units": "km", "long_name": "great-circle distance"},
            ),
            "distance_lower": ("distance", edges[:-1], {"units": "km"}),
            "distance_upper": ("distance", edges[1:], {"units": "km"}),
        },
    )


def _nodes(grid: Grid) -> tuple[Array, Array]:
    """Return latitude and longitude of the nodes, each of shape (N,)."""
    latitude, longitude = np.meshgrid(grid.latitude, grid.longitude, indexing="ij")
    return latitude.ravel(), longitude.ravel()


def _row_blocks(adjacency: xr.Dataset, grid: Grid) -> Iterator[tuple[int, Array, Array]]:
    """Yield (first row, weights, distances in km), both of shape (rows, N), a few rows at a time."""
    latitude, longitude = _nodes(grid)
    rows = max(1, _BLOCK_PAIRS // grid.size)
    for start in range(0, grid.size, rows):
        here = slice(start, start + rows)
        weights = adjacency["weight"].isel(node_target=here).values.astype(np.float64)
        yield (
            start,
            weights,
            great_circle_km(latitude[here, None], longitude[here, None], latitude, longitude),
        )


def _grid_of(adjacency: xr.Dataset) -> Grid:
    """Return the grid whose flattened points are the nodes, after checking the layout of the adjacency."""
    if "weight" not in adjacency or adjacency["weight"].dims != ("node_target", "node_source"):
        found = {name: variable.dims for name, variable in adjacency.data_vars.items()}
        raise ValueError(f"adjacency must hold 'weight' with dims ('node_target', 'node_source'), got {found}")
    axes: list[Array] = []
    for name in ("latitude", "longitude"):
        if missing := {f"target_{name}", f"source_{name}"} - set(adjacency.variables):
            raise ValueError(f"adjacency lacks the coordinates {sorted(missing)}; make it with adjacency_dataset()")
        target, source = (np.asarray(adjacency[f"{side}_{name}"].values, np.float64) for side in ("target", "source"))
        if not np.array_equal(target, source):
            raise ValueError(f"adjacency must link a grid to itself, but target_{name} and source_{name} differ")
        axes.append(target)
    latitude, longitude = (np.unique(axis) for axis in axes)
    grid = Grid(latitude, longitude)
    if not all(np.array_equal(axis, wanted) for axis, wanted in zip(axes, _nodes(grid), strict=True)):
        raise ValueError(
            f"adjacency has {axes[0].size} nodes that are not the {latitude.size} x {longitude.size} points "
            "of a latitude-longitude grid in C order; make it with adjacency_dataset()"
        )
    return grid


def _nearest_node(grid: Grid, latitude: float, longitude: float) -> int:
    (south, north), (west, east) = grid.latitude_bounds[[0, -1]], grid.longitude_bounds[[0, -1]]
    if not (south <= latitude <= north and (longitude - west) % 360 <= east - west):
        raise ValueError(
            f"the point {latitude:g} N, {longitude:g} E lies outside the region of the adjacency, "
            f"{south:g}..{north:g} N, {west:g}..{east:g} E"
        )
    distance = great_circle_km(latitude, longitude, grid.latitude[:, None], grid.longitude)
    return int(np.argmin(distance))
