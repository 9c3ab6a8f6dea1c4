"""Fields picked from datasets that follow CF, whoever wrote them: variable, start, lead, time, level, region.

Starts, leads and times are found by standard name or by the names in use: those of CF, of climapred in memory, of
WeatherBench (time, prediction_timedelta) and of cfgrib (time, step).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from climapred.grid import Grid, Region, axis_names
from climapred.results.captions import hours, moment
from climapred.variables import convert_units, select_names

_STARTS = ("init_time", "forecast_reference_time", "reference_time", "initial_time")
_LEADS = ("lead_time", "forecast_period", "prediction_timedelta", "step", "lead")
_TIMES = ("time", "valid_time")
_LEAD_UNITS = {"hours": 3600, "hour": 3600, "h": 3600, "days": 86400, "day": 86400, "minutes": 60, "seconds": 1, "s": 1}


@dataclass(frozen=True)
class Choice:
    """What to take of a file; what is None or empty is not chosen.

    Attributes:
        variable: as the file spells it, its canonical name or an alias.
        time: ISO 8601, UTC; "FROM/TO" is an interval.
        start: of a forecast.
        leads: hours.
        select: values of further dimensions, such as {"level": 500}.
        region: south, north, west, east.
    """

    variable: str | None = None
    time: str | None = None
    start: str | None = None
    leads: Sequence[float] = ()
    select: Mapping[str, str | float] = field(default_factory=dict)
    region: Region | None = None


def pick(dataset: xr.Dataset, choice: Choice, where: str) -> xr.DataArray:
    """Return the chosen variable on ascending axes, at the chosen values of all dims but those of time.

    Args:
        dataset: with 1-D latitude and longitude, in any order and either convention.
        choice: ``time``, ``start`` and ``leads`` of it are for ``at_time`` and ``as_forecast``.
        where: the file, for messages.

    Returns:
        Dims of time first, if any, then latitude and longitude. Temperatures and pressures are in K and Pa.

    Raises:
        ValueError: if there is no such variable, no latitude and longitude, no point in the region, or a value of another
            dimension is to be chosen.
    """
    fields = upright(dataset, where)
    names = [str(name) for name, array in fields.data_vars.items() if {"latitude", "longitude"} <= set(array.dims)]
    if not names:
        held = ", ".join(f"{name}{array.dims}" for name, array in dataset.data_vars.items())
        raise ValueError(f"{where} holds no field on latitude and longitude; it has {held or 'no variables'}")
    if choice.variable is None and len(names) > 1:
        raise ValueError(f"{where} holds several fields: {', '.join(names)}; choose one (--variable)")
    found = fields[select_names(names, choice.variable or names[0], where)[0]]
    found = _select(_along_times(found), choice.select, where)
    found = found if choice.region is None else cropped(found, choice.region)
    return _canonical_units(found).transpose(..., "latitude", "longitude")


def upright(dataset: xr.Dataset, where: str) -> xr.Dataset:
    """Return a dataset with ascending ``latitude`` and ``longitude``, contiguous over the region, by these names.

    Longitudes 0, 1, 358, 359 become -2, -1, 0, 1; a repeated cyclic column (0 and 360) is dropped.
    """
    try:
        names = axis_names(dataset)
    except ValueError:
        raise ValueError(
            f"{where} must have 1-D coordinates latitude and longitude (by name, standard_name or units), "
            f"got {', '.join(map(str, dataset.coords)) or 'none'}"
        ) from None
    dataset = dataset.rename(
        {old: new for old, new in zip(names, ("latitude", "longitude"), strict=True) if old != new}
    )
    circle, order = np.unique(np.round(dataset["longitude"].values.astype(np.float64), 5) % 360, return_index=True)
    gaps = np.diff(circle, append=circle[0] + 360)
    first = 0 if np.ptp(gaps) < 0.5 * np.median(gaps) else (int(np.argmax(gaps)) + 1) % circle.size  # of a region
    longitude = np.concatenate([circle[first:], circle[:first] + 360])
    if longitude[0] >= 180 and longitude[-1] >= 360:
        longitude -= 360
    latitude = np.round(dataset["latitude"].values.astype(np.float64), 5)
    dataset = dataset.isel(longitude=np.roll(order, -first)).assign_coords(longitude=longitude, latitude=latitude)
    return dataset.sortby("latitude")


def cropped(array: xr.DataArray, region: Region) -> xr.DataArray:
    """Return the points inside (south, north, west, east), in either convention of longitudes.

    Raises:
        ValueError: if there are fewer than 2 x 2 of them.
    """
    grid = Grid.of(array)
    part = grid.crop(region)
    columns = [int(np.argmin(np.abs((grid.longitude - east + 180) % 360 - 180))) for east in part.longitude]
    rows = np.searchsorted(grid.latitude, part.latitude)
    return array.isel(latitude=rows, longitude=columns).assign_coords(longitude=part.longitude)


def _select(array: xr.DataArray, chosen: Mapping[str, str | float], where: str) -> xr.DataArray:
    """Return the array without dims other than those of time, latitude and longitude."""
    kept = {"latitude", "longitude", "init_time", "lead_time", "time"}
    others = [str(dim) for dim in array.dims if dim not in kept]
    if unknown := [name for name in chosen if name not in others]:
        held = ", ".join(others) or "none"
        raise ValueError(f"{where} has no dimension {unknown[0]!r} to select from; {array.name} has {held}")
    for dim in others:
        values = array[dim].values if dim in array.coords else np.arange(array.sizes[dim])
        if dim not in chosen and len(values) > 1:
            held = f"{', '.join(map(str, values[:8]))}{', ...' if len(values) > 8 else ''}"
            raise ValueError(
                f"{array.name} in {where} has {len(values)} {dim}: {held}; choose one (--select {dim}=VALUE)"
            )
        position = _position(values, chosen[dim], f"{where} has no {dim}") if dim in chosen else 0
        array = array.isel({dim: position})
    return array


def _position(values: Any, wanted: str | float, complaint: str) -> int:
    """Return where a number or text stands among values."""
    for position, value in enumerate(values):
        if str(value) == str(wanted) or (isinstance(wanted, float) and _is_number(value) and np.isclose(value, wanted)):
            return position
    raise ValueError(f"{complaint} {wanted}; it has {', '.join(map(str, values[:20]))}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number)


def _canonical_units(array: xr.DataArray) -> xr.DataArray:
    """Return temperatures in K and pressures in Pa, whatever the file spells or measures them in."""
    units = str(array.attrs.get("units", ""))
    for canonical in ("K", "Pa"):
        try:
            converted = convert_units(array, units, canonical)
        except ValueError:  # units that measure something else, or that nobody knows: drawn as they are
            continue
        return converted.assign_attrs({**array.attrs, "units": canonical})
    return array


# --- times ---


def _along_times(array: xr.DataArray) -> xr.DataArray:
    """Return the array with its coordinates of time under the names init_time, lead_time and time, times that it has.

    A field of a single forecast along its valid times has ``lead_time`` in their place.
    """
    lead = _named(array, "forecast_period", _LEADS)
    start = _named(array, "forecast_reference_time", _STARTS)
    if lead and start is None and lead in array.dims and "time" in array.coords and _holds_dates(array["time"]):
        start = "time"  # WeatherBench and cfgrib: the start of a forecast
    names = {old: new for old, new in ((start, "init_time"), (lead, "lead_time")) if old and old != new}
    spare = [
        name
        for name in _TIMES
        if name in array.coords and name not in array.dims and name not in names and array[name].ndim
    ]
    array = array.drop_vars(spare).rename(names)
    time = next((name for name in _TIMES if name in array.dims), None)
    if lead:
        array = array.assign_coords(lead_time=_timedeltas(array["lead_time"]))
    elif start and time and array["init_time"].ndim == 0:
        leads = array[time].values - array["init_time"].values
        array = array.assign_coords({time: leads}).rename({time: "lead_time"})
    elif time == "valid_time":
        array = array.rename(valid_time="time")
    return array


def _named(array: xr.DataArray, standard_name: str, names: Iterable[str]) -> str | None:
    """Return the coordinate along a dimension, or scalar, that has the standard name or one of the names."""
    axes = [str(name) for name, coordinate in array.coords.items() if coordinate.dims in ((), (name,))]
    told = [name for name in axes if array[name].attrs.get("standard_name") == standard_name]
    return next(iter([*told, *(name for name in names if name in axes)]), None)


def _holds_dates(coordinate: xr.DataArray) -> bool:
    return coordinate.dtype.kind == "M"


def _timedeltas(lead: xr.DataArray) -> xr.DataArray:
    if lead.dtype.kind == "m":
        return lead.astype("timedelta64[ns]")
    scale = _LEAD_UNITS.get(str(lead.attrs.get("units", "hours")))
    if scale is None:
        raise ValueError(f"{lead.name} must be in one of {', '.join(_LEAD_UNITS)}, got {lead.attrs['units']!r}")
    seconds = np.round(lead.values * scale)
    return lead.copy(data=seconds.astype("timedelta64[s]").astype("timedelta64[ns]")).drop_attrs()


def at_time(array: xr.DataArray, choice: Choice, where: str) -> xr.DataArray:
    """Return the field at one time, or of one start and lead; the first where none is chosen. Dims latitude, longitude."""
    if "lead_time" in array.dims or "init_time" in array.coords:
        array = as_forecast(array, choice, where)
        array = array.isel(lead_time=0) if "lead_time" in array.dims else array
        known = {"init_time", "lead_time"} <= set(array.coords)
        return array.assign_coords(time=array["init_time"] + array["lead_time"]) if known else array
    if "time" not in array.dims:
        return array
    return array.isel(time=0 if choice.time is None else _find(array, "time", choice.time, where))


def as_forecast(array: xr.DataArray, choice: Choice, where: str) -> xr.DataArray:
    """Return one start of a forecast, the first where none is chosen, at the chosen leads: dims (lead_time, ...).

    Raises:
        ValueError: if this is no forecast, or if it lacks the start or a lead.
    """
    array = leads_of(array, choice, where)
    if "init_time" in array.dims:
        array = array.isel(init_time=0 if choice.start is None else _find(array, "init_time", choice.start, where))
    elif choice.start and ("init_time" not in array.coords or pd.Timestamp(choice.start) != array["init_time"].values):
        held = moment(array["init_time"].values) if "init_time" in array.coords else "unknown"
        raise ValueError(f"{where} has no start {choice.start}; it holds one, {held}")
    return array


def leads_of(array: xr.DataArray, choice: Choice, where: str) -> xr.DataArray:
    """Return the chosen leads of all starts; all leads where none is chosen."""
    if "lead_time" not in array.coords:
        raise ValueError(
            f"{where} is no forecast: it needs lead times, a coordinate with the standard_name forecast_period or one of "
            f"the names {', '.join(_LEADS)}; got {', '.join(map(str, array.coords))}"
        )
    array = array if "lead_time" in array.dims else array.expand_dims("lead_time")
    held = pd.TimedeltaIndex(array["lead_time"].values)
    wanted = pd.TimedeltaIndex([pd.Timedelta(hours=lead) for lead in choice.leads])
    if not wanted.isin(held).all():
        missing, known = (", ".join(map(hours, index)) for index in (wanted[~wanted.isin(held)], held))
        raise ValueError(f"{where} has no lead {missing}; it has {known}")
    return array.isel(lead_time=held.get_indexer(wanted)) if len(wanted) else array


def between(array: xr.DataArray, interval: str | None, where: str) -> xr.DataArray:
    """Return the times of an interval "FROM/TO", both ends included; all where it is None."""
    if "time" not in array.dims:
        raise ValueError(
            f"{where} has no times to go through; {array.name} has the dims {', '.join(map(str, array.dims))}"
        )
    if interval is None:
        return array
    first, separator, last = interval.partition("/")
    found = array.sel(time=slice(first, last)) if separator else array.isel(time=[_find(array, "time", first, where)])
    if not found.sizes["time"]:
        raise ValueError(f"{where} has no time in {interval}; it holds {_span(array, 'time')}")
    return found


def _find(array: xr.DataArray, name: str, wanted: str, where: str) -> int:
    """Return where a time stands."""
    try:
        text = pd.Timestamp(wanted).isoformat()[:19]
    except ValueError:
        raise ValueError(f"a time must be like 2014-01-17T06, got {wanted!r}") from None
    held = [time.isoformat()[:19] for time in array.indexes[name]]
    if text not in held:
        kind = {"init_time": "start"}.get(name, name)
        raise ValueError(f"{where} has no {kind} {wanted}; it holds {_span(array, name)}")
    return held.index(text)


def _span(array: xr.DataArray, name: str) -> str:
    index = array.indexes[name]
    return f"{index.size}, {moment(index[0])} to {moment(index[-1])}"
