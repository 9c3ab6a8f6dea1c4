"""Figures from files: what ``climapred plot`` draws of a finished run, or of any file that follows CF."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from climapred.grid import Grid
from climapred.results.animation import animate
from climapred.results.captions import hours
from climapred.results.curves import plot_scores, score_title
from climapred.results.links.adjacency import grid_of
from climapred.results.links.correlations import Direction, correlation_map
from climapred.results.links.figures import Show, links_figure, map_significance, training_correlation
from climapred.results.links.maps import plot_correlations
from climapred.results.maps import plot_errors, plot_field, plot_forecast
from climapred.results.selection import Choice, as_forecast, at_time, between, cropped, leads_of, pick, upright
from climapred.results.sheet import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["field", "forecast", "errors", "scores", "correlations", "animation"]
Opener = Callable[[str], xr.Dataset]

_MOST_FRAMES = 500
_SIGNED = ("bias", "skill", "acc")


@dataclass(frozen=True)
class Request:
    """What to draw.

    Attributes:
        sources: files, Zarr folders, or the folder of one finished run; several of them for error maps.
        choice: of the variable, times, leads and region.
        truth: the file with what happened; of a run its tensors.
        model: whose forecasts of a run; elsewhere a name for the title.
        scores: names of scores.
        against: the model that skill is relative to.
        place: latitude and longitude of a correlation map, degrees.
        direction: of a correlation map.
        show: of learned correlations: a "map" of a place, "arcs", "hubs", or "distance".
        min_km: shortest links of arcs and hubs.
        count: most arcs.
        hatched: a variable of the file, true or other than 0 where the field is not significant.
        limits: of the colour scale.
        centre: of a diverging colour scale.
        cmap: a name that matplotlib knows.
        title: in place of the default.
        fps: frames a second.
    """

    sources: Sequence[str]
    choice: Choice = field(default_factory=Choice)
    truth: str | None = None
    model: str | None = None
    scores: Sequence[str] = ()
    against: str | None = None
    place: tuple[float, float] | None = None
    direction: Direction = "listens"
    show: Show = "map"
    min_km: float = 1000.0
    count: int = 30
    hatched: str | None = None
    limits: tuple[float, float] | None = None
    centre: float | None = None
    cmap: str | None = None
    title: str | None = None
    fps: float = 4.0


def draw(kind: Kind, request: Request, out: Path, opener: Opener) -> Path:
    """Draw one kind of figure into a file, and return its path.

    Args:
        kind: of figure.
        request: what of which files.
        out: PNG, PDF or SVG; of an animation GIF or MP4.
        opener: opens a file or Zarr folder, lazily and as it is.

    Raises:
        ValueError: if the files do not hold what was asked for.
        OSError: if a file cannot be read or written.
    """
    if len(request.sources) > 1 and kind != "errors":
        raise ValueError(f"a figure of kind {kind!r} is made from one file or run, got {len(request.sources)}")
    if kind == "animation":
        return _animation(request, out, opener)
    figures = {
        "field": _field,
        "forecast": _forecast,
        "errors": _errors,
        "scores": _scores,
        "correlations": _correlations,
    }
    return save_figure(figures[kind](request, opener), out)


# --- what lies where in a run ---


def _is_run(source: str) -> bool:
    return (Path(source) / "recipe.yaml").is_file()


def _of_model(run: str, folder: str, model: str | None) -> Path:
    """Return the file of a model in a folder of a run; without a name that of the only one."""
    files = {path.stem: path for path in sorted(Path(run, folder).glob("*")) if path.suffix in (".nc", ".zarr")}
    if not files:
        raise ValueError(f"{run} holds no {folder}; is the run finished, and does a model of it have them?")
    if model is None and len(files) > 1:
        raise ValueError(f"{run} holds {folder} of several models: {', '.join(files)}; choose one (--model)")
    if model is not None and model not in files:
        raise ValueError(f"{run} holds no {folder} of {model!r}, only of {', '.join(files)}")
    return files[model or next(iter(files))]


def _forecast_source(request: Request) -> tuple[str, str | None, str]:
    """Return where a forecast lies, where its truth, and the name of the model."""
    (source,) = request.sources
    if not _is_run(source):
        return source, request.truth, request.model or Path(source).stem
    path = _of_model(source, "forecasts", request.model)
    return str(path), request.truth or str(Path(source, "tensors.zarr")), path.stem


def _described(array: xr.DataArray, dataset: xr.Dataset, path: str) -> xr.DataArray:
    """Return a field that says where it comes from: its own source, that of its file, its title, or the file's name."""
    told = [
        str(attrs.get(name, ""))
        for attrs, name in ((array.attrs, "source"), (dataset.attrs, "source"), (dataset.attrs, "title"))
    ]
    legible = [text for text in told if 0 < len(text) <= 80 and text[0] not in "[{"]
    return array.assign_attrs(source=next(iter(legible), Path(path).name))


