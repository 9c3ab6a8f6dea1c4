"""The shipped recipes, run whole on the real files with a tiny network, and compared with plain xarray."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from rich.console import Console

from climapred import evaluate, load_model, open_statistics, open_store, persistence, pipeline, stages
from climapred.models import MODELS
from climapred.recipe_file import load_recipe

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("CLIMAPRED_DATA", ROOT / "../shared/data")).resolve()
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="shared data missing")

BASELINES = ("damped", "same_hour", "eof_regression")
SMALL = (
    *("models.0.options={hidden: 4, layers: 1, embedding: 8}", "models.1.options={hidden: 4, layers: 1}"),
    *("training.epochs=1", "window.stride=40", "training.precision=float32"),
)


def run(name: str, out: Path, *overrides: str) -> pd.DataFrame:
    """Run a recipe small and return its scores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIMAPRED_DATA", str(DATA))
        done = pipeline.run(
            ROOT / f"pipelines/{name}.yaml", out, overrides=(*SMALL, *overrides), console=Console(quiet=True)
        )
    assert done == [
        *("tensors", "statistics", "train ls_ntp", "train convlstm"),
        *(
            "forecast ls_ntp",
            "forecast convlstm",
            *(f"forecast {name}" for name in BASELINES),
            "scores",
            "maps",
            "report",
        ),
    ]
    return pd.read_csv(out / "scores.csv")


@pytest.fixture(scope="module")
def ncep(tmp_path_factory):
    out = tmp_path_factory.mktemp("ncep") / "out"
    starts = "maps.start_times=[2014-01-14T00, 2014-12-20T18]"
    return out, run("ncep_air", out, "forecast.stride=47", starts)


@pytest.fixture(scope="module")
def era5(tmp_path_factory):
    out = tmp_path_factory.mktemp("era5") / "out"
    return out, run("era5_t2m", out, "forecast.stride=12", "maps.start_times=2019-03-26T05")


def test_ncep_tensors_are_the_files(ncep):
    out, _ = ncep
    files = [xr.open_dataset(DATA / f"air.sig995.{year}.nc")["air"] for year in (2013, 2014)]
    whole = xr.concat(files, "time", join="exact").sortby("lat")
    fields = open_store(out / "tensors.zarr")
    np.testing.assert_array_equal(fields["air"], whole.astype(np.float32))
    np.testing.assert_array_equal(fields["time"], whole["time"])


def test_ncep_training_ends_before_the_validation(ncep):
    known = open_statistics(ncep[0] / "tensors.zarr")
    assert known.attrs["training_stop"].startswith("2013-12-10T18")
    training = open_store(ncep[0] / "tensors.zarr")["air"].sel(time=slice(None, "2013-12-10")).astype(np.float64)
    np.testing.assert_allclose(known["std"].item(), training.std().item(), rtol=1e-9)


def test_ncep_persistence_over_all_of_2014(ncep):
    """The mean absolute error over 1449 starts and six leads, 2.341 K: computed twice, and known from elsewhere."""
    fields = open_store(ncep[0] / "tensors.zarr")
    recipe = load_recipe(ROOT / "pipelines/ncep_air.yaml")
    starts = stages.init_times(recipe, fields["time"].values)
    assert len(starts) == 1449  # 1460 frames of 2014 less a window of 12, plus one
    leads = np.arange(1, 7) * np.timedelta64(6, "h")
    found = evaluate({"persistence": persistence(fields, starts, leads)}, fields)
    first = int(fields.indexes["time"].get_loc(starts[0]))
    air = fields["air"].values.astype(np.float64)
    now = air[first : first + 1449]
    errors = [abs(air[first + lead : first + lead + 1449] - now).mean() for lead in range(1, 7)]
    np.testing.assert_allclose(found["mae"].sel(model="persistence"), errors, rtol=1e-9)
    assert np.mean(errors) == pytest.approx(2.341, abs=5e-4)


