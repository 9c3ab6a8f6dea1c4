"""Measures of one forecast field, or of one ensemble, against what happened: SSIM, PSNR, CRPS; NumPy in, NumPy out."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter, uniform_filter

Floats = npt.NDArray[np.float64]

# What the tables of the LS-NTP paper were computed with. PSNR's range was given; SSIM's was not, and scikit-image 0.17 took
# that of floating-point images in [-1, 1]. Kelvin have neither: the numbers can be set beside that paper's, and no other's.
PAPER_RANGES = {"ssim": 2.0, "psnr": 255.0}

WINDOW = 7  # points; the side of SSIM's square


def psnr(first: npt.ArrayLike, second: npt.ArrayLike, *, data_range: float, masked: bool = False) -> Floats:
    """Return the peak signal-to-noise ratio in dB: 10 log10(data_range^2 / MSE); infinite for equal fields.

    Args:
        first, second: shape (..., H, W); the MSE is the plain mean over the last two axes.
        data_range: highest minus lowest value that the fields can take, in their units.
        masked: leave NaN out of the mean; else it makes its field's value NaN.

    Returns:
        Shape (...,); NaN for a field without values.
    """
    squared = (np.asarray(first, np.float64) - np.asarray(second, np.float64)) ** 2
    there = ~np.isnan(squared) if masked else np.ones_like(squared, dtype=bool)
    count = there.sum(axis=(-2, -1))
    mse = np.where(there, squared, 0.0).sum(axis=(-2, -1)) / np.where(count > 0, count, np.nan)
    with np.errstate(divide="ignore"):
        ratio: Floats = 10 * np.log10(data_range**2 / mse)
    return ratio


def ssim(first: npt.ArrayLike, second: npt.ArrayLike, *, data_range: float, masked: bool = False) -> Floats:
    """Return the structural similarity, mean over all windows of 7 x 7 points that lie inside the field.

    Of each window, with means m, sample variances v (N - 1) and sample covariance c, all points of equal weight,

        (2 m1 m2 + C1) (2 c + C2) / ((m1^2 + m2^2 + C1) (v1 + v2 + C2)),  C1 = (0.01 R)^2,  C2 = (0.03 R)^2

    (Wang et al. 2004, doi:10.1109/TIP.2003.819861, eq. 13, with the uniform window that scikit-image takes by default).
    C1 and C2 belong to the data range R: another R is another measure.

    Args:
        first, second: shape (..., H, W).
        data_range: R, highest minus lowest value that the fields can take, in their units.
        masked: leave out windows with NaN; else it makes its field's value NaN.

    Returns:
        Shape (...,); NaN for a field without a whole window.

    Raises:
        ValueError: if the fields are smaller than a window, or the data range is not positive.
    """
    one, two = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if min(one.shape[-2:]) < WINDOW:
        raise ValueError(
            f"SSIM needs fields of at least {WINDOW} x {WINDOW} points, got {one.shape[-2]} x {one.shape[-1]}; "
            "leave it out (data_range=None), or choose a larger region"
        )
    if not data_range > 0:
        raise ValueError(f"data_range must be positive, got {data_range}")
    gone = np.isnan(one) | np.isnan(two)
    similarity = _window_similarity(np.where(gone, 0.0, one), np.where(gone, 0.0, two), data_range)
    if not gone.any():
        return np.asarray(similarity.mean(axis=(-2, -1)))
    whole = ~_inside(maximum_filter(gone, size=_square(gone)))
    count = whole.sum(axis=(-2, -1))
    wanted = count > 0 if masked else ~gone.any(axis=(-2, -1))
    return np.where(whole, similarity, 0.0).sum(axis=(-2, -1)) / np.where(wanted, count, np.nan)


def _window_similarity(one: Floats, two: Floats, data_range: float) -> Floats:
    def mean(values: Floats) -> Floats:
        return _inside(uniform_filter(values, size=_square(values)))

    sample = WINDOW**2 / (WINDOW**2 - 1)
    mean_1, mean_2 = mean(one), mean(two)
    variances = sample * (mean(one**2) + mean(two**2) - mean_1**2 - mean_2**2)
    covariance = sample * (mean(one * two) - mean_1 * mean_2)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    similarity: Floats = (2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)
    return similarity / ((mean_1**2 + mean_2**2 + c1) * (variances + c2))


def _square(values: npt.NDArray[Any]) -> tuple[int, ...]:
    """Return the size of a filter that works on the last two axes only."""
    return (*(1,) * (values.ndim - 2), WINDOW, WINDOW)


def _inside(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the centres of the windows that lie inside the field."""
    edge = WINDOW // 2
    return values[..., edge:-edge, edge:-edge]


def crps(members: npt.ArrayLike, observed: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Return the continuous ranked probability score of an ensemble, plain and fair, in the units of the fields.

        mean_i |x_i - y| - sum_ij |x_i - x_j| / (2 M^2)          plain: of the M members as they are
        mean_i |x_i - y| - sum_ij |x_i - x_j| / (2 M (M - 1))    fair: expected for ever more such members

    (Ferro 2014, doi:10.1002/qj.2270, eqs. 2 and 6.) The double sum is that of the sorted members, each times
    2 (2 i - M - 1), i = 1..M. Of a single member the plain score is its absolute error; the fair one is NaN.

    Args:
        members: shape (..., M).
        observed: shape (...,).

    Returns:
        Both of shape (...,); NaN where a member or the observation is missing.
    """
    forecasts = np.sort(np.asarray(members, np.float64), axis=-1)
    count = forecasts.shape[-1]
    distance = np.abs(forecasts - np.asarray(observed, np.float64)[..., None]).mean(axis=-1)
    spread = forecasts @ (2.0 * np.arange(1, count + 1) - count - 1)  # half the double sum
    fair = distance - spread / (count * (count - 1)) if count > 1 else np.full_like(distance, np.nan)
    return distance - spread / count**2, fair
