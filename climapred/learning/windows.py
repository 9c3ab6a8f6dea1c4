"""Windows of consecutive frames as index arithmetic: plain integers, no files, no tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.datetime64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """``history`` frames in, ``horizon`` frames out.

    >>> Window(6, 6).frames
    12
    """

    history: int
    horizon: int

    def __post_init__(self) -> None:
        if self.history < 1 or self.horizon < 1:
            raise ValueError(f"a window needs history >= 1 and horizon >= 1, got {self.history} and {self.horizon}")

    @property
    def frames(self) -> int:
        """Frames in a window."""
        return self.history + self.horizon


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


def window_starts(times: Times, frames: int, *, stride: int = 1, step: np.timedelta64 | None = None) -> Indices:
    """Return each index from which ``frames`` consecutive times follow each other ``step`` apart (by default their own).

    >>> window_starts(np.array(["2013-01-01", "2013-01-02", "2013-01-04", "2013-01-05", "2013-01-06"], "M8[D]"), 2)
    array([0, 2, 3])
    """
    if len(times) < max(frames, 2):
        return np.array([], dtype=np.int64)
    step = time_step(times) if step is None else step
    gaps = np.concatenate([[0], np.cumsum(np.diff(times) != step)])
    starts = np.arange(len(times) - frames + 1)
    return starts[gaps[starts] == gaps[starts + frames - 1]][::stride]


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
        found = window_starts(times[start:stop], window.frames, stride=stride, step=time_step(times)) + start
        if not len(found):
            raise ValueError(
                f"the {period} period holds {stop - start} of {len(times)} times and no window of {window.frames} "
                f"consecutive frames ({window.history} in, {window.horizon} out); choose other dates or a shorter window"
            )
        return found


def chronological_split(times: Times, validation: str | float, test: str | float) -> Split:
    """Cut the time axis: training until ``validation``, validation until ``test``, test until the end.

    Args:
        times: increasing.
        validation, test: when the period begins, as a date ("2013-12-11") or as a share of all times counted from the
            start (0.7: after 70 % of them).

    Raises:
        ValueError: if the periods are not in this order or one is empty.
    """
    first, second = (_cut(times, name, value) for name, value in (("validation", validation), ("test", test)))
    split = Split((0, first), (first, second), (second, len(times)))
    if not 0 < first < second < len(times):
        raise ValueError(
            f"training, validation and test must each hold times and follow each other; validation from {validation} and "
            f"test from {test} leave {first}, {second - first} and {len(times) - second} of the times "
            f"{np.datetime_as_string(times[0], unit='h')} to {np.datetime_as_string(times[-1], unit='h')}"
        )
    return split


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
