"""Films of forecasts and other fields in time: GIF, and MP4 where ffmpeg is installed."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from matplotlib import colormaps
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from PIL import Image

from climapred.results.captions import circumstances, hours, moment, origin, quantity
from climapred.results.geography import Geography, from_antimeridian
from climapred.results.maps import Layer, layers
from climapred.results.sheet import colour_bar, label_sides, map_sheet, with_dims, write_footer
from climapred.whole import replacing

Frame = npt.NDArray[np.uint8]

_STEPS = ("lead_time", "time")


def animate(
    forecast: xr.DataArray,
    path: str | os.PathLike[str],
    *,
    truth: xr.DataArray | None = None,
    model: str | None = None,
    fps: float = 4.0,
    limits: tuple[float, float] | None = None,
    cmap: str | Colormap | None = None,
) -> Path:
    """Write a film of fields, a frame for each step, and return its path. Colours stay the same all through.

    With a truth, its map stands on the left, that of the error on the right. Frames are drawn one by one as they are
    written.

    Args:
        forecast: dims (lead_time, latitude, longitude), or time in place of lead_time; a scalar coordinate
            ``init_time`` is the start.
        path: of a GIF, or of an MP4, which needs ffmpeg.
        truth: likewise, the same steps.
        model: its name, for the title.
        fps: frames a second.
        limits: of the colour scale, in the units drawn.
        cmap: of the fields.

    Raises:
        ValueError: if ``path`` has another suffix, if the fields have other dims, or without ffmpeg for an MP4.
        RuntimeError: if ffmpeg fails.
    """
    path = Path(path)
    write = {".gif": _write_gif, ".mp4": _write_mp4}.get(path.suffix.lower())
    if write is None:
        raise ValueError(f"path of an animation must end in .gif or .mp4, got {path.name!r}")
    if write is _write_mp4 and not has_ffmpeg():
        raise ValueError(f"an MP4 needs ffmpeg, which is not on the PATH; install it, or write {path.stem}.gif")
    if not 0 < fps <= 100:
        raise ValueError(f"fps must be above 0 and at most 100 frames a second, got {fps:g}")
    step = next((name for name in _STEPS if name in forecast.dims), _STEPS[0])
    dims = (step, "latitude", "longitude")
    forecast = from_antimeridian(with_dims(forecast, dims))
    truth = None if truth is None else from_antimeridian(with_dims(truth, dims))
    film = layers(truth, forecast, limits=limits, cmap=cmap)
    with replacing(path) as temporary:
        frames = _frames(forecast if truth is None else truth, forecast, film, model)
        colours = [
            layer.scale["cmap"] for layer in film if layer.name != "Truth"
        ]  # the truth has those of the forecast
        write(frames, temporary, fps, colours)
    return path


def has_ffmpeg() -> bool:
    """Return whether MP4 can be written."""
    return shutil.which("ffmpeg") is not None


def _titles(shown: xr.DataArray, forecast: xr.DataArray, model: str | None) -> list[str]:
    """Return the title of each frame: model, quantity, and the time that it shows."""
    name = ": ".join(filter(None, [model, quantity(shown)]))
    if forecast.dims[0] == "time":
        return [f"{name}, {moment(time)}" for time in forecast["time"].values]
    leads = [pd.Timedelta(lead) for lead in forecast["lead_time"].values]
    if "init_time" not in forecast.coords:
        return [f"{name}, {hours(lead)}" for lead in leads]
    valid = forecast["init_time"].values + forecast["lead_time"].values
    return [f"{name}, {hours(lead)}, {moment(time)}" for lead, time in zip(leads, valid, strict=True)]


def _frames(shown: xr.DataArray, forecast: xr.DataArray, film: list[Layer], model: str | None) -> Iterator[Frame]:
    """Yield each step as pixels (height, width, 3). One figure is drawn; its colours, lines and title change."""
    geography, titles = Geography.of(forecast), _titles(shown, forecast, model)
    figure, [panels] = map_sheet(geography, [len(film) > 1], len(film), max(titles, key=len), gap=1.0)
    meshes = []
    for column, (layer, panel) in enumerate(zip(film, panels, strict=True)):
        meshes.append(geography.draw(panel, layer.values[0], label_sides(True, column), **layer.scale))
        if len(film) > 1:
            panel.set_title(layer.name, fontsize=9, pad=4)
        colour_bar(figure, meshes[-1], [panel], layer.label, layer.extend)
    write_footer(figure, origin(shown), *circumstances(forecast), *(["dashed: 0 °C"] if film[0].celsius else []))
    for index, title in enumerate(titles):
        figure.texts[0].set_text(title)  # suptitle() would make a new one
        lines = []
        for layer, panel, mesh in zip(film, panels, meshes, strict=True):
            mesh.set_array(layer.values[index])
            lines.append(geography.isoline(panel, layer.values[index], 0.0) if layer.celsius else None)
        yield _pixels(figure)
        for line in filter(None, lines):
            line.remove()


def _pixels(figure: Figure) -> Frame:
    canvas: Any = figure.canvas
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def _write_gif(frames: Iterator[Frame], path: Path, fps: float, colours: Sequence[str | Colormap]) -> None:
    first = next(frames)
    palette = _palette(colours)
    images = (_with_palette(frame, palette) for frame in frames)
    options: dict[str, Any] = {"duration": round(1000 / fps), "loop": 0, "optimize": False}
    _with_palette(first, palette).save(path, format="GIF", save_all=True, append_images=images, **options)


def _palette(colours: Sequence[str | Colormap]) -> Image.Image:
    """Return an image with the 256 colours of a film: evenly from its scales, and greys for lines and letters.

    A palette of one frame would miss the colours that come later, and one for each frame would flicker. Pillow looks
    for the nearest colour in boxes of 8 levels: greys that lie closer would take white's place.
    """
    even = np.linspace(0, 1, 228 // len(colours))
    scales = [(colormaps[cmap] if isinstance(cmap, str) else cmap)(even)[:, :3] for cmap in colours]
    greys = np.repeat(np.linspace(0, 1, 28)[:, None], 3, axis=1)
    image = Image.new("P", (1, 1))
    image.putpalette((np.concatenate([*scales, greys]) * 255).round().astype(int).ravel().tolist())
    return image


def _with_palette(frame: Frame, palette: Image.Image) -> Image.Image:
    return Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)


def _write_mp4(frames: Iterator[Frame], path: Path, fps: float, _: Sequence[str | Colormap]) -> None:
    """Pipe frames to ffmpeg. Most players want even sizes and 4:2:0 colours."""
    first = next(frames)
    height, width = (size // 2 * 2 for size in first.shape[:2])
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "-"]
    film = ["-an", "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", "mp4", str(path)]
    command = ["ffmpeg", "-y", "-loglevel", "error", *raw, *film]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        pipe, complaint = process.stdin, ""
        assert pipe is not None
        try:
            for frame in itertools.chain([first], frames):
                pipe.write(frame[:height, :width].tobytes())
        except BrokenPipeError:  # ffmpeg is gone; it has said why
            complaint = "it stopped reading"
        told = process.communicate()[1].decode().strip()
    if process.returncode or complaint:
        raise RuntimeError(f"ffmpeg failed to write the film: {told or complaint}")
