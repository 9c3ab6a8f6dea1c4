from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from climapred.calendar import climatology_at
from climapred.grid import Grid, cell_areas
from climapred.results.evaluate import evaluate, paper_table, region_scores, score_table, scores, season_scores, summary
from climapred.results.metrics import PAPER_RANGES
from climapred.results.sums import SEASONS, error_sums

GRID = Grid.regular(5, region=(20, 60, 200, 245))  # 9 x 10
HOUR = np.timedelta64(1, "h")
LEADS = np.array([24, 72]) * HOUR
TIMES = np.datetime64("2014-02-20", "ns") + np.arange(24) * 24 * HOUR
STARTS = TIMES[:20]  # valid from 21 February to 14 March: winter and spring


def make_truth(*, seed=0, grid=GRID):
    values = np.random.default_rng(seed).normal(280, 5, (len(TIMES), *grid.shape)).astype("float32")
    coordinates = {"time": TIMES, **grid.coordinates()}
    return xr.DataArray(values, coordinates, ("time", "latitude", "longitude"), "t2m", {"units": "K"})


def make_statistics(*, seed=5):
    coefficients = np.random.default_rng(seed).normal(0, 2, (1, 3, *GRID.shape))
    coefficients[:, 0] += 279
    dims = ("variable", "harmonic", "latitude", "longitude")
    climatology = (dims, coefficients, {"annual": 1, "daily": 0})
    return xr.Dataset({"climatology": climatology}, coords={"variable": ["t2m"], **GRID.coordinates()})


def make_forecast(truth, *, error=2.0, seed=1, members=None):
    random = np.random.default_rng(seed)
    valid = xr.DataArray(STARTS[:, None] + LEADS, dims=("init_time", "lead_time"))
    exact = truth.sel(time=valid).drop_vars("time").assign_coords(init_time=STARTS, lead_time=LEADS)
    exact = exact.assign_coords(valid_time=valid)
    if members is not None:
        exact = exact.expand_dims(realization=members, axis=2)
    return (exact + error * random.standard_normal(exact.shape)).astype("float32").assign_attrs(units="K").rename("t2m")


def everything(forecast, truth, **options):
    return error_sums(forecast, truth, statistics=make_statistics(), data_range=60.0, by_season=True, **options)


def test_acc_is_the_correlation_of_anomalies_over_samples_and_cells():
    truth, statistics = make_truth(), make_statistics()
    forecast = make_forecast(truth, error=4.0)
    found = scores({"m": error_sums(forecast, truth, statistics=statistics)}).sel(model="m")
    area = cell_areas(GRID)
    for k, lead in enumerate(LEADS):
        climatology = climatology_at(
            statistics["climatology"].sel(variable="t2m"), xr.DataArray(STARTS + lead, dims="init_time")
        ).values
        f = forecast.values[:, k].astype(float) - climatology
        a = truth.sel(time=STARTS + lead).values.astype(float) - climatology
        for name, weight in {"acc": 1.0, "acc_area": area}.items():
            expected = (weight * f * a).sum() / np.sqrt((weight * f**2).sum() * (weight * a**2).sum())
            assert float(found[name][k]) == pytest.approx(expected, rel=1e-10)
        expected = (f * a).sum(0) / np.sqrt((f**2).sum(0) * (a**2).sum(0))
        np.testing.assert_allclose(found["acc_map"][k], expected, rtol=1e-10)
    assert "anomaly correlation" in found["acc"].attrs["long_name"]
    assert found["acc_map"].attrs["units"] == "1"


def test_acc_of_the_truth_is_one_and_of_climatology_undefined():
    truth, statistics = make_truth(), make_statistics()
    exact = make_forecast(truth, error=0.0)
    times = exact["valid_time"].reset_coords(drop=True)
    climatology = climatology_at(statistics["climatology"].sel(variable="t2m", drop=True), times)
    flat = exact.copy(data=climatology.transpose(*exact.dims).astype("float32").values)
    sums = {name: error_sums(field, truth, statistics=statistics) for name, field in {"a": exact, "c": flat}.items()}
    found = scores(sums)
    np.testing.assert_allclose(found["acc"].sel(model="a"), 1, rtol=1e-12)
    assert found[["acc", "acc_area", "acc_map"]].sel(model="c").to_array().isnull().all()