# --- fields and forecasts ---


def _field(request: Request, opener: Opener) -> Figure:
    (source,) = request.sources
    if _is_run(source):
        source = str(_of_model(source, "forecasts", request.model) if request.model else Path(source, "tensors.zarr"))
    dataset = opener(source)
    found = at_time(pick(dataset, request.choice, source), request.choice, source)
    hatched = None
    if request.hatched is not None:
        chosen = Choice(request.hatched, select=request.choice.select, region=request.choice.region)
        hatched = at_time(pick(dataset, chosen, source), request.choice, source).load() != 0
    return plot_field(
        _described(found.load(), dataset, source),
        title=request.title,
        cmap=request.cmap,
        limits=request.limits,
        centre=request.centre,
        hatched=hatched,
    )


def _forecast(request: Request, opener: Opener) -> Figure:
    forecast, truth, model = _one_forecast(request, opener)
    leads = [pd.Timedelta(hours=lead) for lead in request.choice.leads] or None
    return plot_forecast(truth, forecast, model=model, leads=leads, limits=request.limits)


def _one_forecast(request: Request, opener: Opener) -> tuple[xr.DataArray, xr.DataArray | None, str]:
    """Return one start of a forecast, what happened, if that is known, and the name of the model."""
    source, truth_source, model = _forecast_source(request)
    dataset = opener(source)
    forecast = as_forecast(pick(dataset, request.choice, source), request.choice, source)
    forecast = _described(forecast.load(), dataset, source)
    if truth_source is None:
        return forecast, None, model
    truth = _happened(_truth_of(forecast, truth_source, opener), forecast, truth_source).load()
    if _is_run(request.sources[0]) and request.truth is None:  # a run's title says what its tensors hold
        truth.attrs["source"] = str(dataset.attrs.get("title", "")).partition(": forecasts of")[0]
    return forecast, truth, model


def _truth_of(forecast: xr.DataArray, source: str, opener: Opener) -> xr.DataArray:
    """Return the variable and region of a forecast in the file of the truth, all times, lazily."""
    dataset = opener(source)
    truth = pick(dataset, Choice(str(forecast.name)), source)
    if "time" not in truth.dims:
        raise ValueError(
            f"{source} cannot be the truth: {truth.name} has no times, only {', '.join(map(str, truth.dims))}"
        )
    (south, north), (west, east) = (forecast[name].values[[0, -1]] for name in ("latitude", "longitude"))
    return _described(cropped(truth, (south, north, west, east)), dataset, source)


def _happened(truth: xr.DataArray, forecast: xr.DataArray, source: str) -> xr.DataArray:
    """Return the truth at the valid times of a forecast, in the dims of these."""
    if "init_time" not in forecast.coords:
        raise ValueError(
            f"{forecast.name} tells no start (forecast_reference_time), without which no truth can be found"
        )
    valid = forecast["init_time"] + forecast["lead_time"]
    missing = ~np.isin(valid.values, truth["time"].values)
    if missing.any():
        first = valid.values[missing].min()
        raise ValueError(
            f"{source} lacks {int(missing.sum())} of the {valid.size} times of the forecast, the first "
            f"{np.datetime_as_string(first, unit='m')}; give a truth that covers them (--truth)"
        )
    found = truth.sel(time=valid).drop_vars("time")
    return found.assign_coords(longitude=forecast["longitude"], latitude=forecast["latitude"])


def _animation(request: Request, out: Path, opener: Opener) -> Path:
    (source,) = request.sources
    style: dict[str, Any] = {"fps": request.fps, "limits": request.limits, "cmap": request.cmap}
    if _is_run(source) or request.truth or "lead_time" in pick(opener(source), request.choice, source).coords:
        forecast, truth, model = _one_forecast(request, opener)
        return animate(forecast, out, truth=truth, model=model, **style)
    dataset = opener(source)
    frames = between(pick(dataset, request.choice, source), request.choice.time, source)
    if frames.sizes["time"] > _MOST_FRAMES:
        raise ValueError(f"{source} has {frames.sizes['time']} times; choose at most {_MOST_FRAMES} (--time FROM/TO)")
    return animate(_described(frames.load(), dataset, source), out, model=request.model, **style)


# --- scores ---


