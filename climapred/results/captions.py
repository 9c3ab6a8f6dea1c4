"""What the text in a figure says: quantities and units as forecasters read them, times, leads, places, origins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from climapred.variables import VARIABLES, convert_units

_DISPLAY_UNITS = {"K": "°C", "Pa": "hPa"}


def units_of(field: xr.DataArray) -> str:
    """Return the units that a field says, else those of the variable whose name it bears, else ""."""
    known = VARIABLES[str(field.name)].units if str(field.name) in VARIABLES else ""
    return str(field.attrs.get("units", known))


def displayed(field: xr.DataArray) -> tuple[xr.DataArray, str]:
    """Return the field in the units that forecasters read, °C and hPa, and these units.

    xarray lets a difference keep the attributes of its operands, so kelvin alone do not tell a temperature from an
    error. Values do: no temperature near the ground is below 100 K, no error above.
    """
    units = units_of(field)
    if units not in _DISPLAY_UNITS or (units == "K" and not float(field.min()) > 100):
        return field, units
    return convert_units(field, units, _DISPLAY_UNITS[units]), _DISPLAY_UNITS[units]


def quantity(field: xr.DataArray) -> str:
    """Return what a field holds: its long name, else that of its variable, else its name."""
    name = str(field.name or "field")
    return str(field.attrs.get("long_name") or (VARIABLES[name].long_name if name in VARIABLES else name))


def labelled(name: str, units: str) -> str:
    """Return a name with its units.

    >>> labelled("Error", "K"), labelled("Weight", "1")
    ('Error (K)', 'Weight')
    """
    return f"{name} ({units})" if units and units != "1" else name


def moment(time: Any) -> str:
    """Return anything that pandas takes for a time, in UTC.

    >>> moment(np.datetime64("2014-01-17T06"))
    '2014-01-17 06 UTC'
    """
    time = time.item() if isinstance(time, np.ndarray) and time.dtype.kind == "O" else time
    if hasattr(time, "calendar"):  # cftime: a date that need not be one of ours
        return f"{time.strftime('%Y-%m-%d %H:%M')} ({time.calendar})"
    stamp = pd.Timestamp(time)
    return stamp.strftime("%Y-%m-%d %H UTC" if stamp == stamp.floor("h") else "%Y-%m-%d %H:%M UTC")


def hours(lead: pd.Timedelta) -> str:
    """Return a lead time in hours.

    >>> hours(pd.Timedelta(days=1))
    '+24 h'
    """
    return f"+{lead / pd.Timedelta(hours=1):g} h"


def degrees(value: float, hemispheres: str) -> str:
    """Return a latitude or longitude; ``hemispheres`` are the letters of positive and negative values.

    >>> degrees(-3.5, "NS"), degrees(255, "EW"), degrees(360, "EW")
    ('3.5°S', '105°W', '0°')
    """
    value = (value + 180) % 360 - 180 if hemispheres == "EW" else value
    letter = "" if value in (0, -180) else hemispheres[0] if value > 0 else hemispheres[1]
    return f"{abs(value):g}°{letter}"


def circumstances(field: xr.DataArray) -> list[str]:
    """Return start and lead of a field, as far as its scalar coordinates init_time and lead_time tell them."""
    known: dict[str, Any] = {name: field[name].values for name in ("init_time", "lead_time") if name in field.coords}
    single = {name: values for name, values in known.items() if values.ndim == 0}
    start = [f"start {moment(single['init_time'])}"] if "init_time" in single else []
    return start + ([f"lead {hours(pd.Timedelta(single['lead_time'][()]))}"] if "lead_time" in single else [])


def origin(field: xr.DataArray) -> str:
    """Return where a field comes from, its ``source`` in at most 60 letters, and how many points it has."""
    shape = " x ".join(str(field.sizes[name]) for name in ("latitude", "longitude"))
    return f"{field.attrs.get('source', '')!s:.60}, {shape} points".lstrip(", ")
