"""Anomalies that could have been, but for the links: what a learned weight is to be compared with.

A network that learns from surrogates finds links, too: by chance, at the edges of the region, or where its form favours
them. What the true data give beyond that is in the data. Which question is answered depends on what a surrogate keeps
(Theiler et al. 1992, doi:10.1016/0167-2789(92)90102-S; Prichard and Theiler 1994, doi:10.1103/PhysRevLett.73.951):

    phase_randomised
      length_km = inf  the same random phases everywhere: every spectrum, and every cross-spectrum. All linear links stay: a
                       null only for what is more than linear.
      length_km = 0    phases of their own at each point: every spectrum, and nothing between any two points. Neighbours are
                       as strange as antipodes: a weight that beats it may be nothing but a neighbour's.
      between          phases that are alike for neighbours and independent far away: every spectrum, what neighbours say of
                       each other, and nothing beyond a few lengths. The null for links that are longer than that.
    block_shuffled     blocks of successive times in another order: every value, and all within a block. With a common order
                       all links shorter than a block stay; with an order for each point, as with length_km = 0, none do.

Phases turn values towards a Gaussian; blocks keep them, and cut the spectrum at their ends.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.fft
import xarray as xr

from climapred.grid import EARTH_RADIUS_KM, Grid
from climapred.results.links.adjacency import nodes

_DIMS = ("time", "latitude", "longitude")
_WAVES = 2048  # of which smooth random fields are made: their correlation is off by 1 / sqrt of that


def phase_randomised(anomalies: xr.DataArray, *, seed: int, length_km: float = 0.0) -> xr.DataArray:
    """Return anomalies whose Fourier phases are turned at random; the module says what that keeps.

    At each frequency, point x has its coefficient turned by phi(x): independent of all others for a length of 0, the same for
    an infinite one, and in between the angle of a complex Gaussian random field of correlation exp(-d^2 / 2 length^2) at
    the distance d. Two points that are far nearer than the length keep their coherence, those several lengths apart lose it.

    Args:
        anomalies: dims (time, latitude, longitude), evenly spaced times, no NaN; they are loaded.
        seed: of the phases.
        length_km: see above.

    Raises:
        ValueError: if times are not evenly spaced, if a value is missing, or the length is negative.
    """
    values = _checked(anomalies)
    if not length_km >= 0:
        raise ValueError(f"length_km must be 0 or more, got {length_km}")
    size, points = values.shape[0], values[0].size
    spectrum = scipy.fft.rfft(values.reshape(size, -1), axis=0)
    random = np.random.default_rng(seed)
    if np.isinf(length_km):
        turns = np.exp(2j * np.pi * random.random((len(spectrum), 1)))
    elif length_km == 0:
        turns = np.exp(2j * np.pi * random.random((len(spectrum), points)))
    else:
        turns = _smooth_turns(Grid.of(anomalies), length_km, len(spectrum), random)
    turns[0] = 1  # the mean
    if size % 2 == 0:
        turns[-1] = np.where(turns[-1].real < 0, -1, 1)  # the shortest wave is real
    found = scipy.fft.irfft(spectrum * turns, n=size, axis=0)
    return _like(anomalies, found.reshape(values.shape))


def block_shuffled(anomalies: xr.DataArray, *, block: int, seed: int, common: bool = True) -> xr.DataArray:
    """Return anomalies whose blocks of successive times are in another order; the module says what that keeps.

    The first block begins at a random time, and the series is taken for a circle, so that no time is special; the last block
    is shorter where the times are no multiple of ``block``.

    Args:
        anomalies: dims (time, latitude, longitude); they are loaded.
        block: times in a block: longer than the anomalies remember, and than the lags that a network sees.
        seed: of the order.
        common: one order for all points; else one for each.

    Raises:
        ValueError: if times are not evenly spaced, if a value is missing, or if there are not two blocks.
    """
    values = _checked(anomalies)
    size = len(values)
    if not 1 <= block <= size // 2:
        raise ValueError(f"block must lie between 1 and half of the {size} times, got {block}")
    random = np.random.default_rng(seed)

    def order() -> npt.NDArray[np.intp]:
        starts = np.arange(0, size, block)
        pieces = [np.arange(start, min(start + block, size)) for start in starts[random.permutation(len(starts))]]
        return (np.concatenate(pieces) + random.integers(size)) % size

    flat = values.reshape(size, -1)
    if common:
        found = flat[order()]
    else:
        found = np.take_along_axis(flat, np.stack([order() for _ in range(flat.shape[1])], axis=1), axis=0)
    return _like(anomalies, found.reshape(values.shape))


def _checked(anomalies: xr.DataArray) -> npt.NDArray[np.float64]:
    if set(anomalies.dims) != {*_DIMS}:
        raise ValueError(f"anomalies must have the dims {_DIMS}, got {anomalies.dims}")
    steps = np.diff(anomalies["time"].values)
    if steps.size < 3 or (steps != steps[0]).any():
        raise ValueError(
            "surrogates need 4 or more evenly spaced times, got steps of "
            f"{sorted({str(step) for step in steps.astype('timedelta64[s]')})[:3]}; choose a period without gaps"
        )
    values = anomalies.transpose(*_DIMS).values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"anomalies must be finite, got {np.count_nonzero(~np.isfinite(values))} values that are not")
    return values


def _like(anomalies: xr.DataArray, values: npt.NDArray[np.float64]) -> xr.DataArray:
    made = anomalies.transpose(*_DIMS).copy(data=values.astype(anomalies.dtype))
    return made.transpose(*anomalies.dims)


def _smooth_turns(grid: Grid, length_km: float, count: int, random: np.random.Generator) -> npt.NDArray[np.complex128]:
    """Return ``count`` fields of unit complex numbers, shape (count, N), alike over about a length.

    Plane waves through space, of Gaussian wavenumbers, have a Gaussian correlation of the straight distance, and so nearly
    one of the distance along the sphere (Rahimi and Recht 2007, random Fourier features).
    """
    phi, along = (np.radians(axis) for axis in nodes(grid))
    places = np.stack([np.cos(phi) * np.cos(along), np.cos(phi) * np.sin(along), np.sin(phi)], axis=1)
    waves = random.standard_normal((3, _WAVES)) * EARTH_RADIUS_KM / length_km
    basis = np.exp(1j * (places @ waves))
    fields = np.empty((count, len(places)), np.complex128)
    for start in range(0, count, 256):
        here = slice(start, min(start + 256, count))
        amplitudes = random.standard_normal((here.stop - start, _WAVES, 2)) @ np.array([1, 1j])
        fields[here] = amplitudes @ basis.T
    return fields / np.abs(fields)
