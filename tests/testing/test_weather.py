"""The synthetic temperature: its climate, its weather, its links, and the best forecast of it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from climapred.calendar import climatology_at
from climapred.grid import EARTH_RADIUS_KM, Grid, great_circle_km
from climapred.testing import DEFAULT_LINKS, Link, Sample, perfect_forecast, planted_weights, synthetic_temperature
from climapred.testing.weather import _advection, _departure_points, _smooth_noise

UK = Grid.regular(0.5, region=(50, 58, -10, 2))


@pytest.fixture(scope="module")
def sample() -> Sample:
    return synthetic_temperature()


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_same_seed_same_sample_and_another_seed_another():
    first, again, other = (synthetic_temperature(periods=20, seed=seed) for seed in (4, 4, 5))
    xr.testing.assert_identical(first.fields, again.fields)
    assert abs(first.fields["t2m"] - other.fields["t2m"]).max() > 1
    assert abs(first.land - other.land).max() > 0.5


def test_fields_follow_the_house_conventions(sample):
    t2m = sample.fields["t2m"]
    assert t2m.dims == ("time", "latitude", "longitude")
    assert t2m.shape == (2920, 24, 48)
    assert t2m.dtype == np.float32
    assert t2m.attrs["units"] == "K"
    assert t2m.attrs["standard_name"] == "air_temperature"
    assert sample.fields["time"].dtype == "datetime64[ns]"
    assert (np.diff(sample.fields["time"]) == np.timedelta64(6, "h")).all()
    assert Grid.of(sample.fields) == Grid.regular(2.5, region=(20, 77.5, 180, 297.5))


def test_climate_is_the_documented_equation(sample):
    # Written out with math for one point and three times, from the package's docstring.
    point = {"latitude": 45.0, "longitude": 250.0}
    phi, land = math.radians(45), float(sample.land.sel(point))
    times = xr.DataArray(np.array(["2001-01-01", "2001-04-11T06", "2001-12-24T21"], "M8[ns]"), dims="time")
    found = climatology_at(sample.climatology.sel(point), times)
    for days, hour, value in zip((0, 100.25, 357.875), (0, 6, 21), found.values, strict=True):
        d, solar = 2 * math.pi * days / 365.2425, hour + 250 / 15
        late = 2 * math.pi * 25 * (2 - land) / 365.2425
        daily = (0.5 + 4.5 * land) * math.cos(phi) * (1 - 0.4 * math.sin(phi) * math.cos(d))
        expected = 300 - 45 * math.sin(phi) ** 2 - math.sin(phi) * (5 + 16 * land) * math.cos(d - late)
        assert value == pytest.approx(expected + daily * math.cos(2 * math.pi * (solar - 15) / 24))


def test_climate_is_plausible():
    sample = synthetic_temperature(Grid.regular(5), periods=1460, links=())
    t2m, land = sample.fields["t2m"], sample.land
    zonal = t2m.mean(("time", "longitude"))
    assert zonal.sel(latitude=0) > zonal.sel(latitude=45) + 15 > zonal.sel(latitude=80) + 25
    assert zonal.sel(latitude=0) > zonal.sel(latitude=-45) + 15

    monthly = t2m.groupby("time.month").mean()
    swing = (monthly.sel(month=7) - monthly.sel(month=1)).compute()
    north, south = swing.sel(latitude=slice(40, 70)), swing.sel(latitude=slice(-70, -40))
    assert north.mean() > 8
    assert south.mean() < -8
    assert north.where(land > 0.9).mean() > 2 * north.where(land < 0.1).mean()

    hourly = t2m.sel(latitude=slice(-30, 30)).groupby("time.hour").mean()
    daily = hourly.max("hour") - hourly.min("hour")
    assert daily.where(land > 0.9).mean() > 3 * daily.where(land < 0.1).mean()


def test_anomalies_are_plausible(sample):
    anomaly = sample.anomaly
    assert abs(anomaly.mean()) < 0.3
    winter = anomaly.sel(time=anomaly["time"].dt.month.isin((12, 1, 2))).where(sample.land > 0.5)
    summer = anomaly.sel(time=anomaly["time"].dt.month.isin((6, 7, 8))).where(sample.land > 0.5)
    assert 4 < winter.std() < 6
    assert summer.std() < 0.8 * winter.std()
    assert 0.85 < correlation(anomaly.values[1:], anomaly.values[:-1]) < 0.96
    halves = anomaly[:1460].std(), anomaly[1460:].std()  # stationary from the first field on
    assert halves[0] / halves[1] == pytest.approx(1, abs=0.15)


def test_weather_does_not_depend_on_the_step():
    long, short = (synthetic_temperature(periods=1460 // n, step_hours=6 * n, links=()) for n in (2, 1))
    assert long.anomaly.std() / short.anomaly.std() == pytest.approx(1, abs=0.15)
    after_12_hours = [correlation(a[n:], a[:-n]) for a, n in ((long.anomaly.values, 1), (short.anomaly.values, 2))]
    assert after_12_hours[0] == pytest.approx(after_12_hours[1], abs=0.05)


def test_weather_comes_from_upstream(sample):
    # At 45 N the jet takes 14 m/s * 12 h = 605 km; a column of 2.5 degrees is 197 km wide: three columns.
    jet = sample.anomaly.sel(latitude=45).values
    shifts = {
        shift: correlation(jet[2:, 8:-8], jet[:-2, 8 - shift : jet.shape[1] - 8 - shift]) for shift in range(-3, 7)
    }
    assert max(shifts, key=shifts.__getitem__) == 3
    assert shifts[3] > shifts[0] + 0.15


@pytest.mark.parametrize("grid", [Grid.regular(10), Grid.gaussian(8), Grid(np.linspace(20, 60, 9), 7.0 * np.arange(9))])
def test_any_grid_stays_in_bounds(grid):
    sample = synthetic_temperature(grid, periods=600, step_hours=1, links=())
    assert sample.fields["t2m"].shape == (600, *grid.shape)
    assert sample.fields["t2m"].min() > 200
    assert sample.fields["t2m"].max() < 330
    assert 0.3 < (sample.land > 0.5).mean() < 0.7


def test_noise_has_unit_variance_and_the_stated_correlation():
    # exp(-r^2 / 2 L^2), east along 60 N (72 points: 278 km apart) and north (556 km).
    latitude = np.linspace(40, 80, 17)
    noise = _smooth_noise(np.random.default_rng(0), latitude, 72, 700.0)
    fields = np.stack([next(noise) for _ in range(1500)])
    assert fields.std(axis=(0, 2)) == pytest.approx(np.ones(17), abs=0.05)
    row = fields[:, 8]
    for columns in (1, 2):
        distance = float(great_circle_km(60, 0, 60, 5 * columns))
        assert correlation(row, np.roll(row, columns, axis=1)) == pytest.approx(
            math.exp(-((distance / 700) ** 2) / 2), abs=0.03
        )
    north = correlation(fields[:, 8], fields[:, 10])
    assert north == pytest.approx(math.exp(-((np.radians(5) * EARTH_RADIUS_KM / 700) ** 2) / 2), abs=0.03)


def test_advection_keeps_constants_and_is_exact_for_cubics():
    # Lagrange's weights reproduce a cubic: moving phi^3 gives the cube of where the air was.
    latitude, circle = np.linspace(-90, 90, 37), np.linspace(0, 350, 36)
    matrix = _advection(latitude, circle, 6, np.random.default_rng(1))
    phase = np.random.default_rng(1).uniform(0, 2 * np.pi, 4)
    here = np.meshgrid(latitude, circle, indexing="ij")
    north, east = _departure_points(*here, 6, phase)
    assert matrix @ np.ones(matrix.shape[1]) == pytest.approx(np.ones(matrix.shape[0]))
    np.testing.assert_allclose(matrix @ (here[0] ** 3).ravel(), (north**3).ravel(), atol=1e-6)
    waves = np.cos(np.radians(2 * here[1])).ravel()
    np.testing.assert_allclose(matrix @ waves, np.cos(np.radians(2 * east)).ravel(), atol=2e-3)
    # 14 m/s * 6 h = 302 km; 4 sin(phi)^2 cos(phi) is 8 / 3^1.5 at most, and never blows westward
    fastest = 8 / 3**1.5 * math.degrees(14 * 3.6 * 6 / EARTH_RADIUS_KM)
    assert (here[1] - east).max() == pytest.approx(fastest, rel=0.01)
    assert (here[1] - east).min() > -1e-9


def test_default_links_span_more_than_2000_km():
    for link in DEFAULT_LINKS:
        (south, north, west, east), (bottom, top, left, right) = link.source, link.target
        ends = np.meshgrid((south, north), (west, east), (bottom, top), (left, right))
        assert great_circle_km(*ends).min() > 2000


@pytest.mark.parametrize("number", [0, 1])
def test_target_follows_its_source_exactly(sample, number):
    """Without the link, the noise is the same: the difference is what the link adds, to float32."""
    link, grid = DEFAULT_LINKS[number], Grid.of(sample.fields)
    linked = synthetic_temperature(periods=200, links=[link]).anomaly.values.astype(float)
    free = synthetic_temperature(periods=200, links=[replace(link, strength=0)]).anomaly.values.astype(float)
    lag = link.lag_hours // 6
    driver = (free * link.source_weights(grid)).sum(axis=(1, 2))
    expected = 0.5 * driver[:-lag, None, None] * link.target_pattern(grid)
    np.testing.assert_allclose((linked - free)[lag:], expected, atol=2e-4)
    assert (linked == free)[:lag].all()

    rows, columns = np.nonzero(link.target_pattern(grid))
    south, north, west, east = link.target
    assert south < grid.latitude[rows.min()]
    assert grid.latitude[rows.max()] < north
    assert west < grid.longitude[columns.min()]
    assert grid.longitude[columns.max()] < east


@pytest.mark.parametrize("number", [0, 1])
def test_lagged_correlation_peaks_at_the_planted_lag(sample, number):
    link, grid = DEFAULT_LINKS[number], Grid.of(sample.fields)
    target = Link(source=link.target, target=link.source).source_weights(grid)

    def by_lag(data: Sample) -> list[float]:
        cause, effect = ((data.anomaly.values * w).sum(axis=(1, 2)) for w in (link.source_weights(grid), target))
        return [correlation(cause[: cause.size - lag], effect[lag:]) for lag in range(17)]

    planted, free = by_lag(sample), by_lag(synthetic_temperature(links=()))
    lag = link.lag_hours // 6
    assert int(np.argmax(planted)) == lag
    assert planted[lag] > free[lag] + 0.2


def test_planted_weights_are_what_a_target_gets_of_a_source():
    """The response to a unit pulse at node j, one lag later, in the links' own arithmetic."""
    grid = Grid.regular(5, region=(20, 80, 180, 300))
    links = [Link((20, 35, 180, 200), (60, 75, 265, 285), strength=0.7), Link((60, 75, 185, 205), (20, 35, 265, 285))]
    weights = planted_weights(links, grid)
    assert weights.shape == (grid.size, grid.size)
    rows = weights.sum(axis=1).reshape(grid.shape)  # a field of 1 K everywhere: strength times the pattern
    np.testing.assert_allclose(rows, sum(link.strength * link.target_pattern(grid) for link in links))
    for link in links:
        source = link.source_weights(grid)
        row, column = np.argwhere(source > 0)[0]
        pulse = np.zeros(grid.shape)
        pulse[row, column] = 1
        expected = link.strength * source[row, column] * link.target_pattern(grid)
        np.testing.assert_allclose((weights @ pulse.ravel()).reshape(grid.shape), expected)
    assert np.count_nonzero(weights) == sum(
        np.count_nonzero(link.target_pattern(grid)) * np.count_nonzero(link.source_weights(grid)) for link in links
    )


