"""climapred: gridded weather data in, forecasts and maps of what was learned out.

The names below are loaded when they are first used: ``import climapred`` is quick and brings neither torch nor matplotlib.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any


class _PyprojFirst:
    """Loads pyproj when eccodes is about to be: both wheels carry a PROJ of their own.

    pyproj 3.7 (cartopy's) loaded after eccodes 2.50 crashes the interpreter. The other order works; whoever has loaded eccodes
    already gets away as long as no map is drawn.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "eccodes":
            sys.meta_path.remove(self)
            importlib.import_module("pyproj")


if "eccodes" not in sys.modules:
    sys.meta_path.insert(0, _PyprojFirst())

_HOMES = {
    "Grid": "grid",
    "Perturbation": "learning.ensemble",
    "Training": "learning.training",
    "Window": "learning.windows",
    "WindowDataset": "learning.dataset",
    "WindowLoader": "learning.loader",
    "adjacency_dataset": "results.links.adjacency",
    "adjacency_to_cf": "results.cf",
    "anomalies": "results.links.pearson",
    "animate": "results.animation",
    "block_shuffled": "results.links.surrogates",
    "check_cf": "results.cf",
    "chronological_split": "learning.windows",
    "climatology_forecast": "results.baselines",
    "combine_members": "learning.ensemble",
    "compare": "results.significance",
    "comparison_table": "results.significance",
    "correlation_map": "results.links.correlations",
    "damped_persistence": "results.baselines",
    "eof_regression": "results.baselines",
    "eof_regression_forecast": "results.baselines",
    "error_series": "results.significance",
    "evaluate": "results.evaluate",
    "external_forecast": "results.external",
    "fit": "learning.training",
    "forecast": "learning.forecast",
    "from_cf": "results.cf",
    "from_weatherbench": "results.cf",
    "harmonise": "data.harmonise",
    "hub_map": "results.links.correlations",
    "influence": "learning.influence",
    "inspect_source": "data.inspect",
    "load_model": "learning.artefact",
    "null_p_values": "results.links.significance",
    "open_fields": "learning.new_data",
    "open_source": "data.sources",
    "open_statistics": "data.store",
    "open_store": "data.store",
    "paper_table": "results.evaluate",
    "persistence": "results.baselines",
    "phase_randomised": "results.links.surrogates",
    "plot_correlations": "results.links.maps",
    "plot_errors": "results.maps",
    "plot_distances": "results.links.maps",
    "plot_field": "results.maps",
    "plot_forecast": "results.maps",
    "plot_hubs": "results.links.maps",
    "plot_links": "results.links.maps",
    "plot_scores": "results.maps",
    "point_correlation": "results.links.pearson",
    "refuse_leaks": "learning.windows",
    "region_scores": "results.evaluate",
    "regrid": "data.regrid",
    "same_hour": "results.baselines",
    "save_model": "learning.artefact",
    "season_scores": "results.evaluate",
    "seed_p_values": "results.links.significance",
    "significant": "results.links.significance",
    "start_times": "learning.new_data",
    "strongest_links": "results.links.correlations",
    "to_cf": "results.cf",
    "to_weatherbench": "results.cf",
    "top_links": "results.links.adjacency",
    "training_statistics": "data.statistics",
    "weight_by_distance": "results.links.correlations",
    "write_forecasts": "results.cf_stream",
    "write_netcdf": "results.cf",
    "write_report": "results.report",
    "write_zarr": "results.cf",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'climapred' has no attribute {name!r}")
    return getattr(importlib.import_module(f"climapred.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
