import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from climapred.results.metrics import crps, psnr, ssim


def fields(*shape, seed=0, mean=280.0, error=2.0):
    """Two smooth-ish temperature fields that differ by noise."""
    random = np.random.default_rng(seed)
    truth = mean + 5 * random.standard_normal(shape).cumsum(axis=-1).cumsum(axis=-2) / 5
    return truth, truth + error * random.standard_normal(shape)


@pytest.mark.parametrize("shape", [(7, 7), (21, 35), (8, 30)])
@pytest.mark.parametrize("data_range", [2.0, 60.0, 255.0])
def test_a_field_scores_as_in_scikit_image(shape, data_range):
    truth, forecast = fields(*shape)
    expected = structural_similarity(truth, forecast, data_range=data_range)
    assert ssim(truth, forecast, data_range=data_range) == pytest.approx(expected, rel=1e-9)
    expected = peak_signal_noise_ratio(truth, forecast, data_range=data_range)
    assert psnr(truth, forecast, data_range=data_range) == pytest.approx(expected, rel=1e-12)


def test_many_fields_score_as_one_by_one():
    truth, forecast = fields(3, 4, 9, 12)
    for measure in (ssim, psnr):
        found = measure(truth, forecast, data_range=50.0)
        assert found.shape == (3, 4)
        for index in np.ndindex(3, 4):
            assert found[index] == pytest.approx(float(measure(truth[index], forecast[index], data_range=50.0)))


def test_ssim_of_every_window_by_hand():
    truth, forecast = fields(9, 8, seed=1)
    c1, c2, values = (0.01 * 30) ** 2, (0.03 * 30) ** 2, []
    for row, column in np.ndindex(3, 2):
        a, b = (x[row : row + 7, column : column + 7].ravel() for x in (truth, forecast))
        (v1, c), (_, v2) = np.cov(a, b)
        m1, m2 = a.mean(), b.mean()
        values.append((2 * m1 * m2 + c1) * (2 * c + c2) / ((m1**2 + m2**2 + c1) * (v1 + v2 + c2)))
    assert float(ssim(truth, forecast, data_range=30.0)) == pytest.approx(np.mean(values), rel=1e-9)


def test_equal_fields_are_perfect():
    truth, _ = fields(9, 9)
    assert float(ssim(truth, truth, data_range=2.0)) == pytest.approx(1)
    assert float(psnr(truth, truth, data_range=255.0)) == np.inf


def test_psnr_of_a_constant_error_is_a_formula():
    # An error of 2.55 K and a range of 255: 20 log10(100) = 40 dB.
    truth, _ = fields(5, 5)
    assert float(psnr(truth, truth + 2.55, data_range=255.0)) == pytest.approx(40)


def test_missing_values_are_loud_or_left_out():
    truth, forecast = fields(2, 10, 12)
    truth[0, 0, 0] = np.nan  # in one window of 4 x 6
    for measure in (ssim, psnr):
        assert np.isnan(measure(truth, forecast, data_range=40.0)).tolist() == [True, False]
    masked = ssim(truth, forecast, data_range=40.0, masked=True)
    _, windows = structural_similarity(np.nan_to_num(truth[0], nan=1e3), forecast[0], data_range=40.0, full=True)
    assert masked[0] == pytest.approx(np.delete(windows[3:-3, 3:-3].ravel(), 0).mean(), rel=1e-9)
    assert masked[1] == pytest.approx(float(ssim(truth[1], forecast[1], data_range=40.0)))
    expected = 10 * np.log10(1600 / np.nanmean((truth[0] - forecast[0]) ** 2))
    assert psnr(truth, forecast, data_range=40.0, masked=True)[0] == pytest.approx(expected)
    empty = np.full((8, 8), np.nan)
    assert np.isnan(ssim(empty, forecast[0, :8, :8], data_range=1.0, masked=True))
    assert np.isnan(psnr(empty, forecast[0, :8, :8], data_range=1.0, masked=True))


def test_errors_say_what_does_not_fit():
    with pytest.raises(ValueError, match=r"SSIM needs fields of at least 7 x 7 points, got 6 x 9; leave it out"):
        ssim(*fields(6, 9), data_range=2.0)
    with pytest.raises(ValueError, match=r"data_range must be positive, got 0\.0"):
        ssim(*fields(9, 9), data_range=0.0)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(0, 1000))
def test_crps_is_the_double_sum_over_members(count, seed):
    random = np.random.default_rng(seed)
    members, observed = random.normal(size=(3, count)), random.normal(size=3)
    plain, fair = crps(members, observed)
    distance = np.abs(members - observed[:, None]).mean(axis=1)
    pairs = np.abs(members[:, :, None] - members[:, None, :]).sum(axis=(1, 2))
    np.testing.assert_allclose(plain, distance - pairs / (2 * count**2), atol=1e-12)
    np.testing.assert_allclose(fair, distance - pairs / (2 * count * (count - 1)), atol=1e-12)


def test_plain_crps_is_the_integral_over_the_step_function():
    members, observed = np.array([1.0, 2.0, 4.0]), 2.5
    axis = np.linspace(-1, 6, 70_001)
    steps = (members[:, None] <= axis).mean(axis=0) - (observed <= axis)
    assert float(crps(members, observed)[0]) == pytest.approx((steps**2).sum() * (axis[1] - axis[0]), abs=1e-3)


def test_fair_crps_of_a_normal_ensemble_does_not_depend_on_its_size():
    # For N(0, 1) and y = 0.5 (Gneiting & Raftery 2007): y (2 Phi(y) - 1) + 2 phi(y) - 1 / sqrt(pi).
    y = 0.5
    expected = y * (2 * norm.cdf(y) - 1) + 2 * norm.pdf(y) - 1 / np.sqrt(np.pi)
    random = np.random.default_rng(0)
    for count in (2, 10):
        _, fair = crps(random.standard_normal((200_000, count)), np.full(200_000, y))
        assert fair.mean() == pytest.approx(expected, abs=0.01)


def test_of_one_member_crps_is_the_absolute_error():
    plain, fair = crps(np.array([[3.0]]), np.array([1.0]))
    assert plain.tolist() == [2.0]
    assert np.isnan(fair).all()
    assert np.isnan(crps(np.array([1.0, np.nan]), 0.0)[0])
