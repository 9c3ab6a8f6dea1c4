"""What each unit of a run does: the only place where data, learning and results meet. ``pipeline`` decides when."""

from __future__ import annotations

import glob
import importlib.metadata
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from climapred import testing
from climapred.data.build import Source, Target, build_store, finish_parts, repair_store
from climapred.data.regrid import source_grid
from climapred.data.statistics import training_statistics
from climapred.data.store import open_statistics, open_store, write_statistics
from climapred.grid import Grid, cell_areas
from climapred.learning.order import Share
from climapred.learning.windows import Split, Window, chronological_split, refuse_leaks, time_step
from climapred.link_stages import Variation, correlation_maps, variations, varied, write_adjacency
from climapred.recipe import GridRecipe, ModelRecipe, Recipe, SampleRecipe
from climapred.reduced import ReducedGrid
from climapred.results.baselines import BASELINES, FURTHER_BASELINES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from climapred.learning.artefact import Scaling
    from climapred.learning.loader import WindowLoader
    from climapred.learning.training import Training

Times = npt.NDArray[np.datetime64]
Figures = Iterator[tuple[str, Callable[[], "Figure"]]]

_MODES = 60  # patterns of the regression in EOF space, where there are times enough to fit them


@dataclass(frozen=True)
class Run:
    """A checked recipe on its way through a folder."""

    recipe: Recipe
    out: Path
    scheduler: str | None = None
    console: Console = field(default_factory=lambda: Console(stderr=True))
    workers: int | None = None
    grown: bool = False

    @property
    def store(self) -> Path:
        """The tensors."""
        return self.out / "tensors.zarr"

    @property
    def window(self) -> Window:
        """Frames in and out."""
        return window_of(self.recipe)

    def split(self, times: Times) -> Split:
        """Training, validation and test periods."""
        return split_of(self.recipe, times)

    def source(self) -> Source:
        """The files of this run; those of the embedded sample lie in its folder."""
        if self.recipe.source.sample is not None:
            return Source((f"{glob.escape(str(self.out))}/sample/*",), self.recipe.source.variables)
        return _source(self.recipe)

    def forecast_path(self, name: str) -> Path:
        """The NetCDF file of a model or baseline."""
        return self.out / "forecasts" / f"{name}.nc"

    def forecast_times(self) -> tuple[Times, npt.NDArray[np.timedelta64]]:
        """Return the initial times of the test forecasts and their leads."""
        times = open_store(self.store)["time"].values
        return init_times(self.recipe, times), self.window.leads * time_step(times)

    @contextmanager
    def progress(self, text: str) -> Iterator[Callable[[int, int], None]]:
        """Show a progress bar; yields a function of (done, in all)."""
        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task(text, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)


def target_grid(recipe: GridRecipe, own: Callable[[], Grid | ReducedGrid]) -> Grid:
    """Return the grid that a recipe describes; ``own`` finds that of the source, for a region of its points."""
    if recipe.spacing is not None:
        return Grid.regular(recipe.spacing, region=recipe.region)
    grid = own() if recipe.gaussian is None else Grid.gaussian(recipe.gaussian)
    if isinstance(grid, ReducedGrid):
        raise ValueError(f"the source lies on {grid}, without rows and columns; give `spacing` or `gaussian` too")
    return grid if recipe.region is None else grid.crop(recipe.region)


def window_of(recipe: Recipe) -> Window:
    """Return the frames in and out."""
    keys = recipe.window
    return Window(keys.history, keys.horizon, spacing=keys.spacing, lead_spacing=keys.lead_spacing)


def split_of(recipe: Recipe, times: Times) -> Split:
    """Return the training, validation and test periods."""
    embargo = np.timedelta64(round(recipe.split.embargo_hours * 3600), "s")
    return chronological_split(times, recipe.split.validation, recipe.split.test, embargo=embargo)


def init_times(recipe: Recipe, times: Times) -> Times:
    """Return the last seen frame of every test window."""
    window = window_of(recipe)
    starts = split_of(recipe, times).starts("test", times, window, stride=recipe.forecast.stride)
    return times[starts + window.last_seen]


@cache
def sample(recipe: SampleRecipe) -> testing.Sample:
    """Return the embedded sample that a recipe asks for, in memory."""
    start = np.datetime64(recipe.start, "D")
    stop = (start.astype("datetime64[Y]") + recipe.years).astype("datetime64[D]")
    periods = int((stop - start.astype("datetime64[Y]")) / np.timedelta64(6, "h"))
    return testing.synthetic_temperature(start=recipe.start, periods=periods, step_hours=6, seed=recipe.seed)


