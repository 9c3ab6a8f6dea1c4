"""Scores of a run for its page: tables over all, by season and by region, what is more than luck, and maps of cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from climapred.grid import Grid
from climapred.results.captions import units_of
from climapred.results.page.numbers import Section, encoded, hours_of, numbers, packed, points, spread, stride_for

MOST_LEADS = 24

_BETTER = {"bias": "zero", "skill": "high", "acc": "high", "ssim": "high", "psnr": "high", "spread": "one"}
_SEASONS = {
    "DJF": "December to February",
    "MAM": "March to May",
    "JJA": "June to August",
    "SON": "September to November",
}
_KEYS = ("model", "region", "season", "lead_hours")


def score_section(folder: Path, ending: str = "") -> Section | None:
    """Return every number of the tables by metric, model and lead; scores.nc tells what the metrics are.

    Args:
        folder: of the run.
        ending: what the names of the files of a variable end in, as ``_msl``.
    """
    whole = _table(folder / f"scores{ending}.csv")
    if whole is None:
        return None
    models, leads = list(whole["model"].unique()), sorted(whole["lead_hours"].unique().tolist())
    described, bands = _described(folder / f"scores{ending}.nc", models)
    names = [name for name in whole.columns.difference(list(_KEYS), sort=False) if _has_numbers(whole[name])]
    metrics = [
        {
            "name": name,
            "label": f"{name}: {described[name]['long_name']}" if "long_name" in described.get(name, {}) else name,
            "units": described.get(name, {}).get("units", "1"),
            "better": _BETTER.get(name.split("_")[0], "low"),
        }
        for name in names
    ]
    parts = [("whole region, all test times", whole), *_parts(folder, ending)]
    over = [{"label": label, "values": _values(part, names, models, leads)} for label, part in parts]
    over[0]["bands"] = {name: band for name, band in bands.items() if name in names}
    section = {"models": models, "leads": leads, "metrics": metrics, "over": over}
    return section | {"compared": _compared(folder, ending, leads)} if metrics else None


def _table(path: Path) -> pd.DataFrame | None:
    if not path.exists():
        return None
    texts = dict.fromkeys(("model", "region", "season"), str)
    return pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])


def _has_numbers(column: pd.Series) -> bool:
    return bool(pd.api.types.is_numeric_dtype(column) and column.notna().any())


def _described(path: Path, models: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the attributes of the scores in scores.nc, and the intervals of those that have any: [lower, upper]."""
    if not path.exists():
        return {}, {}
    with xr.open_dataset(path) as stored:
        described = {str(name): dict(variable.attrs) for name, variable in stored.data_vars.items()}
        bands = {}
        for name in described:
            if {f"{name}_lower", f"{name}_upper"} <= set(described):
                ends = [stored[f"{name}_{end}"].sel(model=models).values for end in ("lower", "upper")]
                bands[name] = [[numbers(row) for row in end] for end in ends]
    return described, bands


def _parts(folder: Path, ending: str) -> list[tuple[str, pd.DataFrame]]:
    """Return seasons and regions by their names, as far as forecasts are for them."""
    parts = []
    seasons, regions = (_table(folder / f"scores_{name}{ending}.csv") for name in ("seasons", "regions"))
    if seasons is not None:
        parts += [(_season(str(name)), part) for name, part in seasons.groupby("season", sort=False)]
    if regions is not None:
        for (region, season), part in regions.groupby(["region", "season"], sort=False):
            parts.append((f"{region}, {'all test times' if season == 'all' else _season(str(season))}", part))
    return [(label, part) for label, part in parts if part["mae"].notna().any()]


def _season(name: str) -> str:
    return f"{_SEASONS[name]} ({name})" if name in _SEASONS else name


def _values(frame: pd.DataFrame, names: list[str], models: list[str], leads: list[float]) -> dict[str, Any]:
    """Return rows of models, columns of leads, of each metric that the table has."""
    there = [name for name in names if name in frame and _has_numbers(frame[name])]
    tables = {name: frame.pivot(index="model", columns="lead_hours", values=name) for name in there}
    return {
        name: [numbers(row) for row in table.reindex(index=models, columns=leads).to_numpy(np.float64)]
        for name, table in tables.items()
    }


def _compared(folder: Path, ending: str, leads: list[float]) -> Section | None:
    """Return how each model differs from the best one, and what cannot be told apart, on average and at each lead."""
    mean, by_lead = (_table(folder / f"comparison{name}{ending}.csv") for name in ("_mean", ""))
    if mean is None or by_lead is None:
        return None
    notes = by_lead.pivot(index="model", columns="lead_hours", values="note").reindex(columns=leads)
    columns = ["rmse", "difference", "lower", "upper", "p_value"]
    rows = [
        {
            "name": row["model"],
            "numbers": numbers(row[columns].to_numpy(np.float64)),
            "note": row["note"],
            "leads": notes.loc[row["model"]].tolist(),
        }
        for _, row in mean.sort_values("rmse").iterrows()
    ]
    return {"measure": "rmse_area", "reference": mean["model"][mean["note"] == "reference"].item(), "rows": rows}


def error_section(folder: Path, ending: str = "", *, room: float) -> tuple[Section, Grid] | None:
    """Return the scores of every cell, each kind that scores.nc has, the skill where that is known, and their grid.

    Args:
        folder, ending: as for ``score_section``.
        room: bytes for them, before they are deflated.
    """
    if not (folder / f"scores{ending}.nc").exists():
        return None
    dims = ("model", "lead_time", "latitude", "longitude")
    with xr.open_dataset(folder / f"scores{ending}.nc") as scores:
        names = [name for name in map(str, scores.data_vars) if name.endswith("_map") and scores[name].dims == dims]
        if not names:
            return None
        chosen = spread(scores.sizes["lead_time"], MOST_LEADS)
        models, grid = [str(name) for name in scores["model"].values], Grid.of(scores)
        stride = stride_for(grid, room / (2 * len(names) * len(models) * chosen.size))
        fields = scores[names].isel(lead_time=chosen)
        thin = {"latitude": slice(None, None, stride), "longitude": slice(None, None, stride)}
        fields = fields.isel(thin).load()
    kinds = [
        {
            "name": name.removesuffix("_map"),
            "label": str(fields[name].attrs.get("long_name", name)),
            "units": units_of(fields[name]),
            "fields": packed(fields[name].values),
        }
        for name in names
    ]
    kinds += _skill(folder / f"skill{ending}.nc", thin)
    return {
        "grid": points(grid, stride),
        "models": models,
        "leads": hours_of(fields["lead_time"]),
        "kinds": kinds,
    }, grid


def _skill(path: Path, thin: dict[str, slice]) -> list[Section]:
    """Return the skill of every cell as one more kind: of models of its own, without leads, and where it may be luck."""
    if not path.exists():
        return []
    with xr.open_dataset(path) as stored:
        found = stored.isel(thin).load()
    reference = found.attrs["reference"]
    kind = {
        "name": f"skill against {reference}",
        "label": f"skill against {reference}, mean of all leads",
        "units": "1",
        "fields": packed(found["skill"].values),
        "models": [str(name) for name in found["model"].values],
        "unsure": encoded(found["not_significant"].values.astype(np.uint8)),
    }
    return [kind]
