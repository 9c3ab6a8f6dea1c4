"""A trained model and fields in, forecasts out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr

from climapred.grid import Grid
from climapred.learning.artefact import TrainedModel
from climapred.learning.loader import calendar_rows
from climapred.learning.training import Precision, lightning_precision
from climapred.variables import VARIABLES

Times = npt.NDArray[np.datetime64]


def forecast(
    model: TrainedModel,
    fields: xr.Dataset,
    init_times: Times | None = None,
    *,
    steps: int | None = None,
    batch_size: int = 64,
    precision: Precision = "auto",
) -> xr.Dataset:
    """Return the forecasts of ``model`` from each of ``init_times``.

    Args:
        model: trained.
        fields: dims (time, latitude, longitude), canonical names and units, on the model's grid, with the
            ``model.window.history`` frames up to each initial time.
        init_times: last frame that the forecast sees; None for the last time of ``fields``.
        steps: number of leads, a model step apart; None for the model's own horizon. Any number works: the forecaster
            unrolls as far as it is asked to.
        batch_size, precision: for speed; see ``learning.training.Training``.

    Returns:
        dims (init_time, lead_time, latitude, longitude), coordinate valid_time (init_time, lead_time).

    Raises:
        ValueError: if variables, grid or times do not fit.
    """
    times = fields["time"].values
    init_times = times[-1:] if init_times is None else np.atleast_1d(np.asarray(init_times, dtype="datetime64[ns]"))
    if not len(init_times):
        raise ValueError("init_times must hold at least one time, got none")
    batches = rollout(model, fields, init_times, steps=steps, batch_size=batch_size, precision=precision)
    return xr.concat(
        list(batches), dim="init_time", join="exact", coords="minimal", compat="override", data_vars="minimal"
    )


def rollout(
    model: TrainedModel,
    fields: xr.Dataset,
    init_times: Times,
    *,
    steps: int | None = None,
    batch_size: int = 64,
    precision: Precision = "auto",
) -> Iterator[xr.Dataset]:
    """Yield the forecasts of ``batch_size`` initial times after another; see ``forecast``."""
    _check(model, fields)
    steps = model.window.horizon if steps is None else steps
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    frames = _frame_indices(model, fields["time"].values, init_times)
    leads = model.step * np.arange(1, steps + 1)
    step_offsets = model.step * np.arange(1 - model.window.history, steps + 1)
    autocast = lightning_precision(precision) == "bf16-mixed"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module, origin = model.module.to(device), {"model": model.name, "model_identity": model.identity()}
    for first in range(0, len(init_times), batch_size):
        chosen, starts = frames[first : first + batch_size], init_times[first : first + batch_size]
        seen = _read_frames(model, fields, chosen)
        calendar = calendar_rows(starts[:, None] + step_offsets, model.orders)
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=autocast):
            predicted = module(torch.from_numpy(seen).to(device), calendar.to(device)).cpu().numpy()
        yield _as_dataset(model, predicted, starts, leads).assign_attrs(origin)


def _check(model: TrainedModel, fields: xr.Dataset) -> None:
    if missing := set(model.variables) - set(fields.data_vars):
        raise ValueError(
            f"model {model.name} needs {', '.join(sorted(missing))}; the fields hold {list(fields.data_vars)}"
        )
    if (grid := Grid.of(fields)) != model.grid:
        raise ValueError(f"model {model.name} was trained on {model.grid}, the fields are on {grid}; regrid them first")


def _frame_indices(model: TrainedModel, times: Times, init_times: Times) -> npt.NDArray[np.int64]:
    """Return the indices of the frames each forecast sees, shape (init_times, history)."""
    wanted = init_times[:, None] + model.step * np.arange(1 - model.window.history, 1)
    found = np.searchsorted(times, wanted)
    missing = wanted[times[np.minimum(found, len(times) - 1)] != wanted]
    if missing.size:
        hours, first = model.step / np.timedelta64(1, "h"), np.datetime_as_string(missing[0], unit="m")
        raise ValueError(
            f"model {model.name} needs {model.window.history} frames, {hours:g} h apart, up to each initial time; "
            f"{missing.size} are missing, the first is {first}"
        )
    return found


def _read_frames(model: TrainedModel, fields: xr.Dataset, frames: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return the frames of a batch ``(B, T, C, H, W)``; of fields that are not in memory, only these are read."""
    needed, position = np.unique(frames, return_inverse=True)
    read = fields[list(model.variables)].isel(time=needed)
    stacked = np.stack([read[name].values for name in model.variables], axis=1)
    return stacked.astype(np.float32, copy=False)[position.reshape(frames.shape)]


def _as_dataset(model: TrainedModel, predicted: np.ndarray, init_times: Times, leads: np.ndarray) -> xr.Dataset:
    dims = ("init_time", "lead_time", "latitude", "longitude")
    arrays = {}
    for channel, name in enumerate(model.variables):
        variable = VARIABLES[name]
        attributes = {
            "units": variable.units,
            "standard_name": variable.standard_name,
            "long_name": variable.long_name,
        }
        arrays[name] = (dims, predicted[:, :, channel], attributes)
    coordinates = {
        "init_time": init_times.astype("datetime64[ns]"),
        "lead_time": leads.astype("timedelta64[ns]"),
        "valid_time": (("init_time", "lead_time"), (init_times[:, None] + leads).astype("datetime64[ns]")),
        **model.grid.coordinates(),
    }
    return xr.Dataset(arrays, coordinates)