def _errors(request: Request, opener: Opener) -> Figure:
    if len(request.scores) > 1:
        raise ValueError(f"maps show one score, got {', '.join(request.scores)}")
    name = request.scores[0] if request.scores else "mae"
    source = request.sources[0]
    if _is_run(source):
        source = str(Path(source, "scores.nc"))
    dataset = opener(source)
    if "model" in dataset.dims:
        maps = _stored_maps(upright(dataset, source), name, request, source)
    else:
        maps = _error_maps(request, name, opener)
    maps = maps if request.choice.region is None else cropped(maps, request.choice.region)
    signed = maps.name in _SIGNED
    title = request.title or (f"Skill against {request.against}" if maps.name == "skill" else score_title(maps))
    centre = 0.0 if signed and request.centre is None else request.centre
    cmap = request.cmap or ("BrBG" if maps.name in ("skill", "acc") else None)
    return plot_errors(maps, score=title, centre=centre, limits=request.limits, cmap=cmap)


def _stored_maps(dataset: xr.Dataset, name: str, request: Request, source: str) -> xr.DataArray:
    """Return a score of every model in each cell, over the chosen leads; dims (model, latitude, longitude)."""
    known = [
        str(variable) for variable in dataset.data_vars if {"latitude", "longitude"} <= set(dataset[variable].dims)
    ]
    wanted = "rmse" if request.against else name
    variable = next((option for option in (f"{wanted}_map", wanted) if option in known), None)
    if variable is None:
        raise ValueError(f"{source} has no map of {wanted!r}; it has {', '.join(known) or 'none'}")
    maps = leads_of(dataset[variable], request.choice, source).load()
    power = 2 if wanted == "rmse" else 1
    if maps.sizes["lead_time"] == 1:
        mean = maps.isel(lead_time=0)
    else:
        mean = (maps**power).mean("lead_time", skipna=False) ** (1 / power)
    about = f"{Path(source).parent.name}: {_lead_note(maps)}"
    mean = mean.assign_attrs(maps.attrs, source=about).rename(wanted)
    if not request.against:
        return mean if request.model is None else mean.sel(model=[_model(mean, request.model, source)])
    reference = mean.sel(model=_model(mean, request.against, source), drop=True)
    others = mean.drop_sel(model=request.against)
    skill: xr.DataArray = 1 - (others / reference) ** 2
    return skill.assign_attrs(units="1", source=about).rename("skill")


def _lead_note(maps: xr.DataArray) -> str:
    leads = pd.TimedeltaIndex(maps["lead_time"].values)
    return hours(leads[0]) if leads.size == 1 else f"mean over the leads {hours(leads[0])} to {hours(leads[-1])}"


def _model(maps: xr.DataArray, name: str, source: str) -> str:
    held = [str(model) for model in maps["model"].values]
    if name not in held:
        raise ValueError(f"{source} has no model {name!r}; it has {', '.join(held)}")
    return name


def _error_maps(request: Request, name: str, opener: Opener) -> xr.DataArray:
    """Return MAE, RMSE or bias of forecast files in each cell, over all starts and the chosen leads."""
    if name not in ("mae", "rmse", "bias") or request.against:
        raise ValueError(
            f"of forecasts mae, rmse and bias can be mapped, got {request.against or name!r}; skill needs scores.nc"
        )
    if request.truth is None:
        raise ValueError(f"the errors of {request.sources[0]} need the truth (--truth FILE)")
    fields = {}
    for source in request.sources:
        forecast = leads_of(pick(opener(source), request.choice, source), request.choice, source)
        fields[Path(source).stem] = _error_map(
            forecast, _truth_of(forecast, request.truth, opener), name, request.truth
        )
    maps = xr.concat(list(fields.values()), pd.Index(list(fields), name="model"), join="exact", coords="minimal")
    about = f"truth {Path(request.truth).name}: {_lead_note(forecast)}"
    return maps.assign_attrs(units=forecast.attrs.get("units", ""), source=about).rename(name)


def _error_map(forecast: xr.DataArray, truth: xr.DataArray, name: str, truth_source: str) -> xr.DataArray:
    """Return a score in each cell, dims (latitude, longitude); one lead of all starts is in memory."""
    means = []
    for lead in range(forecast.sizes["lead_time"]):
        said = forecast.isel(lead_time=lead).load()
        error = said - _happened(truth, said, truth_source).load()
        measure = error if name == "bias" else error**2 if name == "rmse" else abs(error)
        starts = [dim for dim in measure.dims if dim == "init_time"]
        means.append(measure.mean(starts, skipna=False).reset_coords(drop=True))
    mean = sum(means[1:], start=means[0]) / len(means)
    return mean**0.5 if name == "rmse" else mean


