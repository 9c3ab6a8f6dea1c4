import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from rich.console import Console

from climapred import link_stages, pipeline, stages
from climapred.cli import _parse_baselines
from climapred.data.locks import locked
from climapred.data.store import open_statistics, open_store
from climapred.learning.artefact import load_model
from climapred.recipe import RecipeError
from climapred.recipe_file import load_recipe
from climapred.results.cf import check_cf
from climapred.results.links import adjacency
from climapred.results.links.pearson import anomalies
from climapred.stages import Run
from climapred.testing import synthetic_temperature, write_era5_grib, write_grib, write_ncep

BUILD = ["sample", "tensors", "statistics"]
TRAIN = ["train graph", "train conv"]
FORECAST = ["forecast graph", "forecast conv", "forecast damped"]
ALL = [*BUILD, *TRAIN, *FORECAST, "scores", "maps", "report"]


def run(tiny, *overrides, **options) -> list[str]:
    return pipeline.run(tiny.recipe, tiny.out, overrides=overrides, console=Console(quiet=True), **options)


def journal(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file and folder."""
    stats = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*")}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def weights(out: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in out.glob("models/*/model.safetensors")}


# What a run writes


def test_a_run_writes_what_the_house_says(finished_run):
    files = {str(path.relative_to(finished_run.out)) for path in finished_run.out.rglob("*")}
    assert files >= {
        "recipe.yaml",
        "tensors.zarr",
        "models/graph/model.safetensors",
        "models/graph/model.json",
        "models/graph/log.csv",
        "models/graph/checkpoints",
        "models/conv/model.safetensors",
        "forecasts/graph.nc",
        "forecasts/conv.nc",
        "forecasts/damped.nc",
        "scores.nc",
        "scores.csv",
        "scores_seasons.csv",
        "skill.nc",
        "comparison.csv",
        "comparison_mean.csv",
        "report.html",
        "correlations/graph.nc",
        "maps/scores.png",
        "maps/mae.png",
        "maps/skill.png",
        "maps/forecast_graph_20011011T12.png",
        "maps/forecast_conv_20011011T12.png",
        "maps/correlation_graph_40N_260E.png",
        "maps/links_arcs_graph.png",
        "maps/links_hubs_graph.png",
        "maps/links_distance_graph.png",
        "journal.jsonl",
    }
    assert not {name for name in files if name.endswith((".partial", ".tmp", ".old"))}
    assert "correlations/conv.nc" not in files


def test_the_recipe_is_kept_with_every_default(finished_run):
    kept = load_recipe(finished_run.out / "recipe.yaml")
    assert kept == load_recipe(finished_run.recipe)
    assert "weight_decay" in (finished_run.out / "recipe.yaml").read_text()


def test_the_journal_says_what_was_done(finished_run):
    rows = journal(finished_run.out)
    assert [row["unit"] for row in rows if "finished" in row] == ALL
    assert [row["unit"] for row in rows if "begun" in row] == ALL
    tensors = next(row for row in rows if row["unit"] == "tensors" and "finished" in row)
    assert [file["name"] for file in tensors["inputs"]] == ["air.sig995.2001.nc"]
    assert all((finished_run.out / path).exists() for row in rows for path in row.get("outputs", ()))


@pytest.mark.parametrize(
    "name", ["forecasts/graph.nc", "forecasts/damped.nc", "correlations/graph.nc", "scores.nc", "skill.nc"]
)
def test_files_follow_cf(finished_run, name):
    assert check_cf(finished_run.out / name) == []


def test_tensors_and_statistics(finished_run):
    fields = open_store(finished_run.out / "tensors.zarr")
    assert dict(fields.sizes) == {"time": 1460, "latitude": 6, "longitude": 12}
    training = fields["air"].sel(time=slice(None, "2001-08-31")).astype(np.float64)
    known = open_statistics(finished_run.out / "tensors.zarr")
    assert known.attrs["training_stop"].startswith("2001-08-31T18")
    np.testing.assert_allclose(known["mean"].item(), training.mean().item())
    np.testing.assert_allclose(known["std"].item(), training.std().item())


def test_scores_are_three_lines_of_xarray(finished_run):
    table = pd.read_csv(finished_run.out / "scores.csv").set_index(["model", "lead_hours"])
    truth = open_store(finished_run.out / "tensors.zarr")["air"].astype(np.float64)
    for name in ("graph", "conv", "damped"):
        forecast = xr.open_dataset(finished_run.out / "forecasts" / f"{name}.nc")
        assert forecast.sizes["forecast_reference_time"] == 19  # 364 windows of 92 days, every 20th
        error = forecast["air"] - truth.sel(time=forecast["time"]).drop_vars("time")
        for lead in range(2):
            of_lead, row = error.isel(forecast_period=lead).values, table.loc[name, 6 * (lead + 1)]
            expected = [abs(of_lead).mean(), np.sqrt((of_lead**2).mean()), of_lead.mean()]
            # float32 against float64 means: 1e-6 of values of a few kelvin
            np.testing.assert_allclose(row[["mae", "rmse", "bias"]].astype(float), expected, rtol=1e-5, atol=1e-6)
            edges = np.clip(np.arange(15, 76, 10), -90, 90)
            area = np.diff(np.sin(np.radians(edges)))[:, None] / 12 / (np.sin(np.radians(75)) - np.sin(np.radians(15)))
            np.testing.assert_allclose(row["mae_area"], (abs(of_lead).mean(axis=0) * area).sum(), rtol=1e-5)


def test_baselines_are_scored_on_the_same_windows(finished_run):
    table = pd.read_csv(finished_run.out / "scores.csv")
    assert table.columns.tolist() == [
        *("model", "lead_hours", "mae", "rmse", "bias", "mae_area", "rmse_area", "bias_area"),
        *("skill_persistence", "skill_climatology", "skill_damped", "acc", "acc_area"),
    ]
    assert table["model"].unique().tolist() == ["graph", "conv", "persistence", "climatology", "damped"]
    assert table.groupby("model")["lead_hours"].apply(list).map(tuple).unique().tolist() == [(6.0, 12.0)]
    truth = open_store(finished_run.out / "tensors.zarr")["air"].astype(np.float64)
    starts = xr.open_dataset(finished_run.out / "forecasts/graph.nc")["forecast_reference_time"].values
    for hours in (6, 12):
        later = truth.sel(time=starts + np.timedelta64(hours, "h")).values
        row = table[(table["model"] == "persistence") & (table["lead_hours"] == hours)]
        np.testing.assert_allclose(row["mae"].item(), abs(truth.sel(time=starts).values - later).mean(), rtol=1e-6)


def test_maps_of_skill_are_plain_arrays_and_hatched(finished_run):
    truth = open_store(finished_run.out / "tensors.zarr")["air"].astype(np.float64)
    squared = {}
    for name in ("graph", "conv", "damped"):
        with xr.open_dataset(finished_run.out / "forecasts" / f"{name}.nc") as forecast:
            squared[name] = ((forecast["air"] - truth.sel(time=forecast["time"]).drop_vars("time")) ** 2).values
    with xr.open_dataset(finished_run.out / "skill.nc") as stored:
        found = stored.load()
    assert found["model"].values.tolist() == ["graph", "conv", "persistence", "climatology"]
    assert found.attrs["reference"] == "damped"
    for name in ("graph", "conv"):
        expected = 1 - squared[name].mean(axis=(0, 1)) / squared["damped"].mean(axis=(0, 1))
        np.testing.assert_allclose(found["skill"].sel(model=name), expected, atol=1e-5)
    assert set(np.unique(found["not_significant"])) == {0, 1}
    (draw,) = [
        draw
        for name, draw in stages._score_maps(Run(load_recipe(finished_run.recipe), finished_run.out), "air")
        if name == "skill"
    ]
    figure = draw()
    assert [axes.get_title().split(":")[0] for axes in figure.axes[:2]] == ["graph", "conv"]
    assert any("hatched: not significant" in text.get_text() for text in figure.texts)


def test_curves_have_the_intervals_of_the_start_times(finished_run):
    with xr.open_dataset(finished_run.out / "scores.nc") as stored:
        assert (stored["rmse_area_lower"] < stored["rmse_area"]).all()
        assert (stored["rmse_area"] < stored["rmse_area_upper"]).all()
    figure = dict(stages._score_maps(Run(load_recipe(finished_run.recipe), finished_run.out), "air"))["scores"]()
    bands = [
        sum(np.isfinite(path.vertices).all() for band in axes.collections for path in band.get_paths())
        for axes in figure.axes
    ]
    assert bands == [2, 2, 0]  # one for each trained model, none for the bias
    assert any("95 % interval, block bootstrap" in text.get_text() for text in figure.texts)


def test_every_variable_is_scored_and_drawn(tmp_path):
    """Two variables: the further one has files of its own, with its name behind theirs, and its own numbers in them."""
    fields = synthetic_temperature(periods=1460).fields
    fields["msl"] = (1e5 + 50 * (fields["t2m"].roll(longitude=5) - 280)).assign_attrs(units="Pa").astype("float32")
    fields.to_netcdf(tmp_path / "two.nc")
    (tmp_path / "r.yaml").write_text(TWO.format(path=tmp_path / "two.nc"))
    out = tmp_path / "out"
    pipeline.run(tmp_path / "r.yaml", out, console=Console(quiet=True))
    truth = open_store(out / "tensors.zarr").astype(np.float64)
    for variable, ending in {"t2m": "", "msl": "_msl"}.items():
        table = pd.read_csv(out / f"scores{ending}.csv").set_index(["model", "lead_hours"])
        with xr.open_dataset(out / "forecasts/conv.nc") as forecast:
            error = forecast[variable] - truth[variable].sel(time=forecast["time"]).drop_vars("time")
            starts = forecast["forecast_reference_time"].values
        for k, hours in enumerate((6, 12)):
            values = error.isel(forecast_period=k).values
            np.testing.assert_allclose(table.loc[("conv", hours), "mae"], abs(values).mean(), rtol=1e-5)
            later = truth[variable].sel(time=starts + np.timedelta64(hours, "h")).values
            unchanged = abs(truth[variable].sel(time=starts).values - later).mean()
            np.testing.assert_allclose(table.loc[("persistence", hours), "mae"], unchanged, rtol=1e-5)
        with xr.open_dataset(out / f"scores{ending}.nc") as stored:
            assert stored["mae_map"].attrs["units"] == {"t2m": "K", "msl": "Pa"}[variable]
        for name in ("comparison.csv", "comparison_mean.csv", "scores_seasons.csv", "scores_regions.csv", "skill.nc"):
            assert (out / name.replace(".", f"{ending}.")).exists()
        for name in ("mae", "scores", "skill"):
            assert (out / "maps" / f"{name}{ending}.png").exists()
        assert list((out / "maps").glob(f"forecast_conv_*T??{ending}.png"))
    said = pipeline.report(out)
    assert said.count("least RMSE (area-weighted)") == 2
    assert "msl:" in said


TWO = """\
name: two
source: {{path: {path}, variables: [t2m, msl]}}
grid: {{spacing: 10, region: [20, 70, 180, 290]}}
window: {{history: 3, horizon: 2, stride: 20}}
split: {{validation: 2001-09-01, test: 2001-10-01}}
models: [{{name: conv, architecture: convlstm, options: {{hidden: 4}}}}]
training: {{epochs: 1, batch_size: 16, precision: float32}}
forecast: {{stride: 20}}
scores: {{regions: {{west: [30, 60, 180, 240]}}}}
"""


def test_further_baselines_regions_and_forecasts_of_others(tiny_run, finished_run):
    """Another baseline, and a file of the damped one in the place of somebody else's forecasts: it has the same scores."""
    shutil.copy(finished_run.out / "forecasts/damped.nc", tiny_run.out.parent / "theirs.nc")
    (others,) = _parse_baselines([f"theirs={tiny_run.out.parent / 'theirs.nc'}"])  # of --baseline
    overrides = ("forecast.baselines=[damped, same_hour, eof_regression]", "scores.regions={west: [30, 60, 180, 240]}")
    assert run(tiny_run, *overrides, others, until="evaluate") == [
        "forecast same_hour",
        "forecast eof_regression",
        "scores",
    ]
    table = pd.read_csv(tiny_run.out / "scores.csv").set_index(["model", "lead_hours"])
    assert {"skill_same_hour", "skill_eof_regression", "skill_theirs"} <= set(table.columns)
    np.testing.assert_allclose(table.loc["theirs"].astype(float), table.loc["damped"].astype(float), rtol=1e-6)
    regions = pd.read_csv(tiny_run.out / "scores_regions.csv")
    assert regions["region"].unique().tolist() == ["west"]
    truth = open_store(tiny_run.out / "tensors.zarr")["air"].astype(np.float64)
    with xr.open_dataset(tiny_run.out / "forecasts/same_hour.nc") as written:
        starts, found = written["forecast_reference_time"].values, written["air"].values[:, 0]
    yesterday = truth.sel(time=starts + np.timedelta64(6 - 24, "h")).values
    np.testing.assert_allclose(found, yesterday, rtol=1e-6)
    compared = pd.read_csv(tiny_run.out / "comparison_mean.csv").set_index("model")
    assert set(compared["note"]) <= {"reference", "better", "worse", "not distinguishable"}
    assert compared["rmse"].idxmin() == compared.index[compared["note"] == "reference"].item()
    assert "least RMSE (area-weighted)" in pipeline.report(tiny_run.out)


GFS = {
    **{"centre": "kwbc", "shortName": "2t", "typeOfLevel": "heightAboveGround", "level": 2, "bitsPerValue": 24},
    **{"Ni": 48, "Nj": 24, "iDirectionIncrementInDegrees": 2.5, "jDirectionIncrementInDegrees": 2.5},
    **{"latitudeOfFirstGridPointInDegrees": 77.5, "latitudeOfLastGridPointInDegrees": 20},
    **{"longitudeOfFirstGridPointInDegrees": 180, "longitudeOfLastGridPointInDegrees": 297.5},
}


def gfs_clock(start: np.datetime64) -> dict:
    return {"dataDate": int(str(start)[:10].replace("-", "")), "dataTime": 100 * int(str(start)[11:13])}


def test_a_gfs_file_is_a_baseline(tiny_run):
    """Twelve starts a month of a GRIB file with steps of 6 and 12 hours: scored as the means over plain arrays are."""
    fields = synthetic_temperature(start="2001-01-01", periods=1460).fields["t2m"]
    with xr.open_dataset(tiny_run.out / "forecasts/damped.nc") as written:
        starts = written["forecast_reference_time"].values
    north, messages, errors = fields.isel(latitude=slice(None, None, -1)), [], {6: [], 12: []}
    truth = open_store(tiny_run.out / "tensors.zarr")["air"].astype(np.float64)
    for start, hours in itertools.product(starts, (6, 12)):
        valid = start + np.timedelta64(hours, "h")
        said = north.sel(time=valid) + 0.25 * hours + np.cos(np.radians(north["longitude"]))
        messages.append({**GFS, **gfs_clock(start), "step": hours, "values": said.values})
        on_grid = said.astype(np.float64).interp(latitude=truth["latitude"], longitude=truth["longitude"])
        errors[hours].append((on_grid - truth.sel(time=valid)).values)
    write_grib(tiny_run.out.parent / "gfs.grib", *messages, sample="regular_ll_sfc_grib2")
    overrides = _parse_baselines([f"gfs={tiny_run.out.parent / 'gfs.grib'}"])
    assert run(tiny_run, *overrides, "scores.external.gfs.variable=2t", until="evaluate") == ["scores"]
    table = pd.read_csv(tiny_run.out / "scores.csv").set_index(["model", "lead_hours"])
    for hours, wrong in errors.items():
        np.testing.assert_allclose(table.loc[("gfs", hours), "mae"], np.abs(wrong).mean(), rtol=1e-4)
        np.testing.assert_allclose(table.loc[("gfs", hours), "rmse"], np.sqrt(np.square(wrong).mean()), rtol=1e-4)
    assert run(tiny_run, *overrides, "scores.external.gfs.variable=2t", until="evaluate") == []
    os.utime(tiny_run.out.parent / "gfs.grib")  # another file, for all that is known
    assert run(tiny_run, *overrides, "scores.external.gfs.variable=2t", until="evaluate") == ["scores"]


def test_forecasts_see_no_test_frame_of_the_future(finished_run):
    """The first start is the third frame of the test period: all frames that the model sees lie inside it."""
    starts = xr.open_dataset(finished_run.out / "forecasts/graph.nc")["forecast_reference_time"].values
    assert starts[0] == np.datetime64("2001-10-01T12")
    assert (np.diff(starts) == np.timedelta64(20 * 6, "h")).all()


def test_the_report_shows_scores_and_files(finished_run):
    text = pipeline.report(finished_run.out)
    assert text.splitlines()[0].split()[:3] == ["model", "mae", "rmse"]
    for name in ("graph", "conv", "persistence", "climatology", "damped", "forecasts/graph.nc", "maps/scores.png"):
        assert name in text


# What a second run does


def test_a_second_run_touches_nothing(tiny_run):
    before = snapshot(tiny_run.out)
    assert run(tiny_run) == []
    assert snapshot(tiny_run.out) == before


@pytest.mark.parametrize(
    ("override", "until", "redone"),
    [
        ("maps.points=[[50, 250]]", None, ["maps", "report"]),
        ("models.1.options.hidden=3", None, ["train conv", "forecast conv", "scores", "maps", "report"]),
        ("training.learning_rate=1e-3", "evaluate", [*TRAIN, "forecast graph", "forecast conv", "scores"]),
        ("forecast.stride=40", "evaluate", [*FORECAST, "scores"]),
        ("forecast.baselines=[damped, persistence]", None, ["forecast persistence", "report"]),
        ("split.validation=2001-09-05", "evaluate", ["statistics", *TRAIN, *FORECAST, "scores"]),
        ("climatology.daily=1", "build", ["statistics"]),
        ("grid.method=bilinear", "build", ["tensors", "statistics"]),
        ("store.keep_bits=12", "build", ["tensors", "statistics"]),
        ("source.sample.seed=1", "build", BUILD),
        ("title=Another", "evaluate", [*FORECAST, "scores"]),  # it stands in the files
    ],
)
def test_a_changed_key_redoes_what_depends_on_it(tiny_run, override, until, redone):
    tensors = snapshot(tiny_run.out / "tensors.zarr" / "air")
    assert run(tiny_run, override, until=until) == redone
    assert ("tensors" in redone) == (snapshot(tiny_run.out / "tensors.zarr" / "air") != tensors)
    assert run(tiny_run, override, until=until) == []


def test_changed_and_changed_back(tiny_run, finished_run):
    run(tiny_run, "models.1.options.hidden=3", until="evaluate")
    assert (tiny_run.out / "scores.csv").read_bytes() != (finished_run.out / "scores.csv").read_bytes()
    assert run(tiny_run, until="evaluate") == ["train conv", "forecast conv", "scores"]
    assert (tiny_run.out / "scores.csv").read_bytes() == (finished_run.out / "scores.csv").read_bytes()
    assert weights(tiny_run.out) == weights(finished_run.out)


def test_a_model_that_loses_its_adjacency_loses_its_correlations(tiny_run):
    overrides = ("models.0.architecture=convlstm", "models.0.options={hidden: 4}")
    assert run(tiny_run, *overrides) == ["train graph", "forecast graph", "scores", "maps", "report"]
    assert not (tiny_run.out / "correlations/graph.nc").exists()
    assert not list((tiny_run.out / "maps").glob("[cl]*"))


def test_a_large_grid_keeps_the_strongest_links_of_each_point(tiny_run, monkeypatch):
    monkeypatch.setattr(adjacency, "DENSE_NODES", 50)  # the grid has 72 points
    assert run(tiny_run, "forecast.stride=40")[-2:] == ["maps", "report"]
    path = tiny_run.out / "correlations/graph.nc"
    assert check_cf(path) == []
    with xr.open_dataset(path) as stored:
        assert stored["weight"].dims == ("node_target", "link")
        blocks = [weights for _, weights in adjacency.row_blocks(stored)]
    np.testing.assert_array_equal(np.concatenate(blocks), load_model(tiny_run.out / "models/graph").adjacency())
    assert (tiny_run.out / "maps/correlation_graph_40N_260E.png").exists()


LINKS = "correlations={seeds: 1, surrogates: 2, length_km: 1500}"
VARIATIONS = ["train graph seed 1", "train graph surrogate 1", "train graph surrogate 2"]


def test_links_are_tested_against_other_seeds_and_surrogates(tiny_run):
    """Each further training is a unit of its own, and resumes; a changed surrogate trains the surrogates again."""
    before = weights(tiny_run.out)
    assert run(tiny_run, LINKS) == [*VARIATIONS, "links graph", "maps", "report"]
    assert run(tiny_run, LINKS) == []
    assert weights(tiny_run.out) == before
    found = [tiny_run.out / "models/graph", *sorted((tiny_run.out / "models/graph").glob("s*_*"))]
    assert [path.name for path in found] == ["graph", "seed_1", "surrogate_1", "surrogate_2"]
    own, seed, *surrogates = (load_model(path).adjacency() for path in found)
    assert all(np.abs(own - other).max() > 0 for other in (seed, *surrogates))
    assert check_cf(tiny_run.out / "correlations/graph.nc") == []
    with xr.open_dataset(tiny_run.out / "correlations/graph.nc") as stored:
        written = stored.load()
    np.testing.assert_array_equal(written["weight"], own)
    larger = np.maximum(written["p_value_seeds"], written["p_value_surrogates"])
    np.testing.assert_array_equal(written["p_value"], larger)
    above = [of - of.min(axis=1, keepdims=True) for of in (own, seed)]
    excess = np.mean(above, axis=0)
    excess = excess - np.median(excess)
    np.testing.assert_array_equal(written["p_value_seeds"] < 0.5, excess > 0)
    assert run(tiny_run, LINKS.replace("1500", "900"), until="train") == VARIATIONS[1:]
    (tiny_run.out / "models/graph/seed_1/model.json").unlink()
    assert run(tiny_run, LINKS.replace("1500", "900"), until="train") == VARIATIONS[:1]


def test_surrogates_keep_the_climatology_and_the_spectrum_and_their_seed(finished_run):
    recipe = load_recipe(finished_run.recipe, [LINKS])
    task = stages.Run(recipe, finished_run.out, console=Console(quiet=True))
    seen, known = open_store(task.store).isel(time=slice(0, 1000)), open_statistics(task.store)
    one, other, again = (
        link_stages.varied(task, seen, known, link_stages.Variation("surrogate", n)) for n in (1, 2, 1)
    )
    xr.testing.assert_identical(one, again)
    assert float(abs(one["air"] - other["air"]).mean()) > 1
    before, after = (anomalies(fields["air"].load(), known) for fields in (seen, one))
    power = [np.abs(np.fft.rfft(x.values, axis=0)) for x in (before, after)]
    np.testing.assert_allclose(power[1], power[0], rtol=1e-2, atol=1e-3 * power[0].max())  # float32 of 280 K
    assert link_stages.varied(task, seen, known, None) is seen


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["correlations.seeds=1", "models.0.options={long_range: false}"], "no model learns links"),
        (["correlations={surrogates: 1, method: gaussian}"], "one surrogate has no spread"),
        (["correlations.surrogate=fourier"], "'phase' or 'block'"),
    ],
)
def test_recipes_that_cannot_test_links_are_refused(tiny_recipe, overrides, message):
    with pytest.raises(RecipeError, match=message):
        run(tiny_recipe, *overrides)


