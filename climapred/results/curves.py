"""Curves of scores against lead time, with intervals where they are known."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from climapred.grid import Array
from climapred.results.baselines import BASELINES, FURTHER_BASELINES
from climapred.results.captions import labelled, units_of
from climapred.results.geography import PALE
from climapred.results.sheet import OKABE_ITO, blank_figure, place_axes, with_dims, write_footer

_GREYS = ("#404040", "#707070", "#959595", "#B5B5B5")
_COLUMNS = 3
_MOST_BANDS = 6  # models with an interval, beside baselines
_PITCH, _PANEL = (3.75, 3.35), (2.95, 2.2)  # inches from panel to panel, and of a panel: across, up
_TITLES = {"mae": "Mean absolute error", "rmse": "Root mean square error", "bias": "Bias, forecast − truth"}
_ABBREVIATIONS = ("mae", "rmse", "acc", "crps", "ssim", "psnr")


def plot_scores(
    scores: xr.Dataset,
    *,
    baselines: Collection[str] = (*BASELINES, *FURTHER_BASELINES),
    metrics: Sequence[str] = ("mae", "rmse", "bias"),
    lower: xr.Dataset | None = None,
    upper: xr.Dataset | None = None,
    interval: str = "interval",
) -> Figure:
    """Return scores against lead time: a panel for each of them, in it a curve for each model.

    Errors start at 0; scores that change their sign get a line there.

    Args:
        scores: dims (model, lead_time), variables ``metrics``; its attribute ``source`` stands in the grey line.
        baselines: models to draw dashed and grey.
        metrics: the scores to draw, in this order.
        lower: the lower ends of the intervals of ``scores``, such as those of a bootstrap: the same dims; metrics and
            models that it lacks get no band. Of more than six models, baselines not counted, none gets one: bands that
            overlap show nothing.
        upper: the upper ends, likewise.
        interval: what the bands are, such as "95 % interval, block bootstrap", for the grey line.

    Raises:
        ValueError: if a score is missing or has other dims, or if one of ``lower`` and ``upper`` comes without the other.
    """
    if missing := set(metrics) - set(scores.data_vars):
        raise ValueError(f"scores lack the variables {sorted(missing)}; they have {list(scores.data_vars)}")
    if (lower is None) != (upper is None):
        raise ValueError(f"lower and upper go together, got only {'upper' if lower is None else 'lower'}")
    if lower is not None and len(set(lower["model"].values) - set(baselines)) > _MOST_BANDS:
        lower = upper = None
    models = [str(name) for name in scores["model"].values]
    rows, columns = -(-len(metrics) // _COLUMNS), min(len(metrics), _COLUMNS)
    height = max(0.35 + _PITCH[1] * rows, 1.3 + 0.24 * len(models))
    width = 0.2 + _PITCH[0] * columns + 1.75
    figure = blank_figure(width, height, "Scores against lead time")
    for index, metric in enumerate(metrics):
        row, column = divmod(index, _COLUMNS)
        left, bottom = 0.75 + _PITCH[0] * column, height - 0.8 - _PANEL[1] - _PITCH[1] * row
        axes = place_axes(figure, (left, bottom, *_PANEL))
        values = with_dims(scores[metric], ("model", "lead_time"))
        _draw_curves(axes, values, list(_curve_styles(models, baselines)))
        if lower is not None and upper is not None and metric in lower and metric in upper:
            _draw_bands(axes, values, lower[metric], upper[metric])
        _frame(axes, values)
    handles, labels = axes.get_legend_handles_labels()
    place = {"loc": "upper left", "bbox_to_anchor": ((width - 1.85) / width, 1 - 0.72 / height)}
    figure.legend(handles, labels, fontsize=8, frameon=False, handlelength=3, **place)
    banded = [f"shaded: {interval}"] if lower is not None else []
    write_footer(figure, str(scores.attrs.get("source", ""))[:90], *banded)
    return figure


def score_title(score: xr.DataArray) -> str:
    """Return what a score of a run is called, by its name: mae_area is "Mean absolute error, area-weighted"."""
    name, _, kind = str(score.name).partition("_")
    if name == "skill":
        return f"Skill against {kind.replace('_', ' ')}"
    title = _TITLES.get(name, name.upper() if name in _ABBREVIATIONS else _word(name))
    return title + {"": "", "map": "", "area": ", area-weighted"}.get(kind, f", {kind.replace('_', ' ')}")


def _word(name: str) -> str:
    return name[:1].upper() + name[1:].replace("_", " ")


def _hours(values: xr.DataArray) -> Array:
    return np.asarray(pd.TimedeltaIndex(values["lead_time"].values) / pd.Timedelta(hours=1))


def _draw_curves(axes: Any, values: xr.DataArray, styles: Sequence[dict[str, Any]]) -> None:
    for curve, style in zip(values.values, styles, strict=True):
        axes.plot(_hours(values), curve, **style)


def _draw_bands(axes: Any, values: xr.DataArray, lower: xr.DataArray, upper: xr.DataArray) -> None:
    """Shade the interval round each curve that has one, in its colour."""
    lower, upper = (with_dims(end, ("model", "lead_time")).reindex_like(values) for end in (lower, upper))
    curves = list(axes.lines)
    for curve, low, high in zip(curves, lower.values, upper.values, strict=True):
        axes.fill_between(_hours(values), low, high, color=curve.get_color(), alpha=0.18, linewidth=0, zorder=1)


def _frame(axes: Any, values: xr.DataArray) -> None:
    """Give a panel its title, labels, ticks, and zero where that means something."""
    metric, lead_hours = str(values.name), _hours(values)
    if axes.dataLim.y0 < 0:
        axes.axhline(0, color=PALE, linewidth=0.6, zorder=1)
    elif metric.startswith(("mae", "rmse", "crps")):
        axes.set_ylim(bottom=0)
    symbol = metric.partition("_")[0]
    axes.set_title(score_title(values), fontsize=9, loc="left")
    axes.set_xlabel("Lead time (hours)", fontsize=8)
    axes.set_ylabel(
        labelled(symbol.upper() if symbol in _ABBREVIATIONS else _word(symbol), units_of(values)), fontsize=8
    )
    few = lead_hours.size <= 8
    axes.xaxis.set_major_locator(FixedLocator(list(lead_hours)) if few else MaxNLocator(8, integer=True))
    axes.tick_params(labelsize=7, width=0.6)
    axes.grid(color="#E3E3E3", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _curve_styles(models: Sequence[str], baselines: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield the style of each curve: Okabe-Ito colours for models, dashed greys for baselines."""
    drawn = {True: 0, False: 0}
    for model in models:
        reference = model in baselines
        index, palette = drawn[reference], _GREYS if reference else OKABE_ITO
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
