"""Scores against the answers of two other packages: ``scores`` (xarray) and torchmetrics (torch)."""

import numpy as np
import pytest
import torch
import xarray as xr
from scores.continuous import additive_bias, mae, mse, rmse
from scores.probability import crps_for_ensemble
from scores.stats.statistical_tests import diebold_mariano
from torchmetrics.functional import cosine_similarity, mean_absolute_error, mean_squared_error
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from climapred.calendar import climatology_at
from climapred.grid import Grid, cell_areas
from climapred.results.evaluate import evaluate, paper_table, region_scores, season_scores
from climapred.results.metrics import crps, psnr, ssim
from climapred.results.significance import block_length, p_values_of_cells
from climapred.results.sums import error_sums

GRID = Grid.regular(5, region=(20, 60, 200, 245))  # 9 x 10
HOUR = np.timedelta64(1, "h")
LEADS = np.array([6, 12, 18], "timedelta64[h]").astype("timedelta64[ns]")
TIMES = np.datetime64("2014-02-20", "ns") + np.arange(80) * 6 * HOUR
STARTS = TIMES[:70]  # valid from 20 February to 9 March
DIMS = ("init_time", "lead_time", "latitude", "longitude")
CELLS = DIMS[2:]


@pytest.fixture(scope="module")
def case():
    """Truth, the forecasts of two models, truth beside them, and a climatology."""
    random = np.random.default_rng(3)
    truth = xr.DataArray(
        random.normal(280, 5, (TIMES.size, *GRID.shape)).astype("float32"),
        {"time": TIMES, **GRID.coordinates()},
        ("time", *CELLS),
        "t2m",
        {"units": "K"},
    )
    valid = xr.DataArray(STARTS[:, None] + LEADS, dims=DIMS[:2])
    beside = truth.sel(time=valid).drop_vars("time").assign_coords(init_time=STARTS, lead_time=LEADS, valid_time=valid)
    made = {
        name: (beside + offset + spread * random.standard_normal(beside.shape))
        .astype("float32")
        .assign_attrs(units="K")
        for name, offset, spread in (("model", 0.3, 2.0), ("persistence", -0.1, 3.0))
    }
    coefficients = np.concatenate(
        [np.full((1, 1, *GRID.shape), 279.0), random.normal(0, 2, (1, 2, *GRID.shape))], axis=1
    )
    climatology = (("variable", "harmonic", *CELLS), coefficients, {"annual": 1, "daily": 0})
    statistics = xr.Dataset({"climatology": climatology}, {"variable": ["t2m"], **GRID.coordinates()})
    return truth, made, beside.drop_vars("valid_time").astype("float64"), statistics


def as_datasets(made):
    return {name: field.to_dataset(name="t2m") for name, field in made.items()}


AREA = xr.DataArray(cell_areas(GRID), {**GRID.coordinates()}, CELLS)


def similarity(said, seen, data_range):
    """SSIM by torchmetrics, over the windows that lie inside.

    There variances are divided by N; with a C2 smaller by (N - 1) / N, N = 49, the formula is that of sample variances.
    """
    options = {"gaussian_kernel": False, "kernel_size": 7, "k2": 0.03 * np.sqrt(48 / 49), "return_full_image": True}
    _, windows = structural_similarity_index_measure(said, seen, data_range=data_range, **options)
    return windows[:, 0, 3:-3, 3:-3].mean(dim=(1, 2)).numpy()


@pytest.mark.parametrize("weighted", [False, True])
def test_errors_and_skill_are_those_of_scores(case, weighted):
    truth, made, beside, _ = case
    found, weights = evaluate(as_datasets(made), truth.to_dataset()), AREA if weighted else None
    squared = {}
    for name, field in made.items():
        field = field.drop_vars("valid_time").astype("float64")
        for ours, theirs in {"mae": mae, "rmse": rmse, "bias": additive_bias}.items():
            expected = theirs(field, beside, preserve_dims="lead_time", weights=weights)
            column = found[f"{ours}_area" if weighted else ours].sel(model=name)
            np.testing.assert_allclose(column, expected, rtol=1e-10)
            expected = theirs(field, beside, preserve_dims=["lead_time", *CELLS])
            np.testing.assert_allclose(found[f"{ours}_map"].sel(model=name), expected, rtol=1e-10)
        squared[name] = mse(field, beside, preserve_dims="lead_time", weights=AREA)
    skill = found["skill_persistence"].sel(model="model")
    np.testing.assert_allclose(skill, 1 - squared["model"] / squared["persistence"], rtol=1e-10)


def test_seasons_and_regions_are_those_of_scores(case):
    truth, made, beside, _ = case
    field = made["model"]
    sums = {"model": error_sums(field, truth, by_season=True)}
    by_season, box = season_scores(sums)["rmse_area"].sel(model="model"), (30, 45, 210, 230)
    region = region_scores({"model": error_sums(field, truth)}, {"box": box})["mae_area"].sel(
        model="model", region="box"
    )
    inside = ((AREA.latitude >= 30) & (AREA.latitude <= 45) & (AREA.longitude >= 210) & (AREA.longitude <= 230)) * AREA
    for k in range(LEADS.size):
        said, seen = (values.isel(lead_time=k).drop_vars("valid_time", errors="ignore") for values in (field, beside))
        said, months = said.astype("float64"), field["valid_time"].isel(lead_time=k).dt.month.values
        for season, chosen in {"DJF": months == 2, "MAM": months == 3}.items():
            expected = rmse(said[chosen], seen[chosen], weights=AREA)
            np.testing.assert_allclose(by_season.sel(season=season)[k], expected, rtol=1e-10)
        np.testing.assert_allclose(region[k], mae(said, seen, weights=inside), rtol=1e-10)