def source_fields(recipe: Recipe) -> xr.Dataset:
    """Return the harmonised fields of a recipe's source, lazily, wherever they are."""
    if recipe.source.sample is not None:
        return sample(recipe.source.sample).fields
    return _source(recipe).open()


def _source(recipe: Recipe) -> Source:
    keys = recipe.source
    select = keys.select.model_dump(exclude_none=True)
    return Source(keys.expanded_paths(), keys.variables, tuple(select.items()), keys.damaged, keys.duplicates)


def write_sample(run: Run) -> None:
    """Write the embedded sample as files in the conventions of their makers."""
    recipe = run.recipe.source.sample
    assert recipe is not None
    folder = run.out / "sample"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    made = sample(recipe)
    if recipe.format == "ncep":
        testing.write_ncep(made.fields, folder)
    else:
        testing.write_era5_grib(made.fields, folder / "era5-2mt.grib")


def build(run: Run, part: tuple[int, int] | None = None) -> None:
    """Regrid the source into the store, or write one part of it."""
    with run.progress("build: shards") as progress:
        build_store(
            run.source(),
            run.store,
            **_target(run.recipe),
            window=run.window.extent,
            verify=run.recipe.store.verify,
            grown=run.grown,
            part=part,
            scheduler=run.scheduler,
            workers=run.workers,
            progress=progress,
            announce=lambda text: run.console.print(f"build: {text}"),
        )


def finish_build(run: Run) -> None:
    """Finish the store whose parts are written."""
    finish_parts(run.source(), run.store, **_target(run.recipe))


def repair(run: Run) -> None:
    """Look at every shard of the store again; write those that are damaged or missing anew."""
    damaged = repair_store(run.source(), run.store, **_target(run.recipe))
    for name, start, stop in damaged:
        run.console.print(f"build: {name}, times {start} to {stop - 1}: damaged, written anew")
    if not damaged:
        run.console.print("build: every shard is intact")


def _target(recipe: Recipe) -> Target:
    grid, keep_bits = recipe.grid, recipe.store.keep_bits
    if grid is None:
        return Target(keep_bits=keep_bits)
    own = partial(_own_grid, recipe)
    return Target(grid=target_grid(grid, own), method=grid.method, max_missing=grid.max_missing, keep_bits=keep_bits)


def _own_grid(recipe: Recipe) -> Grid | ReducedGrid:
    return source_grid(source_fields(recipe))


def statistics(run: Run) -> None:
    """Fit the statistics of the training times and put them into the store."""
    fields, orders = open_store(run.store), run.recipe.climatology
    start, stop = run.split(fields["time"].values).train
    with run.progress("build: statistics") as progress:
        found = training_statistics(fields.isel(time=slice(start, stop)), annual=orders.annual, daily=orders.daily)
        write_statistics(run.store, found)
        progress(1, 1)


def train(run: Run, recipe: ModelRecipe, fingerprint: str, variation: Variation | None = None) -> None:
    """Train one model, or a variation of it, and save it, in as many processes as the recipe says."""
    from climapred.learning.launch import together

    training, alone = run.recipe.training, Share.current().world == 1
    if alone and (training.processes > 1 or training.strategy == "fsdp"):
        task = (run.recipe, run.out, recipe, fingerprint, variation, run.console.quiet)
        together(_train_in_process, task, training.processes)
    else:
        _train(run, recipe, fingerprint, variation)


def _train_in_process(
    recipe: Recipe, out: Path, model: ModelRecipe, fingerprint: str, variation: Variation | None, quiet: bool
) -> None:
    _train(Run(recipe, out, console=Console(stderr=True, quiet=quiet)), model, fingerprint, variation)


def _train(run: Run, recipe: ModelRecipe, fingerprint: str, variation: Variation | None) -> None:
    """Train one model, alone or as one of several processes, the first of which saves it."""
    from climapred.learning.artefact import Scaling, TrainedModel, save_model, scaled_network
    from climapred.learning.training import Training, fit

    fields, known = open_store(run.store), open_statistics(run.store)
    times, variables, first = fields["time"].values, run.recipe.source.variables, Share.current().rank == 0
    training = Training(**run.recipe.training.model_dump())
    folder, grid = run.out / "models" / recipe.name, Grid.of(fields)
    if variation is not None:
        folder, training = folder / variation.folder, replace(training, seed=training.seed + variation.number)
    scaling = Scaling(recipe.inputs, recipe.target, recipe.forcings)
    module, orders = scaled_network(
        recipe.architecture,
        recipe.options,
        scaling=scaling,
        statistics=known,
        variables=variables,
        window=window_of(run.recipe),
        seed=training.seed,
    )
    if first:
        what = recipe.name if variation is None else f"{recipe.name} {variation.kind} {variation.number}"
        run.console.print(f"train: {what}, {sum(p.numel() for p in module.network.parameters()):,} parameters")
    outcome = fit(
        module,
        *_loaders(
            run, fields[list(variables)], training, orders, scaling, lambda seen: varied(run, seen, known, variation)
        ),
        history=run.window.history,
        training=training,
        folder=folder,
        areas=cell_areas(grid),
        identity=fingerprint,
        show_progress=first and not run.console.quiet,
    )
    made = TrainedModel(
        name=recipe.name,
        architecture=recipe.architecture,
        options=recipe.options,
        scaling=scaling,
        orders=orders,
        variables=variables,
        grid=grid,
        window=run.window,
        step=time_step(times),
        module=module,
        training={
            **outcome,
            "data": known.attrs,
            "source": fields.attrs.get("source", ""),
            "fingerprint": fingerprint,
        },
    )
    if first:
        save_model(made, folder)


