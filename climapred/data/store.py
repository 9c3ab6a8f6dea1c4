"""The tensors: a sharded Zarr v3 store, written shard by shard.

Layout: one array per variable, dims (time, latitude, longitude), float32; an inner chunk is a few MB of whole fields, a
shard is a whole number of chunks and the unit that one task writes (climapred.data.shards). A store under construction
lies in a folder of another name (``NAME.partial``) together with the journal of its shards, so that nobody, with whatever
tool, takes it for a finished one, and no journal speaks for another store.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr

from climapred.data import shards
from climapred.data.shards import Fields
from climapred.grid import Grid
from climapred.variables import VARIABLES
from climapred.whole import write_text

FORMAT = 2

# A read costs its least where a chunk holds about a window; from 1 MB on, chunks are read one after the other as fast as
# larger ones. So: a few windows, not below 1 MB, and never above 4 MB.
_CHUNK_BYTES = 4 * 2**20
_LEAST_CHUNK_BYTES = 2**20
_CHUNK_WINDOWS = 4
_SHARD_BYTES = 32 * 2**20

_SWAP = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS
_HERE = -100  # AT_FDCWD of Linux


@dataclass(frozen=True)
class Layout:
    """Times per inner chunk and per shard; they may be longer than the series, which may grow.

    >>> Layout.plan(Grid.regular(1.5), window=12)
    Layout(chunk=36, shard=288)
    """

    chunk: int
    shard: int

    @classmethod
    def plan(cls, grid: Grid, window: int | None = None) -> Layout:
        """Return chunks of whole fields, at most 4 MB, and shards of chunks, at most 32 MB; a field is never split.

        Args:
            grid: of a field.
            window: consecutive times that are read together. A chunk then holds four of them, where these are 1 to 4 MB:
                a window touches one chunk or two, and with small fields it does not bring a whole year along.
        """
        field_bytes = 4 * grid.size
        chunk = _CHUNK_BYTES // field_bytes
        if window is not None:
            chunk = min(chunk, max(_CHUNK_WINDOWS * window, _LEAST_CHUNK_BYTES // field_bytes))
        chunk = max(1, chunk)
        return cls(chunk, chunk * max(1, _SHARD_BYTES // (chunk * field_bytes)))

    def regions(self, times: int) -> list[tuple[int, int]]:
        """Return (start, stop) of every shard along time."""
        return [(start, min(start + self.shard, times)) for start in range(0, times, self.shard)]


class Shard(NamedTuple):
    """The times start..stop of a variable, which one file holds."""

    variable: str
    start: int
    stop: int


def partial_path(path: Path) -> Path:
    """Return the folder of a store under construction: the unfinished store and its journal."""
    return path.with_name(path.name + ".partial")


def unfinished_path(path: Path) -> Path:
    """Return where the store is while it is built."""
    return partial_path(path) / "unfinished.zarr"


def _journal_path(path: Path) -> Path:
    return partial_path(path) / "journal"


def _older_path(path: Path) -> Path:
    return path.with_name(path.name + ".old")


def refuse_calendars(times: npt.NDArray[Any], what: str) -> None:
    """Raise ValueError if ``times``, those of ``what``, are cftime dates: a store cannot hold them."""
    if calendar := getattr(next(iter(times), None), "calendar", None):
        raise ValueError(
            f"the times of {what} follow the calendar {calendar!r}, but a store counts time on the real one, as datetime64; "
            "convert them first, with xarray's dataset.convert_calendar('standard', align_on='date', use_cftime=False), or "
            "work in xarray: harmonise(dataset, calendar='keep')"
        )


def create_store(
    path: Path,
    *,
    grid: Grid,
    times: npt.NDArray[np.datetime64],
    variables: Sequence[str],
    attributes: Mapping[str, Any],
    window: int | None = None,
) -> Layout:
    """Begin an empty store in ``partial_path(path)``, replacing one that is there; return its layout.

    Raises:
        ValueError: if the times are cftime dates.
        OSError: if it cannot be written.
    """
    refuse_calendars(times, path.name)
    layout = Layout.plan(grid, window)
    attributes = {**attributes, "layout": {**asdict(layout), "window": window}}
    with _writing(path, f"the empty store of {path.name}"):
        _replace_folder(_begin(path, grid, times, variables, attributes, layout), partial_path(path))
    return layout


def extend_store(path: Path, *, grid: Grid, times: npt.NDArray[np.datetime64], attributes: Mapping[str, Any]) -> Layout:
    """Begin a longer version of the finished store ``path`` in ``partial_path(path)``; return the layout, which stays.

    Shards that are complete are taken over, as links to the same files, and count as written; the last one is not, where
    it is incomplete. So are the statistics, which are those of their own times. The finished store is not touched.

    Args:
        times: those of the store, and further ones.
        attributes: replace those of the store.

    Raises:
        ValueError: if the times are cftime dates.
        OSError: if it cannot be written.
    """
    refuse_calendars(times, path.name)
    older, count = stored_attributes(path) or {}, len(open_store(path)["time"])
    layout = Layout(older["layout"]["chunk"], older["layout"]["shard"])
    with _writing(path, f"the longer version of {path.name}"):
        begun = _begin(path, grid, times, older["variables"], {**attributes, "layout": older["layout"]}, layout)
        for start, stop in layout.regions(count):
            if stop - start == layout.shard:
                for name in older["variables"]:
                    shard = Path(name, "c", str(start // layout.shard), "0", "0")
                    _link(path / shard, begun / "unfinished.zarr" / shard)
                write_text(begun / "journal" / f"{start}.json", json.dumps(older["shards_crc32c"][str(start)]))
        for file in (path / "statistics").rglob("*"):
            if file.is_file():
                _link(file, begun / "unfinished.zarr" / file.relative_to(path))
        _replace_folder(begun, partial_path(path))
    return layout


def _begin(
    path: Path,
    grid: Grid,
    times: npt.NDArray[np.datetime64],
    variables: Sequence[str],
    attributes: Mapping[str, Any],
    layout: Layout,
) -> Path:
    """Write an empty store and an empty journal into a folder beside ``partial_path``: a kill leaves no half of them."""
    folder = partial_path(path).with_name(partial_path(path).name + ".new")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "journal").mkdir(parents=True)
    coordinates = xr.Dataset(
        coords={"time": ("time", times, {"standard_name": "time", "axis": "T"}), **grid.coordinates()}
    )
    marks = {"variables": list(variables), "climapred_format": FORMAT, "unfinished": True}
    coordinates.attrs = {**attributes, **marks}
    encoding = {"time": {"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian", "dtype": "int64"}}
    store = folder / "unfinished.zarr"
    coordinates.to_zarr(store, mode="w", zarr_format=3, consolidated=False, encoding=encoding)
    group = zarr.open_group(store, mode="r+")
    for name in variables:
        variable = VARIABLES[name]
        group.create_array(
            name,
            shape=(len(times), *grid.shape),
            chunks=(layout.chunk, *grid.shape),
            shards=(layout.shard, *grid.shape),
            dtype="float32",
            fill_value=np.nan,
            compressors=shards.compressors(),
            dimension_names=("time", "latitude", "longitude"),
            attributes={
                "units": variable.units,
                "standard_name": variable.standard_name,
                "long_name": variable.long_name,
            },
        )
    return folder


def _replace_folder(folder: Path, target: Path) -> None:
    _discard(target)
    folder.rename(target)


def _discard(folder: Path) -> None:
    """Remove a folder; it loses its name first, for a kill may leave half of it."""
    trash = folder.with_name(folder.name + ".trash")
    shutil.rmtree(trash, ignore_errors=True)
    if folder.exists():
        folder.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)


def _link(file: Path, target: Path) -> None:
    """Make ``target`` the same file; a copy where the file system knows no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copy2(file, target)


