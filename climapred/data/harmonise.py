"""Any opened source -> canonical dims, names, units and order, without reading a field.

What is known about files stands in two tables: COORDINATES here and VARIABLES in climapred.variables.
Everything else is one generic translation. Only coordinates are read; the fields stay as lazy as they came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from climapred.variables import VARIABLES, Variable, canonical_name, convert_units, find_variable, select_names

Floats = npt.NDArray[np.float64]
Order = slice | npt.NDArray[np.intp]


@dataclass(frozen=True)
class Coordinate:
    """One axis of a field: its canonical name, the names and units by which files tell it, its CF attributes.

    Attributes:
        aliases: lower-case names in files; the first that is present is taken, so `valid_time` wins over
            `time`.
        units: spellings that identify the axis where no name does.
    """

    name: str
    aliases: tuple[str, ...]
    units: tuple[str, ...]
    attrs: tuple[tuple[str, str], ...]


COORDINATES: tuple[Coordinate, ...] = (
    Coordinate(
        "time",
        ("valid_time", "time", "initial_time0_hours", "time_counter"),
        (),
        (("standard_name", "time"), ("long_name", "valid time, UTC"), ("axis", "T")),
    ),
    Coordinate(
        "latitude",
        ("latitude", "lat", "nav_lat", "g0_lat_1", "xlat"),
        ("degrees_north", "degree_north", "degrees_N", "degree_N", "degreesN", "degreeN"),
        (("standard_name", "latitude"), ("units", "degrees_north"), ("axis", "Y")),
    ),
    Coordinate(
        "longitude",
        ("longitude", "lon", "nav_lon", "g0_lon_2", "xlong"),
        ("degrees_east", "degree_east", "degrees_E", "degree_E", "degreesE", "degreeE"),
        (("standard_name", "longitude"), ("units", "degrees_east"), ("axis", "X")),
    ),
)

_KEPT_ATTRS = ("title", "institution", "source", "history", "references", "comment")


def harmonise(dataset: xr.Dataset, variables: Sequence[str] | None = None) -> xr.Dataset:
    """Return the known variables of ``dataset`` in climapred's data model, lazily.

    Dims are ("time", "latitude", "longitude"): `time` is the valid time, datetime64[ns], unique and
    increasing; latitude ascends; longitude ascends and is contiguous, in [0, 360) unless the region crosses
    Greenwich: 350 to 2 becomes -10 to 2, a globe from -180 to 179 becomes 0 to 359. A region that fits into
    neither circle stays contiguous: from 100 E eastwards to 10 E becomes 100 to 370. A repeated cyclic column
    (0 and 360) is dropped. Coordinates lose the noise of float32, and where they are nearly uniform they
    become exactly so. Names, units and attributes are those of climapred.variables; data types stay.

    Fields in dask arrays, as open_source returns them, are not read.

    Args:
        dataset: what open_source returns, or any dataset with rectilinear coordinates.
        variables: names, as the file spells them or canonical; None for every variable that climapred knows.

    Raises:
        ValueError: if a variable is missing, unknown or without units; a dimension other than the three has
            more than one element; times repeat or follow a calendar that is not ours; coordinates are
            missing, repeated, curvilinear or off the sphere.
    """
    chosen = _choose_variables(dataset, variables)
    axes = {coordinate.name: _find_axis(dataset, coordinate) for coordinate in COORDINATES}
    time = dataset[axes["time"]].squeeze()
    if time.ndim > 1:
        raise ValueError(
            f"valid times {axes['time']!r} have dims {time.dims}: a set of forecasts, not one series; "
            f"select one start or one lead first, e.g. dataset.isel({time.dims[1]}=0)"
        )
    dims = {str(dataset[axes[name]].dims[0]): name for name in ("latitude", "longitude")}
    dims |= {str(dim): "time" for dim in time.dims}
    fields = {variable.name: _field(dataset[name], variable, dims) for name, variable in chosen.items()}
    times, time_order = _ordered_times(time, axes["time"])
    latitude, latitude_order = _ordered_latitude(dataset[axes["latitude"]])
    longitude, longitude_order = _ordered_longitude(dataset[axes["longitude"]])
    values = {"time": times, "latitude": latitude, "longitude": longitude}
    return (
        xr.Dataset(fields, attrs={key: dataset.attrs[key] for key in _KEPT_ATTRS if key in dataset.attrs})
        .isel(time=time_order, latitude=latitude_order, longitude=longitude_order)
        .assign_coords({c.name: (c.name, values[c.name], dict(c.attrs)) for c in COORDINATES})
        .drop_encoding()
    )


def _choose_variables(dataset: xr.Dataset, variables: Sequence[str] | str | None) -> dict[str, Variable]:
    """Return {name in the file: Variable}."""
    names = select_names(map(str, dataset.data_vars), variables, "the dataset")
    known = {name: find_variable(name) for name in names if canonical_name(name) in VARIABLES}
    unknown = [name for name in names if name not in known]
    if not known or (unknown and variables is not None):
        raise ValueError(
            f"climapred knows no units or standard name for {', '.join(unknown) or 'any variable'}; it knows "
            f"{', '.join(VARIABLES)}; the dataset has {', '.join(map(str, dataset.data_vars)) or 'none'}; "
            "rename one with dataset.rename"
        )
    by_canonical: dict[str, str] = {}
    for name, variable in known.items():
        if other := by_canonical.get(variable.name):
            raise ValueError(f"{other!r} and {name!r} are both {variable.name!r}; name one of them in variables=")
        by_canonical[variable.name] = name
    return known


def _find_axis(dataset: xr.Dataset, coordinate: Coordinate) -> str:
    """Return the file's name of an axis: by name, else by standard_name, else by its units."""
    by_lower_case = {str(name).lower(): str(name) for name in dataset.variables}
    found = [by_lower_case[alias] for alias in coordinate.aliases if alias in by_lower_case]
    for name, variable in dataset.coords.items():
        attrs = variable.attrs
        if attrs.get("standard_name") == coordinate.name or attrs.get("units") in coordinate.units:
            found.append(str(name))
    if not found:
        raise ValueError(
            f"no coordinate {coordinate.name!r}: none of {', '.join(map(str, dataset.variables))} is called "
            f"{', '.join(coordinate.aliases)} or says so in its standard_name or units; "
            "rename one with dataset.rename"
        )
    name = found[0]
    if coordinate.name != "time" and dataset[name].ndim != 1:
        raise ValueError(
            f"{coordinate.name} {name!r} must be 1-D, got dims {dataset[name].dims}; points and curvilinear "
            "grids are not rectilinear fields: regrid the file first, e.g. with `cdo remapbil`"
        )
    return name


