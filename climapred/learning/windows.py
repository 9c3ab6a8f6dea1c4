"""Windows of frames and periods without leakage, as index arithmetic: plain integers, no files, no tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.datetime64]
Indices = npt.NDArray[np.int64]

_NO_TIME = np.timedelta64(0, "s")


@dataclass(frozen=True)
class Window:
    """``history`` frames in, ``horizon`` frames out.

    Attributes:
        history, horizon: numbers of frames.
        spacing: time steps from one frame that is seen to the next.
        lead_spacing: time steps from the last frame that is seen to the first lead, and from lead to lead.

    Six hours of hourly frames, then 6, 12, 18 and 24 h ahead:

    >>> Window(6, 4, lead_spacing=6).offsets
    array([ 0,  1,  2,  3,  4,  5, 11, 17, 23, 29])
    """

    history: int
    horizon: int
    spacing: int = 1
    lead_spacing: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"a window needs {name} >= 1, got {value}")

    @property
    def offsets(self) -> Indices:
        """Time steps from the first frame of a window to each of its frames, shape (history + horizon,)."""
        seen = self.spacing * np.arange(self.history)
        return np.concatenate([seen, seen[-1] + self.leads])

    @property
    def leads(self) -> Indices:
        """Time steps from the last frame that is seen to each lead, shape (horizon,)."""
        return self.lead_spacing * np.arange(1, self.horizon + 1)

    @property
    def last_seen(self) -> int:
        """Time steps from the first frame to the last that is seen: the initial time of the forecast."""
        return self.spacing * (self.history - 1)

    @property
    def extent(self) -> int:
        """Consecutive time steps that a window spans.

        >>> Window(6, 6).extent
        12
        """
        return self.last_seen + self.lead_spacing * self.horizon + 1


def time_step(times: Times) -> np.timedelta64:
    """Return the step of a time axis: the most frequent one, so that a gap does not count.

    Raises:
        ValueError: for fewer than two times.
    """
    if len(times) < 2:
        raise ValueError(f"a time step needs at least 2 times, got {len(times)}")
    steps, counts = np.unique(np.diff(times), return_counts=True)
    step: np.timedelta64 = steps[counts.argmax()]
    return step


def window_starts(times: Times, extent: int, *, stride: int = 1, step: np.timedelta64 | None = None) -> Indices:
    """Return each ``stride``-th index from which ``extent`` times follow each other ``step`` apart, without a gap.

    Args:
        times: increasing, gaps allowed.
        extent: see ``Window.extent``.
        stride: every how many windows one is taken.
        step: of the axis; None for ``time_step(times)``.

    >>> window_starts(np.array(["2013-01-01", "2013-01-02", "2013-01-04", "2013-01-05", "2013-01-06"], "M8[D]"), 2)
    array([0, 2, 3])
    """
    if len(times) < max(extent, 2):
        return np.array([], dtype=np.int64)
    step = time_step(times) if step is None else step
    gaps = np.concatenate([[0], np.cumsum(np.diff(times) != step)])
    starts = np.arange(len(times) - extent + 1)
    return starts[gaps[starts] == gaps[starts + extent - 1]][::stride]


@dataclass(frozen=True)
class Split:
    """The time axis cut into three periods; each field is the half-open index range (start, stop) of one period."""

    train: tuple[int, int]
    validation: tuple[int, int]
    test: tuple[int, int]

    def starts(self, period: str, times: Times, window: Window, *, stride: int = 1) -> Indices:
        """Return the starts of the windows that lie wholly inside a period: no frame is shared with another one.

        Raises:
            ValueError: if there is none; the message says how long the period is.
        """
        start, stop = getattr(self, period)
        found = window_starts(times[start:stop], window.extent, stride=stride, step=time_step(times)) + start
        if not len(found):
            raise ValueError(
                f"the {period} period holds {stop - start} of {len(times)} times and no window of {window.extent} "
                f"consecutive times ({window.history} frames in, {window.horizon} out); choose other dates or a shorter window"
            )
        return found


def chronological_split(
    times: Times, validation: str | float, test: str | float, *, embargo: np.timedelta64 = _NO_TIME
) -> Split:
    """Cut the time axis: training until ``validation``, validation until ``test``, test until the end.

    Args:
        times: increasing.
        validation, test: when the period begins, as a date ("2013-12-11") or as a share of all times counted from the
            start (0.7: after 70 % of them).
        embargo: how long before each of them the period before ends: weather remembers for days, so that neighbouring
            periods are not independent. Times of the embargo belong to no period.

    Raises:
        ValueError: if the periods are not in this order or one is empty.
    """
    first, second = (_cut(times, name, value) for name, value in (("validation", validation), ("test", test)))
    if not 0 < first < second < len(times):
        raise ValueError(
            f"training, validation and test must each hold times and follow each other; validation from {validation} and "
            f"test from {test} leave {first}, {second - first} and {len(times) - second} of the times "
            f"{_text(times[0])} to {_text(times[-1])}"
        )
    ends = [int(np.searchsorted(times, times[cut] - embargo)) for cut in (first, second)]
    for name, begin, end in (("training", 0, ends[0]), ("validation", first, ends[1])):
        if embargo < _NO_TIME or end <= begin:
            hours = embargo / np.timedelta64(1, "h")
            raise ValueError(
                f"an embargo of {hours:g} h leaves nothing of {name}; it must be shorter, and not negative"
            )
    return Split((0, ends[0]), (first, ends[1]), (second, len(times)))


def _cut(times: Times, name: str, value: str | float) -> int:
    if isinstance(value, int | float):
        if not 0 < value < 1:
            raise ValueError(f"{name} as a share must lie between 0 and 1, got {value}")
        return round(value * len(times))
    try:
        date = np.datetime64(value)
    except ValueError as error:
        raise ValueError(f"{name} must be a date such as 2013-12-11 or a share such as 0.8, got {value!r}") from error
    return int(np.searchsorted(times, date))


def refuse_leaks(times: Times, window: Window, starts: Mapping[str, Indices]) -> None:
    """Check that no time is a frame in the windows of two periods, however those were chosen.

    Windows that ``Split.starts`` returns pass; a random split of overlapping windows does not.

    Args:
        times: of the fields.
        window: of all periods.
        starts: window starts of each period, such as {"train": ..., "validation": ...}.

    Raises:
        ValueError: names the periods and the times that they share.
    """
    frames = {name: np.unique(np.asarray(chosen)[:, None] + window.offsets) for name, chosen in starts.items()}
    names = list(frames)
    for position, first in enumerate(names):
        for second in names[position + 1 :]:
            shared = np.intersect1d(frames[first], frames[second], assume_unique=True)
            if shared.size:
                raise ValueError(
                    f"{first} and {second} windows share {shared.size} of {len(times)} times, from "
                    f"{_text(times[shared[0]])} to {_text(times[shared[-1]])}: what is learned from one would be seen again "
                    "in the other; split by time (chronological_split), not by window"
                )


def _text(time: np.datetime64) -> str:
    return str(np.datetime_as_string(time, unit="h"))