def write_region(path: Path, variable: str, start: int, values: Fields, *, verify: bool = False) -> str:
    """Write one shard of a store under construction and return the CRC-32C of its values.

    Args:
        verify: read the file again and check it, see ``shard_is_sound``.

    Raises:
        ValueError: if the region is not exactly one shard: two tasks that share a shard would lose each other's data.
        OSError: if it cannot be written, or does not come back as it was written.
    """
    return _write_shard(path, unfinished_path(path), Shard(variable, start, start + len(values)), values, verify)


def rewrite_region(path: Path, variable: str, start: int, values: Fields) -> None:
    """Write one damaged shard of a finished store anew.

    Raises:
        ValueError: if the values are not those that the store had, by their checksum; nothing is written then.
    """
    recorded = (stored_attributes(path) or {})["shards_crc32c"][str(start)][variable]
    if shards.checksum(values) != recorded:
        times = f"times {start}..{start + len(values)}"
        raise ValueError(f"{path.name}/{variable}: the source no longer gives what {times} held; build the store anew")
    _write_shard(path, path, Shard(variable, start, start + len(values)), values, verify=True)


def _write_shard(path: Path, store: Path, region: Shard, values: Fields, verify: bool) -> str:
    array = zarr.open_group(store, mode="r")[region.variable]
    shard, chunk, (_, start, stop) = array.shards[0], array.chunks[0], region
    where = f"{path.name}/{region.variable}: times {start}..{stop}"
    if start % shard or stop != min(start + shard, array.shape[0]):
        raise ValueError(f"{where} are not one shard of {shard} times")
    file = store / region.variable / "c" / str(start // shard) / "0" / "0"
    with _writing(path, where):
        shards.write_shard(file, values, chunk, shard // chunk)
    if verify and not shards.shard_is_sound(file, shard // chunk):
        raise OSError(f"{where} do not come back as they were written to {path.parent}: a fault of the disk?")
    return shards.checksum(values)


@contextmanager
def _writing(path: Path, what: str) -> Iterator[None]:
    """Say of an error which file it is about: a full disk does not tell."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{what} cannot be written to {path.parent}: {error}; what is written stays valid") from error


def round_bits(values: Fields, keep_bits: int) -> Fields:
    """Return float32 values with ``keep_bits`` bits of mantissa, the others zero: they compress several times better.

    Rounded to nearest, ties to even, so that means stay: at most 2 ** -(keep_bits + 1) of the value is lost. NaN and
    infinities stay. (M. Klöwer et al. 2021, Nature Computational Science 1, 713-724.)

    Args:
        keep_bits: 1 to 23; all 23 leave the values as they are.

    >>> round_bits(np.array([280.123], np.float32), 12)
    array([280.125], dtype=float32)
    """
    if not 1 <= keep_bits <= 23:
        raise ValueError(f"keep_bits must lie in 1 to 23, the bits of a float32's mantissa, got {keep_bits}")
    if keep_bits == 23:
        return values
    dropped = 23 - keep_bits
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    half = np.uint32((1 << (dropped - 1)) - 1) + (bits >> np.uint32(dropped) & np.uint32(1))
    rounded = (bits + half & np.uint32(2**32 - (1 << dropped))).view(np.float32)
    return np.where(np.isfinite(values), rounded, values)


def journal_shard(path: Path, start: int, checksums: Mapping[str, str]) -> None:
    """Note that the shards at ``start`` are written: {variable: CRC-32C}, whole or not at all."""
    with _writing(path, f"the journal of {path.name}"):
        write_text(_journal_path(path) / f"{start}.json", json.dumps(checksums), contended=True)


def journalled(path: Path) -> dict[int, dict[str, str]]:
    """Return the shards of an unfinished store that are written: {start: {variable: CRC-32C}}."""
    rows = {int(file.stem): json.loads(file.read_text()) for file in _journal_path(path).glob("[0-9]*.json")}
    return {start: rows[start] for start in sorted(rows)}


def forget_shard(path: Path, start: int) -> None:
    """Take back ``journal_shard``: the shard is written again."""
    (_journal_path(path) / f"{start}.json").unlink(missing_ok=True)


def damaged_shards(store: Path, checksums: Mapping[int, Mapping[str, str]]) -> Iterator[tuple[Shard, bool]]:
    """Yield every shard of a store and whether it is damaged or missing, from {start: {variable: CRC-32C}}."""
    for start, row in checksums.items():
        for variable, checksum in row.items():
            array = zarr.open_group(store, mode="r")[variable]
            stop = min(start + array.shards[0], array.shape[0])
            try:
                sound = shards.checksum(array[start:stop]) == checksum
            except (OSError, ValueError, RuntimeError):  # a file cut short, or bits that have flipped
                sound = False
            yield Shard(variable, start, stop), not sound


def verify_store(path: str | Path) -> list[Shard]:
    """Return the shards of a finished store that are damaged or missing; reads all of it.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it has another format, whose checksums are others.
    """
    place, _ = _place(Path(path))
    attributes = stored_attributes(place) or {}
    _refuse_other_formats(Path(path), attributes)
    rows = {int(start): row for start, row in attributes.get("shards_crc32c", {}).items()}
    return [shard for shard, damaged in damaged_shards(place, rows) if damaged]


def finish_store(path: Path, attributes: Mapping[str, Any]) -> None:
    """Give a completely written store its attributes and its name; readers see the older store until they see this one.

    Args:
        attributes: with ``shards_crc32c``, the rows of the journal: by them ``tidy`` knows which of two stores is which.
    """
    unfinished = unfinished_path(path)
    remove_strays(unfinished)
    group = zarr.open_group(unfinished, mode="r+")
    kept = {key: value for key, value in group.attrs.items() if key != "unfinished"}
    with _writing(path, f"the attributes of {path.name}"):
        group.attrs.put({**kept, **attributes})
    if path.exists() and not _exchanged(unfinished, path):
        _discard(_older_path(path))
        path.rename(_older_path(path))
    if not path.exists():
        unfinished.rename(path)
    tidy(path)


def _exchanged(one: Path, other: Path) -> bool:
    """Give two folders each other's names, at once; return whether the system and the file system could."""
    names, failed = (os.fsencode(one), os.fsencode(other)), -1
    if sys.platform == "linux":
        if exchange := getattr(ctypes.CDLL(None), "renameat2", None):  # glibc has it from 2.28 on; NFS refuses
            failed = exchange(_HERE, names[0], _HERE, names[1], _SWAP)
    elif sys.platform == "darwin":
        failed = ctypes.CDLL(None).renamex_np(*names, _SWAP)
    return failed == 0


def tidy(path: Path) -> None:
    """Complete what a kill left of ``finish_store``: an older store gets its name back, or goes."""
    if not path.exists() and _older_path(path).exists():
        _older_path(path).rename(path)
    _discard(_older_path(path))
    if not _awaits_its_name(path):
        _discard(partial_path(path))


def _awaits_its_name(path: Path) -> bool:
    """Return whether a store under construction is in its folder; the older one may be, which the journal is not about."""
    begun = stored_attributes(unfinished_path(path)) or {}
    if begun.get("unfinished"):
        return True
    written = {str(start): row for start, row in journalled(path).items()}
    return begun.get("shards_crc32c") == written != (stored_attributes(path) or {}).get("shards_crc32c")


def remove_strays(store: Path) -> None:
    """Remove files that were begun when their writer was killed: Zarr, and ``replacing``, write under another name first."""
    for pattern in ("*.partial", ".unfinished.*"):
        for stray in store.rglob(pattern):
            if stray.is_file():
                stray.unlink()


def stored_attributes(store: Path) -> dict[str, Any] | None:
    """Return the attributes of a store, finished or not; None if there is none."""
    try:
        return dict(json.loads((store / "zarr.json").read_text()).get("attributes", {}))
    except (FileNotFoundError, NotADirectoryError):
        return None


def open_store(path: str | Path) -> xr.Dataset:
    """Open a finished store lazily: dims (time, latitude, longitude), physical units, variables in the order of the build.

    Nothing is in dask arrays: a graph of every chunk would be made, and memory would hold it. What is opened is one version
    of the store, also while ``build_store`` replaces it; and if that appends to it, the opened one goes on to be read.

    Raises:
        FileNotFoundError: if there is none; the message says whether one is under construction.
        ValueError: if the store was not written by climapred, or by a newer one.
    """
    path = Path(path)
    while True:
        place, version = _place(path)
        try:
            dataset = xr.open_zarr(place, consolidated=False, chunks=None)
        except (OSError, ValueError, KeyError):
            if _place(path)[1] == version:
                raise
        else:
            if _place(path)[1] == version:
                break
    if dataset.attrs.get("unfinished"):
        raise ValueError(
            f"{path} is a store under construction; its build has not finished: run the same command again"
        )
    _refuse_other_formats(path, dataset.attrs)
    return dataset[dataset.attrs["variables"]]  # Zarr lists the arrays of a group in any order


def _refuse_other_formats(path: Path, attributes: Mapping[Any, Any]) -> None:
    if (found := attributes.get("climapred_format")) != FORMAT:
        raise ValueError(f"{path} has store format {found!r}, this climapred reads {FORMAT}; build it again")


def _place(path: Path) -> tuple[Path, tuple[int, int]]:
    """Return where the finished store is, and what tells this version from others; a number of a folder is used again.

    Where folders are not exchanged, the older store is elsewhere between the two renamings of ``finish_store``.
    """
    for place in (path, _older_path(path), path):
        with suppress(FileNotFoundError):
            found = place.stat()
            return place, (found.st_ino, found.st_mtime_ns)
    started = partial_path(path).exists()
    hint = "its build has not finished; run the same command again" if started else "build it with `climapred run`"
    raise FileNotFoundError(f"no store at {path}: {hint}")


def write_statistics(path: Path, statistics: xr.Dataset) -> None:
    """Put ``statistics`` into the store, whole or not at all, replacing older ones."""
    names = statistics["variable"].astype(object)  # numpy's fixed-length text has no Zarr v3 specification
    statistics = statistics.assign_coords(variable=names)
    shutil.rmtree(path / "statistics", ignore_errors=True)
    statistics.to_zarr(path, group="statistics.partial", mode="w", zarr_format=3, consolidated=False)
    (path / "statistics.partial").rename(path / "statistics")


def open_statistics(path: str | Path) -> xr.Dataset:
    """Return the statistics of the training times, in memory."""
    if not (Path(path) / "statistics").exists():
        raise FileNotFoundError(f"the store {path} has no statistics; run the build stage")
    statistics = xr.open_zarr(path, group="statistics", consolidated=False, chunks=None).load()
    return statistics.assign_coords(variable=np.array(statistics["variable"].values.tolist(), dtype="U"))
