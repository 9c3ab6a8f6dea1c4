"""Store to batches: windows cut from memory, in an order that depends on seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from climapred.calendar import harmonic_design
from climapred.learning.windows import Indices, Window

Batch = tuple[Tensor, Tensor]


class WindowDataset(Dataset[Batch]):
    """Windows over the fields of a store, held in memory as float32.

    Indexed with an array of B window starts it returns a whole batch: fields ``(B, T, C, H, W)`` in physical units and
    the calendar ``(B, T, F)``, with T = history + horizon; variables are channels in the order of the dataset.

    Args:
        fields: variables with dims (time, latitude, longitude).
        window: frames in and out.
        orders: (annual, daily) harmonics of the calendar; None for a calendar of ones (F = 1).
    """

    def __init__(self, fields: xr.Dataset, window: Window, orders: tuple[int, int] | None) -> None:
        self.times: npt.NDArray[np.datetime64] = fields["time"].values
        stacked = [fields[name].values.astype(np.float32, copy=False) for name in fields.data_vars]
        self.fields = torch.from_numpy(np.stack(stacked, axis=1))
        self.calendar = calendar_rows(self.times, orders)
        self.window = window

    def __getitem__(self, starts: Indices) -> Batch:
        frames = torch.as_tensor(np.asarray(starts)[:, None] + np.arange(self.window.frames))
        return self.fields[frames], self.calendar[frames]


def calendar_rows(times: npt.NDArray[np.datetime64], orders: tuple[int, int] | None) -> Tensor:
    """Return the calendar ``(..., F)`` float32 of ``times`` as ``models.scaled.Scaled`` takes it."""
    if orders is None:
        return torch.ones(*times.shape, 1)
    return torch.from_numpy(harmonic_design(times, *orders)).float()


class BatchStarts(Sampler[Indices]):
    """Yields arrays of window starts, a batch each; every window exactly once an epoch.

    The order of epoch e comes from ``default_rng((seed, e))``, so a resumed run meets the batches that the
    undisturbed one would have met. Without a seed the order is that of the starts.
    """

    def __init__(self, starts: Indices, batch_size: int, *, seed: int | None = None) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.all_starts, self.batch_size, self.seed, self.epoch = starts, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next (the trainer calls this)."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.all_starts) // self.batch_size)

    def __iter__(self) -> Iterator[Indices]:
        starts = self.all_starts
        if self.seed is not None:
            starts = np.random.default_rng((self.seed, self.epoch)).permutation(starts)
        for first in range(0, len(starts), self.batch_size):
            yield starts[first : first + self.batch_size]


def window_loader(
    dataset: WindowDataset, starts: Indices, batch_size: int, *, seed: int | None = None
) -> DataLoader[Batch]:
    """Return a DataLoader over the windows at ``starts``, shuffled when a ``seed`` is given."""
    return DataLoader(dataset, sampler=BatchStarts(starts, batch_size, seed=seed), batch_size=None)
