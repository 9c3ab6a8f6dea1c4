"""Figures of the learned correlations of a file, for ``climapred plot correlations`` and for the maps of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr

from climapred.grid import Grid
from climapred.results.links.adjacency import distance_rows, grid_of, row_blocks
from climapred.results.links.correlations import (
    Direction,
    hub_map,
    nearest_node,
    strongest_links,
    thinned,
    weight_by_distance,
)
from climapred.results.links.maps import plot_distances, plot_hubs, plot_links
from climapred.results.links.pearson import anomalies, point_correlation
from climapred.results.links.significance import significant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Show = Literal["map", "arcs", "hubs", "distance"]

_CANDIDATES = 200  # strong links that are looked at for one arc
_BINS = 40
_MOST_PAIRS = 50_000_000  # of a curve; of a larger grid every second, third, ... point stands for the rest


def links_figure(
    show: Show,
    adjacency: xr.Dataset,
    *,
    source: str = "",
    title: str | None = None,
    min_km: float = 1000.0,
    count: int = 30,
) -> Figure:
    """Return a figure of a whole adjacency: "arcs", "hubs" or "distance".

    Args:
        show: what.
        adjacency: in either layout; where it has p-values, arcs are of significant links only.
        source: the model, for the grey line.
        title: in place of the default.
        min_km: shortest links that count for arcs and hubs.
        count: most arcs; neighbours of a stronger link are left out.
    """
    grid = grid_of(adjacency)
    if show == "hubs":
        return plot_hubs(hub_map(adjacency, min_km=min_km), title=title, source=source)
    if show == "distance":
        longest = _extent(grid)
        every = max(1, grid.size**2 // _MOST_PAIRS)
        curve = weight_by_distance(adjacency, np.linspace(0, longest, _BINS + 1), every=every)
        told = title or "Learned weight against distance"
        return plot_distances(curve, uniform=1 / grid.size, title=told, source=source)
    links = strongest_links(_significant_only(adjacency, grid, min_km), _CANDIDATES * count, min_km=min_km)
    links = links[links["weight"] > 0]
    links.attrs["significant"] = "p_value" in adjacency
    return plot_links(thinned(links, count, apart_km=min(min_km, 1000.0)), grid, title=title, source=source)


def far_enough(grid: Grid) -> float:
    """Return what counts as long range on a grid: 1,000 km, less where a third of its extent is.

    >>> far_enough(Grid.regular(5)), far_enough(Grid.regular(0.25, region=(50, 58, -10, 2)))
    (1000.0, 300.0)
    """
    return min(1000.0, _extent(grid) // 300 * 100)


def _extent(grid: Grid) -> float:
    return max(float(distance_rows(grid, slice(row, row + 1)).max()) for row in (0, grid.size // 2, grid.size - 1))


def _significant_only(adjacency: xr.Dataset, grid: Grid, min_km: float) -> xr.Dataset:
    """Return an adjacency without the weights that are not significant among the pairs beyond a distance."""
    if "p_value" not in adjacency:
        return adjacency
    far = np.concatenate([distance_rows(grid, rows) >= min_km for rows, _ in row_blocks(adjacency)])
    kept = significant(adjacency["p_value"].load().where(far))
    return adjacency.assign(weight=adjacency["weight"].where(kept, 0))


def map_significance(adjacency: xr.Dataset, weights: xr.DataArray, level: float = 0.05) -> xr.DataArray | None:
    """Return where the weights of a ``correlation_map`` are significant among all of that map; None without p-values."""
    if "p_value" not in adjacency:
        return None
    node = nearest_node(grid_of(adjacency), weights.attrs["point_latitude"], weights.attrs["point_longitude"])
    side = "node_target" if weights.attrs["direction"] == "listens" else "node_source"
    p_values = adjacency["p_value"].isel({side: node}).values.reshape(weights.shape)
    return significant(weights.copy(data=p_values), level)


def training_correlation(
    field: xr.DataArray,
    statistics: xr.Dataset,
    grid: Grid,
    place: tuple[float, float],
    *,
    direction: Direction = "listens",
) -> xr.DataArray:
    """Return Pearson's correlation of the anomalies of the training times with a place, at the points of ``grid``.

    Args:
        field: dims (time, latitude, longitude), all times.
        statistics: of the training times, which they name.
        grid: of the adjacency: all points of the field, or some.
        place: latitude and longitude.
        direction: of the map that it stands beside.
    """
    training = field.sel(time=slice(statistics.attrs["training_start"], statistics.attrs["training_stop"]))
    found = anomalies(training, statistics).sel(latitude=grid.latitude, longitude=grid.longitude)
    return point_correlation(found, *place, direction=direction).load()
