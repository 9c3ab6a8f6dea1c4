"""The valid times of a file -> increasing, each once; ERA5's two versions, and calendars of models.

Only coordinates are read.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from climapred.data.axes import TIME, Axis, Change, as_slice, find_axis, is_cftime

Duplicates = Literal["refuse", "first", "last"]
Calendar = Literal["refuse", "keep"]

# ERA5's expver: label -> (rank, meaning). Where both hold a time, the lower rank counts.
_VERSIONS = {"1": (0, "final"), "5": (1, "preliminary, ERA5T")}
_LEADS = ("step", "prediction_timedelta", "forecast_period", "lead_time", "leadtime")  # what times of starts come with
_REAL_CALENDARS = ("standard", "gregorian", "proleptic_gregorian")
_EARLIEST, _LATEST = np.datetime64("1678-01-01", "us"), np.datetime64("2262-01-01", "us")  # of datetime64[ns]


def read_time(dataset: xr.Dataset, duplicates: Duplicates = "refuse", calendar: Calendar = "refuse") -> Axis:
    """Return the valid times, increasing: datetime64[ns], or cftime dates where such a calendar is kept.

    Args:
        duplicates, calendar: see ``climapred.data.harmonise.harmonise``.

    Raises:
        ValueError: if there are none, or they are not the valid times of one series.
    """
    name = find_axis(dataset, TIME)
    time = dataset[name]
    if time.ndim > 1:
        time = time.squeeze()
    if time.ndim > 1:
        raise ValueError(
            f"valid times {name!r} have dims {time.dims}: a set of forecasts, not one series; "
            f"select one start or one lead first, e.g. dataset.isel({time.dims[1]}=0)"
        )
    _refuse_starts(dataset, time, name)
    times, changes = _dates(time, name, calendar)
    labels = _labels(dataset, time)
    if labels is not None and len(set(labels)) > 1:
        counts = [
            f"{label} ({_VERSIONS.get(label, (0, 'unknown'))[1]}) at {labels.count(label)}" for label in set(labels)
        ]
        changes.append((f"expver mixed: {', '.join(sorted(counts))} of {len(labels)} times", "kept, both"))
    ranks = version_ranks(labels or [])
    order, more = _arranged(times, np.asarray(ranks or np.zeros(times.size, int)), duplicates, name)
    renamed = [(f"called {name!r}", "renamed to time")] if name != "time" else []
    return Axis(str(time.dims[0]) if time.ndim else None, times[order], as_slice(order), (*renamed, *changes, *more))


def _refuse_starts(dataset: xr.Dataset, time: xr.DataArray, name: str) -> None:
    """Refuse times that are those at which forecasts start."""
    standard_name = time.attrs.get("standard_name")
    lead = next((str(key) for key in dataset.variables if str(key).lower() in _LEADS), "step")
    later = lead in dataset.variables and bool((dataset[lead].values != np.zeros((), dataset[lead].dtype)).any())
    told = name.lower() == "valid_time" or standard_name == "time"
    if standard_name == "forecast_reference_time" or (later and not told):
        raise ValueError(
            f"{name!r} holds the starts of forecasts, not valid times; add them first: "
            f"dataset.assign_coords(valid_time=dataset[{name!r}] + dataset.{lead})"
        )


def _dates(time: xr.DataArray, name: str, calendar: Calendar) -> tuple[npt.NDArray[Any], list[Change]]:
    """Return the times in the order of the file, and what was done to them."""
    values = np.atleast_1d(time.values)
    if not values.size:
        raise ValueError(f"{name!r} is empty: the dataset has no times")
    if missing := pd.isnull(values).sum():
        raise ValueError(f"{name!r} has {missing} missing values (NaT) among {values.size} times")
    if is_cftime(values):
        if (own := values[0].calendar) not in _REAL_CALENDARS:
            return values, [_kept_calendar(own, name, calendar)]
        values = np.array([date.isoformat() for date in values], "datetime64[us]")
    if values.dtype.kind != "M":
        raise ValueError(f"{name!r} must hold datetimes, got {time.dtype}; has it no units such as 'hours since ...'?")
    first, last = values.min().astype("datetime64[us]"), values.max().astype("datetime64[us]")
    if first < _EARLIEST or last >= _LATEST:
        raise ValueError(
            f"{name!r} runs from {first.astype('M8[D]')} to {last.astype('M8[D]')}, but only 1678 to 2261 can be held as "
            "datetime64[ns]; are these the dates of a long-term mean? Give them real ones: "
            f"dataset.assign_coords({name}=...)"
        )
    return _without_time_noise(values.astype("datetime64[ns]"))


def _kept_calendar(own: str, name: str, calendar: Calendar) -> Change:
    if calendar == "refuse":
        raise ValueError(
            f"{name!r} follows the calendar {own!r}, whose dates are not all real ones; convert the file first, e.g. with "
            "dataset.convert_calendar('standard', align_on='date'), or keep its dates: calendar='keep'"
        )
    return f"follows the calendar {own!r}", "kept, as cftime dates; climapred's store takes real dates only"


def _without_time_noise(times: npt.NDArray[np.datetime64]) -> tuple[npt.NDArray[np.datetime64], list[Change]]:
    """Return times to the whole second where they miss it by less than a millisecond, as decoded fractions do."""
    whole = (times + np.timedelta64(500, "ms")).astype("datetime64[s]").astype("datetime64[ns]")
    missed = np.abs(times - whole)
    near = (missed > np.timedelta64(0)) & (missed < np.timedelta64(1, "ms"))
    if not near.any():
        return times, []
    found = f"{near.sum()} times miss a whole second by up to {missed[near].max() / np.timedelta64(1, 'us'):.2g} us"
    return np.where(near, whole, times), [(found, "rounded: noise of fractional units")]


def _labels(dataset: xr.Dataset, time: xr.DataArray) -> list[str] | None:
    """Return ERA5's version of each time, where the file tells it."""
    for name, variable in dataset.variables.items():
        if str(name).lower() == "expver" and time.ndim and variable.dims == time.dims:
            return [version_label(value) for value in variable.values]
    return None


