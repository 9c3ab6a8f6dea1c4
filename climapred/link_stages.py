"""What a run does about learned links: their files and maps, and the further trainings that tell how sure they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from climapred.data.store import open_statistics, open_store
from climapred.grid import Grid
from climapred.models import has_option
from climapred.recipe import CorrelationsRecipe, ModelRecipe, Recipe
from climapred.results.links.surrogates import block_shuffled, phase_randomised

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from climapred.learning.artefact import TrainedModel
    from climapred.stages import Run

Kind = Literal["seed", "surrogate"]


@dataclass(frozen=True)
class Variation:
    """Another training of a model: from another seed, or from another seed and on surrogate data; numbers count from 1."""

    kind: Kind
    number: int

    @property
    def folder(self) -> str:
        """Its folder in that of the model."""
        return f"{self.kind}_{self.number}"


def variations(recipe: Recipe, model: ModelRecipe) -> list[Variation]:
    """Return the further trainings of a model that a recipe asks for; none for a model without an adjacency."""
    counts: dict[Kind, int] = {"seed": recipe.correlations.seeds, "surrogate": recipe.correlations.surrogates}
    if not learns_links(model):
        return []
    return [Variation(kind, number) for kind, count in counts.items() for number in range(1, count + 1)]


def learns_links(model: ModelRecipe) -> bool:
    """Return whether a model will have a learned adjacency: one with vectors of its nodes, that does not leave them out."""
    return has_option(model.architecture, "embedding") and bool(model.options.get("long_range", True))


def varied(run: Run, seen: xr.Dataset, statistics: xr.Dataset, variation: Variation | None) -> xr.Dataset:
    """Return the fields that a training sees: those of the run, or the climatology with surrogates of their anomalies."""
    from climapred.results.links.pearson import anomalies

    if variation is None or variation.kind == "seed":
        return seen
    keys, made = run.recipe.correlations, {}
    for name, field in seen.data_vars.items():
        loaded = field.load()
        anomaly = anomalies(loaded, statistics)
        made[name] = (loaded - anomaly + _surrogate(anomaly, keys, variation.number)).astype(np.float32)
    return seen.assign(made)


def _surrogate(anomaly: xr.DataArray, keys: CorrelationsRecipe, seed: int) -> xr.DataArray:
    if keys.surrogate == "phase":
        return phase_randomised(anomaly, seed=seed, length_km=keys.length_km)
    step = np.diff(anomaly["time"].values[:2])[0] / np.timedelta64(1, "h")
    return block_shuffled(anomaly, block=max(1, round(keys.block_hours / step)), seed=seed, common=False)


def write_adjacency(run: Run, model: TrainedModel, origin: str) -> None:
    """Write the learned adjacency of a model that has one: all of it, or the strongest links of each of many nodes."""
    from climapred.results.cf import adjacency_to_cf, write_netcdf
    from climapred.results.links.adjacency import DENSE_NODES, top_links

    path, grid = _path(run, model.name), model.node_grid
    if not model.has_adjacency:
        path.unlink(missing_ok=True)  # a model of this name may have had one before
        return
    path.parent.mkdir(exist_ok=True)
    weights = model.adjacency() if grid.size <= DENSE_NODES else top_links(model.adjacency_rows(), grid)
    assert weights is not None
    write_netcdf(adjacency_to_cf(weights, grid, source=origin), path)


def _path(run: Run, name: str) -> Path:
    return run.out / "correlations" / f"{name}.nc"


def write_links(run: Run, model: ModelRecipe) -> None:
    """Write the adjacency of a model with the p-values that its further trainings give: the larger one, where there are two.

    A link is then both in the data, as far as surrogates tell, and found again from other seeds.
    """
    from climapred.learning.artefact import load_model
    from climapred.results.cf import adjacency_to_cf, write_netcdf
    from climapred.results.links.adjacency import distance_rows
    from climapred.results.links.significance import null_p_values, seed_p_values

    folder, keys = run.out / "models" / model.name, run.recipe.correlations
    trained, found = load_model(folder), variations(run.recipe, model)
    own = _above_floor(trained)
    others = {
        kind: [_above_floor(load_model(folder / one.folder)) for one in found if one.kind == kind]
        for kind in ("seed", "surrogate")
    }
    tests = {}
    if others["seed"]:
        tests["p_value_seeds"] = seed_p_values(xr.concat([own, *others["seed"]], dim="member"))
    if others["surrogate"]:
        null, grid = xr.concat(others["surrogate"], dim="member"), trained.node_grid
        distance = xr.DataArray(distance_rows(grid, slice(None)), dims=own.dims)
        tests["p_value_surrogates"] = null_p_values(own, null, method=keys.method, distance=distance)
    names = ", ".join(test.attrs["long_name"] for test in tests.values())
    larger = np.max([test.values for test in tests.values()], axis=0)
    both = own.copy(data=larger).assign_attrs(
        units="1", long_name=f"the larger of: {names}" if len(tests) > 1 else names
    )
    weights = trained.adjacency()
    assert weights is not None
    origin = f"climapred {version('climapred')}: {trained.architecture} {trained.name!r} ({trained.identity()})"
    dataset = adjacency_to_cf(weights, trained.node_grid, source=origin)
    tests = {"p_value": both, **(tests if len(tests) > 1 else {})}
    path = _path(run, model.name)
    path.parent.mkdir(exist_ok=True)
    write_netcdf(dataset.assign({name: test.astype(np.float32).variable for name, test in tests.items()}), path)


def _above_floor(model: TrainedModel) -> xr.DataArray:
    weights = model.adjacency()
    assert weights is not None
    return xr.DataArray(weights - weights.min(axis=1, keepdims=True), dims=("node_target", "node_source"))


def correlation_maps(run: Run) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """Yield the names of figures and what draws them: what places listen to beside Pearson's correlation, hubs, distances.

    The places are those of the recipe; the middle of the grid where it names none.
    """
    from climapred.results.links.adjacency import grid_of
    from climapred.results.links.correlations import correlation_map
    from climapred.results.links.figures import far_enough, links_figure, map_significance, training_correlation
    from climapred.results.links.maps import plot_correlations

    fields, known = open_store(run.store)[run.recipe.source.variables[0]], open_statistics(run.store)
    grid = Grid.of(fields)
    middle = (float(np.median(grid.latitude)), float(np.median(grid.longitude)))
    for model in run.recipe.models:
        path = _path(run, model.name)
        if not path.exists():
            continue
        with xr.open_dataset(path) as stored:
            adjacency = stored.load()
        source = adjacency.attrs["source"]
        for latitude, longitude in run.recipe.maps.points or (middle,):
            weights = correlation_map(adjacency, latitude, longitude).assign_attrs(source=source)

            def draw(
                adjacency: xr.Dataset = adjacency,
                weights: xr.DataArray = weights,
                point: tuple[float, float] = (latitude, longitude),
            ) -> Figure:
                pearson = training_correlation(fields, known, grid_of(adjacency), point)
                marks = map_significance(adjacency, weights)
                return plot_correlations(weights, point=point, pearson=pearson, significant=marks)

            yield f"correlation_{model.name}_{latitude:g}N_{longitude:g}E", draw
        about: Any = {"source": source, "min_km": far_enough(grid_of(adjacency))}
        for show in ("arcs", "hubs", "distance"):
            yield f"links_{show}_{model.name}", partial(links_figure, show, adjacency, **about)
