"""The example scripts, run whole on a small run."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from rich.console import Console

from climapred.pipeline import run
from climapred.results.cf import check_cf

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_forecast_in_xarray_extends_the_newest_frames(tmp_path, monkeypatch):
    small = ["training.epochs=1", "models=[{name: convlstm, architecture: convlstm, options: {hidden: 4, layers: 1}}]"]
    run(ROOT / "pipelines" / "demo.yaml", tmp_path, overrides=small, until="train", console=Console(quiet=True))
    monkeypatch.setattr(sys, "argv", ["forecast_in_xarray.py", str(tmp_path)])
    runpy.run_path(str(ROOT / "examples" / "forecast_in_xarray.py"), run_name="__main__")
    with xr.open_dataset(tmp_path / "newest.nc") as written:
        assert written.sizes["forecast_period"] == 10
        assert written["forecast_reference_time"].values == np.datetime64("2002-12-31T18")
        assert written["air"].notnull().all()
        assert 200 < written["air"].min() < written["air"].max() < 330
    assert check_cf(tmp_path / "newest.nc") == []
    assert (tmp_path / "newest.png").stat().st_size > 20_000
