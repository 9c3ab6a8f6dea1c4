"""Forecasts that cost nothing, in the shape of every other forecast: what a trained model has to beat.

    persistence     x(t + lead) = x(t)
    climatology     x(t + lead) = c(t + lead)
    damped          x(t + lead) = c(t + lead) + r(lead) (x(t) - c(t))
    same_hour       x(t + lead) = x(the last time up to t at the same hour of the day)
    eof_regression  x(t + lead) = c(t + lead) + E B(lead) E* (x(t) - c(t))

with c the harmonic climatology of the training times, and r the correlation, cell by cell, of the anomaly x -
c with itself one lead later. The third is the regression of the later anomaly on the present one: it tends to
persistence for short leads and to climatology for long ones, and is the honest reference for both. The fifth is a
regression too, but of the leading patterns E of the whole field on each other, so that weather may move.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from climapred.calendar import Times, climatology_at, harmonic_design
from climapred.grid import Grid, cell_areas
from climapred.variables import VARIABLES

if TYPE_CHECKING:
    import dask.array

BASELINES = ("persistence", "climatology", "damped")
FURTHER_BASELINES = ("same_hour", "eof_regression")

_Places = npt.NDArray[np.intp]

_DAY = np.timedelta64(24, "h")
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
    pairs = _pairs(training.indexes["time"], leads, "lag_correlation")
    anomalies = _anomalies(training, statistics, training["time"]).drop_vars("time")
    correlations = [_correlation(anomalies.isel(time=earlier), anomalies.isel(time=later)) for earlier, later in pairs]
    return xr.concat(correlations, dim=xr.DataArray(leads, dims="lead_time", name="lead_time")).drop_attrs(deep=False)


def _pairs(times: pd.Index, leads: npt.NDArray[np.timedelta64], wanting: str) -> list[tuple[_Places, _Places]]:
    """Return, for each lead, the places of the times that have a partner one lead later, and of these partners."""
    pairs = []
    for lead in leads:
        later = times.get_indexer(times + lead)
        earlier = np.flatnonzero(later >= 0)
        if earlier.size < 2:
            raise ValueError(
                f"{wanting} needs at least two pairs of training times {pd.Timedelta(lead)} apart, "
                f"got {earlier.size} among {times.size} times; train on more times or ask for another lead"
            )
        pairs.append((earlier, later[earlier]))
    return pairs


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


def same_hour(fields: xr.Dataset, init_times: npt.ArrayLike, lead_times: npt.ArrayLike) -> xr.Dataset:
    """Return the forecast that each hour is as it was the day before: persistence that keeps the daily cycle.

    The last field up to the initial time that is a whole number of days older than the valid time: for leads up to a day
    of the same hour yesterday, for 30 hours that of 18 hours before the initial time.

    Args:
        fields: dims (time, latitude, longitude); every variable is forecast.
        init_times: datetime64, shape (I,); the fields hold the day before each.
        lead_times: timedelta64, shape (L,), positive.

    Returns:
        A forecast as ``persistence`` returns it.

    Raises:
        ValueError: if a field of the day before is missing, or a lead is not a positive timedelta.
    """
    axes = _forecast_axes(init_times, lead_times)
    days = -(-axes["lead_time"] // _DAY)
    earlier = axes["valid_time"] - days * _DAY
    check_times(fields, earlier.values, argument="fields", wanted="times of the same hour up to a day before")
    found = fields.sel(time=earlier.drop_vars("valid_time")).drop_vars("time")
    return _forecast(dict(found.items()), axes)


def eof_regression(
    training: xr.Dataset,
    statistics: xr.Dataset,
    lead_times: npt.ArrayLike,
    *,
    modes: int = 60,
    ridge: float = 0.1,
) -> xr.Dataset:
    """Return the leading patterns of the anomalies, and how their amplitudes follow from each other one lead later.

    The patterns E (empirical orthogonal functions) are the first right singular vectors of the anomalies, each cell
    times the root of its area. Their amplitudes Z0, and Z1 one lead later, over all pairs of training times, give

        B(lead) = (Z0' Z0 + g I)^-1 Z0' Z1,    g = ridge * trace(Z0' Z0) / modes

    so that patterns which hardly vary are damped most. Lazy fields are decomposed by a randomised method of fixed seed
    (Halko et al. 2011, doi:10.1137/090771806; four power iterations), block by block; fields in memory exactly.

    Args:
        training: dims (time, latitude, longitude), the training times only.
        statistics: their climatology, dims (variable, harmonic, latitude, longitude).
        lead_times: timedelta64, shape (L,), positive.
        modes: number of patterns. Few are too smooth, many fit noise where there are few training times.
        ridge: as above; 0 for plain least squares.

    Returns:
        ``eof``: dims (variable, mode, latitude, longitude), of unit norm with the areas as weights (mean 1);
        ``propagator``: dims (variable, lead_time, mode, later_mode); ``explained``: dims (variable, mode), share of the
        variance. Float64.

    Raises:
        ValueError: if there are fewer training times or cells than modes, if too few pairs lie some lead apart, if the
            training has NaN, if a variable has no statistics, or if the grids differ.
    """
    leads = _checked_leads(lead_times)
    pairs = _pairs(training.indexes["time"], leads, "eof_regression")
    most = min(training.sizes["time"], training.sizes["latitude"] * training.sizes["longitude"])
    if not 1 <= modes <= most:
        raise ValueError(f"modes must lie between 1 and {most}, the smaller of training times and cells, got {modes}")
    if ridge < 0:
        raise ValueError(f"ridge must not be negative, got {ridge}")
    weights = _root_areas(training)
    parts = []
    for name, anomaly in _anomalies(training, statistics, training["time"]).items():
        matrix = (anomaly * weights).transpose("time", "latitude", "longitude").data.reshape(len(anomaly), -1)
        amplitudes, patterns, total = _leading_patterns(matrix, modes, str(name))
        found = [_ridge(amplitudes[earlier], amplitudes[later], ridge) for earlier, later in pairs]
        parts.append(
            xr.Dataset(
                {
                    "eof": (("mode", "latitude", "longitude"), patterns.reshape(modes, *anomaly.shape[1:])),
                    "propagator": (("lead_time", "mode", "later_mode"), np.stack(found)),
                    "explained": ("mode", (amplitudes**2).sum(axis=0) / total),
                }
            )
        )
    fitted = xr.concat(parts, dim=xr.DataArray(list(map(str, training.data_vars)), dims="variable", name="variable"))
    fitted = fitted.assign_coords(lead_time=leads, latitude=training["latitude"], longitude=training["longitude"])
    return fitted.assign_attrs(modes=modes, ridge=ridge)


def _leading_patterns(
    matrix: npt.NDArray[np.float64] | dask.array.Array, modes: int, name: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], float]:
    """Return amplitudes (T, K) and patterns (K, C) of a matrix (T, C), and the sum of its squares."""
    total = float((matrix**2).sum())
    if not np.isfinite(total):
        raise ValueError(
            f"the training fields of {name!r} have NaN; eof_regression needs a region without, or leave it out"
        )
    if isinstance(matrix, np.ndarray):
        patterns = np.linalg.svd(matrix, full_matrices=False)[2][:modes]
    else:
        from dask.array.linalg import svd_compressed  # loaded where used: maps need the names above alone

        patterns = svd_compressed(matrix, modes, n_power_iter=4, seed=0)[2].compute()
    return np.asarray(matrix @ patterns.T), patterns, max(total, np.finfo(float).tiny)


def _ridge(present: npt.NDArray[np.float64], later: npt.NDArray[np.float64], ridge: float) -> npt.NDArray[np.float64]:
    normal = present.T @ present
    normal += ridge * np.trace(normal) / len(normal) * np.eye(len(normal))
    return np.linalg.pinv(normal, hermitian=True) @ (present.T @ later)


def _root_areas(fields: xr.Dataset) -> xr.DataArray:
    areas = cell_areas(Grid.of(fields))
    return xr.DataArray(np.sqrt(areas / areas.mean()), dims=("latitude", "longitude"))


def eof_regression_forecast(
    fields: xr.Dataset,
    statistics: xr.Dataset,
    fitted: xr.Dataset,
    init_times: npt.ArrayLike,
    lead_times: npt.ArrayLike,
) -> xr.Dataset:
    """Return the climatology at the valid times plus the anomaly that ``eof_regression`` makes of the initial one.

    What the patterns do not hold of the initial anomaly is forgotten.

    Args:
        fields: dims (time, latitude, longitude); every variable is forecast.
        statistics: climatology of the training times, dims (variable, harmonic, latitude, longitude).
        fitted: what ``eof_regression`` returned for the training times.
        init_times: datetime64, shape (I,); each must be a time of ``fields``.
        lead_times: timedelta64, shape (L,); each must be a lead of ``fitted``.

    Returns:
        A forecast as ``persistence`` returns it.

    Raises:
        ValueError: if an initial time, a lead or a variable is missing, or if the grids differ.
    """
    axes = _forecast_axes(init_times, lead_times)
    anomalies = _anomalies(_fields_at(fields, axes["init_time"]), statistics, axes["init_time"])
    fitted, statistics = _on_grid_of(fields, fitted, "fitted"), _on_grid_of(fields, statistics, "statistics")
    if missing := set(map(str, fields.data_vars)) - set(fitted["variable"].values):
        raise ValueError(f"fitted lacks {sorted(missing)}, it holds {fitted['variable'].values.tolist()}")
    absent = axes.indexes["lead_time"].difference(fitted.indexes["lead_time"])
    if absent.size:
        found = [str(lead) for lead in absent[:3]]
        raise ValueError(f"fitted lacks the lead times {found}; pass them to eof_regression()")
    weights, forecasts = _root_areas(fields), {}
    for name, anomaly in anomalies.items():
        one = fitted.sel(variable=name, lead_time=axes["lead_time"], drop=True)
        amplitudes = xr.dot(anomaly * weights, one["eof"], dim=("latitude", "longitude"))
        later = xr.dot(amplitudes, one["propagator"], dim="mode").rename(later_mode="mode")
        changed = (xr.dot(later, one["eof"], dim="mode") / weights).astype(np.float32)
        forecasts[name] = _climatology(statistics, str(name), axes["valid_time"]) + changed
    return _forecast(forecasts, axes)


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
    coefficients = {name: statistics["climatology"].sel(variable=name, drop=True) for name in fields.data_vars}
    return fields.map(
        lambda field: field.astype(np.float64) - climatology_beside(field, coefficients[field.name], times)
    )


def _on_grid_of(fields: xr.Dataset, other: xr.Dataset, argument: str) -> xr.Dataset:
    """Return ``other`` with the very coordinates of ``fields``, which xarray compares bit by bit."""
    wanted, found = Grid.of(fields), Grid.of(other)
    if wanted != found:
        raise ValueError(f"{argument} must be on the grid of the fields, {wanted}, got {found}; regrid() one of them")
    return other.assign_coords(latitude=fields["latitude"], longitude=fields["longitude"])


def climatology_beside(field: xr.DataArray, coefficients: xr.DataArray, times: xr.DataArray) -> xr.DataArray:
    """Return the climatology at ``times`` (one-dimensional) in float64; for a lazy field lazily, in its chunks of times."""
    if not field.chunks:
        return climatology_at(coefficients, times)
    orders = int(coefficients.attrs["annual"]), int(coefficients.attrs["daily"])
    rows = xr.DataArray(harmonic_design(times.values, *orders), dims=(*times.dims, "harmonic"), coords=times.coords)
    dim = times.dims[0]
    climatology: xr.DataArray = xr.dot(rows.chunk({dim: field.chunksizes[dim]}), coefficients, dim="harmonic")
    return climatology


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
