import os
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from climapred.calendar import harmonic_design
from climapred.grid import Grid
from climapred.results.baselines import (
    BASELINES,
    FURTHER_BASELINES,
    climatology_forecast,
    damped_persistence,
    eof_regression,
    eof_regression_forecast,
    lag_correlation,
    persistence,
    same_hour,
)

DATA = Path(os.environ.get("CLIMAPRED_DATA", Path(__file__).parents[2] / "../shared/data"))
GRID = Grid.regular(10, region=(20, 40, 200, 230))
HOUR = np.timedelta64(1, "h")
LEADS = np.array([6, 12, 24]) * HOUR


def make_times(count, start="2013-01-01", step=6):
    return np.datetime64(start, "ns") + np.arange(count) * step * HOUR


def make_fields(times, *, names=("t2m",), seed=0, grid=GRID):
    random = np.random.default_rng(seed)
    dims = ("time", "latitude", "longitude")
    variables = {
        name: (dims, (280 + 5 * random.standard_normal((len(times), *grid.shape))).astype("float32")) for name in names
    }
    return xr.Dataset(variables, coords={"time": times, **grid.coordinates()})


def fit_statistics(fields, annual=0, daily=1):
    """Least squares per cell: an independent fit of the climatology that data/statistics.py makes."""
    design = harmonic_design(fields["time"].values, annual, daily)
    grid = Grid.of(fields)
    coefficients = [
        np.linalg.lstsq(design, field.values.reshape(len(design), -1).astype(float))[0] for field in fields.values()
    ]
    values = np.stack(coefficients).reshape(len(coefficients), -1, *grid.shape)
    dims = ("variable", "harmonic", "latitude", "longitude")
    return xr.Dataset(
        {"climatology": (dims, values, {"annual": annual, "daily": daily})},
        coords={"variable": list(fields.data_vars), **grid.coordinates()},
    )


def climatology_of(statistics, index, times):
    attributes = statistics["climatology"].attrs
    design = harmonic_design(times, attributes["annual"], attributes["daily"])
    return np.einsum("...f,fyx->...yx", design, statistics["climatology"].values[index])


def make_forecasts(fields, statistics, init, leads=LEADS):
    correlation = lag_correlation(fields, statistics, leads)
    return {
        "persistence": persistence(fields, init, leads),
        "climatology": climatology_forecast(statistics, init, leads),
        "damped": damped_persistence(fields, statistics, correlation, init, leads),
    }


def test_every_baseline_has_the_shape_of_a_forecast():
    times = make_times(40)
    fields = make_fields(times, names=("t2m", "msl"))
    forecasts = make_forecasts(fields, fit_statistics(fields), times[[3, 7, 9, 20]])
    assert tuple(forecasts) == BASELINES
    for forecast in forecasts.values():
        assert set(forecast.data_vars) == {"t2m", "msl"}
        for name, units in (("t2m", "K"), ("msl", "Pa")):
            assert forecast[name].dims == ("init_time", "lead_time", "latitude", "longitude")
            assert forecast[name].shape == (4, 3, *GRID.shape)
            assert forecast[name].dtype == np.float32
            assert forecast[name].attrs["units"] == units
        assert set(forecast.coords) == {"init_time", "lead_time", "valid_time", "latitude", "longitude"}
        expected = forecast["init_time"].values[:, None] + LEADS
        np.testing.assert_array_equal(forecast["valid_time"].values, expected)
        assert forecast["lead_time"].dtype == np.dtype("timedelta64[ns]")
        assert forecast["init_time"].dtype == np.dtype("datetime64[ns]")


def test_persistence_repeats_the_field_of_the_initial_time():
    times = make_times(30)
    fields = make_fields(times)
    forecast = persistence(fields, times[[11, 2]], LEADS)["t2m"].values
    for lead in range(3):
        np.testing.assert_array_equal(forecast[:, lead], fields["t2m"].values[[11, 2]])


def test_climatology_is_the_design_times_the_coefficients_of_the_valid_times():
    times = make_times(60)
    statistics = fit_statistics(make_fields(times, names=("t2m", "msl")))
    forecast = climatology_forecast(statistics, times[:5], LEADS)
    expected = climatology_of(statistics, 1, times[:5, None] + LEADS)
    np.testing.assert_allclose(forecast["msl"].values, expected, rtol=2e-7)


