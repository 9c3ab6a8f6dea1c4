import numpy as np
import pytest
import xarray as xr
from scipy.stats import norm, t, ttest_1samp

from climapred.grid import Grid, cell_areas
from climapred.results.baselines import persistence
from climapred.results.evaluate import format_table, scores
from climapred.results.significance import (
    autocorrelation_time,
    block_length,
    compare,
    comparison_table,
    discoveries,
    error_series,
    p_values_of_cells,
    score_intervals,
)
from climapred.results.sums import error_sums

HOUR = np.timedelta64(1, "h")


def autoregression(r, count, columns=1, *, seed=0):
    """Unit variance, lag-one correlation r, shape (count, columns)."""
    noise = np.random.default_rng(seed).standard_normal((count, columns))
    series = noise.copy()
    for step in range(1, count):
        series[step] = r * series[step - 1] + np.sqrt(1 - r**2) * noise[step]
    return series


def errors(values, name="cell"):
    starts = np.datetime64("2014-01-01", "ns") + np.arange(len(values)) * 6 * HOUR
    return xr.DataArray(values, {"init_time": starts}, ("init_time", name))


@pytest.mark.parametrize("r", [0.0, 0.5, 0.8, 0.9])
def test_the_autocorrelation_time_of_an_autoregression(r):
    # 1 + 2 sum r^k = (1 + r) / (1 - r); its error is about T sqrt(2 (2 M + 1) / n), M = 5 T (Sokal 1997).
    expected = (1 + r) / (1 - r)
    found = autocorrelation_time(autoregression(r, 100_000)[:, 0])
    assert found == pytest.approx(expected, rel=3 * np.sqrt(2 * (10 * expected + 1) / 1e5))


def test_series_without_memory_or_change():
    assert autocorrelation_time(np.full(50, 3.1)) == 1
    assert autocorrelation_time((-1.0) ** np.arange(100)) == 1
    assert block_length(np.zeros(100)) == 1


def test_block_length_is_that_of_politis_and_white_for_an_autoregression():
    # Their formula for overlapping blocks: (6 r^2 / (1 - r^2)^2 n)^(1/3), here with the known r.
    r, count = 0.8, 100_000
    expected = (6 * r**2 / (1 - r**2) ** 2 * count) ** (1 / 3)
    assert block_length(autoregression(r, count)[:, 0]) == pytest.approx(expected, rel=0.1)
    walks = [autoregression(0, 8 + size, seed=size)[:, 0].cumsum() for size in range(100)]
    assert max(block_length(walk) / len(walk) for walk in walks) <= 1 / 4


@pytest.mark.parametrize(
    ("r", "count", "method"),
    [(0.0, 365, "moving"), (0.8, 365, "moving"), (0.6, 200, "stationary")],
)
def test_intervals_cover_the_true_difference(r, count, method):
    # 200 series: a coverage of 95 % has a standard error of 1.5 %.
    truth = errors(0 * autoregression(0, count, 200))
    found = compare(errors(0.3 + autoregression(r, count, 200, seed=3)), truth, method=method, replicates=300)
    covered = float(((found["lower"] <= 0.3) & (found["upper"] >= 0.3)).mean())
    assert 0.91 <= covered <= 0.99
    alike = compare(errors(autoregression(r, count, 200, seed=4)), truth, method=method, replicates=300)
    assert float(alike["distinguishable"].mean()) <= 0.09
    outside = (alike["lower"] > 0) | (alike["upper"] < 0)
    assert float((outside != alike["distinguishable"]).mean()) < 0.04  # one replicate on the edge


def test_independent_differences_have_the_interval_of_the_central_limit_theorem():
    values = np.random.default_rng(2).normal(0.05, 1, (4000, 1))
    found = compare(errors(values), errors(0 * values), block=1, replicates=4000).isel(cell=0)
    half = norm.ppf(0.975) * values.std() / np.sqrt(4000)
    assert float(found["difference"]) == pytest.approx(values.mean())
    assert float(found["upper"] - found["lower"]) == pytest.approx(2 * half, rel=0.05)
    expected = 2 * norm.sf(abs(values.mean()) / (values.std() / np.sqrt(4000)))
    assert float(found["p_value"]) == pytest.approx(expected, rel=0.25)


