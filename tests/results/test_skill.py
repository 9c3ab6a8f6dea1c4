import numpy as np
import pytest
import xarray as xr

from climapred.grid import Grid
from climapred.results.evaluate import scores
from climapred.results.significance import discoveries, error_series, p_values_of_cells
from climapred.results.skill import skill_of_cells, squared_errors
from climapred.results.sums import error_sums

GRID = Grid.regular(5, region=(20, 60, 200, 245))  # 9 x 10
HOUR = np.timedelta64(1, "h")
LEADS = np.array([6, 12]) * HOUR
TIMES = np.datetime64("2014-02-20", "ns") + np.arange(210) * 6 * HOUR
STARTS = TIMES[:200]
DIMS = ("init_time", "lead_time", "latitude", "longitude")


@pytest.fixture(scope="module")
def case():
    """Truth; a forecast that is better in the west of the box, worse in the east, the same between; what it is better than."""
    random = np.random.default_rng(0)
    truth = xr.DataArray(
        random.normal(280, 5, (TIMES.size, *GRID.shape)),
        {"time": TIMES, **GRID.coordinates()},
        ("time", *DIMS[2:]),
        attrs={"units": "K"},
    )
    valid = xr.DataArray(STARTS[:, None] + LEADS, dims=DIMS[:2])
    exact = truth.sel(time=valid).drop_vars("time").assign_coords(init_time=STARTS, lead_time=LEADS, valid_time=valid)
    size = np.ones(GRID.shape[1])
    size[:3], size[-3:] = 0.5, 1.5
    return truth, exact + size * random.standard_normal(exact.shape), exact + random.standard_normal(exact.shape)


def test_squared_errors_of_cells_average_to_the_map_of_rmse(case):
    truth, forecast, _ = case
    found = squared_errors(forecast.chunk(init_time=7), truth)
    assert found.dims == ("init_time", "latitude", "longitude")
    cells = error_series(forecast, truth, cells=True)["squared"].mean("lead_time")
    np.testing.assert_allclose(found, cells.transpose(*found.dims), rtol=1e-12)
    expected = (scores({"m": error_sums(forecast, truth)})["rmse_map"].sel(model="m") ** 2).mean("lead_time")
    np.testing.assert_allclose(found.mean("init_time"), expected, rtol=1e-12)
    ensemble = xr.concat([forecast, forecast + 1], dim="realization")
    np.testing.assert_allclose(squared_errors(ensemble, truth), squared_errors(forecast + 0.5, truth), rtol=1e-9)


def test_skill_is_significant_where_one_is_better_or_worse(case):
    truth, forecast, reference = case
    found = skill_of_cells(squared_errors(forecast, truth), squared_errors(reference, truth))
    # MSE of 0.25 and 2.25 against 1: skills of 0.75 and -1.25, each known to about sqrt(2 / 400) of an MSE.
    np.testing.assert_allclose(found["skill"][:, :3].mean(), 0.75, atol=0.05)
    np.testing.assert_allclose(found["skill"][:, -3:].mean(), -1.25, atol=0.15)
    valid = STARTS[:, None] + LEADS
    seen = truth.sel(time=xr.DataArray(valid, dims=DIMS[:2])).values
    mse = [((field.values - seen) ** 2).mean(axis=(0, 1)) for field in (forecast, reference)]
    np.testing.assert_allclose(found["skill"], 1 - mse[0] / mse[1], rtol=1e-10)
    unsure = found["not_significant"]
    assert not unsure[:, :3].any()
    assert not unsure[:, -3:].any()
    assert float(unsure[:, 3:-3].mean()) > 0.8  # a false discovery rate of 10 % leaves a few of 36
    p_value = p_values_of_cells(squared_errors(forecast, truth), squared_errors(reference, truth))
    np.testing.assert_array_equal(unsure == 0, discoveries(p_value, 0.1))
    assert "false discovery rate of 0.1" in unsure.attrs["long_name"]


def test_gaps_are_not_significant_and_the_reference_has_no_skill_over_itself(case):
    truth, forecast, reference = case
    errors, yardstick = squared_errors(forecast, truth), squared_errors(reference, truth)
    found = skill_of_cells(errors.where(errors["longitude"] > 210), yardstick)
    west = found.sel(longitude=slice(None, 210))
    assert west["skill"].isnull().all()
    assert west["not_significant"].all()
    same = skill_of_cells(yardstick, yardstick)
    assert not same["skill"].any()
    assert same["not_significant"].all()
    with pytest.raises(ValueError, match=r"errors must be of the same init_times, got 200 .* and 199"):
        skill_of_cells(errors, yardstick[1:])
