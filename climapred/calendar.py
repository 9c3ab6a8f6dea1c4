"""Harmonics of the day of year and of the hour: the basis of every climatology here.

A climatology is a set of coefficient fields; its value at any time is a product with the harmonics of that time:

    climatology(t, y, x) = sum_f  design(t)_f * coefficient(f, y, x)
    design(t) = (1, cos d, sin d, ..., cos Kd, sin Kd)  (x)  (1, cos h, sin h, ..., cos Mh, sin Mh)

with d = 2 pi (days since 1 January) / 365.2425 and h = 2 pi (hour, UTC) / 24. The outer product lets the daily cycle
differ between summer and winter.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xarray as xr

Times = npt.NDArray[np.datetime64]

_YEAR_DAYS = 365.2425


def harmonic_design(times: Times, annual: int, daily: int) -> npt.NDArray[np.float64]:
    """Return the harmonics of each time, shape (..., (2 annual + 1) (2 daily + 1)).

    >>> harmonic_design(np.array(["2013-01-01T06"], "datetime64[h]"), annual=0, daily=1).round(3) + 0.0
    array([[1., 0., 1.]])
    """
    times = np.asarray(times, dtype="datetime64[ns]")
    day = (times - times.astype("datetime64[Y]")) / np.timedelta64(1, "D")
    hour = (times - times.astype("datetime64[D]")) / np.timedelta64(1, "h")
    yearly, hourly = _fourier(day / _YEAR_DAYS, annual), _fourier(hour / 24, daily)
    return (yearly[..., :, None] * hourly[..., None, :]).reshape(*times.shape, -1)


def _fourier(phase: npt.NDArray[np.float64], order: int) -> npt.NDArray[np.float64]:
    angle = 2 * np.pi * phase[..., None] * np.arange(1, order + 1)
    waves = np.stack([np.cos(angle), np.sin(angle)], axis=-1).reshape(*phase.shape, 2 * order)
    return np.concatenate([np.ones((*phase.shape, 1)), waves], axis=-1)


def climatology_at(coefficients: xr.DataArray, times: xr.DataArray) -> xr.DataArray:
    """Return the climatology at ``times``: the dims of ``times``, then those of ``coefficients`` but "harmonic".

    Args:
        coefficients: dims ("harmonic", ...), with attributes ``annual`` and ``daily`` (the orders of the design).
        times: datetime64 of any shape.
    """
    if missing := {"annual", "daily"} - set(coefficients.attrs):
        raise ValueError(
            f"climatology coefficients lack the attributes {sorted(missing)}; fit them with training_statistics()"
        )
    design = harmonic_design(times.values, int(coefficients.attrs["annual"]), int(coefficients.attrs["daily"]))
    rows = xr.DataArray(design, dims=(*times.dims, "harmonic"), coords=times.coords)
    climatology: xr.DataArray = xr.dot(rows, coefficients, dim="harmonic")
    return climatology