def test_pairs_are_kept_and_roots_and_means_over_leads_taken_last():
    # Errors that only differ by 1 %: each alone wanders by far more than the difference of the two.
    common = autoregression(0.7, 300, 3, seed=7) ** 2
    leads = {"lead_time": np.arange(1, 4) * 6 * HOUR}
    first, second = (errors(x, "lead_time").assign_coords(leads) for x in (common, 1.01 * common))
    found = compare(first, second, root=True)
    assert found["difference"].dims == ("lead_time",)
    np.testing.assert_allclose(found["difference"], np.sqrt(common.mean(0)) * (1 - np.sqrt(1.01)))
    assert found["distinguishable"].all()
    overall = compare(first, second, root=True, average="lead_time")
    assert float(overall["difference"]) == pytest.approx(float(found["difference"].mean()))
    assert bool(overall["distinguishable"])
    same = compare(first, first)
    assert (same["difference"] == 0).all()
    assert not same["distinguishable"].any()
    np.testing.assert_array_equal(same["p_value"], 1)


def test_resamples_are_the_same_for_the_same_seed_and_nan_stays_nan():
    values = autoregression(0.5, 100, 2)
    values[3, 1] = np.nan
    one, other = errors(values), errors(np.zeros_like(values))
    xr.testing.assert_identical(compare(one, other, replicates=50), compare(one, other, replicates=50))
    found = compare(one, other, replicates=50)
    assert found["p_value"].isnull().values.tolist() == [False, True]
    assert not bool(found["distinguishable"][1])


GRID = Grid.regular(20, region=(0, 60, 100, 140))
LEADS = np.array([6, 12]) * HOUR
TIMES = np.datetime64("2014-03-01", "ns") + np.arange(62) * 6 * HOUR


def make_case(**scales):
    """A truth, and forecasts with independent errors of these sizes."""
    random = np.random.default_rng(0)
    values = random.normal(280, 5, (len(TIMES), *GRID.shape)).astype("float32")
    truth = xr.DataArray(values, {"time": TIMES, **GRID.coordinates()}, ("time", "latitude", "longitude"), "t2m")
    forecasts = {}
    for name, scale in scales.items():
        forecast = persistence(truth.to_dataset(), TIMES[:60], LEADS)["t2m"].copy(deep=True)
        exact = truth.sel(time=forecast["valid_time"]).values
        forecasts[name] = forecast.copy(data=exact + scale * random.standard_normal(exact.shape))
    return truth, forecasts


def test_error_series_average_to_the_scores():
    truth, forecasts = make_case(a=1.0)
    series = error_series(forecasts["a"], truth)
    assert series["squared"].dims == ("init_time", "lead_time")
    found = scores({"a": error_sums(forecasts["a"], truth)}).sel(model="a")
    np.testing.assert_allclose(series["squared"].mean("init_time") ** 0.5, found["rmse_area"], rtol=1e-12)
    np.testing.assert_allclose(series["absolute"].mean("init_time"), found["mae_area"], rtol=1e-12)
    cells = error_series(forecasts["a"].chunk(init_time=7), truth, cells=True)
    assert cells["absolute"].dims == ("init_time", "lead_time", "latitude", "longitude")
    np.testing.assert_allclose(cells["absolute"].mean("init_time"), found["mae_map"], rtol=1e-12)
    area = xr.DataArray(cell_areas(GRID), dims=("latitude", "longitude"))
    xr.testing.assert_allclose(cells.weighted(area).mean(("latitude", "longitude")), series)


def test_error_series_of_an_ensemble_are_those_of_its_mean():
    truth, forecasts = make_case(a=1.0, b=2.0)
    ensemble = xr.concat([forecasts["a"], forecasts["b"]], dim="realization")
    expected = error_series((forecasts["a"] + forecasts["b"]) / 2, truth)
    xr.testing.assert_allclose(error_series(ensemble, truth), expected, rtol=1e-5)