def test_images_score_as_in_scikit_image():
    truth = make_truth()
    forecast = make_forecast(truth)
    found = scores({"m": error_sums(forecast, truth, data_range={"ssim": 2.0, "psnr": 255.0})}).sel(model="m")
    for k, lead in enumerate(LEADS):
        pairs = [
            (truth.sel(time=start + lead).values.astype(float), forecast.values[i, k].astype(float))
            for i, start in enumerate(STARTS)
        ]
        similar = np.mean([structural_similarity(a, b, data_range=2.0) for a, b in pairs])
        noise = np.mean([peak_signal_noise_ratio(a, b, data_range=255.0) for a, b in pairs])
        assert float(found["ssim"][k]) == pytest.approx(similar, rel=1e-9)
        assert float(found["psnr"][k]) == pytest.approx(noise, rel=1e-12)
    assert found["ssim"].attrs["data_range"] == 2.0
    assert found["psnr"].attrs["units"] == "dB"


def test_the_paper_s_metrics_are_those_of_its_loop():
    # The definitions, cell by cell and window by window: sums over samples, a root per lead, then the mean over leads.
    truth = make_truth()
    forecast = make_forecast(truth)
    found = evaluate({"m": forecast.to_dataset()}, truth.to_dataset(), metrics="paper")
    assert list(found.data_vars) == ["mae", "rmse", "ssim", "psnr"]
    mae, rmse, similar, noise = [], [], [], []
    for k, lead in enumerate(LEADS):
        absolute, squared, one, two = np.zeros(GRID.shape), np.zeros(GRID.shape), 0.0, 0.0
        for i, start in enumerate(STARTS):
            a, b = truth.sel(time=start + lead).values, forecast.values[i, k]
            absolute, squared = absolute + np.abs(a - b), squared + (a - b) ** 2
            one += structural_similarity(a.astype(float), b.astype(float), data_range=2.0)
            two += peak_signal_noise_ratio(a, b, data_range=255)
        mae.append(absolute.mean() / len(STARTS))
        rmse.append(np.sqrt(squared.mean() / len(STARTS)))
        similar.append(one / len(STARTS))
        noise.append(two / len(STARTS))
    row = paper_table(found).set_index("model").loc["m"]
    assert row.tolist() == pytest.approx([np.mean(x) for x in (mae, rmse, similar, noise)], rel=1e-6)


def test_paper_metrics_refuse_other_ranges():
    truth = make_truth()
    forecasts = {"m": make_forecast(truth).to_dataset()}
    with pytest.raises(ValueError, match=r"the paper's SSIM and PSNR have the data ranges .* got .*60\.0"):
        paper_table(evaluate(forecasts, truth.to_dataset(), data_range=60.0))
    with pytest.raises(ValueError, match='metrics="paper" has data ranges of its own'):
        evaluate(forecasts, truth.to_dataset(), metrics="paper", data_range=60.0)
    with pytest.raises(ValueError, match="metrics must be one of honest, paper, got 'best'"):
        evaluate(forecasts, truth.to_dataset(), metrics="best")
    with pytest.raises(ValueError, match=r"data_range must be a number, or one for each of \['ssim', 'psnr'\]"):
        error_sums(forecasts["m"]["t2m"], truth, data_range={"ssim": 2.0})
    sums = {x: error_sums(forecasts["m"]["t2m"], truth, data_range=x) for x in (1.0, 2.0)}
    with pytest.raises(ValueError, match=r"the sums hold (ssim|psnr) with several data ranges"):
        scores({str(x): of for x, of in sums.items()})


