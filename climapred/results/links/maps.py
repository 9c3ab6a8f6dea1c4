"""Figures of learned links: a map of one place, arcs of the strongest links, hubs, weight against distance.

As in climapred.results.maps every function returns a Figure and touches no global state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap, Normalize
from matplotlib.figure import Figure

from climapred.grid import Array, Grid
from climapred.results.captions import degrees, origin, quantity
from climapred.results.geography import PALE, Geography, from_antimeridian
from climapred.results.sheet import (
    OKABE_ITO,
    blank_figure,
    colour_bar,
    colour_scale,
    label_sides,
    map_sheet,
    place_axes,
    with_dims,
    write_footer,
)

_DIMS = ("latitude", "longitude")
_BETWEEN = 1.25  # inches between two maps that have a colour bar each
_ARC_POINTS = 65


def plot_correlations(
    correlation: xr.DataArray,
    *,
    point: tuple[float, float],
    pearson: xr.DataArray | None = None,
    significant: xr.DataArray | None = None,
    title: str | None = None,
    limits: tuple[float, float] | None = None,
    label: str | None = None,
) -> Figure:
    """Return a map of the learned weights of one place, marked by a star; beside it the plain correlation, if it is given.

    The place and its neighbours often outweigh all others; by default the scale ends at percentile 99.5.

    Args:
        correlation: dims (latitude, longitude), as ``correlation_map`` makes it.
        point: latitude and longitude of the place, degrees.
        pearson: on the same grid, as ``point_correlation`` makes it.
        significant: bool, on the same grid, as ``links.significance.significant`` makes it; other cells of the map of weights
            are stippled.
        title: by default what the map shows of which place.
        limits: of the colour scale of the weights.
        label: of their colour bar.

    Raises:
        ValueError: if the fields are on different grids, or the point is outside.
    """
    correlation = from_antimeridian(with_dims(correlation, _DIMS))
    geography = Geography.of(correlation)
    beside = [_on_grid(pearson, geography.grid, "pearson")] if pearson is not None else []
    norm, extend = colour_scale(correlation.values, limits, floor=min(0.0, float(correlation.min())), upper=99.5)
    place = f"{degrees(point[0], 'NS')} {degrees(point[1], 'EW')}"
    titles = {
        "listens": f"Learned weights: what {place} listens to",
        "heard": f"Learned weights: what listens to {place}",
    }
    title = title or titles.get(correlation.attrs.get("direction", ""), quantity(correlation))
    figure, [panels] = map_sheet(geography, [bool(beside)], 1 + len(beside), title, gap=_BETWEEN)
    mesh = geography.draw(panels[0], correlation.values, cmap="magma_r", norm=norm)
    default = "Learned weight" + (", above the floor" if correlation.attrs.get("above_floor") else "")
    colour_bar(figure, mesh, panels[:1], label or default, extend)
    for field, panel in zip(beside, panels[1:], strict=True):
        mesh = geography.draw(panel, field.values, ["bottom"], cmap="RdBu_r", norm=Normalize(-1, 1))
        colour_bar(figure, mesh, [panel], "Correlation coefficient", "neither")
        panels[0].set_title("Learned", fontsize=8.5, pad=4)
        panel.set_title(f"Pearson's {quantity(field)}", fontsize=8.5, pad=4)
    star = {"marker": "*", "markersize": 13, "markeredgecolor": "black", "markeredgewidth": 0.8}
    for panel in panels:
        x, y = geography.place(point)
        panel.plot(x, y, color=OKABE_ITO[5], zorder=4, **star)
    notes = [f"star: {place}", origin(correlation)]
    if significant is not None:
        mask = _on_grid(significant, geography.grid, "significant")
        geography.stipple(panels[0], ~mask.values.astype(bool))
        level = significant.attrs.get("level")
        notes.append("dots: not significant" + (f" (false discovery rate {level:g})" if level else ""))
    write_footer(figure, *notes)
    return figure


def _on_grid(field: xr.DataArray, grid: Grid, name: str) -> xr.DataArray:
    field = from_antimeridian(with_dims(field, _DIMS))
    if Grid.of(field) != grid:
        raise ValueError(f"{name} must be on the grid of the weights, {grid}, got {Grid.of(field)}")
    return field


# --- arcs ---


def great_circle(start: tuple[float, float], stop: tuple[float, float], count: int = _ARC_POINTS) -> Array:
    """Return points of the shortest way between two places (latitude, longitude), shape (count, 2): longitude, latitude.

    Longitudes are within 180 degrees of each other from point to point, so that an arc over the date line goes on to 185.
    Between antipodes, any way is shortest; one over a pole is taken.

    >>> great_circle((0, 170), (0, -170), count=3).round(6)
    array([[170.,   0.],
           [180.,   0.],
           [190.,   0.]])
    """
    ends = np.radians(np.array([start, stop], dtype=np.float64))
    first, last = (
        np.array([np.cos(phi) * np.cos(along), np.cos(phi) * np.sin(along), np.sin(phi)]) for phi, along in ends
    )
    ahead = last - (first @ last) * first  # the direction in which to set out
    if np.linalg.norm(ahead) < 1e-9:
        ahead = np.array([0.0, 0.0, 1.0]) - first[2] * first
        ahead = ahead if np.linalg.norm(ahead) > 1e-9 else np.array([1.0, 0.0, 0.0])
    angle = np.arctan2(np.linalg.norm(np.cross(first, last)), first @ last)
    steps = np.linspace(0, angle, count)[:, None]
    x, y, z = (np.cos(steps) * first + np.sin(steps) * ahead / np.linalg.norm(ahead)).T
    longitude = np.degrees(np.unwrap(np.arctan2(y, x)))
    longitude += 360 * np.round((start[1] - longitude[0]) / 360)
    return np.stack([longitude, np.degrees(np.arcsin(np.clip(z, -1, 1)))], axis=-1)


def plot_links(
    links: pd.DataFrame, grid: Grid, *, title: str | None = None, source: str = "", cmap: str | Colormap | None = None
) -> Figure:
    """Return a map of links as arcs of great circles, from a ring at the source to a dot at the target, which listens.

    Stronger links are darker, wider and on top. Arcs go over the edge of a map and come in again on the other side.

    Args:
        links: as ``strongest_links`` returns them, or ``thinned``; of each region one link tells more than fifty of its
            neighbours. Without any the map is empty, and says so.
        grid: of the nodes, for the extent of the map.
        title: by default what the links are: of what length, and, where ``links.attrs`` say so, significant.
        source: for the grey line: the model.
        cmap: by default the darker part of magma.
    """
    blank = xr.DataArray(np.zeros(grid.shape), grid.coordinates(), _DIMS)
    geography = Geography.of(from_antimeridian(blank))
    shortest = f" beyond {links.attrs['min_km']:,g} km" if links.attrs.get("min_km") else ""
    kind = "significant learned" if links.attrs.get("significant") else "learned"
    told = f"{kind.capitalize()} links" if len(links) else f"No {kind} link"
    figure, [[axes]] = map_sheet(
        geography, [False], 1, title or f"{told}{shortest}{', the strongest' * bool(len(links))}"
    )
    geography.draw(axes, np.zeros(geography.grid.shape), cmap=ListedColormap(["#F3F3F1"]), norm=Normalize(0, 1))
    if links.empty:
        write_footer(figure, origin(blank.assign_attrs(source=source)))
        return figure
    links = links.sort_values("weight", kind="stable")
    low, high = float(links["weight"].min()), float(links["weight"].max())
    norm = Normalize(low if low < 0.95 * high else 0.0, high)  # weights that are all alike are all dark
    colours = _dark(cmap)
    columns = ("source_latitude", "source_longitude", "target_latitude", "target_longitude", "weight")
    for rank, (*places, weight) in enumerate(links[list(columns)].to_numpy(np.float64).tolist()):
        strength = float(norm(weight))
        colour, order = colours(strength), 3 + rank / (len(links) + 1)
        ends = ((places[0], places[1]), (places[2], places[3]))
        arc = geography.paths([great_circle(*ends)])
        lines = LineCollection(arc, colors=[colour], linewidths=0.8 + 1.8 * strength, capstyle="round", zorder=order)
        axes.add_collection(lines, autolim=False)
        for end, face, size in zip(ends, ("white", colour), (4.0, 5.0), strict=True):
            x, y = geography.place(end)
            axes.plot(x, y, "o", markersize=size, color=face, markeredgecolor=colour, markeredgewidth=1.0, zorder=order)
    bar = axes.scatter([], [], c=[], cmap=colours, norm=norm)
    colour_bar(figure, bar, [axes], "Learned weight", "neither")
    write_footer(figure, "ring: source, dot: target, which listens", origin(blank.assign_attrs(source=source)))
    return figure


def _dark(cmap: str | Colormap | None) -> Colormap:
    """Return colours that stand out on a pale ground: magma without its light third."""
    from matplotlib import colormaps

    if cmap is not None:
        return colormaps[cmap] if isinstance(cmap, str) else cmap
    return LinearSegmentedColormap.from_list("climapred.links", colormaps["magma_r"](np.linspace(0.28, 1, 256)))


# --- hubs ---


def plot_hubs(
    hubs: xr.Dataset, *, title: str | None = None, limits: tuple[float, float] | None = None, source: str = ""
) -> Figure:
    """Return two maps on one scale: how much each place listens, and how much it is heard.

    Args:
        hubs: as ``hub_map`` returns them.
        title: by default what is counted.
        limits: of the colour scale; it begins at 0 by default.
        source: for the grey line: the model.
    """
    fields = [from_antimeridian(with_dims(hubs[name], _DIMS)) for name in ("listens", "heard")]
    about, geography = fields[0].attrs, Geography.of(fields[0])
    far = f" beyond {about['min_km']:,g} km" if about.get("min_km") else ""
    both = np.stack([field.values for field in fields])
    norm, extend = colour_scale(both, limits, floor=min(0.0, float(both.min())), upper=99.8)
    figure, [panels] = map_sheet(geography, [True], 2, title or f"Hubs of the learned links{far}")
    heads = ("Listens: sum of its row", "Is heard: sum of its column, listeners by area")
    for number, (panel, field, head) in enumerate(zip(panels, fields, heads, strict=True)):
        mesh = geography.draw(panel, field.values, label_sides(True, number), cmap="magma_r", norm=norm)
        panel.set_title(head, fontsize=8.5, pad=4)
    colour_bar(
        figure, mesh, panels, "Sum of weights" + (", above the floor" if about.get("above_floor") else ""), extend
    )
    write_footer(figure, origin(fields[0].assign_attrs(source=source)))
    return figure


# --- weight against distance ---


def plot_distances(
    curves: xr.Dataset | Mapping[str, xr.Dataset],
    *,
    uniform: float | None = None,
    title: str = "Learned weight against distance",
    source: str = "",
) -> Figure:
    """Return the mean weight of the pairs at each distance, on a logarithmic scale; one curve for each model.

    Args:
        curves: as ``weight_by_distance`` returns it; several under the names of their models.
        uniform: a weight to mark: 1 / N, what each pair would have if all were alike.
        title: of the figure.
        source: for the grey line.
    """
    named = {"": curves} if isinstance(curves, xr.Dataset) else dict(curves)
    figure = blank_figure(7.4, 4.3, title)
    axes = place_axes(figure, (0.85, 0.85, 5.0, 2.85))
    for (name, curve), style in zip(named.items(), _styles(), strict=False):
        weight = curve["weight"].where(curve["weight"] > 0)
        axes.plot(curve["distance"].values, weight.values, label=name or "mean of the pairs", **style)
    if uniform is not None:
        axes.axhline(uniform, color=PALE, linewidth=1.0, linestyle="--", label="all pairs alike: 1 / N")
    axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.set_xlabel("Great-circle distance (km)", fontsize=8)
    axes.set_ylabel("Mean learned weight", fontsize=8)
    axes.tick_params(labelsize=7, width=0.6, which="both")
    axes.grid(color="#E3E3E3", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7.5, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    write_footer(figure, source[:90])
    return figure


def _styles() -> Iterator[dict[str, Any]]:
    for index in range(18):
        yield {
            "color": OKABE_ITO[index % len(OKABE_ITO)],
            "linestyle": ("-", "-.", ":")[index // len(OKABE_ITO)],
            "marker": "osD^vP"[index % 6],
            "markersize": 3.5,
            "linewidth": 1.6,
        }