def test_the_table_marks_what_is_not_distinguishable():
    truth, forecasts = make_case(best=1.0, alike=1.01, bad=1.5)
    series = {name: error_series(forecast, truth) for name, forecast in forecasts.items()}
    table = comparison_table(series, against="best", replicates=500)
    assert list(table.columns) == [
        *("model", "lead_hours", "rmse", "difference", "lower", "upper", "p_value", "block_hours", "note")
    ]
    notes = table.groupby("model")["note"].agg(set).to_dict()
    assert notes == {"best": {"reference"}, "alike": {"not distinguishable"}, "bad": {"worse"}}
    found = scores({"bad": error_sums(forecasts["bad"], truth)})["rmse_area"].values[0]
    np.testing.assert_allclose(table.loc[table["model"] == "bad", "rmse"], found)
    overall = comparison_table(series, against="bad", measure="mae", average=True, replicates=500).set_index("model")
    assert overall["note"].to_dict() == {"best": "better", "alike": "better", "bad": "reference"}
    assert overall.loc["best", "difference"] == pytest.approx(overall.loc["best", "mae"] - overall.loc["bad", "mae"])
    assert "not distinguishable" in format_table(table)
    means = {name: float((of["squared"].mean("init_time") ** 0.5).mean()) for name, of in series.items()}
    notes = comparison_table(series, average=True, replicates=500).set_index("model")["note"]
    assert notes[min(means, key=means.get)] == "reference"
    assert notes["bad"] == "worse"


def test_false_discoveries_are_held_down():
    random = np.random.default_rng(0)
    none = xr.DataArray(random.random(1000))
    assert int(discoveries(none, rate=0.05).sum()) <= 1
    some = xr.DataArray(np.concatenate([none, np.full(100, 1e-5), [np.nan]]))
    found = discoveries(some, rate=0.1)
    assert found[1000:1100].all()
    assert not bool(found[-1])
    assert int(found[:1000].sum()) <= 20
    assert not discoveries(xr.DataArray([np.nan, np.nan])).any()


def test_intervals_of_scores_hold_the_scores_and_are_those_of_their_errors():
    truth, forecasts = make_case(a=1.0, b=2.0)
    series = {name: error_series(forecast, truth) for name, forecast in forecasts.items()}
    found = score_intervals(series, replicates=500)
    assert found["rmse_area_lower"].dims == ("model", "lead_time")
    for name in ("a", "b"):
        squared = series[name]["squared"]
        rmse = squared.mean("init_time") ** 0.5
        assert (found["rmse_area_lower"].sel(model=name) < rmse).all()
        assert (found["rmse_area_upper"].sel(model=name) > rmse).all()
        # 60 independent means of squared errors: +- t(0.975, 59) standard errors, through the derivative of the root.
        width = t.ppf(0.975, 59) * squared.std("init_time", ddof=1) / np.sqrt(60) / (2 * rmse)
        ends = (found["rmse_area_upper"] - found["rmse_area_lower"]).sel(model=name)
        np.testing.assert_allclose(ends, 2 * width, rtol=0.4)  # blocks of a few starts, 500 replicates


@pytest.mark.parametrize(("r", "skewness"), [(0.0, 0.0), (0.8, 0.04)])
def test_p_values_of_cells_are_those_of_resampled_blocks(r, skewness):
    # Differences of 0 to 4 standard errors. 20,000 replicates know a p of 0.5 to 0.007 (two tails); with the 20 blocks of
    # r = 0.8 the means of resamples are a little skewed: a term of the order of 1 / (6 sqrt(20)), largest in the middle.
    spread = np.sqrt((1 + r) / (1 - r) / 365)
    first = errors(autoregression(r, 365, 9, seed=6) + spread * np.linspace(0, 4, 9))
    second = errors(np.zeros((365, 9)))
    found = p_values_of_cells(first, second)
    resampled = compare(first, second, replicates=20_000)["p_value"]
    np.testing.assert_allclose(found, resampled, atol=2 * 0.007 + skewness)
    np.testing.assert_allclose(found[4:], resampled[4:], atol=0.005)  # where a verdict is
    again = p_values_of_cells(first.rename(cell="x").expand_dims(y=2), second.rename(cell="x").expand_dims(y=2))
    np.testing.assert_allclose(again, np.stack([found, found]))


