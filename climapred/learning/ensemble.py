"""Ensembles: perturbed initial fields, and the forecasts of several trained models as members. NumPy and xarray only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr

from climapred.grid import EARTH_RADIUS_KM, Grid

Floats = npt.NDArray[np.float32]

_WAVES = 256  # of a random field; their sum is close to Gaussian
_AT_ONCE = 16  # waves in memory


@dataclass(frozen=True)
class Perturbation:
    """Random fields that are added to what a model sees; member 0 sees the fields as they are.

    The fields are Gaussian with mean 0 and the same variance everywhere, drawn anew for each start time, member and
    variable, and the same on all frames of a history: an error of the analysis lasts. Two points at the chord d apart
    correlate with exp(-d^2 / (2 length^2)), on the sphere: no seam at Greenwich, none at the poles.

    Attributes:
        members: of the ensemble, member 0 included.
        amplitude: standard deviation, in units of that of the anomalies.
        length_km: how far the fields are smooth.
        seed: the same one gives the same fields, however the start times are batched.
        anomaly_std: {variable: standard deviation of its anomalies, in its units}; None where the model knows them
            (inputs "anomaly").

    Raises:
        ValueError: if there is no member, or an amplitude or a length makes no sense.
    """

    members: int
    amplitude: float = 0.1
    length_km: float = 1000.0
    seed: int = 0
    anomaly_std: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        for name, fits, wanted in (
            ("members", self.members >= 1, "at least 1"),
            ("amplitude", 0 <= self.amplitude < np.inf, "0 or more"),
            ("length_km", 0 < self.length_km < np.inf, "positive"),
            ("seed", self.seed >= 0, "0 or more"),
        ):
            if not fits:
                raise ValueError(f"{name} of a perturbation must be {wanted}, got {getattr(self, name)}")

    def fields(self, grid: Grid, start: np.datetime64, member: int, channels: int) -> Floats:
        """Return what is added, shape (C, H, W), in units of the standard deviation of the anomalies."""
        if member == 0:
            return np.zeros((channels, *grid.shape), dtype=np.float32)
        second = int(start.astype("datetime64[s]").astype(np.int64))
        random = np.random.default_rng([self.seed, member, second % 2**63])
        return np.stack([self.amplitude * random_field(grid, self.length_km, random) for _ in range(channels)])


def random_field(grid: Grid, length_km: float, random: np.random.Generator) -> Floats:
    """Return a smooth Gaussian field on the sphere, shape (H, W): mean 0, variance 1.

    A sum of plane waves through the ball, sqrt(2 / K) sum_k cos(w_k . x + phase_k), whose wave vectors w have the
    distribution that is the Fourier transform of the wanted correlation: normal, with standard deviation 1 / length
    (A. Rahimi, B. Recht 2007, Random features for large-scale kernel machines, NIPS 20).
    """
    latitude, longitude = np.radians(grid.latitude)[:, None], np.radians(grid.longitude)[None, :]
    place = np.broadcast_arrays(
        np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)
    )
    points = np.stack(place, axis=-1).astype(np.float32)
    waves = random.normal(0, EARTH_RADIUS_KM / length_km, (3, _WAVES)).astype(np.float32)
    phases = random.uniform(0, 2 * np.pi, _WAVES).astype(np.float32)
    total = np.zeros(grid.shape, dtype=np.float32)
    for first in range(0, _WAVES, _AT_ONCE):
        some = slice(first, first + _AT_ONCE)
        total += np.cos(points @ waves[:, some] + phases[some]).sum(axis=-1)
    return total * np.float32(np.sqrt(2 / _WAVES))


def combine_members(forecasts: Sequence[xr.Dataset]) -> xr.Dataset:
    """Return forecasts for the same start times, such as those of several trained models, as members of an ensemble.

    Args:
        forecasts: dims (init_time[, realization], lead_time, latitude, longitude); one with members brings them all.

    Returns:
        Dims (init_time, realization, lead_time, latitude, longitude), members numbered from 0 in the order given.
        The attributes ``model`` and ``model_identity`` list those of the forecasts.

    Raises:
        ValueError: if there is none, or if variables, start times, leads or points differ.
    """
    if not forecasts:
        raise ValueError("forecasts must hold at least one member, got none")
    first = forecasts[0]
    for number, other in enumerate(forecasts):
        if set(other.data_vars) != set(first.data_vars):
            raise ValueError(
                f"members must have the same variables, {list(first.data_vars)}, forecast {number} has "
                f"{list(other.data_vars)}; select the common ones"
            )
        for name in ("init_time", "lead_time", "latitude", "longitude"):
            if not first.indexes[name].equals(other.indexes[name]):
                raise ValueError(
                    f"members must have the same {name}, {_span(first[name])}, forecast {number} has "
                    f"{_span(other[name])}; make the forecasts alike, or select what they have in common"
                )
    several = [
        one.drop_vars("realization", errors="ignore")
        if "realization" in one.dims
        else one.drop_vars("realization", errors="ignore").expand_dims("realization")
        for one in forecasts
    ]
    whole = xr.concat(
        several, dim="realization", data_vars="minimal", coords="minimal", compat="override", combine_attrs="override"
    )
    origin = {
        name: ", ".join(str(one.attrs[name]) for one in forecasts if name in one.attrs)
        for name in ("model", "model_identity")
        if name in first.attrs
    }
    members = np.arange(whole.sizes["realization"], dtype=np.int32)
    whole = whole.transpose("init_time", "realization", "lead_time", ...)
    return whole.assign_coords(realization=members).assign_attrs(origin)


def _span(values: xr.DataArray) -> str:
    return f"{values.size} from {values.values[0]} to {values.values[-1]}"