def test_links_find_their_boxes_in_either_longitude_convention():
    east, west = (Grid.regular(2.5, region=(20, 77.5, 180, 297.5)), Grid.regular(2.5, region=(20, 77.5, -180, -62.5)))
    for link in DEFAULT_LINKS:
        np.testing.assert_allclose(link.source_weights(east), link.source_weights(west))
        np.testing.assert_allclose(link.target_pattern(east), link.target_pattern(west))
    over_greenwich = Link(source=(-20, 20, 350, 370), target=(40, 60, 100, 120))
    assert over_greenwich.source_weights(Grid.regular(10)).sum() == pytest.approx(1)


def test_perfect_forecast_shows_how_much_can_be_learned(sample):
    # The aim of the tuning: the equations leave at most 65 % of damped persistence's error after 36 hours.
    anomaly, times = sample.anomaly.values, sample.fields["time"].values
    inits = np.arange(1460, 2914, 5)
    perfect = perfect_forecast(sample, times[inits], steps=6)
    assert perfect["t2m"].dims == ("init_time", "lead_time", "latitude", "longitude")
    assert perfect["t2m"].dtype == np.float32
    assert (perfect["valid_time"].values == times[inits[:, None] + np.arange(1, 7)]).all()
    truth = sample.fields["t2m"].values
    for lead, limit in ((1, 0.75), (6, 0.65)):
        slope = (anomaly[:1460] * anomaly[lead : 1460 + lead]).mean(axis=0) / (anomaly[:1460] ** 2).mean(axis=0)
        damped = np.abs(anomaly[inits + lead] - slope * anomaly[inits]).mean()
        error = np.abs(perfect["t2m"].values[:, lead - 1] - truth[inits + lead]).mean()
        assert error < limit * damped