def test_changed_files_are_built_again(tmp_path):
    fields = synthetic_temperature(periods=1460).fields
    path = write_ncep(fields, tmp_path)[0]
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: files\nsource: {{path: {path}, variables: air}}\nsplit: {{validation: 0.6, test: 0.8}}\n"
        "models: [{name: conv, architecture: convlstm, options: {hidden: 4}}]\n"
    )

    def build() -> list[str]:
        return pipeline.run(recipe, tmp_path / "out", until="build", console=Console(quiet=True))

    assert build() == ["tensors", "statistics"]
    assert build() == []
    write_ncep(fields + 1, tmp_path)
    assert build() == ["tensors", "statistics"]
    np.testing.assert_allclose(open_store(tmp_path / "out/tensors.zarr")["air"][0], fields["t2m"][0] + 1, atol=0.01)


@pytest.fixture
def two_years(tmp_path):
    """A recipe of files, of which one year is there; and the fields of both."""
    fields = synthetic_temperature(periods=2 * 1460).fields
    write_ncep(fields.isel(time=slice(0, 1460)), tmp_path)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: files\nsource: {{path: '{tmp_path}/air.*.nc', variables: air}}\nsplit: {{validation: 2001-09-01, "
        "test: 2001-11-01}\nmodels: [{name: conv, architecture: convlstm, options: {hidden: 4}}]\n"
    )
    return recipe, fields


def test_new_files_are_appended(two_years, tmp_path, capsys):
    (recipe, fields), out = two_years, tmp_path / "out"

    def build(**options) -> list[str]:
        return pipeline.run(recipe, out, until="build", console=Console(stderr=True, width=200), **options)

    assert build() == ["tensors", "statistics"]
    shards = snapshot(out / "tensors.zarr/air/c")
    write_ncep(fields.isel(time=slice(1460, None)), tmp_path)
    capsys.readouterr()
    assert build() == ["tensors", "statistics"]
    assert "build: 1460 times are appended to 1460" in capsys.readouterr().err
    after = snapshot(out / "tensors.zarr/air/c")
    kept = [name for name in shards if shards[name] == after[name] and name.endswith("/0/0")]
    assert len(kept) == 1460 // open_store(out / "tensors.zarr").attrs["layout"]["shard"]
    stored = open_store(out / "tensors.zarr")["air"]
    np.testing.assert_allclose(stored, fields["t2m"], rtol=0, atol=0.01)  # packed in steps of 0.01 K


def test_files_that_have_grown(two_years, tmp_path, capsys):
    (recipe, fields), out = two_years, tmp_path / "out"

    def build(**options) -> list[str]:
        return pipeline.run(recipe, out, until="build", console=Console(stderr=True, width=200), **options)

    year = fields.isel(time=slice(1460, None))
    write_ncep(year.isel(time=slice(0, 100)), tmp_path)
    build()
    write_ncep(year, tmp_path)
    assert build(grown=True) == ["tensors", "statistics"]
    assert "build: 1360 times are appended to 1560" in capsys.readouterr().err
    assert len(open_store(out / "tensors.zarr")["time"]) == 2920


@pytest.fixture
def with_source(tmp_path):
    """A function that returns a recipe of files with further keys of the source."""

    def write(path, variable, *keys: str) -> Path:
        recipe = tmp_path / "r.yaml"
        source = "\n".join(f"  {line}" for line in (f"path: '{path}'", f"variables: {variable}", *keys))
        recipe.write_text(
            f"name: files\nsource:\n{source}\nsplit: {{validation: 0.6, test: 0.8}}\nwindow: {{history: 1, horizon: 1}}\n"
            "models: [{name: conv, architecture: convlstm, options: {hidden: 4}}]\n"
        )
        return recipe

    return write


def check_and_build(recipe: Path, out: Path) -> tuple[list[str], xr.Dataset]:
    """Return the units that were done, and the tensors."""
    pipeline.check(load_recipe(recipe), recipe)
    return pipeline.run(recipe, out, until="build", console=Console(quiet=True)), open_store(out / "tensors.zarr")


def test_messages_are_selected(with_source, tmp_path):
    """As climapred validate and climapred run read them; another choice makes other tensors."""
    hours = [(day, hour) for day in range(20200101, 20200111) for hour in (0, 600, 1200, 1800)]
    messages = [
        {"shortName": "2t", "dataDate": day, "dataTime": hour, "expver": version, "step": step, "values": value}
        for day, hour in hours
        for version, step, value in (("0001", 0, 280), ("0078", 0, 290), ("0001", 3, 300))
    ]
    for message in messages:
        message["values"] = np.full(31 * 16, message["values"], float)
    path, out = write_grib(tmp_path / "a.grib", *messages), tmp_path / "out"
    for version, step, value in (("0001", 0, 280), ("0078", 0, 290), ("0001", "[3]", 300)):
        done, stored = check_and_build(with_source(path, "t2m", f"select: {{expver: {version}, step: {step}}}"), out)
        assert done == ["tensors", "statistics"]
        assert (stored["t2m"] == value).all()
        assert len(stored["time"]) == len(hours)
    for keys, message in (
        (
            ("select: {step: 9}",),
            r"r.yaml, line 2: source: no message of .*a.grib has step \(9.0,\); there are 0.0 in 80",
        ),
        ((), r"r.yaml, line 2: source: .*two messages for \d+ of \d+ places"),
    ):
        with pytest.raises(RecipeError, match=f"(?s){message}"):
            check_and_build(with_source(path, "t2m", *keys), out)


def test_damaged_messages_are_skipped(with_source, tmp_path):
    fields = synthetic_temperature(periods=60).fields
    content = bytearray(write_era5_grib(fields, tmp_path / "a.grib").read_bytes())
    size = len(content) // 60  # of a message
    content[30 * size - 4 : 30 * size] = b"????"  # its last octets, which are 7777
    (tmp_path / "a.grib").write_bytes(content)
    with pytest.raises(RecipeError, match=r"r.yaml, line 2: source: .*a.grib.*damaged='skip'"):
        check_and_build(with_source(tmp_path / "a.grib", "t2m"), tmp_path / "out")
    with pytest.warns(UserWarning, match=r"a.grib"):
        done, stored = check_and_build(with_source(tmp_path / "a.grib", "t2m", "damaged: skip"), tmp_path / "out")
    assert done == ["tensors", "statistics"]
    np.testing.assert_array_equal(stored["time"], fields["time"].drop_isel(time=29))


@pytest.mark.parametrize(("choice", "offset"), [("first", 0), ("last", 1)])
def test_of_times_that_are_there_twice_one_counts(with_source, tmp_path, choice, offset):
    fields, pattern = synthetic_temperature(periods=60).fields, tmp_path / "*.nc"
    for name, part in (("a", fields.isel(time=slice(0, 40))), ("b", fields.isel(time=slice(30, 60)) + 1)):
        write_ncep(part, tmp_path)[0].rename(tmp_path / f"{name}.nc")
    with pytest.raises(RecipeError, match=r"r.yaml, line 2: source: 10 of 70 times .*duplicates='first' or 'last'"):
        check_and_build(with_source(pattern, "air"), tmp_path / "out")
    done, stored = check_and_build(with_source(pattern, "air", f"duplicates: {choice}"), tmp_path / "out")
    assert done == ["tensors", "statistics"]
    added = stored["air"] - fields["t2m"]
    np.testing.assert_allclose(added[:30], 0, atol=0.01)  # packed in steps of 0.01 K
    np.testing.assert_allclose(added[30:40], offset, atol=0.01)
    np.testing.assert_allclose(added[40:], 1, atol=0.01)


def test_another_calendar_is_no_recipe(with_source, tmp_path):
    """The tensors could not hold it; told before anything is written."""
    fields = synthetic_temperature(periods=60).fields.rename(t2m="air")
    times = xr.date_range("2001-01-01", periods=60, freq="6h", calendar="360_day", use_cftime=True)
    fields["air"].assign_attrs(units="K").assign_coords(time=times).to_netcdf(tmp_path / "a.nc")
    message = r"r.yaml, line 2: source: the times of .*a.nc follow the calendar '360_day'.*convert_calendar\('standard'"
    with pytest.raises(RecipeError, match=message):
        check_and_build(with_source(tmp_path / "a.nc", "air"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parts_and_finish(two_years, tmp_path):
    (recipe, _), out, quiet = two_years, tmp_path / "out", Console(quiet=True)
    pipeline.build_part(recipe, out, (2, 2), console=quiet)
    with pytest.raises(
        ValueError, match=r"tensors.zarr: .* shards \(first: times 0\.\..*\) are not written; run their parts"
    ):
        pipeline.finish_build(recipe, out, console=quiet)
    with pytest.raises(FileNotFoundError, match="its build has not finished"):
        open_store(out / "tensors.zarr")
    pipeline.build_part(recipe, out, (1, 2), workers=2, console=quiet)
    assert pipeline.finish_build(recipe, out, console=quiet) == ["tensors"]
    assert pipeline.finish_build(recipe, out, console=quiet) == []
    assert pipeline.run(recipe, out, until="build", console=quiet) == ["statistics"]
    names = {path.name for path in out.iterdir()}
    assert names == {"journal.jsonl", "recipe.yaml", "tensors.zarr"}


def test_the_sample_has_no_parts(tiny_recipe):
    with pytest.raises(RecipeError, match="the embedded sample is not built in parts"):
        pipeline.build_part(*tiny_recipe, (1, 2), console=Console(quiet=True))


def test_repair(tiny_run, capsys):
    shard = next((tiny_run.out / "tensors.zarr/air/c").glob("*/0/0"))
    good = shard.read_bytes()
    shard.write_bytes(good[:-1] + b"?")
    console = Console(stderr=True, width=200)
    assert pipeline.run(tiny_run.recipe, tiny_run.out, console=console) == []  # nobody has looked
    for expected in ("damaged, written anew", "build: every shard is intact"):
        assert pipeline.run(tiny_run.recipe, tiny_run.out, repair=True, console=console) == []
        assert expected in capsys.readouterr().err
    assert shard.read_bytes() == good


def test_no_restart_while_parts_are_built(tiny_run):
    before = snapshot(tiny_run.out)
    with (
        locked(tiny_run.out / ".tensors.zarr.lock", "", shared=True),
        pytest.raises(RuntimeError, match=r"parts of the tensors in .*out are being built; wait for them"),
    ):
        run(tiny_run, restart=True)
    assert snapshot(tiny_run.out) == before


def test_until(tiny_recipe, finished_run):
    assert run(tiny_recipe, until="build") == BUILD
    assert sorted(path.name for path in tiny_recipe.out.iterdir()) == [
        *("journal.jsonl", "recipe.yaml", "sample", "tensors.zarr")
    ]
    assert run(tiny_recipe, until="build") == []
    assert run(tiny_recipe, until="train") == TRAIN
    assert weights(tiny_recipe.out) == weights(finished_run.out)
    with pytest.raises(ValueError, match="until must be one of build, train, forecast, evaluate, maps, got 'tain'"):
        run(tiny_recipe, until="tain")


def test_restart(tiny_run):
    assert run(tiny_run, restart=True, until="build") == BUILD
    names = {path.name for path in tiny_run.out.iterdir()}
    assert names == {"journal.jsonl", "recipe.yaml", "sample", "tensors.zarr"}
    assert [row["unit"] for row in journal(tiny_run.out) if "finished" in row] == BUILD


@pytest.mark.parametrize(
    ("removed", "redone"),
    [
        ("maps", ["maps"]),
        ("scores.csv", ["scores"]),
        ("report.html", ["report"]),
        ("forecasts/conv.nc", ["forecast conv"]),
        ("models/conv/model.json", ["train conv"]),
        ("models/conv", ["train conv"]),
        ("tensors.zarr/statistics", ["statistics"]),
        ("tensors.zarr", ["tensors", "statistics"]),
        ("sample", ["sample"]),
    ],
)
def test_a_removed_output_is_made_again(tiny_run, finished_run, removed, redone):
    path = tiny_run.out / removed
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert run(tiny_run) == redone
    assert path.exists()
    assert weights(tiny_run.out) == weights(finished_run.out)
    assert (tiny_run.out / "scores.csv").read_bytes() == (finished_run.out / "scores.csv").read_bytes()
    assert run(tiny_run) == []


def test_what_was_begun_and_not_finished_is_done_again(tiny_run):
    """A kill while another recipe replaced an output: the old fingerprint no longer says what the folder holds.

    The tensors say it themselves: those of another recipe are replaced, those of this one stay.
    """
    with (tiny_run.out / "journal.jsonl").open("a") as stream:
        stream.write('{"begun": "2030-01-01T00:00:00+00:00", "unit": "tensors"}\n')
        stream.write('{"begun": "2030-01-01T00:00:00+00:00", "unit": "maps"}\n')
    before = snapshot(tiny_run.out / "tensors.zarr")
    assert run(tiny_run) == ["tensors", "maps"]
    assert snapshot(tiny_run.out / "tensors.zarr") == before
    assert run(tiny_run) == []


def test_a_journal_line_cut_short_does_not_count(tiny_run):
    with (tiny_run.out / "journal.jsonl").open("a") as stream:
        stream.write('{"finished": "2030-01-01", "unit": "ma')
    assert run(tiny_run) == []
    shutil.rmtree(tiny_run.out / "maps")
    assert run(tiny_run) == ["maps"]
    assert run(tiny_run) == []
    assert (tiny_run.out / "journal.jsonl").read_text().count("\n") == len(ALL) * 2 + 3


def test_the_artefact_forecasts_what_the_file_holds(tiny_run):
    """The trained model, opened on its own, gives the run's forecasts again."""
    from climapred.learning.forecast import forecast

    model = load_model(tiny_run.out / "models/graph")
    stored = xr.open_dataset(tiny_run.out / "forecasts/graph.nc")
    starts = stored["forecast_reference_time"].values[:3]
    again = forecast(model, open_store(tiny_run.out / "tensors.zarr"), starts, precision="float32")
    np.testing.assert_allclose(again["air"], stored["air"][:3], rtol=0, atol=1e-4)


# What stops a run


def test_two_runs_in_one_folder(tiny_run):
    import fcntl

    with (tiny_run.out / ".lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        before = snapshot(tiny_run.out)
        with pytest.raises(RuntimeError, match=r"another run works in .*out; wait for it, or choose another --out"):
            run(tiny_run, restart=True)
        assert snapshot(tiny_run.out) == before
    assert run(tiny_run) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["split.validation=2005-01-01"], r"tiny.yaml, line 8: split: training, validation and test must each hold"),
        (["split.test=2001-09-01"], r"line 8: split: .* leave 972, 0 and 488 of the times 2001-01-01T00 to 2001-12"),
        (["split.test=soon"], "line 8: split: test must be a date such as 2013-12-11 or a share such as 0.8, got 'soo"),
        (["window.history=200"], r"line 8: split: the validation period holds 120 of 1460 times and no window of 202"),
        (["grid.region=[20, 70, 0, 20]"], r"line 6: grid: no point of the target lies in the source"),
        (["grid.region=[0, 70, 180, 290]"], r"line 6: grid: .* leaves 2 of 8 latitudes without data, such as 0: the d"),
        (
            ["grid.region=[20, 80, 180, 290]", "grid.method=bilinear"],
            r"the bilinear regridding leaves 1 of 7 latitudes",
        ),
        (["grid.spacing=7"], r"line 6: grid: spacing 7.0 must divide the range 20.0..70.0"),
        (["models.0.architecture=lstm"], r"line 10: models.0: unknown model 'lstm'; known models: convlstm, ls_ntp"),
        (["models.0.options.heads=2"], r"line 10: models.0: model 'ls_ntp' has no option heads; its options: height"),
        (["models.0.options.hidden=many"], r"line 10: models.0: option hidden .* must be int, got 'many'"),
        (["models.0.options.hidden=0"], r"line 10: models.0: hidden must be at least 1, got 0"),
        (["models.1.options.channels=2"], r"line 15: models.1.options: channels: these follow from the data"),
        (["maps.start_times=2001-03-01"], r"line 18: maps.start_times: 2001-03-01 is not a start of a test forecast"),
        (["maps.start_times=[noon]"], r"line 18: maps.start_times: .*noon"),
        (["maps.leads_hours=[6, 7]"], r"line 18: maps.leads_hours: 7 is not a lead .*; those are \[6.0, 12.0\]"),
        (["maps.points=[[51.5, 0]]"], r"line 18: maps.points: 51.5, 0 lies outside Grid\(6 x 12"),
        (["source={path: nowhere.nc, variables: air}"], r"line 3: source: no file matches 'nowhere.nc'"),
        (["scores.external.gfs.path=nowhere.nc"], r"line 1: scores.external.gfs: no file matches 'nowhere.nc'"),
        (["scores.external.gfs.path=air.nc"], r"scores.external.gfs: a forecast must have starts .* no forecast"),
        (["scores.external.damped.path=a.nc"], r"scores.external: damped: a baseline or a model has this name"),
        (
            ["scores.external.gfs={path: air.nc, variable: {msl: prmsl}}"],
            r"scores.external.gfs.variable: msl: not among air",
        ),
        (["scores.external.gfs={path: air.nc, file: b}"], r"unknown key; known keys here: path, variable, select, met"),
        (["source={path: tiny.yaml, variables: air}"], r"line 3: source: .* neither GRIB, NetCDF nor Zarr"),
    ],
)
def test_check_names_file_line_and_key(finished_run, tmp_path, monkeypatch, overrides, message):
    monkeypatch.chdir(tmp_path)
    shutil.copy(finished_run.recipe, "tiny.yaml")
    shutil.copy(finished_run.out / "sample/air.sig995.2001.nc", "air.nc")
    with pytest.raises(RecipeError, match=message):
        pipeline.run(finished_run.recipe, tmp_path / "out", overrides=overrides, console=Console(quiet=True))
    assert not (tmp_path / "out").exists()  # nothing is written before all is checked


# Training with everything on


def training_log(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "models/graph/log.csv").drop(columns=["seconds", "windows_per_second", "waiting"])


def test_every_training_key_reaches_the_models(tiny_recipe):
    """Spacing, embargo, forcings, feedback with sampling, streamed windows: through to the forecasts of the artefact."""
    overrides = [
        "window={history: 3, horizon: 2, spacing: 2, lead_spacing: 4, stride: 5}",
        "split.embargo_hours=48",
        "models=[{name: conv, architecture: convlstm, options: {hidden: 4, feedback: true}, forcings: [latitude, hour]}]",
        "training={epochs: 3, batch_size: 8, accumulate: 2, schedule: cosine, warmup: 0.1, loss: mse+mae, area_weighted: true,"
        " averaging: 0.9, patience: 2, sampling: scheduled, curriculum: 2, precision: float32, tensorboard: true}",
        "loader={tier: stream, memory_limit_mb: 1}",
        "maps={leads_hours: [24, 48]}",
    ]
    run(tiny_recipe, *overrides, until="forecast")
    out = tiny_recipe.out
    model, fields = load_model(out / "models" / "conv"), open_store(out / "tensors.zarr")
    assert model.scaling.forcings == ("latitude", "hour")
    assert any((out / "models/conv/tensorboard").iterdir())
    with xr.open_dataset(out / "forecasts/conv.nc") as stored:
        written = stored.load()
    assert written["forecast_period"].values.tolist() == [24, 48]  # hours
    start = written["forecast_reference_time"].values[1]
    again = model.forecast(fields, start, precision="float32")["air"].values[0]
    np.testing.assert_allclose(written["air"].values[1], again, atol=1e-4)
    split = np.datetime64("2001-09-01") - np.timedelta64(48, "h")
    assert np.datetime64(model.training["data"]["training_stop"]) < split


def test_a_loss_on_what_is_seen_is_for_networks_of_one_pass(finished_run, tmp_path):
    message = (
        r"tiny.yaml, line \d+: models.0: training.loss_on_seen is for networks that forecast the frames that they read"
    )
    with pytest.raises(RecipeError, match=message):
        run(finished_run._replace(out=tmp_path / "out"), "training.loss_on_seen=true")


def test_sampling_is_for_networks_that_feed_back(finished_run, tmp_path):
    message = r"tiny.yaml, line \d+: models.0: training.sampling: reverse is for networks that eat their own forecasts"
    with pytest.raises(RecipeError, match=message):
        run(finished_run._replace(out=tmp_path / "out"), "training.sampling=reverse")


def test_statistics_and_windows_keep_the_embargo(tiny_recipe):
    run(tiny_recipe, "split.embargo_hours=240", until="build")
    stop = np.datetime64(open_statistics(tiny_recipe.out / "tensors.zarr").attrs["training_stop"])
    assert stop == np.datetime64("2001-08-21T18")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["processes", "torchrun"])
