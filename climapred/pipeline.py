"""The stages of a run: build, train, forecast, evaluate, maps; each of their units is done once and can be resumed.

A unit (the tensors, one trained model, one model's forecasts, ...) has a fingerprint: a hash of the recipe keys it depends
on, of its source files and of the fingerprints of the units before it. The journal keeps the fingerprints of finished
units, so a second run does only what a changed key or file has touched.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, get_args

import numpy as np
import xarray as xr
from rich.console import Console

from climapred import stages
from climapred.data.regrid import Method, Regridder
from climapred.grid import Grid
from climapred.learning.windows import Window, chronological_split, time_step
from climapred.recipe import Recipe, dump_recipe, load_recipe, located
from climapred.stages import Run

Stage = Literal["build", "train", "forecast", "evaluate", "maps"]
STAGES: tuple[Stage, ...] = get_args(Stage)

_FORMAT = 1  # part of every fingerprint: raised when climapred computes something else from the same recipe
_OUTPUTS = ("sample", "tensors.zarr", "models", "forecasts", "correlations", "maps")


@dataclass(frozen=True)
class Unit:
    """One piece of work: finished when the journal has its fingerprint and its outputs exist."""

    stage: Stage
    name: str
    fingerprint: str
    outputs: tuple[Path, ...]
    work: Callable[[], None]


def run(
    recipe_path: str | Path,
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    until: Stage | None = None,
    restart: bool = False,
    scheduler: str | None = None,
    console: Console | None = None,
) -> list[str]:
    """Run a recipe into the folder ``out``; return the names of the units that were done, none if all were finished.

    Args:
        recipe_path: a YAML file.
        out: created where missing; what is finished in it is kept.
        overrides: ``key=value``, see ``recipe.load_recipe``.
        until: last stage to run; None for all.
        restart: throw away what earlier runs left in ``out``.
        scheduler: address of a Dask scheduler for the build.
        console: where progress and notes go.

    Raises:
        RecipeError: before anything is written, if the recipe or its data cannot run.
        RuntimeError: if another run works in ``out``.
    """
    if until is not None and until not in STAGES:
        raise ValueError(f"until must be one of {', '.join(STAGES)}, got {until!r}")
    recipe = load_recipe(recipe_path, overrides)
    check(recipe, recipe_path)
    task = Run(recipe, Path(out), scheduler, console or Console(stderr=True))
    task.out.mkdir(parents=True, exist_ok=True)
    with _alone_in(task.out):
        if restart:
            _remove_outputs(task.out)
        _write_recipe(task)
        journal = task.out / "journal.jsonl"
        finished, done = _finished(journal), []
        for unit in _units(task):
            if until is not None and STAGES.index(unit.stage) > STAGES.index(until):
                break
            if finished.get(unit.name) == unit.fingerprint and all(path.exists() for path in unit.outputs):
                continue
            began = time.monotonic()
            _append(journal, {"begun": _now(), "unit": unit.name})
            unit.work()
            _record(journal, unit, time.monotonic() - began, task)
            done.append(unit.name)
        return done


def report(out: str | Path) -> str:
    """Return the scores of a run as a table, and where everything is."""
    from climapred.results.evaluate import format_table, summary

    out, lines = Path(out), []
    if (out / "scores.nc").exists():
        with xr.open_dataset(out / "scores.nc") as scores:
            lines += [format_table(summary(scores.load())), ""]
    known = ("scores.csv", "forecasts/*.nc", "correlations/*.nc", "models/*/model.json", "maps/*.png")
    return "\n".join(lines + [str(path) for pattern in known for path in sorted(out.glob(pattern))])


def check(recipe: Recipe, path: str | Path) -> None:
    """Check a recipe against its data, which are opened lazily.

    Raises:
        RecipeError: names file, line and key.
    """
    from climapred.models import build_model

    with located(path, "source"):
        fields = stages.source_fields(recipe)
        own, times = Grid.of(fields), fields["time"].values
    with located(path, "grid"):
        grid = own if recipe.grid is None else stages.target_grid(recipe.grid)
        if recipe.grid is not None:
            _check_covered(own, grid, recipe.grid.method)
    window = Window(recipe.window.history, recipe.window.horizon)
    with located(path, "split"):
        split = chronological_split(times, recipe.split.validation, recipe.split.test)
        for period in ("train", "validation", "test"):
            split.starts(period, times, window)
    size = dict(zip(("height", "width"), grid.shape, strict=True))
    for position, model in enumerate(recipe.models):
        with located(path, f"models.{position}"):
            build_model(model.architecture, channels=len(recipe.source.variables), **size, **model.options)
    _check_maps(recipe, path, grid, times)


def _check_covered(source: Grid, target: Grid, method: Method) -> None:
    """Every target point must get a value, or the tensors would hold missing values."""
    regridder = Regridder(source, target, method)
    for name in ("latitude", "longitude"):
        weights, points, edges = getattr(regridder, f"{name}_weights"), getattr(target, name), getattr(source, name)
        outside = points[np.flatnonzero(weights.sum(axis=1) == 0)]
        if outside.size:
            raise ValueError(
                f"the {method} regridding leaves {outside.size} of {points.size} {name}s without data, such as "
                f"{outside[0]:g}: the data's run from {edges[0]:g} to {edges[-1]:g}; choose a region inside, or leave "
                "out `grid` to keep the source's own"
            )


def _check_maps(recipe: Recipe, path: str | Path, grid: Grid, times: stages.Times) -> None:
    starts, step = stages.init_times(recipe, times), time_step(times)
    with located(path, "maps.start_times"):
        for text in recipe.maps.start_times:
            if np.datetime64(text, "ns") not in starts:
                first, last = (np.datetime_as_string(starts[i], unit="h") for i in (0, -1))
                raise ValueError(f"{text} is not a start of a test forecast; those run from {first} to {last}")
    leads = (step / np.timedelta64(1, "h") * np.arange(1, recipe.window.horizon + 1)).tolist()
    with located(path, "maps.leads_hours"):
        for lead in recipe.maps.leads_hours or ():
            if lead not in leads:
                raise ValueError(f"{lead:g} is not a lead of the forecast; those are {leads}")
    rows, columns = grid.latitude_bounds, grid.longitude_bounds
    with located(path, "maps.points"):
        for latitude, longitude in recipe.maps.points:
            if not rows[0] <= latitude <= rows[-1] or (longitude - columns[0]) % 360 > columns[-1] - columns[0]:
                raise ValueError(f"{latitude:g}, {longitude:g} lies outside {grid}")


def _units(run: Run) -> Iterator[Unit]:
    """Yield the units in order; what a unit needs exists when it is reached."""
    recipe, out = run.recipe, run.out
    window, stride = _plain(recipe.window), recipe.forecast.stride
    if recipe.source.sample is not None:
        source: Any = _fingerprint("sample", _plain(recipe.source.sample))
        yield Unit("build", "sample", source, (out / "sample",), partial(stages.write_sample, run))
    else:
        source = run.source().identity()
    tensors = _fingerprint("tensors", source, recipe.source.variables, _plain(recipe.grid))
    yield Unit("build", "tensors", tensors, (run.store,), partial(stages.build, run))
    known = _fingerprint("statistics", tensors, _plain(recipe.split), _plain(recipe.climatology))
    yield Unit("build", "statistics", known, (run.store / "statistics",), partial(stages.statistics, run))
    trained = {
        model.name: _fingerprint("model", known, _plain(model), _plain(recipe.training), window)
        for model in recipe.models
    }
    for model in recipe.models:
        outputs = (out / "models" / model.name / "model.json",)
        work = partial(stages.train, run, model, trained[model.name])
        yield Unit("train", f"train {model.name}", trained[model.name], outputs, work)
    title = recipe.title or recipe.name
    forecasts = {name: _fingerprint("forecast", fingerprint, stride, title) for name, fingerprint in trained.items()}
    for name, fingerprint in forecasts.items():
        work = partial(stages.forecast_model, run, name)
        yield Unit("forecast", f"forecast {name}", fingerprint, (run.forecast_path(name),), work)
    for name in recipe.forecast.baselines:
        fingerprint = _fingerprint(name, known, window, stride, title)
        work = partial(stages.forecast_baseline, run, name)
        yield Unit("forecast", f"forecast {name}", fingerprint, (run.forecast_path(name),), work)
    scores = _fingerprint("scores", known, forecasts)
    yield Unit("evaluate", "scores", scores, (out / "scores.nc", out / "scores.csv"), partial(stages.evaluate, run))
    maps = _fingerprint("maps", scores, forecasts, _plain(recipe.maps))
    yield Unit("maps", "maps", maps, (out / "maps",), partial(stages.maps, run))


def _write_recipe(run: Run) -> None:
    """Write the recipe with every default filled in; a run that finds nothing to do touches no file."""
    path, text = run.out / "recipe.yaml", dump_recipe(run.recipe)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        stages.write_text(path, text)


def _plain(section: Any) -> Any:
    return None if section is None else section.model_dump(mode="json")


def _fingerprint(*parts: Any) -> str:
    return hashlib.sha256(json.dumps([_FORMAT, *parts]).encode()).hexdigest()[:16]


def _finished(journal: Path) -> dict[str, str | None]:
    """Return the last fingerprint of each unit, None for one that was begun and not finished: its outputs may be mixed.

    A line that a kill cut short does not count.
    """
    finished: dict[str, str | None] = {}
    for line in journal.read_text().splitlines() if journal.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        finished[row["unit"]] = row.get("fingerprint")
    return finished


def _record(journal: Path, unit: Unit, seconds: float, run: Run) -> None:
    row = {
        "finished": _now(),
        "unit": unit.name,
        "fingerprint": unit.fingerprint,
        "seconds": round(seconds, 2),
        "outputs": [str(path.relative_to(run.out)) for path in unit.outputs],
    }
    if unit.name == "tensors":
        row["inputs"] = run.source().identity()
    _append(journal, row)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _append(journal: Path, row: dict[str, Any]) -> None:
    with journal.open("a") as stream:
        stream.write("\n" * _ends_inside_a_line(journal) + json.dumps(row) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _ends_inside_a_line(journal: Path) -> bool:
    content = journal.read_bytes()
    return bool(content) and not content.endswith(b"\n")


def _remove_outputs(out: Path) -> None:
    """Remove what runs left; the journals first, so that none vouches for what is half removed."""
    for name in ("journal.jsonl", "tensors.zarr.journal.jsonl", "scores.nc", "scores.csv"):
        (out / name).unlink(missing_ok=True)
    for name in _OUTPUTS:
        for suffix in ("", ".partial", ".old"):
            shutil.rmtree(out / f"{name}{suffix}", ignore_errors=True)


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Hold the folder's lock; the system frees it when the process ends, however it ends."""
    with (out / ".lock").open("a") as stream:
        if not _lock(stream):
            raise RuntimeError(f"another run works in {out}; wait for it, or choose another --out")
        yield


def _lock(stream: IO[str]) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: no advisory locks, and none needed for a single user's runs
        return True
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