def _scores(request: Request, opener: Opener) -> Figure:
    """Draw the scores of a run or of a file, NetCDF or CSV, with intervals where it has NAME_lower and NAME_upper."""
    (source,) = request.sources
    path = Path(source, "scores.nc") if _is_run(source) else Path(source)
    table = _read_scores(path) if path.suffix == ".csv" else opener(str(path))
    names = list(request.scores) or [name for name in ("mae", "rmse", "bias") if name in table]
    if not {"model", "lead_time"} <= set(table.dims) or not names:
        held = ", ".join(map(str, table.variables))
        raise ValueError(f"{path} holds no scores: wanted models, lead times and columns such as mae, got {held}")
    if missing := [name for name in names if name not in table]:
        held = ", ".join(str(name) for name, score in table.items() if set(score.dims) == {"model", "lead_time"})
        raise ValueError(f"{path} has no score {missing[0]!r}; it has {held}")
    ends: dict[str, Any] = {}
    if banded := [name for name in names if {f"{name}_lower", f"{name}_upper"} <= set(table.data_vars)]:
        ends = {end: xr.Dataset({name: table[f"{name}_{end}"] for name in banded}) for end in ("lower", "upper")}
    return plot_scores(table[names].load().assign_attrs(source=Path(source).name), metrics=names, **ends)


def _read_scores(path: Path) -> xr.Dataset:
    """Return the table of a run as a dataset (model, lead_time); models in their order."""
    table = pd.read_csv(path)
    if missing := {"model", "lead_hours"} - set(table.columns):
        raise ValueError(
            f"{path} holds no scores: it lacks the columns {sorted(missing)}, it has {list(table.columns)}"
        )
    models = list(dict.fromkeys(table["model"]))
    dataset = table.set_index(["model", "lead_hours"]).to_xarray().sel(model=models).rename(lead_hours="lead_time")
    return dataset.assign_coords(lead_time=pd.to_timedelta(dataset["lead_time"].values, unit="h"))


# --- learned correlations ---


def _correlations(request: Request, opener: Opener) -> Figure:
    (source,) = request.sources
    path = _of_model(source, "correlations", request.model) if _is_run(source) else Path(source)
    adjacency = opener(str(path))
    if request.show == "map" and request.place is None:
        raise ValueError("a correlation map is of a place (--at LATITUDE LONGITUDE, such as --at 40N 100W)")
    if request.show != "map":
        told = str(_described(xr.DataArray(), adjacency, str(path)).attrs["source"])
        return links_figure(
            request.show, adjacency, source=told, title=request.title, min_km=request.min_km, count=request.count
        )
    assert request.place is not None
    weights = correlation_map(adjacency, *request.place, direction=request.direction).load()
    weights = _described(weights, adjacency, str(path))
    pearson = _pearson(source, grid_of(adjacency), request, opener)
    shown: list[xr.DataArray | None] = [weights, pearson, map_significance(adjacency, weights)]
    region = request.choice.region
    shown = [field if field is None or region is None else cropped(field, region) for field in shown]
    assert shown[0] is not None
    return plot_correlations(
        shown[0],
        pearson=shown[1],
        significant=shown[2],
        point=request.place,
        title=request.title,
        limits=request.limits,
    )


def _pearson(run: str, grid: Grid, request: Request, opener: Opener) -> xr.DataArray | None:
    """Return the correlation of the anomalies of the training times of a run, at the points of the adjacency.

    None of a file, or of a run without statistics, which knows no anomalies.
    """
    statistics = Path(run, "tensors.zarr", "statistics")
    if not (_is_run(run) and statistics.exists()):
        return None
    tensors, known = opener(str(Path(run, "tensors.zarr"))), opener(str(statistics)).load()
    field = pick(tensors, replace(request.choice, region=None, time=None, start=None, leads=()), run)
    assert request.place is not None
    return training_correlation(field, known, grid, request.place, direction=request.direction)


def parse_place(latitude: str, longitude: str) -> tuple[float, float]:
    """Return a place in degrees north and east.

    Raises:
        ValueError: if it is not one.

    >>> parse_place("40N", "100.5W"), parse_place("-33.9", "151.2")
    ((40.0, -100.5), (-33.9, 151.2))
    """
    place = []
    for text, letters, most in ((latitude, "NS", 90), (longitude, "EW", 360)):
        found = re.fullmatch(rf"([+-]?\d+(?:\.\d+)?)°?([{letters}]?)", text.strip().upper())
        value = float(found[1]) * (-1 if found[2] == letters[1] else 1) if found else np.inf
        if abs(value) > most:
            raise ValueError(
                f"a place is a latitude and a longitude such as 40N 100W or 40 -100, got {latitude} {longitude}"
            )
        place.append(value)
    return place[0], place[1]