def test_a_field_that_follows_its_climatology_is_forecast_exactly_by_damped_persistence():
    # Without an anomaly there is nothing to damp: climatology and damped persistence are the truth. Rounding
    # to float32 near 280 K leaves 3e-5 K.
    times = make_times(80)
    daily = 280 + 5 * np.cos(2 * np.pi * np.arange(80) / 4)
    fields = make_fields(times)
    fields["t2m"] = fields["t2m"].dims, np.broadcast_to(daily[:, None, None], fields["t2m"].shape).copy()
    forecasts = make_forecasts(fields, fit_statistics(fields), times[:40])
    truth = fields["t2m"].sel(time=forecasts["damped"]["valid_time"])
    for name in ("climatology", "damped"):
        np.testing.assert_allclose(forecasts[name]["t2m"], truth, atol=1e-4)


@pytest.mark.parametrize("removed", [[], [5, 6, 20, 33]])
def test_lag_correlation_is_that_of_the_pairs_that_exist(removed):
    times = np.delete(make_times(60), removed)
    fields = make_fields(times)
    statistics = fit_statistics(fields)
    result = lag_correlation(fields, statistics, LEADS)
    assert result["t2m"].dims == ("lead_time", "latitude", "longitude")
    anomaly = fields["t2m"].values - climatology_of(statistics, 0, times)
    place = {time: index for index, time in enumerate(times)}
    for k, lead in enumerate(LEADS):
        pairs = [(place[time], place[time + lead]) for time in times if time + lead in place]
        for y, x in np.ndindex(GRID.shape):
            first, second = (anomaly[[pair[end] for pair in pairs], y, x] for end in (0, 1))
            assert result["t2m"].values[k, y, x] == pytest.approx(np.corrcoef(first, second)[0, 1], abs=1e-6)


def test_lag_correlation_of_an_autoregressive_field_decays_as_a_power_of_its_coefficient():
    # x(t + 1) = a x(t) + noise has correlation a^k at lag k; with n = 20000 its standard error is below
    # sqrt((1 + a^2) / (1 - a^2) / n) = 0.012 for a = 0.7 (Bartlett), and 36 values stay within 4 of them.
    random, count, coefficient = np.random.default_rng(1), 20_000, 0.7
    noise = random.standard_normal((count, *GRID.shape))
    series = np.zeros_like(noise)
    for step in range(1, count):
        series[step] = coefficient * series[step - 1] + noise[step]
    times = make_times(count)
    fields = xr.Dataset(
        {"t2m": (("time", "latitude", "longitude"), series)}, coords={"time": times, **GRID.coordinates()}
    )
    result = lag_correlation(fields, fit_statistics(fields), LEADS)["t2m"].values
    expected = coefficient ** np.array([1, 2, 4])
    np.testing.assert_allclose(result, np.broadcast_to(expected[:, None, None], result.shape), atol=0.05)


def test_lag_correlation_keeps_negative_values_and_calls_a_constant_cell_uncorrelated():
    times = make_times(40, step=24)
    fields = make_fields(times)
    fields["t2m"][:] = 280.0
    fields["t2m"][:, 0, 0] += (-1.0) ** np.arange(40)
    result = lag_correlation(fields, fit_statistics(fields, daily=0), [24 * HOUR])["t2m"].values[0]
    assert result[0, 0] == pytest.approx(-1, abs=1e-6)
    np.testing.assert_array_equal(result[1:], 0)


def test_missing_values_stay_loud_and_in_their_cell():
    times = make_times(40)
    fields = make_fields(times)
    statistics = fit_statistics(fields)
    fields["t2m"][10, 0, 0] = np.nan
    result = lag_correlation(fields, statistics, LEADS)["t2m"]
    assert result[:, 0, 0].isnull().all()
    assert result[:, 0, 1:].notnull().all()


@settings(max_examples=20, deadline=None)
@given(st.floats(-1, 1), st.integers(0, 30))
def test_damped_persistence_lies_between_climatology_and_persistence_of_the_anomaly(factor, start):
    times = make_times(40)
    fields = make_fields(times)
    statistics = fit_statistics(fields)
    factors = np.full((3, *GRID.shape), factor)
    correlation = xr.Dataset(
        {"t2m": (("lead_time", "latitude", "longitude"), factors)},
        coords={"lead_time": LEADS, **GRID.coordinates()},
    )
    forecast = damped_persistence(fields, statistics, correlation, times[[start]], LEADS)["t2m"].values[0]
    anomaly = fields["t2m"].values[start] - climatology_of(statistics, 0, times[start])
    expected = climatology_of(statistics, 0, times[start] + LEADS) + factor * anomaly
    np.testing.assert_allclose(forecast, expected, atol=1e-3)


