"""One axis of a file -> its canonical values, and the order that brings the fields along.

What is known about axes stands in the table COORDINATES; the rest is generic. Only coordinates are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cftime
import numpy as np
import numpy.typing as npt
import xarray as xr

from climapred.reduced import ReducedGrid

Floats = npt.NDArray[np.float64]
Order = slice | npt.NDArray[np.intp]
Change = tuple[str, str]  # what was found, what is done about it


@dataclass(frozen=True)
class Coordinate:
    """One axis of a field: its canonical name, the names and units by which files tell it, its CF attributes.

    Attributes:
        aliases: lower-case names in files; the first that is present is taken, so `valid_time` wins over
            `time`.
        units: spellings that identify the axis where no name does, as lower-case letters.
    """

    name: str
    aliases: tuple[str, ...]
    units: tuple[str, ...]
    attrs: tuple[tuple[str, str], ...]


TIME = Coordinate(
    "time",
    ("valid_time", "time", "initial_time0_hours", "time_counter"),
    (),
    (("standard_name", "time"), ("long_name", "valid time, UTC"), ("axis", "T")),
)
LATITUDE = Coordinate(
    "latitude",
    ("latitude", "lat", "nav_lat", "g0_lat_1", "xlat"),
    ("degreesnorth", "degreenorth", "degreesn", "degreen"),
    (("standard_name", "latitude"), ("units", "degrees_north"), ("axis", "Y")),
)
LONGITUDE = Coordinate(
    "longitude",
    ("longitude", "lon", "nav_lon", "g0_lon_2", "xlong"),
    ("degreeseast", "degreeeast", "degreese", "degreee"),
    (("standard_name", "longitude"), ("units", "degrees_east"), ("axis", "X")),
)
COORDINATES = (TIME, LATITUDE, LONGITUDE)


@dataclass(frozen=True)
class Axis:
    """One axis of the result, and how the file's fields get there.

    Attributes:
        dim: the dimension in the file; None for a single time that is no dimension.
        values: the canonical coordinate, increasing.
        order: which elements of the file's dimension are taken, in which order.
        changes: what the file does differently, and what is done about it.
    """

    dim: str | None
    values: npt.NDArray[Any]
    order: Order
    changes: tuple[Change, ...]


def find_axis(dataset: xr.Dataset, coordinate: Coordinate) -> str:
    """Return the file's name of an axis: by name, else by standard_name, units, or for time by holding dates.

    Raises:
        ValueError: if there is none.
    """
    by_lower_case = {str(name).lower(): str(name) for name in dataset.variables}
    found = [by_lower_case[alias] for alias in coordinate.aliases if alias in by_lower_case]
    named = [str(name) for name, axis in dataset.coords.items() if axis.attrs.get("standard_name") == coordinate.name]
    measured = [
        str(name)
        for name, axis in dataset.coords.items()
        if _letters(axis.attrs.get("units")) in coordinate.units or (coordinate is TIME and _holds_dates(axis))
    ]
    found += sorted([*named, *measured], key=lambda name: dataset[name].ndim != 1)  # bounds are 2-D
    if not found:
        raise ValueError(
            f"no coordinate {coordinate.name!r}: none of {', '.join(map(str, dataset.variables))} is called "
            f"{', '.join(coordinate.aliases)} or says so in its standard_name or units; "
            "rename one with dataset.rename"
        )
    return found[0]


def _letters(units: object) -> str:
    return "".join(letter for letter in str(units).lower() if letter.isalpha())


def _holds_dates(axis: xr.DataArray) -> bool:
    return axis.dtype.kind == "M" or (axis.dtype == object and is_cftime(axis.values))


def is_cftime(values: npt.NDArray[Any]) -> bool:
    """Return whether these are dates that cftime decoded, of a calendar or a year that NumPy does not have."""
    return values.size > 0 and isinstance(values.flat[0], cftime.datetime)


def horizontal_axes(dataset: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """Return latitude and longitude as the file has them: two axes of one dimension each.

    Raises:
        ValueError: if one is absent, curvilinear or a single point, or both run along the same dimension.
    """
    latitude, longitude = (dataset[find_axis(dataset, coordinate)] for coordinate in (LATITUDE, LONGITUDE))
    for coordinate, axis in ((LATITUDE, latitude), (LONGITUDE, longitude)):
        if axis.ndim != 1:
            raise ValueError(
                f"{coordinate.name} {axis.name!r} must be 1-D, got dims {axis.dims}; points and curvilinear "
                "grids are not rectilinear fields: regrid the file first, e.g. with `cdo remapbil`"
            )
    if latitude.dims == longitude.dims:
        raise ValueError(
            f"latitude {latitude.name!r} and longitude {longitude.name!r} share the dimension {latitude.dims[0]!r}: points, "
            "not a rectilinear field; regrid the file first, e.g. with `cdo remapbil`"
        )
    return latitude, longitude


def read_points(dataset: xr.Dataset) -> dict[str, Axis] | None:
    """Return the points of a reduced Gaussian grid, as open_source gives them; None where there is no such grid.

    Raises:
        ValueError: if the coordinates are not those of the grid that the attributes ``N`` and ``pl`` describe.
    """
    if "values" not in dataset.coords or "pl" not in dataset["values"].attrs:
        return None
    grid = ReducedGrid.of(dataset)
    kept = (f"points on {grid!r}", "kept as points, dims (time, values); regrid() takes them")
    latitude, longitude = grid.centres()
    order = slice(0, grid.size)
    return {
        "values": Axis("values", np.arange(grid.size), order, (kept,)),
        "latitude": Axis("values", latitude, order, ()),
        "longitude": Axis("values", longitude, order, ()),
    }


def read_latitude(latitude: xr.DataArray) -> Axis:
    """Return the latitudes, ascending, degrees.

    Raises:
        ValueError: if there are none, or they are repeated, not finite, in radians or off the sphere.
    """
    raw = _without_float_noise(latitude)
    if np.abs(raw).max() > 90 + 1e-4:
        raise ValueError(f"latitude {latitude.name!r} must lie in [-90, 90], got {raw.min():g} to {raw.max():g}")
    order = np.argsort(raw, kind="stable")
    values = np.clip(raw[order], -90, 90)
    if (np.diff(values) < 1e-6).any():
        raise ValueError(f"latitude {latitude.name!r} has repeated values: {_repeated(values)}")
    values = _uniform_if_nearly(values, latitude.dtype)
    return _degrees_axis(latitude, LATITUDE, values, order, [])


def read_longitude(longitude: xr.DataArray) -> Axis:
    """Return the longitudes, ascending and contiguous, degrees.

    A region starts after the widest gap on its circle of longitudes; a globe has no such gap and starts at
    the smallest longitude in [0, 360).

    Raises:
        ValueError: as ``read_latitude``.
    """
    raw = _without_float_noise(longitude)
    if raw.min() < -360 or raw.max() > 720:
        raise ValueError(f"longitude {longitude.name!r} must be in degrees, got {raw.min():g} to {raw.max():g}")
    values = np.round(raw % 360, 9)
    values[values > 360 - 1e-6] = 0
    order = np.argsort(values, kind="stable")
    again = np.flatnonzero(np.diff(values[order]) < 1e-6) + 1
    if (np.abs(raw[order[again]] - raw[order[again - 1]]) < 1).any():
        raise ValueError(f"longitude {longitude.name!r} has repeated values: {_repeated(values[order])}")
    cyclic = [(f"the column at {raw[order[i - 1]]:g} is there again at {raw[order[i]]:g}", "dropped") for i in again]
    order = np.delete(order, again)  # the cyclic column: the same place, written as 0 and as 360
    values = values[order]
    gaps = np.diff(values, append=values[0] + 360)
    start = 0 if gaps.max() < 1.5 * np.median(gaps) else (int(gaps.argmax()) + 1) % values.size
    order, values = np.roll(order, -start), np.roll(values, -start)
    values[values.size - start :] += 360
    if values[-1] >= 360 and values[0] >= 180:
        values -= 360
    return _degrees_axis(longitude, LONGITUDE, _uniform_if_nearly(values, longitude.dtype), order, cyclic)


def _degrees_axis(
    axis: xr.DataArray, coordinate: Coordinate, values: Floats, order: npt.NDArray[np.intp], changes: list[Change]
) -> Axis:
    """Return the axis, and say what its values and order went through."""
    raw = np.asarray(axis.values, np.float64)[order]
    turns = np.round((values - raw) / 360)
    found = [(f"called {axis.name!r}", f"renamed to {coordinate.name}")] if axis.name != coordinate.name else []
    if (np.diff(order) < 0).all() and order.size > 1:
        found.append((f"descends from {raw[-1]:g} to {raw[0]:g}", "sorted to ascend"))
    elif turns.any():
        lowest, highest = float(axis.min()), float(axis.max())
        found.append((f"runs from {lowest:g} to {highest:g}", f"moved to {values[0]:g} to {values[-1]:g}"))
    elif (np.diff(order) < 0).any():
        found.append(("is out of order", "sorted to ascend"))
    noise = float(np.abs(values - raw - 360 * turns).max())
    if noise > 1e-9:
        found.append((f"misses even steps or decimals by up to {noise:.1g} degrees", "rounded: noise of float32"))
    return Axis(str(axis.dims[0]), values, as_slice(order), (*found, *changes))


def _without_float_noise(coordinate: xr.DataArray) -> Floats:
    """Return degrees in float64; a value that went through float32 becomes the decimal that it stood for.

    The float32 nearest to 359.9 is 359.899994; the shortest decimal that reads as the same float32 is 359.9.
    Values that are exact in six decimals, such as 359.296875, need no guess.
    """
    if not coordinate.size:
        raise ValueError(f"{coordinate.name!r} is empty: the dataset has no points along it")
    if _letters(coordinate.attrs.get("units")).startswith("rad"):
        raise ValueError(
            f"{coordinate.name!r} is in radians; convert it first: "
            f"dataset.assign_coords({coordinate.name}=np.degrees(dataset[{coordinate.name!r}]))"
        )
    values = np.asarray(coordinate.values, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{coordinate.name!r} must be finite, got {values[~np.isfinite(values)][:3]}")
    single = values.astype(np.float32)
    if (single == values).all():
        shortest = np.array([float(str(value)) for value in single])
        values = np.where(np.round(values, 6) == values, values, shortest)
    return np.round(values, 9)


def _uniform_if_nearly(values: Floats, dtype: np.dtype[Any]) -> Floats:
    """Return evenly spaced values where all lie within 1e-4 of a step of them; Gaussian latitudes do not.

    A start and a step of four decimals are taken where they fit as well: in float32, 3590 times 0.1 is 359.00003.
    """
    if values.size < 3:
        return values
    line: Floats = np.linspace(values[0], values[-1], values.size)
    tolerance = 1e-4 * (line[1] - line[0])
    if dtype.itemsize < 8:
        tolerance += float(np.spacing(np.float32(np.abs(values).max())))
    if np.abs(values - line).max() > tolerance:
        return np.round(values, 9)
    decimal: Floats = np.round(values[0], 4) + np.round(line[1] - line[0], 4) * np.arange(values.size)
    near = np.abs(values - line).max() > 1e-9 and np.abs(values - decimal).max() <= tolerance
    return np.round(decimal if near else line, 9)


def _repeated(ascending: Floats) -> str:
    return ", ".join(f"{value:g}" for value in ascending[1:][np.diff(ascending) < 1e-6][:3])


def as_slice(order: npt.NDArray[np.intp]) -> Order:
    """Return the order as a slice where it is one: slices stay cheap and lazy, also without dask."""
    count = np.arange(order.size)
    if (order == count).all():
        return slice(0, order.size)
    return slice(order.size - 1, None, -1) if (order == count[::-1]).all() else order
