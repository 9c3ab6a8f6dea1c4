"""Sums that add: errors, anomalies and ensemble scores of a forecast, summed over its initial times cell by cell.

Two sums over different initial times become one by plain addition. ``evaluate`` divides, last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
import pandas as pd
import xarray as xr

from climapred.grid import Grid
from climapred.results.baselines import check_times, climatology_beside
from climapred.results.metrics import crps, psnr, ssim
from climapred.variables import convert_units

Missing = Literal["refuse", "mask"]

SEASONS = ("DJF", "MAM", "JJA", "SON")
CELLS = ("latitude", "longitude")
IMAGES = {"ssim": ssim, "psnr": psnr}


def error_sums(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    *,
    missing: Missing = "refuse",
    statistics: xr.Dataset | None = None,
    data_range: float | Mapping[str, float] | None = None,
    by_season: bool = False,
) -> xr.Dataset:
    """Return the sums of forecast minus truth over the initial times, cell by cell; lazy where the forecast is.

    Args:
        forecast: dims (init_time, lead_time, latitude, longitude), with the 2-D coordinate ``valid_time``. Of an
            ensemble, with a dimension ``realization``, the mean is scored, and the members by CRPS.
        truth: dims (time, latitude, longitude), in the same units; holds every valid time.
        missing: "refuse" to sum over NaN, in forecast or truth: the sums of the cell are NaN; or "mask" it: it
            counts neither in the sums nor in ``count``. A member that is missing makes its ensemble missing.
        statistics: climatology of the training times, dims (variable, harmonic, latitude, longitude): adds the sums
            that ACC needs.
        data_range: highest minus lowest value that the fields can take, in their units, or one for "ssim" and one for
            "psnr": adds the sums of both. There is no default: the values depend on it.
        by_season: keep the sums of the seasons (of the valid times) apart, along a first dim "season".

    Returns:
        Float64, dims (lead_time, latitude, longitude): ``count``, ``error``, ``absolute`` and ``squared``; for ACC
        ``covariance``, ``forecast_variance`` and ``truth_variance`` of the anomalies; of an ensemble ``crps``,
        ``crps_fair`` and ``spread`` (its unbiased variance times (M + 1) / M). Dims (lead_time,): ``ssim``, ``psnr``,
        and the number of fields in each, ``ssim_count`` and ``psnr_count``.
        The sums of disjoint sets of initial times may be added.

    Raises:
        ValueError: if the truth lacks a valid time or lies on another grid, if units differ, or if a forecast does not
            precede the time it is for.
    """
    if missing not in get_args(Missing):
        raise ValueError(f"missing must be one of {', '.join(get_args(Missing))}, got {missing!r}")
    truth = fitting_truth(forecast, truth)
    coefficients = None if statistics is None else _coefficients(forecast, statistics)
    given = data_range or {}
    ranges = dict(given) if isinstance(given, Mapping) else dict.fromkeys(IMAGES, float(given))
    if ranges and set(ranges) != set(IMAGES):
        raise ValueError(f"data_range must be a number, or one for each of {list(IMAGES)}, got {data_range!r}")
    if "realization" in forecast.dims and forecast.sizes["realization"] == 1:
        forecast = forecast.isel(realization=0, drop=True)
    masked, parts = missing == "mask", []
    for lead in range(forecast.sizes["lead_time"]):  # one at a time: the memory of a single lead
        terms = _lead_terms(forecast.isel(lead_time=lead), truth, coefficients, ranges, masked=masked)
        parts.append(_sums_of_terms(terms, by_season=by_season, masked=masked))
    sums = xr.concat(parts, dim="lead_time").transpose("season", "lead_time", *CELLS, missing_dims="ignore")
    units = {"units": forecast.attrs["units"]} if "units" in forecast.attrs else {}
    return sums.drop_attrs().assign_attrs(units | {f"{name}_range": float(value) for name, value in ranges.items()})


def span(index: pd.Index) -> str:
    """Return how many labels an index has, and from where to where they run."""
    return f"{index.size} from {index[0]} to {index[-1]}" if index.size else "none"


def check_axes(forecast: xr.DataArray | xr.Dataset, truth: xr.DataArray | xr.Dataset) -> None:
    """Check that a forecast has starts, leads and valid times, and the truth a series of dates.

    Raises:
        ValueError: if one is missing; the message says which, and what is there.
    """
    if missing := {"init_time", "lead_time"} - set(forecast.dims) | {"valid_time"} - set(forecast.coords):
        raise ValueError(
            "a forecast must have the dims init_time and lead_time and the coordinate valid_time, lacks "
            f"{sorted(missing)}, got the dims {tuple(forecast.dims)}; external_forecast() makes it so from a file of others"
        )
    if "time" not in truth.dims or not isinstance(truth.indexes.get("time"), pd.DatetimeIndex):
        raise ValueError(
            f"truth must have a series of dates, the dimension time, got the dims {tuple(truth.dims)} and the coordinates "
            f"{list(truth.coords)}; open a file with times, or harmonise() it"
        )


def fitting_truth(forecast: xr.DataArray, truth: xr.DataArray) -> xr.DataArray:
    """Return the truth with the very coordinates of the forecast, which xarray compares bit by bit."""
    check_axes(forecast, truth)
    if (grid := Grid.of(forecast)) != Grid.of(truth):
        raise ValueError(
            f"truth must be on the grid of the forecast, {grid}, got {Grid.of(truth)}; regrid() one of them"
        )
    units = [field.attrs.get("units") for field in (forecast, truth)]
    if None not in units and not _same_units(str(units[0]), str(units[1])):
        raise ValueError(
            f"truth must be in the units of the forecast, {units[0]!r}, got {units[1]!r}; convert_units() one"
        )
    init, valid = forecast["init_time"], forecast["valid_time"].transpose("init_time", "lead_time")
    if not bool((valid == init + forecast["lead_time"]).all() & (valid > init).all()):
        wrong = np.argwhere((valid.values <= init.values[:, None]) | (valid != init + forecast["lead_time"]).values)[0]
        raise ValueError(
            f"a forecast must precede what it forecasts by its lead_time, got one from {init.values[wrong[0]]} with the "
            f"lead_time {pd.Timedelta(forecast['lead_time'].values[wrong[1]])} for {valid.values[tuple(wrong)]}: from the "
            "future of its truth; correct init_time, lead_time or valid_time"
        )
    index = truth.indexes["time"]
    if valid.size and not np.isin(valid.values, index.values).any():
        raise ValueError(
            f"forecast and truth have no time in common: valid times from {valid.values.min()} to {valid.values.max()}, "
            f"truth {span(index)}; open the truth of the forecast's period"
        )
    check_times(truth, valid.values, argument="truth", wanted="valid times")
    return truth.assign_coords({name: forecast[name] for name in CELLS})


def _same_units(one: str, other: str) -> bool:
    """Return whether two spellings, such as K and degK, are one unit; unknown ones must be spelt alike."""
    try:
        return one == other or [convert_units(value, one, other) for value in (0.0, 1.0)] == [0.0, 1.0]
    except ValueError:
        return False


def _coefficients(forecast: xr.DataArray, statistics: xr.Dataset) -> xr.DataArray:
    """Return the climatology of a forecast's variable on the very coordinates of the forecast."""
    if forecast.name not in statistics["variable"]:
        raise ValueError(f"statistics lack {forecast.name!r}, they hold {statistics['variable'].values.tolist()}")
    if (grid := Grid.of(forecast)) != Grid.of(statistics):
        raise ValueError(f"statistics must be on the grid of the forecast, {grid}, got {Grid.of(statistics)}")
    coefficients = statistics["climatology"].sel(variable=forecast.name, drop=True).astype(np.float64)
    return coefficients.assign_coords({name: forecast[name] for name in CELLS})


