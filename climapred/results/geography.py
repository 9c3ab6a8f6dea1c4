"""Where a field lies on a map: the projection that suits its region, cell edges, coasts, borders and graticule.

Nothing here needs a network: coastlines_110m.npz and coastlines_50m.npz lie next to this file. They hold Natural
Earth 4.1 country boundaries (naturalearthdata.com, public domain; boundaries are drawn de facto), decoded from the
TopoJSON of the npm package world-atlas 2.0.2: ``points`` (n, 2) int16, longitude and latitude in 1/180 degree;
``starts``, the first point of each line and the end; ``border``, true for lines between two countries, false for
coast. The edges that close polygons along 180 E and at the South Pole are left out.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import cartopy.crs as ccrs
import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.collections import LineCollection
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.patheffects import withStroke

from climapred.grid import Array, Grid
from climapred.results.captions import degrees

Mask = npt.NDArray[np.bool_]

PALE = "#777777"  # of frames and small print


@dataclass(frozen=True)
class _Label:
    """Degrees beside a line of the graticule; ``side`` is "left", "bottom" or, about a pole, "round"."""

    text: str
    position: Array
    outward: Array
    side: str

    @property
    def place(self) -> dict[str, Any]:
        """Return where the text stands: a few points out of the map, about a pole a few points inside it."""
        if self.side == "round":
            return {"xytext": -9 * self.outward, "textcoords": "offset points", "ha": "center", "va": "center"}
        outward = np.where([True, self.side == "left"], self.outward, -1)
        x, y = np.sign(np.round(outward))
        return {
            "xytext": 4 * outward,
            "textcoords": "offset points",
            "ha": {-1: "right", 0: "center", 1: "left"}[x],
            "va": {-1: "top", 0: "center", 1: "bottom"}[y],
        }


@dataclass(frozen=True)
class Geography:
    """What the panels of a figure share: the projection and everything drawn on it, in its coordinates.

    Attributes:
        grid: the cells to draw; of a periodic grid the ones from the antimeridian on.
        projection: cartopy projection, chosen by the region.
        edge: outline of all cells, shape (n, 2).
        coast, borders, graticule: lines, each of shape (n, 2).
        labels: of the lines of the graticule.
    """

    grid: Grid
    projection: ccrs.Projection
    edge: Array
    coast: list[Array]
    borders: list[Array]
    graticule: list[Array]
    labels: list[_Label]

    @classmethod
    def of(cls, field: xr.DataArray) -> Geography:
        """Return the geography of a field that ``from_antimeridian`` returned."""
        grid = Grid.of(field)
        projection = _projection(grid)
        graticule, labels = _graticule(grid, projection)
        coast = _project_lines(projection, lines_within(grid, border=False))
        borders = _project_lines(projection, lines_within(grid, border=True))
        edge = _project(projection, _edge(grid, polar=isinstance(projection, ccrs.Stereographic)))
        return cls(grid, projection, edge, coast, borders, graticule, labels)

    @property
    def aspect(self) -> float:
        """Height over width."""
        width, height = np.ptp(self.edge, axis=0)
        return float(height / width)

    @cached_property
    def corners(self) -> Array:
        """Corners of the cells, projected, shape (H + 1, W + 1, 2)."""
        longitude, latitude = np.meshgrid(self.grid.longitude_bounds, self.grid.latitude_bounds)
        corners = _project(self.projection, np.stack([longitude, latitude], axis=-1))
        if isinstance(self.projection, ccrs.Stereographic):
            corners[:, -1] = corners[:, 0]  # one and the same edge: a gap of a nanometre can be drawn as a line
        return corners

    def draw(self, axes: Any, values: Array, sides: Collection[str] = ("left", "bottom"), **scale: Any) -> Any:
        """Draw a field (H, W) and return the mesh; ``sides`` get labels of degrees."""
        axes.set_boundary(Outline(self.edge))
        x, y = np.moveaxis(self.corners, -1, 0)
        mesh = axes.pcolormesh(x, y, values, rasterized=True, zorder=1, **scale)
        halo = [withStroke(linewidth=1.3, foreground="white", alpha=0.5)]
        for lines, style in (
            (self.graticule, {"linewidths": 0.4, "colors": "#55555566"}),
            (self.borders, {"linewidths": 0.5, "colors": "#222222", "path_effects": halo}),
            (self.coast, {"linewidths": 0.6, "colors": "#222222", "path_effects": halo}),
        ):
            axes.add_collection(LineCollection(lines, capstyle="round", zorder=2, **style), autolim=False)
        glow = [withStroke(linewidth=2.2, foreground="white", alpha=0.85)]
        text: dict[str, Any] = {"fontsize": 6.5, "color": "#333333"}
        for label in self.labels:
            if label.side in (*sides, "round"):
                axes.annotate(label.text, label.position, path_effects=glow, zorder=4, **text, **label.place)
        axes.set_facecolor("#DDDDDD")  # where values are missing
        axes.spines["geo"].set(linewidth=0.6, edgecolor=PALE)
        (west, south), (east, north) = self.edge.min(axis=0), self.edge.max(axis=0)
        axes.set(xlim=(west, east), ylim=(south, north))
        return mesh

    def isoline(self, axes: Any, values: Array, level: float) -> Any:
        """Draw where a field (H, W) crosses a level, dashed, and return the line; None where it does not.

        A periodic field gets its seam as a column on either side, the mean of the columns that meet there: the line
        runs to both edges of the map, and closes about a pole.
        """
        finite = values[np.isfinite(values)]
        if not finite.size or not finite.min() < level < finite.max():
            return None
        columns = self.grid.longitude
        if self.grid.periodic:
            seam = values[:, [0, -1]].mean(axis=1, keepdims=True)
            values = np.concatenate([seam, values, seam], axis=1)
            columns = np.concatenate([self.grid.longitude_bounds[:1], columns, self.grid.longitude_bounds[-1:]])
        longitude, latitude = np.meshgrid(columns, self.grid.latitude)
        x, y = np.moveaxis(_project(self.projection, np.stack([longitude, latitude], axis=-1)), -1, 0)
        style: dict[str, Any] = {"colors": "#1B2A6B", "linewidths": 0.8, "linestyles": "--", "zorder": 3}
        return axes.contour(x, y, np.ma.masked_invalid(values), [level], **style)

    def hatch(self, axes: Any, mask: Mask) -> None:
        """Hatch the cells where ``mask`` (H, W) is true, to their very edges."""
        if not mask.any():
            return
        outlines = []
        for row, first, stop in _runs(mask):
            south, north = self.corners[row : row + 2, first : stop + 1]
            outlines.append(Outline(np.concatenate([south, north[::-1], south[:1]]), closed=True))
        area = Outline.make_compound_path(*outlines)
        axes.add_patch(PathPatch(area, hatch="/////", facecolor="none", edgecolor="#33333399", linewidth=0, zorder=1.5))

    def stipple(self, axes: Any, mask: Mask) -> None:
        """Put a dot on the cells where ``mask`` (H, W) is true; on fine grids on every second, third, ... of them."""
        longitude, latitude = np.meshgrid(self.grid.longitude, self.grid.latitude)
        x, y = np.moveaxis(_project(self.projection, np.stack([longitude, latitude], axis=-1)), -1, 0)
        step = -(-max(mask.shape) // 60)
        shown = np.zeros_like(mask)
        shown[step // 2 :: step, step // 2 :: step] = True
        shown &= mask
        axes.scatter(x[shown], y[shown], s=1.6, color="#444444", linewidths=0, alpha=0.6, zorder=2.5)

    def paths(self, lines: Iterable[Array]) -> list[Array]:
        """Return lines of longitude and latitude, (n, 2) each, in the projection.

        They are cut in two where they cross the meridian opposite the middle of the map.
        """
        middle = float(self.grid.longitude_bounds[[0, -1]].mean())
        pieces: list[Array] = []
        for line in lines:
            wrapped = np.stack([(line[:, 0] - middle + 180) % 360 + middle - 180, line[:, 1]], axis=-1)
            points, joined = _cut_at_seam(wrapped, np.ones(len(line) - 1, dtype=bool), middle)
            pieces += [piece for piece in np.split(points, np.flatnonzero(~joined) + 1) if len(piece) > 1]
        return _project_lines(self.projection, pieces)

    def place(self, point: tuple[float, float]) -> Array:
        """Return where a latitude and longitude lie in the projection, shape (2,).

        Raises:
            ValueError: if the point is not inside the grid.
        """
        (south, north), (west, east) = self.grid.latitude_bounds[[0, -1]], self.grid.longitude_bounds[[0, -1]]
        latitude, longitude = point[0], west + (point[1] - west) % 360
        if not (south <= latitude <= north and longitude <= east):
            raise ValueError(f"point must be (latitude, longitude) inside {self.grid}, got {point}")
        return _project(self.projection, np.array([longitude, latitude]))


def _runs(mask: Mask) -> Iterator[tuple[int, int, int]]:
    """Yield row, first and past-the-last column of every run of true cells.

    >>> list(_runs(np.array([[False, True, True], [True, False, True]])))
    [(0, 1, 3), (1, 0, 1), (1, 2, 3)]
    """
    steps = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, firsts = np.nonzero(steps == 1)
    stops = np.nonzero(steps == -1)[1]
    yield from zip(rows.tolist(), firsts.tolist(), stops.tolist(), strict=True)


def from_antimeridian(field: xr.DataArray) -> xr.DataArray:
    """Roll a periodic field to start at 180 W: its map is centred on Greenwich and cut between two cells."""
    if not Grid.of(field).periodic:
        return field
    return field.assign_coords(longitude=(field["longitude"] + 180) % 360 - 180).sortby("longitude")


def _projection(grid: Grid) -> ccrs.Projection:
    """Return the projection that shows a region as an atlas would.

    Global: Robinson. Round a pole: stereographic. Middle latitudes, wider than 30 degrees: Lambert conformal, with the
    standard parallels a sixth of the height inside. Small: Mercator. Tropical, and anything else: plate carrée.
    """
    (south, north), (west, east) = grid.latitude_bounds[[0, -1]], grid.longitude_bounds[[0, -1]]
    middle, width, height = (west + east) / 2, east - west, north - south
    latitude = (south + north) / 2
    extratropical = abs(latitude) > 25 and (south > -5 or north < 5)
    if grid.periodic and height > 120:
        return ccrs.Robinson(central_longitude=middle)
    if grid.periodic and extratropical:
        stereographic = ccrs.NorthPolarStereo if latitude > 0 else ccrs.SouthPolarStereo
        return stereographic(central_longitude=middle)
    if extratropical and (width > 30 or max(-south, north) > 75):
        return ccrs.LambertConformal(
            central_longitude=middle,
            central_latitude=latitude,
            standard_parallels=(south + height / 6, north - height / 6),
            cutoff=-30 if latitude > 0 else 30,
        )
    if width <= 30 and max(-south, north) <= 75:
        return ccrs.Mercator(central_longitude=middle)
    return ccrs.PlateCarree(central_longitude=middle)


def _project(projection: ccrs.Projection, points: Array) -> Array:
    """Project longitudes and latitudes, shape (..., 2).

    Both edges of a map are the same meridian; a hair inside, rounding cannot swap them. Plate carrée has a prime
    meridian in place of the central longitude.
    """
    parameters = projection.proj4_params
    middle = parameters.get("lon_0", parameters.get("pm", 0.0))
    longitude = np.clip(points[..., 0].ravel(), middle - 180 + 1e-9, middle + 180 - 1e-9)
    projected = projection.transform_points(ccrs.PlateCarree(), longitude, points[..., 1].ravel())
    return np.asarray(projected[:, :2].reshape(points.shape))


def _project_lines(projection: ccrs.Projection, lines: Iterable[Array]) -> list[Array]:
    lines = list(lines)
    if not lines:
        return []
    ends = np.cumsum([len(line) for line in lines])
    return np.split(_project(projection, np.concatenate(lines)), ends[:-1])


def _edge(grid: Grid, *, polar: bool) -> Array:
    """Return the outer corners of the outer cells in degrees; about a pole only those far from it."""
    latitude, longitude = grid.latitude_bounds, grid.longitude_bounds
    if polar:
        return np.stack([longitude, np.full(longitude.shape, _outer(grid))], axis=-1)
    south, north = (np.stack([longitude, np.full(longitude.shape, latitude[end])], axis=-1) for end in (0, -1))
    west, east = (np.stack([np.full(latitude.shape, longitude[end]), latitude], axis=-1) for end in (0, -1))
    return np.concatenate([south, east, north[::-1], west[::-1]])


def _line(start: tuple[float, float], stop: tuple[float, float]) -> Array:
    return np.linspace(start, stop, 181)


def _outer(grid: Grid) -> float:
    """Return the latitude of the edge that is nearer the equator."""
    return float(min(grid.latitude_bounds[[0, -1]], key=abs))


def _graticule(grid: Grid, projection: ccrs.Projection) -> tuple[list[Array], list[_Label]]:
    """Return meridians and parallels at round degrees, and their labels: south and west of the map.

    About a pole all labels stand inside the map. Labels near a corner would meet those of the next panel and are
    left out.
    """
    (south, north), (west, east) = grid.latitude_bounds[[0, -1]], grid.longitude_bounds[[0, -1]]
    polar = isinstance(projection, ccrs.Stereographic)
    edge = _outer(grid) if polar else south
    inside = 1e-3 if edge == south else -1e-3
    lines: list[Array] = []
    labels: list[_Label] = []
    for longitude in _round_degrees(west, east):
        lines.append(_line((longitude, south), (longitude, north)))
        crowded = isinstance(projection, ccrs.Robinson) and longitude % 120  # the pole line is half as long
        if longitude < west + 360 if polar else _within(longitude, west, east) and not crowded:
            place = _outward(projection, (longitude, edge), (longitude, edge + inside))
            labels.append(_Label(degrees(longitude, "EW"), *place, side="round" if polar else "bottom"))
    for latitude in _round_degrees(south, north):
        lines.append(_line((west, latitude), (east, latitude)))
        if not _within(latitude, south, north):
            continue
        if polar:
            inner = _project(projection, np.array([30.0, latitude]))
            labels.append(_Label(degrees(latitude, "NS"), inner, np.zeros(2), side="round"))
        else:
            place = _outward(projection, (west, latitude), (west + 1e-3, latitude))
            labels.append(_Label(degrees(latitude, "NS"), *place, side="left"))
    return _project_lines(projection, lines), labels


def _within(value: float, low: float, high: float) -> bool:
    return min(value - low, high - value) > 0.03 * (high - low)


def _round_degrees(low: float, high: float) -> Array:
    span = high - low
    step = next(step for step in (0.5, 1, 2, 5, 10, 15, 20, 30, 60) if span / step <= 6.5)
    return np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step


def _outward(
    projection: ccrs.Projection, start: tuple[float, float], inside: tuple[float, float]
) -> tuple[Array, Array]:
    """Return a point on the edge, and the unit vector to it from one inside the map, projected."""
    first, second = _project(projection, np.array([start, inside]))
    return first, (first - second) / np.hypot(*(first - second))


@cache
def _coastlines(scale: str) -> tuple[Array, npt.NDArray[np.int64], Mask]:
    """Return points (n, 2) in degrees, the line that each belongs to, and whether each line is a border."""
    path = importlib.resources.files(__package__) / f"coastlines_{scale}.npz"
    with path.open("rb") as file, np.load(file) as data:
        lengths = np.diff(data["starts"])
        return data["points"] / 180.0, np.repeat(np.arange(lengths.size), lengths), data["border"]


def lines_within(grid: Grid, *, border: bool, margin: float = 3.0) -> Iterator[Array]:
    """Yield the coasts or borders near a region, shape (n, 2), in the longitudes of the grid.

    Longitudes are wrapped round the middle of the region. A line that crosses the opposite meridian is cut there. The
    margin keeps the segments that cross a corner of the region with both ends outside.
    """
    (south, north), (west, east) = grid.latitude_bounds[[0, -1]], grid.longitude_bounds[[0, -1]]
    middle = (west + east) / 2
    points, line, is_border = _coastlines("50m" if east - west < 60 else "110m")
    chosen = is_border[line] == border
    points, line = points[chosen], line[chosen]
    points = np.stack([(points[:, 0] - middle + 180) % 360 + middle - 180, points[:, 1]], axis=-1)
    points, joined = _cut_at_seam(points, line[1:] == line[:-1], middle)
    low, high = np.array([west, south]) - margin, np.array([east, north]) + margin
    inside: Mask = np.all((points >= low) & (points <= high), axis=1)
    kept = joined & (inside[1:] | inside[:-1])
    yield from (piece for piece in np.split(points, np.flatnonzero(~kept) + 1) if len(piece) > 1)


def _cut_at_seam(points: Array, joined: Mask, middle: float) -> tuple[Array, Mask]:
    """Put the two ends of a cut into every segment that crosses the meridian opposite ``middle``.

    ``joined`` says of each pair of neighbouring points if a line runs between them. A line in the longitudes 179, -179
    becomes 179, 180 and -180, -179.
    """
    crossing = np.flatnonzero(joined & (np.abs(np.diff(points[:, 0])) > 180))
    before, after = points[crossing], points[crossing + 1]
    side = np.sign(before[:, 0] - middle)
    length = after[:, 0] + 360 * side - before[:, 0]
    to_seam = middle + 180 * side - before[:, 0]
    fraction = np.divide(to_seam, length, out=np.zeros(side.shape), where=length != 0)
    latitude = before[:, 1] + fraction * (after[:, 1] - before[:, 1])
    ends = [np.stack([middle + sign * 180 * side, latitude], axis=-1) for sign in (1, -1)]
    both = np.stack(ends, axis=1).reshape(-1, 2)
    after_both = np.repeat(crossing + 1, 2)
    joined = np.insert(joined, after_both, np.tile([False, True], side.size))
    return np.insert(points, after_both, both, axis=0), joined