@settings(max_examples=8, deadline=None)
@given(st.sets(st.integers(1, 19), max_size=2), st.booleans(), st.sampled_from([None, 3]))
def test_all_sums_of_any_split_add_up(cuts, masked, members):
    truth = make_truth()
    forecast = make_forecast(truth, members=members)
    options = {}
    if masked:
        truth = truth.where(np.random.default_rng(3).random(truth.shape) > 0.05)
        options["missing"] = "mask"
    whole = everything(forecast, truth, **options)
    edges = [0, *sorted(cuts), 20]
    parts = [everything(forecast.isel(init_time=slice(*edge)), truth, **options) for edge in pairwise(edges)]
    merged = sum(parts[1:], start=parts[0])
    xr.testing.assert_allclose(merged, whole, rtol=1e-12, atol=1e-12)
    assert merged.attrs == whole.attrs
    one, other = season_scores({"m": merged}), season_scores({"m": whole})
    xr.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "chunks", [{"init_time": 3}, {"realization": 1, "latitude": 2}, {"lead_time": 1, "longitude": 3}]
)
def test_lazy_sums_are_those_in_memory(chunks):
    truth = make_truth()
    forecast = make_forecast(truth, members=4)
    options = {"statistics": make_statistics(), "data_range": 60.0}
    lazy = error_sums(forecast.chunk(chunks), truth.chunk(time=12, longitude=4), **options)
    assert all(field.chunks is not None for field in lazy.values())
    xr.testing.assert_allclose(lazy.compute(), error_sums(forecast, truth, **options), rtol=1e-12, atol=1e-12)


def test_seasons_are_those_of_the_valid_times_and_add_up():
    truth = make_truth()
    forecast = make_forecast(truth)
    sums = everything(forecast, truth)
    assert sums["count"].dims == ("season", "lead_time", "latitude", "longitude")
    found = season_scores({"m": sums}).sel(model="m")
    assert found["season"].values.tolist() == list(SEASONS)
    for k, lead in enumerate(LEADS):
        errors = forecast.values[:, k].astype(float) - truth.sel(time=STARTS + lead).values
        months = pd.DatetimeIndex(STARTS + lead).month
        winter, spring = np.isin(months, [12, 1, 2]), np.isin(months, [3, 4, 5])
        assert winter.sum() + spring.sum() == 20
        for season, chosen in {"DJF": winter, "MAM": spring}.items():
            np.testing.assert_allclose(found["mae"].sel(season=season)[k], np.abs(errors[chosen]).mean())
            np.testing.assert_allclose(found["bias_map"].sel(season=season)[k], errors[chosen].mean(0))
    assert found[["mae", "rmse_map", "ssim", "acc"]].sel(season=["JJA", "SON"]).to_array().isnull().all()
    apart = error_sums(forecast, truth, statistics=make_statistics(), data_range=60.0)
    xr.testing.assert_allclose(scores({"m": sums}), scores({"m": apart}), rtol=1e-12)
    with pytest.raises(ValueError, match="sums have no seasons; make them with"):
        season_scores({"m": apart})


def test_regions_score_like_a_forecast_of_the_region_alone():
    truth = make_truth()
    forecast = make_forecast(truth)
    regions = {"whole": (20, 60, 200, 245), "west": (30, 50, -160, -140), "a row": (20, 20, 200, 245)}
    found = region_scores({"m": everything(forecast, truth)}, regions)
    assert found["mae"].dims == ("model", "region", "season", "lead_time")
    plain = region_scores({"m": error_sums(forecast, truth, data_range=9.0)}, regions)
    assert plain["mae"].dims == ("model", "region", "lead_time")
    assert "ssim" not in plain
    box = {"latitude": slice(2, 7), "longitude": slice(0, 5)}  # 30 to 50 N, 200 to 220 E
    alone = scores({"m": error_sums(forecast.isel(box), truth.isel(box))})
    for name in ("mae", "rmse", "bias", "rmse_area"):
        np.testing.assert_allclose(plain[name].sel(region="west"), alone[name], rtol=1e-12)
    everywhere = scores({"m": error_sums(forecast, truth)})
    np.testing.assert_allclose(plain["mae_area"].sel(region="whole"), everywhere["mae_area"], rtol=1e-12)
    row = error_sums(forecast, truth).isel(latitude=0)
    np.testing.assert_allclose(plain["bias"].sel(region="a row", model="m"), row["error"].sum("longitude") / 20 / 10)