def test_coordinates_in_single_precision_are_the_same_grid():
    # xarray joins coordinates bit by bit: 0.1 in float32 and in float64 would leave an empty forecast.
    grid = Grid.regular(0.1, region=(0.1, 0.4, 0.1, 0.5))
    times = make_times(40)
    fields = make_fields(times, grid=grid)
    single = fields.assign_coords({n: fields[n].astype("float32") for n in ("latitude", "longitude")})
    forecasts = make_forecasts(single, fit_statistics(fields), times[:3])
    assert {forecast["t2m"].shape for forecast in forecasts.values()} == {(3, 3, *grid.shape)}


def test_lazy_fields_give_the_same_forecast():
    times = make_times(40)
    fields = make_fields(times)
    statistics = fit_statistics(fields)
    eager = make_forecasts(fields, statistics, times[5:20])
    lazy = make_forecasts(fields.chunk(time=7, latitude=2), statistics, times[5:20])
    assert lazy["damped"].chunks
    for name in BASELINES:
        np.testing.assert_allclose(lazy[name]["t2m"].values, eager[name]["t2m"].values, rtol=1e-6)


def test_errors_name_what_is_missing():
    times = make_times(40)
    fields = make_fields(times)
    statistics = fit_statistics(fields)
    correlation = lag_correlation(fields, statistics, LEADS)
    late = make_times(3, start="2013-01-10T18:00")
    with pytest.raises(ValueError, match=r"fields lacks 2 of 3 init_times, first \['2013-01-11 00:00:00'"):
        persistence(fields, late, LEADS)
    with pytest.raises(ValueError, match="lead_times must be positive, got 0 days"):
        persistence(fields, times[:1], [0 * HOUR])
    with pytest.raises(ValueError, match="lead_times must be 1-D timedelta64, got int64"):
        persistence(fields, times[:1], [6])
    with pytest.raises(ValueError, match=r"correlation lacks the lead times \['2 days"):
        damped_persistence(fields, statistics, correlation, times[:1], [48 * HOUR])
    with pytest.raises(ValueError, match=r"two pairs of training times 0 days 01:00:00 apart, got 0 among 40"):
        lag_correlation(fields, statistics, [1 * HOUR])
    with pytest.raises(ValueError, match=r"statistics lack \['msl'\], they hold \['t2m'\]"):
        lag_correlation(make_fields(times, names=("t2m", "msl")), statistics, LEADS)
    other = make_fields(times, grid=Grid.regular(10, region=(30, 50, 200, 230)))
    with pytest.raises(ValueError, match=r"statistics must be on the grid of the fields, .*30\.\.50 N"):
        lag_correlation(other, statistics, LEADS)


def read_ncep(year):
    path = DATA / f"air.sig995.{year}.nc"
    if not path.exists():
        pytest.skip("shared data missing")
    with xr.open_dataset(path) as dataset:
        fields = dataset[["air"]].rename(lat="latitude", lon="longitude").sortby("latitude")
        return fields.astype("float32").load()


def test_real_errors_of_2014_are_those_measured_with_plain_numpy():
    """NCEP, fitted on 2013: 6 frames in, 6 frames out, 1,449 windows of 2014; means over cells, leads."""
    training, fields = read_ncep(2013), read_ncep(2014)
    statistics = fit_statistics(training, annual=2, daily=2)
    leads = np.arange(1, 7) * 6 * HOUR
    init = fields["time"].values[5:-6]
    assert init.size == 1449
    correlation = lag_correlation(training, statistics, leads)
    forecasts = {
        "persistence": persistence(fields, init, leads),
        "climatology": climatology_forecast(statistics, init, leads),
        "damped": damped_persistence(fields, statistics, correlation, init, leads),
    }
    expected = {
        "persistence": (2.341, 3.609, 0.001),
        "climatology": (2.760, 4.124, 0.03),
        "damped": (1.796, 2.738, 0.03),
    }
    for name, (mae, rmse, tolerance) in expected.items():
        frames = [fields["air"].values[6 + k : 6 + k + 1449] for k in range(6)]
        errors = [forecasts[name]["air"].values[:, k] - frame for k, frame in enumerate(frames)]
        assert np.mean([np.abs(e).mean(dtype=float) for e in errors]) == pytest.approx(mae, abs=tolerance)
        rmses = [np.sqrt((e**2).mean(dtype=float)) for e in errors]
        assert np.mean(rmses) == pytest.approx(rmse, abs=tolerance)


