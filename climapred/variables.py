"""Canonical names, units and CF standard names of the fields that climapred knows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import xarray as xr

Values = TypeVar("Values", float, np.ndarray, xr.DataArray)


@dataclass(frozen=True)
class Variable:
    """One physical quantity: its canonical name, its units in the store, and the names files give it."""

    name: str
    units: str
    standard_name: str
    long_name: str
    aliases: tuple[str, ...] = ()
    cell_methods: str = "time: point"


VARIABLES: dict[str, Variable] = {
    variable.name: variable
    for variable in (
        Variable("t2m", "K", "air_temperature", "2 metre temperature", ("2t", "2m_temperature", "VAR_2T")),
        Variable("air", "K", "air_temperature", "Air temperature near the surface", ("air_sig995", "tas")),
        Variable("d2m", "K", "dew_point_temperature", "2 metre dew point temperature", ("2d", "VAR_2D")),
        Variable("skt", "K", "surface_temperature", "Skin temperature", ("skin_temperature",)),
        Variable("t", "K", "air_temperature", "Temperature", ("temperature",)),
        Variable("u10", "m s-1", "eastward_wind", "10 metre eastward wind", ("10u",)),
        Variable("v10", "m s-1", "northward_wind", "10 metre northward wind", ("10v",)),
        Variable("msl", "Pa", "air_pressure_at_mean_sea_level", "Mean sea level pressure", ("prmsl",)),
    )
}

_SPELLINGS = {spelling: variable for variable in VARIABLES.values() for spelling in (variable.name, *variable.aliases)}

# Every spelling of a unit that was met in files -> (canonical unit, scale, offset): canonical = scale * x + offset.
_UNITS: dict[str, tuple[str, float, float]] = {
    **dict.fromkeys(("K", "k", "degK", "deg_K", "degrees_K", "kelvin", "Kelvin"), ("K", 1.0, 0.0)),
    **dict.fromkeys(
        ("degC", "deg_C", "C", "°C", "celsius", "Celsius", "degree_Celsius", "degrees_Celsius", "degrees C"),
        ("K", 1.0, 273.15),
    ),
    **dict.fromkeys(("degF", "deg_F", "F", "°F", "fahrenheit", "Fahrenheit"), ("K", 5 / 9, 459.67 * 5 / 9)),
    **dict.fromkeys(("m s-1", "m s**-1", "m/s", "m.s-1"), ("m s-1", 1.0, 0.0)),
    **dict.fromkeys(("Pa", "pascal", "Pascal", "Pascals"), ("Pa", 1.0, 0.0)),
    **dict.fromkeys(("hPa", "mbar", "millibar", "millibars"), ("Pa", 100.0, 0.0)),
}


def find_variable(name: str) -> Variable:
    """Return the variable that a file calls ``name``.

    Raises:
        ValueError: if no variable has this name or alias; the message lists the known names.

    >>> find_variable("2t").name
    't2m'
    """
    if name not in _SPELLINGS:
        raise ValueError(
            f"unknown variable {name!r}; known variables (and aliases): "
            + ", ".join(f"{v.name} ({', '.join(v.aliases)})" for v in VARIABLES.values())
        )
    return _SPELLINGS[name]


def canonical_name(name: str) -> str:
    """Return climapred's name for what a file calls ``name``, and ``name`` itself where climapred knows none.

    >>> canonical_name("2t"), canonical_name("z")
    ('t2m', 'z')
    """
    return _SPELLINGS[name].name if name in _SPELLINGS else name


def select_names(present: Iterable[str], wanted: Sequence[str] | str | None, where: str) -> list[str]:
    """Return those of the names ``present`` in a file that ``wanted`` asks for, as the file spells them.

    Args:
        present: the names in the file.
        wanted: names as in the file, canonical names or aliases; None for all that are present.
        where: the file, for the error message.

    Raises:
        ValueError: if a name is absent, or stands for several variables of the file.

    >>> select_names(["2t", "lsm"], ["t2m"], "era5.grib")
    ['2t']
    """
    present = list(present)
    if wanted is None:
        return present
    selected = []
    for name in [wanted] if isinstance(wanted, str) else wanted:
        same = [other for other in present if canonical_name(other) == canonical_name(name)]
        matches = [name] if name in present else same
        if len(matches) != 1:
            several = f"several variables for it: {', '.join(matches)}" if matches else ""
            raise ValueError(
                f"variable {name!r} cannot be taken from {where}, which has {several or 'only: ' + ', '.join(present)}"
            )
        selected += matches
    return list(dict.fromkeys(selected))


def convert_units(values: Values, source: str, target: str) -> Values:
    """Return ``values`` in unit ``target``; the same object where nothing changes.

    Raises:
        ValueError: if a unit is unknown or the two do not measure the same quantity.

    >>> round(convert_units(20.0, "degC", "K"), 2)
    293.15
    """
    for unit in (source, target):
        if unit not in _UNITS:
            raise ValueError(f"unknown unit {unit!r}; known units: {', '.join(sorted(_UNITS))}")
    canonical, scale, offset = _UNITS[source]
    target_canonical, target_scale, target_offset = _UNITS[target]
    if canonical != target_canonical:
        raise ValueError(
            f"cannot convert {source!r} to {target!r}: one is in {canonical}, the other in {target_canonical}"
        )
    if (scale, offset) == (target_scale, target_offset):
        return values
    return (values * scale + (offset - target_offset)) / target_scale