def version_label(value: object) -> str:
    """Return ERA5's expver as GRIB, NetCDF and the Climate Data Store spell it, without its zeros.

    >>> version_label("0005"), version_label(b"0001"), version_label(5.0)
    ('5', '1', '5')
    """
    text = value.decode() if isinstance(value, bytes) else str(value)
    return text.strip().removesuffix(".0").lstrip("0")


def version_ranks(labels: list[str]) -> list[int] | None:
    """Return the rank of each version, 0 for final data; None where one is neither final nor ERA5T."""
    return [_VERSIONS[label][0] for label in labels] if labels and set(labels) <= set(_VERSIONS) else None


def _arranged(
    times: npt.NDArray[Any], ranks: npt.NDArray[np.int_], duplicates: Duplicates, name: str
) -> tuple[npt.NDArray[np.intp], list[Change]]:
    """Return the order that makes times increase, each once."""
    distinct, place = np.unique(times, return_inverse=True)
    changes: list[Change] = []
    if (np.diff(place) < 0).any():
        way = "descend" if (np.diff(place) < 0).all() else "are out of order"
        changes.append((f"times {way}", "sorted, with their fields"))
    best = np.full(distinct.size, ranks.max())
    np.minimum.at(best, place, ranks)
    order = np.lexsort((np.arange(times.size), place))
    if beaten := int((ranks > best[place]).sum()):
        order = order[(ranks == best[place])[order]]
        changes.append(
            (f"{beaten} times in both expver 1 and 5", "dropped those of 5: final data (1) before ERA5T (5)")
        )
    again = np.flatnonzero(np.diff(place[order]) == 0) + 1
    if again.size:
        first = ", ".join(map(_say_time, distinct[np.unique(place[order][again])[:3]]))
        found = f"{again.size} of {times.size} times in {name!r} are repeated: {first}..."
        if duplicates == "refuse":
            raise ValueError(
                f"{found}; choose files that do not overlap, or say which field counts: duplicates='first' or 'last'"
            )
        order = np.delete(order, again if duplicates == "first" else again - 1)
        changes.append((found, f"dropped all but the {duplicates} of each, in the order of the files"))
    return order, changes


def _say_time(time: Any) -> str:
    return str(np.datetime_as_string(time, unit="m")) if isinstance(time, np.datetime64) else str(time)
