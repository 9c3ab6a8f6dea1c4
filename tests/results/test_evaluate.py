from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from climapred.grid import Grid, cell_areas
from climapred.results.baselines import climatology_forecast, persistence
from climapred.results.evaluate import error_sums, evaluate, format_table, region_scores, score_table, scores, summary

GRID = Grid.regular(20, region=(0, 60, 100, 140))
HOUR = np.timedelta64(1, "h")
LEADS = np.array([6, 12]) * HOUR
TIMES = np.datetime64("2014-03-01", "ns") + np.arange(24) * 6 * HOUR
FORECAST_DIMS = ("init_time", "lead_time", "latitude", "longitude")


def make_truth(*, names=("t2m",), seed=0, grid=GRID):
    random = np.random.default_rng(seed)
    dims = ("time", "latitude", "longitude")
    shape = (len(TIMES), *grid.shape)
    variables = {name: (dims, random.normal(280, 5, shape).astype("float32")) for name in names}
    return xr.Dataset(variables, coords={"time": TIMES, **grid.coordinates()})


def make_forecast(truth, *, error=0.0, seed=None, count=20):
    """The truth plus an error, constant or (with a seed) random with that scale."""
    forecast = persistence(truth, TIMES[:count], LEADS).copy(deep=True)
    random = None if seed is None else np.random.default_rng(seed)
    for name in truth.data_vars:
        exact = truth[name].sel(time=forecast["valid_time"]).values
        offset = error if random is None else error * random.standard_normal(exact.shape)
        forecast[name] = FORECAST_DIMS, (exact + offset).astype("float32"), {"units": "K"}
    return forecast


