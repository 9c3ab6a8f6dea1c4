"""Source to store: one Dask task per output shard, resumable."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import xarray as xr
from distributed import Client, as_completed

from climapred.data.harmonise import harmonise
from climapred.data.regrid import Method, Regridder
from climapred.data.sources import expand_paths, open_source, source_identity
from climapred.data.store import Layout, create_store, finish_store, partial_path, write_region
from climapred.grid import Grid

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Source:
    """Files and the variables wanted from them (canonical names); a value, so that it can travel to a worker."""

    paths: tuple[str, ...]
    variables: tuple[str, ...]

    def absolute(self) -> Source:
        """Return the same files, one by one and with absolute paths: a worker may stand in another folder."""
        return Source(tuple(str(path.absolute()) for path in expand_paths(self.paths)), self.variables)

    def open(self) -> xr.Dataset:
        """Return the harmonised fields, lazily."""
        with _opening:
            return _open(self, _stamp(self))

    def identity(self) -> list[dict[str, Any]]:
        """Return name, size and modification time of every file."""
        return source_identity(list(self.paths))


_opening = Lock()  # netCDF4 crashes when two threads open files at once; reading is guarded by xarray


@lru_cache(maxsize=4)
def _open(source: Source, stamp: str) -> xr.Dataset:
    """Open once in each process, again when the files have changed (``stamp``)."""
    return harmonise(
        open_source(list(source.paths), variables=list(source.variables)), variables=list(source.variables)
    )


def _stamp(source: Source) -> str:
    return hashlib.sha256(json.dumps(source.identity(), sort_keys=True).encode()).hexdigest()


def build_store(
    source: Source,
    path: Path,
    *,
    grid: Grid | None = None,
    method: Method = "conservative",
    max_missing: float = 0.5,
    scheduler: str | None = None,
    workers: int = 2,
    progress: Progress = lambda done, total: None,
) -> None:
    """Write the regridded tensors of ``source`` to ``path``, a sharded Zarr store.

    Each task reads its times, regrids them and writes one whole shard; its checksum then goes into a journal beside the
    unfinished store. Killed at any moment and called again with the same arguments, it writes only the shards that the
    journal lacks; called with other arguments, or when the files have changed, it starts anew.

    Args:
        grid: target; None keeps the source's own.
        method, max_missing: see ``regrid``.
        scheduler: address of a running Dask scheduler; None computes with ``workers`` threads in this process.
        progress: called with (shards done, shards in all).

    Raises:
        ValueError, FileNotFoundError: from opening and harmonising the source; what is written stays valid.
    """
    source, path = source.absolute(), path.absolute()
    fields = source.open()
    own = Grid.of(fields)
    regridder = Regridder(own, grid or own, method, max_missing)
    times = fields["time"].values
    plan = {
        "source": source.identity(),
        "variables": list(source.variables),
        "grid": regridder.target.hash,
        "method": None if own == regridder.target else method,
        "max_missing": max_missing,
    }
    journal = path.with_name(path.name + ".journal.jsonl")
    layout, written = _resume(journal, path, plan)
    if layout is None:
        journal.unlink(missing_ok=True)  # first: an old journal must never vouch for a new, empty store
        attributes = {"source": json.dumps(plan["source"]), "regrid_method": plan["method"] or "none"}
        layout = create_store(
            path, grid=regridder.target, times=times, variables=source.variables, attributes=attributes
        )
        journal.write_text(json.dumps({"plan": plan, "chunk": layout.chunk, "shard": layout.shard}) + "\n")
    regions = layout.regions(len(times))
    remaining = [region for region in regions if region[0] not in written]
    progress(len(regions) - len(remaining), len(regions))
    with _client(scheduler, workers) as client, journal.open("a") as log:
        futures = [client.submit(_write_shard, source, regridder, path, *region, pure=False) for region in remaining]
        for count, (_, row) in enumerate(as_completed(futures, with_results=True), start=1):
            log.write(json.dumps(row) + "\n")
            log.flush()
            written[row["start"]] = row
            progress(len(regions) - len(remaining) + count, len(regions))
    checksums = {str(start): written[start]["sha256"] for start in sorted(written)}
    finish_store(path, {"shards_sha256": checksums})
    journal.unlink()


def _write_shard(source: Source, regridder: Regridder, path: Path, start: int, stop: int) -> dict[str, Any]:
    """Read, regrid and write the times start..stop; return the journal's row."""
    fields = source.open().isel(time=slice(start, stop))
    checksums = {}
    for name in source.variables:
        try:
            values = fields[name].compute(scheduler="synchronous").values
        except (OSError, RuntimeError) as error:  # the NetCDF library says "HDF error" and no name
            raise ValueError(f"{name} cannot be read from {', '.join(source.paths)}: {error}") from error
        values = regridder(values).astype(np.float32, copy=False)
        checksums[name] = write_region(path, name, start, values)
    return {"start": start, "stop": stop, "sha256": checksums}


def _resume(journal: Path, path: Path, plan: Mapping[str, Any]) -> tuple[Layout | None, dict[int, dict[str, Any]]]:
    """Return the layout and the journalled shards of an unfinished build of the same plan, or (None, {})."""
    if not journal.exists() or not partial_path(path).exists():
        return None, {}
    rows = list(_complete_lines(journal))
    if not rows or rows[0].get("plan") != plan:
        return None, {}
    journal.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Layout(rows[0]["chunk"], rows[0]["shard"]), {row["start"]: row for row in rows[1:]}


def _complete_lines(journal: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a journal; a last line that a kill cut short does not count."""
    for line in journal.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


@contextmanager
def _client(scheduler: str | None, workers: int) -> Iterator[Client]:
    if scheduler is not None:
        with Client(scheduler) as client:
            yield client
        return
    # Dask always serves its state over HTTP, by default to the whole network and on one port for all: keep it here.
    own = {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
    # A failed task is raised here; the worker's own report of it says the same in fifty lines.
    threads = {"processes": False, "n_workers": 1, "threads_per_worker": workers, "silence_logs": logging.CRITICAL}
    with Client(**threads, **own, scheduler_kwargs={"dashboard": False}) as client:
        yield client
