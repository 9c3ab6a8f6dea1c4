from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from climapred.learning.windows import Split, Window, chronological_split, refuse_leaks, time_step, window_starts

START, STEP = np.datetime64("2013-01-01", "ns"), np.timedelta64(6, "h")


def make_times(numbers):
    return START + np.array(sorted(numbers)) * STEP


# Which of the six-hourly times exist; some are missing.
numbers_with_gaps = st.sets(st.integers(0, 60), min_size=2, max_size=50).map(sorted)
windows = st.builds(Window, *[st.integers(1, 4)] * 2, *[st.integers(1, 3)] * 2)


def most_frequent_step(numbers):
    steps = Counter(after - before for before, after in pairwise(numbers))
    return min(steps, key=lambda step: (-steps[step], step))


def brute_force_frames(window):
    """The frames of a window, written out: each that is seen, then each that is forecast."""
    frames = [0]
    for _ in range(window.history - 1):
        frames.append(frames[-1] + window.spacing)
    for _ in range(window.horizon):
        frames.append(frames[-1] + window.lead_spacing)
    return frames


def brute_force_starts(numbers, extent, step):
    """Every start whose window holds exactly the times start, start + step, ..., one after another."""
    return [
        index
        for index, first in enumerate(numbers)
        if numbers[index : index + extent] == [first + k * step for k in range(extent)]
    ]


@given(windows)
def test_a_window_s_frames_are_those_of_its_definition(window):
    frames = brute_force_frames(window)
    assert window.offsets.tolist() == frames
    assert window.last_seen == frames[window.history - 1]
    assert (window.last_seen + window.leads).tolist() == frames[window.history :]
    assert window.extent == frames[-1] + 1


