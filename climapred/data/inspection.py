"""What was found in files: plain values that print themselves, and turn into JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from climapred.data.harmonise import Finding


@dataclass(frozen=True)
class VariableFacts:
    """One variable of the files.

    Attributes:
        name, canonical: in the file, and in climapred (None where it knows none).
        units: as the file spells them; None where it does not tell.
        sizes: dimension -> size.
        dtype, stored: type of the decoded values, and how they are kept: packing, or GRIB messages.
        times, times_read: number of times, and of those whose fields were read for what follows.
        missing: share of missing values; None where nothing could be read.
        minimum, maximum: in the file's units; None where all is missing.
    """

    name: str
    canonical: str | None
    units: str | None
    sizes: dict[str, int]
    dtype: str
    stored: str
    times: int
    times_read: int = 0
    missing: float | None = None
    minimum: float | None = None
    maximum: float | None = None

    def __str__(self) -> str:
        sizes = " x ".join(f"{dim} {size}" for dim, size in self.sizes.items())
        told = [sizes or "a single value", self.units or "no units", self.dtype, self.stored]
        if self.minimum is not None:
            read = f"{self.times_read} of {self.times}" if self.times_read < self.times else "all"
            told.append(f"{self.minimum:g} to {self.maximum:g} ({read} times read)")
        known = f" = {self.canonical}" if self.canonical not in (None, self.name) else ""
        return f"{self.name}{known}: " + ", ".join(filter(None, told))


@dataclass(frozen=True)
class GridFacts:
    """Where the values lie.

    Attributes:
        kind: "regular", "uneven", "Gaussian F48", "ReducedGrid(O32)", ...
        shape: rows and columns, or points.
        spacing: degrees between rows and between columns; None where they are uneven.
        region: south, north, west, east, as harmonise gives them.
        latitude: "ascends", "descends" or "is unsorted", in the file.
        longitude: lowest and highest in the file.
        periodic: the longitudes close the circle.
    """

    kind: str
    shape: tuple[int, ...]
    spacing: tuple[float | None, float | None]
    region: tuple[float, float, float, float]
    latitude: str
    longitude: tuple[float, float]
    periodic: bool

    def __str__(self) -> str:
        steps = dict.fromkeys(f"{step:g}" for step in self.spacing if step is not None)
        every = f" every {' x '.join(steps)} degrees" if steps else ""
        south, north, west, east = self.region
        return (
            f"{self.kind}, {' x '.join(map(str, self.shape))} points{every}, latitude {south:g} to {north:g}, longitude "
            f"{west:g} to {east:g}{', around the globe' if self.periodic else ''}; in the file latitude {self.latitude}, "
            f"longitude lies in {self.longitude[0]:g} to {self.longitude[1]:g}"
        )


@dataclass(frozen=True)
class Gap:
    """Times that are missing between two that are there."""

    after: str
    before: str
    missing: int


@dataclass(frozen=True)
class TimeFacts:
    """When the values are valid.

    Attributes:
        name: of the axis in the file.
        step: such as "6 hours" or "1 month", the most frequent one; "irregular" where most steps differ.
        repeated: number of times that are there before.
        ordered: the times ascend in the file.
    """

    name: str
    first: str
    last: str
    count: int
    step: str
    calendar: str
    gaps: tuple[Gap, ...]
    repeated: int
    ordered: bool

    @property
    def lacking(self) -> int:
        """Number of times that are missing in the gaps."""
        return sum(gap.missing for gap in self.gaps)

    def __str__(self) -> str:
        if self.count == 1:
            return f"{self.first}, {self.calendar} calendar"
        step = self.step if self.step == "irregular" else f"every {self.step}"
        return (
            f"{self.count} from {self.first} to {self.last}, {step}, {self.lacking or 'none'} missing, "
            f"{self.calendar} calendar"
        )


@dataclass(frozen=True)
class Inspection:
    """What ``inspect_source`` found; ``print`` shows it."""

    files: tuple[str, ...]
    variables: tuple[VariableFacts, ...]
    grid: GridFacts | None
    times: TimeFacts | None
    findings: tuple[Finding, ...]

    @property
    def refused(self) -> bool:
        """Harmonise would refuse these files, or their fields cannot be read."""
        return any(finding.refused for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        plain = {**asdict(self), "refused": self.refused}
        for variable in plain["variables"]:
            for bound in ("minimum", "maximum"):
                if variable[bound] is not None and math.isinf(variable[bound]):
                    variable[bound] = str(variable[bound])  # JSON has no infinity
        return plain

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """Yield the lines of a report; those of a refusal begin with "refused"."""
        shown = self.files[:3]
        yield from shown
        if len(self.files) > len(shown):
            yield f"... and {len(self.files) - len(shown)} more files"
        yield from (f"  {variable}" for variable in self.variables)
        if self.grid is not None:
            yield f"  grid: {self.grid}"
        if self.times is not None:
            yield f"  time: {self.times}"
        taken = [finding for finding in self.findings if not finding.refused]
        if taken:
            yield "what harmonise does about it:"
            yield from (f"  {finding.subject}: {finding.found} -> {finding.action}" for finding in taken)
        for finding in self.findings:
            if finding.refused:
                yield from (f"refused: {finding.subject}: {line}" for line in finding.found.splitlines())
        if not self.refused:
            yield "harmonise takes this"