def test_sums_and_scores_equal_plain_loops():
    truth = make_truth()
    forecast = make_forecast(truth, error=2.0, seed=1)
    sums = error_sums(forecast["t2m"], truth["t2m"])
    result = scores({"model": sums}).sel(model="model")
    area = cell_areas(GRID) / cell_areas(GRID).sum()
    frames = dict(zip(TIMES, truth["t2m"].values.astype(float), strict=True))
    for k, lead in enumerate(LEADS):
        errors = np.array([forecast["t2m"].values[i, k].astype(float) - frames[TIMES[i] + lead] for i in range(20)])
        at = {"lead_time": k}
        np.testing.assert_array_equal(sums["count"].isel(at), 20)
        np.testing.assert_allclose(sums["error"].isel(at), errors.sum(0), rtol=1e-12)
        np.testing.assert_allclose(sums["absolute"].isel(at), np.abs(errors).sum(0), rtol=1e-12)
        np.testing.assert_allclose(sums["squared"].isel(at), (errors**2).sum(0), rtol=1e-12)
        expected = {
            "mae": np.abs(errors).mean(),
            "rmse": np.sqrt((errors**2).mean()),
            "bias": errors.mean(),
            "mae_area": (np.abs(errors).mean(0) * area).sum(),
            "rmse_area": np.sqrt(((errors**2).mean(0) * area).sum()),
            "bias_area": (errors.mean(0) * area).sum(),
            "mae_map": np.abs(errors).mean(0),
            "rmse_map": np.sqrt((errors**2).mean(0)),
            "bias_map": errors.mean(0),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(result[name].isel(at).values, value, rtol=1e-10, err_msg=name)
    assert all(sums[name].dtype == np.float64 for name in sums)


def test_scores_by_hand():
    # Errors +1 and -3 in every cell: MAE 2, RMSE sqrt((1 + 9) / 2) = sqrt 5, bias -1, in whatever weighting.
    truth = make_truth()
    forecast = make_forecast(truth, count=2)
    forecast["t2m"] = forecast["t2m"] + xr.DataArray(np.float32([1, -3]), dims="init_time")
    result = evaluate({"hand": forecast}, truth)
    for suffix in ("", "_area"):
        np.testing.assert_allclose(result[f"mae{suffix}"], 2, rtol=1e-5)
        np.testing.assert_allclose(result[f"rmse{suffix}"], np.sqrt(5), rtol=1e-5)
        np.testing.assert_allclose(result[f"bias{suffix}"], -1, rtol=1e-4)


def test_an_error_in_one_latitude_band_weighs_as_the_band():
    # An error of 4 K in the northern band only, 50 to 70 N of -10 to 70: plain means see 1 row of 4, those by
    # area (sin 70 - sin 50) / (sin 70 + sin 10) of the region.
    truth = make_truth()
    forecast = make_forecast(truth)
    forecast["t2m"][..., -1, :] += 4
    result = evaluate({"band": forecast}, truth)
    share = (np.sin(np.radians(70)) - np.sin(np.radians(50))) / (np.sin(np.radians(70)) + np.sin(np.radians(10)))
    np.testing.assert_allclose(result["mae"], 4 / 4, rtol=1e-4)
    np.testing.assert_allclose(result["mae_area"], 4 * share, rtol=1e-4)
    np.testing.assert_allclose(result["rmse"], np.sqrt(16 / 4), rtol=1e-4)
    np.testing.assert_allclose(result["rmse_area"], np.sqrt(16 * share), rtol=1e-4)


@settings(max_examples=12, deadline=None)
@given(st.sets(st.integers(1, 19), max_size=4), st.randoms(use_true_random=False))
def test_sums_of_any_split_in_any_order_add_to_the_same_scores(cuts, random):
    truth = make_truth()
    forecast = make_forecast(truth, error=3.0, seed=2)
    whole = error_sums(forecast["t2m"], truth["t2m"])
    order = list(range(20))
    random.shuffle(order)
    edges = [0, *sorted(cuts), 20]
    parts = [
        error_sums(forecast["t2m"].isel(init_time=order[first:last]), truth["t2m"]) for first, last in pairwise(edges)
    ]
    merged = sum(parts[1:], start=parts[0])
    xr.testing.assert_allclose(merged, whole, rtol=1e-12, atol=1e-12)
    xr.testing.assert_allclose(scores({"m": merged}), scores({"m": whole}), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunks", [{"init_time": 3}, {"lead_time": 1, "latitude": 2}, {"init_time": -1}])
def test_lazy_forecasts_score_like_those_in_memory(chunks):
    truth = make_truth()
    forecast = make_forecast(truth, error=1.0, seed=3)
    lazy = evaluate({"m": forecast.chunk(chunks)}, truth.chunk(time=5))
    xr.testing.assert_allclose(lazy.compute(), evaluate({"m": forecast}, truth), rtol=1e-12, atol=1e-12)


def test_skill_compares_mean_squared_errors_with_each_reference_that_is_there():
    # Errors of 1 K against 2 K: 1 - 1 / 4 = 0.75; the other way 1 - 4 / 1 = -3; a reference against itself 0.
    truth = make_truth()
    forecasts = {"model": make_forecast(truth, error=1.0), "persistence": make_forecast(truth, error=2.0)}
    result = evaluate(forecasts, truth)
    np.testing.assert_allclose(result["skill_persistence"].sel(model="model"), 0.75, rtol=1e-4)
    np.testing.assert_array_equal(result["skill_persistence"].sel(model="persistence"), 0)
    assert "skill_climatology" not in result
    assert "skill_damped" not in result
    reversed_roles = {"climatology": forecasts["model"], "damped": forecasts["persistence"]}
    result = evaluate(reversed_roles, truth)
    np.testing.assert_allclose(result["skill_climatology"].sel(model="damped"), -3, rtol=1e-3)
    np.testing.assert_allclose(result["skill_damped"].sel(model="climatology"), 0.75, rtol=1e-4)
    assert "skill_persistence" not in result


def test_the_perfect_forecast_has_no_error_and_full_skill():
    truth = make_truth()
    result = evaluate({"oracle": make_forecast(truth), "persistence": persistence(truth, TIMES[:20], LEADS)}, truth)
    for name in ("mae", "rmse", "bias", "mae_area", "rmse_area", "bias_area"):
        np.testing.assert_array_equal(result[name].sel(model="oracle"), 0)
    np.testing.assert_array_equal(result["skill_persistence"].sel(model="oracle"), 1)


def test_missing_values_stay_loud():
    truth = make_truth()
    forecast = make_forecast(truth)
    forecast["t2m"][4, 1, 0, 0] = np.nan
    result = evaluate({"m": forecast}, truth)
    assert result["mae"].isnull().values.tolist() == [[False, True]]
    assert result["rmse_area"].isnull().values.tolist() == [[False, True]]
    assert int(result["mae_map"].isnull().sum()) == 1


def with_gaps(fields, share, seed):
    """Some values of t2m NaN; two of the cells always, and one time of the others altogether."""
    values = fields["t2m"]
    gone = np.random.default_rng(seed).random(values.shape) < share
    gone[3] = gone[..., 1, :2] = True
    return fields.assign(t2m=values.where(~gone))


def test_masked_scores_are_means_over_the_samples_that_are_there():
    truth = make_truth()
    forecast = make_forecast(truth, error=2.0, seed=1)
    truth, forecast = with_gaps(truth, 0.2, 5), with_gaps(forecast, 0.1, 6)
    sums = error_sums(forecast["t2m"], truth["t2m"], missing="mask")
    assert all(sums[name].dtype == np.float64 for name in sums)
    result = evaluate({"model": forecast}, truth, missing="mask").sel(model="model")
    frames = dict(zip(TIMES, truth["t2m"].values.astype(float), strict=True))
    area = np.broadcast_to(cell_areas(GRID), (20, *GRID.shape))
    for k, lead in enumerate(LEADS):
        errors = np.array([forecast["t2m"].values[i, k].astype(float) - frames[TIMES[i] + lead] for i in range(20)])
        there = np.isfinite(errors)
        seen = there.any(axis=0)
        assert (~seen).sum() == 2
        np.testing.assert_array_equal(sums["count"][k], there.sum(axis=0))
        for name, term in {"mae": np.abs(errors), "rmse": errors**2, "bias": errors}.items():
            root = np.sqrt if name == "rmse" else np.asarray
            cells = np.full(GRID.shape, np.nan)
            cells[seen] = np.nanmean(term[:, seen], axis=0)
            np.testing.assert_allclose(result[f"{name}_map"][k], root(cells), rtol=1e-10)
            np.testing.assert_allclose(result[name][k], root(np.nanmean(term)), rtol=1e-10)
            mean = np.average(term[there], weights=area[there])
            np.testing.assert_allclose(result[f"{name}_area"][k], root(mean), rtol=1e-10)


def test_cells_that_are_never_there_leave_the_scores_of_the_others_as_they_are():
    # A land variable: the southern rows have no values. The rest must score as if the grid ended there.
    truth = make_truth()
    forecast = make_forecast(truth, error=2.0, seed=1)
    land = {"latitude": slice(2, None)}
    alone = evaluate({"damped": forecast.isel(land)}, truth.isel(land))
    truth["t2m"][:, :2] = np.nan
    whole = evaluate({"damped": forecast}, truth, missing="mask")
    assert whole["mae_map"][..., :2, :].isnull().all()
    xr.testing.assert_allclose(whole.isel(land), alone, rtol=1e-12)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 19), st.integers(0, 1000), st.floats(0, 1))
