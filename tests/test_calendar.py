"""Harmonics against the written-out formula, and climatologies against planted signals."""

import numpy as np
import pytest
import xarray as xr

from climapred.calendar import climatology_at, harmonic_design


def test_design_equals_the_formula():
    # 2 March 2012 (a leap year), 18:00: 31 + 29 + 1 days and 18 hours after 1 January.
    d, h = 2 * np.pi * 61.75 / 365.2425, 2 * np.pi * 18 / 24
    yearly = [1, np.cos(d), np.sin(d), np.cos(2 * d), np.sin(2 * d)]
    hourly = [1, np.cos(h), np.sin(h)]
    expected = [a * b for a in yearly for b in hourly]
    result = harmonic_design(np.array("2012-03-02T18", "datetime64[ns]"), annual=2, daily=1)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("annual", [0, 1, 3])
@pytest.mark.parametrize("daily", [0, 2])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_shapes(annual, daily, shape):
    start = np.datetime64("1969-12-30T21", "h")  # before 1970, where day and hour count backwards
    times = (start + np.arange(np.prod(shape, dtype=int)) * np.timedelta64(3, "h")).reshape(shape)
    design = harmonic_design(times, annual, daily)
    assert design.shape == (*shape, (2 * annual + 1) * (2 * daily + 1))
    assert design.dtype == np.float64
    assert (design[..., 0] == 1).all()
    for index in np.ndindex(shape):
        np.testing.assert_array_equal(design[index], harmonic_design(times[index], annual, daily))


def test_hours_before_1970_count_forwards():
    result = harmonic_design(np.array(["1969-12-31T06"], "datetime64[s]"), annual=0, daily=1)
    np.testing.assert_allclose(result, [[1, 0, 1]], atol=1e-13)


def test_precision_of_the_input_does_not_matter():
    times = np.array(["2013-07-01T06", "2013-12-31T18"], "datetime64[h]")
    np.testing.assert_array_equal(harmonic_design(times, 2, 2), harmonic_design(times.astype("datetime64[ns]"), 2, 2))


def planted(times):
    """A yearly cycle with a daily cycle that differs between summer and winter, at two points: (T, 2)."""
    day = (times - times.astype("datetime64[Y]")) / np.timedelta64(1, "D")
    hour = (times - times.astype("datetime64[D]")) / np.timedelta64(1, "h")
    d, h = 2 * np.pi * day / 365.2425, 2 * np.pi * hour / 24
    one = 280 - 12 * np.cos(d - 0.3) + (4 + 2 * np.cos(d)) * np.sin(h + 1)
    other = 265 + 5 * np.sin(2 * d)
    return np.stack([one, other], axis=-1)


@pytest.fixture
def coefficients():
    times = np.arange("2012-01-01", "2014-01-01", np.timedelta64(6, "h"), dtype="datetime64[ns]")
    fit = np.linalg.lstsq(harmonic_design(times, 2, 1), planted(times), rcond=None)[0]
    return xr.DataArray(fit, dims=("harmonic", "point"), attrs={"annual": 2, "daily": 1})


def test_climatology_recovers_a_planted_signal(coefficients):
    times = np.array(["2019-02-28T03", "2020-12-31T23", "2021-06-15T12:30"], "datetime64[ns]")
    result = climatology_at(coefficients, xr.DataArray(times, dims="time", coords={"time": times}))
    assert result.dims == ("time", "point")
    np.testing.assert_array_equal(result["time"].values, times)
    np.testing.assert_allclose(result.values, planted(times), rtol=0, atol=1e-9)


def test_climatology_at_two_dimensional_times(coefficients):
    start = np.array(["2019-01-01", "2019-06-01"], "datetime64[ns]")
    lead = np.array([6, 12, 24], "timedelta64[h]").astype("timedelta64[ns]")
    valid = xr.DataArray(start[:, None] + lead, {"init_time": start, "lead_time": lead}, ("init_time", "lead_time"))
    result = climatology_at(coefficients.astype(np.float32), valid)
    assert result.dims == ("init_time", "lead_time", "point")
    assert set(result.coords) == {"init_time", "lead_time"}
    np.testing.assert_allclose(result.values, planted(valid.values), rtol=0, atol=1e-3)  # float32 near 280


def test_climatology_needs_its_orders(coefficients):
    times = xr.DataArray(np.array(["2019-01-01"], "datetime64[ns]"), dims="time")
    with pytest.raises(ValueError, match=r"lack the attributes \['daily'\]; fit them with training_statistics"):
        climatology_at(coefficients.drop_attrs().assign_attrs(annual=2), times)
