"""Learned adjacency as a Dataset: two layouts, dense and "top", and what reads both row by row.

Nodes are the points of a Grid, flattened in C order (latitude, longitude); row i says how strongly the forecast at node i
(the target, which listens) uses every node j (the source). Softmax after ReLU leaves about 1 / N under every pair, linked
or not: a raw map looks flat. That floor is the minimum of the row.

    dense  weight(node_target, node_source), all pairs
    top    weight(node_target, link), the largest of each row, beside source_node(node_target, link), the index of their
           sources among the nodes, and floor(node_target). A pair that is not listed counts as unlinked: it has the floor of
           its row. unlisted(node_target) is what that leaves out, the sum of its weights above the floor.

A row of the second layout is as long as there are links in it, so that a file grows with N and not with N x N.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from climapred.grid import Array, Grid, great_circle_km

DENSE_NODES = 4096  # up to here a file of all pairs has at most 64 MiB
BLOCK_PAIRS = 2_000_000  # pairs held at once: an adjacency that is larger than memory streams through in blocks of rows

_MEANING = "learned weight (of a signed one the modulus) with which the target node (row) listens to the source node"
_PLACES = (("latitude", "degrees_north"), ("longitude", "degrees_east"))


def adjacency_dataset(weights: npt.NDArray[np.floating], grid: Grid) -> xr.Dataset:
    """Return the adjacency of ``grid`` in the dense layout.

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
    _refuse_gaps(weights)
    attributes = {"units": "1", "long_name": f"{_MEANING} (column)"}
    dataset = xr.Dataset({"weight": (("node_target", "node_source"), weights, attributes)})
    return dataset.assign_coords({**_node_coordinates(grid, "target"), **_node_coordinates(grid, "source")})