@settings(max_examples=200)
@given(numbers_with_gaps, windows, st.integers(1, 4))
def test_every_frame_of_a_found_window_is_where_its_spacings_say(numbers, window, stride):
    step, times = most_frequent_step(numbers), make_times(numbers)
    starts = window_starts(times, window.extent, stride=stride)
    expected = [(np.array(brute_force_frames(window)) * step).tolist()] * len(starts)
    assert ((times[starts[:, None] + window.offsets] - times[starts][:, None]) // STEP).tolist() == expected


@given(numbers_with_gaps)
def test_time_step_is_the_most_frequent_one_and_of_equal_ones_the_shortest(numbers):
    assert time_step(make_times(numbers)) == most_frequent_step(numbers) * STEP


def test_time_step_does_not_count_a_gap():
    assert time_step(make_times([0, 1, 2, 50, 51])) == STEP
    with pytest.raises(ValueError, match="a time step needs at least 2 times, got 1"):
        time_step(make_times([3]))


@settings(max_examples=300)
@given(numbers_with_gaps, st.integers(1, 8), st.integers(1, 4))
def test_window_starts_are_those_of_a_search_through_all_windows(numbers, frames, stride):
    expected = brute_force_starts(numbers, frames, most_frequent_step(numbers))[::stride]
    assert window_starts(make_times(numbers), frames, stride=stride).tolist() == expected


@given(numbers_with_gaps, st.integers(1, 6), st.integers(1, 3))
def test_window_starts_take_another_step_when_told(numbers, frames, step):
    found = window_starts(make_times(numbers), frames, step=step * STEP)
    assert found.tolist() == brute_force_starts(numbers, frames, step)


def test_too_few_times_hold_no_window():
    assert window_starts(make_times(range(5)), 6).tolist() == []
    assert window_starts(make_times([]), 2).tolist() == []
    assert window_starts(make_times(range(5)), 5).tolist() == [0]


@settings(max_examples=300)
@given(numbers_with_gaps, windows, st.integers(1, 3), st.data())
def test_periods_share_no_frame_and_lose_no_window(numbers, window, stride, data):
    assume(len(numbers) >= 3)
    cuts = data.draw(st.lists(st.integers(1, len(numbers) - 1), min_size=2, max_size=2, unique=True).map(sorted))
    split = Split((0, cuts[0]), (cuts[0], cuts[1]), (cuts[1], len(numbers)))
    times, everywhere = make_times(numbers), brute_force_starts(numbers, window.extent, most_frequent_step(numbers))
    owners = {}
    for period in ("train", "validation", "test"):
        first, stop = getattr(split, period)
        expected = [start for start in everywhere if first <= start and start + window.extent <= stop][::stride]
        if not expected:
            with pytest.raises(ValueError, match=f"the {period} period holds {stop - first} of {len(numbers)} times"):
                split.starts(period, times, window, stride=stride)
            continue
        starts = split.starts(period, times, window, stride=stride)
        assert starts.tolist() == expected
        for frame in np.unique(starts[:, None] + window.offsets):
            assert owners.setdefault(frame, period) == period


def test_a_period_of_another_step_holds_no_windows_of_the_data_s_step():
    # Six-hourly until number 20, then every twelve hours: there nothing is six hours apart.
    times = make_times([*range(20), *range(20, 40, 2)])
    split = Split((0, 10), (10, 20), (20, 30))
    assert split.starts("validation", times, Window(2, 1)).tolist() == list(range(10, 18))
    with pytest.raises(ValueError, match=r"no window of 3 consecutive times \(2 frames in, 1 out\)"):
        split.starts("test", times, Window(2, 1))


def test_dates_and_shares_cut_where_they_say():
    times = make_times(range(100))
    assert chronological_split(times, 0.7, 0.85) == Split((0, 70), (70, 85), (85, 100))
    # Number 40 is 10 days after 1 January, number 80 is 20 days after it; 12:00 is two steps later.
    assert chronological_split(times, "2013-01-11", "2013-01-21T12") == Split((0, 40), (40, 82), (82, 100))
    assert chronological_split(times, "2013-01-11T03", 0.9) == Split((0, 41), (41, 90), (90, 100))


@given(st.integers(3, 400), st.floats(0.01, 0.98), st.floats(0.01, 0.98))
def test_a_split_covers_all_times_in_order_or_says_why_not(count, validation, test):
    times, first, second = make_times(range(count)), round(validation * count), round(test * count)
    if 0 < first < second < count:
        expected = Split((0, first), (first, second), (second, count))
        assert chronological_split(times, validation, test) == expected
    else:
        with pytest.raises(ValueError, match="must each hold times and follow each other"):
            chronological_split(times, validation, test)


def test_errors_say_what_is_wanted():
    times = make_times(range(100))
    with pytest.raises(
        ValueError,
        match=r"validation from 0\.8 and test from 0.6 leave 80, -20 and 40 of the times 2013-01-01T00 to 2013-01-25T18",
    ):
        chronological_split(times, 0.8, 0.6)
    with pytest.raises(ValueError, match="test from 2014-01-01 leave 70, 30 and 0 of the times"):
        chronological_split(times, 0.7, "2014-01-01")
    with pytest.raises(ValueError, match="validation as a share must lie between 0 and 1, got 2013"):
        chronological_split(times, 2013, 0.9)
    with pytest.raises(
        ValueError, match=r"test must be a date such as 2013-12-11 or a share such as 0\.8, got 'winter'"
    ):
        chronological_split(times, 0.7, "winter")


@pytest.mark.parametrize("name", ["history", "horizon", "spacing", "lead_spacing"])
def test_a_window_without_frames_is_refused(name):
    with pytest.raises(ValueError, match=f"a window needs {name} >= 1, got 0"):
        Window(**({"history": 2, "horizon": 2} | {name: 0}))


@settings(max_examples=200)
@given(numbers_with_gaps, st.integers(0, 30), st.data())
def test_the_end_of_a_period_keeps_its_distance_to_the_next_one(numbers, hours, data):
    assume(len(numbers) >= 3)
    times, embargo = make_times(numbers), np.timedelta64(hours, "h")
    first, second = data.draw(
        st.lists(st.integers(1, len(numbers) - 1), min_size=2, max_size=2, unique=True).map(sorted)
    )
    dates = [str(times[cut]) for cut in (first, second)]
    kept = [[index for index in range(first) if times[index] < times[first] - embargo]]
    kept.append([index for index in range(first, second) if times[index] < times[second] - embargo])
    if hours == 0:
        assert [len(part) for part in kept] == [first, second - first]
    if not all(kept):
        with pytest.raises(ValueError, match=f"an embargo of {hours} h leaves nothing of (training|validation)"):
            chronological_split(times, *dates, embargo=embargo)
        return
    split = chronological_split(times, *dates, embargo=embargo)
    assert [list(range(*period)) for period in (split.train, split.validation)] == kept
    assert split.test == (second, len(numbers))


@settings(max_examples=200)
@given(windows, st.integers(0, 60), st.integers(1, 3))
def test_no_frame_lies_within_an_embargo_and_the_split_passes_the_check(window, hours, stride):
    times, embargo = make_times(range(120)), np.timedelta64(hours, "h")
    split = chronological_split(times, 0.5, 0.75, embargo=embargo)
    assume(window.extent <= min(stop - start for start, stop in (split.train, split.validation, split.test)))
    starts = {name: split.starts(name, times, window, stride=stride) for name in ("train", "validation", "test")}
    frames = [np.unique(times[chosen[:, None] + window.offsets]) for chosen in starts.values()]
    for before, after in pairwise(frames):
        assert after[0] - before[-1] > embargo
    refuse_leaks(times, window, starts)


def test_an_embargo_that_is_negative_is_refused():
    with pytest.raises(
        ValueError, match="an embargo of -6 h leaves nothing of training; it must be shorter, and not neg"
    ):
        chronological_split(make_times(range(100)), 0.5, 0.75, embargo=-STEP)


@settings(max_examples=300)
@given(windows, st.data())
def test_shared_times_are_refused_and_named(window, data):
    count = 30
    chosen = data.draw(
        st.dictionaries(
            st.sampled_from(["train", "validation", "test"]),
            st.sets(st.integers(0, count - 1), max_size=4).map(sorted).map(np.array),
            min_size=2,
        )
    )
    times = make_times(range(count + window.extent))
    frames = {
        name: {int(start) + frame for start in starts for frame in brute_force_frames(window)}
        for name, starts in chosen.items()
    }
    for first, second in combinations(frames, 2):
        if shared := sorted(frames[first] & frames[second]):
            first_time, last_time = (np.datetime_as_string(times[index], unit="h") for index in (shared[0], shared[-1]))
            message = f"{first} and {second} windows share {len(shared)} of {len(times)} times, from {first_time} to "
            with pytest.raises(ValueError, match=f"{message}{last_time}:"):
                refuse_leaks(times, window, chosen)
            return
    refuse_leaks(times, window, chosen)


def test_a_random_split_of_overlapping_windows_is_refused():
    times, window = make_times(range(40)), Window(3, 3)
    starts = np.random.default_rng(0).permutation(window_starts(times, window.extent))
    with pytest.raises(ValueError, match=r"split by time \(chronological_split\), not by window"):
        refuse_leaks(times, window, {"train": starts[:25], "test": starts[25:]})


def test_windows_that_interleave_without_a_common_frame_pass():
    times, window = make_times(range(40)), Window(3, 3, spacing=2, lead_spacing=2)
    starts = window_starts(times, window.extent)
    parts = {"train": starts[starts % 2 == 0], "test": starts[starts % 2 == 1]}
    frames = [set((part[:, None] + window.offsets).ravel().tolist()) for part in parts.values()]
    assert frames[0]
    assert not frames[0] & frames[1]
    refuse_leaks(times, window, parts)
