"""Scores from sums that add: errors are summed over initial times cell by cell, and divided last.

Two sums over different initial times become one by plain addition, so that a year in one piece and a year in
fifty chunks, or on fifty machines, give the same scores:

    sums = error_sums(winter["t2m"], truth["t2m"]) + error_sums(summer["t2m"], truth["t2m"])
    table = score_table(scores({"convlstm": sums}))

The same sums give the scores of every cell, of regions (``region_scores``) and, where they were kept apart, of seasons
(``season_scores``).

NaN stays loud: a missing value in a forecast or in the truth makes the scores of its cell, and the means,
NaN. Where ``missing="mask"`` is asked for, it counts neither in the errors nor in their number.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from typing import Any, Literal, get_args

import dask
import numpy as np
import pandas as pd
import xarray as xr

from climapred.grid import Grid, Region, cell_areas
from climapred.results.baselines import BASELINES, FURTHER_BASELINES
from climapred.results.metrics import PAPER_RANGES, WINDOW
from climapred.results.sums import CELLS, IMAGES, Missing, check_axes, span
from climapred.results.sums import error_sums as error_sums  # callers find it here too

Metrics = Literal["honest", "paper"]

_MEANS = ("mae", "rmse", "bias", "mae_area", "rmse_area", "bias_area")
_FURTHER_MEANS = (
    *("acc", "acc_area", "crps", "crps_area", "crps_fair", "crps_fair_area"),
    *("spread_skill", "spread_skill_area", "ssim", "psnr"),
)
_SKILLS = tuple(f"skill_{reference}" for reference in BASELINES)
_IMAGE_NAMES = {
    "ssim": f"structural similarity, uniform window of {WINDOW} x {WINDOW} points, mean over fields",
    "psnr": "peak signal-to-noise ratio, plain mean over cells, mean over fields",
}
_ROUNDING = 1e-9  # share of the truth's anomaly variance below which a forecast's own is rounding of float32


def evaluate(
    forecasts: Mapping[str, xr.Dataset],
    truth: xr.Dataset,
    variable: str | None = None,
    *,
    missing: Missing = "refuse",
    statistics: xr.Dataset | None = None,
    data_range: float | Mapping[str, float] | None = None,
    metrics: Metrics = "honest",
) -> xr.Dataset:
    """Return the ``scores`` of forecasts that were made for the same times on the same grid.

    Args:
        forecasts: one forecast per model name, dims (init_time, lead_time, latitude, longitude) and, of an ensemble,
            realization; a baseline of ``baselines.BASELINES`` or ``FURTHER_BASELINES`` becomes a reference for skill.
        truth: dims (time, latitude, longitude); holds every valid time.
        variable: what to score; None where the forecasts hold a single variable.
        missing: as in ``error_sums``. With "mask" each forecast is scored over what it has itself: skill
            compares like with like where the forecasts share their gaps, as those of the truth.
        statistics, data_range: as in ``error_sums``: for ACC, for SSIM and PSNR.
        metrics: "paper" returns ``mae``, ``rmse``, ``ssim`` and ``psnr`` alone, the last two with the data ranges of
            the LS-NTP paper; ``paper_table`` makes a row of its Table 3 of them.

    Raises:
        ValueError: if the forecasts differ in times, leads or grid, if a variable, its units or a valid time do not
            fit the truth, or if the truth has NaN and no mask was asked for.
    """
    if metrics not in get_args(Metrics):
        raise ValueError(f"metrics must be one of {', '.join(get_args(Metrics))}, got {metrics!r}")
    if metrics == "paper" and data_range is not None:
        raise ValueError(f'metrics="paper" has data ranges of its own, {PAPER_RANGES}; leave out {data_range=}')
    for of_model in forecasts.values():
        check_axes(of_model, truth)
    _check_comparable(forecasts)
    if variable is None:
        names = list(next(iter(forecasts.values())).data_vars)
        if len(names) != 1:
            raise ValueError(f"forecasts hold the variables {names}; pass variable= to choose one")
        variable = str(names[0])
    for label, dataset in {**forecasts, "truth": truth}.items():
        if variable not in dataset.data_vars:
            raise ValueError(f"{label!r} has no variable {variable!r}, it holds {list(dataset.data_vars)}")
    observed, ranges = truth[variable], PAPER_RANGES if metrics == "paper" else data_range
    if missing == "refuse":
        check_truth(observed, next(iter(forecasts.values()))["valid_time"])
    found = scores(
        {
            model: error_sums(of[variable], observed, missing=missing, statistics=statistics, data_range=ranges)
            for model, of in forecasts.items()
        }
    )
    return found[["mae", "rmse", "ssim", "psnr"]] if metrics == "paper" else found


def check_truth(truth: xr.DataArray, valid_times: xr.DataArray) -> None:
    """Check that the truth has no NaN at the valid times of a forecast; reads them all.

    Raises:
        ValueError: if it has; the message names the first such time.
    """
    times = truth.indexes["time"].intersection(pd.DatetimeIndex(np.unique(valid_times.values)))
    gaps = truth.sel(time=times).isnull().mean(CELLS).compute()
    if bool((gaps > 0).any()):
        first = int(np.argmax(gaps.values > 0))
        raise ValueError(
            f"truth {truth.name!r} has NaN at {int((gaps > 0).sum())} of {times.size} valid times, first in "
            f"{float(gaps[first]):.1%} of the cells at {times[first]}; fill them, choose a region without them, or leave "
            'them out of the scores with missing="mask"'
        )


def _check_comparable(forecasts: Mapping[str, xr.Dataset]) -> None:
    if not forecasts:
        raise ValueError("forecasts must hold at least one model, got none")
    first, *others = forecasts
    reference = forecasts[first]
    for model in others:
        for name in ("init_time", "lead_time"):
            wanted, found = reference.indexes[name], forecasts[model].indexes[name]
            if not wanted.equals(found):
                raise ValueError(
                    f"model {model!r} has other {name}s than {first!r}: {span(found)} "
                    f"against {span(wanted)}; forecast the same windows, or select the common ones"
                )
        if Grid.of(forecasts[model]) != Grid.of(reference):
            raise ValueError(
                f"model {model!r} is on another grid than {first!r}: {Grid.of(forecasts[model])} against "
                f"{Grid.of(reference)}; regrid() one of them"
            )


def scores(sums: Mapping[str, xr.Dataset], *, references: Collection[str] | None = None) -> xr.Dataset:
    """Return the scores of each model from its ``error_sums``.

    Args:
        sums: of each model; those of seasons are added up.
        references: models to compare the others with; None for every known baseline among them.

    Returns:
        Dims (model, lead_time): ``mae``, ``rmse``, ``bias`` (plain means over samples and cells) and ``mae_area``,
        ``rmse_area``, ``bias_area`` (a sample weighs as the area of its cell). A root is taken last: rmse is the
        root of the mean. ``skill_persistence``, ``skill_climatology`` and so on, each where that reference is among
        the models, are 1 - MSE / MSE of the reference, weighted by area (the MSESS of the WMO Manual on the GDPFS).
        Dims (model, lead_time, latitude, longitude): ``mae_map``, ``rmse_map``, ``bias_map``, NaN in cells without a
        sample. Where the sums have what they need, likewise plain, by area and as maps

        - ``acc``: sum f a / sqrt(sum f^2 sum a^2) over samples and cells, f and a the anomalies of forecast and truth
          from the training climatology, means not removed; NaN for a forecast without anomalies (climatology);
        - ``crps``, ``crps_fair``: of a single forecast the former is its MAE, and the latter does not exist;
        - ``spread_skill``: root of mean ensemble variance times (M + 1) / M, over the RMSE of the ensemble mean: 1 for
          a reliable ensemble (Fortin et al. 2014, doi:10.1175/JHM-D-14-0008.1);

        and ``ssim`` and ``psnr``, means over the fields, with attribute ``data_range``.

    Raises:
        ValueError: if there is no model, if one has no sample at some lead time, or if data ranges differ.
    """
    stacked = _stacked(sums)
    if "season" in stacked.dims:
        stacked = stacked.sum("season", skipna=False, keep_attrs=True)
    lacking = ~(stacked["count"].sum(CELLS) > 0).all("lead_time")
    if bool(lacking.any()):
        raise ValueError(
            f"sums of model {str(stacked['model'].values[lacking.values][0])!r} hold no sample at some lead time; add sums "
            "of at least one init_time with values"
        )
    return _scored(stacked, _everywhere(stacked), references, maps=True)


def season_scores(sums: Mapping[str, xr.Dataset], *, references: Collection[str] | None = None) -> xr.Dataset:
    """Return the ``scores`` of each season: dims (model, season, lead_time), maps with latitude and longitude.

    A season without samples is NaN. A sample belongs to the season of its valid time.

    Raises:
        ValueError: as ``scores`` does, and if the sums of seasons were not kept apart.
    """
    stacked = _stacked(sums)
    if "season" not in stacked.dims:
        raise ValueError("sums have no seasons; make them with error_sums(..., by_season=True)")
    return _scored(stacked, _everywhere(stacked), references, maps=True)


def region_scores(
    sums: Mapping[str, xr.Dataset], regions: Mapping[str, Region], *, references: Collection[str] | None = None
) -> xr.Dataset:
    """Return the ``scores`` of boxes: dims (model, region, lead_time), or (model, region, season, lead_time).

    Without maps, and without SSIM and PSNR, which belong to whole fields.

    Args:
        sums: of each model, as for ``scores``.
        regions: name -> (south, north, west, east), degrees, longitudes modulo 360; a cell belongs to every box that
            its centre is in, edges included.
        references: as for ``scores``.

    Raises:
        ValueError: as ``scores`` does, and if there is no region, or one without a cell.
    """
    stacked = _stacked(sums)
    if not regions:
        raise ValueError("regions must hold at least one box, name -> (south, north, west, east), got none")
    stacked = stacked.drop_vars([name for name in stacked if set(CELLS) - set(stacked[name].dims)])
    grid, parts = Grid.of(stacked), []
    for name, box in regions.items():
        inside = _inside(grid, name, box)
        parts.append(_scored(stacked, xr.DataArray(inside, dims=CELLS), references, maps=False))
    found = xr.concat(parts, dim=xr.DataArray(list(regions), dims="region", name="region"))
    return found.transpose("model", "region", "season", "lead_time", missing_dims="ignore")


def _inside(grid: Grid, name: str, region: Region) -> np.ndarray:
    south, north, west, east = region
    rows = (grid.latitude >= south) & (grid.latitude <= north)
    columns = ((grid.longitude - west) % 360 <= east - west) & (east >= west)
    inside: np.ndarray = rows[:, None] & columns
    if not inside.any():
        raise ValueError(
            f"region {name!r} (south, north, west, east) = {region} holds no cell of {grid}; give south < north, "
            "west < east, inside the grid"
        )
    return inside


def _stacked(sums: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Return the sums of all models in memory, computed together; a forecast is an ensemble of one among ensembles."""
    if not sums:
        raise ValueError("sums must hold at least one model, got none")
    parts: list[xr.Dataset] = list(dask.compute(*sums.values()))
    if any("crps" in part for part in parts):
        parts = [part if "crps" in part else part.assign(crps=part["absolute"]) for part in parts]
    models = xr.DataArray(list(sums), dims="model", name="model")
    stacked = xr.concat(parts, dim=models, join="exact", combine_attrs="drop_conflicts")
    for name in set(IMAGES) & set(stacked):
        if f"{name}_range" not in stacked.attrs:
            raise ValueError(f"the sums hold {name} with several data ranges; make them all with the same data_range=")
    return stacked


