"""Forecasts from many start times as files, batch by batch: memory stays flat, and a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import numpy.typing as npt
import xarray as xr

from climapred.results.cf_write import SUFFIXES, pack, whole_unit, write_blocks, write_dataset, write_netcdf

Times = npt.NDArray[np.datetime64]
Batches = Callable[[Times], Iterable[xr.Dataset]]
Describe = Callable[..., xr.Dataset]

PLACE = "{start}"

_START = "forecast_reference_time"


def write_forecasts(
    batches: Batches,
    init_times: npt.ArrayLike,
    path: str | Path,
    *,
    describe: Describe,
    identity: str,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **storage: Any,
) -> list[Path]:
    """Write forecasts from many start times, and return the files: one for all, or one for each start time.

    With ``{start}`` in its name, as in ``forecast_{start}.nc``, ``path`` stands for a file for each start time
    (``forecast_20140227T1800.nc``), laid out along valid time, each written when it is known. Without, all go into one:
    batches are kept in the folder ``.NAME.IDENTITY.parts`` beside it, joined when all are there (which takes their room
    twice for a while), and the folder goes. Every file appears whole or not at all. Called again after a kill, only the
    start times that are missing are asked for; called again after the end, none.

    Args:
        batches: takes the start times that are missing, increasing, and yields forecasts with dims (init_time, ...)
            in this order, such as ``lambda starts: rollout(model, fields, starts)``.
        init_times: all that are wanted.
        path: ends in .nc or .zarr; its folder exists.
        describe: turns a forecast into CF, with the keyword ``layout``: ``functools.partial(to_cf, source=...)``.
        identity: all that the values depend on besides the start time; files of another identity are not these.
        overwrite: replace files that hold other forecasts.
        progress: called with the number of start times that are done, and of all.
        storage: how files are stored, see ``write_netcdf``.

    Raises:
        FileExistsError: if a file holds other forecasts and ``overwrite`` is not set.
        FileNotFoundError: if the folder does not exist.
        ValueError: if the suffix is another, or ``batches`` leaves out a start time.
    """
    path, starts = Path(path), np.unique(np.asarray(init_times, dtype="datetime64[ns]"))
    if path.suffix not in SUFFIXES:
        raise ValueError(f"the output must end in {' or '.join(SUFFIXES)}, got {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {path.parent} does not exist, create it first")
    if PLACE in path.name or len(starts) == 1:
        targets = {start: path.with_name(path.name.replace(PLACE, stamp(start))) for start in starts}
        return _write_each(batches, targets, describe, _digest(identity), overwrite, progress, storage)
    whole = _digest(identity, starts)
    if not _finished(path, whole, overwrite):
        parts = path.with_name(f".{path.name}.{_digest(identity)}.parts")
        _collect(batches, starts, parts, describe, progress)
        _join(parts, starts, path, whole, storage)
        for folder in path.parent.glob(f".{path.name}.*.parts"):
            shutil.rmtree(folder)
    return [path]


def stamp(start: np.datetime64) -> str:
    """Return a start time as file names have it.

    >>> stamp(np.datetime64("2014-02-27T18:00"))
    '20140227T1800'
    """
    text = str(np.datetime_as_string(start, unit="s")).replace("-", "").replace(":", "")
    return text.removesuffix("00")


def _digest(identity: str, starts: Times | None = None) -> str:
    content = identity.encode() + (b"" if starts is None else starts.tobytes())
    return hashlib.sha256(content).hexdigest()[:16]


def _finished(path: Path, identity: str, overwrite: bool) -> bool:
    """Whether ``path`` holds the wanted forecasts already."""
    if not path.exists():
        return False
    if _attributes(path).get("forecast_identity") == identity:
        return True
    if not overwrite:
        raise FileExistsError(
            f"{path} exists and holds something else, or forecasts of another model, other data, start times or settings; "
            "remove it, name another, or allow it to be replaced (--overwrite)"
        )
    return False


def _attributes(path: Path) -> dict[str, Any]:
    zarr = {"engine": "zarr", "consolidated": False}
    options: dict[str, Any] = zarr if path.is_dir() else {"engine": "netcdf4"}
    try:
        with xr.open_dataset(path, decode_cf=False, **options) as dataset:
            return dict(dataset.attrs)
    except (OSError, ValueError):  # anything, but no forecast
        return {}


def _write_each(
    batches: Batches,
    targets: dict[np.datetime64, Path],
    describe: Describe,
    identity: str,
    overwrite: bool,
    progress: Callable[[int, int], None],
    storage: dict[str, Any],
) -> list[Path]:
    missing = np.array([start for start, path in targets.items() if not _finished(path, identity, overwrite)])
    written = len(targets) - len(missing)
    for batch in batches(missing) if missing.size else ():
        for position, start in enumerate(batch["init_time"].values):
            one = describe(batch.isel(init_time=[position]), layout="valid")
            write_dataset(one.assign_attrs(forecast_identity=identity), targets[start], **storage)
            written += 1
            progress(written, len(targets))
    _check_complete(written, len(targets))
    return list(targets.values())


def _check_complete(written: int, wanted: int) -> None:
    if written < wanted:
        raise ValueError(f"batches must yield a forecast for every start time, got {written} of {wanted}")


def _collect(
    batches: Batches, starts: Times, parts: Path, describe: Describe, progress: Callable[[int, int], None]
) -> None:
    """Write the batches that are missing, each a file with all that is known of it."""
    parts.mkdir(exist_ok=True)
    missing = np.setdiff1d(starts, [start for file in parts.glob("[0-9]*.nc") for start in _starts(file)])
    written = len(starts) - len(missing)
    for batch in batches(missing) if missing.size else ():
        write_netcdf(describe(batch, layout="starts"), parts / f"{stamp(batch['init_time'].values[0])}.nc")
        written += batch.sizes["init_time"]
        progress(written, len(starts))
    _check_complete(written, len(starts))


def _starts(file: Path) -> Times:
    with xr.open_dataset(file, engine="netcdf4", decode_timedelta=False) as part:
        times: Times = part[_START].values.astype("datetime64[ns]")
    return times


def _join(parts: Path, starts: Times, path: Path, identity: str, storage: dict[str, Any]) -> None:
    """Write one file from all parts, one stretch in memory at a time."""
    storage, files = dict(storage), sorted(parts.glob("[0-9]*.nc"))
    runs = _runs([_starts(file) for file in files], starts)
    errors = storage.pop("largest_error", None)
    ranges = None if errors is None else _ranges(_blocks(files, runs))

    def packed(dataset: xr.Dataset) -> xr.Dataset:
        return dataset if errors is None else pack(dataset, errors, ranges)

    shell = packed(_shell(next(_blocks(files, runs)), starts)).assign_attrs(forecast_identity=identity)
    write_blocks(shell, map(packed, _blocks(files, runs)), path, dim=_START, **storage)


def _blocks(files: list[Path], runs: list[tuple[int, slice]]) -> Iterator[xr.Dataset]:
    for number, run in runs:
        with xr.open_dataset(files[number], engine="netcdf4", decode_timedelta=False) as part:
            yield part.isel({_START: run}).load()


def _ranges(blocks: Iterable[xr.Dataset]) -> dict[str, tuple[float, float]]:
    """Return the lowest and highest value of each field over all blocks."""
    ranges: dict[str, tuple[float, float]] = {}
    for block in blocks:
        for name, field in block.items():
            low, high = ranges.get(str(name), (np.nan, np.nan))
            ranges[str(name)] = float(np.fmin(low, field.min())), float(np.fmax(high, field.max()))
    return ranges


def _shell(block: xr.Dataset, starts: Times) -> xr.Dataset:
    """Return a dataset of all start times, described as ``block`` is, whose fields are to come."""
    instants = ("units", "calendar", "dtype")
    shell = block.isel({_START: 0}, drop=True)
    for name, field in block.items():
        if _START in field.dims:
            shape = tuple({**field.sizes, _START: len(starts)}.values())
            nothing = dask.array.zeros(shape, dtype=field.dtype, chunks=shape)  # never computed
            shell[name] = xr.Variable(field.dims, nothing, field.attrs)
    leads = np.round(block["forecast_period"].values * 3600).astype("timedelta64[s]")
    for name, times in ((_START, starts), ("time", starts[:, None] + leads)):
        encoding = {key: value for key, value in block[name].encoding.items() if key in instants}
        encoding["units"] = f"{whole_unit(times)} since 1970-01-01"
        shell = shell.assign_coords({name: xr.Variable(block[name].dims, times, block[name].attrs, encoding)})
    shell.encoding = {"unlimited_dims": {_START}}
    return shell


def _runs(parts: Sequence[Times], starts: Times) -> list[tuple[int, slice]]:
    """Return the (part, positions) that hold ``starts`` in order, each stretch as long as it can be.

    >>> _runs([np.array([0, 6, 18], "M8[ns]"), np.array([12], "M8[ns]")], np.array([0, 6, 12, 18], "M8[ns]"))
    [(0, slice(0, 2, None)), (1, slice(0, 1, None)), (0, slice(2, 3, None))]
    """
    place = {start: (number, position) for number, part in enumerate(parts) for position, start in enumerate(part)}
    runs: list[tuple[int, slice]] = []
    for number, position in (place[start] for start in starts):
        if runs and runs[-1][0] == number and runs[-1][1].stop == position:
            runs[-1] = (number, slice(runs[-1][1].start, position + 1))
        else:
            runs.append((number, slice(position, position + 1)))
    return runs
