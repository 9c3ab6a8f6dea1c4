"""Scores from sums that add: errors are summed over initial times cell by cell, and divided last.

Two sums over different initial times become one by plain addition, so that a year in one piece and a year in
fifty chunks, or on fifty machines, give the same scores:

    sums = error_sums(winter["t2m"], truth["t2m"]) + error_sums(summer["t2m"], truth["t2m"])
    table = score_table(scores({"convlstm": sums}))

NaN stays loud: a missing value in a forecast or in the truth makes the scores of its cell, and the means,
NaN. Where ``missing="mask"`` is asked for, it counts neither in the errors nor in their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
import pandas as pd
import xarray as xr

from climapred.grid import Grid, cell_areas
from climapred.results.baselines import BASELINES, check_times

Missing = Literal["refuse", "mask"]

_CELLS = ("latitude", "longitude")
_MEANS = ("mae", "rmse", "bias", "mae_area", "rmse_area", "bias_area")
_SKILLS = tuple(f"skill_{reference}" for reference in BASELINES)


def evaluate(
    forecasts: Mapping[str, xr.Dataset],
    truth: xr.Dataset,
    variable: str | None = None,
    *,
    missing: Missing = "refuse",
) -> xr.Dataset:
    """Return the ``scores`` of forecasts that were made for the same times on the same grid.

    Args:
        forecasts: one forecast per model name, dims (init_time, lead_time, latitude, longitude); a baseline
            that is named "persistence", "climatology" or "damped" becomes a reference for skill.
        truth: dims (time, latitude, longitude); holds every valid time.
        variable: what to score; None where the forecasts hold a single variable.
        missing: as in ``error_sums``. With "mask" each forecast is scored over what it has itself: skill
            compares like with like where the forecasts share their gaps, as those of the truth.

    Raises:
        ValueError: if the forecasts differ in times, leads or grid, if a variable or a valid time is missing.
    """
    _check_comparable(forecasts)
    if variable is None:
        names = list(next(iter(forecasts.values())).data_vars)
        if len(names) != 1:
            raise ValueError(f"forecasts hold the variables {names}; pass variable= to choose one")
        variable = str(names[0])
    for label, dataset in {**forecasts, "truth": truth}.items():
        if variable not in dataset.data_vars:
            raise ValueError(f"{label!r} has no variable {variable!r}, it holds {list(dataset.data_vars)}")
    observed = truth[variable]
    return scores({model: error_sums(of[variable], observed, missing=missing) for model, of in forecasts.items()})


def _check_comparable(forecasts: Mapping[str, xr.Dataset]) -> None:
    if not forecasts:
        raise ValueError("forecasts must hold at least one model, got none")
    first, *others = forecasts
    reference = forecasts[first]
    for model in others:
        for name in ("init_time", "lead_time"):
            wanted, found = reference.indexes[name], forecasts[model].indexes[name]
            if not wanted.equals(found):
                raise ValueError(
                    f"model {model!r} has other {name}s than {first!r}: {_span(found)} "
                    f"against {_span(wanted)}; forecast the same windows, or select the common ones"
                )
        if Grid.of(forecasts[model]) != Grid.of(reference):
            raise ValueError(
                f"model {model!r} is on another grid than {first!r}: {Grid.of(forecasts[model])} against "
                f"{Grid.of(reference)}; regrid() one of them"
            )


def _span(index: pd.Index) -> str:
    return f"{index.size} from {index[0]} to {index[-1]}" if index.size else "none"


def error_sums(forecast: xr.DataArray, truth: xr.DataArray, *, missing: Missing = "refuse") -> xr.Dataset:
    """Return the sums of forecast minus truth over the initial times, cell by cell.

    Args:
        forecast: dims (init_time, lead_time, latitude, longitude), with the 2-D coordinate ``valid_time``.
        truth: dims (time, latitude, longitude), in the same units; holds every valid time.
        missing: "refuse" to sum over NaN, in forecast or truth: the sums of the cell are NaN; or "mask" it: it
            counts neither in the sums nor in ``count``.

    Returns:
        ``count``, ``error``, ``absolute`` and ``squared``: float64, dims (lead_time, latitude, longitude).
        The sums of disjoint sets of initial times may be added.

    Raises:
        ValueError: if the truth lacks a valid time, or lies on another grid.
    """
    if missing not in get_args(Missing):
        raise ValueError(f"missing must be one of {', '.join(get_args(Missing))}, got {missing!r}")
    if (grid := Grid.of(forecast)) != Grid.of(truth):
        raise ValueError(
            f"truth must be on the grid of the forecast, {grid}, got {Grid.of(truth)}; regrid() one of them"
        )
    check_times(truth, forecast["valid_time"].values, argument="truth", wanted="valid times")
    truth = truth.assign_coords({name: forecast[name] for name in _CELLS})
    leads = range(forecast.sizes["lead_time"])
    sums = [_lead_sums(forecast.isel(lead_time=lead), truth, masked=missing == "mask") for lead in leads]
    return xr.concat(sums, dim="lead_time").transpose("lead_time", *_CELLS)


def _lead_sums(forecast: xr.DataArray, truth: xr.DataArray, *, masked: bool) -> xr.Dataset:
    """Return the sums of one lead: taken one at a time, they need the memory of a single lead."""
    observed = truth.sel(time=forecast["valid_time"].drop_vars("valid_time")).drop_vars("time")
    error = forecast.astype(np.float64) - observed
    units = {"units": forecast.attrs["units"]} if "units" in forecast.attrs else {}
    there = error.notnull().astype(np.float64) if masked else xr.ones_like(error)
    terms = {"count": there, "error": error, "absolute": abs(error), "squared": error**2}
    sums = xr.Dataset({name: term.sum("init_time", skipna=masked) for name, term in terms.items()})
    return sums.drop_attrs().assign_attrs(units)


def scores(sums: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Return the scores of each model from its ``error_sums``.

    Returns:
        Dims (model, lead_time): ``mae``, ``rmse``, ``bias`` (plain means over samples and cells) and ``mae_area``,
        ``rmse_area``, ``bias_area`` (a sample weighs as the area of its cell). A root is taken last: rmse is the
        root of the mean. ``skill_persistence``, ``skill_climatology`` and ``skill_damped``, each
        where that reference is among the models, are 1 - MSE / MSE of the reference, weighted by area (the
        MSESS of the WMO Manual on the GDPFS). Dims (model, lead_time, latitude, longitude): ``mae_map``,
        ``rmse_map``, ``bias_map``, NaN in cells without a sample.

    Raises:
        ValueError: if there is no model, or if one has no sample at some lead time.
    """
    if not sums:
        raise ValueError("sums must hold at least one model, got none")
    for model, of_model in sums.items():
        if not bool((of_model["count"].sum(_CELLS) > 0).all()):
            raise ValueError(
                f"sums of model {model!r} hold no sample at some lead time; add sums of at least one init_time "
                "with values"
            )
    models = xr.DataArray(list(sums), dims="model", name="model")
    stacked = xr.concat(list(sums.values()), dim=models, join="exact")
    area = xr.DataArray(cell_areas(Grid.of(stacked)), dims=_CELLS)
    cells = stacked / stacked["count"].where(stacked["count"] > 0)
    sums_of_all = (of_cells.sum(_CELLS, skipna=False) for of_cells in (stacked, stacked * area))
    plain, weighted = (of_all / of_all["count"] for of_all in sums_of_all)
    result = xr.Dataset(
        {
            "mae": plain["absolute"],
            "rmse": np.sqrt(plain["squared"]),
            "bias": plain["error"],
            "mae_area": weighted["absolute"],
            "rmse_area": np.sqrt(weighted["squared"]),
            "bias_area": weighted["error"],
            **_skills(weighted["squared"]),
            "mae_map": cells["absolute"],
            "rmse_map": np.sqrt(cells["squared"]),
            "bias_map": cells["error"],
        }
    )
    return _described(result, stacked.attrs)


