"""Names and units of the fields."""

import numpy as np
import pytest
import xarray as xr

from climapred.variables import (
    VARIABLES,
    canonical_name,
    convert_units,
    find_variable,
    fitting_units,
    select_names,
    unit_fits,
)


@pytest.mark.parametrize(
    ("value", "source", "target", "expected"),
    [
        (0.0, "degC", "K", 273.15),
        (0.0, "K", "degC", -273.15),
        (32.0, "degF", "K", 273.15),
        (-40.0, "degF", "celsius", -40.0),
        (212.0, "Fahrenheit", "°C", 100.0),
        (100.0, "C", "F", 212.0),
        (1013.25, "hPa", "Pa", 101325.0),
        (101325.0, "Pa", "millibars", 1013.25),
        (7.0, "m s**-1", "m s-1", 7.0),
        (280.0, "degK", "K", 280.0),
        (36.0, "km/h", "m s-1", 10.0),
        (3600.0, "knots", "m s-1", 1852.0),
        (2.0, "g kg-1", "kg/kg", 0.002),
    ],
)
def test_conversions(value, source, target, expected):
    assert convert_units(value, source, target) == pytest.approx(expected, rel=1e-12)
    assert convert_units(expected, target, source) == pytest.approx(value, rel=1e-12, abs=1e-9)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("K", "K"),
        ("kelvin", "degK"),
        ("hPa", "mbar"),
        ("m/s", "m s-1"),
        ("C", "celsius"),
        ("Deg_K", "degrees Kelvin"),
        ("degree_Celsius", "degrees C"),
        ("m s**-1", "m.s^-1"),
        ("m**2 s**-2", "m2 s-2"),
        ("(kg kg-1)", "kg kg**-1"),
        ("Pascals", "pa"),
    ],
)
def test_other_spellings_return_the_same_object(source, target):
    values = np.ones(3)
    assert convert_units(values, source, target) is values


def test_arrays_keep_type_and_dtype():
    values = np.array([0, 20], dtype=np.float32)
    result = convert_units(values, "degC", "K")
    assert result.dtype == np.float32
    np.testing.assert_array_equal(values, [0, 20])
    lazy = xr.DataArray(values, dims="time", name="t2m").chunk(time=1)
    converted = convert_units(lazy, "degC", "K")
    assert converted.chunks == ((1, 1),)
    assert converted.dtype == np.float32
    np.testing.assert_array_equal(converted.values, result)


def test_unit_errors():
    with pytest.raises(ValueError, match=r"unknown unit 'furlong'; known units: .*K.*hPa"):
        convert_units(1.0, "furlong", "K")
    with pytest.raises(ValueError, match="unknown unit 'Kel'"):
        convert_units(1.0, "K", "Kel")
    with pytest.raises(ValueError, match="cannot convert 'hPa' to 'degC': one is in Pa, the other in K"):
        convert_units(1.0, "hPa", "degC")


def test_names():
    spellings = [name for variable in VARIABLES.values() for name in (variable.name, *variable.aliases)]
    assert len(set(spellings)) == len(spellings)
    for key, variable in VARIABLES.items():
        assert key == variable.name
        assert convert_units(1.0, variable.units, variable.units) == 1.0
        for name in (variable.name, *variable.aliases):
            assert find_variable(name) is variable
            assert canonical_name(name) == key


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match=r"unknown variable 'precip'; known .*t2m \(2t, .*msl \(prmsl, "):
        find_variable("precip")
    assert canonical_name("precip") == "precip"


def test_names_are_matched_exactly_before_aliases():
    assert select_names(["2t", "t2m"], ["t2m"], "x") == ["t2m"]
    assert select_names(["2t", "z"], None, "x") == ["2t", "z"]
    assert select_names(["2t", "z"], ["t2m", "2t"], "x") == ["2t"]
    with pytest.raises(ValueError, match=r"several variables for it: 2t, VAR_2T"):
        select_names(["2t", "VAR_2T"], ["t2m"], "x")
    with pytest.raises(ValueError, match=r"variable 'msl' cannot be taken from era5.grib, which has only: 2t, z"):
        select_names(["2t", "z"], "msl", "era5.grib")


@pytest.mark.parametrize("name", VARIABLES)
def test_every_variable_has_a_range_in_its_own_units(name):
    low, high = VARIABLES[name].plausible
    assert unit_fits(VARIABLES[name], VARIABLES[name].units, low, high)
    assert not unit_fits(VARIABLES[name], VARIABLES[name].units, low, 2 * high)
    assert not unit_fits(VARIABLES[name], VARIABLES[name].units, low - (high - low), high)


@pytest.mark.parametrize(
    ("name", "lowest", "highest", "units"),
    [
        ("t2m", 250.0, 310.0, ["K"]),
        ("t2m", -40.0, 45.0, ["degC", "degF"]),
        ("t2m", -40.0, 110.0, ["degF"]),
        ("msl", 96000.0, 104000.0, ["Pa"]),
        ("msl", 960.0, 1040.0, ["hPa"]),
        ("q", 0.0, 20.0, ["g kg-1"]),
        ("t2m", 1e4, 2e4, []),
        ("t2m", 250.0, np.inf, []),
    ],
)
def test_the_units_that_values_are_weather_in(name, lowest, highest, units):
    assert fitting_units(VARIABLES[name], lowest, highest) == units
    for unit in ("K", "degC", "degF", "Pa", "hPa", "g kg-1", "furlong"):
        assert unit_fits(VARIABLES[name], unit, lowest, highest) == (unit in units)
