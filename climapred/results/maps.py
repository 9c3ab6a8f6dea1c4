"""Maps of fields, forecasts and errors; every function returns a Figure.

Nothing here touches global state: figures carry their own Agg canvas, no pyplot, no rcParams. Curves of scores are in
climapred.results.curves, learned links in climapred.results.links.maps, films in climapred.results.animation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from climapred.grid import Array, Grid, cell_areas
from climapred.results.captions import (
    circumstances,
    displayed,
    hours,
    labelled,
    moment,
    origin,
    quantity,
    units_of,
)
from climapred.results.curves import plot_scores
from climapred.results.geography import Geography, from_antimeridian
from climapred.results.sheet import (
    colour_bar,
    colour_scale,
    label_sides,
    map_sheet,
    save_figure,
    temperature_colours,
    with_dims,
    write_footer,
)
from climapred.variables import convert_units

__all__ = [
    "Layer",
    "Lead",
    "layers",
    "plot_errors",
    "plot_field",
    "plot_forecast",
    "plot_scores",
    "save_figure",
    "temperature_colours",
]

Lead = int | float | np.timedelta64 | pd.Timedelta  # a number means hours


def plot_field(
    field: xr.DataArray,
    *,
    title: str | None = None,
    cmap: str | Colormap | None = None,
    limits: tuple[float, float] | None = None,
    centre: float | None = None,
    label: str | None = None,
    hatched: xr.DataArray | None = None,
) -> Figure:
    """Return a map of one field. Temperatures are drawn in °C and pressures in hPa.

    Args:
        field: dims (latitude, longitude), ascending; NaN is drawn grey. Scalar coordinates ``init_time`` and
            ``lead_time`` and the attribute ``source`` stand in the grey line.
        title: by default the long name of the field and its time, if it has one.
        cmap: by default ``temperature_colours`` in °C, red and blue with a ``centre``, viridis for the rest.
        limits: of the colour scale, in the units drawn; by default the bulk of the values, rounded.
        centre: the value in the middle of a diverging scale, as 0 for a difference.
        label: of the colour bar; by default the long name and the units.
        hatched: bool on the same grid, true where the field is not significant.
    """
    field = from_antimeridian(with_dims(field, ("latitude", "longitude")))
    shown, units = displayed(field)
    name = quantity(field)
    times = [field[time] for time in ("valid_time", "time") if time in field.coords]
    title = title or ", ".join([name, *(moment(time.values) for time in times[:1] if time.ndim == 0)])
    norm, extend = colour_scale(shown.values, limits, centre)
    geography = Geography.of(field)
    figure, [[axes]] = map_sheet(geography, [False], 1, title)
    default = temperature_colours() if units == "°C" else "viridis" if centre is None else "RdBu_r"
    mesh = geography.draw(axes, shown.values, cmap=cmap or default, norm=norm)
    if units == "°C":
        geography.isoline(axes, shown.values, 0.0)
    if hatched is not None:
        geography.hatch(axes, _mask(hatched, field))
    colour_bar(figure, mesh, [axes], label or labelled(name, units), extend)
    notes = [*_isoline_note(units == "°C"), *_hatched_note(hatched)]
    write_footer(figure, origin(field), *circumstances(field), *notes)
    return figure


def _mask(hatched: xr.DataArray, field: xr.DataArray) -> Any:
    """Return where to hatch, the dims in the order of the field and its longitudes from the same meridian on."""
    mask = from_antimeridian(with_dims(hatched, tuple(map(str, field.dims))))
    if mask.dtype != bool or Grid.of(mask) != Grid.of(field):
        raise ValueError(f"hatched must be bool on {Grid.of(field)}, got {mask.dtype} on {Grid.of(mask)}")
    return mask.values


def _isoline_note(drawn: bool) -> list[str]:
    return ["dashed: 0 °C"] if drawn else []


def _hatched_note(hatched: xr.DataArray | None) -> list[str]:
    return [] if hatched is None else ["hatched: not significant"]


# --- forecasts ---


@dataclass(frozen=True)
class Layer:
    """Fields (step, H, W) under one name, and the colours that all of them share.

    Attributes:
        name: "Truth", "Forecast" or "Error".
        values: in the units drawn.
        scale: ``cmap`` and ``norm``.
        label: of the colour bar.
        extend: ends of the colour bar that need an arrow.
        units: of the values.
    """

    name: str
    values: Array
    scale: dict[str, Any]
    label: str
    extend: str
    units: str

    @property
    def celsius(self) -> bool:
        """Whether the freezing point is worth a line."""
        return self.units == "°C"


def layers(
    truth: xr.DataArray | None,
    forecast: xr.DataArray,
    *,
    limits: tuple[float, float] | None = None,
    cmap: str | Colormap | None = None,
) -> list[Layer]:
    """Return truth, forecast and error (forecast - truth) as a figure shows them; without a truth the forecast alone.

    Args:
        truth: dims (step, latitude, longitude).
        forecast: the same steps.
        limits: of the scale that truth and forecast share, in the units drawn.
        cmap: of that scale.

    Raises:
        ValueError: if the two are on different grids or in different units.
    """
    shown = forecast if truth is None else truth
    given, other = units_of(shown), units_of(forecast)
    if Grid.of(shown) != Grid.of(forecast):
        raise ValueError(f"forecast must be on the grid of truth, {Grid.of(shown)}, got {Grid.of(forecast)}")
    if given and other and given != other:
        raise ValueError(f"forecast must have the units of truth, {given!r}, got {other!r}; convert it first")
    seen, units = displayed(shown)
    said = convert_units(forecast, given, units) if units != given else forecast
    norm, extend = colour_scale(np.concatenate([seen.values, said.values]), limits)
    scale = {"cmap": cmap or (temperature_colours() if units == "°C" else "viridis"), "norm": norm}
    shared = (scale, labelled(quantity(shown), units), extend, units)
    if truth is None:
        return [Layer("Forecast", said.values, *shared)]
    error, error_units = said.values - seen.values, "K" if units == "°C" else units
    norm, extend = colour_scale(error, centre=0.0, upper=99.0)
    wrong = ({"cmap": "RdBu_r", "norm": norm}, labelled("Forecast − truth", error_units), extend, error_units)
    return [
        Layer("Truth", seen.values, *shared),
        Layer("Forecast", said.values, *shared),
        Layer("Error", error, *wrong),
    ]


def plot_forecast(
    truth: xr.DataArray | None,
    forecast: xr.DataArray,
    *,
    model: str,
    init_time: np.datetime64 | pd.Timestamp | str | None = None,
    leads: Sequence[Lead] | None = None,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Return truth, forecast and error (forecast - truth) at several leads: three rows of maps.

    Truth and forecast share one colour scale; errors have one that is symmetric around 0. Above the errors stand their
    area-weighted mean absolute value and mean.

    Args:
        truth: dims (lead_time, latitude, longitude) and, where there are several starts, init_time. None where it is
            not known yet: one row, the forecast.
        forecast: likewise.
        model: its name, for the title.
        init_time: which start; by default the only one, or the coordinate of that name.
        leads: which leads, as timedelta or hours; by default the first, a middle and the last one.
        limits: of the scale that truth and forecast share, in the units drawn.

    Raises:
        ValueError: if a start or lead is missing, or if the two are on different grids or in different units.
    """
    forecast = _one_start(forecast, "forecast", init_time)
    truth = None if truth is None else _one_start(truth, "truth", init_time)
    steps = _steps(forecast, leads)
    truth = None if truth is None else _at_steps(truth, "truth", steps)
    forecast = _at_steps(forecast, "forecast", steps)
    rows = layers(truth, forecast, limits=limits)
    start = _start(forecast, init_time)
    shown = forecast if truth is None else truth
    geography = Geography.of(forecast)
    since = f", start {moment(start)}" if start is not None else ""
    heads = [layer.name == "Error" or not row for row, layer in enumerate(rows)]
    figure, axes = map_sheet(geography, heads, len(steps), f"{model}: {quantity(shown)}{since}")
    for row, (layer, panels) in enumerate(zip(rows, axes, strict=True)):
        meshes = _draw_row(geography, panels, layer, lowest=row == len(rows) - 1)
        if layer.name != "Truth":  # the bar of the forecast is that of the truth, too
            beside = panels[-1:] if layer.name == "Error" else [line[-1] for line in axes[: row + 1]]
            colour_bar(figure, meshes[0], beside, layer.label, layer.extend)
    for step, top in zip(steps, axes[0], strict=True):
        top.set_title(_lead_title(step, start), fontsize=8.5, pad=4)
    if truth is not None:
        for wrong, bottom in zip(rows[-1].values, axes[-1], strict=True):
            bottom.set_title(_summary(wrong, geography.grid, rows[-1].units), fontsize=7.5, pad=4)
    _write_forecast_footer(figure, model, truth, forecast, rows)
    return figure


