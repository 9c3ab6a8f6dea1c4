"""Maps of skill: how much better than another each cell is forecast, and where that is more than luck."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from climapred.results.significance import discoveries, p_values_of_cells
from climapred.results.sums import CELLS, fitting_truth

RATE = 0.1  # of false discoveries: with neighbours that are alike, a test of all cells at 5 % (Wilks 2016)


def squared_errors(forecast: xr.DataArray, truth: xr.DataArray) -> xr.DataArray:
    """Return the squared errors of each start time and cell, means over the leads.

    Args:
        forecast: dims (init_time, lead_time, latitude, longitude), as for ``error_sums``; of an ensemble its mean.
        truth: dims (time, latitude, longitude), as for ``error_sums``.

    Returns:
        Float64, dims (init_time, latitude, longitude), in memory; one lead at a time is added.

    Raises:
        ValueError: as ``error_sums`` does.
    """
    truth = fitting_truth(forecast, truth)
    mean = forecast.mean("realization", skipna=False) if "realization" in forecast.dims else forecast
    total: xr.DataArray | float = 0.0
    for lead in range(mean.sizes["lead_time"]):
        values = mean.isel(lead_time=lead, drop=True)
        observed = truth.sel(time=values["valid_time"].drop_vars("valid_time")).drop_vars("time")
        total = total + ((values.drop_vars("valid_time").astype(np.float64) - observed) ** 2).compute()
    assert isinstance(total, xr.DataArray)
    return (total / mean.sizes["lead_time"]).drop_attrs(deep=False).transpose("init_time", *CELLS)


def skill_of_cells(errors: xr.DataArray, reference: xr.DataArray, *, rate: float = RATE) -> xr.Dataset:
    """Return the skill of each cell, and where the two cannot be told apart.

    Args:
        errors: ``squared_errors`` of a forecast.
        reference: those of the forecast that it is compared with.
        rate: of false discoveries, see ``significance.discoveries``.

    Returns:
        Dims (latitude, longitude): ``skill``, 1 - MSE / MSE of the reference (1 for a perfect forecast, negative for a worse
        one); ``p_value`` of the difference of the two MSE; ``not_significant``, 1 where it may be chance, or has gaps.

    Raises:
        ValueError: as ``significance.compare`` does.
    """
    p_value = p_values_of_cells(errors, reference)
    with np.errstate(divide="ignore", invalid="ignore"):
        skill = 1 - errors.mean("init_time", skipna=False) / reference.mean("init_time", skipna=False)
    unsure = (~discoveries(p_value, rate)).astype(np.int8)
    flags = {"flag_values": np.array([0, 1], np.int8), "flag_meanings": "significant not_significant"}
    said: dict[str, tuple[xr.DataArray, str, dict[str, Any]]] = {
        "skill": (skill, "1 - MSE / MSE of the reference, mean over start times and leads", {"units": "1"}),
        "p_value": (p_value, "chance of as large a difference of the MSE, moving blocks of starts", {"units": "1"}),
        "not_significant": (unsure, f"whether it may be chance, at a false discovery rate of {rate:g}", flags),
    }
    found = {name: field.drop_attrs().assign_attrs(long_name=text, **own) for name, (field, text, own) in said.items()}
    return xr.Dataset(found)