def _everywhere(stacked: xr.Dataset) -> xr.DataArray:
    return xr.ones_like(stacked["count"].isel(dict.fromkeys(set(stacked["count"].dims) - set(CELLS), 0)), dtype=bool)


def _scored(stacked: xr.Dataset, inside: xr.DataArray, references: Collection[str] | None, *, maps: bool) -> xr.Dataset:
    """Return the scores over the cells inside: plain, by area and, where asked for, of each cell."""
    cells = stacked[[name for name in stacked if set(CELLS) <= set(stacked[name].dims)]]
    area = xr.DataArray(cell_areas(Grid.of(stacked)), dims=CELLS)
    sums = [of_cells.where(inside, 0.0).sum(CELLS, skipna=False) for of_cells in (cells, cells * area)]
    plain, weighted = (_divided(of_all) for of_all in sums)
    of_maps = _measures(_divided(cells), "_map", "of each cell", stacked.attrs) if maps else {}
    images = {
        name: (stacked[name] / stacked[f"{name}_count"].where(stacked[f"{name}_count"] > 0)).assign_attrs(
            long_name=_IMAGE_NAMES[name],
            units="1" if name == "ssim" else "dB",
            data_range=stacked.attrs[f"{name}_range"],
        )
        for name in IMAGES
        if name in stacked
    }
    result = xr.Dataset(
        {
            **_measures(plain, "", "plain mean over cells", stacked.attrs),
            **_measures(weighted, "_area", "mean over cells weighted by area", stacked.attrs),
            **_skills(weighted["squared"], references),
            **images,
            **of_maps,
        }
    )
    return result.drop_attrs(deep=False)