def _draw_row(geography: Geography, panels: Sequence[Any], layer: Layer, *, lowest: bool) -> list[Any]:
    meshes = []
    for column, (panel, values) in enumerate(zip(panels, layer.values, strict=True)):
        meshes.append(geography.draw(panel, values, label_sides(lowest, column), **layer.scale))
        if layer.celsius:
            geography.isoline(panel, values, 0.0)
    _row_label(panels[0], layer.name)
    return meshes


def _write_forecast_footer(
    figure: Figure, model: str, truth: xr.DataArray | None, forecast: xr.DataArray, rows: Sequence[Layer]
) -> None:
    maker = str(forecast.attrs.get("source") or model)[:60]
    notes = _isoline_note(rows[0].celsius) + (["MAE and bias area-weighted"] if truth is not None else [])
    about = forecast.drop_attrs() if truth is None else truth
    write_footer(figure, maker, origin(about), *circumstances(forecast), *notes)


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
    return from_antimeridian(with_dims(array, ("lead_time", "latitude", "longitude")))


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


# --- errors ---


def plot_errors(
    mae: xr.DataArray | Mapping[str, xr.DataArray],
    *,
    score: str = "Mean absolute error",
    centre: float | None = None,
    limits: tuple[float, float] | None = None,
    cmap: str | Colormap | None = None,
    hatched: xr.DataArray | None = None,
) -> Figure:
    """Return maps of a score of several models, side by side on one colour scale: by default errors, from 0.

    Args:
        mae: dims (model, latitude, longitude) with the names in the coordinate ``model``; or a field for each name.
            The attribute ``source`` and a scalar coordinate ``lead_time`` stand in the grey line.
        score: what the maps show, for the title and the colour bar.
        centre: the middle of a diverging scale: 0 for a bias or a skill. By default the scale begins at 0.
        limits: of the colour scale.
        cmap: by default ``magma_r``; with a centre ``RdBu_r``.
        hatched: bool, dims as ``mae``, true where a value is not significant.
    """
    if isinstance(mae, Mapping):
        fields = [with_dims(field, ("latitude", "longitude")) for field in mae.values()]
        models = pd.Index(list(mae), name="model")
        mae = xr.concat(fields, models, join="exact", coords="minimal", compat="override")
    mae = from_antimeridian(with_dims(mae, ("model", "latitude", "longitude")))
    mask = None if hatched is None else _mask(hatched.sel(model=mae["model"]), mae)
    names = [str(name) for name in mae["model"].values]
    units = "" if units_of(mae) == "1" else units_of(mae)
    geography = Geography.of(mae)
    rows = -(-len(names) // 4)
    columns = -(-len(names) // rows)
    norm, extend = colour_scale(mae.values, limits, centre, None if centre is not None else 0.0, upper=99.5)
    figure, axes = map_sheet(geography, [True] * rows, columns, ", ".join([score, *circumstances(mae)]))
    panels = [panel for row in axes for panel in row]
    colours = cmap or ("magma_r" if centre is None else "RdBu_r")
    for index, (name, values, panel) in enumerate(zip(names, mae.values, panels, strict=False)):
        lowest = index + columns >= len(names)
        mesh = geography.draw(panel, values, label_sides(lowest, index % columns), cmap=colours, norm=norm)
        if mask is not None:
            geography.hatch(panel, mask[index])
        mean = f"{_mean(values, geography.grid):.3g} {units}".rstrip().replace("-", "−")
        panel.set_title(f"{name}: {mean}", fontsize=8.5, pad=4)
    for panel in panels[len(names) :]:
        panel.remove()
    colour_bar(figure, mesh, [axes[0][-1], axes[-1][0]], labelled(score, units), extend)
    write_footer(figure, origin(mae), *circumstances(mae), "means area-weighted", *_hatched_note(hatched))
    return figure
