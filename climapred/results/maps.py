"""Figures of fields, forecasts, errors, scores and learned correlations; every function returns a Figure.

Nothing here touches global state: figures carry their own Agg canvas, no pyplot, no rcParams.
"""

from __future__ import annotations

import importlib.metadata
import os
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from climapred.grid import Array, Grid, cell_areas
from climapred.results.baselines import BASELINES
from climapred.results.captions import degrees, displayed, hours, labelled, moment, origin, quantity, units_of
from climapred.results.geography import PALE, Geography, from_antimeridian
from climapred.variables import convert_units

Lead = int | float | np.timedelta64 | pd.Timedelta  # a number means hours

_OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_GREYS = ("#404040", "#707070", "#959595", "#B5B5B5")

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


def _norm(
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


def _sheet(geography: Geography, heads: Sequence[bool], columns: int, title: str) -> tuple[Figure, Any]:
    """Return a figure that fits its panels, and their axes by row and column.

    ``heads`` says of each row if its panels have titles. Sizes are worked out in inches, so that nothing overlaps and
    no layout engine has to draw the figure twice.
    """
    rows = len(heads)
    width = max(2.2, min(8.0, 12.4 / columns, 7.0 / rows / geography.aspect))
    height = width * geography.aspect
    total_width = _LEFT + columns * width + (columns - 1) * _GAP + _RIGHT
    total_height = _TOP + _HEAD * sum(heads) + rows * height + (rows - 1) * _GAP + _BOTTOM
    figure = _figure(total_width, total_height, title)
    axes = []
    for row in range(rows):
        bottom = total_height - _TOP - _HEAD * sum(heads[: row + 1]) - (row + 1) * height - row * _GAP
        places = [(_LEFT + column * (width + _GAP), bottom, width, height) for column in range(columns)]
        axes.append([_axes(figure, place, projection=geography.projection) for place in places])
    return figure, axes


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    size = min(11.5, 72 * (width - 0.4) / (0.66 * len(title)))
    place = {"x": 0.2 / width, "y": 1 - 0.15 / height, "ha": "left", "va": "top"}
    figure.suptitle(title, fontsize=size, fontweight="bold", **place)
    return figure


def _axes(figure: Figure, inches: tuple[float, float, float, float], **keywords: Any) -> Any:
    width, height = figure.get_size_inches()
    left, bottom, right, top = inches
    return figure.add_axes((left / width, bottom / height, right / width, top / height), **keywords)


def _bar(figure: Figure, mesh: Any, panels: Sequence[Any], label: str, extend: str) -> None:
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


def _footer(figure: Figure, *facts: str) -> None:
    software = f"climapred {importlib.metadata.version('climapred')}"
    line = "  ·  ".join([*filter(None, facts), software])
    width, height = figure.get_size_inches()
    size = min(6.5, 72 * (width - 0.4) / (0.56 * len(line)))
    figure.text(0.2 / width, 0.1 / height, line, fontsize=size, color=PALE, ha="left", va="bottom")


def _sides(lowest: bool, column: int) -> list[str]:
    return ["left"] * (column == 0) + ["bottom"] * lowest


# --- figures ---


def _checked(field: xr.DataArray, dims: tuple[str, ...]) -> xr.DataArray:
    if set(field.dims) != set(dims):
        raise ValueError(
            f"{field.name or 'field'} must have the dims {dims}, got {field.dims}; "
            "select or average over the others first, for example with .isel(time=0)"
        )
    return field.transpose(*dims)


def plot_field(
    field: xr.DataArray,
    *,
    title: str | None = None,
    cmap: str | Colormap | None = None,
    limits: tuple[float, float] | None = None,
    centre: float | None = None,
    label: str | None = None,
) -> Figure:
    """Return a map of one field. Temperatures are drawn in °C and pressures in hPa.

    Args:
        field: dims (latitude, longitude), ascending; NaN is drawn grey.
        title: by default the long name of the field and its time, if it has one.
        cmap: by default ``temperature_colours`` in °C, red and blue with a ``centre``, viridis for the rest.
        limits: of the colour scale, in the units drawn; by default the bulk of the values, rounded.
        centre: the value in the middle of a diverging scale, as 0 for a difference.
        label: of the colour bar; by default the long name and the units.
    """
    field = from_antimeridian(_checked(field, ("latitude", "longitude")))
    shown, units = displayed(field)
    name = quantity(field)
    times = [field[time] for time in ("valid_time", "time") if time in field.coords]
    title = title or ", ".join([name, *(moment(time.values) for time in times[:1] if time.ndim == 0)])
    norm, extend = _norm(shown.values, limits, centre)
    geography = Geography.of(field)
    figure, [[axes]] = _sheet(geography, [False], 1, title)
    default = temperature_colours() if units == "°C" else "viridis" if centre is None else "RdBu_r"
    mesh = geography.draw(axes, shown.values, cmap=cmap or default, norm=norm)
    if units == "°C":
        geography.isoline(axes, shown.values, 0.0)
    _bar(figure, mesh, [axes], label or labelled(name, units), extend)
    _footer(figure, origin(field), *_isoline_note(units))
    return figure


def plot_forecast(
    truth: xr.DataArray,
    forecast: xr.DataArray,
    *,
    model: str,
    init_time: np.datetime64 | pd.Timestamp | str | None = None,
    leads: Sequence[Lead] | None = None,
) -> Figure:
    """Return truth, forecast and error (forecast - truth) at several leads: three rows of maps.

    Truth and forecast share one colour scale; errors have one that is symmetric around 0. Above the errors stand their
    area-weighted mean absolute value and mean.

    Args:
        truth: dims (lead_time, latitude, longitude) and, where there are several starts, init_time.
        forecast: likewise.
        model: its name, for the title.
        init_time: which start; by default the only one, or the coordinate of that name.
        leads: which leads, as timedelta or hours; by default the first, a middle and the last one.

    Raises:
        ValueError: if a start or lead is missing, or if the two are on different grids or in different units.
    """
    truth, forecast = _one_start(truth, "truth", init_time), _one_start(forecast, "forecast", init_time)
    steps = _steps(forecast, leads)
    truth, forecast = _at_steps(truth, "truth", steps), _at_steps(forecast, "forecast", steps)
    if Grid.of(truth) != Grid.of(forecast):
        raise ValueError(f"forecast must be on the grid of truth, {Grid.of(truth)}, got {Grid.of(forecast)}")
    given, other = units_of(truth), units_of(forecast)
    if given and other and given != other:
        raise ValueError(f"forecast must have the units of truth, {given!r}, got {other!r}; convert it first")
    seen, units = displayed(truth)
    said = convert_units(forecast, given, units) if units != given else forecast
    error = said.values - seen.values
    start = _start(forecast, init_time)

    geography = Geography.of(forecast)
    since = f", start {moment(start)}" if start is not None else ""
    figure, axes = _sheet(geography, [True, False, True], len(steps), f"{model}: {quantity(truth)}{since}")
    norm, extend = _norm(np.concatenate([seen.values, said.values]))
    error_norm, error_extend = _norm(error, centre=0.0, upper=99.0)
    colours = {"cmap": temperature_colours() if units == "°C" else "viridis", "norm": norm}
    styles: tuple[dict[str, Any], ...] = (colours, colours, {"cmap": "RdBu_r", "norm": error_norm})
    error_units = "K" if units == "°C" else units
    meshes = []
    for row, (values, style) in enumerate(zip((seen.values, said.values, error), styles, strict=True)):
        for column, panel in enumerate(axes[row]):
            meshes.append(geography.draw(panel, values[column], _sides(row == 2, column), **style))
            if row < 2 and units == "°C":
                geography.isoline(panel, values[column], 0.0)
    for step, top, bottom, wrong in zip(steps, axes[0], axes[2], error, strict=True):
        top.set_title(_lead_title(step, start), fontsize=8.5, pad=4)
        bottom.set_title(_summary(wrong, geography.grid, error_units), fontsize=7.5, pad=4)
    for panels, name in zip(axes, ("Truth", "Forecast", "Error"), strict=True):
        _row_label(panels[0], name)
    _bar(figure, meshes[0], [axes[0][-1], axes[1][-1]], labelled(quantity(truth), units), extend)
    _bar(figure, meshes[-1], [axes[2][-1]], labelled("Forecast − truth", error_units), error_extend)
    _footer(figure, model, origin(truth), *_isoline_note(units), "MAE and bias area-weighted")
    return figure


def _isoline_note(units: str) -> list[str]:
    return ["dashed: 0 °C"] if units == "°C" else []


def _one_start(array: xr.DataArray, name: str, init_time: Any) -> xr.DataArray:
    if "init_time" in array.dims:
        starts = pd.DatetimeIndex(array["init_time"].values)
        held = f"{starts.size} starts, {moment(starts[0])} to {moment(starts[-1])}"
        if init_time is None and starts.size > 1:
            raise ValueError(f"{name} holds {held}; choose one with init_time=")
        chosen = starts[0] if init_time is None else pd.Timestamp(init_time)
        if chosen not in starts:
            raise ValueError(f"{name} has no start {moment(chosen)}; it holds {held}")
        array = array.isel(init_time=starts.get_loc(chosen))
    return from_antimeridian(_checked(array, ("lead_time", "latitude", "longitude")))


def _start(forecast: xr.DataArray, init_time: Any) -> pd.Timestamp | None:
    if init_time is None and "init_time" in forecast.coords:
        init_time = forecast["init_time"].values
    return None if init_time is None else pd.Timestamp(init_time)


def _steps(forecast: xr.DataArray, leads: Sequence[Lead] | None) -> list[pd.Timedelta]:
    if leads is not None:
        hour = pd.Timedelta(hours=1)
        return [lead * hour if isinstance(lead, int | float) else pd.Timedelta(lead) for lead in leads]
    held = pd.TimedeltaIndex(forecast["lead_time"].values)
    return [held[position] for position in sorted({0, (held.size - 1) // 2, held.size - 1})]


def _at_steps(array: xr.DataArray, name: str, steps: list[pd.Timedelta]) -> xr.DataArray:
    held = pd.TimedeltaIndex(array["lead_time"].values)
    if missing := [hours(step) for step in steps if step not in held]:
        held_hours = ", ".join(hours(step) for step in held)
        raise ValueError(f"{name} has no lead {', '.join(missing)}; it has {held_hours}")
    return array.isel(lead_time=held.get_indexer(pd.TimedeltaIndex(steps)))


def _lead_title(step: pd.Timedelta, start: pd.Timestamp | None) -> str:
    return hours(step) + (f", {moment(start + step)}" if start is not None else "")


def _mean(values: Array, grid: Grid) -> float:
    """Return the area-weighted mean of the cells that are drawn, those that are not NaN."""
    drawn = np.isfinite(values)
    return float(np.average(values[drawn], weights=cell_areas(grid)[drawn]))


def _summary(error: Array, grid: Grid, units: str) -> str:
    text = f"MAE {_mean(np.abs(error), grid):.3g} {units}, bias {_mean(error, grid):+.2g} {units}"
    return text.replace("-", "−")


def _row_label(panel: Any, text: str) -> None:
    place = {"xycoords": "axes fraction", "xytext": (-34, 0), "textcoords": "offset points", "rotation": 90}
    panel.annotate(text, (0, 0.5), ha="right", va="center", fontsize=9.5, fontweight="bold", **place)


def plot_errors(mae: xr.DataArray | Mapping[str, xr.DataArray]) -> Figure:
    """Return maps of the mean absolute error of several models, side by side on one colour scale from 0.

    Args:
        mae: dims (model, latitude, longitude) with the names in the coordinate ``model``; or a field for each name.
    """
    if isinstance(mae, Mapping):
        fields = [_checked(field, ("latitude", "longitude")) for field in mae.values()]
        models = pd.Index(list(mae), name="model")
        mae = xr.concat(fields, models, join="exact", coords="minimal", compat="override")
    mae = from_antimeridian(_checked(mae, ("model", "latitude", "longitude")))
    names, units = [str(name) for name in mae["model"].values], units_of(mae)
    geography = Geography.of(mae)
    rows = -(-len(names) // 4)
    columns = -(-len(names) // rows)
    norm, extend = _norm(mae.values, floor=0.0, upper=99.5)
    figure, axes = _sheet(geography, [True] * rows, columns, f"Mean absolute error, {', '.join(names)}")
    panels = [panel for row in axes for panel in row]
    for index, (name, values, panel) in enumerate(zip(names, mae.values, panels, strict=False)):
        lowest = index + columns >= len(names)
        mesh = geography.draw(panel, values, _sides(lowest, index % columns), cmap="magma_r", norm=norm)
        panel.set_title(f"{name}: {_mean(values, geography.grid):.3g} {units}", fontsize=8.5, pad=4)
    for panel in panels[len(names) :]:
        panel.remove()
    _bar(figure, mesh, [axes[0][-1], axes[-1][0]], labelled("Mean absolute error", units), extend)
    _footer(figure, origin(mae), "means area-weighted")
    return figure


def plot_scores(scores: xr.Dataset, *, baselines: Collection[str] = BASELINES) -> Figure:
    """Return MAE, RMSE and bias against lead time, a curve for each model.

    Args:
        scores: dims (model, lead_time), variables ``mae``, ``rmse`` and ``bias``.
        baselines: models to draw dashed and grey.
    """
    names = {"mae": "Mean absolute error", "rmse": "Root mean square error", "bias": "Bias, forecast − truth"}
    if missing := set(names) - set(scores.data_vars):
        raise ValueError(f"scores lack the variables {sorted(missing)}; they have {list(scores.data_vars)}")
    models = [str(name) for name in scores["model"].values]
    lead_hours = pd.TimedeltaIndex(scores["lead_time"].values) / pd.Timedelta(hours=1)
    height = max(3.7, 1.3 + 0.24 * len(models))
    figure = _figure(13.2, height, "Scores against lead time")
    for column, (name, title) in enumerate(names.items()):
        axes = _axes(figure, (0.75 + 3.6 * column, 0.85, 2.95, height - 1.65))
        curves = _checked(scores[name], ("model", "lead_time")).values
        for curve, style in zip(curves, _curve_styles(models, baselines), strict=True):
            axes.plot(lead_hours, curve, **style)
        if name == "bias":
            axes.axhline(0, color=PALE, linewidth=0.6, zorder=1)
        else:
            axes.set_ylim(bottom=0)
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlabel("Lead time (hours)", fontsize=8)
        symbol = "Bias" if name == "bias" else name.upper()
        axes.set_ylabel(labelled(symbol, units_of(scores[name])), fontsize=8)
        few = lead_hours.size <= 8
        axes.xaxis.set_major_locator(FixedLocator(list(lead_hours)) if few else MaxNLocator(8, integer=True))
        axes.tick_params(labelsize=7, width=0.6)
        axes.grid(color="#E3E3E3", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    place = {"loc": "center left", "bbox_to_anchor": (11.2 / 13.2, 0.5)}
    figure.legend(handles, labels, fontsize=8, frameon=False, handlelength=3, **place)
    _footer(figure, str(scores.attrs.get("source", ""))[:60])
    return figure


def _curve_styles(models: Sequence[str], baselines: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield the style of each curve: Okabe-Ito colours for models, dashed greys for baselines."""
    drawn = {True: 0, False: 0}
    for model in models:
        reference = model in baselines
        index, palette = drawn[reference], _GREYS if reference else _OKABE_ITO
        drawn[reference] += 1
        yield {
            "label": model,
            "color": palette[index % len(palette)],
            "linestyle": "--" if reference else ("-", "-.", ":")[index // len(palette) % 3],
            "marker": "osD^vP"[index % 6],
            "linewidth": 1.1 if reference else 1.8,
            "markersize": 3 if reference else 4,
            "zorder": 2 if reference else 3,
        }


def plot_correlations(
    correlation: xr.DataArray,
    *,
    point: tuple[float, float],
    title: str | None = None,
    limits: tuple[float, float] | None = None,
    label: str | None = None,
) -> Figure:
    """Return a map of the learned weights of one place, marked by a star.

    The place and its neighbours often outweigh all others; by default the scale ends at percentile 99.5.

    Args:
        correlation: dims (latitude, longitude), as ``correlation_map`` makes it.
        point: latitude and longitude of the place, degrees.
        title: by default what the map shows of which place.
        limits: of the colour scale.
        label: of the colour bar.
    """
    correlation = from_antimeridian(_checked(correlation, ("latitude", "longitude")))
    geography = Geography.of(correlation)
    norm, extend = _norm(correlation.values, limits, floor=min(0.0, float(correlation.min())), upper=99.5)
    place = f"{degrees(point[0], 'NS')} {degrees(point[1], 'EW')}"
    titles = {
        "listens": f"Learned weights: what {place} listens to",
        "heard": f"Learned weights: what listens to {place}",
    }
    title = title or titles.get(correlation.attrs.get("direction", ""), quantity(correlation))
    figure, [[axes]] = _sheet(geography, [False], 1, title)
    mesh = geography.draw(axes, correlation.values, cmap="magma_r", norm=norm)
    default = "Learned weight" + (", above the floor" if correlation.attrs.get("above_floor") else "")
    x, y = geography.place(point)
    star = {"marker": "*", "markersize": 13, "markeredgecolor": "black", "markeredgewidth": 0.8}
    axes.plot(x, y, color=_OKABE_ITO[5], zorder=4, **star)
    _bar(figure, mesh, [axes], label or default, extend)
    _footer(figure, f"star: {place}", origin(correlation))
    return figure


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(temporary, format=kind, dpi=150, metadata=metadata)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
