import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from climapred.learning.order import Share, blocks_of, shuffled, streamed

# Starts with gaps and strides; lengths of blocks, extents of windows and numbers of blocks in memory.
all_starts = st.sets(st.integers(0, 150), min_size=1, max_size=80).map(sorted).map(np.array)
lengths, extents, residents = st.integers(1, 40), st.integers(1, 15), st.integers(1, 6)


@given(all_starts, st.integers(1, 6), st.booleans(), st.booleans())
def test_shares_are_disjoint_and_as_equal_as_asked_for(starts, world, whole, contiguous):
    parts = [Share(rank, world).of(starts, whole=whole, contiguous=contiguous) for rank in range(world)]
    lengths = {len(part) for part in parts}
    kept = starts.tolist() if whole else starts[: len(starts) - len(starts) % world].tolist()
    assert sorted(np.concatenate(parts).tolist()) == kept
    assert max(lengths) - min(lengths) <= whole
    for rank, part in enumerate(parts):
        if contiguous:
            assert part.tolist() == [start for start in kept if start in part]
            assert not len(part) or kept.index(part[-1]) - kept.index(part[0]) == len(part) - 1
        else:
            assert part.tolist() == kept[rank::world]


@given(st.permutations(range(40)), st.integers(1, 4), st.integers(1, 5))
def test_batches_of_all_processes_together_are_those_of_one(starts, world, local):
    parts = [Share(rank, world).of(np.array(starts), whole=False) for rank in range(world)]
    for first in range(0, 40 // world // local * local, local):
        together = {start for part in parts for start in part[first : first + local].tolist()}
        assert together == set(starts[first * world : (first + local) * world])


def test_the_share_of_this_process_is_what_the_environment_says(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert Share.current() == Share(0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert Share.current() == Share(2, 3)


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_that_is_not_there_is_refused(rank):
    with pytest.raises(ValueError, match=f"rank must be one of 0 to 1 for 2 processes, got {rank}"):
        Share(rank, 2)


@given(all_starts, st.integers(0, 5), st.integers(0, 5))
def test_the_shuffled_order_depends_on_seed_and_epoch_alone(starts, seed, epoch):
    before = starts.copy()
    order = shuffled(starts, seed, epoch)
    np.random.default_rng().random()
    np.testing.assert_array_equal(shuffled(starts.copy(), seed, epoch), order)
    np.testing.assert_array_equal(np.sort(order), before)
    np.testing.assert_array_equal(starts, before)
    np.testing.assert_array_equal(shuffled(starts, None, epoch), before)


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(shuffled(np.arange(50), seed, epoch).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@given(all_starts, lengths, extents)
def test_blocks_hold_the_frames_of_the_windows_that_begin_in_them(starts, length, extent):
    blocks = blocks_of(starts, length, extent)
    assert np.concatenate([part for part, _ in blocks]).tolist() == starts.tolist()
    numbers = [{start // length for start in part.tolist()} for part, _ in blocks]
    assert all(len(number) == 1 for number in numbers)
    assert len(set.union(*numbers)) == len(blocks)
    for part, (first, stop) in blocks:
        frames = {start + offset for start in part.tolist() for offset in range(extent)}
        assert (first, stop) == (min(frames), max(frames) + 1)
        assert stop - first <= length + extent - 1


def deliver(phases, length, resident):
    """Play an epoch: yield each phase with the blocks that are in memory, of which the oldest goes when there are too many."""
    blocks = {}
    for number, phase in enumerate(phases):
        if phase.load is not None:
            assert phase.load[0] // length not in blocks
            blocks[phase.load[0] // length] = (phase.load, number)
        blocks = {block: (load, since) for block, (load, since) in blocks.items() if number - since < resident}
        yield phase, {block: load for block, (load, _) in blocks.items()}


@settings(max_examples=300)
@given(all_starts, lengths, extents, residents, st.none() | st.integers(0, 9), st.integers(0, 9))
def test_an_epoch_delivers_every_window_once_from_blocks_that_are_in_memory(
    starts, length, extent, resident, seed, epoch
):
    phases = streamed(starts, length, extent, resident, seed, epoch)
    delivered = []
    for phase, blocks in deliver(phases, length, resident):
        assert len(blocks) <= resident
        delivered += phase.starts.tolist()
        for start in phase.starts.tolist():
            first, stop = blocks[start // length]
            assert first <= start
            assert start + extent <= stop
    assert sorted(delivered) == starts.tolist()
    if seed is None:
        assert delivered == starts.tolist()
    loads = [phase.load for phase in phases if phase.load is not None]
    assert sorted(loads) == [frames for _, frames in blocks_of(starts, length, extent)]


@given(all_starts, lengths, extents, residents, st.integers(0, 3), st.integers(0, 3))
def test_the_streamed_order_depends_on_seed_and_epoch_alone(starts, length, extent, resident, seed, epoch):
    first, second = (streamed(starts.copy(), length, extent, resident, seed, epoch) for _ in range(2))
    assert [phase.load for phase in first] == [phase.load for phase in second]
    assert [phase.starts.tolist() for phase in first] == [phase.starts.tolist() for phase in second]
    # What is read beside a window changes nothing in the order: it is the same for windows of another extent.
    longer = streamed(starts, length, extent + 3, resident, seed, epoch)
    assert [phase.starts.tolist() for phase in longer] == [phase.starts.tolist() for phase in first]


def test_streamed_epochs_and_seeds_have_orders_of_their_own():
    orders = {
        tuple(np.concatenate([phase.starts for phase in streamed(np.arange(200), 20, 5, 4, seed, epoch)]).tolist())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_neighbours_in_a_batch_come_from_all_blocks_in_memory():
    # 20 blocks of 50 windows, 4 in memory: a phase delivers 12 or 13 windows of each in random order. Eight in a row come from
    # 4 (1 - 0.75^8) = 3.6 blocks on average.
    phases = streamed(np.arange(1000), 50, 5, 4, 0, 0)
    order = np.concatenate([phase.starts for phase in phases])
    batches = order.reshape(-1, 8)[20:-20] // 50  # without the ends of the epoch, where fewer blocks are in memory
    different = [len(set(batch)) for batch in batches.tolist()]
    assert min(different) >= 2
    assert 3.3 < np.mean(different) < 4
    assert 0.4 < np.mean(np.diff(order) > 0) < 0.6
    # Blocks come in any order, and the windows that a block gives to a phase lie anywhere in it: 12 or 13 of 50 at random span
    # 43 on average.
    loads = [phase.load[0] for phase in phases if phase.load is not None]
    assert 4 < np.sum(np.diff(loads) > 0) < 15
    spans = [np.ptp(phase.starts[phase.starts // 50 == block]) for phase in phases for block in set(phase.starts // 50)]
    assert 40 < np.mean(spans) < 46