def _loaders(
    run: Run,
    fields: xr.Dataset,
    training: Training,
    orders: tuple[int, int] | None,
    scaling: Scaling,
    prepare: Callable[[xr.Dataset], xr.Dataset],
) -> tuple[WindowLoader, WindowLoader]:
    """Return the training and validation batches; the test period is out of their reach."""
    from climapred.learning.dataset import WindowDataset
    from climapred.learning.loader import WindowLoader

    times, window, keys = fields["time"].values, run.window, run.recipe.loader
    split = run.split(times)
    periods = ("train", "validation", "test")
    starts = {name: split.starts(name, times, window, stride=run.recipe.window.stride) for name in periods}
    refuse_leaks(times, window, starts)
    seen = prepare(fields.isel(time=slice(0, split.validation[1])))
    dataset = WindowDataset(seen, window, orders, forcings=scaling.forcings, missing=scaling.missing)
    options: Any = {"tier": keys.tier, "memory_limit": keys.memory_limit_mb * 2**20, "workers": keys.workers}
    return (
        WindowLoader(dataset, starts["train"], training.batch_size, seed=training.seed, **options),
        WindowLoader(dataset, starts["validation"], 4 * training.batch_size, **options),
    )


def forecast_model(run: Run, name: str) -> None:
    """Forecast from every test window, and write the learned adjacency of models that have one."""
    from climapred.learning.artefact import load_model
    from climapred.learning.forecast import rollout
    from climapred.results.cf import to_cf
    from climapred.results.cf_stream import write_forecasts

    model, fields = load_model(run.out / "models" / name), open_store(run.store)
    origin = f"{version()}: {model.architecture} {name!r} ({model.identity()})"
    run.forecast_path(name).parent.mkdir(exist_ok=True)
    with run.progress(f"forecast: {name}") as progress:
        write_forecasts(
            lambda missing: rollout(model, fields, missing, precision=run.recipe.training.precision),
            run.forecast_times()[0],
            run.forecast_path(name),
            describe=partial(to_cf, source=origin, title=_title(run, name)),
            identity=f"{origin} {_title(run, name)} {run.window} {run.recipe.training.precision}",
            overwrite=True,
            progress=progress,
        )
    if not any(model.name == one.name and variations(run.recipe, one) for one in run.recipe.models):
        write_adjacency(run, model, origin)  # else it is written with its p-values


def forecast_baseline(run: Run, name: str) -> None:
    """Write the forecasts of a baseline."""
    _write_forecast(run, name, baseline(run, name), f"{version()}: {name}")


def _write_forecast(run: Run, name: str, forecast: xr.Dataset, origin: str) -> None:
    from climapred.results.cf import to_cf, write_netcdf

    run.forecast_path(name).parent.mkdir(exist_ok=True)
    write_netcdf(to_cf(forecast, source=origin, title=_title(run, name)), run.forecast_path(name))


def _title(run: Run, name: str) -> str:
    return f"{run.recipe.title or run.recipe.name}: forecasts of {name}"


