"""Whether a learned link is more than chance: weights against those of other seeds, and of surrogate data.

Two questions, two nulls:

    seeds       Would another training find it? Models of other seeds on the same data: the mean weight of a pair against
                the scatter of its weights. A link that passes is reproducible, which an artefact of the network's form, or
                of the edge of the region, can be too. Of four models the tail of t is fat: on NCEP's North America no
                pair of all stands out over four and from surrogates, one in seven does over eight.
    surrogates  Is it in the data? Models trained on data without it (``climapred.results.links.surrogates``): the weight of a
                pair against those that the same network gives it there.

A training is costly, so there are few members, M. What they can show:

    empirical   p = (1 + number of members with a weight at least as large) / (M + 1). No assumption, and never below
                1 / (M + 1): with M = 3 nothing can be significant at 5 %, with M = 19 a single pair just can, and none that
                must stand out among thousands.
    gaussian    the weight against a normal distribution fitted to the members, by Student's t with M - 1 degrees of freedom:
                t = (w - mean) / (s sqrt(1 + 1 / M)). It can be as small as you like, by the assumption that the tail is
                normal; but with M = 5 the tail of t is so fat that of a hundred thousand pairs next to none passes
                (benchmarks/results/links.md). It takes M = 10 or more.
    pooled      p = (1 + number of null weights of all pairs at about the same distance, over all members, that are at least as
                large) / (1 + their number). Thousands of pairs make up for few members, if pairs at the same distance are
                alike where no link is; members of one training are not independent, so take it for a ranking with a
                scale, not for an exact level.

Thousands of pairs are tested at once; ``significant`` controls the share of false discoveries (Benjamini and Hochberg 1995;
for fields see Wilks 2016, doi:10.1175/BAMS-D-15-00267.1).
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import xarray as xr

Method = Literal["pooled", "gaussian", "empirical"]
Floats = npt.NDArray[np.float64]

_BANDS = 20  # of distance, with as many pairs each


def null_p_values(
    weights: xr.DataArray, null: xr.DataArray, *, method: Method = "pooled", distance: xr.DataArray | None = None
) -> xr.DataArray:
    """Return the p-value of each weight, one-sided: how likely the null gives one as large or larger.

    Args:
        weights: any dims; pairs of nodes, or a map of one place.
        null: those of models trained on surrogates, with the further dim ``member``.
        method: see the module.
        distance: of the pairs, km, dims as ``weights``; "pooled" compares pairs of about the same distance.

    Raises:
        ValueError: if there is no member (for "gaussian" fewer than 2), if dims do not fit, or a distance is missing.
    """
    values, members = _aligned(weights, null, least=2 if method == "gaussian" else 1)
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if method == "empirical":
        found = (1 + (members >= values).sum(axis=0)) / (1 + len(members))
    elif method == "gaussian":
        found = _t_test(values - members.mean(axis=0), members.std(axis=0, ddof=1), 1 + 1 / len(members), len(members))
    else:
        if distance is None:
            raise ValueError("method 'pooled' needs the distance of the pairs")
        found = _pooled(values, members, distance.transpose(*weights.dims).values)
    return _described(weights, found, f"p-value against {len(members)} models of surrogate data, {method}")


def seed_p_values(weights: xr.DataArray) -> xr.DataArray:
    """Return the p-value of each pair: how likely seeds that do not agree on it give a mean weight this far above the rest.

    A one-sided t-test: mean over the seeds against that of the typical pair, the median over all of them, in units of the
    scatter of the pair over the S seeds, s / sqrt(S), with S - 1 degrees of freedom. (The mean over all pairs would be that
    of the neighbours, which outweigh all others.)

    Args:
        weights: of models of several seeds, dim ``member`` among others.

    Raises:
        ValueError: for fewer than 2 members.
    """
    mean = weights.mean("member", skipna=False)
    _, members = _aligned(mean, weights, least=2)
    excess = mean.values - np.median(mean.values)
    found = _t_test(excess, members.std(axis=0, ddof=1), 1 / len(members), len(members))
    return _described(mean, found, f"p-value over {len(members)} seeds")


def significant(p_values: xr.DataArray, level: float = 0.05) -> xr.DataArray:
    """Return where a p-value is significant if no more than a share ``level`` of all that are may be false.

    Benjamini and Hochberg's procedure over all finite values; NaN is not significant. Its complement is what a map stipples.

    >>> significant(xr.DataArray([0.001, 0.02, 0.04, 0.9, float("nan")], dims="x")).values
    array([ True,  True, False, False, False])
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    values = p_values.values
    finite = np.isfinite(values)
    found = np.zeros(values.shape, dtype=bool)
    if finite.any():
        from scipy.stats import false_discovery_control  # loaded where used: it takes as long as a map

        found[finite] = false_discovery_control(values[finite]) <= level
    attributes = {"long_name": f"significant, false discovery rate {level:g}", "level": level}
    return p_values.copy(data=found).rename("significant").assign_attrs(attributes)


def _aligned(weights: xr.DataArray, null: xr.DataArray, *, least: int) -> tuple[Floats, Floats]:
    if set(null.dims) != {"member", *weights.dims}:
        raise ValueError(f"the null must have the dims ('member', *{weights.dims}), got {null.dims}")
    if null.sizes["member"] < least:
        raise ValueError(f"the null needs {least} members or more, got {null.sizes['member']}")
    members = null.transpose("member", *weights.dims).values.astype(np.float64)
    if members.shape[1:] != weights.shape:
        raise ValueError(f"the null must have the shape of the weights, {weights.shape}, got {members.shape[1:]}")
    return weights.values.astype(np.float64), members


def _t_test(excess: Floats, spread: Floats, variance: float, members: int) -> Floats:
    """Return Student's one-sided p-values; without any scatter 0 above the mean, 1 at it or below."""
    from scipy.stats import t  # loaded where used: it takes as long as a map

    scale = spread * np.sqrt(variance)
    certain = scale == 0
    found = t.sf(excess / np.where(certain, 1.0, scale), members - 1)
    return np.where(certain, np.where(excess > 0, 0.0, 1.0), found)


def _pooled(values: Floats, members: Floats, distance: Floats) -> Floats:
    flat, pool, order = values.ravel(), members.reshape(len(members), -1), np.argsort(distance.ravel(), kind="stable")
    found = np.empty(flat.size)
    for band in np.array_split(order, min(_BANDS, order.size)):
        null = np.sort(pool[:, band].ravel())
        larger = null.size - np.searchsorted(null, flat[band], side="left")
        found[band] = (1 + larger) / (1 + null.size)
    return found.reshape(values.shape)


def _described(weights: xr.DataArray, values: Floats, long_name: str) -> xr.DataArray:
    return weights.copy(data=values).rename("p_value").assign_attrs({"units": "1", "long_name": long_name})