def test_two_processes_train_the_model_of_one(tiny_recipe, tmp_path, how):
    even = "window.stride=22"  # 44 windows: of an odd number, two processes leave one out
    alone = tiny_recipe._replace(out=tmp_path / "alone")
    run(alone, even, until="train")
    overrides = [even, "training.processes=2"] if how == "processes" else [even]
    command = [sys.executable, "-m", "climapred.cli", "run", str(tiny_recipe.recipe), "--out", str(tiny_recipe.out)]
    command += ["--until", "train", *(part for override in overrides for part in ("--set", override))]
    environments = [dict(os.environ)]
    if how == "torchrun":  # what it puts into the environment of each process
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environments = [os.environ | world | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, env=environment, **pipes) for environment in environments]
    output = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * len(started), output
    assert "models/graph/model.json" in output[0][0]
    assert [out for out, _ in output[1:]] == [""] * (len(started) - 1)
    for name in ("graph", "conv"):
        one, two = (load_model(out / "models" / name) for out in (alone.out, tiny_recipe.out))
        for (key, weight), other in zip(one.module.state_dict().items(), two.module.state_dict().values(), strict=True):
            np.testing.assert_allclose(weight, other, atol=2e-5, err_msg=key)
    assert run(tiny_recipe, *overrides, until="train") == []