@pytest.mark.parametrize(("name", "variable", "step"), [("ncep", "air", 6), ("era5", "t2m", 1)])
def test_scores_are_those_of_the_files(request, name, variable, step):
    out, table = request.getfixturevalue(name)
    assert table["model"].unique().tolist() == ["ls_ntp", "convlstm", "persistence", "climatology", *BASELINES]
    assert sorted(table["lead_hours"].unique()) == [step * lead for lead in range(1, 7)]
    truth = open_store(out / "tensors.zarr")[variable].astype(np.float64)
    for model in ("ls_ntp", "convlstm", "damped"):
        forecast = xr.open_dataset(out / "forecasts" / f"{model}.nc")
        error = forecast[variable] - truth.sel(time=forecast["time"]).drop_vars("time")
        mae = abs(error).mean(["forecast_reference_time", "latitude", "longitude"])
        np.testing.assert_allclose(table.loc[table["model"] == model, "mae"], mae, rtol=1e-5)


@pytest.mark.parametrize("name", ["ncep", "era5"])
def test_damped_beats_the_other_baselines(request, name):
    """The regression between persistence and climatology is no worse than either, on average over the leads."""
    _, table = request.getfixturevalue(name)
    rmse = table.groupby("model")["rmse_area"].mean()
    assert rmse["damped"] < min(rmse["persistence"], rmse["climatology"])


@pytest.mark.parametrize("name", ["ncep", "era5"])
def test_everything_is_drawn(request, name):
    out, _ = request.getfixturevalue(name)
    drawn = [path.stem for path in (out / "maps").glob("*.png")]
    points = {"ncep": 2, "era5": 1}[name]
    assert len([stem for stem in drawn if stem.startswith("correlation_ls_ntp_")]) == points
    assert len([stem for stem in drawn if stem.startswith("forecast_")]) == 2 * points
    assert {"scores", "mae"} <= set(drawn)


def test_era5_tensors_are_the_file(era5):
    from climapred.data.grib import open_grib

    messages = open_grib([DATA / "era5-2mt-2019-03-uk.grib"])["t2m"]
    fields = open_store(era5[0] / "tensors.zarr")["t2m"]
    assert fields.shape == (744, 33, 49)
    np.testing.assert_array_equal(fields, messages.sortby("latitude"))
    assert fields["longitude"].values[0] < 0 < fields["longitude"].values[-1]  # the box crosses Greenwich


SIZES = {"ls_ntp": "hidden: 3, embedding: 4", "fc_lstm": "hidden: 4", "agcrn": "hidden: 3, embedding: 4"}
SIZES |= {
    "simvp": "hidden: 2, translator: 4, layers: 2, kernel: 5, expansion: 1",
    "predrnn_v2": "hidden: 3, decouple: 0.1",
    "e3d_lstm": "hidden: 3, kernel: 3, memory: 1, patch: 4",
    "sa_convlstm": "hidden: 3, patch: 2",
}


def test_every_model_trains_forecasts_and_comes_back(tmp_path):
    """All models of the recipe, tiny: each is saved, forecasts the same when it is loaded again, and has its row of scores."""
    recipe = load_recipe(ROOT / "pipelines/ncep_models.yaml")
    names = [model.name for model in recipe.models]
    assert {model.architecture for model in recipe.models} == set(MODELS)
    small = [f"models.{n}.options={{{SIZES.get(name, 'hidden: 3')}}}" for n, name in enumerate(names)]
    small += ["training.epochs=1", "window.stride=150", "forecast.stride=170", "training.precision=float32"]
    small += ["maps.start_times=2014-01-02T06"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIMAPRED_DATA", str(DATA))
        path, out = ROOT / "pipelines/ncep_models.yaml", tmp_path / "out"
        pipeline.run(path, out, overrides=small, until="evaluate", console=Console(quiet=True))
    scores = pd.read_csv(out / "scores.csv").groupby("model")["mae"].mean()
    assert set(scores.index) == {*names, "persistence", "climatology", *BASELINES}
    fields = open_store(out / "tensors.zarr").isel(time=slice(1460, 1500))
    for name in names:
        assert 1 < scores[name] < 4  # persistence has 2.3 K
        model = load_model(out / "models" / name)
        with xr.open_dataset(out / "forecasts" / f"{name}.nc") as written:
            start = written["forecast_reference_time"].values[0]
            again = model.forecast(fields.sel(time=slice(None, start)), [start], precision="float32")
            np.testing.assert_allclose(again["air"].values[0], written["air"].values[0], atol=1e-3)
