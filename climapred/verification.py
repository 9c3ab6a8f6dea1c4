"""How good the forecasts of a run are: every model and baseline on the same test windows, one variable after another.

What the first variable of the recipe has in ``scores.nc``, ``scores.csv`` and so on, a further one has in files with its
name behind theirs: ``scores_msl.nc``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from climapred.data.regrid import regrid
from climapred.data.sources import open_source
from climapred.data.store import open_statistics, open_store
from climapred.grid import Grid
from climapred.recipe import Recipe
from climapred.results.baselines import BASELINES
from climapred.results.cf import scores_to_cf, write_netcdf
from climapred.results.evaluate import check_truth, paper_table, region_scores, score_table, scores, season_scores
from climapred.results.metrics import PAPER_RANGES, WINDOW
from climapred.results.significance import (
    FEWEST_STARTS,
    comparison_table,
    error_series,
    score_intervals,
)
from climapred.results.skill import skill_of_cells, squared_errors
from climapred.results.sums import error_sums
from climapred.stages import Run, Times, baseline, open_forecast, version
from climapred.whole import write_text

REFERENCE = "damped"  # what maps of skill are relative to
TABLES = ("scores_seasons", "scores_regions", "scores_paper", "comparison", "comparison_mean", "scores")


@dataclass(frozen=True)
class Measured:
    """One forecast against the truth: sums for the scores, errors of each start, and its skill in each cell."""

    sums: xr.Dataset
    errors: xr.Dataset
    skill: xr.Dataset | None


def score_files(recipe: Recipe) -> tuple[str, ...]:
    """Return the names of the files that every evaluation writes: of the first variable, then of the others."""
    return tuple(
        f"scores{recipe.ending(variable)}.{kind}" for variable in recipe.source.variables for kind in ("nc", "csv")
    )


def old_files(out: Path) -> list[Path]:
    """Return what evaluations left in a folder, the table that others rely on first."""
    patterns = ("scores.csv", "scores*.csv", "scores*.nc", "comparison*.csv", "skill*.nc")
    return list(dict.fromkeys(path for pattern in patterns for path in sorted(out.glob(pattern))))


def evaluate(run: Run) -> None:
    """Score every model and every baseline: over all, by season, by region, cell by cell, and how surely."""
    variables, fields, known = run.recipe.source.variables, open_store(run.store), open_statistics(run.store)
    ranges = PAPER_RANGES if min(fields.sizes["latitude"], fields.sizes["longitude"]) >= WINDOW else None
    makers = scored(run)
    found: dict[str, dict[str, Measured]] = {variable: {} for variable in variables}
    yardsticks: dict[str, xr.DataArray] = {}
    with run.progress("evaluate: models") as progress:
        for count, name in enumerate(sorted(makers, key=lambda name: name != REFERENCE), start=1):
            made = makers[name](run, name)
            for variable in [variable for variable in variables if variable in made]:
                forecast, truth = made[variable], fields[variable]
                if name == REFERENCE:
                    check_truth(truth, forecast["valid_time"])
                    yardsticks[variable] = squared_errors(forecast, truth)
                found[variable][name] = Measured(
                    error_sums(forecast, truth, statistics=known, data_range=ranges, by_season=True),
                    error_series(forecast, truth),
                    _skill(forecast, truth, yardsticks[variable]) if name != REFERENCE else None,
                )
            progress(count, len(makers))
    for path in old_files(run.out):
        path.unlink()
    for variable in reversed(variables):  # the tables that others rely on come last
        _write(run, variable, {name: found[variable][name] for name in makers if name in found[variable]})


def _skill(forecast: xr.DataArray, truth: xr.DataArray, yardstick: xr.DataArray) -> xr.Dataset | None:
    if forecast.sizes["init_time"] < FEWEST_STARTS:
        return None
    return skill_of_cells(squared_errors(forecast, truth), yardstick)


def _write(run: Run, variable: str, measured: Mapping[str, Measured]) -> None:
    """Write the scores of one variable."""
    sums = {name: found.sums for name, found in measured.items()}
    errors = {name: found.errors for name, found in measured.items()}
    trained = {model.name for model in run.recipe.models}
    references = [*BASELINES, *(name for name in measured if name not in {*BASELINES, *trained})]
    end, enough = run.recipe.ending(variable), len(run.forecast_times()[0]) >= FEWEST_STARTS
    title, result = run.recipe.title or run.recipe.name, scores(sums, references=references)
    tables = _tables(run, sums, references, result)
    if enough:
        tables["comparison"] = comparison_table(errors)
        tables["comparison_mean"] = comparison_table(errors, average=True)
        result = result.assign(score_intervals(errors))
        skills = {name: found.skill for name, found in measured.items() if found.skill is not None}
        models = xr.DataArray(list(skills), dims="model", name="model")
        skill = xr.concat(list(skills.values()), models, combine_attrs="override")
        skill = scores_to_cf(skill, source=version(), title=f"{title}: skill in {variable} against {REFERENCE}")
        write_netcdf(skill.assign_attrs(reference=REFERENCE), run.out / f"skill{end}.nc")
    result = scores_to_cf(result, source=version(), title=f"{title}: scores of {variable}")
    write_netcdf(result, run.out / f"scores{end}.nc")
    for name in TABLES:
        if name in tables:
            write_text(run.out / f"{name}{end}.csv", tables[name].to_csv(index=False))


def _tables(
    run: Run, sums: Mapping[str, xr.Dataset], references: list[str], result: xr.Dataset
) -> dict[str, pd.DataFrame]:
    tables = {"scores": score_table(result), "scores_seasons": score_table(season_scores(sums, references=references))}
    if regions := run.recipe.scores.regions:
        whole = {name: found.sum("season", skipna=False, keep_attrs=True) for name, found in sums.items()}
        of_all = score_table(region_scores(whole, regions, references=references))
        of_all.insert(2, "season", "all")  # behind model and region
        of_seasons = score_table(region_scores(sums, regions, references=references))
        tables["scores_regions"] = pd.concat([of_all, of_seasons], ignore_index=True)
    if "ssim" in result:
        tables["scores_paper"] = paper_table(result)
    return tables


# --- what is scored ---


def scored(run: Run) -> dict[str, Callable[[Run, str], xr.Dataset]]:
    """Return what is scored, and how its forecasts are had."""
    further = [name for name in run.recipe.forecast.baselines if name not in BASELINES]
    return {
        **{model.name: _written for model in run.recipe.models},
        **dict.fromkeys((*BASELINES, *further), baseline),
        **dict.fromkeys(run.recipe.scores.external, _external),
    }


def _written(run: Run, name: str) -> xr.Dataset:
    return open_forecast(run.forecast_path(name))


def _external(run: Run, name: str) -> xr.Dataset:
    """Return the forecasts of others, on the grid and at the times of ours."""
    return external(run.recipe, name, Grid.of(open_store(run.store)), *run.forecast_times())


def external(recipe: Recipe, name: str, grid: Grid, starts: Times, leads: npt.NDArray[np.timedelta64]) -> xr.Dataset:
    """Return the forecasts of others, regridded and matched in time; lazily.

    Raises:
        ValueError, OSError: if there is no such file, or if it lacks the variable, its units, starts or leads.
    """
    from climapred.results.external import external_forecast

    theirs = recipe.scores.external[name]
    names = theirs.names(recipe.source.variables[0])
    select = theirs.select.model_dump(exclude_none=True)
    opened = open_source(theirs.expanded_paths(), variables=list(names.values()), select=select, forecasts=True)
    on_grid = regrid(opened, grid, theirs.method)
    delay = np.timedelta64(round(3600 * theirs.max_delay_hours), "s")
    times: Any = {"init_times": starts, "lead_times": leads, "max_delay": delay}
    parts = [external_forecast(on_grid, ours, grid, name=own, **times) for ours, own in names.items()]
    return xr.merge(parts, join="exact", compat="identical", combine_attrs="drop")
