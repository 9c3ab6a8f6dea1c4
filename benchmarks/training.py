"""What training costs beside the network: the share of time that waits for data, and our loop against a bare torch loop.

    python benchmarks/training.py [--out benchmarks/results/training.md]

Synthetic temperature on the grid of the NCEP recipe (25 x 53 points), 640 windows of 6 + 6 frames in 40 batches of 16, two
layers of 32. The bare loop takes the same network, batches and order: forward, loss, backward, clip, optimiser, schedule,
nothing else. Both run in turns, two rounds; the best of each counts. Waiting: seconds in which the step waits for its batch,
over seconds of training, from ``log.csv``; streamed windows come from a store whose blocks do not all fit in memory.
"""

from __future__ import annotations

import argparse
import csv
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from climapred.data.statistics import training_statistics
from climapred.data.store import create_store, finish_store, open_store, write_region
from climapred.grid import Grid
from climapred.learning.artefact import Scaling, scaled_network
from climapred.learning.dataset import WindowDataset
from climapred.learning.loader import WindowLoader
from climapred.learning.training import Training, fit, learning_rate_schedule, lightning_precision
from climapred.learning.windows import Window
from climapred.models.scaled import Scaled
from climapred.testing import synthetic_temperature

GRID, WINDOW, BATCH, WINDOWS, ROUNDS, THREADS = (
    Grid.regular(2.5, region=(15, 75, 200, 330)),
    Window(6, 6),
    16,
    640,
    2,
    2,
)
MODELS = {"convlstm": {"hidden": 32}, "ls_ntp": {"hidden": 32, "embedding": 128}}
TRAINING = Training(epochs=1, batch_size=BATCH)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_store(path: Path) -> None:
    """Write the fields."""
    fields = synthetic_temperature(GRID, periods=WINDOWS + 100, links=()).fields
    layout = create_store(path, grid=GRID, times=fields["time"].values, variables=["t2m"], attributes={})
    for start, stop in layout.regions(fields.sizes["time"]):
        write_region(path, "t2m", start, fields["t2m"].values[start:stop])
    finish_store(path, {})


def network(name: str, fields: xr.Dataset) -> tuple[Scaled, tuple[int, int] | None]:
    """Return an untrained network and the orders of its calendar."""
    known = training_statistics(fields)
    return scaled_network(
        name, MODELS[name], scaling=Scaling(), statistics=known, variables=("t2m",), window=WINDOW, seed=0
    )


def loaders(fields: xr.Dataset, orders: tuple[int, int] | None, tier: str) -> tuple[WindowLoader, WindowLoader]:
    """Return 40 training batches, and one for validation."""
    dataset = WindowDataset(fields, WINDOW, orders)
    limit = 3 * 2**20 if tier == "stream" else 160 * 2**20
    train = WindowLoader(dataset, np.arange(WINDOWS), BATCH, seed=0, tier=tier, memory_limit=limit)  # type: ignore[arg-type]
    return train, WindowLoader(dataset, np.arange(WINDOWS + 12, WINDOWS + 28), BATCH, tier="memory")


def fitted(name: str, fields: xr.Dataset, tier: str) -> tuple[float, float]:
    """Return windows per second and the share of waiting of ``fit``."""
    module, orders = network(name, fields)
    with tempfile.TemporaryDirectory() as folder:
        train, validation = loaders(fields, orders, tier)
        fit(
            module,
            train,
            validation,
            history=WINDOW.history,
            training=TRAINING,
            folder=Path(folder),
            show_progress=False,
        )
        with (Path(folder) / "log.csv").open(newline="") as stream:
            row = next(csv.DictReader(stream))
    return float(row["windows_per_second"]), float(row["waiting"])


def bare(name: str, fields: xr.Dataset, tier: str) -> float:
    """Return windows per second of a plain torch loop."""
    module, orders = network(name, fields)
    train, _ = loaders(fields, orders, tier)
    module.to(DEVICE).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=TRAINING.learning_rate, weight_decay=TRAINING.weight_decay)
    schedule = learning_rate_schedule(optimizer, TRAINING, len(train))
    autocast = torch.autocast(DEVICE.type, torch.bfloat16, enabled=lightning_precision("auto") == "bf16-mixed")
    began = time.perf_counter()
    for batch in train:
        windows, calendar = batch.fields.to(DEVICE, non_blocking=True), batch.calendar.to(DEVICE, non_blocking=True)
        with autocast:
            forecast = module(windows[:, : WINDOW.history], calendar)
            loss = ((forecast - windows[:, WINDOW.history :]) / module.scale).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), TRAINING.clip)
        optimizer.step()
        schedule.step()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return WINDOWS / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "training.md")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    tiers = ("memory", "stream", *(("device",) if DEVICE.type == "cuda" else ()))
    lines = [
        "| model | windows from | bare loop, windows/s | fit, windows/s | overhead | waiting for data |",
        "| :-- | :-- | --: | --: | --: | --: |",
    ]
    with tempfile.TemporaryDirectory() as folder:
        make_store(Path(folder) / "tensors.zarr")
        fields = open_store(Path(folder) / "tensors.zarr")
        for name in MODELS:
            for tier in tiers:
                pairs = [(bare(name, fields, tier), *fitted(name, fields, tier)) for _ in range(ROUNDS)]
                plain, ours = (max(pair[column] for pair in pairs) for column in (0, 1))
                waiting = max(pair[2] for pair in pairs)
                row = [name, tier, f"{plain:.1f}", f"{ours:.1f}", f"{plain / ours - 1:+.1%}", f"{waiting:.2%}"]
                lines.append(f"| {' | '.join(row)} |")
    versions = f"{THREADS} threads on {platform.machine()}" if DEVICE.type == "cpu" else torch.cuda.get_device_name()
    text = f"# Training\n\n{__doc__.strip()}\n\n{versions}; torch {torch.__version__}.\n\n" + "\n".join(lines) + "\n"
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
