"""Canonical names, units and CF standard names of the fields that climapred knows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

Values = TypeVar("Values", float, np.ndarray, "xr.DataArray")


@dataclass(frozen=True)
class Variable:
    """One physical quantity: its canonical name, its units in the store, and the names files give it.

    Attributes:
        aliases: what GRIB (cfgrib, CDO, NCL), the Climate Data Store, NCEP, MERRA-2, WRF and CMIP call it.
        plausible: lowest and highest value that weather takes, in ``units``; what lies beyond is in other units than
            its file says, or damaged.
    """

    name: str
    units: str
    standard_name: str
    long_name: str
    aliases: tuple[str, ...] = ()
    plausible: tuple[float, float] = (-np.inf, np.inf)
    cell_methods: str = "time: point"


_KELVIN, _WIND = (130.0, 370.0), (-200.0, 200.0)

VARIABLES: dict[str, Variable] = {
    variable.name: variable
    for variable in (
        Variable(
            "t2m",
            "K",
            "air_temperature",
            "2 metre temperature",
            ("2t", "2m_temperature", "VAR_2T", "T2M", "T2"),
            _KELVIN,
        ),
        Variable("air", "K", "air_temperature", "Air temperature near the surface", ("air_sig995", "tas"), _KELVIN),
        Variable(
            "d2m",
            "K",
            "dew_point_temperature",
            "2 metre dew point temperature",
            ("2d", "2m_dewpoint_temperature", "VAR_2D"),
            _KELVIN,
        ),
        Variable(
            "skt", "K", "surface_temperature", "Skin temperature", ("skin_temperature", "ts", "SKT", "TS"), _KELVIN
        ),
        Variable(
            "sst",
            "K",
            "sea_surface_temperature",
            "Sea surface temperature",
            ("sea_surface_temperature", "SSTK"),
            _KELVIN,
        ),
        Variable("t", "K", "air_temperature", "Temperature", ("temperature", "ta"), _KELVIN),
        Variable(
            "u10",
            "m s-1",
            "eastward_wind",
            "10 metre eastward wind",
            ("10u", "10m_u_component_of_wind", "uas", "VAR_10U", "U10M", "U10"),
            _WIND,
        ),
        Variable(
            "v10",
            "m s-1",
            "northward_wind",
            "10 metre northward wind",
            ("10v", "10m_v_component_of_wind", "vas", "VAR_10V", "V10M", "V10"),
            _WIND,
        ),
        Variable("u", "m s-1", "eastward_wind", "Eastward wind", ("u_component_of_wind", "uwnd", "ua"), _WIND),
        Variable("v", "m s-1", "northward_wind", "Northward wind", ("v_component_of_wind", "vwnd", "va"), _WIND),
        Variable(
            "msl",
            "Pa",
            "air_pressure_at_mean_sea_level",
            "Mean sea level pressure",
            ("prmsl", "mean_sea_level_pressure", "slp", "psl", "MSL", "SLP"),
            (8e4, 1.15e5),
        ),
        Variable(
            "sp",
            "Pa",
            "surface_air_pressure",
            "Surface pressure",
            ("surface_pressure", "ps", "SP", "PS", "PSFC"),
            (3e4, 1.15e5),
        ),
        Variable("z", "m2 s-2", "geopotential", "Geopotential", ("geopotential",), (-1e4, 1e6)),
        Variable("q", "kg kg-1", "specific_humidity", "Specific humidity", ("specific_humidity", "hus"), (-0.01, 0.1)),
    )
}

_SPELLINGS = {spelling: variable for variable in VARIABLES.values() for spelling in (variable.name, *variable.aliases)}

# Units as files spell them -> (canonical unit, scale, offset): canonical = scale * x + offset. Case, spaces, underscores
# and the signs of powers do not count: "deg_K", "degK" and "Deg K" are one spelling.
_UNITS: dict[str, tuple[str, float, float]] = {
    **dict.fromkeys(("K", "degK", "degree K", "degrees K", "kelvin", "kelvins", "degrees kelvin"), ("K", 1.0, 0.0)),
    **dict.fromkeys(
        ("degC", "C", "°C", "celsius", "degree C", "degrees C", "degree celsius", "degrees celsius", "centigrade"),
        ("K", 1.0, 273.15),
    ),
    **dict.fromkeys(
        ("degF", "F", "°F", "fahrenheit", "degree F", "degrees F", "degree fahrenheit", "degrees fahrenheit"),
        ("K", 5 / 9, 459.67 * 5 / 9),
    ),
    **dict.fromkeys(("m s-1", "m/s", "m/sec", "meters per second", "metres per second"), ("m s-1", 1.0, 0.0)),
    **dict.fromkeys(("km h-1", "km/h"), ("m s-1", 1 / 3.6, 0.0)),
    **dict.fromkeys(("knot", "knots", "kt", "kts"), ("m s-1", 1852 / 3600, 0.0)),
    **dict.fromkeys(("Pa", "pascal", "pascals"), ("Pa", 1.0, 0.0)),
    **dict.fromkeys(("hPa", "mb", "mbar", "mbars", "millibar", "millibars", "hectopascal"), ("Pa", 100.0, 0.0)),
    **dict.fromkeys(("m2 s-2", "m2/s2", "J kg-1", "J/kg"), ("m2 s-2", 1.0, 0.0)),
    **dict.fromkeys(("kg kg-1", "kg/kg", "1"), ("kg kg-1", 1.0, 0.0)),
    **dict.fromkeys(("g kg-1", "g/kg"), ("kg kg-1", 1e-3, 0.0)),
}


def _spelling(unit: str) -> str:
    """Return the letters, digits, slashes and minus signs of a unit: 'M s**-1' and 'm s^-1' are both 'ms-1'."""
    return re.sub(r"[\s_.*^()]", "", unit).lower()


_CONVERSIONS = {_spelling(unit): conversion for unit, conversion in _UNITS.items()}


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
        if _spelling(unit) not in _CONVERSIONS:
            raise ValueError(f"unknown unit {unit!r}; known units: {', '.join(sorted(_UNITS))}")
    canonical, scale, offset = _CONVERSIONS[_spelling(source)]
    target_canonical, target_scale, target_offset = _CONVERSIONS[_spelling(target)]
    if canonical != target_canonical:
        raise ValueError(
            f"cannot convert {source!r} to {target!r}: one is in {canonical}, the other in {target_canonical}"
        )
    if (scale, offset) == (target_scale, target_offset):
        return values
    return (values * scale + (offset - target_offset)) / target_scale


def unit_fits(variable: Variable, unit: str, lowest: float, highest: float) -> bool:
    """Return whether values from ``lowest`` to ``highest`` in ``unit`` are weather: False for units of other quantities.

    >>> unit_fits(VARIABLES["t2m"], "K", -20.0, 35.0), unit_fits(VARIABLES["t2m"], "degC", -20.0, 35.0)
    (False, True)
    """
    conversion = _CONVERSIONS.get(_spelling(unit))
    if conversion is None or conversion[0] != _CONVERSIONS[_spelling(variable.units)][0]:
        return False
    low, high = variable.plausible
    return low <= conversion[1] * lowest + conversion[2] and conversion[1] * highest + conversion[2] <= high


def fitting_units(variable: Variable, lowest: float, highest: float) -> list[str]:
    """Return the units, each in one spelling, in which values from ``lowest`` to ``highest`` are weather.

    >>> fitting_units(VARIABLES["t2m"], 250.0, 300.0), fitting_units(VARIABLES["msl"], 960.0, 1040.0)
    (['K'], ['hPa'])
    """
    fitting: dict[tuple[str, float, float], str] = {}
    for unit, conversion in _UNITS.items():
        if unit_fits(variable, unit, lowest, highest):
            fitting.setdefault(conversion, unit)
    return list(fitting.values())
