"""Sheets that figures are drawn on: sizes in inches, colour scales, colour bars, the grey line below; saving."""

from __future__ import annotations

import importlib.metadata
import os
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from climapred.grid import Array
from climapred.results.geography import PALE, Geography
from climapred.whole import replacing

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

# Inches round the panels: row and latitude labels, titles, longitude labels and the grey line, colour bar.
_LEFT, _TOP, _BOTTOM, _RIGHT, _GAP, _HEAD = 0.75, 0.52, 0.6, 1.1, 0.14, 0.26


# --- colours ---


@cache
def temperature_colours() -> Colormap:
    """Return the colour map of temperatures: cold blues, pale middle, warm reds, as forecasters know them.

    The familiar maps of this kind step unevenly. The anchors of this one are equally far apart in Oklab (Ottosson
    2020), so that equal steps of temperature look equally large; and hue is never the only cue, for lightness rises
    to the middle and falls after it.
    """
    cold = ["#35206B", "#353E88", "#2C5BA6", "#4177B6", "#5A93C5", "#78AFD2", "#A2C8DB", "#CBE0E2"]
    warm = ["#F5CD8F", "#F1AC5E", "#E6884D", "#DA633C", "#C0453A", "#A52337", "#801733", "#5B0F2E"]
    return LinearSegmentedColormap.from_list("climapred.temperature", [*cold, "#F6EDC6", *warm])


def _nice(low: float, high: float) -> tuple[float, float]:
    """Widen an interval to round numbers."""
    if low == high:
        low, high = low - (abs(low) or 1) * 0.01, high + (abs(high) or 1) * 0.01
    ticks = MaxNLocator(nbins=8, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return float(ticks[0]), float(ticks[-1])


def colour_scale(
    values: Array,
    limits: tuple[float, float] | None = None,
    centre: float | None = None,
    floor: float | None = None,
    *,
    upper: float = 99.9,
) -> tuple[Normalize, str]:
    """Return a colour scale over the bulk of ``values``, and the ends of its bar that need an arrow.

    The scale is ``limits``, or symmetric round ``centre``, or from ``floor``, or free; ``upper`` is the percentile at
    which it ends, and a free one starts at its mirror.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise ValueError("field has no finite value to draw")
    if centre is not None:
        reach = _nice(0.0, float(np.percentile(np.abs(finite - centre), upper)))[1]
        low, high = centre - reach, centre + reach
    elif floor is not None:
        low, high = floor, _nice(floor, float(np.percentile(finite, upper)))[1]
    else:
        low, high = _nice(*np.percentile(finite, (100 - upper, upper)))
    low, high = limits or (low, high)
    below, above = bool((finite < low).any()), bool((finite > high).any())
    return Normalize(low, high), ("neither", "min", "max", "both")[below + 2 * above]


# --- layout ---


def map_sheet(
    geography: Geography, heads: Sequence[bool], columns: int, title: str, *, gap: float = _GAP
) -> tuple[Figure, Any]:
    """Return a figure that fits its panels, and their axes by row and column.

    ``heads`` says of each row if its panels have titles; ``gap`` is the space between columns, inches.
    Sizes are worked out in inches, so that nothing overlaps and no layout engine has to draw the figure twice.
    """
    rows = len(heads)
    width = max(2.2, min(8.0, 12.4 / columns, 7.0 / rows / geography.aspect))
    height = width * geography.aspect
    total_width = _LEFT + columns * width + (columns - 1) * gap + _RIGHT
    total_height = _TOP + _HEAD * sum(heads) + rows * height + (rows - 1) * _GAP + _BOTTOM
    figure = blank_figure(total_width, total_height, title)
    axes = []
    for row in range(rows):
        bottom = total_height - _TOP - _HEAD * sum(heads[: row + 1]) - (row + 1) * height - row * _GAP
        places = [(_LEFT + column * (width + gap), bottom, width, height) for column in range(columns)]
        axes.append([place_axes(figure, place, projection=geography.projection) for place in places])
    return figure, axes


def blank_figure(width: float, height: float, title: str) -> Figure:
    """Return an empty figure, size in inches, with its title at the upper left, as large as fits on one line."""
    figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    size = min(11.5, 72 * (width - 0.4) / (0.66 * len(title)))
    place = {"x": 0.2 / width, "y": 1 - 0.15 / height, "ha": "left", "va": "top"}
    figure.suptitle(title, fontsize=size, fontweight="bold", **place)
    return figure


def place_axes(figure: Figure, inches: tuple[float, float, float, float], **keywords: Any) -> Any:
    """Return new axes; ``inches`` are left, bottom, width and height."""
    width, height = figure.get_size_inches()
    left, bottom, right, top = inches
    return figure.add_axes((left / width, bottom / height, right / width, top / height), **keywords)


def colour_bar(figure: Figure, mesh: Any, panels: Sequence[Any], label: str, extend: str) -> None:
    """Put a colour bar to the right of ``panels``, as high as they are."""
    boxes = [panel.get_position(original=True) for panel in panels]
    right, bottom, top = max(b.x1 for b in boxes), min(b.y0 for b in boxes), max(b.y1 for b in boxes)
    width, height = figure.get_size_inches()
    place = (right + 0.12 / width, bottom, 0.14 / width, top - bottom)
    bar = figure.colorbar(mesh, cax=figure.add_axes(place), extend=extend)
    letters = int(72 * (top - bottom) * height / 4.6)
    bar.set_label(textwrap.fill(label, max(20, letters)), fontsize=8)
    bar.ax.tick_params(labelsize=7, width=0.6)
    bar.outline.set(linewidth=0.6, edgecolor=PALE)


def write_footer(figure: Figure, *facts: str) -> None:
    """Write the grey line: the facts that are not empty, and the software."""
    software = f"climapred {importlib.metadata.version('climapred')}"
    line = "  ·  ".join([*filter(None, facts), software])
    width, height = figure.get_size_inches()
    size = min(6.5, 72 * (width - 0.4) / (0.56 * len(line)))
    figure.text(0.2 / width, 0.1 / height, line, fontsize=size, color=PALE, ha="left", va="bottom")


def label_sides(lowest: bool, column: int) -> list[str]:
    """Return the sides on which a panel gets its degrees."""
    return ["left"] * (column == 0) + ["bottom"] * lowest


# --- what figures begin with, and how they end up in files ---


def with_dims(field: xr.DataArray, dims: tuple[str, ...]) -> xr.DataArray:
    """Return a field with its dims in this order.

    Raises:
        ValueError: if it has others.
    """
    if set(field.dims) != set(dims):
        raise ValueError(
            f"{field.name or 'field'} must have the dims {dims}, got {field.dims}; "
            "select or average over the others first, for example with .isel(time=0)"
        )
    return field.transpose(*dims)


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as PNG, PDF or SVG, by the suffix of ``path``, whole or not at all, and return the path.

    The file carries its title and the software; it carries no date, so that the same figure gives the same bytes.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    undated: dict[str, dict[str, str | None]] = {
        "png": {"Software": "climapred"},
        "pdf": {"Creator": "climapred", "CreationDate": None},
        "svg": {"Creator": "climapred", "Date": None},
    }
    if kind not in undated:
        raise ValueError(f"path must end in .png, .pdf or .svg, got {path.name!r}")
    metadata = {"Title": figure.get_suptitle(), **undated[kind]}
    with replacing(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=150, metadata=metadata)
    return path
