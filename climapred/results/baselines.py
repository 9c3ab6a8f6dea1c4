"""Forecasts that cost nothing, in the shape of every other forecast: what a trained model has to beat.

    persistence   x(t + lead) = x(t)
    climatology   x(t + lead) = c(t + lead)
    damped        x(t + lead) = c(t + lead) + r(lead) (x(t) - c(t))

with c the harmonic climatology of the training times, and r the correlation, cell by cell, of the anomaly x -
c with itself one lead later. The third is the regression of the later anomaly on the present one: it tends to
persistence for short leads and to climatology for long ones, and is the honest reference for both.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from climapred.calendar import Times, climatology_at
from climapred.grid import Grid
from climapred.variables import VARIABLES

BASELINES = ("persistence", "climatology", "damped")

_FORECAST_DIMS = ("init_time", "lead_time", "latitude", "longitude")


def persistence(fields: xr.Dataset, init_times: npt.ArrayLike, lead_times: npt.ArrayLike) -> xr.Dataset:
    """Return the forecast that nothing changes: the field of the initial time at every lead.

    Args:
        fields: dims (time, latitude, longitude); every variable is forecast.
        init_times: datetime64, shape (I,); each must be a time of ``fields``.
        lead_times: timedelta64, shape (L,), positive.

    Returns:
        Float32 variables with dims (init_time, lead_time, latitude, longitude) and the 2-D coordinate
        ``valid_time``. The leads are read-only views of one field: copy before writing into them.

    Raises:
        ValueError: if an initial time is missing from the fields, or a lead is not a positive timedelta.
    """
    axes = _forecast_axes(init_times, lead_times)
    starts = _fields_at(fields, axes["init_time"])
    return _forecast({name: field.expand_dims(lead_time=axes["lead_time"]) for name, field in starts.items()}, axes)


def climatology_forecast(statistics: xr.Dataset, init_times: npt.ArrayLike, lead_times: npt.ArrayLike) -> xr.Dataset:
    """Return the climatology at the valid times, whatever the initial state.

    Args:
        statistics: ``climatology`` with dims (variable, harmonic, latitude, longitude); every variable is
            forecast.
        init_times: datetime64, shape (I,).
        lead_times: timedelta64, shape (L,), positive.

    Returns:
        A forecast as ``persistence`` returns it, on the grid of the statistics.

    Raises:
        ValueError: if a lead is not a positive timedelta.
    """
    axes = _forecast_axes(init_times, lead_times)
    names = [str(name) for name in statistics["variable"].values]
    return _forecast({name: _climatology(statistics, name, axes["valid_time"]) for name in names}, axes)


def lag_correlation(training: xr.Dataset, statistics: xr.Dataset, lead_times: npt.ArrayLike) -> xr.Dataset:
    """Return how much of an anomaly is left one lead later: dims (lead_time, latitude, longitude), float64.

    The plain correlation over all pairs of training times that lie one lead apart; a time without its partner
    (at a gap, or at the end) belongs to no pair. Negative values stay: an anomaly that tends to change sign
    is damped through zero. A cell that never varies has correlation 0.

    Args:
        training: dims (time, latitude, longitude), the training times only.
        statistics: their climatology, dims (variable, harmonic, latitude, longitude).
        lead_times: timedelta64, shape (L,), positive.

    Raises:
        ValueError: if fewer than two pairs lie some lead apart, if a variable has no statistics, or if the
            grids differ.
    """
    leads = _checked_leads(lead_times)
    times = training.indexes["time"]
    pairs = []
    for lead in leads:
        later = times.get_indexer(times + lead)
        earlier = np.flatnonzero(later >= 0)
        if earlier.size < 2:
            raise ValueError(
                f"lag_correlation needs at least two pairs of training times {pd.Timedelta(lead)} apart, "
                f"got {earlier.size} among {times.size} times; train on more times or ask for another lead"
            )
        pairs.append((earlier, later[earlier]))
    anomalies = _anomalies(training, statistics, training["time"]).drop_vars("time")
    correlations = [_correlation(anomalies.isel(time=earlier), anomalies.isel(time=later)) for earlier, later in pairs]
    return xr.concat(correlations, dim=xr.DataArray(leads, dims="lead_time", name="lead_time")).drop_attrs(deep=False)


def _correlation(first: xr.Dataset, second: xr.Dataset) -> xr.Dataset:
    first, second = (x - x.mean("time", skipna=False) for x in (first, second))
    covariance = (first * second).mean("time", skipna=False)
    variances = (first**2).mean("time", skipna=False) * (second**2).mean("time", skipna=False)
    return covariance / np.sqrt(variances.where(variances != 0, 1.0))


def damped_persistence(
    fields: xr.Dataset,
    statistics: xr.Dataset,
    correlation: xr.Dataset,
    init_times: npt.ArrayLike,
    lead_times: npt.ArrayLike,
) -> xr.Dataset:
    """Return the climatology at the valid times plus what is left of the initial anomaly.

    Args:
        fields: dims (time, latitude, longitude); every variable is forecast.
        statistics: climatology of the training times, dims (variable, harmonic, latitude, longitude).
        correlation: ``lag_correlation`` of the training times, dims (lead_time, latitude, longitude).
        init_times: datetime64, shape (I,); each must be a time of ``fields``.
        lead_times: timedelta64, shape (L,); each must be a lead of ``correlation``.

    Returns:
        A forecast as ``persistence`` returns it.

    Raises:
        ValueError: if an initial time, a lead or a variable is missing, or if the grids differ.
    """
    axes = _forecast_axes(init_times, lead_times)
    anomalies = _anomalies(_fields_at(fields, axes["init_time"]), statistics, axes["init_time"])
    correlation = _on_grid_of(fields, correlation, "correlation")
    missing = axes.indexes["lead_time"].difference(correlation.indexes["lead_time"])
    if missing.size:
        found = [str(lead) for lead in missing[:3]]
        raise ValueError(f"correlation lacks the lead times {found}; pass them to lag_correlation()")
    kept = correlation.sel(lead_time=axes["lead_time"]).astype(np.float32)
    statistics = _on_grid_of(fields, statistics, "statistics")
    return _forecast(
        {
            name: _climatology(statistics, str(name), axes["valid_time"]) + kept[name] * anomaly.astype(np.float32)
            for name, anomaly in anomalies.items()
        },
        axes,
    )


def _forecast_axes(init_times: npt.ArrayLike, lead_times: npt.ArrayLike) -> xr.Dataset:
    init = np.asarray(init_times, dtype="datetime64[ns]")
    lead = _checked_leads(lead_times)
    return xr.Dataset(
        coords={
            "init_time": ("init_time", init),
            "lead_time": ("lead_time", lead),
            "valid_time": (("init_time", "lead_time"), init[:, None] + lead),
        }
    )


def _checked_leads(lead_times: npt.ArrayLike) -> npt.NDArray[np.timedelta64]:
    given = np.asarray(lead_times)
    if given.ndim != 1 or given.dtype.kind in "iuf":
        raise ValueError(f"lead_times must be 1-D timedelta64, got {given.dtype} of shape {given.shape}")
    leads = given.astype("timedelta64[ns]")
    if not (leads > np.timedelta64(0, "ns")).all():
        raise ValueError(f"lead_times must be positive, got {pd.Timedelta(leads.min())}")
    return leads


def check_times(fields: xr.Dataset | xr.DataArray, times: Times, *, argument: str, wanted: str) -> None:
    """Check that each of ``times`` is a time of ``fields``; the error names the first missing ones."""
    unique = pd.DatetimeIndex(np.unique(times))
    missing = unique[~unique.isin(fields.indexes["time"])]
    if missing.size:
        raise ValueError(
            f"{argument} lacks {missing.size} of {unique.size} {wanted}, first "
            f"{[str(time) for time in missing[:3]]}; open the fields of the whole period, or drop these times"
        )


def _fields_at(fields: xr.Dataset, init_times: xr.DataArray) -> xr.Dataset:
    """Return the fields of the initial times, dims (init_time, latitude, longitude)."""
    check_times(fields, init_times.values, argument="fields", wanted="init_times")
    return fields.sel(time=init_times).drop_vars("time")


def _anomalies(fields: xr.Dataset, statistics: xr.Dataset, times: xr.DataArray) -> xr.Dataset:
    """Return fields minus their climatology at ``times``, float64."""
    if missing := set(map(str, fields.data_vars)) - set(map(str, statistics["variable"].values)):
        raise ValueError(
            f"statistics lack {sorted(missing)}, they hold {list(map(str, statistics['variable'].values))}"
        )
    statistics = _on_grid_of(fields, statistics, "statistics")
    return fields.map(lambda field: field.astype(np.float64) - _climatology(statistics, str(field.name), times))


def _on_grid_of(fields: xr.Dataset, other: xr.Dataset, argument: str) -> xr.Dataset:
    """Return ``other`` with the very coordinates of ``fields``, which xarray compares bit by bit."""
    wanted, found = Grid.of(fields), Grid.of(other)
    if wanted != found:
        raise ValueError(f"{argument} must be on the grid of the fields, {wanted}, got {found}; regrid() one of them")
    return other.assign_coords(latitude=fields["latitude"], longitude=fields["longitude"])


def _climatology(statistics: xr.Dataset, name: str, times: xr.DataArray) -> xr.DataArray:
    """Return the climatology at ``times`` of any shape; a time that many leads share is evaluated once."""
    unique, position = np.unique(times.values, return_inverse=True)
    coefficients = statistics["climatology"].sel(variable=name, drop=True)
    values = climatology_at(coefficients, xr.DataArray(unique, dims="time")).astype(np.float32)
    return values.isel(time=xr.DataArray(position.reshape(times.shape), dims=times.dims, coords=times.coords))


def _forecast(variables: Mapping[Hashable, xr.DataArray], axes: xr.Dataset) -> xr.Dataset:
    """Return the variables as one forecast: the same dims, coordinates and type for every baseline."""
    forecast = xr.Dataset({name: field.astype(np.float32) for name, field in variables.items()}, coords=axes.coords)
    forecast = forecast.transpose(*_FORECAST_DIMS)
    for name, field in forecast.items():
        known = VARIABLES.get(str(name))
        field.attrs = {"units": known.units, "long_name": known.long_name} if known else {}
    return forecast
