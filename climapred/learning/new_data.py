"""New data for a trained model: opened, harmonised, brought to its grid, and the start times that they allow."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from climapred.data.harmonise import harmonise
from climapred.data.regrid import Method, regrid, source_grid
from climapred.data.sources import Source, expand_paths, open_source
from climapred.data.store import open_store, stored_attributes
from climapred.learning.artefact import TrainedModel
from climapred.learning.ensemble import combine_members
from climapred.learning.forecast import hours_text, rollout, seen_offsets, time_text
from climapred.learning.windows import time_step

Times = npt.NDArray[np.datetime64]

LATEST = "latest"

_BATCH_BYTES = 256 * 2**20
_MOST_STARTS = 64


def open_fields(
    model: TrainedModel, source: Source, *, regrid_method: Method | None = None, **opening: Any
) -> xr.Dataset:
    """Return what a model needs of files, lazily: its variables in canonical names and units, on its grid.

    Args:
        model: trained.
        source: NetCDF, GRIB or Zarr files as ``open_source`` takes them, or a store of tensors.
        regrid_method: how to bring fields of another grid to the model's; None to refuse them.
        opening: ``duplicates`` for ``harmonise``; ``select`` and ``damaged`` for ``open_source``.

    Raises:
        ValueError: if a variable is missing, in units that cannot be converted, or on another grid.
        FileNotFoundError: if there is no such file.
    """
    fields = _open(model, source, **opening)
    grid = source_grid(fields)
    if model.grid.same_points(grid):
        return fields
    if regrid_method is None:
        raise ValueError(
            f"model {model.name} is for {model.grid}, the data are on {grid}; regridding brings them there, such as "
            "bilinear (--regrid bilinear)"
        )
    return regrid(fields, model.grid, regrid_method)


def _open(model: TrainedModel, source: Source, **opening: Any) -> xr.Dataset:
    paths = expand_paths(source)
    if len(paths) == 1 and isinstance(paths[0], Path) and "climapred_format" in (stored_attributes(paths[0]) or {}):
        return harmonise(open_store(paths[0]), model.variables)
    duplicates = opening.pop("duplicates", "refuse")
    return harmonise(open_source(paths, variables=model.variables, **opening), model.variables, duplicates=duplicates)


def start_times(model: TrainedModel, times: Times, wanted: str = LATEST) -> Times:
    """Return the start times that a text names, all of which the data allow: the frames before them are there.

    Args:
        model: trained; says how many frames it sees, and how far apart.
        times: of the data, increasing.
        wanted: "latest" for the last time with a complete history; a time, 2014-02-27T18; several, TIME/TIME/TIME; or a
            range, TIME/to/TIME or TIME/to/TIME/by/STEP, STEP in hours (24) or days (1d), else that of the model. A
            date alone is its midnight, UTC.

    Raises:
        ValueError: if the text is none of these, a time is not there, or frames before it are missing.
    """
    asked = None if wanted == LATEST else _parsed(wanted, model.step)
    whole = np.isin(times[:, None] + seen_offsets(model), times).all(axis=1)
    held = f"the data hold {len(times)} times from {time_text(times[0])} to {time_text(times[-1])}"
    if len(times) > 1:
        held += f", {hours_text(time_step(times))} apart"
    needed = f"{model.window.history} frames, {hours_text(model.step * model.window.spacing)} apart"
    if asked is None:
        if not whole.any():
            raise ValueError(f"model {model.name} needs {needed}, up to a start time; no time has them: {held}")
        return times[whole][-1:]
    absent = asked[~np.isin(asked, times)]
    if absent.size:
        raise ValueError(
            f"no field at {time_text(absent[0])} ({absent.size} of {asked.size} start times are not there); {held}"
        )
    incomplete = asked[~np.isin(asked, times[whole])]
    if incomplete.size:
        before = incomplete[0] + seen_offsets(model)
        missing = before[~np.isin(before, times)]
        possible = f"the first start time that has them is {time_text(times[whole][0])}" if whole.any() else "none has"
        raise ValueError(
            f"model {model.name} needs {needed}, up to {time_text(incomplete[0])}; {missing.size} are missing, the first is "
            f"{time_text(missing[0])}; {possible}; {held}"
        )
    return asked


def _parsed(text: str, step: np.timedelta64) -> Times:
    """Return the times that a text names, increasing.

    >>> _parsed("2014-02-27/to/2014-02-28T06/by/12", np.timedelta64(6, "h")).astype("M8[h]").tolist()
    [datetime.datetime(2014, 2, 27, 0, 0), datetime.datetime(2014, 2, 27, 12, 0), datetime.datetime(2014, 2, 28, 0, 0)]
    """
    words = text.split("/")
    if words[1:2] != ["to"]:
        return np.unique([_time(word, text) for word in words])
    if len(words) not in (3, 5) or words[3:4] not in ([], ["by"]):
        raise ValueError(f"a range of start times is TIME/to/TIME or TIME/to/TIME/by/STEP, got {text!r}")
    first, last = _time(words[0], text), _time(words[2], text)
    if len(words) == 5:
        step = _step(words[4])
    if last < first:
        raise ValueError(f"a range of start times must end after it begins, got {text!r}")
    return np.arange(first, last + np.timedelta64(1, "ns"), step)


def _time(word: str, text: str) -> np.datetime64:
    try:
        time: np.datetime64 | None = np.datetime64(word.removesuffix("Z"), "ns")
    except ValueError:
        time = None
    if time is None or np.isnat(time):
        raise ValueError(
            f"start times are latest, TIME, TIME/TIME or TIME/to/TIME/by/STEP with times such as 2014-02-27T18, got "
            f"{word!r} in {text!r}"
        )
    return time


def _step(word: str) -> np.timedelta64:
    match = re.fullmatch(r"(\d+)([hd]?)", word)
    if match is None or int(match[1]) == 0:
        raise ValueError(f"the step of start times is a number of hours (24, 24h) or days (1d), got {word!r}")
    return np.timedelta64(int(match[1]) * (24 if match[2] == "d" else 1), "h").astype("timedelta64[ns]")


def forecast_batches(
    models: Sequence[TrainedModel], fields: Sequence[xr.Dataset], starts: Times, **options: Any
) -> Iterator[xr.Dataset]:
    """Yield the forecasts of one model, or of several as members of an ensemble, in batches of at most 256 MB.

    Args:
        models, fields: each with its own, from ``open_fields``.
        starts: from ``start_times``.
        options: ``steps``, ``perturbation`` and ``precision`` as ``rollout`` takes them.
    """
    perturbation, steps = options.get("perturbation"), options.get("steps")
    members = len(models) * (perturbation.members if perturbation else 1)
    points = max(len(one.variables) * (steps or one.window.horizon) * one.grid.size for one in models)
    size = min(_MOST_STARTS, max(1, _BATCH_BYTES // (4 * points * members)))
    rollouts = [rollout(one, its, starts, batch_size=size, **options) for one, its in zip(models, fields, strict=True)]
    for batches in zip(*rollouts, strict=True):
        yield batches[0] if len(batches) == 1 else combine_members(batches)