def test_a_gap_outside_a_region_is_none_of_its_business():
    truth = make_truth()
    sums = error_sums(make_forecast(truth), truth.where(truth["latitude"] < 55))
    found = region_scores({"m": sums}, {"south": (20, 50, 200, 245), "north": (50, 60, 200, 245)})["mae"]
    assert found.sel(region="south").notnull().all()
    assert found.sel(region="north").isnull().all()


def test_ensembles_are_scored_by_their_mean_and_their_members():
    truth = make_truth()
    forecast = make_forecast(truth, members=5)
    found = scores({"ensemble": error_sums(forecast, truth), "one": error_sums(forecast.isel(realization=0), truth)})
    values, area = forecast.values.astype(float), cell_areas(GRID) / cell_areas(GRID).sum()
    for k, lead in enumerate(LEADS):
        y, x = truth.sel(time=STARTS + lead).values.astype(float)[:, None], values[:, k]
        at = {"model": "ensemble", "lead_time": lead}
        error = x.mean(axis=1) - y[:, 0]
        np.testing.assert_allclose(found["mae"].sel(at), np.abs(error).mean())
        pairs = np.abs(x[:, :, None] - x[:, None]).sum(axis=(1, 2))
        fair = np.abs(x - y).mean(1) - pairs / (2 * 5 * 4)
        np.testing.assert_allclose(found["crps_fair"].sel(at), fair.mean())
        np.testing.assert_allclose(found["crps"].sel(at), (np.abs(x - y).mean(1) - pairs / 50).mean())
        variance = x.var(axis=1, ddof=1).mean(0)
        expected = np.sqrt(6 / 5 * (variance * area).sum() / ((error**2).mean(0) * area).sum())
        np.testing.assert_allclose(found["spread_skill_area"].sel(at), expected)
    np.testing.assert_allclose(found["crps"].sel(model="one"), found["mae"].sel(model="one"))
    assert found[["crps_fair", "spread_skill"]].sel(model="one").to_array().isnull().all()


def test_a_reliable_ensemble_has_a_spread_skill_ratio_of_one():
    # Truth and members are draws from one distribution: E (mean - y)^2 = (1 + 1/M) sigma^2, the variance times (M + 1) / M.
    truth = make_truth()
    forecast = make_forecast(truth * 0 + 280, error=5.0, members=4)
    ratio = scores({"m": error_sums(forecast, truth)})["spread_skill"]
    np.testing.assert_allclose(ratio, 1, atol=0.05)


def test_an_ensemble_of_one_is_a_single_forecast():
    truth = make_truth()
    forecast = make_forecast(truth, members=1)
    expected = error_sums(forecast.isel(realization=0), truth)
    xr.testing.assert_identical(error_sums(forecast, truth), expected)


def test_a_missing_member_is_loud_or_its_ensemble_left_out():
    truth = make_truth()
    forecast = make_forecast(truth, members=3)
    forecast[4, 0, 1, 0, 0] = np.nan
    loud = error_sums(forecast, truth, statistics=make_statistics())
    assert all(
        int(field.isnull().sum()) == 1 for name, field in loud.items() if name != "count" and name != "truth_variance"
    )
    masked = error_sums(forecast, truth, missing="mask", statistics=make_statistics())
    others = error_sums(forecast.isel(init_time=np.arange(20) != 4), truth, statistics=make_statistics())
    corner = {"lead_time": 0, "latitude": 0, "longitude": 0}
    xr.testing.assert_allclose(masked.isel(corner), others.isel(corner), rtol=1e-12)


