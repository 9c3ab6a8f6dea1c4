"""Mean, spread and harmonic climatology of the training times only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xarray as xr

from climapred.calendar import harmonic_design

_BLOCK_BYTES = 64 * 2**20


def default_orders(times: npt.NDArray[np.datetime64]) -> tuple[int, int]:
    """Return the orders (annual, daily) of a climatology that ``times`` can determine.

    Two annual harmonics from 300 days on; none below, where they would only bend the few weeks that are there (and
    swing wildly outside). Two daily harmonics from four times a day on (for 00, 06, 12, 18 UTC the second one's sine is
    always zero: the fit gives it the coefficient 0), one for three, none for fewer.
    """
    span_days = (times[-1] - times[0]) / np.timedelta64(1, "D")
    step_hours = np.median(np.diff(times)) / np.timedelta64(1, "h") if len(times) > 1 else 24
    return (2 if span_days >= 300 else 0), int(np.clip(12 // step_hours, 0, 2)) if step_hours < 12 else 0


def training_statistics(fields: xr.Dataset, *, annual: int | None = None, daily: int | None = None) -> xr.Dataset:
    """Return the statistics of ``fields``, which hold the training times and nothing else.

    One pass in blocks along time. The climatology is the least-squares fit of ``climapred.calendar``'s harmonics in each
    cell, by its normal equations in float64 (with the first field taken off, against cancellation).

    Args:
        fields: variables with dims (time, latitude, longitude).
        annual, daily: orders of the climatology; None for ``default_orders``.

    Returns:
        mean, std, minimum, maximum, anomaly_std: dims (variable,), over all times and cells, unweighted.
        climatology: dims (variable, harmonic, latitude, longitude), attributes ``annual`` and ``daily``.

    Raises:
        ValueError: if there are no times, or a variable has missing values.
    """
    times = fields["time"].values
    if len(times) < 2:
        raise ValueError(f"statistics need at least 2 training times, got {len(times)}; check the split")
    known = default_orders(times)
    annual, daily = known[0] if annual is None else annual, known[1] if daily is None else daily
    design = harmonic_design(times, annual, daily)
    rows = [_variable_statistics(fields[name], design) for name in fields.data_vars]
    statistics = xr.concat(rows, dim=xr.Variable("variable", np.array(list(fields.data_vars), dtype="U")))
    statistics["climatology"].attrs = {"annual": annual, "daily": daily, "long_name": "harmonic coefficients"}
    statistics.attrs = {
        "training_start": str(times[0]),
        "training_stop": str(times[-1]),
        "training_times": len(times),
    }
    return statistics


def _variable_statistics(field: xr.DataArray, design: npt.NDArray[np.float64]) -> xr.Dataset:
    first = field[0].values.astype(np.float64).ravel()
    projected = np.zeros((design.shape[1], first.size))
    total = squares = 0.0
    low, high = np.inf, -np.inf
    block = max(1, _BLOCK_BYTES // (8 * first.size))
    for start in range(0, len(design), block):
        values = field[start : start + block].values.astype(np.float64).reshape(-1, first.size) - first
        if np.isnan(values).any():
            raise ValueError(_missing_message(field, start, values))
        projected += design[start : start + block].T @ values
        total += (values + first).sum()
        squares += (values**2).sum()
        low, high = min(low, (values + first).min()), max(high, (values + first).max())
    coefficients = np.linalg.pinv(design.T @ design, rcond=1e-10, hermitian=True) @ projected
    anomaly_squares = squares - (coefficients * projected).sum()
    coefficients[0] += first
    count = len(design) * first.size
    mean = total / count
    shape = (design.shape[1], *field.shape[1:])
    return xr.Dataset(
        {
            "mean": mean,
            "std": np.sqrt(_centred_squares(squares, projected[0], first, mean, len(design)) / count),
            "minimum": low,
            "maximum": high,
            "anomaly_std": np.sqrt(max(anomaly_squares, 0.0) / count),
            "climatology": (("harmonic", "latitude", "longitude"), coefficients.reshape(shape)),
        },
        coords={"latitude": field["latitude"], "longitude": field["longitude"]},
    )


def _centred_squares(
    squares: float, sums: npt.NDArray[np.float64], first: npt.NDArray[np.float64], mean: float, times: int
) -> float:
    """Sum of (x - mean)^2 from those of x - first: (x - mean) = (x - first) + (first - mean), cell by cell."""
    offset = first - mean
    return float(squares + 2 * (offset * sums).sum() + times * (offset**2).sum())


def _missing_message(field: xr.DataArray, start: int, values: npt.NDArray[np.float64]) -> str:
    bad = np.isnan(values).any(axis=1)
    when = field["time"].values[start : start + len(values)][bad][0]
    share = np.isnan(values[bad][0]).mean()
    return (
        f"{field.name} has missing values ({share:.1%} of the cells at {np.datetime_as_string(when, unit='m')}); "
        "choose a region without them (grid.region) or fill them before"
    )
