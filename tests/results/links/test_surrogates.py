import numpy as np
import pytest
import xarray as xr

from climapred.grid import Grid, great_circle_km
from climapred.results.links.adjacency import nodes
from climapred.results.links.surrogates import block_shuffled, phase_randomised

GRID = Grid(np.linspace(20, 70, 6), np.linspace(180, 300, 9))


def anomalies(count=240, seed=0):
    """A common red noise with a lag that grows eastwards, and noise of each point: coherent everywhere, never in phase."""
    random = np.random.default_rng(seed)
    driver = np.convolve(random.standard_normal(count + 100), 0.8 ** np.arange(30), "valid")
    lags = np.broadcast_to(np.arange(9), GRID.shape)
    values = np.stack([driver[60 - lag : 60 - lag + count - 60] for lag in lags.ravel()], axis=1)
    values = values.reshape(-1, *GRID.shape) + 0.5 * random.standard_normal((len(values), *GRID.shape))
    times = np.datetime64("2013-01-01", "ns") + np.timedelta64(6, "h") * np.arange(len(values))
    return xr.DataArray(values, {"time": times, **GRID.coordinates()}, ("time", "latitude", "longitude"), "t2m")


def spectra(field):
    return np.fft.rfft(field.values.reshape(len(field), -1), axis=0)


def coherence(before, after):
    """|sum over frequencies of after_x after_y* times (before_x before_y*)*| over that of the moduli, (N, N): 1 where every
    cross-spectrum is turned by the same angle, 0 on average where each by its own."""
    turns = after[1:-1] / before[1:-1]
    return np.abs(np.einsum("fx,fy->xy", turns, turns.conj())) / len(turns)


@pytest.mark.parametrize("count", [240, 241])
@pytest.mark.parametrize("length", [0.0, 1000.0, np.inf])
def test_every_point_keeps_its_spectrum_and_its_mean(count, length):
    field = anomalies(count)
    made = phase_randomised(field, seed=1, length_km=length)
    before, after = spectra(field), spectra(made)
    np.testing.assert_allclose(np.abs(after), np.abs(before), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(after[0], before[0])
    assert np.abs(after[1:] - before[1:]).mean() > 0.5 * np.abs(before[1:]).mean()
    assert made.dims == field.dims
    xr.testing.assert_equal(made.coords.to_dataset(), field.coords.to_dataset())


def test_common_phases_keep_every_cross_spectrum():
    field = anomalies()
    before, after = spectra(field), spectra(phase_randomised(field, seed=1, length_km=np.inf))
    cross = [np.einsum("fx,fy->fxy", spectrum, spectrum.conj()) for spectrum in (before, after)]
    np.testing.assert_allclose(cross[1], cross[0], rtol=1e-8, atol=1e-8 * np.abs(cross[0]).max())


def test_phases_of_their_own_leave_nothing_between_points():
    field = anomalies()
    left = coherence(spectra(field), spectra(phase_randomised(field, seed=1)))
    np.fill_diagonal(left, 0)
    assert left.max() < 5 / np.sqrt(89)  # |mean of 89 random turns|: Rayleigh with sigma = 1 / sqrt(2 x 89), 1431 pairs


def test_smooth_phases_keep_neighbours_and_part_what_is_far():
    """Turns have the coherence of angles of a Gaussian field of correlation r: pi/4 r 2F1(1/2, 1/2; 2; r^2), mean resultant."""
    from scipy.special import hyp2f1

    length, field = 1000.0, anomalies(1000)
    before = spectra(field)
    left = np.mean(
        [coherence(before, spectra(phase_randomised(field, seed=s, length_km=length))) for s in range(4)], axis=0
    )
    latitude, longitude = nodes(GRID)
    distance = great_circle_km(latitude[:, None], longitude[:, None], latitude, longitude)
    correlation = np.exp(-((distance / length) ** 2) / 2)
    expected = np.pi / 4 * correlation * hyp2f1(0.5, 0.5, 2, correlation**2)
    near = distance < 2000
    # 468 frequencies and 4 seeds: a mean resultant is known to 1 / sqrt(468); the waves are as many again
    np.testing.assert_allclose(left[near], expected[near], atol=0.15)
    assert left[distance > 4000].mean() < 0.06


def test_seeds_give_the_same_and_others():
    field = anomalies()
    one, again, other = (phase_randomised(field, seed=seed, length_km=500) for seed in (1, 1, 2))
    xr.testing.assert_identical(one, again)
    assert np.abs(one - other).mean() > 0.1


@pytest.mark.parametrize("common", [True, False])
@pytest.mark.parametrize("block", [20, 33])
def test_blocks_keep_every_value_and_their_order_inside(common, block):
    field = anomalies()
    made = block_shuffled(field, block=block, seed=3, common=common)
    flat, moved = (x.values.reshape(len(field), -1) for x in (field, made))
    np.testing.assert_array_equal(np.sort(moved, axis=0), np.sort(flat, axis=0))
    places = np.stack([np.searchsorted(np.sort(x), y) for x, y in zip(flat.T, moved.T, strict=True)], axis=1)
    origin = np.take_along_axis(np.argsort(flat, axis=0), places, axis=0)
    kept = (np.diff(origin, axis=0) - 1) % len(field) == 0
    cuts = (~kept).sum(axis=0)
    assert (cuts <= -(-len(field) // block)).all()
    assert (cuts > 0).mean() > 0.9  # six blocks may by chance be in their old order
    assert (np.ptp(origin, axis=1) == 0).all() == common  # all points have the same order


def test_common_blocks_keep_what_points_say_of_each_other_and_blocks_of_their_own_do_not():
    field = anomalies(600)
    pair = [field[:, 2, 2], field[:, 2, 3]]
    before = float(xr.corr(*pair))
    common, own = (block_shuffled(field, block=40, seed=0, common=kept) for kept in (True, False))
    assert float(xr.corr(common[:, 2, 2], common[:, 2, 3])) == pytest.approx(before)
    assert abs(float(xr.corr(own[:, 2, 2], own[:, 2, 3]))) < before / 2


def test_errors_name_what_was_wanted():
    field = anomalies()
    gap = np.delete(np.arange(len(field)), 5)
    for make in (lambda x: phase_randomised(x, seed=0), lambda x: block_shuffled(x, block=9, seed=0)):
        with pytest.raises(ValueError, match=r"evenly spaced times, got steps of .*21600 seconds.*43200 seconds"):
            make(field[gap])
        with pytest.raises(ValueError, match="must be finite, got 1 values"):
            make(field.where((field["time"] != field["time"][3]) | (field != field[3, 0, 0])))
        with pytest.raises(ValueError, match="anomalies must have the dims"):
            make(field[:, 0])
    with pytest.raises(ValueError, match="length_km must be 0 or more, got -1"):
        phase_randomised(field, seed=0, length_km=-1)
    with pytest.raises(ValueError, match="block must lie between 1 and half of the 180 times, got 91"):
        block_shuffled(field, block=91, seed=0)
