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
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import xarray as xr
from rich.console import Console

from climapred import link_stages, stages, verification
from climapred.data.locks import locked
from climapred.data.regrid import Method, Regridder, source_grid
from climapred.data.sources import source_identity
from climapred.grid import Grid
from climapred.learning.order import Share
from climapred.learning.windows import time_step
from climapred.recipe import GridRecipe, Recipe, RecipeError
from climapred.recipe_file import dump_recipe, load_recipe, located
from climapred.reduced import ReducedGrid
from climapred.results.baselines import BASELINES
from climapred.results.links.adjacency import DENSE_NODES
from climapred.stages import Run
from climapred.whole import write_text

Stage = Literal["build", "train", "forecast", "evaluate", "maps"]
STAGES: tuple[Stage, ...] = get_args(Stage)

_FORMAT = 3  # part of every fingerprint: raised when climapred computes something else from the same recipe
_PATIENCE_SECONDS = 1.0
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
    workers: int | None = None,
    grown: bool = False,
    repair: bool = False,
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
        workers: processes of the build on this machine; None for as many as there are processors.
        grown: append to tensors whose files have grown, see ``data.build.build_store``.
        repair: read finished tensors again, and write damaged shards anew.
        console: where progress and notes go.

    Raises:
        RecipeError: before anything is written, if the recipe or its data cannot run.
        RuntimeError: if another run works in ``out``.
    """
    if until is not None and until not in STAGES:
        raise ValueError(f"until must be one of {', '.join(STAGES)}, got {until!r}")
    task = _checked_run(recipe_path, out, overrides, scheduler, console, workers, grown)
    if Share.current().rank:
        return _follow(task)
    with _alone_in(task.out):
        if restart:
            _remove_outputs(task)
        _write_recipe(task)
        finished, done = _finished(task.out / "journal.jsonl"), []
        for unit in _units(task):
            if until is not None and STAGES.index(unit.stage) > STAGES.index(until):
                break
            if not _is_finished(unit, finished):
                _do(unit, task)
                done.append(unit.name)
            elif repair and unit.name == "tensors":
                stages.repair(task)
        return done


def build_part(
    recipe_path: str | Path,
    out: str | Path,
    part: tuple[int, int],
    *,
    overrides: Sequence[str] = (),
    scheduler: str | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> None:
    """Write the i-th of n parts of a recipe's tensors, ``part`` = (i, n): a member of a batch array, on any machine.

    Any number of them may work in one folder at once; then ``finish_build``, or ``run``, which also writes what is missing.

    Raises:
        RecipeError: as ``run``.
        RuntimeError: if the same part, or a whole build, is at work there.
    """
    task = _checked_run(recipe_path, out, overrides, scheduler, console, workers)
    if task.recipe.source.sample is not None:
        raise RecipeError(f"{recipe_path}: the embedded sample is not built in parts: it is quickly done")
    stages.build(task, part)


def finish_build(
    recipe_path: str | Path, out: str | Path, *, overrides: Sequence[str] = (), console: Console | None = None
) -> list[str]:
    """Finish the tensors of a recipe whose parts are written; return the names of the units that were done.

    Raises:
        ValueError: if a shard is missing or damaged.
    """
    task = _checked_run(recipe_path, out, overrides, None, console)
    with _alone_in(task.out):
        _write_recipe(task)
        unit = next(unit for unit in _units(task) if unit.name == "tensors")
        if _is_finished(unit, _finished(task.out / "journal.jsonl")):
            return []
        _do(replace(unit, work=partial(stages.finish_build, task)), task)
        return [unit.name]


def _checked_run(
    recipe_path: str | Path,
    out: str | Path,
    overrides: Sequence[str],
    scheduler: str | None,
    console: Console | None,
    workers: int | None = None,
    grown: bool = False,
) -> Run:
    recipe = load_recipe(recipe_path, overrides)
    check(recipe, recipe_path)
    task = Run(recipe, Path(out), scheduler, console or Console(stderr=True), workers, grown)
    task.out.mkdir(parents=True, exist_ok=True)
    return task


def _do(unit: Unit, task: Run) -> None:
    journal, began = task.out / "journal.jsonl", time.monotonic()
    _append(journal, {"begun": _now(), "unit": unit.name})
    unit.work()
    _record(journal, unit, time.monotonic() - began, task)


def _follow(task: Run) -> list[str]:
    """Take part in the trainings of a run whose other stages process 0 of torchrun does; wait for it in between.

    The journal in the shared folder tells when a unit's inputs are there: all units before it have their fingerprints.
    """
    done, journal = [], task.out / "journal.jsonl"
    for unit in _units(task):
        if unit.stage not in ("build", "train"):
            break
        while not _is_finished(unit, _finished(journal)):
            if unit.stage == "train" and _finished(journal).get(unit.name, "never begun") is None:
                unit.work()
                done.append(unit.name)
                break
            time.sleep(_PATIENCE_SECONDS)
    return done


def report(out: str | Path) -> str:
    """Return the scores of a run as a table, which of them cannot be told apart from the best, and where everything is."""
    from climapred.results.evaluate import format_table, summary

    out, lines = Path(out), []
    for path in sorted(out.glob("scores*.nc")):
        ending = path.stem.removeprefix("scores")
        with xr.open_dataset(path) as scores:
            table = summary(scores.load()).drop(columns=["acc_area", "ssim", "psnr"], errors="ignore")
        lines += [f"{ending[1:]}:"] * bool(ending) + [format_table(table), ""]
        if (compared := out / f"comparison_mean{ending}.csv").exists():
            lines += [_said(pd.read_csv(compared)), ""]
    known = ("report.html", "*.csv", "forecasts/*.nc", "correlations/*.nc", "models/*/model.json", "maps/*.png")
    return "\n".join(lines + [str(path) for pattern in known for path in sorted(out.glob(pattern))])


def _said(comparison: pd.DataFrame) -> str:
    """Return which models are as good as the best one, as far as the start times tell (``results.significance``)."""
    named = {note: ", ".join(comparison["model"][comparison["note"] == note]) for note in set(comparison["note"])}
    text = f"least RMSE (area-weighted): {named['reference']}; "
    if alike := named.get("not distinguishable"):
        return text + f"not distinguishable from it (95 %, block bootstrap over start times): {alike}"
    return text + "every other one is worse (95 %, block bootstrap over start times)"


def check(recipe: Recipe, path: str | Path) -> None:
    """Check a recipe against its data, which are opened lazily.

    Raises:
        RecipeError: names file, line and key.
    """
    from climapred.models import build_model

    with located(path, "source"):
        fields = stages.source_fields(recipe)
        own, times = source_grid(fields), fields["time"].values
    with located(path, "grid"):
        grid = _target(own, recipe.grid)
    window = stages.window_of(recipe)
    with located(path, "split"):
        split = stages.split_of(recipe, times)
        for period in ("train", "validation", "test"):
            split.starts(period, times, window)
    size = dict(zip(("height", "width"), grid.shape, strict=True))
    size |= {"history": window.history, "horizon": window.horizon}
    for position, model in enumerate(recipe.models):
        with located(path, f"models.{position}"):
            channels = {"channels": len(recipe.source.variables), "forcings": 2 * len(model.forcings)}
            network = build_model(model.architecture, **channels, **size, **model.options)
            if recipe.training.sampling != "none" and not network.feeds_back:
                raise ValueError(
                    f"training.sampling: {recipe.training.sampling} is for networks that eat their own forecasts; set "
                    "options: {feedback: true}, or {one_pass: true}"
                )
            if recipe.training.loss_on_seen and not network.one_pass:
                raise ValueError(
                    "training.loss_on_seen is for networks that forecast the frames that they read; set options: "
                    "{one_pass: true}"
                )
    _check_links(recipe, path, grid)
    _check_maps(recipe, path, grid, times)
    for name in recipe.scores.external:  # read at the end of a run that may take hours
        with located(path, f"scores.external.{name}"):
            starts, leads = stages.init_times(recipe, times), time_step(times) * window.leads
            verification.external(recipe, name, grid, starts, leads)


def _target(own: Grid | ReducedGrid, recipe: GridRecipe | None) -> Grid:
    """Return the grid of the tensors, every point of which the source covers."""
    if recipe is None:
        if isinstance(own, Grid):
            return own
        raise ValueError(f"the source lies on {own}, without rows and columns; give a `grid` to regrid it to")
    grid = stages.target_grid(recipe, lambda: own)
    if isinstance(own, Grid):
        _check_covered(own, grid, recipe.method)
    return grid


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


def _check_links(recipe: Recipe, path: str | Path, grid: Grid) -> None:
    if not (recipe.correlations.seeds or recipe.correlations.surrogates):
        return
    with located(path, "correlations"):
        if not any(link_stages.learns_links(model) for model in recipe.models):
            raise ValueError("no model learns links that could be tested: that takes an `ls_ntp` with its long range")
        if grid.size > DENSE_NODES:
            raise ValueError(f"significance is told of all pairs, for at most {DENSE_NODES} points, got {grid}")


def _check_maps(recipe: Recipe, path: str | Path, grid: Grid, times: stages.Times) -> None:
    starts, step = stages.init_times(recipe, times), time_step(times)
    with located(path, "maps.start_times"):
        for text in recipe.maps.start_times:
            if np.datetime64(text, "ns") not in starts:
                first, last = (np.datetime_as_string(starts[i], unit="h") for i in (0, -1))
                raise ValueError(f"{text} is not a start of a test forecast; those run from {first} to {last}")
    leads = (step / np.timedelta64(1, "h") * stages.window_of(recipe).leads).tolist()
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
    tensors = _fingerprint("tensors", source, recipe.source.variables, _plain(recipe.grid), *_choices(recipe))
    yield Unit("build", "tensors", tensors, (run.store,), partial(stages.build, run))
    known = _fingerprint("statistics", tensors, _plain(recipe.split), _plain(recipe.climatology))
    yield Unit("build", "statistics", known, (run.store / "statistics",), partial(stages.statistics, run))
    trained = {
        model.name: _fingerprint("model", known, _plain(model), _plain(recipe.training), _plain(recipe.loader), window)
        for model in recipe.models
    }
    for model in recipe.models:
        outputs = (out / "models" / model.name / "model.json",)
        work = partial(stages.train, run, model, trained[model.name])
        yield Unit("train", f"train {model.name}", trained[model.name], outputs, work)
    yield from _variations(run, trained)
    title = recipe.title or recipe.name
    forecasts = {name: _fingerprint("forecast", fingerprint, stride, title) for name, fingerprint in trained.items()}
    for name, fingerprint in forecasts.items():
        work = partial(stages.forecast_model, run, name)
        yield Unit("forecast", f"forecast {name}", fingerprint, (run.forecast_path(name),), work)
    links = _links(run, trained)
    yield from links
    for name in recipe.forecast.baselines:
        fingerprint = _fingerprint(name, known, window, stride, title)
        work = partial(stages.forecast_baseline, run, name)
        yield Unit("forecast", f"forecast {name}", fingerprint, (run.forecast_path(name),), work)
    further = [name for name in recipe.forecast.baselines if name not in BASELINES]  # the others are scored always
    others = {name: source_identity(external.expanded_paths()) for name, external in recipe.scores.external.items()}
    compared = [others] if others else []
    scores = _fingerprint("scores", known, forecasts, further, _plain(recipe.scores), *compared)
    tables = tuple(out / name for name in verification.score_files(recipe))
    yield Unit("evaluate", "scores", scores, tables, partial(verification.evaluate, run))
    maps = _fingerprint("maps", scores, forecasts, _plain(recipe.maps), *(unit.fingerprint for unit in links))
    yield Unit("maps", "maps", maps, (out / "maps",), partial(stages.maps, run))
    page = _fingerprint("report", maps, known, trained, _plain(recipe))  # it shows the recipe
    yield Unit("maps", "report", page, (out / "report.html",), partial(stages.report, run))


def _variations(run: Run, trained: dict[str, str]) -> Iterator[Unit]:
    """Yield the further trainings that tell how sure the links of a model are."""
    data = _surrogate_keys(run.recipe)
    for model in run.recipe.models:
        for one in link_stages.variations(run.recipe, model):
            about = [one.kind, one.number, *(data if one.kind == "surrogate" else [])]
            fingerprint = _fingerprint("variation", trained[model.name], *about)
            outputs = (run.out / "models" / model.name / one.folder / "model.json",)
            work = partial(stages.train, run, model, fingerprint, one)
            yield Unit("train", f"train {model.name} {one.kind} {one.number}", fingerprint, outputs, work)


def _links(run: Run, trained: dict[str, str]) -> list[Unit]:
    """Return the writing of adjacencies with p-values, for the models that have further trainings."""
    units = []
    for model in run.recipe.models:
        if link_stages.variations(run.recipe, model):
            fingerprint = _fingerprint("links", trained[model.name], _plain(run.recipe.correlations))
            outputs = (run.out / "correlations" / f"{model.name}.nc",)
            work = partial(link_stages.write_links, run, model)
            units.append(Unit("forecast", f"links {model.name}", fingerprint, outputs, work))
    return units


def _surrogate_keys(recipe: Recipe) -> list[Any]:
    keys = recipe.correlations
    return [keys.surrogate, keys.length_km if keys.surrogate == "phase" else keys.block_hours]


def _is_finished(unit: Unit, finished: dict[str, str | None]) -> bool:
    return finished.get(unit.name) == unit.fingerprint and all(path.exists() for path in unit.outputs)


def _write_recipe(run: Run) -> None:
    """Write the recipe with every default filled in; a run that finds nothing to do touches no file."""
    path, text = run.out / "recipe.yaml", dump_recipe(run.recipe)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def _plain(section: Any) -> Any:
    return None if section is None else section.model_dump(mode="json")


def _choices(recipe: Recipe) -> list[dict[str, Any]]:
    """Return what else tells tensors apart, where it is not the default."""
    rounding = recipe.store.model_dump(mode="json", include={"keep_bits"}, exclude_defaults=True)
    return [chosen] if (chosen := recipe.source.reading() | rounding) else []


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


def _remove_outputs(run: Run) -> None:
    """Remove what runs left; the journal first, so that it does not vouch for what is half removed."""
    out = run.out
    with locked(out / f".{run.store.name}.lock", f"parts of the tensors in {out} are being built; wait for them"):
        for path in (out / "journal.jsonl", out / "report.html", *verification.old_files(out)):
            path.unlink(missing_ok=True)
        for name in _OUTPUTS:
            for suffix in ("", ".partial", ".partial.new", ".partial.trash", ".old", ".old.trash"):
                shutil.rmtree(out / f"{name}{suffix}", ignore_errors=True)


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    with locked(out / ".lock", f"another run works in {out}; wait for it, or choose another --out"):
        yield