def _divided(sums: xr.Dataset) -> xr.Dataset:
    return sums / sums["count"].where(sums["count"] > 0)


def _measures(means: xr.Dataset, suffix: str, over: str, attributes: Mapping[Any, Any]) -> dict[str, xr.DataArray]:
    """Return the scores that means of terms give, in the order of tables, with their attributes."""
    units = {"units": attributes["units"]} if "units" in attributes else {}
    found: dict[str, tuple[xr.DataArray, str, dict[str, Any]]] = {
        "mae": (means["absolute"], "mean absolute error", units),
        "rmse": (means["squared"] ** 0.5, "root mean squared error", units),
        "bias": (means["error"], "mean error (forecast minus truth)", units),
    }
    if "covariance" in means:
        least = _ROUNDING * means["truth_variance"]
        varies = (means["forecast_variance"] > least) & (means["truth_variance"] > 0)
        product = (means["forecast_variance"] * means["truth_variance"]).where(varies)
        found["acc"] = means["covariance"] / product**0.5, "anomaly correlation", {"units": "1"}
    if "crps" in means:
        found["crps"] = means["crps"], "continuous ranked probability score", units
        found["crps_fair"] = means["crps_fair"], "fair continuous ranked probability score", units
        ratio = (means["spread"] / means["squared"].where(means["squared"] > 0)) ** 0.5
        found["spread_skill"] = ratio, "ensemble spread over RMSE of the ensemble mean", {"units": "1"}
    return {
        f"{name}{suffix}": score.drop_attrs().assign_attrs(long_name=f"{long_name}, {over}", **own)
        for name, (score, long_name, own) in found.items()
    }