def _field(array: xr.DataArray, variable: Variable, dims: dict[str, str]) -> xr.DataArray:
    """Return one variable: dims (time, latitude, longitude), no coordinates, canonical units and attrs."""
    singles = [dim for dim, size in array.sizes.items() if size == 1 and dim not in dims]
    array = array.squeeze(singles, drop=True)
    for dim in array.dims:
        if dim not in dims:
            labels = f", {array[dim].values[:4].tolist()}..." if dim in array.coords else ""
            raise ValueError(
                f"{array.name!r} has the extra dimension {dim!r} of size {array.sizes[dim]}{labels}; "
                f"select one element first: dataset.isel({dim}=0)"
            )
    absent = set(dims.values()) - {dims[str(dim)] for dim in array.dims}
    if absent:
        raise ValueError(f"{array.name!r} must have the dimensions {list(dims)}, got {array.dims}")
    if "units" not in array.attrs:
        raise ValueError(
            f"{array.name!r} has no units; where they are known to be {variable.units!r}, say so: "
            f"dataset[{array.name!r}].attrs['units'] = {variable.units!r}"
        )
    try:
        field = convert_units(array, str(array.attrs["units"]), variable.units)
    except ValueError as error:
        raise ValueError(f"{array.name!r}: {error}") from error
    field = field.drop_vars(list(field.coords)).rename({dim: dims[str(dim)] for dim in field.dims})
    if "time" not in field.dims:
        field = field.expand_dims("time")
    attrs = {
        "standard_name": variable.standard_name,
        "long_name": variable.long_name,
        "units": variable.units,
    }
    return field.transpose("time", "latitude", "longitude").drop_attrs().assign_attrs(attrs)


