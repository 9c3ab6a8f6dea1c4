"""Numbers as the script of a page takes them: base64 of deflated bytes, and what is left of too many.

Fields have 4095 steps between their least and greatest value; weights are packed by ``report`` itself.
"""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from climapred.grid import Array, Grid

Section = dict[str, Any]

_LEVELS, _MISSING = 4095, 0xFFFF


def encoded(values: npt.NDArray[Any]) -> str:
    """Return the bytes of an array, deflated, as text."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 9)).decode()


def packed(values: npt.NDArray[np.floating]) -> Section:
    """Return a field of any shape in steps of 1/4095 of its range; what is not finite has a code of its own.

    All low bytes precede all high ones, which deflate better so. A value is ``offset + step * code``.
    """
    finite = np.isfinite(values)
    low, high = (float(end(values[finite])) for end in (np.min, np.max)) if finite.any() else (0.0, 0.0)
    step = (high - low) / _LEVELS or 1.0
    codes = np.full(values.shape, _MISSING, dtype="<u2")
    codes[finite] = np.round((values[finite].astype(np.float64) - low) / step)
    planes = codes.reshape(-1, 1).view(np.uint8).T
    return {"shape": list(values.shape), "offset": low, "step": step, "data": encoded(planes)}


def spread(count: int, most: int) -> npt.NDArray[np.intp]:
    """Return at most ``most`` of the indices 0 to count - 1, evenly, with both ends."""
    return np.unique(np.linspace(0, count - 1, max(1, min(count, most))).round().astype(np.intp))


def stride_for(grid: Grid, cells: float) -> int:
    """Return n so that every n-th row and column leave at most ``cells`` points."""
    height, width = grid.shape
    stride = 1
    while -(-height // stride) * -(-width // stride) > max(cells, 1):
        stride += 1
    return stride


def points(grid: Grid, stride: int = 1) -> Section:
    """Return where the points drawn are."""
    latitude, longitude = (axis[::stride].tolist() for axis in (grid.latitude, grid.longitude))
    return {"latitude": latitude, "longitude": longitude, "stride": stride}


def hours_of(lead_time: xr.DataArray) -> list[float]:
    """Return leads in hours."""
    return list(pd.TimedeltaIndex(lead_time.values) / pd.Timedelta(hours=1))


def numbers(values: Array) -> list[float | None]:
    """Return six digits of each value, None for what is not finite: JSON knows neither."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]