def test_perfect_forecast_misses_only_the_noise():
    # All round the globe no air comes from outside. One step's error is s sqrt(1 - a^2) e, e of variance 1,
    # unrelated to what was there. At the equator s has no season: 2 (0.7 + 0.3 l).
    links = (Link((-10, 10, 20, 60), (40, 60, 200, 240), lag_hours=12),)
    sample = synthetic_temperature(Grid.regular(10), periods=1500, links=links)
    inits = np.arange(2, 1499)
    forecast = perfect_forecast(sample, sample.fields["time"].values[inits], steps=1)
    error = sample.fields["t2m"].values[inits + 1] - forecast["t2m"].values[:, 0]
    land = sample.land.sel(latitude=0).values
    tau = 10 + 5 * land
    expected = 2 * (0.7 + 0.3 * land) * np.sqrt(1 - np.exp(-2 * 0.25 / tau))
    np.testing.assert_allclose(error[:, 9].std(axis=0), expected, rtol=0.1)
    assert abs(correlation(error, sample.anomaly.values[inits])) < 0.02


def test_links_refuse_impossible_values():
    with pytest.raises(ValueError, match=r"source must be \(south, north, west, east\).*got \(10, 0, 0, 10\)"):
        Link((10, 0, 0, 10), (0, 10, 0, 10))
    with pytest.raises(ValueError, match=r"target must be .* got \(0, 10, 10, 10\)"):
        Link((0, 10, 0, 10), (0, 10, 10, 10))
    with pytest.raises(ValueError, match="lag_hours must be positive, got 0"):
        Link((0, 10, 0, 10), (0, 10, 0, 10), lag_hours=0)