def test_masked_sums_of_any_split_add_up(cut, seed, share):
    truth = make_truth()
    forecast = make_forecast(truth, error=3.0, seed=2)
    truth = with_gaps(truth, share, seed)

    def of(part):
        return error_sums(forecast["t2m"].isel(init_time=part), truth["t2m"], missing="mask")

    merged = of(slice(0, cut)) + of(slice(cut, None))
    xr.testing.assert_allclose(merged, of(slice(None)), rtol=1e-12, atol=1e-12)
    assert merged.notnull().all()


def test_a_mask_without_gaps_changes_nothing():
    truth = make_truth()
    forecasts = {"m": make_forecast(truth, error=1.0, seed=3)}
    xr.testing.assert_identical(evaluate(forecasts, truth, missing="mask"), evaluate(forecasts, truth))


def test_lazy_gaps_are_masked_like_those_in_memory():
    truth = make_truth()
    forecast = make_forecast(truth, error=1.0, seed=3)
    truth = with_gaps(truth, 0.2, 5)
    lazy = evaluate({"m": forecast.chunk(init_time=3)}, truth.chunk(time=5), missing="mask")
    expected = evaluate({"m": forecast}, truth, missing="mask")
    xr.testing.assert_allclose(lazy.compute(), expected, rtol=1e-12, atol=1e-12)