def _skills(mse: xr.DataArray) -> dict[str, xr.DataArray]:
    """Return 1 - MSE / MSE of each reference among the models: -inf or NaN where a reference is perfect."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            f"skill_{reference}": 1 - mse / mse.sel(model=reference, drop=True)
            for reference in BASELINES
            if reference in mse["model"]
        }


def _described(result: xr.Dataset, attributes: Mapping[str, str]) -> xr.Dataset:
    long_names = {
        "mae": "mean absolute error",
        "rmse": "root mean squared error",
        "bias": "mean error (forecast minus truth)",
    }
    suffixes = {
        "": "plain mean over cells",
        "area": "mean over cells weighted by area",
        "map": "of each cell",
    }
    for name, score in result.items():
        kind, _, suffix = str(name).partition("_")
        if kind == "skill":
            long_name = f"1 - MSE / MSE of {suffix}, mean over cells weighted by area"
            score.attrs = {"long_name": long_name, "units": "1"}
        else:
            score.attrs = {"long_name": f"{long_names[kind]}, {suffixes[suffix]}", **attributes}
    return result.drop_attrs(deep=False)


def score_table(scores: xr.Dataset) -> pd.DataFrame:
    """Return one row per model and lead: the means, and the skills (empty where a reference is missing)."""
    means = scores[[name for name in _MEANS + _SKILLS if name in scores]]
    frame = means.to_dataframe(dim_order=["model", "lead_time"]).reset_index()
    frame.insert(1, "lead_hours", frame["lead_time"].dt.total_seconds() / 3600)
    return frame.reindex(columns=["model", "lead_hours", *_MEANS, *_SKILLS])


def summary(scores: xr.Dataset) -> pd.DataFrame:
    """Return one row per model: means over the leads.

    ``rmse`` is the mean of the rmse of each lead, as papers print it. A skill compares mean squared errors
    that were averaged over the leads first, so that a lead where the reference is nearly perfect cannot
    dominate.
    """
    means = scores[list(_MEANS)].mean("lead_time", skipna=False)
    skills = _skills((scores["rmse_area"] ** 2).mean("lead_time", skipna=False))
    frame = means.assign(skills).to_dataframe().reset_index()
    return frame.reindex(columns=["model", *_MEANS, *_SKILLS])


def format_table(table: pd.DataFrame, *, markdown: bool = False) -> str:
    """Return a table as aligned text, plain or Markdown: three decimals, empty columns left out.

    >>> table = pd.DataFrame({"model": ["persistence", "damped"], "mae": [2.3411, 1.796]})
    >>> print(format_table(table, markdown=True))
    | model       |   mae |
    | :---------- | ----: |
    | persistence | 2.341 |
    | damped      | 1.796 |
    """
    table = table.dropna(axis="columns", how="all")
    columns = []
    for name, values in table.items():
        is_number = pd.api.types.is_numeric_dtype(values.dtype)
        cells = [_cell(value, "g" if name == "lead_hours" else ".3f") for value in values]
        width = max(len(str(name)), *map(len, cells), 2)
        pad = str.rjust if is_number else str.ljust
        rule = "-" * (width - 1) + ":" if is_number else ":" + "-" * (width - 1)
        columns.append(
            [pad(str(name), width), rule if markdown else "-" * width, *(pad(cell, width) for cell in cells)]
        )
    edge, gap = ("| ", " | ") if markdown else ("", "  ")
    return "\n".join((edge + gap.join(row) + edge[::-1]).rstrip() for row in zip(*columns, strict=True))


def _cell(value: object, number: str) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:{number}}"
    return str(value)