def test_the_same_hour_is_the_last_one_a_whole_number_of_days_before():
    times = make_times(40)
    fields = make_fields(times, names=("t2m", "msl"))
    leads = np.array([6, 18, 24, 30, 48]) * HOUR
    forecast = same_hour(fields, times[[9, 20]], leads)
    assert forecast["msl"].attrs["units"] == "Pa"
    for i, start in enumerate((9, 20)):
        # In steps of 6 hours: leads 1, 3, 4 look 4 steps back from the valid time, lead 5 looks 8, lead 8 looks 8.
        for k, source in enumerate((start + 1 - 4, start + 3 - 4, start, start + 5 - 8, start)):
            np.testing.assert_array_equal(forecast["t2m"].values[i, k], fields["t2m"].values[source])
    daily = 280 + np.arange(40) % 4
    fields["t2m"] = fields["t2m"].dims, np.broadcast_to(daily[:, None, None], fields["t2m"].shape).astype("float32")
    forecast = same_hour(fields, times[5:20], leads)
    np.testing.assert_array_equal(forecast["t2m"], fields["t2m"].sel(time=forecast["valid_time"]))
    with pytest.raises(ValueError, match=r"fields lacks 1 of 1 times of the same hour up to a day before"):
        same_hour(fields, times[[0]], leads[:1])


def waves(count, seed=0):
    """Two patterns that turn into each other, (a, b) -> 0.95 R (a, b) with R a rotation by 30 degrees, and their noise."""
    random = np.random.default_rng(seed)
    turn = 0.95 * np.array([[np.cos(np.pi / 6), -np.sin(np.pi / 6)], [np.sin(np.pi / 6), np.cos(np.pi / 6)]])
    state, states = np.zeros(2), []
    for _ in range(count):
        state = turn @ state + random.standard_normal(2)
        states.append(state)
    rows, columns = np.meshgrid(np.arange(GRID.shape[0]), np.arange(GRID.shape[1]), indexing="ij")
    patterns = np.stack([np.cos(columns), np.sin(columns + rows)])
    fields = make_fields(make_times(count))
    values = 280 + np.einsum("tk,kyx->tyx", np.array(states), patterns)
    fields["t2m"] = fields["t2m"].dims, values.astype("float32")
    return fields, np.array(states), turn, patterns


def test_eof_regression_finds_how_patterns_turn_into_each_other():
    fields, states, turn, patterns = waves(3000)
    statistics = fit_statistics(fields, daily=0)
    fitted = eof_regression(fields, statistics, LEADS, modes=2, ridge=0.0)
    assert fitted["eof"].dims == ("variable", "mode", "latitude", "longitude")
    assert float(fitted["explained"].sum()) == pytest.approx(1, abs=1e-6)
    times = fields["time"].values
    forecast = eof_regression_forecast(fields, statistics, fitted, times[100:200], LEADS)["t2m"]
    mean = statistics["climatology"].values[0, 0]
    for k, steps in enumerate((1, 2, 4)):
        expected = np.einsum("ij,tj,iyx->tyx", np.linalg.matrix_power(turn, steps), states[100:200], patterns) + mean
        # The propagator of 3000 steps is known to about sqrt((1 - 0.95^2) / 3000) = 0.006 of amplitudes near 4.
        assert np.sqrt(((forecast.values[:, k] - expected) ** 2).mean()) < 0.15


def test_eof_regression_of_all_modes_is_plain_regression_in_every_cell():
    # With as many modes as cells and no ridge, the regression does not depend on the basis.
    fields = make_fields(make_times(200))
    statistics = fit_statistics(fields)
    cells = GRID.shape[0] * GRID.shape[1]
    fitted = eof_regression(fields, statistics, LEADS[:1], modes=cells, ridge=0.0)
    np.testing.assert_allclose(fitted["explained"].sum(), 1)
    times = fields["time"].values
    forecast = eof_regression_forecast(fields, statistics, fitted, times[50:60], LEADS[:1])["t2m"].values[:, 0]
    anomaly = (fields["t2m"].values - climatology_of(statistics, 0, times)).reshape(200, -1)
    matrix = np.linalg.lstsq(anomaly[:-1], anomaly[1:])[0]
    expected = climatology_of(statistics, 0, times[51:61]) + (anomaly[50:60] @ matrix).reshape(10, *GRID.shape)
    np.testing.assert_allclose(forecast, expected, atol=1e-3)


