from dataclasses import replace

import dask
import numpy as np
import pytest
import xarray as xr

from climapred.calendar import climatology_at
from climapred.data.statistics import training_statistics
from climapred.grid import Grid
from climapred.results.links.pearson import anomalies, point_correlation
from climapred.testing import DEFAULT_LINKS, synthetic_temperature

GRID = Grid(np.linspace(30, 50, 5), np.linspace(200, 230, 7))
HOUR = np.timedelta64(1, "h")


def noise(count=200, seed=0):
    times = np.datetime64("2013-01-01", "ns") + 6 * HOUR * np.arange(count)
    values = np.random.default_rng(seed).standard_normal((count, *GRID.shape))
    return xr.DataArray(values, {"time": times, **GRID.coordinates()}, ("time", "latitude", "longitude"), "t2m")


@pytest.mark.parametrize("direction", ["listens", "heard"])
def test_each_point_is_numpys_correlation(direction):
    field = noise()
    values, place = field.values, field.values[:, 2, 1]
    for lag in (0, 3):
        found = point_correlation(field, 41, 206, lag=lag * 6 * HOUR, direction=direction)
        early, late = (values, place) if direction == "listens" else (place, values)
        early, late = early[: len(early) - lag], late[lag:]
        for row in range(5):
            for column in range(7):
                pair = [x if x.ndim == 1 else x[:, row, column] for x in (early, late)]
                assert float(found[row, column]) == pytest.approx(np.corrcoef(*pair)[0, 1], abs=1e-12)
    assert (found.attrs["point_latitude"], found.attrs["point_longitude"], found.attrs["direction"]) == (
        40,
        205,
        direction,
    )
    assert "lag 18 h" in found.attrs["long_name"]
    assert float(point_correlation(field, 40, 205)[2, 1]) == pytest.approx(1)


def test_only_pairs_that_are_a_lag_apart_count():
    field = noise()
    kept = np.delete(np.arange(200), [50, 51, 120])
    found = point_correlation(field[kept], 40, 205, lag=12 * HOUR)
    first = [at for at in range(198) if at in kept and at + 2 in kept]
    later = [at + 2 for at in first]
    expected = np.corrcoef(field.values[first, 4, 6], field.values[later, 2, 1])[0, 1]
    assert float(found[4, 6]) == pytest.approx(expected)


@pytest.mark.parametrize("chunks", [{"time": 50}, {"time": -1, "latitude": 2}, {"time": 33, "longitude": 3}])
def test_lazy_anomalies_stay_lazy_and_give_the_same(chunks):
    field = noise()
    with dask.config.set(scheduler=lambda *_, **__: pytest.fail("computed")):
        lazy = point_correlation(field.chunk(chunks), 40, 205, lag=[0 * HOUR, 6 * HOUR])
    assert lazy.dims == ("lag", "latitude", "longitude")
    xr.testing.assert_allclose(lazy.compute(), point_correlation(field, 40, 205, lag=[0 * HOUR, 6 * HOUR]))


def test_a_planted_link_is_seen_at_its_lag_and_in_its_direction():
    link = replace(DEFAULT_LINKS[0], strength=1.0)
    anomaly = synthetic_temperature(periods=2920, links=[link]).anomaly
    target, source = ((sum(box[:2]) / 2, sum(box[2:]) / 2) for box in (link.target, link.source))
    lags = np.arange(0, 49, 6) * HOUR
    near = dict(zip(("latitude", "longitude"), source, strict=True))
    forwards = point_correlation(anomaly, *target, lag=lags).sel(near, method="nearest").values
    backwards = point_correlation(anomaly, *target, lag=lags, direction="heard").sel(near, method="nearest").values
    assert lags[forwards.argmax()] == link.lag_hours * HOUR
    assert forwards.max() > backwards[1:].max() + 0.05


def test_anomalies_are_the_field_without_its_climatology():
    field = synthetic_temperature(periods=1460).fields
    known = training_statistics(field)
    found = anomalies(field["t2m"], known)
    coefficients = known["climatology"].sel(variable="t2m", drop=True)
    np.testing.assert_allclose(found, field["t2m"].astype(float) - climatology_at(coefficients, field["time"]))
    lazy = anomalies(field["t2m"].chunk(time=100), known)
    assert lazy.chunks is not None
    xr.testing.assert_allclose(lazy.compute(), found)
    with pytest.raises(ValueError, match=r"statistics hold \['t2m'\], not 'msl'"):
        anomalies(field["t2m"].rename("msl"), known)
    with pytest.raises(ValueError, match="statistics must be on the grid of the field"):
        anomalies(field["t2m"][:, :5], known)


def test_points_that_do_not_vary_and_errors():
    field = noise().copy()
    field[:, 0, 0] = 3.0
    assert float(point_correlation(field, 40, 205)[0, 0]) == 0
    with pytest.raises(ValueError, match="lag must be 0 or more, got -1 days"):
        point_correlation(field, 40, 205, lag=-6 * HOUR)
    with pytest.raises(ValueError, match="needs 3 pairs of times 49 days 12:00:00 apart, got 2"):
        point_correlation(field, 40, 205, lag=198 * 6 * HOUR)
    with pytest.raises(ValueError, match="lies outside the region"):
        point_correlation(field, 0, 0)
    with pytest.raises(ValueError, match="direction must be one of listens, heard"):
        point_correlation(field, 40, 205, direction="both")
    with pytest.raises(ValueError, match="anomalies must have the dims"):
        point_correlation(field[0], 40, 205)
