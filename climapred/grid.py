"""Points on the sphere, in degrees: the rectilinear Grid, cell areas, great-circle distances."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import xarray as xr

Array = npt.NDArray[np.float64]
Cells = tuple[str, Array] | None

Region = tuple[float, float, float, float]  # south, north, west, east

EARTH_RADIUS_KM = 6371.229  # the sphere of GRIB and of most reanalyses

_AXES = {  # names in files, and the units that tell an axis of another name
    "latitude": ("latitude", "lat", "degrees_north", "degree_north", "degrees_N", "degreesN", "degreeN"),
    "longitude": ("longitude", "lon", "degrees_east", "degree_east", "degrees_E", "degreesE", "degreeE"),
}
ROUNDING = 1e-4  # degrees: coordinates stored as float32 are off by up to 2e-5


@dataclass(frozen=True, eq=False)
class Grid:
    """A rectilinear grid: every latitude crossed with every longitude.

    Latitude and longitude increase; longitude is contiguous, so a box over Greenwich runs from -10 to 2, not 350 to 2.

    Attributes:
        latitude, longitude: cell centres, degrees, shapes (H,) and (W,), float64.
        latitude_bounds, longitude_bounds: cell edges, shapes (H + 1,) and (W + 1,). Where not given they lie half-way
            between centres; the outer ones mirror the last half cell, and stop at the poles: a grid with points at
            -90, -88.5, ... has a first cell from -90 to -89.25. A gap of less than a third of a cell to the pole
            is closed: Gaussian latitudes leave 0.27 of one.
        periodic: the longitudes close the circle.
        includes_poles: the cells reach both poles.

    Raises:
        ValueError: if a coordinate is not one-dimensional, finite, increasing and on the sphere.

    >>> Grid.regular(0.5, region=(18, 54, 73, 135)).shape
    (73, 125)
    """

    latitude: Array
    longitude: Array
    latitude_bounds: Array = field(default=None)  # type: ignore[arg-type]
    longitude_bounds: Array = field(default=None)  # type: ignore[arg-type]
    periodic: bool = field(init=False)
    includes_poles: bool = field(init=False)

    def __post_init__(self) -> None:
        for name in ("latitude", "longitude"):
            centres = _checked_axis(name, getattr(self, name))
            if name == "latitude" and (centres[0] < -90 or centres[-1] > 90):
                raise ValueError(f"latitude must lie in [-90, 90], got {centres[0]} to {centres[-1]}")
            bounds = getattr(self, f"{name}_bounds")
            if bounds is not None:
                bounds = _checked_axis(f"{name}_bounds", bounds)
            else:
                bounds = _latitude_bounds(centres) if name == "latitude" else _midpoint_bounds(centres)
            if name == "latitude":
                bounds = np.clip(bounds, -90, 90)
            if bounds.size != centres.size + 1 or (bounds[:-1] > centres).any() or (bounds[1:] < centres).any():
                raise ValueError(f"{name}_bounds must enclose each of the {centres.size} centres, got {bounds[:4]}...")
            self._freeze(name, centres)
            self._freeze(f"{name}_bounds", bounds)
        span = float(self.longitude_bounds[-1] - self.longitude_bounds[0])
        if span > 360 + 1e-3:
            raise ValueError(
                f"longitude cells must cover at most 360 degrees, got {span}; is the first point repeated?"
            )
        object.__setattr__(self, "periodic", span > 360 - 1e-3)
        reaches = self.latitude_bounds[0] <= -90 + 1e-6 and self.latitude_bounds[-1] >= 90 - 1e-6
        object.__setattr__(self, "includes_poles", bool(reaches))

    def _freeze(self, name: str, values: Array) -> None:
        values.setflags(write=False)
        object.__setattr__(self, name, values)

    @classmethod
    def regular(cls, spacing: float, region: Region | None = None) -> Grid:
        """Return a regular grid of ``spacing`` degrees.

        Args:
            spacing: degrees between points; must divide the region (180 and 360 for a global grid).
            region: (south, north, west, east), points on all four edges; None for the globe, poles included,
                longitude from 0.
        """
        if spacing <= 0:
            raise ValueError(f"spacing must be positive, got {spacing}")
        south, north, west, east = region or (-90.0, 90.0, 0.0, 360.0)
        if region is not None and (south >= north or west >= east):
            raise ValueError(
                f"region must be (south, north, west, east) with south < north and west < east, got {region}"
            )
        rows, columns = _count(south, north, spacing), _count(west, east, spacing)
        longitude = np.linspace(west, east, columns + 1)
        if east - west >= 360:
            longitude = longitude[:-1]
        return cls(np.linspace(south, north, rows + 1), longitude)

    @classmethod
    def gaussian(cls, number: int) -> Grid:
        """Return the full Gaussian grid N``number``: 2N latitudes, 4N longitudes.

        The sines of the latitudes are the roots of the Legendre polynomial P_2N. Cell edges in latitude follow the
        Gaussian weights (their running sum is the sine of the edge), so that areas are exact.
        """
        if number < 1:
            raise ValueError(f"a Gaussian grid needs number >= 1, got {number}")
        sines, weights = np.polynomial.legendre.leggauss(2 * number)
        edges = np.clip(np.concatenate([[-1.0], np.cumsum(weights) - 1]), -1, 1)
        edges[-1] = 1.0
        return cls(
            np.degrees(np.arcsin(sines)),
            np.linspace(0, 360, 4 * number, endpoint=False),
            latitude_bounds=np.degrees(np.arcsin(edges)),
        )

    @classmethod
    def named(cls, name: str, region: Region | None = None) -> Grid:
        """Return the grid that a short name stands for: a spacing in degrees, or N48 or F48, a full Gaussian grid.

        Args:
            region: (south, north, west, east); a Gaussian grid keeps its points inside.

        >>> Grid.named("1.5").shape, Grid.named("F48").shape
        ((121, 240), (96, 192))
        """
        if match := re.fullmatch(r"[NFnf](\d+)", name):
            grid = cls.gaussian(int(match[1]))
            return grid if region is None else grid.crop(region)
        try:
            spacing = float(name)
        except ValueError:
            raise ValueError(f"a grid is a spacing in degrees such as 1.5, or N48 or F48, got {name!r}") from None
        return cls.regular(spacing, region)

    @classmethod
    def of(cls, dataset: xr.Dataset | xr.DataArray, *, any_direction: bool = False) -> Grid:
        """Return the grid of a dataset with 1-D coordinates latitude and longitude, as ``axis_names`` finds them.

        Cell bounds that the dataset brings (CF's attribute ``bounds``) count; without them a cell ends half-way.

        Args:
            dataset: with axes that increase, so that row i of a field is row i of the grid.
            any_direction: axes may run either way, and longitudes may jump once from 359 to 0 or from 180 to -180; the grid
                increases, and it is the caller who turns the fields.

        Raises:
            ValueError: if an axis is missing or not 1-D, does not increase (goes up and down), or is a region torn apart
                at Greenwich.
        """
        latitude, longitude = axis_names(dataset)
        rows, columns = (np.asarray(dataset[name].values, dtype=np.float64) for name in (latitude, longitude))
        if any_direction:
            columns = unwrapped(columns)
        elif descending := [
            name for name, axis in ((latitude, rows), (longitude, columns)) if (np.diff(axis) <= 0).any()
        ]:
            raise ValueError(f"{' and '.join(descending)} must increase; call harmonise() first")
        return cls.along(rows, columns, _cells(dataset, latitude), _cells(dataset, longitude))

    @classmethod
    def along(cls, rows: Array, columns: Array, row_cells: Cells = None, column_cells: Cells = None) -> Grid:
        """Return the grid of axes that run either way.

        Args:
            rows, columns: latitudes (H,) and longitudes (W,) without a jump, see ``unwrapped``.
            row_cells, column_cells: name and values, (H, 2) and (W, 2), of CF bounds; None where a cell ends half-way.
        """
        return cls(
            rows[::-1] if rows[0] > rows[-1] else rows,
            columns[::-1] if columns[0] > columns[-1] else columns,
            latitude_bounds=_edges(row_cells, rows, _latitude_bounds),  # type: ignore[arg-type]
            longitude_bounds=_edges(column_cells, columns, _midpoint_bounds),  # type: ignore[arg-type]
        )

    def same_points(self, other: object) -> bool:
        """Return whether another grid has these points, up to the noise of float32; its cells may end elsewhere."""
        return (
            isinstance(other, Grid)
            and self.shape == other.shape
            and np.allclose(self.latitude, other.latitude, rtol=0, atol=ROUNDING)
            and np.allclose(self.longitude, other.longitude, rtol=0, atol=ROUNDING)
        )

    def part(self, rows: slice, columns: slice) -> Grid:
        """Return some rows and columns, with their cells."""
        return Grid(
            self.latitude[rows],
            self.longitude[columns],
            self.latitude_bounds[rows.start : rows.stop + 1],
            self.longitude_bounds[columns.start : columns.stop + 1],
        )

    def crop(self, region: Region) -> Grid:
        """Return the points inside (south, north, west, east), with their cells.

        >>> Grid.regular(10).crop((30, 60, -20, 20)).longitude.tolist()
        [-20.0, -10.0, 0.0, 10.0, 20.0]
        """
        south, north, west, east = region
        turned = self._starting_at(west) if self.periodic else self._shifted((west + east) / 2)
        rows = _within(turned.latitude, south, north)
        columns = _within(turned.longitude, west, east)
        if min(rows.stop - rows.start, columns.stop - columns.start) < 2:
            raise ValueError(f"the region (south, north, west, east) {region} must hold 2 x 2 points or more of {self}")
        return turned.part(rows, columns)

    def _starting_at(self, west: float) -> Grid:
        """Return the same cells of a periodic grid, beginning with the first point at or east of ``west``."""
        first = int(np.argmin((self.longitude - west + ROUNDING) % 360))
        longitude = np.append(self.longitude[first:], self.longitude[:first] + 360)
        edges = np.append(self.longitude_bounds[first:-1], self.longitude_bounds[: first + 1] + 360)
        turns = 360 * np.ceil((west - ROUNDING - longitude[0]) / 360)
        return Grid(self.latitude, longitude + turns, self.latitude_bounds, edges + turns)

    def _shifted(self, near: float) -> Grid:
        """Return the same cells, whole turns away, as near as can be to a longitude."""
        turns = 360 * np.round((near - self.longitude[[0, -1]].mean()) / 360)
        return Grid(self.latitude, self.longitude + turns, self.latitude_bounds, self.longitude_bounds + turns)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.latitude.size, self.longitude.size

    @property
    def size(self) -> int:
        """Number of points."""
        return self.latitude.size * self.longitude.size

    @cached_property
    def hash(self) -> str:
        """A hash of the coordinates and bounds, rounded to 1e-6 degrees: the same on every machine."""
        return digest(self.latitude, self.longitude, self.latitude_bounds, self.longitude_bounds)

    def coordinates(self) -> dict[str, tuple[str, Array, dict[str, Any]]]:
        """Return the two coordinates as xarray takes them, with their CF attributes."""
        return {
            "latitude": (
                "latitude",
                self.latitude,
                {"standard_name": "latitude", "units": "degrees_north", "axis": "Y"},
            ),
            "longitude": (
                "longitude",
                self.longitude,
                {"standard_name": "longitude", "units": "degrees_east", "axis": "X"},
            ),
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.hash == other.hash

    def __hash__(self) -> int:
        return int(self.hash, 16)

    def __repr__(self) -> str:
        (south, north), (west, east) = self.latitude[[0, -1]], self.longitude[[0, -1]]
        kind = ", periodic" if self.periodic else ""
        return f"Grid({self.shape[0]} x {self.shape[1]}, {south:g}..{north:g} N, {west:g}..{east:g} E{kind})"


def axis_names(dataset: xr.Dataset | xr.DataArray) -> tuple[str, str]:
    """Return what the 1-D coordinates latitude and longitude are called: by name, standard name or units.

    Raises:
        ValueError: if one is missing.
    """
    lines = {str(name): dataset[name].attrs for name in dataset.coords if dataset[name].dims == (name,)}
    return horizontal_names(lines, list(dataset.coords))


def horizontal_names(axes: Mapping[str, Mapping[str, Any]], coordinates: object) -> tuple[str, str]:
    """Return which of ``axes``, {name: attributes}, are latitude and longitude; an error lists all ``coordinates``."""
    names = []
    for axis, spellings in _AXES.items():
        told = [name for name, attrs in axes.items() if attrs.get("standard_name") == axis]
        told += [name for name, attrs in axes.items() if attrs.get("units") in spellings]
        found = [name for name in (*spellings[:2], *told) if name in axes]
        if not found:
            raise ValueError(f"dataset must have a 1-D coordinate {axis!r}, got {coordinates}; call harmonise() first")
        names.append(found[0])
    return names[0], names[1]


def descending_axes(dataset: xr.Dataset | xr.DataArray) -> list[str]:
    """Return the names of those of the two axes along which the fields run against their ``Grid.of``."""
    latitude, longitude = axis_names(dataset)
    values = {latitude: dataset[latitude].values, longitude: unwrapped(dataset[longitude].values.astype(np.float64))}
    return [name for name, axis in values.items() if axis[0] > axis[-1]]


def unwrapped(longitude: Array) -> Array:
    """Return longitudes without their jump: 178, 179, -180, -179 becomes 178 to 181, 359, 0, 1 becomes -1 to 1."""
    if longitude.ndim != 1 or longitude.size < 3:
        return longitude
    steps = np.diff(longitude)
    turns = np.round(steps / 360)
    if turns.any() and len(set(np.sign(steps - 360 * turns))) == 1:
        longitude = longitude - 360 * np.append(0, np.cumsum(turns))
        if longitude.max() >= 360 and longitude.min() >= 180:
            longitude -= 360
    gaps = np.abs(np.diff(longitude))
    usual = np.median(gaps)
    if gaps.max() > 3 * usual and 360 - np.ptp(longitude) < 1.5 * usual:
        raise ValueError(
            f"longitude must be contiguous, got a gap of {gaps.max():g} degrees and none between the ends "
            f"{longitude.max():g} and {longitude.min():g}: a region torn apart; call harmonise() first"
        )
    return longitude


def _cells(dataset: xr.Dataset | xr.DataArray, name: str) -> Cells:
    """Return the bounds (n, 2) that CF's attribute names, if the dataset holds them."""
    bounds = dataset[name].attrs.get("bounds", dataset[name].encoding.get("bounds"))
    if bounds is None or bounds not in getattr(dataset, "variables", ()):  # an array brings none along
        return None
    return bounds, np.asarray(dataset[bounds].values, dtype=np.float64)


def _edges(cells: Cells, centres: Array, assumed: Callable[[Array], Array]) -> Array | None:
    """Return the edges (n + 1,) of CF cells in increasing order; None where they say what is assumed anyway."""
    if cells is None:
        return None
    name, pairs = cells[0], np.sort(cells[1], axis=-1)
    if pairs.shape != (centres.size, 2):
        raise ValueError(f"the bounds {name!r} must have shape ({centres.size}, 2), got {pairs.shape}")
    turns = 360 * np.round((centres - pairs.mean(axis=1)) / 360)  # longitudes lost their jump; the bounds follow
    pairs = pairs + turns[:, None]
    order = slice(None, None, -1 if centres[0] > centres[-1] else 1)
    centres, pairs = centres[order], pairs[order]
    if np.abs(pairs[1:, 0] - pairs[:-1, 1]).max(initial=0) > ROUNDING:
        raise ValueError(f"the cells in {name!r} must touch each other; drop it first: dataset.drop_vars({name!r})")
    edges = np.append(pairs[:, 0], pairs[-1, 1])
    return None if np.abs(edges - assumed(centres)).max() < ROUNDING else edges


def _within(ascending: Array, low: float, high: float) -> slice:
    first, last = np.searchsorted(ascending, [low - ROUNDING, high + ROUNDING])
    return slice(int(first), int(last))


def digest(*axes: Array) -> str:
    """Return a hash of numbers, rounded to 1e-6, the same on every machine."""
    text = "|".join(",".join(f"{value:.6f}" for value in np.round(axis, 6) + 0.0) for axis in axes)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _checked_axis(name: str, values: npt.ArrayLike) -> Array:
    axis = np.array(values, dtype=np.float64)
    if axis.ndim != 1 or axis.size < 2 or not np.isfinite(axis).all():
        raise ValueError(f"{name} must be 1-D, finite and have at least 2 points, got shape {axis.shape}")
    if (np.diff(axis) <= 0).any():
        raise ValueError(f"{name} must increase, got {axis[:3]}...{axis[-2:]}; call harmonise() first")
    return axis


def _midpoint_bounds(centres: Array) -> Array:
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def _latitude_bounds(centres: Array) -> Array:
    bounds = _midpoint_bounds(centres)
    south, north = np.diff(bounds)[[0, -1]] / 3
    bounds[0] = -90 if bounds[0] < -90 + south else bounds[0]
    bounds[-1] = 90 if bounds[-1] > 90 - north else bounds[-1]
    return bounds


def _count(start: float, stop: float, spacing: float) -> int:
    count = (stop - start) / spacing
    if abs(count - round(count)) > 1e-6 or round(count) < 1:
        raise ValueError(f"spacing {spacing} must divide the range {start}..{stop}")
    return round(count)


def cell_areas(grid: Grid) -> Array:
    """Return the area of each cell in m2, shape (H, W): R^2 (sin north - sin south) (east - west).

    >>> float(cell_areas(Grid.regular(10)).sum() / (4 * np.pi * (EARTH_RADIUS_KM * 1000) ** 2))
    1.0
    """
    height = np.diff(np.sin(np.radians(grid.latitude_bounds)))
    width = np.diff(np.radians(grid.longitude_bounds))
    return height[:, None] * width * (EARTH_RADIUS_KM * 1000) ** 2


def great_circle_km(
    latitude_1: npt.ArrayLike,
    longitude_1: npt.ArrayLike,
    latitude_2: npt.ArrayLike,
    longitude_2: npt.ArrayLike,
) -> Array:
    """Return the great-circle distance in km between points in degrees (haversine), with broadcasting.

    >>> round(float(great_circle_km(0, 0, 0, 180)))
    20016
    """
    phi_1, lambda_1, phi_2, lambda_2 = (
        np.radians(np.asarray(x, dtype=np.float64)) for x in (latitude_1, longitude_1, latitude_2, longitude_2)
    )
    half = np.sin((phi_2 - phi_1) / 2) ** 2 + np.cos(phi_1) * np.cos(phi_2) * np.sin((lambda_2 - lambda_1) / 2) ** 2
    return np.asarray(2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(half, 0, 1))))