def test_tables_have_the_further_scores_after_those_that_are_always_there():
    truth = make_truth()
    sums = {"ours": everything(make_forecast(truth, members=3), truth)}
    sums["gfs"] = everything(make_forecast(truth, seed=8).astype("float32"), truth)
    found = scores(sums, references=["gfs"])
    table = score_table(found)
    assert list(table.columns[:8]) == [
        "model",
        "lead_hours",
        "mae",
        "rmse",
        "bias",
        "mae_area",
        "rmse_area",
        "bias_area",
    ]
    assert list(table.columns[8:11]) == ["skill_persistence", "skill_climatology", "skill_damped"]
    assert {"acc", "crps", "spread_skill", "ssim", "psnr", "skill_gfs"} < set(table.columns[11:])
    assert table["skill_persistence"].isna().all()
    mse = found["rmse_area"] ** 2
    expected = 1 - mse.sel(model="ours") / mse.sel(model="gfs")
    np.testing.assert_allclose(table["skill_gfs"][:2], expected)
    overall = summary(found).set_index("model")
    expected = 1 - mse.sel(model="ours").mean() / mse.sel(model="gfs").mean()
    assert overall.loc["ours", "skill_gfs"] == pytest.approx(float(expected))
    assert overall.loc["gfs", "ssim"] == pytest.approx(float(found["ssim"].sel(model="gfs").mean()))
    table = score_table(region_scores(sums, {"a": (20, 40, 200, 245), "b": (40, 60, 200, 245)}))
    assert list(table.columns[:4]) == ["model", "region", "season", "lead_hours"]
    assert len(table) == 2 * 2 * 4 * 2
    assert len(summary(season_scores(sums))) == 2 * 4


def test_errors_name_what_does_not_fit():
    truth = make_truth()
    forecast = make_forecast(truth)
    whole = truth.to_dataset()
    gap = (truth["time"] == TIMES[7]) & (truth["latitude"] == 20) & (truth["longitude"] == 200)
    with pytest.raises(ValueError, match=r"have no time in common: valid times from 2014-02-21.* truth 24 from 2015"):
        error_sums(forecast, truth.assign_coords(time=TIMES + 366 * 24 * HOUR))
    with pytest.raises(ValueError, match="in the units of the forecast, 'K', got 'degC'"):
        error_sums(forecast, truth.assign_attrs(units="degC"))
    late = forecast.assign_coords(lead_time=LEADS - 72 * HOUR)
    late = late.assign_coords(valid_time=late["init_time"] + late["lead_time"])
    with pytest.raises(ValueError, match=r"must precede .* lead_time -2 days .* from the future of its truth; correct"):
        error_sums(late, truth)
    with pytest.raises(ValueError, match="must precede what it forecasts by its lead_time, got one from"):
        error_sums(forecast.assign_coords(lead_time=2 * LEADS), truth)
    with pytest.raises(ValueError, match=r"truth 't2m' has NaN at 1 of 22 valid times, first in 1\.1% of the cells at"):
        evaluate({"m": forecast.to_dataset()}, whole.where(~gap))
    with pytest.raises(ValueError, match=r"region 'sea' .* = \(0, 10, 200, 245\) holds no cell of Grid\(9 x 10"):
        region_scores({"m": error_sums(forecast, truth)}, {"sea": (0, 10, 200, 245)})
    with pytest.raises(ValueError, match="regions must hold at least one box"):
        region_scores({"m": error_sums(forecast, truth)}, {})
    with pytest.raises(ValueError, match=r"references \['gfs'\] are not among the models \['m'\]"):
        scores({"m": error_sums(forecast, truth)}, references=["gfs"])
    with pytest.raises(ValueError, match=r"statistics lack 'msl', they hold \['t2m'\]"):
        error_sums(forecast.rename("msl"), truth, statistics=make_statistics())
    with pytest.raises(ValueError, match="statistics must be on the grid of the forecast"):
        error_sums(forecast, truth, statistics=make_statistics().isel(latitude=slice(3)))
    assert PAPER_RANGES == {"ssim": 2.0, "psnr": 255.0}