def _lead_terms(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    coefficients: xr.DataArray | None,
    ranges: Mapping[str, float],
    *,
    masked: bool,
) -> xr.Dataset:
    """Return what is to be summed of one lead: dims (init_time, latitude, longitude) or (init_time,)."""
    observed = truth.sel(time=forecast["valid_time"].drop_vars("valid_time")).drop_vars("time").astype(np.float64)
    values = forecast.astype(np.float64)
    ensemble = _ensemble_terms(values, observed) if "realization" in values.dims else {}
    mean = values.mean("realization", skipna=False) if ensemble else values
    error = mean - observed
    there = error.notnull().astype(np.float64) if masked else xr.ones_like(error)
    terms = {"count": there, "error": error, "absolute": abs(error), "squared": error**2, **ensemble}
    if coefficients is not None:
        terms |= _anomaly_terms(mean, observed, coefficients)
    for name, data_range in ranges.items():
        terms[name] = _of_fields(name, mean, observed, data_range, masked)
        terms[f"{name}_count"] = terms[name].notnull().astype(np.float64) if masked else xr.ones_like(terms[name])
    return xr.Dataset(terms)


def _ensemble_terms(values: xr.DataArray, observed: xr.DataArray) -> dict[str, xr.DataArray]:
    if values.chunks:
        values = values.chunk(realization=-1)
    plain, fair = xr.apply_ufunc(
        crps,
        values,
        observed,
        input_core_dims=[["realization"], []],
        output_core_dims=[[], []],
        dask="parallelized",
        output_dtypes=[np.float64, np.float64],
    )
    members = values.sizes["realization"]
    spread = values.var("realization", ddof=1, skipna=False) * (members + 1) / members
    return {"crps": plain, "crps_fair": fair, "spread": spread + 0 * observed}  # NaN where there is nothing to compare


def _anomaly_terms(mean: xr.DataArray, observed: xr.DataArray, coefficients: xr.DataArray) -> dict[str, xr.DataArray]:
    climatology = climatology_beside(mean, coefficients, mean["valid_time"].reset_coords(drop=True))
    forecast_anomaly, truth_anomaly = mean - climatology, observed - climatology
    paired = 0 * (mean - observed)  # NaN where one of the two is
    return {
        "covariance": forecast_anomaly * truth_anomaly,
        "forecast_variance": forecast_anomaly**2 + paired,
        "truth_variance": truth_anomaly**2 + paired,
    }


def _of_fields(name: str, mean: xr.DataArray, observed: xr.DataArray, data_range: float, masked: bool) -> xr.DataArray:
    """Return a measure of whole fields, dims (init_time,)."""
    fields = [field.chunk(dict.fromkeys(CELLS, -1)) if field.chunks else field for field in (mean, observed)]
    measured: xr.DataArray = xr.apply_ufunc(
        IMAGES[name],
        *fields,
        input_core_dims=[CELLS, CELLS],
        kwargs={"data_range": float(data_range), "masked": masked},
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    return measured


def _sums_of_terms(terms: xr.Dataset, *, by_season: bool, masked: bool) -> xr.Dataset:
    if not by_season:
        return terms.drop_vars("valid_time").sum("init_time", skipna=masked)
    season = terms["valid_time"].dt.season.values
    parts = [terms.isel(init_time=np.flatnonzero(season == name)) for name in SEASONS]
    dim = xr.DataArray(list(SEASONS), dims="season", name="season")
    return xr.concat([part.drop_vars("valid_time").sum("init_time", skipna=masked) for part in parts], dim=dim)