def test_patterns_are_orthonormal_by_area_and_a_ridge_damps_the_forecast():
    fields = make_fields(make_times(120))
    statistics = fit_statistics(fields)
    fitted = eof_regression(fields, statistics, LEADS, modes=5)
    weighted = fitted["eof"].values[0].reshape(5, -1)
    np.testing.assert_allclose(weighted @ weighted.T, np.eye(5), atol=1e-10)
    stiff = eof_regression(fields, statistics, LEADS, modes=5, ridge=1e6)
    assert float(abs(stiff["propagator"]).max()) < 1e-4
    forecast = eof_regression_forecast(fields, statistics, stiff, fields["time"].values[:4], LEADS)
    expected = climatology_forecast(statistics, fields["time"].values[:4], LEADS)
    np.testing.assert_allclose(forecast["t2m"], expected["t2m"], atol=1e-2)


@pytest.mark.parametrize("chunks", [{"time": 70}, {"time": 50, "latitude": 2, "longitude": 2}])
def test_lazy_eof_regression_gives_the_same_forecast(chunks):
    fields, *_ = waves(300)
    statistics = fit_statistics(fields, daily=0)
    found = {}
    for name, form in {"eager": fields, "lazy": fields.chunk(chunks)}.items():
        fitted = eof_regression(form, statistics, LEADS, modes=2)
        found[name] = eof_regression_forecast(form, statistics, fitted, fields["time"].values[10:30], LEADS)["t2m"]
    assert found["lazy"].chunks
    np.testing.assert_allclose(found["lazy"], found["eager"], atol=1e-3)


def test_errors_of_eof_regression_name_what_is_missing():
    fields = make_fields(make_times(40))
    statistics, start = fit_statistics(fields), fields["time"].values[:1]
    with pytest.raises(
        ValueError, match="modes must lie between 1 and 12, the smaller of training times and cells, got 60"
    ):
        eof_regression(fields, statistics, LEADS)
    with pytest.raises(ValueError, match=r"ridge must not be negative, got -1"):
        eof_regression(fields, statistics, LEADS, modes=2, ridge=-1)
    with pytest.raises(
        ValueError, match="eof_regression needs at least two pairs of training times 0 days 01:00:00 apart"
    ):
        eof_regression(fields, statistics, [HOUR], modes=2)
    with pytest.raises(
        ValueError, match="the training fields of 't2m' have NaN; eof_regression needs a region without"
    ):
        eof_regression(fields.where(fields["latitude"] > 25), statistics, LEADS, modes=2)
    fitted = eof_regression(fields, statistics, LEADS, modes=2)
    with pytest.raises(ValueError, match=r"fitted lacks the lead times \['2 days"):
        eof_regression_forecast(fields, statistics, fitted, start, [48 * HOUR])
    both = make_fields(make_times(40), names=("t2m", "msl"))
    with pytest.raises(ValueError, match=r"fitted lacks \['msl'\], it holds \['t2m'\]"):
        eof_regression_forecast(both, fit_statistics(both), fitted, start, LEADS)
    other = make_fields(make_times(40), grid=Grid.regular(10, region=(30, 50, 200, 230)))
    with pytest.raises(ValueError, match="fitted must be on the grid of the fields"):
        eof_regression_forecast(other, fit_statistics(other), fitted, start, LEADS)


def test_further_baselines_on_real_data_beat_what_they_should():
    """NCEP 2014, fitted on 2013: the same hour yesterday as measured with plain NumPy (2.267, 3.594)."""
    training, fields = read_ncep(2013), read_ncep(2014)
    leads = np.arange(1, 7) * 6 * HOUR
    init = fields["time"].values[5:-6]
    statistics = fit_statistics(training, annual=2, daily=2)
    fitted = eof_regression(training.chunk(time=365), statistics, leads)
    forecasts = {
        "same_hour": same_hour(fields, init, leads),
        "eof_regression": eof_regression_forecast(fields, statistics, fitted, init, leads),
    }
    assert tuple(forecasts) == FURTHER_BASELINES
    for name, (mae, rmse) in {"same_hour": (2.267, 3.594), "eof_regression": (1.885, 2.739)}.items():
        frames = [fields["air"].values[6 + k : 6 + k + 1449] for k in range(6)]
        errors = [forecasts[name]["air"].values[:, k] - frame for k, frame in enumerate(frames)]
        assert np.mean([np.abs(e).mean(dtype=float) for e in errors]) == pytest.approx(mae, abs=0.005)
        assert np.mean([np.sqrt((e**2).mean(dtype=float)) for e in errors]) == pytest.approx(rmse, abs=0.01)
