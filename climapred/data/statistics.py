"""Mean, spread and harmonic climatology of the training times only."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import xarray as xr

from climapred.calendar import harmonic_design

Floats = npt.NDArray[np.float64]
Orders = tuple[int, int]
Missing = Literal["refuse", "mask"]

_BLOCK_BYTES = 64 * 2**20

# A cell with gaps determines a combination of harmonics if its variance over the times there reaches this; a wave has
# 1/2 over whole cycles, a seasonal change of the daily cycle 1/4, and the poorest combination of 240 days in a row 0.015.
_LEAST_VARIANCE = 0.01


def default_orders(times: npt.NDArray[np.datetime64]) -> Orders:
    """Return the orders (annual, daily) of a climatology that ``times`` can determine.

    Two annual harmonics from 300 days on; none below, where they would only bend the few weeks that are there (and
    swing wildly outside). Two daily harmonics from four times a day on (for 00, 06, 12, 18 UTC the second one's sine is
    always zero: the fit gives it the coefficient 0), one for three, none for fewer.
    """
    span_days = (times[-1] - times[0]) / np.timedelta64(1, "D")
    step_hours = np.median(np.diff(times)) / np.timedelta64(1, "h") if len(times) > 1 else 24
    return (2 if span_days >= 300 else 0), int(np.clip(12 // step_hours, 0, 2)) if step_hours < 12 else 0


def training_statistics(
    fields: xr.Dataset, *, annual: int | None = None, daily: int | None = None, missing: Missing = "refuse"
) -> xr.Dataset:
    """Return the statistics of ``fields``, which hold the training times and nothing else.

    One pass in blocks along time. The climatology is the least-squares fit of ``climapred.calendar``'s harmonics in each
    cell, by its normal equations in float64 (with the cell's first value taken off, against cancellation).

    With ``missing="mask"`` everything is over the values that are there, and so is the fit of each cell. Combinations
    of harmonics that hardly vary over the times there are left out, and the waves that remain are the smallest about the
    cell's mean: together at most ten times the standard deviation there. A cell with one value has that value all year.
    One with values in winter only is fitted in winter; its summer is an extrapolation, bounded but no knowledge.

    Args:
        fields: variables with dims (time, latitude, longitude).
        annual, daily: orders of the climatology; None for ``default_orders``.
        missing: "refuse" a variable with NaN, or "mask" them.

    Returns:
        mean, std, minimum, maximum, anomaly_std: dims (variable,), over all times and cells, unweighted.
        climatology: dims (variable, harmonic, latitude, longitude), attributes ``annual`` and ``daily``; NaN in a
            cell without any value.

    Raises:
        ValueError: if there are no times, if a variable has missing values that are not masked, or nothing else.
    """
    if missing not in get_args(Missing):
        raise ValueError(f"missing must be one of {', '.join(get_args(Missing))}, got {missing!r}")
    times = fields["time"].values
    if len(times) < 2:
        raise ValueError(f"statistics need at least 2 training times, got {len(times)}; check the split")
    known = default_orders(times)
    orders = known[0] if annual is None else annual, known[1] if daily is None else daily
    rows = [_variable_statistics(fields[name], orders, missing) for name in fields.data_vars]
    statistics = xr.concat(rows, dim=xr.Variable("variable", np.array(list(fields.data_vars), dtype="U")))
    statistics["climatology"].attrs = {"annual": orders[0], "daily": orders[1], "long_name": "harmonic coefficients"}
    statistics.attrs = {
        "training_start": str(times[0]),
        "training_stop": str(times[-1]),
        "training_times": len(times),
    }
    return statistics


def _variable_statistics(field: xr.DataArray, orders: Orders, missing: Missing) -> xr.Dataset:
    design = harmonic_design(field["time"].values, *orders)
    sums = _sums(field, design, orders, missing)
    counts = len(design) - sums.gaps[0]
    if not (count := counts.sum()):
        raise ValueError(f"{field.name} has missing values only, at all {len(design)} training times; leave it out")
    offset = np.where(counts > 0, sums.offset, 0.0)
    mean = (sums.projected[0] + counts * offset).sum() / count
    # (x - mean) = (x - offset) + (offset - mean), cell by cell
    shift = offset - mean
    squares = sums.squares + 2 * (shift * sums.projected[0]).sum() + (counts * shift**2).sum()
    coefficients = _fit(sums, design, orders)
    anomaly_squares = sums.squares - (coefficients * sums.projected).sum()
    coefficients[0] += offset
    coefficients[:, counts == 0] = np.nan
    return xr.Dataset(
        {
            "mean": mean,
            "std": np.sqrt(squares / count),
            "minimum": sums.low,
            "maximum": sums.high,
            "anomaly_std": np.sqrt(max(anomaly_squares, 0.0) / count),
            "climatology": (("harmonic", "latitude", "longitude"), coefficients.reshape(-1, *field.shape[1:])),
        },
        coords={"latitude": field["latitude"], "longitude": field["longitude"]},
    )


class _Sums(NamedTuple):
    """What one pass over F harmonics in C cells leaves; deviations are those from the offset."""

    offset: Floats
    """The first value of each cell, shape (C,); NaN where there is none."""
    projected: Floats
    """Deviations times the harmonics, summed over the times there, shape (F, C)."""
    gaps: Floats
    """The harmonics of twice the orders, summed over the missing times, shape (K, C); the first one counts them."""
    squares: float
    """Sum of the squared deviations of all cells."""
    low: float
    high: float


def _sums(field: xr.DataArray, design: Floats, orders: Orders, missing: Missing) -> _Sums:
    times, cells = field["time"].values, math.prod(field.shape[1:])
    offset = np.full(cells, np.nan)
    projected = np.zeros((design.shape[1], cells))
    gaps = np.zeros(((4 * orders[0] + 1) * (4 * orders[1] + 1), cells))
    squares, low, high = 0.0, np.nan, np.nan
    block = max(1, _BLOCK_BYTES // (8 * cells))
    for start in range(0, len(design), block):
        part = slice(start, start + block)
        values = field[part].values.astype(np.float64).reshape(-1, cells)
        low, high = np.fmin(low, np.fmin.reduce(values, axis=None)), np.fmax(high, np.fmax.reduce(values, axis=None))
        gone = np.isnan(values)
        if gone.any():
            if missing == "refuse":
                raise ValueError(_missing_message(field, start, gone))
            gaps += harmonic_design(times[part], 2 * orders[0], 2 * orders[1]).T @ gone
        if (unseen := np.flatnonzero(np.isnan(offset))).size:
            offset[unseen] = values[gone[:, unseen].argmin(axis=0), unseen]
        values -= offset
        values[gone] = 0.0
        projected += design[part].T @ values
        squares += float((values**2).sum())
    return _Sums(offset, projected, gaps, squares, float(low), float(high))


def _fit(sums: _Sums, design: Floats, orders: Orders) -> Floats:
    """Return the coefficients of the deviations, shape (F, C); complete cells share their normal equations."""
    normal = design.T @ design
    coefficients: Floats = np.linalg.pinv(normal, rcond=1e-10, hermitian=True) @ sums.projected
    partial = np.flatnonzero((sums.gaps[0] > 0) & (sums.gaps[0] < len(design)))
    products = _harmonic_products(orders) if partial.size else np.empty(0)
    block = max(1, _BLOCK_BYTES // normal.nbytes)
    for start in range(0, partial.size, block):
        cells = partial[start : start + block]
        normals = normal - np.tensordot(sums.gaps[:, cells], products, axes=(0, 0))
        coefficients[:, cells] = _fit_with_gaps(normals, sums.projected[:, cells].T).T
    return coefficients


def _harmonic_products(orders: Orders) -> Floats:
    """Return the products of any two harmonics as sums of harmonics of twice the orders, shape (K, F, F).

    cos a cos b = cos(a - b) / 2 + cos(a + b) / 2, and so on. Hence sums of K harmonics over the missing times, instead
    of F squared products, give the normal equations of a cell. The factors, multiples of 1/4, are solved for at times
    that run through the year and the day.
    """
    times = np.arange("2001-01-01", "2002-01-01", 317, dtype="datetime64[m]")
    design = harmonic_design(times, *orders)
    products = (design[:, :, None] * design[:, None, :]).reshape(len(times), -1)
    factors = np.linalg.lstsq(harmonic_design(times, 2 * orders[0], 2 * orders[1]), products, rcond=None)[0]
    exact: Floats = np.round(4 * factors) / 4
    return exact.reshape(-1, design.shape[1], design.shape[1])


def _fit_with_gaps(normals: Floats, projected: Floats) -> Floats:
    """Solve normal equations (C, F, F) for sums (C, F): waves of determined variance first, then the constant.

    The waves are fitted about the means over the times there, so that leaving some out does not depend on the offset.
    """
    counts = normals[:, 0, 0, None]
    means, level = normals[:, 0, 1:] / counts, projected[:, :1] / counts
    covariance = normals[:, 1:, 1:] / counts[..., None] - means[:, :, None] * means[:, None, :]
    variances, directions = np.linalg.eigh(covariance)
    along = np.einsum("cfd,cf->cd", directions, projected[:, 1:] / counts - means * level)
    amplitudes = np.divide(along, variances, out=np.zeros_like(along), where=variances > _LEAST_VARIANCE)
    waves = np.einsum("cfd,cd->cf", directions, amplitudes)
    return np.concatenate([level - (means * waves).sum(axis=1, keepdims=True), waves], axis=1)


def _missing_message(field: xr.DataArray, start: int, gone: npt.NDArray[np.bool_]) -> str:
    bad = gone.any(axis=1).argmax()
    when = np.datetime_as_string(field["time"].values[start + bad], unit="m")
    return (
        f"{field.name} has missing values ({gone[bad].mean():.1%} of the cells at {when}); choose a region without them "
        '(grid.region), fill them before, or leave them out with missing="mask"'
    )
