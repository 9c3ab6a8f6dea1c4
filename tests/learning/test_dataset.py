"""What a batch of windows holds, from the files to the calendar and the forcings; epochs of them: see test_loader."""

import numpy as np
import pytest
import torch

from climapred.calendar import harmonic_design
from climapred.learning.dataset import WindowDataset, calendar_rows, forcing_channels
from climapred.learning.windows import Window

WINDOW = Window(3, 2)


@pytest.mark.parametrize("window", [WINDOW, Window(3, 2, lead_spacing=4), Window(2, 3, spacing=3, lead_spacing=2)])
def test_a_batch_is_what_slicing_by_hand_gives(fields, window):
    dataset, starts = WindowDataset(fields, window, (1, 2)), np.array([7, 0, 40])
    batch = dataset[starts]
    assert batch.fields.shape == (3, 5, 2, 5, 7)
    assert (batch.fields.dtype, batch.calendar.dtype, batch.times.dtype) == (torch.float32, torch.float32, torch.int64)
    times = fields["time"].values[starts[:, None] + window.offsets]
    np.testing.assert_array_equal(batch.times.numpy().view("M8[ns]"), times)
    for number, name in enumerate(("t2m", "skt")):
        for row, start in enumerate(starts):
            by_hand = np.stack([fields[name].values[start + offset] for offset in window.offsets])
            np.testing.assert_array_equal(batch.fields[row, :, number], by_hand)
    design = harmonic_design(fields["time"].values, 1, 2)
    np.testing.assert_allclose(batch.calendar, design[starts[:, None] + window.offsets], atol=1e-7)


def test_variables_are_channels_in_the_order_of_the_dataset(fields):
    batch = WindowDataset(fields[["skt", "t2m"]], WINDOW)[np.array([4])]
    np.testing.assert_array_equal(batch.fields[0, :, 0], fields["skt"].values[4:9])
    np.testing.assert_array_equal(batch.fields[0, :, 1], fields["t2m"].values[4:9])


def test_without_orders_the_calendar_is_one():
    times = np.datetime64("2013-01-01", "ns") + np.arange(6).reshape(2, 3) * np.timedelta64(1, "D")
    torch.testing.assert_close(calendar_rows(times, None), torch.ones(2, 3, 1))
    np.testing.assert_allclose(calendar_rows(times, (2, 0)), harmonic_design(times, 2, 0), atol=1e-7)


def test_forcings_are_sine_and_cosine_of_place_and_time():
    times = np.array([["2012-01-01T00", "2012-12-31T18"], ["2013-03-01T06", "2013-06-15T15"]], "M8[ns]")
    days, hours = np.array([[0, 365.75], [59.25, 165.625]]), np.array([[0, 18], [6, 15]])  # counted by hand
    latitude, longitude = np.array([-90.0, 0, 30]), np.array([0.0, 60, 90, 200])
    found = forcing_channels(("hour", "latitude", "day_of_year", "longitude"), times, latitude, longitude)
    assert (found.shape, found.dtype) == ((2, 2, 8, 3, 4), torch.float32)
    hour, day = 2 * np.pi * hours / 24, 2 * np.pi * days / 365.2425
    angles = [
        np.tile(hour[..., None, None], (3, 4)),
        np.broadcast_to(np.radians(latitude)[:, None], (2, 2, 3, 4)),
        np.tile(day[..., None, None], (3, 4)),
        np.broadcast_to(np.radians(longitude), (2, 2, 3, 4)),
    ]
    for number, angle in enumerate(angles):
        np.testing.assert_allclose(found[:, :, 2 * number], np.sin(angle), atol=1e-6)
        np.testing.assert_allclose(found[:, :, 2 * number + 1], np.cos(angle), atol=1e-6)
    assert forcing_channels((), times, latitude, longitude).shape == (2, 2, 0, 3, 4)


def test_a_dataset_refuses(fields):
    with pytest.raises(ValueError, match="forcings must be of latitude, longitude, day_of_year, hour, got moon"):
        WindowDataset(fields, WINDOW, forcings=("hour", "moon"))
    with pytest.raises(
        ValueError, match=r"dims \('time', 'latitude', 'longitude'\), got {'skt': \('latitude', 'longitude'\)}"
    ):
        WindowDataset(fields.assign(skt=fields["skt"][0]), WINDOW)
    with pytest.raises(ValueError, match=r"got {'t2m': \('level', 'time', .*call harmonise\(\) or select before"):
        WindowDataset(fields[["t2m"]].expand_dims("level"), WINDOW)
    with pytest.raises(ValueError, match="fields hold no variable"):
        WindowDataset(fields[[]], WINDOW)