def top_links(blocks: Iterable[npt.NDArray[np.floating]], grid: Grid, count: int = 128) -> xr.Dataset:
    """Return the adjacency of ``grid`` in the top layout, float32, from blocks of rows; no more than one is held.

    Args:
        blocks: shapes (rows, N), in the order of the rows, N of them in all.
        grid: the points.
        count: links that are kept of each row; all where there are fewer.

    Raises:
        ValueError: if the blocks are not N rows of N finite weights, or ``count`` is not positive.

    >>> dict(top_links([np.eye(6)], Grid([0, 1], [5, 6, 7]), count=2).sizes)
    {'node_target': 6, 'link': 2}
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    count = min(count, grid.size)
    kept: list[tuple[npt.NDArray[Any], ...]] = []
    for block in blocks:
        if block.ndim != 2 or block.shape[1] != grid.size:
            raise ValueError(f"blocks must have shape (rows, {grid.size}) for {grid!r}, got {block.shape}")
        _refuse_gaps(block)
        largest = np.argpartition(block, -count, axis=1)[:, -count:] if count < grid.size else _places_of(block)
        order = np.argsort(-np.take_along_axis(block, largest, axis=1), axis=1, kind="stable")
        largest = np.take_along_axis(largest, order, axis=1)
        weights, floor = np.take_along_axis(block, largest, axis=1), block.min(axis=1)
        unlisted = (block - floor[:, None]).sum(axis=1, dtype=np.float64) - (weights - floor[:, None]).sum(axis=1)
        kept.append((weights, largest, floor, np.maximum(unlisted, 0)))
    weights, sources, floor, unlisted = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    if len(weights) != grid.size:
        raise ValueError(f"blocks must hold {grid.size} rows for {grid!r}, got {len(weights)}")
    one = {"units": "1"}
    rows, links = ("node_target",), ("node_target", "link")
    return xr.Dataset(
        {
            "weight": (
                links,
                weights.astype(np.float32),
                one | {"long_name": f"{_MEANING} source_node, largest first"},
            ),
            "source_node": (
                links,
                sources.astype(np.int32),
                one | {"long_name": "index of the source among the nodes"},
            ),
            "floor": (rows, floor.astype(np.float32), one | {"long_name": "weight of every source that is not linked"}),
            "unlisted": (
                rows,
                unlisted.astype(np.float32),
                one | {"long_name": "weight above the floor of all sources that are not listed"},
            ),
        },
        coords=_node_coordinates(grid, "target"),
    )


def _refuse_gaps(weights: npt.NDArray[np.floating]) -> None:
    if not np.isfinite(weights).all():
        raise ValueError(f"weights must be finite, got {np.count_nonzero(~np.isfinite(weights))} values that are not")


def _places_of(block: npt.NDArray[np.floating]) -> npt.NDArray[np.intp]:
    return np.broadcast_to(np.arange(block.shape[1]), block.shape)


def _node_coordinates(grid: Grid, side: str) -> dict[str, Any]:
    return {
        f"{side}_{name}": (f"node_{side}", values, {"standard_name": name, "units": units})
        for (name, units), values in zip(_PLACES, nodes(grid), strict=True)
    }


def nodes(grid: Grid) -> tuple[Array, Array]:
    """Return latitude and longitude of the nodes, each of shape (N,)."""
    latitude, longitude = np.meshgrid(grid.latitude, grid.longitude, indexing="ij")
    return latitude.ravel(), longitude.ravel()


def is_top(adjacency: xr.Dataset) -> bool:
    """Return whether an adjacency is in the top layout."""
    return "source_node" in adjacency


def grid_of(adjacency: xr.Dataset) -> Grid:
    """Return the grid whose flattened points are the nodes, after checking the layout of the adjacency."""
    wanted = ("node_target", "link") if is_top(adjacency) else ("node_target", "node_source")
    if "weight" not in adjacency or adjacency["weight"].dims != wanted:
        found = {name: variable.dims for name, variable in adjacency.data_vars.items()}
        raise ValueError(f"adjacency must hold 'weight' with dims {wanted}, got {found}")
    sides = ("target",) if is_top(adjacency) else ("target", "source")
    axes: list[Array] = []
    for name, _ in _PLACES:
        if missing := {f"{side}_{name}" for side in sides} - set(adjacency.variables):
            raise ValueError(f"adjacency lacks the coordinates {sorted(missing)}; make it with adjacency_dataset()")
        target, *sources = (np.asarray(adjacency[f"{side}_{name}"].values, np.float64) for side in sides)
        if not all(np.array_equal(target, source) for source in sources):
            raise ValueError(f"adjacency must link a grid to itself, but target_{name} and source_{name} differ")
        axes.append(target)
    latitude, longitude = (np.unique(axis) for axis in axes)
    grid = Grid(latitude, longitude)
    if not all(np.array_equal(axis, wanted) for axis, wanted in zip(axes, nodes(grid), strict=True)):
        raise ValueError(
            f"adjacency has {axes[0].size} nodes that are not the {latitude.size} x {longitude.size} points "
            "of a latitude-longitude grid in C order; make it with adjacency_dataset()"
        )
    return grid


def floors(adjacency: xr.Dataset) -> xr.DataArray:
    """Return the floor of each row, dims (node_target,); lazily for a lazy adjacency."""
    return adjacency["floor"] if is_top(adjacency) else adjacency["weight"].min("node_source", skipna=False)


def row(adjacency: xr.Dataset, node: int) -> xr.DataArray:
    """Return the weights with which a node listens to all, dims (node_source,)."""
    weights = adjacency["weight"].isel(node_target=node)
    if not is_top(adjacency):
        return weights
    values = np.full(adjacency.sizes["node_target"], float(adjacency["floor"][node]))
    values[adjacency["source_node"].values[node]] = weights.values
    return xr.DataArray(values, dims="node_source")


def column(adjacency: xr.Dataset, node: int) -> xr.DataArray:
    """Return the weights with which all listen to a node, dims (node_target,)."""
    if not is_top(adjacency):
        return adjacency["weight"].isel(node_source=node)
    here = adjacency["source_node"] == node
    return adjacency["weight"].where(here, 0).sum("link", skipna=False).where(here.any("link"), adjacency["floor"])


def row_blocks(adjacency: xr.Dataset, *, above_floor: bool = False, every: int = 1) -> Iterator[tuple[slice, Array]]:
    """Yield (rows, weights), weights of shape (rows, N) in float64, a few rows at a time, of either layout.

    With ``every`` of 2 or more only every second, third, ... row.
    """
    size = adjacency.sizes["node_target"]
    count = max(1, BLOCK_PAIRS // size)
    for start in range(0, size, count * every):
        here = slice(start, start + count * every, every)
        block = adjacency.isel(node_target=here)
        weights = block["weight"].values.astype(np.float64)
        floor = floors(block).values.astype(np.float64)
        if is_top(adjacency):
            full = np.repeat(floor[:, None], size, axis=1)
            np.put_along_axis(full, block["source_node"].values.astype(np.intp), weights, axis=1)
            weights = full
        yield here, weights - floor[:, None] if above_floor else weights


def distance_rows(grid: Grid, rows: slice) -> Array:
    """Return the great-circle distances of some nodes to all, km, shape (rows, N)."""
    latitude, longitude = nodes(grid)
    return great_circle_km(latitude[rows, None], longitude[rows, None], latitude, longitude)
