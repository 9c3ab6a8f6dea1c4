"""The command line: ``climapred run``, ``validate``, ``inspect``, ``regrid``, ``models``, ``catalog`` and others."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

if TYPE_CHECKING:
    import xarray as xr
    from rich.console import Console

    from climapred.learning.artefact import TrainedModel

app = typer.Typer(
    help="Gridded weather forecasting: raw files to tensors, trained models, CF forecasts, scores and maps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file, such as pipelines/demo.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="replace a key of the recipe; may be repeated"),
]


@app.command()
def run(
    recipe: RecipePath,
    out: Annotated[Path, typer.Option(help="folder of the run; finished work in it is kept")],
    set_: Overrides = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="build, train, forecast, evaluate or maps")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="throw away what earlier runs left in the folder")] = False,
    scheduler: Annotated[str | None, typer.Option(help="address of a Dask scheduler, such as tcp://host:8786")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="processes of the build; default: all processors")] = None,
    part: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="write only the I-th of N parts of the tensors: one job of an array"),
    ] = None,
    finish: Annotated[bool, typer.Option("--finish", help="check the parts of the tensors, finish them, stop")] = False,
    append: Annotated[
        bool,
        typer.Option("--append", help="take files that have grown for unchanged where the tensors hold them already"),
    ] = False,
    repair: Annotated[bool, typer.Option("--repair", help="read the tensors again, write damaged shards anew")] = False,
    baseline: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="forecasts of others, scored beside ours; may be repeated"),
    ] = None,
) -> None:
    """Run a recipe: build, train, forecast, evaluate, maps. Interrupted, it goes on where it stopped.

    New files of a source are appended to the tensors, if the old ones are unchanged.

    Exit status 75: a TERM signal came while a model was trained; its state is saved, run the same command again.
    """
    from climapred import pipeline
    from climapred.learning.order import Share
    from climapred.recipe import RecipeError

    console, set_ = _console(stderr=True), [*(set_ or ()), *_parse_baselines(baseline or ())]
    if until is not None and until not in pipeline.STAGES:
        raise typer.BadParameter(
            f"{until!r} is not a stage; stages: {', '.join(pipeline.STAGES)}", param_hint="--until"
        )
    if (part or finish) and (until or restart or append or repair or (part and finish)):
        raise typer.BadParameter("--part and --finish stand alone: without --until, --restart, --append and --repair")
    try:
        if part:
            resources: Any = {"scheduler": scheduler, "workers": workers, "console": console}
            pipeline.build_part(recipe, out, _parse_part(part), overrides=set_, **resources)
            return
        if finish:
            done = pipeline.finish_build(recipe, out, overrides=set_, console=console)
            console.print("build: the tensors are finished" if done else "nothing to do: the tensors are finished")
            return
        done = pipeline.run(
            recipe,
            out,
            overrides=set_,
            until=until,
            restart=restart,
            scheduler=scheduler,
            workers=workers,
            grown=append,
            repair=repair,
            console=console,
        )
    except (RecipeError, RuntimeError, FloatingPointError, ValueError, OSError) as error:
        _fail(error)
    except SystemExit as stopped:  # learning.launch.Interrupted, whose code asks the batch scheduler to requeue
        console.print(str(stopped))
        raise
    if Share.current().rank:  # the first process reports
        return
    if not done:
        console.print("nothing to do: every stage is finished, for this recipe and these files")
    typer.echo(pipeline.report(out))


def _parse_baselines(items: Sequence[str]) -> list[str]:
    """Return the overrides of a recipe that score the forecasts in these files; further keys of them stay as they are."""
    overrides = []
    for item in items:
        name, separator, path = item.partition("=")
        if not (name and separator and path):
            raise typer.BadParameter(f"{item!r} is not NAME=FILE, such as gfs=gfs.nc", param_hint="--baseline")
        overrides.append(f"scores.external.{name}.path={json.dumps(path)}")
    return overrides


def _parse_part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count):
        return int(number), int(count)
    raise typer.BadParameter(f"{text!r} is not I/N with I from 1 to N, such as 3/8", param_hint="--part")


@app.command()
def validate(recipe: RecipePath, set_: Overrides = None) -> None:
    """Check a recipe and the data it names, without running it."""
    from climapred import pipeline
    from climapred.recipe import RecipeError
    from climapred.recipe_file import load_recipe

    try:
        pipeline.check(load_recipe(recipe, set_ or ()), recipe)
    except (RecipeError, OSError) as error:
        _fail(error)
    typer.echo(f"{recipe}: valid")


@app.command()
def inspect(
    files: Annotated[list[str], typer.Argument(metavar="FILES", help="GRIB, NetCDF, Zarr; patterns and URLs, too")],
    variable: Annotated[list[str] | None, typer.Option("--variable", "-v", help="name; may be repeated")] = None,
    select: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="GRIB messages to take, such as level=500; may be repeated"),
    ] = None,
    skip_damaged: Annotated[bool, typer.Option("--skip-damaged", help="leave out damaged GRIB messages")] = False,
    duplicates: Annotated[
        Literal["refuse", "first", "last"], typer.Option(help="where a time is there more than once")
    ] = "refuse",
    calendar: Annotated[
        Literal["refuse", "keep"], typer.Option(help="calendars whose dates are not all real, such as noleap")
    ] = "refuse",
    every_time: Annotated[bool, typer.Option("--every-time", help="read all fields, not those of a few times")] = False,
    json_: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Tell what is in the files, taken together, and what harmonise will do about it. Exit status 1: it would refuse."""
    from climapred.data.inspect import inspect_source

    try:
        found = inspect_source(
            files,
            variable or None,
            select=_parse_select(select or ()),
            damaged="skip" if skip_damaged else "error",
            duplicates=duplicates,
            calendar=calendar,
            every_time=every_time,
        )
    except (ValueError, OSError, ImportError) as error:
        _fail(error)
    if json_:
        typer.echo(json.dumps(found.as_dict(), indent=2, allow_nan=False))
    else:
        console = _console()
        for line in found.lines():
            style = "red" if line.startswith("refused") else "green" if line == "harmonise takes this" else None
            console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
    if found.refused:
        raise typer.Exit(1)