def test_scores_say_what_they_are():
    truth = make_truth()
    result = evaluate({"persistence": make_forecast(truth, error=1.0)}, truth)
    assert result["mae"].dims == ("model", "lead_time")
    assert result["mae_map"].dims == ("model", "lead_time", "latitude", "longitude")
    assert all("long_name" in field.attrs for field in result.values())
    assert result["rmse_area"].attrs["units"] == "K"
    assert result["skill_persistence"].attrs["units"] == "1"
    assert "1 - MSE / MSE of persistence" in result["skill_persistence"].attrs["long_name"]


def test_one_variable_of_several_is_scored_by_name():
    truth = make_truth(names=("t2m", "d2m"))
    forecast = make_forecast(truth, error=1.0)
    forecast["d2m"] += 1
    np.testing.assert_allclose(evaluate({"m": forecast}, truth, "d2m")["mae"], 2, rtol=1e-4)
    with pytest.raises(ValueError, match=r"forecasts hold the variables \['t2m', 'd2m'\]; pass variable="):
        evaluate({"m": forecast}, truth)
    with pytest.raises(ValueError, match="'m' has no variable 'msl', it holds"):
        evaluate({"m": forecast}, truth, "msl")


def test_errors_name_the_model_and_what_differs():
    truth = make_truth()
    forecast = make_forecast(truth)
    with pytest.raises(ValueError, match=r"model 'b' has other init_times than 'a': 19 from .* against 20"):
        evaluate({"a": forecast, "b": forecast.isel(init_time=slice(1, None))}, truth)
    with pytest.raises(ValueError, match=r"model 'b' has other lead_times than 'a': 1 from 0 days 06:00:00"):
        evaluate({"a": forecast, "b": forecast.isel(lead_time=[0])}, truth)
    with pytest.raises(ValueError, match=r"model 'b' is on another grid than 'a': Grid\(3 x 3, 0\.\.40 N"):
        evaluate({"a": forecast, "b": forecast.isel(latitude=slice(0, 3))}, truth)
    with pytest.raises(ValueError, match=r"truth lacks 4 of 21 valid times, first \['2014-03-05 12:00:00'"):
        evaluate({"a": forecast}, truth.isel(time=slice(0, 18)))
    with pytest.raises(ValueError, match="truth must be on the grid of the forecast"):
        error_sums(forecast["t2m"], truth["t2m"].isel(longitude=slice(0, 2)))
    with pytest.raises(
        ValueError, match=r"truth must have a series of dates, .* got the dims \('latitude', 'longitude'\)"
    ):
        evaluate({"a": forecast}, truth.isel(time=0, drop=True))
    with pytest.raises(ValueError, match="truth must have a series of dates"):
        error_sums(forecast["t2m"], truth["t2m"].assign_coords(time=range(len(truth["time"]))))
    with pytest.raises(
        ValueError, match=r"a forecast must have the dims init_time .* lacks \['lead_time'\].*external_for"
    ):
        evaluate({"a": forecast.isel(lead_time=0, drop=True)}, truth)
    with pytest.raises(ValueError, match=r"lacks \['valid_time'\]"):
        error_sums(forecast["t2m"].drop_vars("valid_time"), truth["t2m"])
    with pytest.raises(ValueError, match="forecast and truth have no time in common: valid times from 2014"):
        evaluate({"a": forecast}, truth.assign_coords(time=truth["time"] + np.timedelta64(3650, "D")))
    with pytest.raises(ValueError, match="from the future of its truth; correct init_time, lead_time or valid_time"):
        evaluate({"a": forecast.assign_coords(init_time=forecast["init_time"] + np.timedelta64(24, "h"))}, truth)
    with pytest.raises(ValueError, match=r"truth 't2m' has NaN at 3 of 21 valid times, first in 100\.0% of the cells"):
        evaluate({"a": forecast}, truth.where(truth["time"] > truth["time"][3]))
    with pytest.raises(ValueError, match=r"region 'sea' .* holds no cell of Grid"):
        region_scores({"a": error_sums(forecast["t2m"], truth["t2m"])}, {"sea": (-80, -70, 0, 10)})
    with pytest.raises(ValueError, match="forecasts must hold at least one model"):
        evaluate({}, truth)
    with pytest.raises(ValueError, match="sums must hold at least one model"):
        scores({})
    with pytest.raises(ValueError, match="sums of model 'a' hold no sample at some lead time; add sums of at least"):
        scores({"a": error_sums(forecast["t2m"].isel(init_time=[]), truth["t2m"])})
    with pytest.raises(ValueError, match="sums of model 'a' hold no sample at some lead time"):
        evaluate({"a": forecast.where(forecast["lead_time"] < LEADS[1])}, truth, missing="mask")
    with pytest.raises(ValueError, match="missing must be one of refuse, mask, got 'drop'"):
        evaluate({"a": forecast}, truth, missing="drop")