def test_paper_metrics_are_those_of_torchmetrics(case):
    truth, made, beside, _ = case
    row = paper_table(evaluate({"m": as_datasets(made)["model"]}, truth.to_dataset(), metrics="paper")).iloc[0]
    said, seen = (torch.tensor(f.astype("float64").values).flatten(0, 1)[:, None] for f in (made["model"], beside))
    leads = [(said[k :: LEADS.size].contiguous(), seen[k :: LEADS.size].contiguous()) for k in range(LEADS.size)]
    assert row["mae"] == pytest.approx(np.mean([float(mean_absolute_error(*pair)) for pair in leads]))
    roots = [float(mean_squared_error(*pair, squared=False)) for pair in leads]
    assert row["rmse"] == pytest.approx(np.mean(roots))
    assert row["ssim"] == pytest.approx(similarity(said, seen, 2.0).mean(), rel=1e-6)
    expected = peak_signal_noise_ratio(said, seen, data_range=255.0, dim=(1, 2, 3), reduction="elementwise_mean")
    assert row["psnr"] == pytest.approx(float(expected), abs=1e-5)  # it keeps the range and 10 / ln 10 as float32


@pytest.mark.parametrize("data_range", [2.0, 60.0])
def test_images_are_those_of_torchmetrics_field_by_field(data_range):
    random = np.random.default_rng(0)
    truth = 280 + random.standard_normal((4, 21, 35)).cumsum(axis=-1).cumsum(axis=-2)
    forecast = truth + 2 * random.standard_normal(truth.shape)
    said, seen = (torch.tensor(values)[:, None] for values in (forecast, truth))
    np.testing.assert_allclose(
        ssim(truth, forecast, data_range=data_range), similarity(said, seen, data_range), rtol=1e-6
    )
    expected = peak_signal_noise_ratio(said, seen, data_range=data_range, dim=(1, 2, 3), reduction="none")
    np.testing.assert_allclose(psnr(truth, forecast, data_range=data_range), expected.ravel(), atol=1e-5)  # as above


def test_anomaly_correlation_is_torchmetrics_cosine_of_anomalies(case):
    truth, made, beside, statistics = case
    found = evaluate({"m": as_datasets(made)["model"]}, truth.to_dataset(), statistics=statistics).sel(model="m")
    for k in range(LEADS.size):
        times = xr.DataArray(STARTS + LEADS[k], dims="init_time")
        climatology = climatology_at(statistics["climatology"].sel(variable="t2m", drop=True), times).values
        said, seen = (
            field.isel(lead_time=k).astype("float64").values - climatology for field in (made["model"], beside)
        )
        for name, weights in {"acc": np.ones(GRID.shape), "acc_area": np.sqrt(AREA.values)}.items():
            rows = [torch.tensor((values * weights).ravel())[None] for values in (said, seen)]
            theirs = float(cosine_similarity(*rows, reduction="mean"))  # it casts to float32
            assert float(found[name][k]) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize(("name", "method"), [("crps", "ecdf"), ("crps_fair", "fair")])
def test_crps_of_an_ensemble_is_that_of_scores(case, name, method):
    truth, made, beside, _ = case
    members = [made["model"] + shift for shift in (-1.5, 0.2, 0.9, 2.0)]
    ensemble = xr.concat(members, dim="realization").assign_coords(realization=range(4)).assign_attrs(units="K")
    found = evaluate({"m": ensemble.to_dataset(name="t2m")}, truth.to_dataset()).sel(model="m")
    said = ensemble.drop_vars("valid_time").astype("float64")
    options = {"method": method, "preserve_dims": "lead_time"}
    np.testing.assert_allclose(found[name], crps_for_ensemble(said, beside, "realization", **options), rtol=1e-9)
    expected = crps_for_ensemble(said, beside, "realization", weights=AREA, **options)
    np.testing.assert_allclose(found[f"{name}_area"], expected, rtol=1e-9)
    plain, fair = crps(said.transpose(*DIMS, "realization").values, beside.values)
    options["preserve_dims"] = "all"
    expected = crps_for_ensemble(said, beside, "realization", **options).transpose(*DIMS)
    np.testing.assert_allclose(plain if method == "ecdf" else fair, expected, atol=1e-9)


def test_differences_without_memory_have_the_p_value_of_diebold_and_mariano():
    # One step ahead, with the correction of Harvey, Leybourne and Newbold, and Student's t: blocks of a single start.
    values = np.random.default_rng(1).normal(0.15, 1, (60, 40))
    starts = np.datetime64("2014-01-01", "ns") + np.arange(60) * 6 * HOUR
    first = xr.DataArray(values, {"init_time": starts}, ("init_time", "cell"))
    alone = [k for k in range(40) if block_length(first[:, k]) == 1]
    series = first[:, alone].T.assign_coords(h=("cell", np.ones(len(alone), int)))
    theirs = diebold_mariano(series, "cell", "h", method="HLN", statistic_distribution="t")["confidence_gt_0"]
    found = p_values_of_cells(first, xr.zeros_like(first))[alone]
    assert len(alone) > 5
    np.testing.assert_allclose(found, 2 * np.minimum(theirs, 1 - theirs), rtol=1e-6)