def test_independent_differences_have_the_p_value_of_the_t_test():
    # Blocks of one value: the variance of the mean is s^2 / n, with n - 1 degrees of freedom.
    values = errors(np.random.default_rng(1).normal(0.1, 1, (60, 40)))
    found = p_values_of_cells(values, errors(np.zeros((60, 40))))
    alone = [k for k in range(40) if block_length(values[:, k]) == 1]
    assert len(alone) > 5
    np.testing.assert_allclose(found[alone], ttest_1samp(values[:, alone], 0).pvalue, rtol=1e-9)


@pytest.mark.parametrize("r", [0.0, 0.5, 0.8])
def test_cells_that_do_not_differ_are_seldom_found_and_others_mostly(r):
    # 1,000 cells without a difference: 5 % below 0.05, with a standard error of 0.7 %; of those that differ by six
    # standard errors of the mean, all but a few are believed at a false discovery rate of 10 %.
    none = p_values_of_cells(errors(autoregression(r, 365, 1000, seed=8)), errors(np.zeros((365, 1000))))
    assert 0.03 <= float((none < 0.05).mean()) <= 0.07
    assert int(discoveries(none).sum()) <= 2
    shifted = autoregression(r, 365, 1000, seed=8)
    shifted[:, :300] += 6 * np.sqrt((1 + r) / (1 - r) / 365)
    found = discoveries(p_values_of_cells(errors(shifted), errors(np.zeros((365, 1000)))))
    assert float(found[:300].mean()) > 0.97
    assert int(found[300:].sum()) <= 60


def test_cells_with_gaps_or_without_a_difference():
    values = autoregression(0.5, 40, 3)
    values[5, 1] = np.nan
    values[:, 2] = 0
    found = p_values_of_cells(errors(values), errors(np.zeros((40, 3))))
    assert np.isnan(found[1])
    assert found[2] == 1
    with pytest.raises(ValueError, match="errors must be of the same init_times"):
        p_values_of_cells(errors(values), errors(values[1:]))


def test_errors_say_what_does_not_fit():
    one = errors(autoregression(0.5, 20))
    with pytest.raises(ValueError, match=r"errors must be of the same init_times, got 20 from .* and 19 from"):
        compare(one, one[1:])
    with pytest.raises(ValueError, match="init_time must increase: blocks are of successive starts"):
        compare(one[::-1], one[::-1])
    with pytest.raises(ValueError, match="a bootstrap needs 8 start times or more, got 7"):
        compare(one[:7], one[:7])
    with pytest.raises(ValueError, match=r"errors must have the dims \(init_time, ...\) both"):
        compare(one, one[:, 0])
    with pytest.raises(ValueError, match="block must lie between 1 and the number of start times, 20, got 21"):
        compare(one, one, block=21)
    with pytest.raises(ValueError, match="method must be one of moving, stationary, got 'jackknife'"):
        compare(one, one, method="jackknife")
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1, got 95"):
        compare(one, one, confidence=95)
    truth, forecasts = make_case(a=1.0, b=2.0)
    series = {name: error_series(forecast, truth) for name, forecast in forecasts.items()}
    with pytest.raises(ValueError, match=r"against must be one of the models \['a', 'b'\], got 'c'"):
        comparison_table(series, against="c")
    with pytest.raises(ValueError, match="measure must be one of mae, rmse, got 'ssim'"):
        comparison_table(series, measure="ssim")
    with pytest.raises(ValueError, match=r"the errors of \['b'\] have NaN"):
        comparison_table(series | {"b": series["b"].where(series["b"]["init_time"] > TIMES[3])})
