"""A trained model and fields in, forecasts out."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor

from climapred.grid import Grid
from climapred.learning.artefact import TrainedModel
from climapred.learning.dataset import calendar_rows, forcing_channels
from climapred.learning.ensemble import Perturbation
from climapred.learning.training import Precision, lightning_precision
from climapred.learning.windows import time_step
from climapred.models import grid_bound
from climapred.models.scaled import Scaled
from climapred.variables import VARIABLES, convert_units

Times = npt.NDArray[np.datetime64]

_DIMS = ("time", "latitude", "longitude")


def forecast(
    model: TrainedModel,
    fields: xr.Dataset,
    init_times: npt.ArrayLike | None = None,
    *,
    steps: int | None = None,
    batch_size: int = 64,
    precision: Precision = "auto",
    perturbation: Perturbation | None = None,
) -> xr.Dataset:
    """Return the forecasts of ``model`` from each of ``init_times``.

    Args:
        model: trained. It stays as it is, and on its device: where there is a GPU, a copy of it computes there.
        fields: dims (time, latitude, longitude), canonical names and units, on the model's grid, with the
            ``model.window.history`` frames up to each initial time.
        init_times: last frame that the forecast sees; None for the last time of ``fields``.
        steps: number of leads; None for the model's own horizon. Any number works: the forecaster unrolls as far as it
            is asked to.
        batch_size, precision: for speed; see ``learning.training.Training``.
        perturbation: makes an ensemble from perturbed initial fields; the batch size counts start times, and members
            are computed one after another.

    Returns:
        dims (init_time[, realization], lead_time, latitude, longitude), coordinate valid_time (init_time, lead_time).

    Raises:
        ValueError: if variables, units, grid or times do not fit, or a frame that is needed has missing values.
    """
    options: Any = {"steps": steps, "batch_size": batch_size, "precision": precision, "perturbation": perturbation}
    batches = rollout(model, fields, init_times, **options)
    return xr.concat(
        list(batches), dim="init_time", join="exact", coords="minimal", compat="override", data_vars="minimal"
    )


def rollout(
    model: TrainedModel,
    fields: xr.Dataset,
    init_times: npt.ArrayLike | None = None,
    *,
    steps: int | None = None,
    batch_size: int = 64,
    precision: Precision = "auto",
    perturbation: Perturbation | None = None,
) -> Iterator[xr.Dataset]:
    """Yield the forecasts of ``batch_size`` initial times after another; see ``forecast``.

    All but missing values is checked before the first is computed.
    """
    for check in (_check_variables, _check_times, _check_grid):
        check(model, fields)
    times = fields["time"].values
    init_times = times[-1:] if init_times is None else np.atleast_1d(np.asarray(init_times, dtype="datetime64[ns]"))
    if init_times.ndim != 1 or not init_times.size:
        raise ValueError(f"init_times must be one time or a list of them, got shape {init_times.shape}")
    steps = model.window.horizon if steps is None else steps
    for name, number in (("steps", steps), ("batch_size", batch_size)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    frames = _frame_indices(model, times, init_times)
    noise = None if perturbation is None else (perturbation, _anomaly_std(model, perturbation))
    autocast = lightning_precision(precision) == "bf16-mixed"
    return _batches(model, fields, frames, init_times, steps, batch_size, autocast, noise)


def _anomaly_std(model: TrainedModel, perturbation: Perturbation) -> npt.NDArray[np.float32]:
    """Return the standard deviation of the anomalies of each variable, shape (C, 1, 1)."""
    known = perturbation.anomaly_std
    if known is None and model.scaling.inputs == "anomaly":
        return model.module.scale.cpu().numpy()
    if known is None or (missing := set(model.variables) - set(known)):
        lacking = list(model.variables) if known is None else sorted(missing)
        raise ValueError(
            f"model {model.name} does not know the standard deviation of the anomalies of {', '.join(lacking)} (its inputs "
            f"are {model.scaling.inputs!r}); give it: Perturbation(..., anomaly_std={{{lacking[0]!r}: ...}})"
        )
    return np.array([known[name] for name in model.variables], dtype=np.float32)[:, None, None]


def _check_variables(model: TrainedModel, fields: xr.Dataset) -> None:
    if missing := set(model.variables) - set(fields.data_vars):
        raise ValueError(
            f"model {model.name} needs {', '.join(sorted(missing))}; the fields hold {list(fields.data_vars)}; "
            "climapred.harmonise(fields) gives variables their canonical names"
        )
    for name in model.variables:
        units, wanted = str(fields[name].attrs.get("units", VARIABLES[name].units)), VARIABLES[name].units
        if not _same_unit(units, wanted):
            raise ValueError(
                f"model {model.name} needs {name} in {wanted}, the fields have it in {units}; convert it with "
                "climapred.harmonise(fields)"
            )
        if set(fields[name].dims) != set(_DIMS):
            raise ValueError(f"model {model.name} needs {name} with the dims {_DIMS}, got {fields[name].dims}")


def _same_unit(one: str, other: str) -> bool:
    values = np.array([0.0, 1.0])
    try:
        return convert_units(values, one, other) is values
    except ValueError:  # unknown, or of another quantity
        return False


def _check_times(model: TrainedModel, fields: xr.Dataset) -> None:
    times = fields["time"].values if "time" in fields.coords else np.array([])
    if times.dtype.kind != "M" or not times.size:
        raise ValueError(
            f"the fields must have at least one time, as a coordinate of type datetime64, got {times.size} of type "
            f"{times.dtype}; call climapred.harmonise(fields)"
        )
    disorder = np.flatnonzero(~(np.diff(times) > np.timedelta64(0)))
    if disorder.size:
        before, after = (time_text(time) for time in times[disorder[0] : disorder[0] + 2])
        raise ValueError(
            f"times of the fields must increase, each once, but {after} follows {before} ({disorder.size} such places); "
            "call climapred.harmonise(fields), or sort them and drop duplicates"
        )


def _check_grid(model: TrainedModel, fields: xr.Dataset) -> None:
    grid = Grid.of(fields)
    if grid.same_points(model.grid):
        return
    way_out = "regrid them with climapred.regrid(fields, model.grid)"
    if not grid_bound(model.architecture):
        way_out += ", or move the model with model.on_grid(climapred.Grid.of(fields))"
    raise ValueError(f"model {model.name} is for {model.grid}, the fields are on {grid}; {way_out}")


def _frame_indices(model: TrainedModel, times: Times, init_times: Times) -> npt.NDArray[np.int64]:
    """Return the indices of the frames each forecast sees, shape (init_times, history)."""
    wanted = init_times[:, None] + seen_offsets(model)
    found = np.searchsorted(times, wanted)
    missing = wanted[times[np.minimum(found, len(times) - 1)] != wanted]
    if missing.size:
        held = f"the fields hold {len(times)} times from {time_text(times[0])} to {time_text(times[-1])}"
        if len(times) > 1:
            held += f", {hours_text(time_step(times))} apart"
        spacing = hours_text(model.step * model.window.spacing)
        raise ValueError(
            f"model {model.name} needs {model.window.history} frames, {spacing} apart, up to each initial time; "
            f"{missing.size} are missing, the first is {time_text(missing[0])}; {held}"
        )
    return found


def seen_offsets(model: TrainedModel) -> npt.NDArray[np.timedelta64]:
    """Return the time of each frame that a forecast sees, relative to the initial time: shape (history,), 0 last."""
    return model.step * (model.window.spacing * np.arange(1 - model.window.history, 1))


def time_text(time: np.datetime64) -> str:
    """Return a time as messages have it, to the minute."""
    return str(np.datetime_as_string(time, unit="m"))


def hours_text(step: np.timedelta64) -> str:
    """Return a duration as messages have it, in hours."""
    return f"{step / np.timedelta64(1, 'h'):g} h"


def _batches(
    model: TrainedModel,
    fields: xr.Dataset,
    frames: npt.NDArray[np.int64],
    init_times: Times,
    steps: int,
    batch_size: int,
    autocast: bool,
    noise: tuple[Perturbation, npt.NDArray[np.float32]] | None,
) -> Iterator[xr.Dataset]:
    leads = model.step * (model.window.lead_spacing * np.arange(1, steps + 1))
    offsets = np.concatenate([seen_offsets(model), leads])
    module, device = _ready(model.module)
    origin = {"model": model.name, "model_identity": model.identity()}

    def predicted(seen: npt.NDArray[np.float32], times: Times) -> npt.NDArray[np.float32]:
        channels, future = _with_forcings(model, seen, times)
        calendar = calendar_rows(times, model.orders).to(device)
        future = None if future is None else future.to(device)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            found: npt.NDArray[np.float32] = module(channels.to(device), calendar, future=future).cpu().numpy()
        return found

    for first in range(0, len(init_times), batch_size):
        starts = init_times[first : first + batch_size]
        seen, times = _read_frames(model, fields, frames[first : first + batch_size]), starts[:, None] + offsets
        if noise is None:
            yield _as_dataset(model, predicted(seen, times), starts, leads).assign_attrs(origin)
            continue
        perturbation, scale = noise
        members = [
            predicted(seen + _noise(model, perturbation, starts, member) * scale, times)
            for member in range(perturbation.members)
        ]
        yield _as_dataset(model, np.stack(members, axis=1), starts, leads).assign_attrs(origin)


def _noise(model: TrainedModel, perturbation: Perturbation, starts: Times, member: int) -> npt.NDArray[np.float32]:
    """Return what is added to every frame of a history, ``(B, 1, C, H, W)``, in standard deviations."""
    channels = len(model.variables)
    return np.stack([perturbation.fields(model.grid, start, member, channels)[None] for start in starts])


def _ready(module: Scaled) -> tuple[Scaled, torch.device]:
    """Return a module that predicts, and its device: the GPU, unless the module is on another device than the CPU."""
    device = module.scale.device
    target = torch.device("cuda") if device.type == "cpu" and torch.cuda.is_available() else device
    if target != device or any(part.training for part in module.modules()):
        module = copy.deepcopy(module).to(target).eval()
    return module, target


def _read_frames(model: TrainedModel, fields: xr.Dataset, frames: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return the frames of a batch ``(B, T, C, H, W)``; of fields that are not in memory, only these are read."""
    needed, position = np.unique(frames, return_inverse=True)
    read = fields[list(model.variables)].isel(time=needed).transpose(*_DIMS)
    stacked = np.stack([read[name].values for name in model.variables], axis=1).astype(np.float32, copy=False)
    missing = (~np.isfinite(stacked)).mean(axis=(2, 3))
    if missing.any() and model.module.missing == "refuse":
        frame, channel = np.argwhere(missing)[0]
        raise ValueError(
            f"model {model.name} needs {model.variables[channel]} at {time_text(read['time'].values[frame])}, where "
            f"{missing[frame, channel]:.1%} of the values are missing ({np.count_nonzero(missing.any(axis=1))} of "
            f"{len(needed)} frames have gaps); fill them, or start from other times"
        )
    return stacked[position.reshape(frames.shape)]


