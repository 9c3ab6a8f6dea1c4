"""The command line: ``climapred run``, ``validate`` and ``catalog``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from climapred.recipe import RecipeError

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
) -> None:
    """Run a recipe: build, train, forecast, evaluate, maps. Interrupted, it goes on where it stopped."""
    from climapred import pipeline

    console = Console(stderr=True)
    if until is not None and until not in pipeline.STAGES:
        raise typer.BadParameter(
            f"{until!r} is not a stage; stages: {', '.join(pipeline.STAGES)}", param_hint="--until"
        )
    try:
        done = pipeline.run(
            recipe,
            out,
            overrides=set_ or (),
            until=until,
            restart=restart,
            scheduler=scheduler,
            console=console,
        )
    except (RecipeError, RuntimeError, FloatingPointError, ValueError, OSError) as error:
        _fail(error)
    if not done:
        console.print("nothing to do: every stage is finished, for this recipe and these files")
    typer.echo(pipeline.report(out))


@app.command()
def validate(recipe: RecipePath, set_: Overrides = None) -> None:
    """Check a recipe and the data it names, without running it."""
    from climapred import pipeline
    from climapred.recipe import load_recipe

    try:
        pipeline.check(load_recipe(recipe, set_ or ()), recipe)
    except (RecipeError, OSError) as error:
        _fail(error)
    typer.echo(f"{recipe}: valid")


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


def _fail(error: Exception) -> NoReturn:
    Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
    raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