def baseline(run: Run, name: str) -> xr.Dataset:
    """Return the forecasts of a baseline for the starts of the test."""
    from climapred.results import baselines

    fields, known = open_store(run.store)[list(run.recipe.source.variables)], open_statistics(run.store)
    starts, leads = run.forecast_times()
    if name == "persistence":
        return baselines.persistence(fields, starts, leads)
    if name == "climatology":
        return baselines.climatology_forecast(known, starts, leads)
    if name == "same_hour":
        return baselines.same_hour(fields, starts, leads)
    start, stop = run.split(fields["time"].values).train
    training = fields.isel(time=slice(start, stop))
    if name == "eof_regression":
        cells = fields.sizes["latitude"] * fields.sizes["longitude"]
        fitted = baselines.eof_regression(training, known, leads, modes=min(_MODES, cells, (stop - start) // 4))
        return baselines.eof_regression_forecast(fields, known, fitted, starts, leads)
    correlation = baselines.lag_correlation(training, known, leads)
    return baselines.damped_persistence(fields, known, correlation, starts, leads)


def open_forecast(path: Path) -> xr.Dataset:
    """Return a forecast file in the form it has in memory."""
    from climapred.results.cf import from_cf

    with xr.open_dataset(path) as stored:
        return from_cf(stored).load()


def maps(run: Run) -> None:
    """Draw forecasts, errors, scores and learned correlations."""
    from climapred.results.maps import save_figure

    folder = run.out / "maps"
    shutil.rmtree(folder, ignore_errors=True)
    unfinished = run.out / "maps.partial"
    shutil.rmtree(unfinished, ignore_errors=True)
    with run.progress("maps: figures") as progress:
        variables = run.recipe.source.variables
        drawn = [
            figure for variable in variables for draw in (_forecast_maps, _score_maps) for figure in draw(run, variable)
        ]
        figures = [*drawn, *correlation_maps(run)]
        for count, (name, draw) in enumerate(figures, start=1):
            unfinished.mkdir(exist_ok=True)
            save_figure(draw(), unfinished / f"{name}.png")
            progress(count, len(figures))
    unfinished.rename(folder)


def report(run: Run) -> None:
    """Write the page that shows all of the run."""
    from climapred.results.report import write_report

    with run.progress("maps: report") as progress:
        write_report(run.out)
        progress(1, 1)


def _forecast_maps(run: Run, variable: str) -> Figures:
    """Truth, forecast and error of each model at the recipe's start times."""
    from climapred.results.maps import plot_forecast

    available, _ = run.forecast_times()
    wanted = np.array(run.recipe.maps.start_times, dtype="datetime64[ns]")
    fields = open_store(run.store)[variable]
    for model in run.recipe.models:
        opened = open_forecast(run.forecast_path(model.name))
        forecasts = opened[variable].assign_attrs(source=opened.attrs.get("source", model.name))
        for start in wanted if wanted.size else available[len(available) // 2 :][:1]:
            forecast = forecasts.sel(init_time=start)
            truth = fields.sel(time=forecast["valid_time"]).drop_vars("time").load()
            truth.attrs["source"] = run.recipe.title or run.recipe.name

            def draw(model: str = model.name, truth: xr.DataArray = truth, forecast: xr.DataArray = forecast) -> Figure:
                return plot_forecast(truth, forecast, model=model, leads=run.recipe.maps.leads_hours)

            stamp = np.datetime_as_string(start, unit="h").replace("-", "")
            yield f"forecast_{model.name}_{stamp}{run.recipe.ending(variable)}", draw


def _score_maps(run: Run, variable: str) -> Figures:
    """Scores against lead time, and of each cell the mean absolute error, and the skill where that is more than luck."""
    from climapred.results.maps import plot_errors, plot_scores

    ending = run.recipe.ending(variable)
    with xr.open_dataset(run.out / f"scores{ending}.nc") as stored:
        found = stored.load()
    title = run.recipe.title or run.recipe.name
    found.attrs["source"] = f"{title}: {variable}" if len(run.recipe.source.variables) > 1 else title
    errors = found["mae_map"].mean("lead_time", keep_attrs=True).assign_attrs(source=found.attrs["source"])
    made = [name for name in found["model"].values if name not in {*BASELINES, *FURTHER_BASELINES}]
    ends: dict[str, Any] = {
        end: xr.Dataset({name: found[f"{name}_{end}"].sel(model=made) for name in ("mae_area", "rmse_area")})
        for end in ("lower", "upper")
        if f"mae_area_{end}" in found
    }
    metrics, interval = ("mae_area", "rmse_area", "bias_area"), "95 % interval, block bootstrap over start times"
    yield f"scores{ending}", lambda: plot_scores(found, metrics=metrics, interval=interval, **ends)
    yield f"mae{ending}", lambda: plot_errors(errors)
    if not (run.out / f"skill{ending}.nc").exists():  # of too few start times
        return
    with xr.open_dataset(run.out / f"skill{ending}.nc") as stored:
        skill = stored.load()
    skill = skill.sel(model=made)
    shown, hatched = skill["skill"].assign_attrs(source=found.attrs["source"]), skill["not_significant"] == 1
    score = f"Skill against {skill.attrs['reference']}"
    yield f"skill{ending}", lambda: plot_errors(shown, score=score, centre=0.0, cmap="BrBG", hatched=hatched)


def version() -> str:
    """Return the software and its version, as files tell it."""
    return f"climapred {importlib.metadata.version('climapred')}"
