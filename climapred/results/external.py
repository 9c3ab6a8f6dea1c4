"""Forecasts that climapred did not make, in the shape of those that it did: same names, units, starts and leads.

Files of forecasts agree on little. A start is called ``init_time``, ``forecast_reference_time`` (CF) or ``time`` (cfgrib,
WeatherBench); a lead ``lead_time``, ``forecast_period`` (CF), ``step`` (cfgrib) or ``prediction_timedelta`` (WeatherBench);
members ``realization``, ``number``, ``member`` or ``ensemble``. A file of a single start may hold valid times instead of
leads. The fields must lie on the grid of the truth: ``regrid()`` them before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from climapred.grid import Grid, axis_names, descending_axes
from climapred.results.sums import span
from climapred.variables import VARIABLES, canonical_name, convert_units, select_names

_INITS = ("init_time", "forecast_reference_time", "reference_time", "initial_time", "time")
_LEADS = ("lead_time", "forecast_period", "prediction_timedelta", "step", "leadtime", "lead")
_VALIDS = ("valid_time", "time")
_MEMBERS = ("realization", "number", "member", "ensemble")
_LEAD_UNITS = {
    **dict.fromkeys(("s", "second", "seconds"), "s"),
    **dict.fromkeys(("minute", "minutes", "min"), "m"),
    **dict.fromkeys(("h", "hr", "hour", "hours"), "h"),
    **dict.fromkeys(("d", "day", "days"), "D"),
}
_NO_DELAY = np.timedelta64(0, "ns")


def external_forecast(
    dataset: xr.Dataset,
    variable: str,
    grid: Grid,
    *,
    init_times: npt.ArrayLike,
    lead_times: npt.ArrayLike,
    name: str | None = None,
    units: str | None = None,
    max_delay: np.timedelta64 = _NO_DELAY,
) -> xr.Dataset:
    """Return the forecast of one variable that a dataset holds for given starts and leads; data stay lazy.

    Args:
        dataset: a file of forecasts as xarray opens it, on ``grid`` (in either direction).
        variable: the name of the truth's variable, which the result has.
        grid: that of the truth.
        init_times: datetime64, shape (I,), those of the forecasts to compare with.
        lead_times: timedelta64, shape (L,), positive.
        name: what the dataset calls the variable; None for ``variable`` or one of its other names.
        units: of the truth; None for the canonical units of the variable.
        max_delay: where a start is missing, the latest one that is older by up to this much takes its place, with
            leads that are longer by as much: forecasts are made twice a day, and known hours later. Never a later one.

    Returns:
        Dims (init_time[, realization], lead_time, latitude, longitude) and the 2-D coordinate valid_time; float32 as all
        forecasts.

    Raises:
        ValueError: if starts, leads, units or the variable cannot be told, if the grid is another, if a start with all
            leads is missing, or if a lead is not positive.
    """
    found = select_names([str(key) for key in dataset.data_vars], [name or variable], "the forecast")[0]
    field = _on_grid(_with_axes(dataset, dataset[found]), grid)
    field = _with_units(field, variable, units)
    wanted = np.asarray(init_times, "datetime64[ns]"), np.asarray(lead_times, "timedelta64[ns]")
    if not (wanted[1] > _NO_DELAY).all():
        raise ValueError(f"lead_times must be positive, got {pd.Timedelta(wanted[1].min())}")
    matched = _matched(field, *wanted, max_delay=max_delay)
    dims = ("init_time", "realization", "lead_time", "latitude", "longitude")
    if extra := [dim for dim in matched.dims if dim not in dims and matched.sizes[dim] > 1]:
        raise ValueError(
            f"the forecast has further dims {[(dim, matched.sizes[dim]) for dim in extra]}; select one label of each: "
            f"dataset.sel({extra[0]}=...)"
        )
    matched = matched.squeeze([dim for dim in matched.dims if dim not in dims], drop=True).reset_coords(drop=True)
    result = matched.transpose(*dims, missing_dims="ignore").astype(np.float32).to_dataset(name=variable)
    return result.assign_coords(valid_time=(("init_time", "lead_time"), wanted[0][:, None] + wanted[1]))


def _with_axes(dataset: xr.Dataset, field: xr.DataArray) -> xr.DataArray:
    """Return the field with dims init_time and lead_time (and realization), whatever the dataset calls them."""
    init = _first(dataset, _INITS[:-1]) or _first(dataset, _INITS)
    lead = _first(dataset, _LEADS)
    if init is None or (lead is None and init == "time"):
        raise ValueError(
            f"a forecast must have starts (one of {', '.join(_INITS)}) and leads (one of {', '.join(_LEADS)}), got the "
            f"coordinates {list(dataset.coords)}: a series of valid times is no forecast"
        )
    starts = np.atleast_1d(dataset[init].values)
    if starts.dtype.kind != "M":
        raise ValueError(f"the starts {init!r} must be decoded times, got {starts.dtype}; open the file with xarray")
    starts = starts.astype("datetime64[ns]")
    if lead is None:
        lead, leads = _leads_from_valid_times(dataset, starts, init)
    else:
        leads = _lead_values(dataset[lead])
    axes = {"init_time": (_along(dataset, init), starts), "lead_time": (_along(dataset, lead), leads)}
    members = [dim for dim in field.dims if str(dim) in _MEMBERS]
    kept = {*axis_names(dataset), *members}
    field = field.drop_vars([key for key in field.coords if key not in kept])
    field = field.rename(dict.fromkeys(members, "realization"))
    for axis, (own, values) in axes.items():
        field = field.rename({own: axis}) if own in field.dims else field.expand_dims(axis)
        if field.sizes[axis] != values.size:
            raise ValueError(f"{own!r} has {values.size} values, {field.name!r} has {field.sizes[axis]} along it")
        field = field.assign_coords({axis: values})
        if not field.indexes[axis].is_unique:
            raise ValueError(
                f"{own!r} of the forecast repeats {field.indexes[axis][field.indexes[axis].duplicated()][0]}"
            )
    return field.sortby(["init_time", "lead_time"])


def _along(dataset: xr.Dataset, name: str) -> str:
    """Return the dimension of a coordinate; its own name for a single value."""
    return str(dataset[name].dims[0]) if dataset[name].ndim else name


def _first(dataset: xr.Dataset, names: Sequence[str]) -> str | None:
    """Return the first of the names that is a coordinate, or a variable, of at most one dimension."""
    return next((name for name in names if name in dataset.variables and dataset[name].ndim <= 1), None)


def _leads_from_valid_times(
    dataset: xr.Dataset, starts: npt.NDArray[np.datetime64], init: str
) -> tuple[str, npt.NDArray[np.timedelta64]]:
    valid = _first(dataset, [name for name in _VALIDS if name != init])
    if valid is None or starts.size != 1 or dataset[valid].dtype.kind != "M":
        raise ValueError(
            f"a forecast without leads must have one start and valid times ({' or '.join(_VALIDS)}), got {starts.size} "
            f"starts and the coordinates {list(dataset.coords)}"
        )
    return valid, np.atleast_1d(dataset[valid].values).astype("datetime64[ns]") - starts


def _lead_values(lead: xr.DataArray) -> npt.NDArray[np.timedelta64]:
    """Return leads as timedelta64, decoded by xarray or not."""
    values = np.atleast_1d(lead.values)
    if values.dtype.kind == "m":
        return values.astype("timedelta64[ns]")
    if str(lead.attrs.get("units")) not in _LEAD_UNITS:
        raise ValueError(
            f"the leads {lead.name!r} must be times or numbers with units such as hours, got {values.dtype} with the units "
            f"{lead.attrs.get('units')!r}; set them: dataset[{lead.name!r}].attrs['units'] = 'hours'"
        )
    seconds = np.timedelta64(1, _LEAD_UNITS[lead.attrs["units"]]) / np.timedelta64(1, "s")  # type: ignore[call-overload]
    return np.round(values * seconds).astype("timedelta64[s]").astype("timedelta64[ns]")


def _on_grid(field: xr.DataArray, grid: Grid) -> xr.DataArray:
    """Return the field with the very coordinates of the grid, both increasing."""
    if (found := Grid.of(field, any_direction=True)) != grid:
        raise ValueError(f"the forecast must be on the grid of the truth, {grid}, got {found}; regrid() it first")
    names = axis_names(field)
    field = field.isel(dict.fromkeys(descending_axes(field), slice(None, None, -1)))
    field = field.rename({own: name for own, name in zip(names, ("latitude", "longitude"), strict=True) if own != name})
    return field.assign_coords(grid.coordinates())


def _with_units(field: xr.DataArray, variable: str, units: str | None) -> xr.DataArray:
    known = VARIABLES.get(canonical_name(variable))
    target = units or (known.units if known else None)
    if target is None:
        raise ValueError(f"climapred does not know the units of {variable!r}; pass units=, those of the truth")
    if not (own := field.attrs.get("units")):
        raise ValueError(
            f"variable {field.name!r} of the forecast has no units; set them: dataset[{field.name!r}].attrs['units'] = ..."
        )
    attributes = {"units": target, **({"long_name": known.long_name} if known else {})}
    return convert_units(field, str(own), target).drop_attrs(deep=False).assign_attrs(attributes)


def _matched(
    field: xr.DataArray,
    init_times: npt.NDArray[np.datetime64],
    lead_times: npt.NDArray[np.timedelta64],
    *,
    max_delay: np.timedelta64,
) -> xr.DataArray:
    """Return the fields of the starts, each from the latest forecast made by then that has all leads."""
    starts, leads = field.indexes["init_time"], field.indexes["lead_time"]
    delays: dict[np.timedelta64, list[int]] = {}
    missing = []
    for place, init in enumerate(init_times):
        first, last = starts.searchsorted(init - max_delay), starts.searchsorted(init, side="right")
        ages = [init - start for start in starts[first:last][::-1].values]
        fitting = (age for age in ages if pd.Index(lead_times + age).isin(leads).all())
        if (age := next(fitting, None)) is None:
            missing.append(init)
        else:
            delays.setdefault(age, []).append(place)
    if missing:
        overlap = (
            f"{len(missing)} of {len(init_times)} starts" if delays else "all starts: the two have no time in common"
        )
        raise ValueError(
            f"the forecast lacks {overlap}, first {missing[0]} with leads to {pd.Timedelta(lead_times.max())}; it has the "
            f"starts {span(starts)} and the leads {span(leads)}; select common starts, or allow older ones: max_delay="
        )
    parts = []
    for age, places in delays.items():
        labels = {"init_time": init_times[places] - age, "lead_time": lead_times + age}
        parts.append(field.sel(labels).assign_coords(init_time=init_times[places], lead_time=lead_times))
    return xr.concat(parts, dim="init_time").sel(init_time=init_times)
