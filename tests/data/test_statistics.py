import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from climapred.calendar import climatology_at, harmonic_design
from climapred.data import statistics
from climapred.data.statistics import default_orders, training_statistics
from climapred.grid import Grid

GRID = Grid.regular(10, region=(20, 50, -20, 30))  # 4 x 6


def every(hours: int, days: float, start="2013-01-01") -> np.ndarray:
    count = round(days * 24 / hours)
    return np.datetime64(start, "ns") + np.arange(count) * np.timedelta64(hours, "h")


def as_fields(times, **variables) -> xr.Dataset:
    dims = ("time", "latitude", "longitude")
    return xr.Dataset(
        {name: (dims, values) for name, values in variables.items()},
        {"time": times, "latitude": GRID.latitude, "longitude": GRID.longitude},
    )


def noise(times, seed=0, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(280, 8, (len(times), *GRID.shape)).astype(dtype)


def planted(times, annual, daily, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Return coefficient fields and the float64 signal that they make."""
    harmonics = (2 * annual + 1) * (2 * daily + 1)
    coefficients = np.random.default_rng(seed).normal(0, 5, (harmonics, *GRID.shape))
    coefficients[0] += 280
    return coefficients, np.einsum("th,hyx->tyx", harmonic_design(times, annual, daily), coefficients)


@pytest.mark.parametrize(("annual", "daily", "hours"), [(0, 0, 6), (1, 1, 6), (2, 1, 6), (2, 2, 3), (3, 0, 24)])
def test_a_planted_signal_is_recovered(annual, daily, hours):
    times = every(hours, 365)
    coefficients, signal = planted(times, annual, daily)
    found = training_statistics(as_fields(times, air=signal), annual=annual, daily=daily)
    assert found["climatology"].attrs["annual"] == annual
    assert found["climatology"].attrs["daily"] == daily
    # the normal equations square a condition number of a few, values are 300 K: 1e-9 is generous
    np.testing.assert_allclose(found["climatology"].sel(variable="air"), coefficients, rtol=0, atol=1e-9)
    assert found["anomaly_std"].item() < 1e-4  # a root of what rounding leaves of squares of thousands


def test_four_times_a_day_carry_no_second_sine():
    """At 00, 06, 12, 18 UTC sin(2 h) is zero: any coefficient would fit, zero is chosen, and the fit is still exact."""
    times = every(6, 365)
    _, signal = planted(times, 1, 2)
    found = training_statistics(as_fields(times, air=signal), annual=1, daily=2)["climatology"].sel(variable="air")
    np.testing.assert_allclose(found[4::5], 0, atol=1e-9)
    np.testing.assert_allclose(climatology_at(found, xr.DataArray(times, dims="time")), signal, atol=1e-8)


def test_moments_against_numpy():
    times = every(6, 100)
    fields = as_fields(times, air=noise(times), msl=noise(times, 1) * 350)
    found = training_statistics(fields)
    assert found["variable"].values.tolist() == ["air", "msl"]
    for name in ("air", "msl"):
        values, of_variable = fields[name].values.astype(np.float64), found.sel(variable=name)
        for key, expected in {
            "mean": values.mean(),
            "std": values.std(),
            "minimum": values.min(),
            "maximum": values.max(),
        }.items():
            np.testing.assert_allclose(of_variable[key], expected, rtol=1e-12)


def test_std_of_a_small_spread_on_a_large_mean():
    """Sums of squares of the raw values would lose it: 1e5 squared is 1e10, a spread of 1e-3 squared 1e-6."""
    times = every(6, 100)
    values = 1e5 + 1e-3 * (noise(times, dtype=np.float64) - 280)
    found = training_statistics(as_fields(times, msl=values))
    np.testing.assert_allclose(found["std"].item(), values.std(), rtol=1e-6)


def test_anomaly_std_is_that_of_the_residuals():
    times = every(6, 400)
    _, signal = planted(times, 2, 1)
    fields = as_fields(times, air=(signal + noise(times) - 280).astype(np.float32))
    found = training_statistics(fields)
    climatology = climatology_at(found["climatology"].sel(variable="air"), fields["time"])
    residuals = fields["air"].astype(np.float64) - climatology
    np.testing.assert_allclose(found["anomaly_std"].item(), np.sqrt((residuals**2).mean()), rtol=1e-9)
    # least squares leaves residuals that are orthogonal to every harmonic, in each cell
    design = harmonic_design(times, 2, 2)
    np.testing.assert_allclose(np.einsum("th,tyx->hyx", design, residuals) / len(times), 0, atol=1e-9)


def test_the_fit_is_that_of_lstsq():
    times = every(6, 500, start="2013-05-05")
    fields = as_fields(times, air=noise(times))
    found = training_statistics(fields, annual=2, daily=1)["climatology"].sel(variable="air")
    values = fields["air"].values.astype(np.float64).reshape(len(times), -1)
    expected = np.linalg.lstsq(harmonic_design(times, 2, 1), values, rcond=None)[0]
    np.testing.assert_allclose(found.values.reshape(expected.shape), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("block", [1, 7, 64, 10_000])
def test_blocks_do_not_matter(monkeypatch, block):
    times = every(6, 350)
    fields = as_fields(times, air=noise(times))
    whole = training_statistics(fields)
    monkeypatch.setattr(statistics, "_BLOCK_BYTES", block * 8 * GRID.size)
    xr.testing.assert_allclose(training_statistics(fields), whole, rtol=1e-12, atol=1e-9)


def test_only_the_times_given_count():
    times = every(6, 100)
    values = noise(times)
    values[200:] += 50  # the test period, warmer
    training = as_fields(times, air=values).isel(time=slice(0, 200))
    found = training_statistics(training)
    alone = training_statistics(as_fields(times[:200], air=values[:200]))
    xr.testing.assert_identical(found, alone)
    assert found["maximum"].item() == values[:200].max()
    assert found.attrs == {
        "training_start": "2013-01-01T00:00:00.000000000",
        "training_stop": "2013-02-19T18:00:00.000000000",
        "training_times": 200,
    }


@pytest.mark.parametrize(
    ("hours", "days", "orders"),
    [
        (6, 365, (2, 2)),
        (6, 301, (2, 2)),
        (6, 299, (0, 2)),
        (1, 19, (0, 2)),
        (3, 30, (0, 2)),
        (8, 365, (2, 1)),
        (12, 365, (2, 0)),
        (24, 3650, (2, 0)),
        (168, 3650, (2, 0)),
    ],
)
def test_default_orders(hours, days, orders):
    times = every(hours, days)
    assert default_orders(times) == orders
    found = training_statistics(as_fields(times, air=noise(times)))["climatology"]
    assert (found.attrs["annual"], found.attrs["daily"]) == orders
    assert found.sizes["harmonic"] == (2 * orders[0] + 1) * (2 * orders[1] + 1)


def test_a_gap_does_not_change_the_orders():
    times = every(6, 400)
    assert default_orders(np.delete(times, slice(500, 560))) == (2, 2)


def test_one_of_two_orders_given():
    times = every(6, 365)
    found = training_statistics(as_fields(times, air=noise(times)), daily=0)["climatology"]
    assert (found.attrs["annual"], found.attrs["daily"]) == (2, 0)


def test_missing_values_are_named(monkeypatch):
    times = every(6, 30)
    values = noise(times)
    values[50, :3] = np.nan
    fields = as_fields(times, air=values)
    wanted = r"air has missing values \(75.0% of the cells at 2013-01-13T12:00\); choose a region without them"
    with pytest.raises(ValueError, match=wanted):
        training_statistics(fields)
    monkeypatch.setattr(statistics, "_BLOCK_BYTES", 1)
    with pytest.raises(ValueError, match=wanted):
        training_statistics(fields)


def test_too_few_times():
    times = every(6, 1)
    with pytest.raises(ValueError, match="statistics need at least 2 training times, got 1; check the split"):
        training_statistics(as_fields(times, air=noise(times)).isel(time=slice(0, 1)))


def test_a_lazy_source_gives_the_same():
    times = every(6, 60)
    fields = as_fields(times, air=noise(times))
    xr.testing.assert_identical(training_statistics(fields.chunk(time=13)), training_statistics(fields))


def with_gaps(values, share=0.3, seed=5) -> np.ndarray:
    """Every kind of cell: complete, never there, gaps here and there, from a time on only, a time without any."""
    random = np.random.default_rng(seed)
    values = values.copy()
    values[:, :2][random.random((len(values), 2, GRID.shape[1])) < share] = np.nan
    values[: len(values) // 3, 1] = np.nan
    values[:, 2, :4] = np.nan
    values[len(values) // 2, :2] = np.nan
    return values


def fit_of_each_cell(times, values, annual, daily) -> np.ndarray:
    """Return what lstsq makes of the values of each cell, shape (harmonic, latitude, longitude)."""
    design = harmonic_design(times, annual, daily)
    expected = np.full((design.shape[1], *GRID.shape), np.nan)
    for cell in np.ndindex(GRID.shape):
        series = values[:, *cell].astype(np.float64)
        there = np.isfinite(series)
        if there.any():
            expected[:, *cell] = np.linalg.lstsq(design[there], series[there], rcond=None)[0]
    return expected


@pytest.mark.parametrize(
    ("annual", "daily", "hours"), [(0, 0, 6), (0, 1, 6), (2, 0, 24), (2, 1, 6), (2, 2, 5), (3, 4, 1)]
)
def test_the_fit_of_each_cell_is_that_of_lstsq_to_its_values(annual, daily, hours):
    times = every(hours, 500, start="2013-05-05")
    values = with_gaps(noise(times))
    found = training_statistics(as_fields(times, air=values), annual=annual, daily=daily, missing="mask")
    expected = fit_of_each_cell(times, values, annual, daily)
    assert np.isnan(expected).any()
    np.testing.assert_allclose(found["climatology"].sel(variable="air"), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("block", [1, 7, 500, 10_000])
def test_masked_moments_against_numpy(monkeypatch, block):
    monkeypatch.setattr(statistics, "_BLOCK_BYTES", block * 8 * GRID.size)
    times = every(6, 400)
    fields = as_fields(times, air=with_gaps(noise(times)), msl=1e5 + 1e-2 * with_gaps(noise(times, 1, np.float64)))
    found = training_statistics(fields, annual=1, daily=1, missing="mask")
    for name, field in fields.items():
        values, of_variable = field.values.astype(np.float64), found.sel(variable=name)
        residuals = field - climatology_at(of_variable["climatology"], fields["time"])
        np.testing.assert_allclose(of_variable["mean"], np.nanmean(values), rtol=1e-12)
        np.testing.assert_allclose(of_variable["std"], np.nanstd(values), rtol=1e-7)
        np.testing.assert_allclose(of_variable["anomaly_std"], np.sqrt((residuals**2).mean()), rtol=1e-7)
        assert of_variable["minimum"] == np.nanmin(values)
        assert of_variable["maximum"] == np.nanmax(values)
        np.testing.assert_array_equal(of_variable["climatology"].isnull().all("harmonic"), np.isnan(values).all(0))


def test_a_mask_without_gaps_changes_nothing():
    times = every(6, 350)
    fields = as_fields(times, air=noise(times))
    xr.testing.assert_identical(training_statistics(fields, missing="mask"), training_statistics(fields))


def test_gaps_elsewhere_do_not_change_a_complete_cell():
    times = every(6, 350)
    values = noise(times)
    whole, partly = (
        training_statistics(as_fields(times, air=of), missing="mask")["climatology"]
        for of in (values, with_gaps(values))
    )
    np.testing.assert_allclose(partly[..., 3, :], whole[..., 3, :], rtol=0, atol=1e-11)


def test_a_planted_signal_is_recovered_through_gaps():
    times = every(6, 800)
    coefficients, signal = planted(times, 2, 1)
    values = with_gaps(signal)
    found = training_statistics(as_fields(times, air=values), annual=2, daily=1, missing="mask")
    expected = np.where(np.isnan(values).all(axis=0), np.nan, coefficients)
    np.testing.assert_allclose(found["climatology"].sel(variable="air"), expected, rtol=0, atol=1e-9)


def only_where(times, there, annual=2, daily=2, seed=0) -> tuple[xr.Dataset, xr.DataArray]:
    """Return the fields whose first cell has values where ``there`` only, and the climatology of that cell."""
    values = noise(times, seed)
    values[~there, 0, 0] = np.nan
    fields = as_fields(times, air=values)
    found = training_statistics(fields, annual=annual, daily=daily, missing="mask")["climatology"]
    return fields["air"][:, 0, 0], found.sel(variable="air")[:, 0, 0].assign_attrs(found.attrs)


@pytest.mark.parametrize("day", [0, 399])
def test_a_single_value_is_the_climatology_of_its_cell(day):
    times = every(6, 400)
    field, coefficients = only_where(times, np.arange(len(times)) == 4 * day)
    np.testing.assert_allclose(coefficients, [field[4 * day], *[0] * 24], atol=1e-9)


def test_the_same_hour_of_every_year_determines_a_constant():
    """1 January, 00 UTC, of four years: rounding alone tells the harmonics apart, and must not become a climatology."""
    times = every(24, 1600, start="2012-01-01")
    there = times.astype("datetime64[Y]") == times
    assert there.sum() == 5
    field, coefficients = only_where(times, there, daily=0)
    np.testing.assert_allclose(coefficients, [field.mean(), 0, 0, 0, 0], atol=1e-6)


def test_values_in_one_month_only_are_fitted_there_and_bounded_elsewhere():
    """Noise of 8 K in January: free harmonics swing by thousands of K in July, these by no more than 10 x 8 x |design|."""
    times = every(6, 365)
    january = np.arange(len(times)) < 4 * 31
    field, coefficients = only_where(times, january)
    values, design = field.values[january].astype(np.float64), harmonic_design(times, 2, 2)
    free = np.linalg.lstsq(design[january], values - values.mean(), rcond=1e-7)[0]
    assert abs(design @ free).max() > 5000
    climatology = climatology_at(coefficients, field["time"]).values
    assert (values - climatology[january]).std() < values.std()
    assert abs(climatology - values.mean()).max() < 50


def test_one_hour_of_the_day_does_not_determine_the_daily_cycle():
    """At 00 UTC only, cos h is 1 as the constant is: the annual harmonics get their fit all the same."""
    times = every(6, 730)
    there = np.arange(len(times)) % 4 == 0
    field, coefficients = only_where(times, there, annual=1, daily=1)
    found = climatology_at(coefficients, field["time"])[there]
    design = harmonic_design(times[there], 1, 0)
    expected = design @ np.linalg.lstsq(design, field[there].values.astype(np.float64), rcond=None)[0]
    np.testing.assert_allclose(found, expected, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 1000), st.integers(0, 1000))
def test_few_values_get_the_smallest_waves_about_their_mean(count, within, seed):
    """Singular vectors of the harmonics about their means; a variance of 1/100 is a singular value of sqrt(n) / 10.

    Combinations that vary at least so much, and explain no more than the values vary, are at most 10 times as large.
    """
    times = every(6, 400)
    there = np.sort(np.random.default_rng(seed).permutation(max(count, within))[:count])
    field, coefficients = only_where(times, np.isin(np.arange(len(times)), there), seed=seed)
    values, design = field.values[there].astype(np.float64), harmonic_design(times[there], 2, 2)[:, 1:]
    left, singular, right = np.linalg.svd(design - design.mean(axis=0), full_matrices=False)
    kept = singular > np.sqrt(count) / 10
    waves = right[kept].T @ ((left[:, kept].T @ (values - values.mean())) / singular[kept])
    expected = [values.mean() - design.mean(axis=0) @ waves, *waves]
    np.testing.assert_allclose(coefficients, expected, rtol=0, atol=1e-7)
    assert np.linalg.norm(coefficients[1:]) <= 10 * values.std() + 1e-7


def test_a_variable_that_is_never_there():
    times = every(6, 30)
    fields = as_fields(times, air=noise(times), soil=np.full((len(times), *GRID.shape), np.nan))
    with pytest.raises(ValueError, match="soil has missing values only, at all 120 training times; leave it out"):
        training_statistics(fields, missing="mask")


def test_an_unknown_way_with_missing_values():
    times = every(6, 30)
    with pytest.raises(ValueError, match="missing must be one of refuse, mask, got 'skip'"):
        training_statistics(as_fields(times, air=noise(times)), missing="skip")