def _parse_select(items: Sequence[str]) -> dict[str, list[str | float]]:
    """Return {key: values}; numbers are numbers."""
    selected: dict[str, list[str | float]] = {}
    for item in items:
        key, separator, value = item.partition("=")
        if not separator or not value:
            raise typer.BadParameter(f"{item!r} is not KEY=VALUE, such as level=500", param_hint="--select")
        number = re.fullmatch(r"-?\d+(\.\d+)?", value) and key != "expver"  # expver is text: 0001
        selected.setdefault(key, []).append(float(value) if number else value)
    return selected


@app.command()
def models(
    grid: Annotated[str, typer.Option(metavar="HxW", help="points of the grid, rows x columns")] = "24x52",
    history: Annotated[int, typer.Option(min=1, help="frames that are seen")] = 6,
    horizon: Annotated[int, typer.Option(min=1, help="leads")] = 6,
    option: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="an option, for the models that have it, such as hidden=32"),
    ] = None,
) -> None:
    """List the models: name, parameters, multiply-adds of a forecast from one window, what they are, their papers."""
    from rich.markup import escape
    from rich.table import Table

    from climapred.models import MODELS, has_option
    from climapred.models.cost import cost, paper

    if not (size := re.fullmatch(r"(\d+)x(\d+)", grid)):
        raise typer.BadParameter(f"{grid!r} is not HxW, such as 24x52", param_hint="--grid")
    given = dict(item.partition("=")[::2] for item in option or ())
    if unknown := [key for key in given if not any(has_option(name, key) for name in MODELS)]:
        raise typer.BadParameter(f"no model has the option {', '.join(unknown)}", param_hint="--set")
    sizes = {"height": int(size[1]), "width": int(size[2]), "history": history, "horizon": horizon}
    table = Table("name", "parameters", "multiply-adds", "what it is", box=None, pad_edge=False)
    try:
        for name in MODELS:
            options = {key: _parse_value(value) for key, value in given.items() if has_option(name, key)}
            found = cost(name, **sizes, **options)
            table.add_row(name, f"{found.parameters:,}", f"{found.multiply_adds / 1e9:,.2f} G", escape(paper(name)))
    except ValueError as error:
        _fail(error)
    _console(width=None if sys.stdout.isatty() else 200).print(table, highlight=False)


