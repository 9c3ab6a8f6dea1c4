from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from climapred.learning.windows import Split, Window, chronological_split, time_step, window_starts

START, STEP = np.datetime64("2013-01-01", "ns"), np.timedelta64(6, "h")


def make_times(numbers):
    return START + np.array(sorted(numbers)) * STEP


# Which of the six-hourly times exist; some are missing.
numbers_with_gaps = st.sets(st.integers(0, 60), min_size=2, max_size=50).map(sorted)
windows = st.builds(Window, st.integers(1, 5), st.integers(1, 5))


def most_frequent_step(numbers):
    steps = Counter(after - before for before, after in pairwise(numbers))
    return min(steps, key=lambda step: (-steps[step], step))


def brute_force_starts(numbers, frames, step):
    """Every start whose window holds exactly the times start, start + step, ..., one after another."""
    return [
        index
        for index, first in enumerate(numbers)
        if numbers[index : index + frames] == [first + k * step for k in range(frames)]
    ]


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
    times, everywhere = make_times(numbers), brute_force_starts(numbers, window.frames, most_frequent_step(numbers))
    owners = {}
    for period in ("train", "validation", "test"):
        first, stop = getattr(split, period)
        expected = [start for start in everywhere if first <= start and start + window.frames <= stop][::stride]
        if not expected:
            with pytest.raises(ValueError, match=f"the {period} period holds {stop - first} of {len(numbers)} times"):
                split.starts(period, times, window, stride=stride)
            continue
        starts = split.starts(period, times, window, stride=stride)
        assert starts.tolist() == expected
        for frame in np.unique(starts[:, None] + np.arange(window.frames)):
            assert owners.setdefault(frame, period) == period


def test_a_period_of_another_step_holds_no_windows_of_the_data_s_step():
    # Six-hourly until number 20, then every twelve hours: there nothing is six hours apart.
    times = make_times([*range(20), *range(20, 40, 2)])
    split = Split((0, 10), (10, 20), (20, 30))
    assert split.starts("validation", times, Window(2, 1)).tolist() == list(range(10, 18))
    with pytest.raises(ValueError, match=r"no window of 3 consecutive frames \(2 in, 1 out\)"):
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
    with pytest.raises(ValueError, match="needs history >= 1 and horizon >= 1, got 6 and 0"):
        Window(6, 0)
