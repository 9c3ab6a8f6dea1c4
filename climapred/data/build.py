"""Source to store: one task per output shard, on this machine or on a cluster; resumable, extensible, repairable."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, TypedDict, Unpack

import dask
import netCDF4
import numpy as np
import xarray as xr

from climapred.data import store
from climapred.data.harmonise import harmonise
from climapred.data.locks import Busy, locked
from climapred.data.messages import Damaged
from climapred.data.regrid import Method, regrid, source_grid
from climapred.data.shards import Fields
from climapred.data.sources import expand_paths, open_source, source_identity
from climapred.data.store import Layout, Shard, round_bits
from climapred.data.times import Duplicates
from climapred.data.workers import completed, give_memory_back, local_executor
from climapred.grid import Grid

Progress = Callable[[int, int], None]
Row = tuple[int, dict[str, str]]  # start of a shard, {variable: CRC-32C}

_HDF5_CACHE = 2**20  # bytes; by default 64 MB of chunks stay in memory for each open file, and none is read again
_READ_BYTES = 32 * 2**20  # of a variable, at once
_COMPARED = 4  # stored times that are read again before a store is extended


@dataclass(frozen=True)
class Source:
    """Files and the variables wanted from them (canonical names); a value, so that it can travel to a worker.

    Attributes:
        paths, variables: files, patterns or URLs; names.
        select, damaged: see ``open_source``; the selection as pairs of key and value.
        duplicates: see ``harmonise``.
    """

    paths: tuple[str, ...]
    variables: tuple[str, ...]
    select: tuple[tuple[str, Any], ...] = ()
    damaged: Damaged = "error"
    duplicates: Duplicates = "refuse"

    def absolute(self) -> Source:
        """Return the same files, one by one and with absolute paths: a worker may stand in another folder."""
        files = (os.path.abspath(f) if isinstance(f, Path) else str(f) for f in expand_paths(self.paths))
        return replace(self, paths=tuple(files))

    def open(self) -> xr.Dataset:
        """Return the harmonised fields, lazily.

        Raises:
            ValueError, FileNotFoundError, OSError: see ``open_source`` and ``harmonise``; calendars other than the real one
                are refused, for a store cannot hold them.
        """
        return _open(self, json.dumps(self.identity()), None)

    def identity(self) -> list[dict[str, Any]]:
        """Return name, size and modification time of every file."""
        return source_identity(list(self.paths))


_opening = Lock()  # threads wait for the one that opens


def _open(source: Source, identity: str, block: int | None) -> xr.Dataset:
    with _opening:
        return _open_once(source, identity, block)


@lru_cache(maxsize=4)
def _open_once(source: Source, identity: str, block: int | None) -> xr.Dataset:
    """Open once in each process, again when the files have changed (``identity``)."""
    netCDF4.set_chunk_cache(_HDF5_CACHE)
    variables = list(source.variables)
    reading: dict[str, Any] = {"select": dict(source.select), "damaged": source.damaged, "block": block}
    opened = open_source(list(source.paths), variables=variables, **reading)
    fields = harmonise(opened, variables, duplicates=source.duplicates, calendar="keep")
    more = f" and {len(source.paths) - 1} more" if len(source.paths) > 1 else ""
    store.refuse_calendars(fields["time"].values, f"{source.paths[0]}{more}")
    return fields


@dataclass(frozen=True)
class _Job:
    """What a task must know; a value, so that it can travel to a worker, which opens the files itself."""

    source: Source
    identity: str
    path: Path
    grid: Grid | None
    method: Method
    max_missing: float
    keep_bits: int | None
    verify: bool
    block: int | None = None  # times that are read at once

    def source_fields(self) -> xr.Dataset:
        """Return the harmonised fields, lazily."""
        return _open(self.source, self.identity, self.block)

    def in_blocks_of(self, shard: int) -> _Job:
        """Return the job that reads as much at once as memory bears, and never a time twice for two shards."""
        fields = self.source_fields()
        most = max(1, _READ_BYTES * len(fields["time"]) // max(1, max(f.nbytes for f in fields.values())))
        return replace(self, block=next(size for size in range(min(shard, most), 0, -1) if shard % size == 0))

    def values(self, shard: Shard) -> Fields:
        """Return what a shard holds; blocks of the source come and go one by one."""
        name, start, stop = shard
        try:
            values = _fields(self)[name][start:stop].compute(scheduler=dask.get).values
        except (OSError, RuntimeError, ValueError) as error:
            self.refuse_changes()
            if isinstance(error, ValueError):  # our own, which names the file; the NetCDF library says "HDF error"
                raise
            files = ", ".join(self._files_of(start, stop))
            raise ValueError(f"{name} cannot be read from {files}: {error}") from error
        values = np.ascontiguousarray(values, np.float32)  # rows of a source from north to south are a view
        return values if self.keep_bits is None else round_bits(values, self.keep_bits)

    def refuse_changes(self) -> None:
        """Raise if the files are not those that the build began with."""
        for path, before in zip(self.source.paths, json.loads(self.identity), strict=True):
            try:
                (now,) = source_identity(path)
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{path} has vanished during the build; {_RESUME}") from error
            if now != before:
                what = ", ".join(f"{key} {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key])
                raise ValueError(f"{path} has changed during the build ({what}); {_RESUME}")

    def _files_of(self, start: int, stop: int) -> list[str]:
        """Return the files that hold these times, as far as they can still be opened."""
        first, last = self.source_fields()["time"].values[[start, stop - 1]]
        found = []
        for path in self.source.paths:
            try:
                times = replace(self.source, paths=(path,)).open()["time"].values
            except (OSError, ValueError):
                found.append(path)
            else:
                found += [path] * bool(times[0] <= last and times[-1] >= first)
        return found


_RESUME = "what is written stays: with the old file the same command goes on, with a new one it starts anew"


@lru_cache(maxsize=4)
def _fields(job: _Job) -> xr.Dataset:
    """Return the fields on the target grid, lazily."""
    fields = job.source_fields()
    return fields if job.grid is None else regrid(fields, job.grid, job.method, max_missing=job.max_missing)


def build_store(
    source: Source,
    path: Path,
    *,
    grid: Grid | None = None,
    method: Method = "conservative",
    max_missing: float = 0.5,
    keep_bits: int | None = None,
    window: int | None = None,
    verify: bool = True,
    grown: bool = False,
    part: tuple[int, int] | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    progress: Progress = lambda done, total: None,
    announce: Callable[[str], None] = lambda text: None,
) -> None:
    """Write the regridded tensors of ``source`` to ``path``, a sharded Zarr store.

    Each task reads its times, regrids them, writes one whole shard, checks what came to the disk and puts the checksum into
    the journal of the unfinished store. Killed at any moment and called again with the same arguments, it writes only the
    shards that the journal lacks. A finished store of the same arguments is left as it is; one whose files are among those of
    ``source``, unchanged, is extended by the times that follow: only shards that are new or were incomplete are written.
    With other arguments, or when files have changed, it starts anew. Until it is complete, readers of ``path`` see the
    older store.

    A script that calls it needs ``if __name__ == "__main__":``, for large sources are read by processes.

    Args:
        grid: target; None keeps the source's own.
        method, max_missing: see ``regrid``.
        keep_bits: see ``store.round_bits``; None keeps every bit.
        window: consecutive times that will be read together, see ``Layout.plan``. A store that exists keeps its layout.
        verify: read each shard again after it was written, and check its bytes.
        grown: files that have grown are taken for unchanged where they held times already, which a few times check.
        part: (i, n): write the i-th of n parts, i from 1, beside the other parts and on any machine, and leave the store
            unfinished: ``finish_parts`` or a call without ``part`` does the rest.
        scheduler: address of a running Dask scheduler, whose workers see the same files; None computes on this machine.
        workers: processes (threads for what is quickly done); None for as many as there are processors.
        progress: called with (shards done, shards in all).
        announce: told in words what is resumed or extended, and where Dask's dashboard is.

    Raises:
        ValueError, FileNotFoundError: from opening and harmonising the source, or if a file changes or vanishes during the
            build; what is written stays valid.
        OSError: if the store cannot be written.
        Busy: if another build writes this store.
    """
    if part is not None and not 1 <= part[0] <= part[1]:
        raise ValueError(f"part must be (i, n) with i in 1 to n, got {part}")
    job = _job(source, path, verify, grid=grid, method=method, max_missing=max_missing, keep_bits=keep_bits)
    path = job.path
    with ExitStack() as locks:
        layout = _enter(locks, path, part, lambda alone: _prepare(job, window, grown, alone, announce))
        if layout is None:
            return
        regions = _part_of(layout.regions(len(job.source_fields()["time"])), part)
        written = store.journalled(path)
        remaining = [region for region in regions if region[0] not in written]
        job = job.in_blocks_of(layout.shard)
        done = len(regions) - len(remaining)
        if done:
            announce(f"{done} of {len(regions)} shards are there already")
        progress(done, len(regions))
        volume = job.source_fields().nbytes * len(remaining) // max(1, len(regions))
        with _executor(scheduler, workers, len(remaining), volume, announce) as executor:
            tasks = ((_write_shard, job, *region) for region in remaining)
            for start, checksums in completed(executor, tasks):
                written[start] = checksums
                done += 1
                progress(done, len(regions))
        if part is None:
            _finish(path, written)


class Target(TypedDict, total=False):
    """The arguments of ``build_store`` that say which values a store holds."""

    grid: Grid | None
    method: Method
    max_missing: float
    keep_bits: int | None


def finish_parts(source: Source, path: Path, **target: Unpack[Target]) -> None:
    """Finish a store whose parts are written: check that every shard is there and intact, and give it its name.

    Args:
        target: as the parts were given it.

    Raises:
        ValueError: if shards are missing or damaged; a damaged one is struck from the journal, so that the same parts can
            be run again.
        Busy: if a part is still being written.
    """
    job = _job(source, path, **target)
    path, wanted = job.path, _attributes(job)
    with locked(_beside(path, "lock"), _busy(path)):
        store.tidy(path)
        if _agree(store.stored_attributes(path), wanted):
            return
        begun = store.stored_attributes(store.unfinished_path(path))
        if begun is None or not _agree(begun, wanted):
            raise ValueError(f"no part of {path} was built with these arguments; build the parts first")
        regions = _layout(begun).regions(len(job.source_fields()["time"]))
        written = store.journalled(path)
        missing = [region for region in regions if region[0] not in written]
        if missing:
            raise ValueError(f"{path.name}: {_say(missing, regions)} not written; run their parts again")
        damaged = {shard[1:] for shard, bad in store.damaged_shards(store.unfinished_path(path), written) if bad}
        for start, _ in damaged:
            store.forget_shard(path, start)
        if damaged:
            raise ValueError(f"{path.name}: {_say(sorted(damaged), regions)} damaged; run their parts again")
        _finish(path, written)


def repair_store(source: Source, path: Path, **target: Unpack[Target]) -> list[Shard]:
    """Read every shard of a finished store, and write those anew that are damaged or missing; return these.

    Args:
        target: as ``build_store`` was given it.

    Raises:
        ValueError: if the store was built from other files or with other arguments, so that its values are lost.
    """
    job = _job(source, path, **target)
    with locked(_beside(job.path, "lock"), _busy(job.path)):
        damaged = store.verify_store(job.path)
        if damaged and not _agree(store.stored_attributes(job.path), _attributes(job)):
            raise ValueError(
                f"{len(damaged)} shards of {job.path} are damaged, and it was built from other files or with other "
                "arguments; build it anew"
            )
        for shard in damaged:
            store.rewrite_region(job.path, shard.variable, shard.start, job.values(shard))
        store.remove_strays(job.path)
    return damaged


def _job(source: Source, path: Path, verify: bool = True, **target: Unpack[Target]) -> _Job:
    source, defaults = source.absolute(), Target(grid=None, method="conservative", max_missing=0.5, keep_bits=None)
    return _Job(source, json.dumps(source.identity()), path.absolute(), verify=verify, **(defaults | target))


def _attributes(job: _Job) -> dict[str, Any]:
    """Return what tells the values of a store from others; the store carries it."""
    own = source_grid(job.source_fields())
    if job.grid is None and not isinstance(own, Grid):
        raise ValueError(f"{own} has no rows and columns: a store of it needs a grid to regrid to")
    target, source = Grid.of(_fields(job)), job.source
    reading = {"select": dict(source.select), "damaged": source.damaged, "duplicates": source.duplicates}
    return {
        "source": job.identity,
        "variables": list(source.variables),
        "reading": json.loads(json.dumps(reading)),  # tuples come back from a store as lists
        "grid": target.hash,
        "regrid_method": "none" if own == target else job.method,
        "max_missing": job.max_missing,
        "keep_bits": job.keep_bits,
        "climapred_format": store.FORMAT,
    }


def _agree(stored: dict[str, Any] | None, wanted: dict[str, Any]) -> bool:
    return stored is not None and all(stored.get(key) == value for key, value in wanted.items())


def _layout(stored: dict[str, Any]) -> Layout:
    return Layout(stored["layout"]["chunk"], stored["layout"]["shard"])


def _enter(
    locks: ExitStack, path: Path, part: tuple[int, int] | None, prepare: Callable[[bool], Layout | None]
) -> Layout | None:
    """Take the locks of a build, prepare the store, return what ``prepare`` does.

    A whole build excludes all others. Parts share the store; one after the other they look whether somebody works there
    already, and the first to come may prepare it.
    """
    lock = _beside(path, "lock")
    if part is None:
        locks.enter_context(locked(lock, _busy(path)))
        return prepare(True)
    name = f"part-{part[0]}-of-{part[1]}"
    locks.enter_context(locked(_beside(path, f"{name}.lock"), f"another process builds part {part[0]}/{part[1]}"))
    with locked(_beside(path, "start.lock"), "", wait=True):
        try:
            with locked(lock, ""):
                layout = prepare(True)
        except Busy:
            layout = prepare(False)
        locks.enter_context(locked(lock, _busy(path), shared=True))
    return layout


def _beside(path: Path, name: str) -> Path:
    return path.with_name(f".{path.name}.{name}")


def _busy(path: Path) -> str:
    return f"another build writes {path}; wait for it, or build the store in parts"


def _prepare(job: _Job, window: int | None, grown: bool, alone: bool, announce: Callable[[str], None]) -> Layout | None:
    """Go on with the unfinished store, or begin one; return its layout, None where the finished one is as wanted."""
    if alone:
        store.tidy(job.path)
    wanted, finished = _attributes(job), store.stored_attributes(job.path)
    if _agree(finished, wanted):
        return None
    begun = store.stored_attributes(store.unfinished_path(job.path))
    if begun is not None and _agree(begun, wanted):
        return _layout(begun)
    if not alone:
        raise Busy(f"{_busy(job.path)}: its arguments are others")
    fields = _fields(job)
    series: Any = {"grid": Grid.of(fields), "times": fields["time"].values, "attributes": wanted}
    if finished is not None and (known := _continued(job, finished, wanted, grown)):
        announce(f"{len(series['times']) - known} times are appended to {known}")
        return store.extend_store(job.path, **series)
    return store.create_store(job.path, **series, variables=job.source.variables, window=window)


def _continued(job: _Job, finished: dict[str, Any], wanted: dict[str, Any], grown: bool) -> int:
    """Return how many times the finished store has, if the source only continues it; else 0.

    The last ones are compared: whatever else has changed must not go unnoticed.
    """
    if not _agree(finished, {**wanted, "source": finished["source"]}):
        return 0
    now = json.loads(job.identity)
    if not grown and not all(file in now for file in json.loads(finished["source"])):
        return 0
    older, times = store.open_store(job.path), _fields(job)["time"].values
    known = len(older["time"])
    if known >= len(times) or not np.array_equal(older["time"], times[:known]):
        return 0
    for name in job.source.variables:
        last = Shard(name, max(0, known - _COMPARED), known)
        if not np.array_equal(job.values(last), older[name][last.start :], equal_nan=True):
            return 0
    return known


def _part_of(regions: list[tuple[int, int]], part: tuple[int, int] | None) -> list[tuple[int, int]]:
    """Return the i-th of n runs of neighbours: a part reads its own stretch of the source."""
    if part is None:
        return regions
    number, count = part
    return [regions[i] for i in np.array_split(np.arange(len(regions)), count)[number - 1]]


def _say(some: list[tuple[int, int]], regions: list[tuple[int, int]]) -> str:
    return f"{len(some)} of {len(regions)} shards (first: times {some[0][0]}..{some[0][1]}) are"


def _finish(path: Path, written: dict[int, dict[str, str]]) -> None:
    store.finish_store(path, {"shards_crc32c": {str(start): written[start] for start in sorted(written)}})


def _write_shard(job: _Job, start: int, stop: int) -> Row:
    """Read, regrid and write the times start..stop of every variable, and note it in the journal."""
    checksums = {}
    for name in job.source.variables:
        values = job.values(Shard(name, start, stop))
        checksums[name] = store.write_region(job.path, name, start, values, verify=job.verify)
        del values
        give_memory_back()
    job.refuse_changes()
    store.journal_shard(job.path, start, checksums)
    return start, checksums


@contextmanager
def _executor(
    scheduler: str | None, workers: int | None, tasks: int, volume: int, announce: Callable[[str], None]
) -> Iterator[Executor]:
    """Give what runs the tasks: a scheduler's workers, or this machine's."""
    if scheduler is None:
        with local_executor(workers, tasks, volume) as executor:
            yield executor
        return
    from distributed import Client

    with Client(scheduler) as client, client.get_executor(pure=False) as executor:
        if client.dashboard_link:
            announce(f"Dask dashboard: {client.dashboard_link}")
        yield executor
