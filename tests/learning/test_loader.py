import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from climapred.calendar import harmonic_design
from climapred.learning.loader import BatchStarts, WindowDataset, calendar_rows, window_loader
from climapred.learning.windows import Window

WINDOW = Window(3, 2)


def order(sampler):
    return [batch.tolist() for batch in sampler]


def test_a_batch_is_what_slicing_by_hand_gives(fields):
    dataset = WindowDataset(fields, WINDOW, (1, 2))
    batch, calendar = dataset[np.array([7, 0, 55])]
    assert (batch.shape, calendar.shape) == ((3, 5, 2, 5, 7), (3, 5, 15))
    assert batch.dtype == calendar.dtype == torch.float32
    design = harmonic_design(fields["time"].values, 1, 2)
    for member, start in enumerate((7, 0, 55)):
        for channel, name in enumerate(("t2m", "skt")):
            np.testing.assert_array_equal(batch[member, :, channel], fields[name].values[start : start + 5])
        np.testing.assert_allclose(calendar[member], design[start : start + 5], atol=1e-7)


def test_variables_are_channels_in_the_order_of_the_dataset(fields):
    batch, _ = WindowDataset(fields[["skt", "t2m"]], WINDOW, None)[np.array([4])]
    np.testing.assert_array_equal(batch[0, :, 0], fields["skt"].values[4:9])
    np.testing.assert_array_equal(batch[0, :, 1], fields["t2m"].values[4:9])


def test_without_orders_the_calendar_is_one():
    times = np.datetime64("2013-01-01", "ns") + np.arange(6).reshape(2, 3) * np.timedelta64(1, "D")
    torch.testing.assert_close(calendar_rows(times, None), torch.ones(2, 3, 1))
    np.testing.assert_allclose(calendar_rows(times, (2, 0)), harmonic_design(times, 2, 0), atol=1e-7)


def test_a_loader_delivers_the_batches_of_its_starts(fields):
    dataset, starts = WindowDataset(fields[["t2m"]], WINDOW, None), np.array([3, 9, 20, 21, 40])
    batches = list(window_loader(dataset, starts, 2))
    assert [len(batch) for batch, _ in batches] == [2, 2, 1]
    delivered = torch.cat([batch for batch, _ in batches]).numpy()
    expected = [fields["t2m"].values[start : start + 5, None] for start in starts]
    np.testing.assert_array_equal(delivered, np.stack(expected))
    assert len(window_loader(dataset, starts, 2)) == 3


@given(st.sets(st.integers(0, 500), min_size=1, max_size=60).map(sorted), st.integers(1, 20), st.integers(0, 9))
def test_every_window_comes_exactly_once_an_epoch(starts, size, epoch):
    sampler = BatchStarts(np.array(starts), size, seed=4)
    sampler.set_epoch(epoch)
    batches = order(sampler)
    assert sorted(start for batch in batches for start in batch) == starts
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert len(batches) == len(sampler)


def test_the_order_depends_on_seed_and_epoch_alone():
    starts = np.arange(0, 90, 3)
    resumed, undisturbed = BatchStarts(starts, 4, seed=1), BatchStarts(starts, 4, seed=1)
    orders = []
    for epoch in range(3):
        undisturbed.set_epoch(epoch)
        torch.manual_seed(epoch)
        orders.append(order(undisturbed))
        assert order(undisturbed) == orders[-1]
    resumed.set_epoch(2)
    assert order(resumed) == orders[2]
    assert orders[0] != orders[1] != orders[2]
    assert order(BatchStarts(starts, 4, seed=2)) != orders[0]
    assert (starts == np.arange(0, 90, 3)).all()


def test_without_a_seed_the_order_is_that_of_the_starts():
    sampler = BatchStarts(np.array([5, 2, 9]), 2)
    sampler.set_epoch(3)
    assert order(sampler) == [[5, 2], [9]]


def test_a_batch_holds_at_least_one_window():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        BatchStarts(np.arange(3), 0)
