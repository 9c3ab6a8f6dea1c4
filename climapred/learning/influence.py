"""How much a forecast here depends on the past there, by the gradient of the whole network.

An adjacency is one part of a network, and what it learned may pass by it, or be turned round behind it; the gradient leaves
nothing out, is there for every network, and has units. It has the layout of an adjacency, row = target, so that
everything in climapred.results that reads an adjacency reads it: ``adjacency_dataset(influence(...), model.grid)``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr

from climapred.learning.artefact import TrainedModel
from climapred.learning.dataset import WindowDataset


def influence(
    model: TrainedModel,
    fields: xr.Dataset,
    init_times: npt.ArrayLike,
    *,
    variable: str | None = None,
    lead: int | None = None,
    targets_at_once: int = 128,
) -> npt.NDArray[np.float32]:
    """Return how much each point's forecast changes with each point's past, shape (N, N), row = target.

        w_ij = max over frames s of | mean over init times of  d forecast_i / d x_j(s) |

    Signs that change from one initial time to another cancel: what is left is what always works the same way.

    Args:
        model: any trained model.
        fields: on the grid of the model; the frames before and after each initial time, as in training.
        init_times: datetime64; a dozen, well apart, tell most. The time grows with their number, and with N for each.
        variable: forecast and seen; by default the first.
        lead: number of the lead, from 1; None for the mean over all.
        targets_at_once: points whose gradients are computed together.

    Raises:
        ValueError: for an unknown variable, a lead that the model does not have, or initial times without their frames.
    """
    variable = variable or model.variables[0]
    if variable not in model.variables:
        raise ValueError(f"variable must be one of {', '.join(model.variables)}, got {variable!r}")
    if lead is not None and not 1 <= lead <= model.window.horizon:
        raise ValueError(f"lead must lie between 1 and {model.window.horizon}, got {lead}")
    channel, seen, module = model.variables.index(variable), model.window.history, model.module.eval()
    scaling, window = model.scaling, model.window
    options = {"forcings": scaling.forcings, "missing": scaling.missing}
    windows = WindowDataset(fields[list(model.variables)], window, model.orders, **options)  # type: ignore[arg-type]
    starts = _starts(model, windows.times, init_times)
    points = model.grid.size
    total = torch.zeros(points, seen, points)
    leads = slice(None) if lead is None else slice(lead - 1, lead)
    for start in starts:
        batch = windows[np.array([start])]
        for first in range(0, points, targets_at_once):
            rows = torch.arange(first, min(first + targets_at_once, points))
            frames, calendar = (x.expand(len(rows), *x.shape[1:]) for x in (batch.fields, batch.calendar))
            past = frames[:, :seen].clone().requires_grad_()
            future = frames[:, seen:] if module.network.feeds_back else None
            forecast = module(past, calendar, future=future)[:, leads, channel].mean(dim=1).flatten(1)
            (gradient,) = torch.autograd.grad(forecast[torch.arange(len(rows)), rows].sum(), past)
            total[rows] += gradient[:, :, channel].flatten(2)
    return (total / len(starts)).abs().amax(dim=1).numpy()


def _starts(model: TrainedModel, times: npt.NDArray[np.datetime64], init_times: npt.ArrayLike) -> npt.NDArray[np.intp]:
    wanted = np.atleast_1d(np.asarray(init_times, dtype="datetime64[ns]"))
    starts = np.searchsorted(times, wanted) - model.window.last_seen
    whole = (starts >= 0) & (starts + model.window.extent <= len(times)) & np.isin(wanted, times)
    if not (whole.all() and whole.size):
        raise ValueError(
            f"fields must hold all frames round each initial time, {model.window.extent} in a row; they do not for "
            f"{np.count_nonzero(~whole)} of {whole.size}; they hold {len(times)} from {times[0]} to {times[-1]}"
        )
    return starts