def _with_forcings(model: TrainedModel, frames: npt.NDArray[np.float32], times: Times) -> tuple[Tensor, Tensor | None]:
    """Return what the network sees ``(B, T, C + K, H, W)``, and the forcings of the leads if it has any.

    ``times`` are those of frames and leads, ``(B, T + S)``; the leads' variables are zeros, which nothing looks at.
    """
    seen = torch.from_numpy(frames)
    if not model.scaling.forcings:
        return seen, None
    forcing = forcing_channels(model.scaling.forcings, times, model.grid.latitude, model.grid.longitude)
    count = seen.shape[1]
    ahead = forcing[:, count:]
    nothing = torch.zeros(*ahead.shape[:2], *seen.shape[2:])
    return torch.cat([seen, forcing[:, :count]], dim=2), torch.cat([nothing, ahead], dim=2)


def _as_dataset(model: TrainedModel, predicted: np.ndarray, init_times: Times, leads: np.ndarray) -> xr.Dataset:
    """Return the forecasts ``(B[, M], S, C, H, W)`` as a dataset."""
    members = {"realization": np.arange(predicted.shape[1], dtype=np.int32)} if predicted.ndim == 6 else {}
    dims = ("init_time", *members, "lead_time", *_DIMS[1:])
    arrays = {}
    for channel, name in enumerate(model.variables):
        variable = VARIABLES[name]
        attributes = {
            "units": variable.units,
            "standard_name": variable.standard_name,
            "long_name": variable.long_name,
        }
        arrays[name] = (dims, predicted[..., channel, :, :], attributes)
    coordinates = {
        "init_time": init_times.astype("datetime64[ns]"),
        "lead_time": leads.astype("timedelta64[ns]"),
        "valid_time": (("init_time", "lead_time"), (init_times[:, None] + leads).astype("datetime64[ns]")),
        **members,
        **model.grid.coordinates(),
    }
    return xr.Dataset(arrays, coordinates)
