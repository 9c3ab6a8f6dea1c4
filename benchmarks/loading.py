"""How fast shuffled windows come from a store: climapred's tiers, xbatcher's torch MapDataset, and Zarr alone.

    python benchmarks/loading.py [--out benchmarks/results/loading.md]

2,920 fields of 121 x 240 points (float32, 339 MB), windows of 12 frames, batches of 16, on local disk. Each reader works in a
process of its own, one after the other, in turns; the best of three rounds counts. A window is counted when its batch is there,
over as many epochs as fit into 4 seconds; the first batch, which reads the store into memory for the tiers that do so, is not
counted, and listed apart. Memory is the peak of the resident size above the size before the first batch; the tensors that a
reader hands out are part of it. A window begins at every time, so that each frame is handed out twelve times, a copy of 4 GB an
epoch; "each frame once" takes every twelfth window, and its rate is that of the windows that begin in the frames read, as for
the shards: what both have decoded is the same.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import torch
import xarray as xr
import zarr
from scipy.ndimage import gaussian_filter

from climapred.data.store import create_store, finish_store, open_store, write_region
from climapred.grid import Grid
from climapred.learning.dataset import WindowDataset
from climapred.learning.loader import WindowLoader
from climapred.learning.windows import Window, window_starts

TIMES, GRID, FRAMES, BATCH, ROUNDS, THREADS = 2920, Grid.regular(1.5), 12, 16, 3, 2
READERS = {
    "xbatcher": "xbatcher MapDataset, torch DataLoader",
    "slices": "Zarr, a slice for each window",
    "shards": "Zarr, whole shards one after the other (no windows)",
    "stream": "climapred, streamed, one reading thread",
    "stream_once": "climapred, streamed, each frame once",
    "stream_worker": "climapred, streamed, one worker process",
    "memory": "climapred, in memory",
    "device": "climapred, on the GPU",
}


def make_store(path: Path) -> None:
    """Write a year of smooth noise that remembers for days, three-hourly."""
    random, weather = np.random.default_rng(0), np.zeros(GRID.shape)
    times = np.datetime64("2013-01-01", "ns") + np.arange(TIMES) * np.timedelta64(3, "h")
    layout = create_store(path, grid=GRID, times=times, variables=["t2m"], attributes={})
    zonal = 260 + 35 * np.cos(np.deg2rad(GRID.latitude))[:, None]
    for start, stop in layout.regions(TIMES):
        fields = np.empty((stop - start, *GRID.shape), np.float32)
        for field in fields:
            weather = 0.95 * weather + 2.4 * gaussian_filter(random.standard_normal(GRID.shape), 3, mode="wrap")
            field[:] = zonal + weather
        write_region(path, "t2m", start, fields)
    finish_store(path, {})


def windows(reader: str, path: Path) -> Iterator[int]:
    """Read an epoch with xbatcher or Zarr; yield how many windows (of shards: as many as begin in them) have come."""
    starts = np.arange(TIMES - FRAMES + 1)
    if reader == "shards":
        array = zarr.open_group(path, mode="r")["t2m"]
        for start in range(0, TIMES, array.shards[0]):
            read = array[start : start + array.shards[0]]
            yield len(read) * len(starts) // TIMES
    elif reader == "slices":
        array = zarr.open_group(path, mode="r")["t2m"]
        order = np.random.default_rng(0).permutation(starts)
        for first in range(0, len(order), BATCH):
            batch = [torch.from_numpy(array[start : start + FRAMES]) for start in order[first : first + BATCH]]
            yield len(torch.stack(batch))
    else:
        import xbatcher
        from xbatcher.loaders.torch import MapDataset

        fields = xr.open_zarr(path, consolidated=False, chunks=None)["t2m"]
        sizes = {"time": FRAMES, **{name: fields.sizes[name] for name in ("latitude", "longitude")}}
        cut = xbatcher.BatchGenerator(fields, sizes, input_overlap={"time": FRAMES - 1}, preload_batch=False)
        for batch in torch.utils.data.DataLoader(MapDataset(cut), batch_size=BATCH, shuffle=True):
            yield len(batch)


def climapred_loader(reader: str, path: Path) -> WindowLoader:
    """Return a loader of all windows, or of every twelfth."""
    dataset = WindowDataset(open_store(path), Window(FRAMES // 2, FRAMES // 2))
    starts = window_starts(dataset.times, FRAMES, stride=FRAMES if reader == "stream_once" else 1)
    tier, workers = reader.partition("_")[0], int(reader == "stream_worker")
    return WindowLoader(dataset, starts, BATCH, seed=0, tier=tier, workers=workers)  # type: ignore[arg-type]


def epochs(reader: str, path: Path) -> Iterator[int]:
    """Read epoch after epoch; yield how many windows have come."""
    if reader in ("xbatcher", "slices", "shards"):
        while True:
            yield from windows(reader, path)
    loader, each = climapred_loader(reader, path), FRAMES if reader == "stream_once" else 1
    while True:
        yield from (each * len(batch.fields) for batch in loader)


def measure(reader: str, path: Path, seconds: float) -> dict[str, float]:
    """Return windows per second, the seconds that the first batch took, and memory in MB."""
    torch.set_num_threads(THREADS)
    before, peak = _resident_mb(), _Peak()
    source, began, count = epochs(reader, path), time.perf_counter(), 0
    next(source)
    ready, began = time.perf_counter() - began, time.perf_counter()
    for more in source:
        count += more
        if time.perf_counter() - began > seconds:
            break
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    rate = count / (time.perf_counter() - began)
    return {"rate": rate, "ready": ready, "memory": peak.stop() - before}


class _Peak:
    """The highest resident size while it runs, looked at every 20 ms."""

    def __init__(self) -> None:
        self._highest, self._done = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self._highest = max(self._highest, _resident_mb())

    def stop(self) -> float:
        self._done.set()
        self._thread.join()
        return self._highest


def _resident_mb() -> float:
    return float(psutil.Process().memory_info().rss) / 1e6


def table(found: dict[str, dict[str, float]]) -> str:
    """Return the rates and their ratios to xbatcher and to Zarr's own reading."""
    lines = [
        "| reader | windows/s | against xbatcher | against Zarr's shards | memory above start, MB | first read, s |",
        "| :-- | --: | --: | --: | --: | --: |",
    ]
    for reader, result in found.items():
        ratios = [f"{result['rate'] / found[other]['rate']:.2f}" for other in ("xbatcher", "shards")]
        row = [READERS[reader], f"{result['rate']:,.0f}", *ratios, f"{result['memory']:.0f}", f"{result['ready']:.2f}"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "loading.md")
    parser.add_argument("--seconds", type=float, default=4, help="time for one reader and round")
    parser.add_argument("--one", nargs=2, metavar=("READER", "STORE"), help="measure one reader, print JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], Path(options.one[1]), options.seconds)))
        return
    readers = [reader for reader in READERS if reader != "device" or torch.cuda.is_available()]
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "tensors.zarr"
        make_store(store)
        for _ in range(ROUNDS):
            for reader in readers:
                command = [sys.executable, __file__, "--one", reader, str(store), "--seconds", str(options.seconds)]
                result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                if reader not in found or result["rate"] > found[reader]["rate"]:
                    found[reader] = result
    versions = f"torch {torch.__version__}, zarr {zarr.__version__}, xarray {xr.__version__}, {platform.machine()}"
    text = f"# Loading\n\n{__doc__.strip()}\n\n{THREADS} threads; {versions}.\n\n{table(found)}\n"
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
