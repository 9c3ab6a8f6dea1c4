"""The example scripts, run whole on a small run."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
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


@pytest.fixture
def moving_digits():
    pytest.importorskip("sklearn", reason="needs scikit-learn's digits")
    return runpy.run_path(str(ROOT / "examples" / "moving_digits.py"))


def test_moving_digits_go_straight_on_between_the_edges(moving_digits):
    dot = torch.ones(1, 1, 1)
    frames = next(moving_digits["moving"](dot, seed=3, batch=4, count=1))
    assert frames.shape == (4, 20, 1, 64, 64)
    assert (frames.sum((-1, -2)) == 1).all()
    rows, columns = (frames.sum(axis).squeeze(2).argmax(-1) for axis in (-1, -2))
    steps = torch.hypot(rows.diff().float(), columns.diff().float())
    assert steps.max() < 3.6 + 2**0.5  # places are rounded to pixels
    assert steps.median() > 3.6 - 2**0.5
    assert torch.equal(frames, next(moving_digits["moving"](dot, seed=3, batch=4, count=1)))
    assert moving_digits["digits"]()[0].amax() == 1


def test_moving_digits_compares_the_networks(moving_digits, tmp_path, monkeypatch, capsys):
    for sizes, _ in moving_digits["NETWORKS"].values():
        sizes["hidden"] = 2
    out = tmp_path / "table.md"
    monkeypatch.setattr(sys, "argv", ["moving_digits.py", "--steps", "2", "--test", "1", "--out", str(out)])
    moving_digits["main"]()
    table = out.read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    names = [row.split()[1] for row in table.splitlines() if row.startswith("| ")]
    assert names == ["network", ":--", *moving_digits["NETWORKS"]]
    assert "in the papers" in table
