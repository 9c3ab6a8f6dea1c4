"""The plain correlation of anomalies with those of one place: what a learned map is to be seen beside.

It needs no network: a learned link that this map shows too is no discovery, and one that it does not show asks for a test
(``climapred.results.links.significance``). With a lag it has the direction of a link: who was first.
"""

from __future__ import annotations

from typing import get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from climapred.grid import Grid
from climapred.results.baselines import climatology_beside
from climapred.results.links.correlations import Direction, nearest_node

_DIMS = ("time", "latitude", "longitude")


def anomalies(field: xr.DataArray, statistics: xr.Dataset) -> xr.DataArray:
    """Return a field minus the climatology of its variable, float64; of a lazy field lazily.

    Args:
        field: dims (time, latitude, longitude), with the name that the statistics know.
        statistics: ``climatology`` with dims (variable, harmonic, latitude, longitude), on the grid of the field.

    Raises:
        ValueError: if the statistics lack the variable, or are on another grid.
    """
    if field.name not in statistics["variable"].values:
        raise ValueError(f"statistics hold {statistics['variable'].values.tolist()}, not {field.name!r}")
    if (wanted := Grid.of(field)) != (found := Grid.of(statistics)):
        raise ValueError(f"statistics must be on the grid of the field, {wanted}, got {found}; regrid() one of them")
    coefficients = statistics["climatology"].sel(variable=field.name, drop=True)
    coefficients = coefficients.assign_coords(latitude=field["latitude"], longitude=field["longitude"])
    deviation = field.astype(np.float64) - climatology_beside(field, coefficients, field["time"])
    return deviation.transpose(*_DIMS).rename(field.name).assign_attrs(units=field.attrs.get("units", ""))


def point_correlation(
    anomalies: xr.DataArray,
    latitude: float,
    longitude: float,
    *,
    lag: npt.ArrayLike = np.timedelta64(0, "h"),  # noqa: B008
    direction: Direction = "listens",
) -> xr.DataArray:
    """Return Pearson's correlation of the anomalies of one place with those of every point, lazily for lazy anomalies.

    Over all pairs of times that lie one lag apart; a time without its partner belongs to no pair. Where a point does not
    vary it is 0. As with a learned map, a place "listens" to what was first:

        listens  r(x(t), x_place(t + lag))        heard  r(x_place(t), x(t + lag))

    Args:
        anomalies: dims (time, latitude, longitude), in any chunks.
        latitude, longitude: of the place, degrees; the nearest grid point is taken.
        lag: timedelta64, 0 or more; several of them give a map each, along ``lag``.
        direction: see above; without a lag both are the same.

    Returns:
        Dims ([lag,] latitude, longitude), float64, with the attributes of a ``correlation_map``.

    Raises:
        ValueError: if the place lies outside the region, a lag is negative, or fewer than 3 pairs lie a lag apart.
    """
    if direction not in get_args(Direction):
        raise ValueError(f"direction must be one of {', '.join(get_args(Direction))}, got {direction!r}")
    if set(anomalies.dims) != {*_DIMS}:
        raise ValueError(f"anomalies must have the dims {_DIMS}, got {anomalies.dims}")
    anomalies, grid, lags = anomalies.transpose(*_DIMS), Grid.of(anomalies), np.asarray(lag, "timedelta64[ns]")
    row, column = np.unravel_index(nearest_node(grid, latitude, longitude), grid.shape)
    place = anomalies.isel(latitude=int(row), longitude=int(column), drop=True)
    maps = []
    for one in np.atleast_1d(lags):
        first, later = _pairs(anomalies.indexes["time"], one)
        ends = (anomalies, place) if direction == "listens" else (place, anomalies)
        maps.append(
            _correlation(*(end.isel(time=at).drop_vars("time") for end, at in zip(ends, (first, later), strict=True)))
        )
    found = xr.concat(maps, dim=xr.DataArray(np.atleast_1d(lags), dims="lag", name="lag")) if lags.ndim else maps[0]
    late = f", lag {lags / np.timedelta64(1, 'h'):g} h" if not lags.ndim and lags > np.timedelta64(0) else ""
    return found.rename("correlation").assign_attrs(
        units="1",
        long_name=f"correlation of anomalies{late}",
        direction=direction,
        point_latitude=float(grid.latitude[row]),
        point_longitude=float(grid.longitude[column]),
    )


def _pairs(times: pd.Index, lag: np.timedelta64) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    if lag < np.timedelta64(0, "ns"):
        raise ValueError(f"lag must be 0 or more, got {pd.Timedelta(lag)}; direction= turns it round")
    later = times.get_indexer(times + lag)
    first = np.flatnonzero(later >= 0)
    if first.size < 3:
        raise ValueError(f"a correlation needs 3 pairs of times {pd.Timedelta(lag)} apart, got {first.size}")
    return first, later[first]


def _correlation(one: xr.DataArray, other: xr.DataArray) -> xr.DataArray:
    """Return r over the time; moments of float64 anomalies, in one pass over lazy data."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    means = [x.mean("time", skipna=False) for x in (one, other)]
    variances = [(x**2).mean("time", skipna=False) - mean**2 for x, mean in zip((one, other), means, strict=True)]
    covariance = (one * other).mean("time", skipna=False) - means[0] * means[1]
    product = variances[0] * variances[1]
    steady = product <= 0
    found: xr.DataArray = (covariance / np.sqrt(product.where(~steady, 1.0))).where(~steady, 0.0)
    return found.clip(-1, 1).transpose("latitude", "longitude")
