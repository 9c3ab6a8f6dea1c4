"""The recipes of the paper's settings, run small on synthetic files of the names, years and grids that they ask for."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from rich.console import Console

from climapred import Grid, load_model, open_store, pipeline
from climapred.recipe_file import load_recipe
from climapred.testing import synthetic_temperature, write_ncep

PIPELINES = Path(__file__).parents[2] / "pipelines"
T62 = Grid(Grid.gaussian(47).latitude, np.arange(192) * 1.875)
SOURCES = {"paper_ncep": T62.crop((8, 62, 64, 146)), "paper_era5": Grid.regular(2.0, region=(12, 58, 68, 140))}
NAMES = {"paper_ncep": "air.2m.gauss.{}.nc", "paper_era5": "era5.t2m.{}.nc"}
SMALL = ("models.0.options.hidden=2", "models.0.options.embedding=4", "training.epochs=1", "window.stride=200")
SMALL += ("forecast.stride=200", "training.precision=float32", "maps.start_times=2018-01-02T06", "maps.leads_hours=[6]")


@pytest.fixture(scope="module", params=SOURCES)
def ran(request, tmp_path_factory):
    folder, name = tmp_path_factory.mktemp(request.param), request.param
    fields = synthetic_temperature(SOURCES[name], start="2017-01-01", periods=2 * 1460, step_hours=6, links=()).fields
    for path, year in zip(write_ncep(fields, folder), (2017, 2018), strict=True):
        path.rename(folder / NAMES[name].format(year))
    overrides = SMALL if name == "paper_ncep" else (*SMALL, "source.variables=air")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIMAPRED_DATA", str(folder))
        pipeline.run(PIPELINES / f"{name}.yaml", folder / "out", overrides=overrides, console=Console(quiet=True))
    return name, folder / "out", fields


def test_settings_and_grid_are_the_papers(ran):
    name, out, fields = ran
    recipe, model = load_recipe(PIPELINES / f"{name}.yaml"), load_model(out / "models" / "ls_ntp")
    training, window = recipe.training, recipe.window
    assert (training.epochs, training.batch_size, training.learning_rate, training.weight_decay) == (70, 8, 1e-3, 0)
    assert (window.history, window.horizon) == (6, 6)
    sizes = {"paper_ncep": ((21, 35), 735), "paper_era5": ((77, 125), 38 * 62)}
    assert (model.grid.shape, model.node_grid.size) == sizes[name]
    stored = open_store(out / "tensors.zarr")["air"]
    assert str(stored["time"].values[-1])[:13] == "2018-12-31T18"
    if name == "paper_ncep":  # the source's own points, as they are
        own = fields["t2m"].sel(latitude=stored["latitude"], longitude=stored["longitude"], method="nearest")
        np.testing.assert_allclose(stored, own, rtol=0, atol=0.006)  # packed in steps of 0.01 K
    low, high = (float(model.module.reference), float(model.module.reference + model.module.scale))
    training_times = stored.sel(time=slice(None, "2017-11-06"))
    np.testing.assert_allclose([low, high], [training_times.min(), training_times.max()], rtol=1e-6)


def test_the_papers_metrics_are_written(ran):
    _, out, _ = ran
    scores = pd.read_csv(out / "scores_paper.csv", index_col="model")
    with xr.open_dataset(out / "forecasts" / "ls_ntp.nc") as forecast:
        truth = open_store(out / "tensors.zarr")["air"].sel(time=forecast["time"]).drop_vars("time")
        error = (forecast["air"] - truth).astype(np.float64)
        rmse = float(np.sqrt((error**2).mean(["forecast_reference_time", "latitude", "longitude"])).mean())
    assert scores.at["ls_ntp", "rmse"] == pytest.approx(rmse, rel=1e-4)
    assert {"mae", "rmse", "ssim", "psnr"} <= set(scores.columns)