def _skills(mse: xr.DataArray, references: Collection[str] | None) -> dict[str, xr.DataArray]:
    """Return 1 - MSE / MSE of each reference: -inf or NaN where a reference is perfect."""
    models = mse["model"].values.tolist()
    if references is None:
        references = [name for name in (*BASELINES, *FURTHER_BASELINES) if name in models]
    if unknown := [name for name in references if name not in models]:
        raise ValueError(f"references {unknown} are not among the models {models}")
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            f"skill_{name}": (1 - mse / mse.sel(model=name, drop=True)).assign_attrs(
                long_name=f"1 - MSE / MSE of {name}, mean over cells weighted by area", units="1"
            )
            for name in references
        }


def score_table(scores: xr.Dataset) -> pd.DataFrame:
    """Return one row per model, region or season, and lead: the means, and the skills (empty without their reference).

    Further scores and skills, where there are any, stand after the columns that are always there.
    """
    dims = ["model", *(name for name in ("region", "season") if name in scores["mae"].dims), "lead_time"]
    frame = scores[_scalars(scores)].to_dataframe(dim_order=dims).reset_index()
    frame.insert(len(dims) - 1, "lead_hours", frame["lead_time"].dt.total_seconds() / 3600)
    return frame.reindex(columns=[*dims[:-1], "lead_hours", *_columns(scores)])


