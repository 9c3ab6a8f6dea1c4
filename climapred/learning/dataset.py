"""Windows over lazy fields: which frames, calendar and forcings a batch holds, and how its fields are read."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor
from torch.utils.data import Dataset

from climapred.calendar import harmonic_design
from climapred.learning.windows import Indices, Window
from climapred.models.scaled import Missing

Times = npt.NDArray[np.datetime64]
Forcing = Literal["latitude", "longitude", "day_of_year", "hour"]

BLOCK_BYTES = 32 * 2**20  # what is read at once, where files say nothing else

_DIMS = ("time", "latitude", "longitude")


class Batch(NamedTuple):
    """B windows of T = history + horizon frames.

    Attributes:
        fields: ``(B, T, C + K, H, W)`` float32: C variables in physical units, then K forcing channels.
        calendar: ``(B, T, F)`` float32, as ``models.scaled.Scaled`` takes it.
        times: ``(B, T)`` int64, valid time in nanoseconds since 1970: ``batch.times.numpy().view("M8[ns]")``.
    """

    fields: Tensor
    calendar: Tensor
    times: Tensor


def calendar_rows(times: Times, orders: tuple[int, int] | None) -> Tensor:
    """Return the calendar ``(..., F)`` float32 of ``times``: harmonics of these orders, or ones (F = 1) for None."""
    if orders is None:
        return torch.ones(*times.shape, 1)
    return torch.from_numpy(harmonic_design(times, *orders)).float()


def forcing_channels(names: Sequence[Forcing], times: Times, latitude: np.ndarray, longitude: np.ndarray) -> Tensor:
    """Return what is known of any time and place: sine and cosine of each of ``names``.

    Args:
        names: "latitude" and "longitude" of a point, "day_of_year" (period: the mean tropical year) and "hour" (UTC).
        times: any shape ``(...)``.
        latitude, longitude: ``(H,)`` and ``(W,)``, degrees.

    Returns:
        ``(..., 2 len(names), H, W)`` float32.

    Raises:
        ValueError: for an unknown name.
    """
    if unknown := set(names) - set(get_args(Forcing)):
        raise ValueError(f"forcings must be of {', '.join(get_args(Forcing))}, got {', '.join(sorted(unknown))}")
    waves = {"day_of_year": harmonic_design(times, 1, 0)[..., 1:], "hour": harmonic_design(times, 0, 1)[..., 1:]}
    angles = {"latitude": np.deg2rad(latitude)[:, None], "longitude": np.deg2rad(longitude)}
    channels = np.empty((*times.shape, 2 * len(names), len(latitude), len(longitude)), np.float32)
    for number, name in enumerate(names):
        for which, wave in enumerate((np.sin, np.cos)):
            values = wave(angles[name]) if name in angles else waves[name][..., 1 - which, None, None]
            channels[..., 2 * number + which, :, :] = values
    return torch.from_numpy(channels)


class WindowDataset(Dataset[Batch]):
    """Windows over lazy fields: a climapred store, dask, NetCDF, a plain Zarr; nothing is read before it is needed.

    ``dataset[starts]`` reads the windows at B starts as one ``Batch``; ``WindowLoader`` delivers whole epochs, far faster.

    Args:
        fields: variables with dims (time, latitude, longitude); they are channels in the order of the dataset.
        window: frames in and out.
        orders: (annual, daily) harmonics of ``Batch.calendar``; None for ones.
        forcings: see ``forcing_channels``.
        missing: "refuse" raises at the first NaN; "mask" hands NaN on.

    Raises:
        ValueError: for no variable, other dims, or an unknown forcing.
    """

    def __init__(
        self,
        fields: xr.Dataset,
        window: Window,
        orders: tuple[int, int] | None = None,
        *,
        forcings: Sequence[Forcing] = (),
        missing: Missing = "refuse",
    ) -> None:
        if other := {name: field.dims for name, field in fields.data_vars.items() if {*field.dims} != {*_DIMS}}:
            raise ValueError(f"fields must have the dims {_DIMS}, got {other}; call harmonise() or select before")
        if not fields.data_vars:
            raise ValueError("fields hold no variable")
        self.fields = fields.transpose(*_DIMS)
        self.window, self.forcings, self.missing = window, tuple(forcings), missing
        self.times: Times = fields["time"].values.astype("datetime64[ns]")
        self.calendar = calendar_rows(self.times, orders)
        self._resident: dict[torch.device, Tensor] = {}
        forcing_channels(self.forcings, self.times[:1], np.zeros(1), np.zeros(1))  # refuses unknown names

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_resident": {}}  # a worker opens the files itself, and holds no copy of the fields

    @property
    def shape(self) -> tuple[int, int, int]:
        """Variables, latitudes and longitudes: (C, H, W)."""
        return len(self.fields.data_vars), self.fields.sizes["latitude"], self.fields.sizes["longitude"]

    @property
    def frame_bytes(self) -> int:
        """Size of a frame in memory."""
        return 4 * int(np.prod(self.shape))

    @property
    def chunk(self) -> int:
        """Frames that the files hold in one piece; 1 where they do not say."""
        first = next(iter(self.fields.data_vars.values()))
        stored = first.encoding.get("preferred_chunks", {}).get("time", 1)
        return int(first.chunksizes["time"][0] if first.chunks else stored)

    @property
    def piece(self) -> int:
        """Frames of a shard of the files; of a chunk where there are none."""
        shards = next(iter(self.fields.data_vars.values())).encoding.get("shards")
        return int(shards[0]) if shards else self.chunk

    def read(self, start: int, stop: int) -> Tensor:
        """Read the frames ``start`` to ``stop``, ``(stop - start, C, H, W)`` float32, from the source.

        Raises:
            RuntimeError: if the source cannot be read; names the variable and the times.
            ValueError: for missing values, unless they are masked.
        """
        names = list(self.fields.data_vars)
        if len(names) == 1:
            frames = self._values(names[0], start, stop)[:, None]
        else:
            frames = np.empty((stop - start, *self.shape), np.float32)
            for channel, name in enumerate(names):
                frames[:, channel] = self._values(name, start, stop)
        if self.missing == "refuse":
            self._refuse_missing(frames, start)
        return torch.from_numpy(np.require(frames, requirements=["C", "W"]))

    def _values(self, name: Hashable, start: int, stop: int) -> npt.NDArray[np.float32]:
        try:
            return self.fields[name][start:stop].values.astype(np.float32, copy=False)
        except Exception as error:  # whatever the file format raises
            where = f"{name} from {_text(self.times[start])} to {_text(self.times[stop - 1])}"
            raise RuntimeError(f"cannot read {where} of {_origin(self.fields)}: {error}; build it again") from error

    def _refuse_missing(self, frames: npt.NDArray[np.float32], start: int) -> None:
        with np.errstate(over="ignore"):  # finite values may have an infinite sum
            if np.isfinite(frames.sum()):
                return
        bad = ~np.isfinite(frames)
        if not bad.any():
            return
        frame, channel = np.argwhere(bad.any(axis=(2, 3)))[0]
        raise ValueError(
            f"{list(self.fields.data_vars)[channel]} has missing values ({bad[frame, channel].mean():.1%} of the cells at "
            f"{_text(self.times[start + frame])}) in {_origin(self.fields)}: a lost shard, or a field with gaps; build it "
            'again, fill them before, or train with missing="mask"'
        )

    @property
    def resident_on(self) -> torch.device | None:
        """Where all frames are already."""
        return next(iter(self._resident), None)

    def resident(self, device: torch.device) -> Tensor:
        """Return all frames ``(time, C, H, W)`` on a device; they are read when first asked for, and kept."""
        if device not in self._resident:
            frames = torch.from_numpy(np.empty((len(self.times), *self.shape), np.float32))  # NumPy asks for huge pages
            frames = frames if device.type == "cpu" else torch.empty_like(frames, device=device)
            step = max(1, BLOCK_BYTES // self.frame_bytes // self.chunk) * self.chunk
            for start in range(0, len(self.times), step):
                frames[start : start + step] = self.read(start, min(start + step, len(self.times)))
            self._resident[device] = frames
        return self._resident[device]

    def batch(self, fields: Tensor, starts: Indices) -> Batch:
        """Return the ``Batch`` of windows whose variables ``(B, T, C, H, W)`` have been cut already."""
        frames = np.asarray(starts)[:, None] + self.window.offsets
        times = self.times[frames]
        if self.forcings:
            latitude, longitude = (self.fields[name].values for name in ("latitude", "longitude"))
            forcing = forcing_channels(self.forcings, times, latitude, longitude)
            fields = torch.cat([fields, forcing.to(fields.device)], dim=2)
        return Batch(fields, self.calendar[frames], torch.from_numpy(times.astype(np.int64)))

    def __getitem__(self, starts: Indices) -> Batch:
        windows = [self.read(start, start + self.window.extent)[self.window.offsets] for start in np.asarray(starts)]
        return self.batch(torch.stack(windows), starts)


def _text(moment: np.datetime64) -> str:
    return str(np.datetime_as_string(moment, unit="m"))


def _origin(fields: xr.Dataset) -> str:
    return str(fields.encoding.get("source") or "fields in memory")
