"""The stages of a run that tell how sure its links are: further trainings, and the p-values that they give."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr

from climapred.models import has_option
from climapred.recipe import CorrelationsRecipe, ModelRecipe, Recipe
from climapred.results.surrogates import block_shuffled, phase_randomised

if TYPE_CHECKING:
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
    from climapred.results.pearson import anomalies

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


def write_links(run: Run, model: ModelRecipe) -> None:
    """Write the adjacency of a model with the p-values that its further trainings give: the larger one, where there are two.

    A link is then both in the data, as far as surrogates tell, and found again from other seeds.
    """
    from climapred.learning.artefact import load_model
    from climapred.results.adjacency import distance_rows
    from climapred.results.cf import adjacency_to_cf, write_netcdf
    from climapred.results.link_significance import null_p_values, seed_p_values

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
    path = run.out / "correlations" / f"{model.name}.nc"
    path.parent.mkdir(exist_ok=True)
    write_netcdf(dataset.assign({name: test.astype(np.float32).variable for name, test in tests.items()}), path)


def _above_floor(model: TrainedModel) -> xr.DataArray:
    weights = model.adjacency()
    assert weights is not None
    return xr.DataArray(weights - weights.min(axis=1, keepdims=True), dims=("node_target", "node_source"))
