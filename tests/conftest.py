"""Loads climapred before any test loads eccodes (climapred/__init__.py says why), and keeps every test to one thread."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import climapred  # noqa: F401

os.environ["OMP_NUM_THREADS"] = "1"  # also for the processes that tests start

import pytest
import torch
from rich.console import Console

torch.set_num_threads(1)

TINY = """\
name: tiny
title: A year on 6 x 12 cells
source:
  sample: {years: 1}
  variables: air
grid: {spacing: 10, region: [20, 70, 180, 290]}
window: {history: 3, horizon: 2, stride: 20}
split: {validation: 2001-09-01, test: 2001-10-01}
models:
  - name: graph
    architecture: ls_ntp
    options: {hidden: 4, layers: 1, embedding: 8}
  - name: conv
    architecture: convlstm
    options: {hidden: 4, layers: 1}
training: {epochs: 2, batch_size: 16, precision: float32}
forecast: {stride: 20, baselines: [damped]}
maps: {start_times: 2001-10-11T12, leads_hours: [6, 12], points: [[40, 260]]}
"""


class TinyRun(NamedTuple):
    """A recipe that runs through every stage in seconds, and the folder of its run."""

    recipe: Path
    out: Path


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Keep what climapred caches, also in processes that tests start, away from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIMAPRED_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """The tiny recipe, run once and undisturbed; never written to: ``tiny_run`` is a copy."""
    from climapred import pipeline

    folder = tmp_path_factory.mktemp("tiny")
    run = TinyRun(folder / "tiny.yaml", folder / "out")
    run.recipe.write_text(TINY)
    pipeline.run(run.recipe, run.out, console=Console(quiet=True))
    return run


@pytest.fixture
def tiny_run(finished_run, tmp_path):
    """A copy of the finished run, times of the files included."""
    shutil.copytree(finished_run.out, tmp_path / "out")
    return TinyRun(finished_run.recipe, tmp_path / "out")


@pytest.fixture
def tiny_recipe(tmp_path):
    """The tiny recipe, and a folder where nothing has run yet."""
    run = TinyRun(tmp_path / "tiny.yaml", tmp_path / "out")
    run.recipe.write_text(TINY)
    return run