def _parse_value(text: str) -> Any:
    """Return a number or a truth value where the text is one, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


@app.command()
def catalog(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="a catalog, such as catalogs/ncep.yaml")],
) -> None:
    """List the entries of a catalog: name, kind, description, parameters."""
    from climapred.data.catalog import load_catalog

    try:
        entries = load_catalog(path)
    except (ValueError, OSError) as error:
        _fail(error)
    for entry in entries.values():
        typer.echo(f"{entry.name} ({entry.driver}): {entry.description}")
        for name, (description, default) in entry.parameters.items():
            typer.echo(f"  {name}: {description} (default {default})")


@app.command()
def regrid(
    source: Annotated[list[str], typer.Argument(metavar="IN...", help="NetCDF, GRIB or Zarr; files, patterns, URLs")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="a file .nc or a folder .zarr")],
    grid: Annotated[str, typer.Option(help="degrees between points such as 1.5, N48 or F48 (Gaussian), or a file")],
    method: Annotated[str, typer.Option(help="conservative, bilinear or nearest")] = "conservative",
    variables: Annotated[list[str] | None, typer.Option(help="names, with commas between; default: all")] = None,
    region: Annotated[
        tuple[float, float, float, float] | None, typer.Option(metavar="S N W E", help="edges of the target, degrees")
    ] = None,
    max_missing: Annotated[float, typer.Option(help="largest share of missing values in a target cell")] = 0.5,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace OUT if it exists")] = False,
) -> None:
    """Write files to another grid, block by block: names, attributes and times are kept, cells become CF bounds."""
    import shlex
    from datetime import UTC, datetime

    from climapred.data.regrid_file import regrid_file, target_grid

    names = [name for text in variables or () for name in text.split(",")] or None
    place = ["--region", *map(str, region)] if region else []
    call = ["climapred", "regrid", *source, str(out), "--grid", grid, *place, "--method", method]
    history = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}: {shlex.join(call)} --max-missing {max_missing}"
    settings: Any = {"method": method, "variables": names, "max_missing": max_missing, "overwrite": overwrite}
    try:
        regrid_file(source, out, target_grid(grid, region), history=history, progress=_percent(), **settings)
    except (ValueError, OSError, ImportError) as error:
        _fail(error)
    typer.echo(f"{out}: written")


def _percent() -> Callable[[int, int], None]:
    """Return what shows the progress of longer work on a terminal."""
    began = time.monotonic()

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty() and time.monotonic() - began > 5:
            print(f"\r{100 * done // total} %", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show


@app.command()
def plot(
    kind: Annotated[
        Literal["field", "forecast", "errors", "scores", "correlations", "animation"],
        typer.Argument(help="what to draw"),
    ],
    sources: Annotated[
        list[str], typer.Argument(metavar="FILE|RUN...", help="NetCDF, Zarr, GRIB, scores.csv, or the folder of a run")
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="PNG, PDF or SVG; GIF or MP4; default: KIND.png, animation.gif")
    ] = None,
    variable: Annotated[
        str | None, typer.Option("--variable", "-v", help="name; needed where there are several")
    ] = None,
    time: Annotated[str | None, typer.Option(help="valid time, such as 2014-01-17T06; of an animation FROM/TO")] = None,
    start: Annotated[str | None, typer.Option(help="start of the forecast; default: the first")] = None,
    lead: Annotated[list[float] | None, typer.Option(metavar="HOURS", help="lead time; may be repeated")] = None,
    select: Annotated[
        list[str] | None, typer.Option(metavar="DIM=VALUE", help="value of another dimension, such as level=500")
    ] = None,
    region: Annotated[
        tuple[float, float, float, float] | None, typer.Option(metavar="S N W E", help="part to draw, degrees")
    ] = None,
    truth: Annotated[
        str | None, typer.Option(metavar="FILE", help="what happened; default: the tensors of a run")
    ] = None,
    model: Annotated[str | None, typer.Option(help="a model of the run; of a file, the name in the title")] = None,
    score: Annotated[list[str] | None, typer.Option(help="mae, rmse, bias, ...; may be repeated for curves")] = None,
    against: Annotated[str | None, typer.Option(metavar="MODEL", help="map the skill relative to this model")] = None,
    at: Annotated[
        tuple[str, str] | None, typer.Option(metavar="LATITUDE LONGITUDE", help="place of the map, such as 40N 100W")
    ] = None,
    direction: Annotated[
        Literal["listens", "heard"], typer.Option(help="whom the place listens to, or who listens to it")
    ] = "listens",
    show: Annotated[
        Literal["map", "arcs", "hubs", "distance"],
        typer.Option(help="of correlations: of one place, the strongest links, sums of rows and columns, by distance"),
    ] = "map",
    beyond: Annotated[float, typer.Option(metavar="KM", min=0, help="shortest links of arcs and hubs")] = 1000.0,
    count: Annotated[int, typer.Option(min=1, help="most arcs")] = 30,
    hatch: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="hatched where this is true: not significant")
    ] = None,
    limits: Annotated[
        tuple[float, float] | None, typer.Option(metavar="LOW HIGH", help="ends of the colour scale")
    ] = None,
    centre: Annotated[float | None, typer.Option(help="middle of a diverging colour scale, such as 0")] = None,
    cmap: Annotated[str | None, typer.Option(help="colours, by their name in matplotlib")] = None,
    title: Annotated[str | None, typer.Option(help="in place of the default")] = None,
    fps: Annotated[float, typer.Option(help="frames a second")] = 4.0,
) -> None:
    """Draw a map, curves or a film of a finished run, or of any file with latitude and longitude that follows CF."""
    from climapred.data.sources import open_source
    from climapred.results.figures import Request, draw, parse_place
    from climapred.results.selection import Choice

    values = {name: several[-1] for name, several in _parse_select(select or ()).items()}
    try:
        request = Request(
            sources,
            Choice(variable, time, start, lead or (), values, region),
            truth=truth,
            model=model,
            scores=score or (),
            against=against,
            place=parse_place(*at) if at else None,
            direction=direction,
            show=show,
            min_km=beyond,
            count=count,
            hatched=hatch,
            limits=limits,
            centre=centre,
            cmap=cmap,
            title=title,
            fps=fps,
        )
        path = draw(kind, request, out or Path("animation.gif" if kind == "animation" else f"{kind}.png"), open_source)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        _fail(error)
    typer.echo(f"{path}: written")


@app.command()
def forecast(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="folder of a trained model, such as OUT/models/NAME")],
    data: Annotated[list[str], typer.Argument(metavar="DATA...", help="NetCDF, GRIB, Zarr, or a store of tensors")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="a file .nc or a folder .zarr; {start} in its name: one for each start time"),
    ],
    start: Annotated[
        str,
        typer.Option(metavar="TIME", help="latest, TIME, TIME/TIME or TIME/to/TIME/by/STEP; a TIME is 2014-02-27T18"),
    ] = "latest",
    steps: Annotated[int | None, typer.Option(min=1, help="leads of a forecast; default: as many as trained")] = None,
    regrid: Annotated[
        Literal["conservative", "bilinear", "nearest"] | None, typer.Option(help="bring DATA to the model's grid")
    ] = None,
    also: Annotated[
        list[Path] | None, typer.Option("--with", metavar="MODEL", help="a further model as member; may be repeated")
    ] = None,
    members: Annotated[int, typer.Option(min=1, help="of an ensemble of perturbed initial fields")] = 1,
    amplitude: Annotated[float, typer.Option(help="of perturbations, in standard deviations of the anomalies")] = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="of perturbations")] = 0,
    select: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="GRIB messages to take; may be repeated")
    ] = None,
    largest_error: Annotated[
        float | None, typer.Option(help="pack to 16 bits so that no value changes by more, in its units")
    ] = None,
    complevel: Annotated[int, typer.Option(min=0, max=9, help="compression")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace OUT if it holds something else")] = False,
) -> None:
    """Forecast with a trained model from new data, into CF files. Interrupted, it goes on where it stopped."""
    from climapred.data.sources import source_identity
    from climapred.learning.artefact import load_model
    from climapred.learning.ensemble import Perturbation
    from climapred.learning.new_data import forecast_batches, open_fields, start_times
    from climapred.results.cf_stream import write_forecasts

    console, chosen = _console(stderr=True), _parse_select(select or ())
    try:
        perturbation = Perturbation(members, amplitude, seed=seed) if members > 1 else None
        trained = [load_model(path) for path in (model, *(also or ()))]
        fields = [open_fields(one, data, regrid_method=regrid, select=chosen or None) for one in trained]
        starts = [start_times(one, its["time"].values, start) for one, its in zip(trained, fields, strict=True)]
        settings = [steps, regrid, chosen, str(perturbation), largest_error, complevel, source_identity(data)]
        written = write_forecasts(
            lambda missing: forecast_batches(trained, fields, missing, steps=steps, perturbation=perturbation),
            starts[0],
            out,
            describe=_describe_forecast(trained),
            identity=json.dumps([*(one.identity() for one in trained), *settings]),
            overwrite=overwrite,
            progress=lambda done, total: console.print(f"forecast: {done} of {total} start times"),
            largest_error=largest_error,
            complevel=complevel,
        )
    except (ValueError, OSError, ImportError) as error:
        _fail(error)
    for path in written:
        typer.echo(f"{path}: written")


def _describe_forecast(models: Sequence[TrainedModel]) -> Callable[..., xr.Dataset]:
    """Return what makes CF of the forecasts of models, with the command that was given as their history."""
    import shlex
    from datetime import UTC, datetime
    from functools import partial
    from importlib.metadata import version

    from climapred.results.cf import to_cf

    made = ", ".join(f"{one.architecture} {one.name!r} ({one.identity()})" for one in models)
    command = shlex.join(["climapred", *sys.argv[1:]])
    return partial(
        to_cf,
        source=f"climapred {version('climapred')}: {made}",
        title=f"Forecasts of {', '.join(one.name for one in models)}",
        history=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}: {command}",
        attributes={
            "model": ", ".join(one.name for one in models),
            "model_identity": ", ".join(one.identity() for one in models),
        },
    )


def _console(**options: Any) -> Console:
    from rich.console import (
        Console,  # not needed by commands that print nothing but a line, and these should start at once
    )

    return Console(**options)


def _fail(error: Exception) -> NoReturn:
    from rich.markup import escape

    _console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
    raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
