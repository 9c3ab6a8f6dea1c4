import numpy as np
import pytest
import xarray as xr
from scipy.stats import kstest, ttest_1samp

from climapred.results.links.significance import null_p_values, seed_p_values, significant

DIMS = ("node_target", "node_source")


def pairs(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def as_null(values):
    return xr.DataArray(values, dims=("member", *DIMS))


@pytest.mark.parametrize("method", ["gaussian", "pooled"])
@pytest.mark.parametrize("members", [3, 10])
def test_without_a_link_p_values_are_uniform(method, members):
    """Null weights whose size depends on the distance alone: 1600 p-values, the Kolmogorov-Smirnov test at 0.1 %."""
    distance = np.random.default_rng(9).uniform(0, 5000, (40, 40))
    scale = np.exp(-distance / 2000)
    weights = xr.DataArray(scale * pairs(40, 40, seed=1), dims=DIMS)
    null = as_null(scale * pairs(members, 40, 40, seed=2))
    found = null_p_values(weights, null, method=method, distance=xr.DataArray(distance, dims=DIMS))
    assert kstest(found.values.ravel(), "uniform").pvalue > 1e-3
    assert not significant(found).any()


def test_a_planted_link_stands_out_where_the_method_can_show_it():
    weights, null = pairs(30, 30, seed=3), as_null(pairs(5, 30, 30, seed=4))
    weights[3, 7] = 40.0
    given = xr.DataArray(weights, dims=DIMS)
    found = {
        method: null_p_values(given, null, method=method, distance=xr.zeros_like(given))
        for method in ("empirical", "gaussian", "pooled")
    }
    assert float(found["empirical"][3, 7]) == pytest.approx(1 / 6)  # five members cannot say more
    assert not significant(found["empirical"]).any()
    assert float(found["pooled"][3, 7]) == pytest.approx(1 / (1 + 5 * 30 * 30 / 20), rel=0.05)  # a band of a twentieth
    assert float(found["gaussian"][3, 7]) < 1e-4
    assert bool(significant(null_p_values(given, as_null(pairs(60, 30, 30, seed=5)), method="gaussian"))[3, 7])


def test_the_gaussian_p_value_is_that_of_a_new_value_against_a_sample():
    """The prediction interval of a normal sample, by its definition: t of (w - mean) / (s sqrt(1 + 1/M))."""
    from scipy.stats import t

    sample, value = pairs(4, 1, 1, seed=6), 1.7
    expected = t.sf((value - sample.mean()) / (sample.std(ddof=1) * np.sqrt(1.25)), 3)
    found = null_p_values(xr.DataArray([[value]], dims=DIMS), as_null(sample), method="gaussian")
    assert found.item() == pytest.approx(expected)


def test_seeds_that_agree_are_told_by_a_t_test():
    weights = as_null(0.1 * pairs(4, 20, 20, seed=7))
    weights[:, 2, 5] += 3
    found = seed_p_values(weights)
    weights[:, np.arange(20), np.arange(20)] += 100  # each point and itself: no standard for the others
    rest = float(weights.mean("member").median())
    for i, j in ((2, 5), (0, 1), (19, 3)):
        expected = ttest_1samp(weights[:, i, j] - rest, 0, alternative="greater").pvalue
        assert float(found[i, j]) == pytest.approx(expected)
    assert float(found[2, 5]) < 1e-4
    assert bool(significant(found)[2, 5])


def test_a_null_without_scatter_is_certain():
    found = null_p_values(xr.DataArray([[1.0, 0.0, -1.0]], dims=DIMS), as_null(np.zeros((3, 1, 3))), method="gaussian")
    np.testing.assert_array_equal(found, [[0, 1, 1]])


def test_benjamini_and_hochberg_hold_the_share_of_false_discoveries():
    """100 true links among 2000 pairs, 200 times: the share of false ones is 5 % x 1900/2000 on average, +-0.5 %."""
    random, shares = np.random.default_rng(8), []
    from scipy.stats import norm

    for _ in range(200):
        score = random.standard_normal(2000)
        score[:100] += 4
        found = significant(xr.DataArray(norm.sf(score), dims="pair")).values
        assert found[:100].mean() > 0.5
        shares.append(found[100:].sum() / max(1, found.sum()))
    assert np.mean(shares) == pytest.approx(0.0475, abs=0.005)


def test_errors_name_what_was_wanted():
    weights, null = xr.DataArray(pairs(3, 3), dims=DIMS), as_null(pairs(2, 3, 3))
    with pytest.raises(ValueError, match="needs 2 members or more, got 1"):
        null_p_values(weights, null[:1], method="gaussian")
    with pytest.raises(ValueError, match="the null must have the dims"):
        null_p_values(weights, weights, method="gaussian")
    with pytest.raises(ValueError, match=r"the shape of the weights, \(3, 3\), got \(3, 2\)"):
        null_p_values(weights, null[:, :, :2], method="gaussian")
    with pytest.raises(ValueError, match="method must be one of pooled, gaussian, empirical, got 'normal'"):
        null_p_values(weights, null, method="normal")
    with pytest.raises(ValueError, match="'pooled' needs the distance"):
        null_p_values(weights, null, method="pooled")
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 5"):
        significant(weights, 5)
    assert not significant(xr.DataArray([np.nan, np.nan], dims="pair")).any()