def _ordered_times(time: xr.DataArray, name: str) -> tuple[npt.NDArray[np.datetime64], Order]:
    """Return the times, increasing, and the order that makes them so."""
    if time.dtype.kind == "O":
        raise ValueError(
            f"{name!r} follows the calendar {time.dt.calendar!r}, whose dates are not all real ones; "
            "convert the file first, e.g. with dataset.convert_calendar('standard')"
        )
    if time.dtype.kind != "M":
        raise ValueError(f"{name!r} must hold datetimes, got {time.dtype}; has it no units such as 'hours since ...'?")
    if time.attrs.get("standard_name") == "forecast_reference_time":
        raise ValueError(
            f"{name!r} holds the starts of forecasts, not valid times; add them first: "
            f"dataset.assign_coords(valid_time=dataset[{name!r}] + dataset.step)"
        )
    times = np.atleast_1d(time.values).astype("datetime64[ns]")
    if np.isnat(times).any():
        raise ValueError(f"{name!r} has {np.isnat(times).sum()} missing values (NaT) among {times.size} times")
    order = np.argsort(times, kind="stable")
    times = times[order]
    repeated = times[1:][times[1:] == times[:-1]]
    if repeated.size:
        first = ", ".join(np.datetime_as_string(np.unique(repeated)[:3], unit="m"))
        raise ValueError(
            f"{repeated.size} of {times.size} times in {name!r} are repeated: {first}...; choose files that "
            f"do not overlap, or say which field counts: dataset.drop_duplicates({time.dims[0]!r}, keep='last')"
        )
    return times, _as_slice(order)


def _ordered_latitude(latitude: xr.DataArray) -> tuple[Floats, Order]:
    """Return the latitudes, ascending, and the order that makes them so."""
    values = _without_float_noise(latitude)
    if np.abs(values).max() > 90:
        raise ValueError(f"latitude {latitude.name!r} must lie in [-90, 90], got {values.min():g} to {values.max():g}")
    order = np.argsort(values, kind="stable")
    values = values[order]
    if (np.diff(values) < 1e-6).any():
        raise ValueError(f"latitude {latitude.name!r} has repeated values: {_repeated(values)}")
    return _uniform_if_nearly(values, latitude.dtype), _as_slice(order)


def _ordered_longitude(longitude: xr.DataArray) -> tuple[Floats, Order]:
    """Return the longitudes, ascending and contiguous, and the order that makes them so.

    A region starts after the widest gap on its circle of longitudes; a globe has no such gap and starts at
    the smallest longitude in [0, 360).
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
    order = np.delete(order, again)  # the cyclic column: the same place, written as 0 and as 360
    values = values[order]
    gaps = np.diff(values, append=values[0] + 360)
    start = 0 if gaps.max() < 1.5 * np.median(gaps) else (int(gaps.argmax()) + 1) % values.size
    order, values = np.roll(order, -start), np.roll(values, -start)
    values[values.size - start :] += 360
    if values[-1] >= 360 and values[0] >= 180:
        values -= 360
    return _uniform_if_nearly(values, longitude.dtype), _as_slice(order)


def _without_float_noise(coordinate: xr.DataArray) -> Floats:
    """Return degrees in float64; a value that went through float32 becomes the decimal that it stood for.

    The float32 nearest to 359.9 is 359.899994; the shortest decimal that reads as the same float32 is 359.9.
    Values that are exact in six decimals, such as 359.296875, need no guess.
    """
    values = np.asarray(coordinate.values, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{coordinate.name!r} must be finite, got {values[~np.isfinite(values)][:3]}")
    single = values.astype(np.float32)
    if (single == values).all():
        shortest = np.array([float(str(value)) for value in single])
        values = np.where(np.round(values, 6) == values, values, shortest)
    return np.round(values, 9)


def _uniform_if_nearly(values: Floats, dtype: np.dtype[Any]) -> Floats:
    """Return evenly spaced values where all lie within 1e-4 of a step of them; Gaussian latitudes do not."""
    if values.size < 3:
        return values
    line: Floats = np.linspace(values[0], values[-1], values.size)
    tolerance = 1e-4 * (line[1] - line[0])
    if dtype.itemsize < 8:
        tolerance += float(np.spacing(np.float32(np.abs(values).max())))
    return np.round(line, 9) if np.abs(values - line).max() <= tolerance else np.round(values, 9)


def _repeated(ascending: Floats) -> str:
    return ", ".join(f"{value:g}" for value in ascending[1:][np.diff(ascending) < 1e-6][:3])


def _as_slice(order: npt.NDArray[np.intp]) -> Order:
    """Return the order as a slice where it is one: slices stay cheap and lazy, also without dask."""
    count = np.arange(order.size)
    if (order == count).all():
        return slice(0, order.size)
    return slice(order.size - 1, None, -1) if (order == count[::-1]).all() else order
