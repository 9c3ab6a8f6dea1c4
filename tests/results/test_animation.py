"""Films: their frames, colours and files."""

import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image

from climapred.grid import Grid
from climapred.results import animation
from climapred.results.animation import animate
from climapred.results.sheet import temperature_colours

GRID = Grid(np.linspace(50, 58, 9), np.linspace(-10, 2, 13))


def film(steps=4, dim="lead_time"):
    rising = 270 + np.arange(steps)[:, None, None] * 5.0 + np.zeros(GRID.shape)
    times = {
        "lead_time": pd.to_timedelta(np.arange(1, steps + 1) * 6, unit="h"),
        "time": pd.date_range("2014", periods=steps),
    }
    return xr.DataArray(
        rising + GRID.latitude[:, None] / 10,
        {**GRID.coordinates(), dim: times[dim]},
        (dim, "latitude", "longitude"),
        "t2m",
        {"units": "K", "source": "made"},
    )


def frames(path: Path) -> list[np.ndarray]:
    with Image.open(path) as image:
        shown = []
        for index in range(image.n_frames):
            image.seek(index)
            shown.append(np.asarray(image.convert("RGB")).astype(int))
        return shown


def test_every_step_is_a_frame_and_warms_in_colour(tmp_path):
    path = animate(film().assign_coords(init_time=np.datetime64("2014-01-17", "ns")), tmp_path / "a.gif", fps=5)
    shown = frames(path)
    assert len(shown) == 4
    scale = temperature_colours()(np.linspace(0, 1, 200))[:, :3] * 255
    height, width = shown[0].shape[:2]
    patches = [
        frame[height // 2 - 20 : height // 2 + 20, width // 2 - 20 : width // 2 + 20].reshape(-1, 1, 3)
        for frame in shown
    ]
    warmth = [np.median(np.abs(patch - scale).sum(axis=2).argmin(axis=1)) for patch in patches]
    assert np.diff(warmth).min() > 20  # on the scale of 200 colours, that spans some 15 K
    corner = [frame[:12, -12:] for frame in shown]
    assert all((pixels == 255).all() for pixels in corner)
    with Image.open(path) as image:
        assert image.info["duration"] == 200
        assert image.info["loop"] == 0
    assert [file.name for file in tmp_path.iterdir()] == ["a.gif"]


def test_titles_tell_lead_and_time():
    dated = film(2).assign_coords(init_time=np.datetime64("2014-01-17", "ns"))
    assert animation._titles(dated, dated, "x") == [
        "x: 2 metre temperature, +6 h, 2014-01-17 06 UTC",
        "x: 2 metre temperature, +12 h, 2014-01-17 12 UTC",
    ]
    assert animation._titles(film(1), film(1), None) == ["2 metre temperature, +6 h"]
    series = film(2, "time")
    assert animation._titles(series, series, None)[1] == "2 metre temperature, 2014-01-02 00 UTC"


def test_with_a_truth_there_are_three_maps(tmp_path):
    alone = frames(animate(film(2), tmp_path / "a.gif"))[0]
    three = frames(animate(film(2) + 1, tmp_path / "b.gif", truth=film(2)))[0]
    assert three.shape[1] > alone.shape[1]
    red_minus_blue = three[:, -three.shape[1] // 3 :, 0] - three[:, -three.shape[1] // 3 :, 2]
    assert (red_minus_blue > 40).mean() > 0.05  # everywhere too warm: the map of the error is red


def test_greys_stay_grey_and_the_scale_is_whole(tmp_path):
    shown = frames(animate(film(2), tmp_path / "a.gif"))[0]
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 150
    footer = shown[-25:-5].reshape(-1, 3)
    assert np.ptp(footer, axis=1).max() == 0


def test_bad_requests_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"must end in .gif or .mp4, got 'a.avi'"):
        animate(film(), tmp_path / "a.avi")
    with pytest.raises(ValueError, match="fps must be above 0 and at most 100 frames a second, got 0"):
        animate(film(), tmp_path / "a.gif", fps=0)
    with pytest.raises(ValueError, match=r"must have the dims \('lead_time', 'latitude', 'longitude'\)"):
        animate(film()[0], tmp_path / "a.gif")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"an MP4 needs ffmpeg, which is not on the PATH; install it, or write a\.gif"):
        animate(film(), tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


def program(folder: Path, script: str) -> None:
    """Put a program of the name ffmpeg into a folder."""
    path = folder / "ffmpeg"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


def test_mp4_gets_all_raw_frames_of_even_size(tmp_path, monkeypatch):
    """A program that keeps its input in the last argument stands for ffmpeg, which need not be installed."""
    program(tmp_path, 'for last; do :; done; echo "$@" > "$(dirname "$0")/arguments"; cat > "$last"')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    path = animate(film(3), tmp_path / "a.mp4", fps=5)
    given = (tmp_path / "arguments").read_text().split()
    width, height = (int(size) for size in given[given.index("-s") + 1].split("x"))
    assert (width % 2, height % 2) == (0, 0)
    assert path.stat().st_size == 3 * height * width * 3
    assert given[given.index("-r") + 1] == "5"


@pytest.mark.parametrize("script", ["echo no encoder >&2; exit 3", "cat > /dev/null; echo no encoder >&2; exit 3"])
def test_failure_of_ffmpeg_is_told_and_leaves_no_file(tmp_path, monkeypatch, script):
    folder = tmp_path / "bin"
    folder.mkdir()
    program(folder, script)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    with pytest.raises(RuntimeError, match="ffmpeg failed to write the film: no encoder"):
        animate(film(3), tmp_path / "a.mp4")
    assert [file.name for file in tmp_path.iterdir()] == ["bin"]


def test_ffmpeg_is_found_or_not(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not animation.has_ffmpeg()
    program(tmp_path, "exit 0")
    assert animation.has_ffmpeg() == (shutil.which("ffmpeg") is not None)