# What a kill leaves

CHILD = (
    "import sys; from climapred import pipeline; from rich.console import Console; "
    "pipeline.run(sys.argv[1], sys.argv[2], console=Console(quiet=True))"
)


def begun(unit):
    def reached(out: Path) -> bool:
        path = out / "journal.jsonl"
        return path.exists() and any('"begun"' in row and f'"{unit}"' in row for row in path.read_text().splitlines())

    return reached


def kill_when(tiny, reached) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, *map(str, tiny)], stderr=subprocess.PIPE)
    while not reached(tiny.out):
        assert child.poll() is None, child.stderr.read().decode()
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_killed_in_every_stage(tiny_recipe, finished_run):
    """Killed once in each stage, each time gone on with: the same weights and scores, bit for bit."""
    out = tiny_recipe.out
    finished = {}
    for stage, reached in {
        "tensors": begun("tensors"),
        "statistics": begun("statistics"),
        "train": lambda out: any(out.glob("models/graph/checkpoints/*/last.ckpt")),  # one of two epochs is done
        "forecast": begun("forecast conv"),
        "evaluate": begun("scores"),
        "maps": lambda out: any((out / "maps.partial").glob("*.png")),
    }.items():
        kill_when(tiny_recipe, reached)
        finished[stage] = [row["unit"] for row in journal(out) if "finished" in row]
        assert not (out / "maps").exists()
        assert (out / "models/graph/model.json").exists() == (stage not in ("tensors", "statistics", "train"))
    assert finished == {
        "tensors": ALL[:1],
        "statistics": ALL[:2],
        "train": ALL[:3],
        "forecast": ALL[:6],
        "evaluate": ALL[:8],
        "maps": ALL[:9],
    }
    assert run(tiny_recipe) == ["maps", "report"]
    assert weights(out) == weights(finished_run.out)
    assert (out / "scores.csv").read_bytes() == (finished_run.out / "scores.csv").read_bytes()
    xr.testing.assert_equal(open_store(out / "tensors.zarr"), open_store(finished_run.out / "tensors.zarr"))
    pd.testing.assert_frame_equal(*(training_log(each) for each in (out, finished_run.out)))
    assert sorted(path.name for path in (out / "maps").iterdir()) == sorted(
        path.name for path in (finished_run.out / "maps").iterdir()
    )
    assert run(tiny_recipe) == []


@pytest.mark.slow
def test_a_term_signal_saves_and_asks_for_requeue(tiny_recipe, finished_run):
    """TERM while a model is trained: exit code 75 from the command line; the next run ends in the same result."""
    overrides = ["--set", "training.checkpoint_seconds=0"]
    command = [sys.executable, "-m", "climapred.cli", "run", *map(str, [tiny_recipe.recipe, "--out", tiny_recipe.out])]
    child = subprocess.Popen([*command, *overrides], stderr=subprocess.PIPE, text=True)
    while not any(tiny_recipe.out.glob("models/graph/checkpoints/*/*.ckpt")):
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.002)
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=120)
    if (tiny_recipe.out / "models/graph/model.json").exists():
        pytest.fail("the training was over before the signal came")
    assert child.returncode == 75
    assert "has saved its state; run the same command again to go on" in " ".join(errors.split())
    run(tiny_recipe, "training.checkpoint_seconds=0")
    pd.testing.assert_frame_equal(training_log(tiny_recipe.out), training_log(finished_run.out))
    assert weights(tiny_recipe.out) == weights(finished_run.out)
