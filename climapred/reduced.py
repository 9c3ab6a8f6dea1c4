"""Reduced Gaussian grids, as ECMWF's models have them: points row by row, each row with a number of its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from climapred.grid import ROUNDING, Array, Grid, digest

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True, eq=False)
class ReducedGrid:
    """A global reduced Gaussian grid, N``number`` or O``number``: fewer points on a row near the poles.

    Fields on it have one dimension of all points, row after row from north to south, each row eastwards from 0, as
    GRIB delivers them. Cells reach half-way to the next point of the row; their edges in latitude are those of
    ``Grid.gaussian``.

    Attributes:
        number: latitudes between a pole and the equator.
        points: of each row, north to south, GRIB's ``pl``; 2 ``number`` of them.

    >>> ReducedGrid.octahedral(32).points[:3], ReducedGrid.octahedral(32).size
    ((20, 24, 28), 5248)
    """

    number: int
    points: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.points) != 2 * self.number or min(self.points, default=0) < 2:
            raise ValueError(
                f"a global reduced Gaussian grid N{self.number} has {2 * self.number} rows of 2 points or more, got "
                f"{len(self.points)} rows, the shortest of {min(self.points, default=0)}; a part of one: regrid it with "
                "the tool that cut it"
            )

    @classmethod
    def octahedral(cls, number: int) -> ReducedGrid:
        """Return O``number``: 20 points on the row next to a pole, four more on each row towards the equator."""
        half = [20 + 4 * row for row in range(number)]
        return cls(number, (*half, *reversed(half)))

    @classmethod
    def of(cls, dataset: xr.Dataset | xr.DataArray) -> ReducedGrid:
        """Return the grid that the coordinate ``values`` of a dataset describes: its attributes ``N`` and ``pl``.

        Raises:
            ValueError: if there is none, or its points are not those of the dataset.
        """
        attrs = dataset["values"].attrs if "values" in dataset.coords else {}
        if not {"N", "pl"} <= set(attrs):
            raise ValueError(
                f"a reduced Gaussian grid needs a coordinate 'values' with attributes N and pl, got {attrs}"
            )
        grid = cls(int(attrs["N"]), tuple(int(count) for count in attrs["pl"]))
        for name, wanted in zip(("latitude", "longitude"), grid.centres(), strict=True):
            found = dataset[name].values
            if found.shape != wanted.shape or np.abs((found - wanted + 180) % 360 - 180).max() > 10 * ROUNDING:
                raise ValueError(
                    f"the {found.size} values of {name!r} must be the {wanted.size} of {grid}: its N and pl"
                )
        return grid

    @property
    def size(self) -> int:
        """Number of points."""
        return sum(self.points)

    @property
    def shape(self) -> tuple[int]:
        """(P,)."""
        return (self.size,)

    @cached_property
    def rows(self) -> Grid:
        """A full Gaussian grid with the same rows, in increasing latitude."""
        return Grid.gaussian(self.number)

    def centres(self) -> tuple[Array, Array]:
        """Return latitude and longitude of each point, degrees, shapes (P,)."""
        latitude = np.repeat(self.rows.latitude[::-1], self.points)
        return latitude, np.concatenate([np.arange(count) * (360 / count) for count in self.points])

    @cached_property
    def hash(self) -> str:
        """A hash of the points, the same on every machine."""
        return digest(np.array([self.number], dtype=np.float64), np.array(self.points, dtype=np.float64))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ReducedGrid) and self.points == other.points

    def __hash__(self) -> int:
        return int(self.hash, 16)

    def __repr__(self) -> str:
        octahedral = self.number > 0 and self == ReducedGrid.octahedral(self.number)
        return f"ReducedGrid({'O' if octahedral else 'N'}{self.number}, {self.size} points)"
