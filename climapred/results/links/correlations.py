"""What an adjacency tells: whom a place listens to, who listens to it, over what distance, and which places are hubs.

All of it is from an adjacency in either layout of ``climapred.results.links.adjacency``, which tells of weights and floors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from climapred.grid import Array, Grid, cell_areas, great_circle_km
from climapred.results.links.adjacency import column, distance_rows, floors, grid_of, is_top, nodes, row, row_blocks

Direction = Literal["listens", "heard"]
Places = npt.NDArray[np.intp]


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
        adjacency: in either layout.
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
    grid = grid_of(adjacency)
    node = nearest_node(grid, latitude, longitude)
    weights = row(adjacency, node) if direction == "listens" else column(adjacency, node)
    if above_floor:
        floor = floors(adjacency.isel(node_target=[node]))[0] if direction == "listens" else floors(adjacency)
        weights = weights - floor
    point_latitude, point_longitude = (float(axis[node]) for axis in nodes(grid))
    place = f"{point_latitude:g} N, {point_longitude:g} E"
    listener, source = (place, "each point") if direction == "listens" else ("each point", place)
    return xr.DataArray(
        weights.data.reshape(grid.shape),
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
    where fewer pairs are that far apart, or where the top layout lists fewer. Equal weights are in the order of the nodes.

    Returns:
        Columns target_latitude, target_longitude, source_latitude, source_longitude (degrees), distance_km
        and weight, the raw one.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    grid = grid_of(adjacency)
    best = {name: np.empty(0) for name in ("weight", "distance_km", "target", "source")}
    for targets, sources, weights in _pairs(adjacency):
        distances = _distances(grid, targets, sources)
        far = np.flatnonzero(distances >= min_km)
        if far.size > k:
            far = far[np.argpartition(weights[far], -k)[-k:]]
        block = (weights[far], distances[far], targets[far], sources[far])
        best = {name: np.concatenate([old, new]) for (name, old), new in zip(best.items(), block, strict=True)}
        order = np.lexsort((best["source"], best["target"], -best["weight"]))[:k]
        best = {name: values[order] for name, values in best.items()}
    latitude, longitude = nodes(grid)
    ends = {
        f"{side}_{name}": values[best[side].astype(int)]
        for side in ("target", "source")
        for name, values in (("latitude", latitude), ("longitude", longitude))
    }
    links = pd.DataFrame({**ends, "distance_km": best["distance_km"], "weight": best["weight"]})
    links.attrs["min_km"] = min_km
    return links


def thinned(links: pd.DataFrame, k: int, *, apart_km: float = 1000.0) -> pd.DataFrame:
    """Return the first ``k`` links that are no neighbours of a stronger one: its source or its target is this far away.

    Neighbouring points say the same: the strongest fifty links of a fine grid may join the same two regions.

    Args:
        links: as ``strongest_links`` returns them, many more than are wanted.
        k: how many are kept, at most.
        apart_km: great-circle distance from which two sources, or two targets, are different places.
    """
    sides = [links[[f"{side}_latitude", f"{side}_longitude"]].to_numpy(np.float64) for side in ("source", "target")]
    kept: list[int] = []
    for at in range(len(links)):
        near = np.ones(len(kept), dtype=bool)
        for ends in sides:
            near &= great_circle_km(*ends[at], *ends[kept].T) < apart_km
        if not near.any():
            kept.append(at)
        if len(kept) == k:
            break
    return links.iloc[kept].reset_index(drop=True)


def weight_by_distance(
    adjacency: xr.Dataset, bins_km: npt.ArrayLike, *, above_floor: bool = False, every: int = 1
) -> xr.Dataset:
    """Return the mean weight of the pairs in each bin of great-circle distance.

    Args:
        adjacency: in either layout.
        bins_km: edges of the bins, km, increasing; a bin holds its lower edge, the last one both. Pairs
            outside all bins are not counted.
        above_floor: subtract from each weight the floor of its row.
        every: take only every second, third, ... target, where N x N pairs are too many.

    Returns:
        Dims ("distance",), the centres of the bins in km; variables ``weight`` (the mean; NaN where a bin is
        empty) and ``count`` (pairs); coordinates ``distance_lower`` and ``distance_upper``.
    """
    edges = np.asarray(bins_km, dtype=np.float64)
    if edges.ndim != 1 or edges.size < 2 or not (np.diff(edges) > 0).all():
        raise ValueError(f"bins_km must be at least two increasing edges in km, got {edges}")
    total, count = np.zeros(edges.size - 1), np.zeros(edges.size - 1, dtype=np.int64)
    grid = grid_of(adjacency)
    for rows, weights in row_blocks(adjacency, above_floor=above_floor, every=every):
        distances = distance_rows(grid, rows)
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


def hub_map(adjacency: xr.Dataset, *, min_km: float = 0.0, above_floor: bool = True) -> xr.Dataset:
    """Return how much each place listens in all, and how much it is heard: sums over rows and columns as fields.

    A row of a softmax sums to 1 whatever it learned; above the floor, and beyond some distance, the sums differ, and tell
    the hubs. With the areas a of the cells,

        listens_i = sum_j w_ij        heard_j = sum_i a_i w_ij / mean a

    so that it counts over what area a place is heard: the many small cells near a pole are not many listeners. The mean of
    ``heard`` over the points is the area mean of ``listens``.

    Args:
        adjacency: in either layout. Pairs that the top layout does not list have the floor of their row.
        min_km: shortest distance that counts; from 1 km on, a place and itself do not.
        above_floor: subtract from each weight the floor of its row.

    Returns:
        ``listens`` and ``heard``, dims (latitude, longitude), float64.
    """
    grid = grid_of(adjacency)
    areas = cell_areas(grid).ravel()
    listens, heard = np.zeros(grid.size), np.zeros(grid.size)
    if is_top(adjacency) and above_floor:  # what is not listed adds nothing
        for targets, sources, weights in _pairs(adjacency):
            above = np.where(
                _distances(grid, targets, sources) >= min_km, weights - floors(adjacency).values[targets], 0
            )
            listens += np.bincount(targets, above, grid.size)
            heard += np.bincount(sources, areas[targets] * above, grid.size)
    else:
        for rows, weights in row_blocks(adjacency, above_floor=above_floor):
            if min_km > 0:
                weights = np.where(distance_rows(grid, rows) >= min_km, weights, 0.0)
            listens[rows] = weights.sum(axis=1)
            heard += areas[rows] @ weights
    heard /= areas.mean()
    told = f"beyond {min_km:g} km" if min_km > 0 else ""
    told = ", ".join(filter(None, [told, "above the floor of each row" if above_floor else ""]))
    attributes = {"units": "1", "min_km": float(min_km), "above_floor": int(above_floor)}
    meanings = {
        "listens": "weight with which a point listens, in all",
        "heard": "weight with which it is heard, in all",
    }
    fields = {"listens": listens, "heard": heard}
    return xr.Dataset(
        {
            name: (
                ("latitude", "longitude"),
                values.reshape(grid.shape),
                {**attributes, "long_name": ", ".join(filter(None, [meanings[name], told]))},
            )
            for name, values in fields.items()
        },
        coords=grid.coordinates(),
    )


def _distances(grid: Grid, targets: Places, sources: Places) -> Array:
    latitude, longitude = nodes(grid)
    return great_circle_km(latitude[targets], longitude[targets], latitude[sources], longitude[sources])


def _pairs(adjacency: xr.Dataset) -> Iterator[tuple[Places, Places, Array]]:
    """Yield (targets, sources, weights) of all pairs that are in an adjacency, flat, a block of rows at a time."""
    if is_top(adjacency):
        sources = adjacency["source_node"].values.astype(np.intp)
        targets = np.repeat(np.arange(len(sources)), sources.shape[1])
        yield targets, sources.ravel(), adjacency["weight"].values.astype(np.float64).ravel()
        return
    for rows, weights in row_blocks(adjacency):
        places: Places = np.indices(weights.shape)
        yield places[0].ravel() + rows.start, places[1].ravel(), weights.ravel()


def nearest_node(grid: Grid, latitude: float, longitude: float) -> int:
    """Return the node nearest to a place.

    Raises:
        ValueError: if it lies outside the region.
    """
    (south, north), (west, east) = grid.latitude_bounds[[0, -1]], grid.longitude_bounds[[0, -1]]
    if not (south <= latitude <= north and (longitude - west) % 360 <= east - west):
        raise ValueError(
            f"the point {latitude:g} N, {longitude:g} E lies outside the region of the adjacency, "
            f"{south:g}..{north:g} N, {west:g}..{east:g} E"
        )
    distance = great_circle_km(latitude, longitude, grid.latitude[:, None], grid.longitude)
    return int(np.argmin(distance))