COLUMNS = ["mae", "rmse", "bias", "mae_area", "rmse_area", "bias_area"]
SKILLS = ["skill_persistence", "skill_climatology", "skill_damped"]


def make_scores():
    truth = make_truth()
    forecasts = {
        "ours": make_forecast(truth, error=1.0, seed=4),
        "persistence": persistence(truth, TIMES[:20], LEADS),
    }
    return evaluate(forecasts, truth)


def test_the_table_has_a_row_per_model_and_lead(tmp_path):
    result = make_scores()
    table = score_table(result)
    assert list(table.columns) == ["model", "lead_hours", *COLUMNS, *SKILLS]
    assert list(zip(table["model"], table["lead_hours"], strict=True)) == [
        ("ours", 6),
        ("ours", 12),
        ("persistence", 6),
        ("persistence", 12),
    ]
    assert table.loc[3, "rmse"] == float(result["rmse"].sel(model="persistence")[1])
    table.to_csv(tmp_path / "scores.csv", index=False)
    row = (tmp_path / "scores.csv").read_text().splitlines()[1]
    assert row.startswith("ours,6.0,")
    assert row.endswith(",,")  # no climatology, no damped persistence


def test_the_summary_averages_over_leads():
    result = make_scores()
    table = summary(result).set_index("model")
    assert list(table.columns) == [*COLUMNS, *SKILLS]
    for name in COLUMNS:
        assert table.loc["ours", name] == pytest.approx(float(result[name].sel(model="ours").mean()))
    mse = (result["rmse_area"] ** 2).mean("lead_time")
    skill = 1 - float(mse.sel(model="ours") / mse.sel(model="persistence"))
    assert table.loc["ours", "skill_persistence"] == pytest.approx(skill)
    assert table["skill_damped"].isna().all()


def test_tables_are_aligned_and_leave_out_empty_columns():
    text = format_table(summary(make_scores()))
    lines = text.splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert "skill_persistence" in lines[0]
    assert "skill_damped" not in text
    frame = pd.DataFrame({"model": ["a", "b"], "lead_hours": [6.0, 12.0], "mae": [1.0, np.nan]})
    assert format_table(frame, markdown=True).splitlines()[2:] == [
        "| a     |          6 | 1.000 |",
        "| b     |         12 |       |",
    ]


def test_the_climatology_of_a_constant_field_is_a_perfect_reference_and_says_so():
    truth = make_truth()
    truth["t2m"][:] = 280.0
    constant = np.full((1, 1, *GRID.shape), 280.0)
    statistics = xr.Dataset(
        {
            "climatology": (
                ("variable", "harmonic", "latitude", "longitude"),
                constant,
                {"annual": 0, "daily": 0},
            )
        },
        coords={"variable": ["t2m"], **GRID.coordinates()},
    )
    forecasts = {
        "climatology": climatology_forecast(statistics, TIMES[:20], LEADS),
        "worse": make_forecast(truth, error=1.0),
    }
    result = evaluate(forecasts, truth)["skill_climatology"]
    assert np.isneginf(result.sel(model="worse")).all()
    assert np.isnan(result.sel(model="climatology")).all()
