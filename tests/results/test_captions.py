"""The text in figures."""

import cftime
import numpy as np
import pytest
import xarray as xr

from climapred.results.captions import circumstances, degrees, displayed, moment, origin, quantity, units_of


def field(name="t2m", value=280.0, **attrs) -> xr.DataArray:
    return xr.DataArray(np.full((2, 3), value), dims=("latitude", "longitude"), name=name, attrs=attrs)


def test_units_and_quantity_are_the_fields_own_else_those_of_its_variable():
    assert (units_of(field()), quantity(field())) == ("K", "2 metre temperature")
    told = field(units="degC", long_name="Warmth")
    assert (units_of(told), quantity(told)) == ("degC", "Warmth")
    assert (units_of(field("ndvi")), quantity(field("ndvi")), quantity(field(None))) == ("", "ndvi", "field")


@pytest.mark.parametrize(
    ("given", "value", "units"),
    [
        (field(value=280.0), 6.85, "°C"),
        (field(value=2.0), 2.0, "K"),  # a difference keeps name and units of its operands
        (field("msl", 101325.0), 1013.25, "hPa"),
        (field("u10", 7.0), 7.0, "m s-1"),
        (field("weight", 0.5, units="1"), 0.5, "1"),
    ],
)
def test_fields_are_displayed_in_the_units_of_forecasters(given, value, units):
    shown, found = displayed(given)
    assert found == units
    np.testing.assert_allclose(shown, value)


def test_places_times_and_origins():
    assert [degrees(value, "EW") for value in (0, 180, -180, 181, 359.5)] == ["0°", "180°", "180°", "179°W", "0.5°W"]
    assert [degrees(value, "NS") for value in (90, 0, -22.5)] == ["90°N", "0°", "22.5°S"]
    assert moment(np.datetime64("2014-01-17T06:30")) == "2014-01-17 06:30 UTC"
    assert origin(field()) == "2 x 3 points"
    assert origin(field(source="ERA5" + "." * 100)) == "ERA5" + "." * 56 + ", 2 x 3 points"


def test_circumstances_are_the_start_and_the_lead_that_a_field_has():
    lead = np.timedelta64(36, "h")
    dated = field().assign_coords(init_time=np.datetime64("2014-01-17"), lead_time=lead)
    assert circumstances(dated) == ["start 2014-01-17 00 UTC", "lead +36 h"]
    assert circumstances(dated.drop_vars("init_time")) == ["lead +36 h"]
    assert circumstances(field().expand_dims(lead_time=[lead])) == []


def test_dates_of_other_calendars_name_theirs():
    assert moment(cftime.Datetime360Day(2014, 2, 30, 6)) == "2014-02-30 06:00 (360_day)"
    dates = xr.DataArray(np.array(cftime.DatetimeNoLeap(2016, 2, 28), dtype=object))
    assert moment(dates.values) == "2016-02-28 00:00 (noleap)"