def _scalars(scores: xr.Dataset) -> list[Hashable]:
    return [name for name in scores if not set(CELLS) & set(scores[name].dims)]


def _columns(scores: xr.Dataset) -> list[str]:
    names = [str(name) for name in scores]
    further = [name for name in names if name.startswith("skill_") and name not in _SKILLS]
    return [*_MEANS, *_SKILLS, *(name for name in _FURTHER_MEANS if name in names), *further]


def summary(scores: xr.Dataset) -> pd.DataFrame:
    """Return one row per model (and region or season): means over the leads.

    ``rmse`` is the mean of the rmse of each lead, as papers print it. A skill compares mean squared errors
    that were averaged over the leads first, so that a lead where the reference is nearly perfect cannot
    dominate.
    """
    references = [str(name).removeprefix("skill_") for name in scores if str(name).startswith("skill_")]
    means = scores[[name for name in _scalars(scores) if not str(name).startswith("skill_")]]
    skills = _skills((scores["rmse_area"] ** 2).mean("lead_time", skipna=False), references)
    dims = [name for name in ("model", "region", "season") if name in scores["mae"].dims]
    frame = means.mean("lead_time", skipna=False).assign(skills).to_dataframe(dim_order=dims).reset_index()
    return frame.reindex(columns=[*dims, *_columns(scores)])


def paper_table(scores: xr.Dataset) -> pd.DataFrame:
    """Return one row per model as Table 3 of the LS-NTP paper has it: MAE, RMSE, SSIM and PSNR, means over the leads.

    MAE and RMSE are plain: the RMSE of a lead is the root of the mean over cells and samples. SSIM and PSNR are means
    over the fields, with data ranges (2 and 255) that are no ranges of kelvin; see ``metrics.PAPER_RANGES``.

    Raises:
        ValueError: if SSIM or PSNR is missing, or has another data range.
    """
    found = {name: scores[name].attrs.get("data_range") if name in scores else None for name in IMAGES}
    if found != PAPER_RANGES:
        raise ValueError(
            f"the paper's SSIM and PSNR have the data ranges {PAPER_RANGES}, got {found}; "
            'evaluate(..., metrics="paper"), or error_sums(..., data_range=PAPER_RANGES)'
        )
    means = scores[["mae", "rmse", "ssim", "psnr"]].mean("lead_time", skipna=False)
    return means.to_dataframe().reset_index().reindex(columns=["model", "mae", "rmse", "ssim", "psnr"])


def format_table(table: pd.DataFrame, *, markdown: bool = False) -> str:
    """Return a table as aligned text, plain or Markdown: three decimals, empty columns left out.

    >>> table = pd.DataFrame({"model": ["persistence", "damped"], "mae": [2.3411, 1.796]})
    >>> print(format_table(table, markdown=True))
    | model       |   mae |
    | :---------- | ----: |
    | persistence | 2.341 |
    | damped      | 1.796 |
    """
    table = table.dropna(axis="columns", how="all")
    columns = []
    for name, values in table.items():
        is_number = pd.api.types.is_numeric_dtype(values.dtype)
        cells = [_cell(value, "g" if name == "lead_hours" else ".3f") for value in values]
        width = max(len(str(name)), *map(len, cells), 2)
        pad = str.rjust if is_number else str.ljust
        rule = "-" * (width - 1) + ":" if is_number else ":" + "-" * (width - 1)
        columns.append(
            [pad(str(name), width), rule if markdown else "-" * width, *(pad(cell, width) for cell in cells)]
        )
    edge, gap = ("| ", " | ") if markdown else ("", "  ")
    return "\n".join((edge + gap.join(row) + edge[::-1]).rstrip() for row in zip(*columns, strict=True))


def _cell(value: object, number: str) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:{number}}"
    return str(value)
