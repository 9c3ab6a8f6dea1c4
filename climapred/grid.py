"""Points on the sphere, in degrees: the rectilinear Grid, its cell areas, great-circle distances."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

Array = npt.NDArray[np.float64]

EARTH_RADIUS_KM = 6371.229  # the sphere of GRIB and of most reanalyses


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
    def regular(cls, spacing: float, region: tuple[float, float, float, float] | None = None) -> Grid:
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
    def of(cls, dataset: xr.Dataset | xr.DataArray) -> Grid:
        """Return the grid of a dataset with 1-D coordinates ``latitude`` and ``longitude``."""
        for name in ("latitude", "longitude"):
            if name not in dataset.coords or dataset[name].dims != (name,):
                raise ValueError(
                    f"dataset must have a 1-D coordinate {name!r}, got {list(dataset.coords)}; call harmonise() first"
                )
        return cls(dataset["latitude"].values, dataset["longitude"].values)

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
        edges = (self.latitude, self.longitude, self.latitude_bounds, self.longitude_bounds)
        text = "|".join(",".join(f"{value:.6f}" for value in np.round(axis, 6) + 0.0) for axis in edges)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

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
