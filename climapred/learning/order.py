"""Which windows come when: the order of an epoch, what must be in memory for it, and the share of each process.

Plain integers: no files, no tensors. The order of epoch e comes from ``default_rng((seed, e))`` alone, so that a resumed run
meets the batches that the undisturbed one would have met.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from climapred.learning.windows import Indices


@dataclass(frozen=True)
class Share:
    """One of ``world`` processes that train together.

    Attributes:
        rank: which one, from 0.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank must be one of 0 to {self.world - 1} for {self.world} processes, got {self.rank}")

    @classmethod
    def current(cls) -> Share:
        """Return this process's place, as torchrun and ``learning.launch`` put it into the environment."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    def of(self, starts: Indices, *, whole: bool, contiguous: bool = False) -> Indices:
        """Return this process's part of ``starts``; the parts are disjoint.

        Args:
            starts: of all processes, in the order of delivery.
            whole: every start goes to some process, so that lengths differ by one at most (validation). Otherwise the last
                ``len(starts) % world`` are left out, so that lengths are equal (training).
            contiguous: a piece without holes, so that a process reads its own part of the files; otherwise every
                ``world``-th start, so that batch k of all processes together is batch k of a single one.
        """
        if not whole:
            starts = starts[: len(starts) // self.world * self.world]
        if contiguous:
            return np.array_split(starts, self.world)[self.rank]
        return starts[self.rank :: self.world]


def shuffled(starts: Indices, seed: int | None, epoch: int) -> Indices:
    """Return ``starts`` in the order of an epoch; as they are without a seed."""
    return starts if seed is None else _generator(seed, epoch).permutation(starts)


@dataclass(frozen=True)
class Phase:
    """A stretch of an epoch.

    Attributes:
        load: frames (start, stop) of the block that is read for it; None where none is added.
        starts: windows that are delivered, in order; each lies in a block that is in memory.
    """

    load: tuple[int, int] | None
    starts: Indices


def blocks_of(starts: Indices, length: int, extent: int) -> list[tuple[Indices, tuple[int, int]]]:
    """Return the windows that begin in each block of ``length`` frames, and the frames (start, stop) that they need.

    A block ends ``extent - 1`` frames later than the next one begins: windows across the border are cut from it alone.

    >>> blocks_of(np.array([0, 1, 3, 4]), 4, 3)
    [(array([0, 1, 3]), (0, 6)), (array([4]), (4, 7))]
    """
    edges = np.flatnonzero(np.diff(starts // length)) + 1
    parts = [part for part in np.split(starts, edges) if len(part)]
    return [(part, (int(part[0]), int(part[-1]) + extent)) for part in parts]


def streamed(starts: Indices, length: int, extent: int, resident: int, seed: int | None, epoch: int) -> list[Phase]:
    """Return the phases of an epoch that never holds more than ``resident`` blocks.

    Blocks come in random order; phase p has blocks p - resident + 1 to p of that order in memory. A block's windows are
    dealt at random over the ``resident`` phases of its stay, and each phase delivers its own in random order: neighbours
    in a batch come from ``resident`` different places, yet each block is read once an epoch. Without a seed everything
    comes in the order of time.

    Args:
        starts: increasing.
        length: frames of a block.
        extent: of a window.
        resident: blocks in memory at a time, besides the one that is being read.
        seed, epoch: of the order.
    """
    blocks = blocks_of(starts, length, extent)
    if seed is None:
        return [Phase(frames, part) for part, frames in blocks]
    random = _generator(seed, epoch)
    hands: list[list[Indices]] = [[] for _ in range(len(blocks) + resident - 1)]
    loads: list[tuple[int, int]] = []
    for position, block in enumerate(random.permutation(len(blocks))):
        part, frames = blocks[block]
        loads.append(frames)
        for later, hand in enumerate(np.array_split(random.permutation(part), resident)):
            hands[position + later].append(hand)
    return [
        Phase(loads[phase] if phase < len(loads) else None, random.permutation(np.concatenate(hand)))
        for phase, hand in enumerate(hands)
    ]


def _generator(seed: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng((seed, epoch))