def test_synthetic_temperature_refuses_what_it_cannot_make():
    with pytest.raises(ValueError, match=r"at least 4 latitudes and 4 longitudes, got Grid\(3 x 5"):
        synthetic_temperature(Grid.regular(1, region=(0, 2, 0, 4)), links=())
    with pytest.raises(ValueError, match="at least 1, got periods=0, step_hours=6"):
        synthetic_temperature(periods=0)
    with pytest.raises(ValueError, match=r"link source \(25, 35, 190, 215\).* must lie in Grid\(17 x 25.*links=\(\)"):
        synthetic_temperature(UK)
    too_far_east = Link((50, 55, -10, -5), (50, 55, 0, 5))
    with pytest.raises(ValueError, match=r"link target \(50, 55, 0, 5\).* must lie in"):
        synthetic_temperature(UK, links=[too_far_east])
    with pytest.raises(ValueError, match="grid points on its edges only"):
        synthetic_temperature(UK, links=[Link((50, 55, -10, -5), (50, 50.5, 0, 0.5))])
    with pytest.raises(ValueError, match="multiple of step_hours=5, got 24"):
        synthetic_temperature(step_hours=5)


def test_perfect_forecast_refuses_times_that_it_cannot_start_from(sample):
    early = sample.fields["time"].values[5:7]
    with pytest.raises(ValueError, match="times of the sample from step 6 on"):
        perfect_forecast(sample, early, steps=1)
