import numpy as np
import pytest
import torch

from climapred.learning.objective import Feeding, leads_in_epoch, mean_loss

SHAPE = (2, 3, 2, 4, 5)  # windows, leads, variables, latitudes, longitudes


def make_error(seed=0):
    return np.random.default_rng(seed).normal(size=SHAPE)


PLAIN = {"mse": np.square, "mae": np.abs, "mse+mae": lambda error: error**2 + np.abs(error)}
AREAS = {
    "all alike": None,
    "by latitude": np.cos(np.deg2rad([-60, -20, 20, 60]))[:, None],
    "by cell": np.random.default_rng(1).uniform(1, 2, size=SHAPE[-2:]),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("areas", AREAS)
@pytest.mark.parametrize("kind", PLAIN)
def test_a_loss_is_the_weighted_mean_of_plain_numpy(kind, areas, masked):
    error, counts = make_error(), np.random.default_rng(2).random(SHAPE) < 0.7
    weights = AREAS[areas]
    expected_weights = np.broadcast_to(1.0 if weights is None else weights, SHAPE) * (counts if masked else 1)
    expected = np.average(PLAIN[kind](error), weights=expected_weights)
    found = mean_loss(
        torch.from_numpy(np.where(counts, error, np.nan) if masked else error).float(),
        kind,
        weights=None if weights is None else torch.from_numpy(weights).float(),
        mask=torch.from_numpy(counts) if masked else None,
    )
    assert found.shape == ()
    assert float(found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", PLAIN)
def test_the_gradient_is_zero_where_a_value_is_masked(kind):
    error = torch.from_numpy(make_error())
    mask = torch.ones(SHAPE, dtype=torch.bool)
    mask[0, 1, 0, 2] = mask[1, 2, 1, :, 3] = False
    forecast = torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True)
    areas = torch.from_numpy(AREAS["by cell"])
    mean_loss(forecast - torch.where(mask, error, np.nan), kind, weights=areas, mask=mask).backward()
    slope = {"mse": -2 * error, "mae": -error.sign(), "mse+mae": -2 * error - error.sign()}[kind]
    expected = torch.where(mask, slope * areas, 0.0) / (mask * areas).sum()
    torch.testing.assert_close(forecast.grad, expected)
    assert (forecast.grad[~mask] == 0).all()


def test_a_batch_without_a_value_that_counts_teaches_nothing():
    forecast = torch.zeros(SHAPE, requires_grad=True)
    loss = mean_loss(forecast - torch.nan, "mse", mask=torch.zeros(SHAPE, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert (forecast.grad == 0).all()


# After 0, 1/8, 1/4, 3/8, 1/2 and all of the steps, with end = 1/2; (frames, leads).
# Scheduled: leads 1 - progress / end. Reverse: both one half until end / 2; then with late = 2 progress / end - 1 frames
# 1 - exp(-5 late) / 2 and leads (1 - late) / 2.
CHANCES = {
    "none": [(1, 0)] * 6,
    "scheduled": [(1, 1), (1, 0.75), (1, 0.5), (1, 0.25), (1, 0), (1, 0)],
    "reverse": [(0.5, 0.5), (0.5, 0.5), (0.5, 0.5), (1 - np.exp(-2.5) / 2, 0.25), (1, 0), (1, 0)],
}


@pytest.mark.parametrize("kind", CHANCES)
def test_the_chances_of_the_truth_follow_their_formulas(kind):
    feeding = Feeding(kind, end=0.5)
    found = [feeding.chances(progress) for progress in (0, 0.125, 0.25, 0.375, 0.5, 1)]
    np.testing.assert_allclose(found, CHANCES[kind], rtol=1e-12)


@pytest.mark.parametrize("end", [0.3, 1.0])
@pytest.mark.parametrize("kind", CHANCES)
def test_frames_become_true_and_leads_its_own_and_never_back(kind, end):
    feeding = Feeding(kind, end=end)
    frames, leads = np.transpose([feeding.chances(progress) for progress in np.linspace(0, 1, 101)])
    assert (np.diff(frames) >= 0).all()
    assert (np.diff(leads) <= 0).all()
    # What is left to chance just before the end is at most exp(-5) / 2 of the frames.
    assert feeding.chances(end * (1 - 1e-9)) == pytest.approx((1, 0), abs=0.5 * np.exp(-5) + 1e-6)
    assert feeding.chances(1.0) == (1.0, 0.0)


@pytest.mark.parametrize("progress", [0.0, 0.2, 0.45])
@pytest.mark.parametrize("kind", ["scheduled", "reverse"])
def test_each_window_draws_the_truth_with_its_chance(kind, progress):
    feeding = Feeding(kind, end=0.5)
    windows, seen, leads = 4000, 4, 3
    drawn = feeding.use_truth(windows, seen, leads, progress, (7, 1))
    assert drawn.shape == (windows, seen + leads - 1)
    assert drawn.dtype == torch.bool
    assert drawn[:, 0].all()
    frames, ahead = feeding.chances(progress)
    expected = np.array([1, frames, frames, frames, ahead, ahead])
    # Five standard deviations of a mean of 4000 draws.
    spread = 5 * np.sqrt(expected * (1 - expected) / windows)
    assert (np.abs(drawn.double().mean(dim=0).numpy() - expected) <= spread).all()


def test_the_same_seed_draws_the_same_and_another_one_does_not():
    feeding = Feeding("reverse")
    first, again, other = (feeding.use_truth(16, 4, 3, 0.1, (3, place)) for place in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_nothing_is_drawn_where_nothing_is_left_to_chance():
    assert Feeding("none").use_truth(4, 3, 2, 0.1, (0,)) is None
    assert Feeding("scheduled", end=0.5).use_truth(4, 3, 2, 0.5, (0,)) is None
    # A single lead feeds nothing back; the frames that are read may still be their own forecasts.
    assert Feeding("reverse").use_truth(4, 3, 1, 0.0, (0,)).shape == (4, 3)


def test_the_leads_of_an_epoch_grow_to_the_horizon():
    assert [leads_in_epoch(7, epoch, 0) for epoch in range(3)] == [7, 7, 7]
    assert [leads_in_epoch(7, epoch, 4) for epoch in range(6)] == [1, 3, 4, 5, 7, 7]  # 1 + 6 epoch / 4, halves to even
    assert [leads_in_epoch(1, epoch, 3) for epoch in range(4)] == [1, 1, 1, 1]
    for horizon in range(1, 13):
        for curriculum in range(1, 9):
            leads = [leads_in_epoch(horizon, epoch, curriculum) for epoch in range(curriculum + 2)]
            assert leads == sorted(leads)
            assert (leads[0], leads[-1]) == (1, horizon)
            assert max(np.diff(leads)) <= np.ceil((horizon - 1) / curriculum)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="sampling must be one of none, scheduled, reverse, got 'random'"):
        Feeding("random")
    for end in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"sampling_end is a share of the steps, above 0 and up to 1, got {end}"):
            Feeding("scheduled", end)
