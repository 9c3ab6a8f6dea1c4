"""Windows to batches, epoch by epoch: gathered on the device, from memory, or from blocks that are streamed from the store."""

from __future__ import annotations

import math
import time
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from typing import Any, Literal, get_args
from weakref import ref

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from climapred.learning.dataset import BLOCK_BYTES, Batch, WindowDataset
from climapred.learning.order import Share, shuffled, streamed
from climapred.learning.windows import Indices

Tier = Literal["auto", "device", "memory", "stream"]

_AHEAD = 2  # blocks that are being read, at most: the order of an epoch must not depend on the number of workers


class WindowLoader:
    """Batches of windows: each iteration goes on where the last one stopped, to the end of the epoch.

    The order depends on seed and epoch, in the streamed tier also on ``memory_limit``, the chunks of the files and the number
    of processes. A batch is never written to again while somebody holds it.

    Args:
        dataset: the fields; nothing is read before the first batch.
        starts: of the windows, increasing.
        batch_size: windows of all processes together.
        seed: of the order. None is the order of time, for validation: every window comes once over all processes. With a seed
            all processes get equally many; what is left over is left out.
        tier: "device" and "memory" keep all frames there; "stream" reads blocks in random order, windows at random from
            several of them; "auto" takes the first that has room.
        memory_limit: bytes of all blocks of the streamed tier in this process, those that are being read included; batches
            come on top.
        workers: processes that read blocks for the streamed tier, as far as ``memory_limit`` has room for theirs, two at most;
            0 for a thread. A script that asks for them needs ``if __name__ == "__main__"``.
        device: of the device tier.
        share: this process among those that train together; None for what the environment says.

    Attributes:
        epoch, position: of the next batch. ``state_dict`` and ``load_state_dict`` carry them over a restart.
        waited: seconds that were spent in fetching batches, since the beginning.

    Raises:
        ValueError: for arguments that cannot be; when asked for length or batches: for a ``batch_size`` that the processes
            cannot share, for fewer windows than processes, for a ``memory_limit`` below two windows.
    """

    def __init__(
        self,
        dataset: WindowDataset,
        starts: Indices,
        batch_size: int,
        *,
        seed: int | None = None,
        tier: Tier = "auto",
        memory_limit: int = 160 * 2**20,
        workers: int = 0,
        device: str = "cuda",
        share: Share | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if tier not in get_args(Tier):
            raise ValueError(f"tier must be one of {', '.join(get_args(Tier))}, got {tier!r}")
        starts = np.asarray(starts)
        if not len(starts):
            raise ValueError("a loader needs at least one window, got no starts")
        if (np.diff(starts) <= 0).any():
            raise ValueError("starts must increase: a seed shuffles them")
        if tier == "device" and torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError('tier "device" finds no GPU here; use "auto", "memory" or "stream"')
        if starts[0] < 0 or starts[-1] + dataset.window.extent > len(dataset.times):
            raise ValueError(
                f"the windows at {starts[0]} to {starts[-1]} span {dataset.window.extent} times each; the fields hold "
                f"{len(dataset.times)} times"
            )
        self.dataset, self.starts, self.batch_size, self.seed = dataset, starts, batch_size, seed
        self.memory_limit, self.workers = memory_limit, workers
        self._tier, self._device, self._share = tier, device, share
        self._loads: list[tuple[int, int]] = []
        self._buffers = _Buffers()
        self.epoch = self.position = 0
        self.waited = 0.0

    @cached_property
    def tier(self) -> Tier:
        """Where windows are cut: as asked for, or the first of device, memory and stream that has room."""
        if self._tier != "auto":
            return self._tier
        if resident := self.dataset.resident_on:  # another loader of the same dataset came first
            return "memory" if resident == torch.device("cpu") else "device"
        size, world = len(self.dataset.times) * self.dataset.frame_bytes, self.share.world
        together = world > 1  # then all must decide alike: by what the machine has, not by what is free at the moment
        if torch.cuda.is_available() and size < 0.4 * torch.cuda.mem_get_info()[int(together)]:
            return "device"
        memory = psutil.virtual_memory()
        return "memory" if size < 0.5 * (memory.total if together else memory.available) / world else "stream"

    @property
    def share(self) -> Share:
        """This process among those that train together."""
        return self._share or Share.current()

    @property
    def sizes(self) -> list[int]:
        """Windows in each batch of this process."""
        world, train = self.share.world, self.seed is not None
        if self.batch_size % world:
            raise ValueError(
                f"batch_size counts the windows of all processes: {self.batch_size} does not divide by {world}"
            )
        if len(self.starts) < world:
            raise ValueError(f"{len(self.starts)} windows are too few for {world} processes")
        local, mine = self.batch_size // world, len(self._mine(self.starts))
        if train:
            return [min(local, mine - first) for first in range(0, mine, local)]
        batches = -(-len(self.starts) // self.batch_size)  # the same number in every process, none empty
        return [len(part) for part in np.array_split(np.arange(mine), min(batches, len(self.starts) // world))]

    def _mine(self, starts: Indices) -> Indices:
        return self.share.of(starts, whole=self.seed is None, contiguous=self.tier == "stream")

    def __len__(self) -> int:
        return len(self.sizes)

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch, unless it is the current one."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the place of the next batch, and what the order of batches depends on."""
        return {"epoch": self.epoch, "position": self.position, **self._order()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place that ``state_dict`` gave.

        Raises:
            ValueError: if it belongs to another order of batches.
        """
        if self._tier == "auto" and state.get("streamed") != (self.tier == "stream"):  # there was another room then
            self.tier = "stream" if state.get("streamed") else "memory"
        order = self._order()
        other = [f"{key} {state.get(key)} (here {order.get(key)})" for key in order if state.get(key) != order[key]]
        if other:
            raise ValueError(f"this place in an epoch is one of another loader: {', '.join(other)}")
        self.epoch, self.position = state["epoch"], state["position"]

    def _order(self) -> dict[str, Any]:
        order: dict[str, Any] = {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "batches": len(self),
            "windows": f"{len(self.starts)} #{zlib.crc32(self.starts.astype(np.int64).tobytes()):08x}",
            "streamed": self.tier == "stream",
        }
        if self.tier == "stream":
            order |= {"processes": self.share.world, "blocks": list(self._blocks[:2])}
        return order

    def __iter__(self) -> Iterator[Batch]:
        sizes, skipped = self.sizes, self.position
        done = sum(sizes[:skipped])
        source = (
            self._streamed(sizes[skipped:], done) if self.tier == "stream" else self._gathered(sizes[skipped:], done)
        )
        for position in range(skipped + 1, len(sizes) + 1):
            began = time.perf_counter()
            fields, starts = next(source)
            batch = self.dataset.batch(fields, starts)
            self.waited += time.perf_counter() - began
            last = position == len(sizes)  # said before it is delivered: whoever counts does not ask for one more
            self.epoch, self.position = (self.epoch + 1, 0) if last else (self.epoch, position)
            yield batch

    def _gathered(self, sizes: list[int], first: int) -> Iterator[tuple[Tensor, Indices]]:
        """Yield variables and starts of each batch from the frames that are resident on the device or in memory."""
        frames = self.dataset.resident(torch.device(self._device if self.tier == "device" else "cpu"))
        order = self._mine(shuffled(self.starts, self.seed, self.epoch))
        for size in sizes:
            starts = order[first : first + size]
            index = torch.from_numpy((starts[:, None] + self.dataset.window.offsets).ravel())
            if self.tier == "device":
                fields = frames[index.to(frames.device)].unflatten(0, (size, -1))
            else:
                fields = self._empty(size)
                torch.index_select(frames, 0, index, out=fields.view(-1, *self.dataset.shape))
            yield fields, starts
            first += size

    def _empty(self, windows: int) -> Tensor:
        return self._buffers.empty((windows, len(self.dataset.window.offsets), *self.dataset.shape))

    def _streamed(self, sizes: list[int], first: int) -> Iterator[tuple[Tensor, Indices]]:
        """Yield variables and starts of each batch from blocks that come and go; batches may span several of them."""
        pieces = self._pieces(first)
        starts, blocks = next(pieces)
        for size in sizes:
            fields, chosen = self._empty(size), []
            filled = 0
            while filled < size:
                if not len(starts):
                    starts, blocks = next(pieces)
                piece, starts = starts[: size - filled], starts[size - filled :]
                self._cut(piece, blocks, fields[filled:])
                chosen.append(piece)
                filled += len(piece)
            yield fields, np.concatenate(chosen)

    def _pieces(self, first: int) -> Iterator[tuple[Indices, dict[int, tuple[int, Tensor]]]]:
        """Yield windows in order of delivery, from number ``first`` on, with the blocks in memory that hold them."""
        length, resident, _ = self._blocks
        extent, mine = self.dataset.window.extent, self._mine(self.starts)
        phases = streamed(mine, length, extent, resident, self.seed, self.epoch)
        ends = np.cumsum([len(phase.starts) for phase in phases])
        begin = int(np.searchsorted(ends, first, side="right"))
        phases, first = phases[max(0, begin - resident + 1) :], first - int(ends[begin - 1] if begin else 0)
        before = min(begin, resident - 1)
        reading = self._read([phase.load for phase in phases if phase.load is not None])
        blocks: dict[int, tuple[int, Tensor]] = {}
        for number, phase in enumerate(phases):
            if phase.load is not None:
                blocks[phase.load[0] // length] = (phase.load[0], next(reading))
            if number >= before and len(phase.starts):
                yield phase.starts[first if number == before else 0 :], blocks
            if number >= resident - 1 or self.seed is None:
                del blocks[next(iter(blocks))]

    @cached_property
    def _blocks(self) -> tuple[int, int, int]:
        """Frames of a block; how many blocks windows are cut from at a time; how many are read meanwhile."""
        dataset, extent = self.dataset, self.dataset.window.extent
        room = self.memory_limit // dataset.frame_bytes
        if room < 2 * extent:
            needed = math.ceil(2 * extent * dataset.frame_bytes / 1e4) / 100
            raise ValueError(
                f"memory_limit {self.memory_limit / 1e6:.2f} MB is too little to stream windows that span {extent} times of "
                f"{dataset.frame_bytes / 1e6:.2f} MB; it takes {needed:.2f} MB"
            )
        # The last windows of a block need extent - 1 frames of the next one: short blocks are read several times over.
        # Whole pieces of the files are read fastest.
        piece = dataset.piece if room // 4 >= dataset.piece + extent else dataset.chunk
        count = next((count for count in (6, 5, 4, 3) if room // count >= max(2 * extent, piece + extent)), 2)
        most = max(BLOCK_BYTES // dataset.frame_bytes, 4 * extent, piece)
        length = min(most, room // count - extent + 1)
        length = length // piece * piece or length
        blocks = room // (length + extent - 1)
        ahead = min(_AHEAD, blocks - 1)
        return length, 1 if self.seed is None else blocks - ahead, ahead

    def _cut(self, starts: Indices, blocks: dict[int, tuple[int, Tensor]], out: Tensor) -> None:
        length, offsets = self._blocks[0], self.dataset.window.offsets
        consecutive = len(offsets) == self.dataset.window.extent
        rows = out.numpy()  # torch would copy with all its threads, which wait for the one that reads
        for row, start in enumerate(starts.tolist()):
            first, block = blocks[start // length]
            begin = start - first
            rows[row] = block.numpy()[slice(begin, begin + len(offsets)) if consecutive else offsets + begin]

    def _read(self, loads: list[tuple[int, int]]) -> Iterator[Tensor]:
        """Yield blocks of frames; the next ones are read meanwhile, by a thread or by worker processes."""
        if self.workers:
            yield from self._read_by_workers(loads)
            return
        *_, ahead = self._blocks
        with ThreadPoolExecutor(1) as thread:
            pending, waiting = deque[Future[Tensor]](), iter(loads)
            for load in islice(waiting, ahead):
                pending.append(thread.submit(self.dataset.read, *load))
            while pending:
                block = pending.popleft().result()
                for load in islice(waiting, 1):
                    pending.append(thread.submit(self.dataset.read, *load))
                yield block

    def _read_by_workers(self, loads: list[tuple[int, int]]) -> Iterator[Tensor]:
        self._loads[:] = loads
        try:
            yield from self._reader
        except RuntimeError as error:
            if "exited unexpectedly" not in str(error) and "killed by signal" not in str(error):
                raise
            del self._reader
            raise RuntimeError(
                f"a loader worker died: {error}; it was killed or ran out of memory, shared memory (/dev/shm) included: "
                "use fewer workers or a lower memory_limit"
            ) from error

    @cached_property
    def _reader(self) -> DataLoader[Tensor]:
        """Worker processes that live as long as the loader: never forked, a forked Zarr may wait for ever."""
        *_, ahead = self._blocks
        workers = min(self.workers, ahead)
        return DataLoader(
            _Blocks(self.dataset),
            sampler=self._loads,
            batch_size=None,
            num_workers=workers,
            multiprocessing_context="forkserver",
            persistent_workers=True,
            prefetch_factor=ahead // workers,
        )


class _Blocks(Dataset[Tensor]):
    def __init__(self, dataset: WindowDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, load: tuple[int, int]) -> Tensor:
        return self.dataset.read(*load)


class _Buffers:
    """Memory of batches that nobody holds any more, used again: to get fresh memory takes longer than to fill it."""

    def __init__(self, most: int = 4) -> None:
        self.most = most
        self.kept: list[tuple[npt.NDArray[np.float32], ref[npt.NDArray[np.float32]]]] = []

    def empty(self, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor of any content; a GPU gets it from page-locked memory, which torch recycles itself."""
        if torch.cuda.is_available():
            return torch.empty(shape, pin_memory=True)
        free = (memory for memory, lent in self.kept if lent() is None and memory.shape == shape)
        memory = next(free, None)
        if memory is None:
            memory = np.empty(shape, dtype=np.float32)
        lent = memory.view()  # every tensor on this memory holds it; when it is gone, so are they
        others = [pair for pair in self.kept if pair[0] is not memory]
        self.kept = [*others, (memory, ref(lent))][-self.most :]
        return torch.from_numpy(lent)
