"""Small trainings: for the tests of this folder, and for the processes that they start, which import this file."""

import csv
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from lightning.pytorch.callbacks import Callback

from climapred.data.statistics import training_statistics
from climapred.grid import Grid
from climapred.learning.artefact import Scaling, scaled_network
from climapred.learning.dataset import WindowDataset
from climapred.learning.launch import Interrupted
from climapred.learning.loader import WindowLoader
from climapred.learning.order import Share
from climapred.learning.training import Training, fit
from climapred.learning.windows import Split, Window

GRID = Grid.regular(10, region=(20, 70, 150, 260))
WINDOW, SPLIT = Window(3, 2), Split((0, 60), (60, 80), (80, 100))
STREAMED = {"tier": "stream", "memory_limit": 60 * 4 * int(np.prod(GRID.shape))}  # blocks of 12 frames, 2 at a time


def make_waves(count=100):
    """A wave of 5 K and 8 cells that moves an eighth of its length at each step: what the past tells exactly."""
    rows, columns = np.indices(GRID.shape)
    phase = 2 * np.pi * (columns - np.arange(count)[:, None, None]) / 8 + 0.4 * rows
    return as_fields(280 + 5 * np.sin(phase))


def make_noise(count=100):
    """White noise: what the past does not tell at all."""
    return as_fields(280 + 5 * np.random.default_rng(0).standard_normal((count, *GRID.shape)))


def as_fields(values):
    times = np.datetime64("2013-01-01", "ns") + np.arange(len(values)) * np.timedelta64(6, "h")
    variables = {"t2m": (("time", "latitude", "longitude"), values.astype("float32"))}
    return xr.Dataset(variables, {"time": times, **GRID.coordinates()})


def make_module(*, target="change", missing="refuse", seed=0, **network):
    """Return an untrained ConvLSTM."""
    module, _ = scaled_network(
        "convlstm",
        {"hidden": 6, "layers": 1, **network},
        scaling=Scaling("standard", target),
        statistics=training_statistics(make_waves(), annual=0, daily=0),
        variables=("t2m",),
        window=WINDOW,
        seed=seed,
    )
    module.missing = missing
    return module


def make_loaders(fields=None, *, batch_size=8, seed=0, split=SPLIT, missing="refuse", **loader):
    """Return the loaders of training and validation."""
    fields = make_waves() if fields is None else fields
    dataset, times = WindowDataset(fields, WINDOW, missing=missing), fields["time"].values
    train, validation = (split.starts(period, times, WINDOW) for period in ("train", "validation"))
    return (
        WindowLoader(dataset, train, batch_size, seed=seed, **loader),
        WindowLoader(dataset, validation, 2 * batch_size, **loader),
    )


def train(folder, fields=None, *, module=None, network=None, loader=None, areas=None, callbacks=(), **options):
    """Return a module and what ``fit`` has made of it."""
    options = {"epochs": 4, "batch_size": 8, "precision": "float32", **options}
    identity = options.pop("identity", "")
    training = Training(**options)
    module = make_module(seed=training.seed, **(network or {})) if module is None else module
    loaders = make_loaders(fields, **{"batch_size": training.batch_size, "seed": training.seed, **(loader or {})})
    keywords = {"history": WINDOW.history, "training": training, "folder": folder, "identity": identity, "areas": areas}
    return module, fit(module, *loaders, show_progress=False, callbacks=callbacks, **keywords)


def read_log(folder):
    with (folder / "log.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def checkpoint(folder, name="last.ckpt"):
    """Return the path of the one checkpoint of this name below the folder of a run."""
    (path,) = folder.glob(f"checkpoints/*/{name}")
    return path


def read_rows(folder):
    """Return the log without what the clock says."""
    return [row | {"seconds": "", "windows_per_second": "", "waiting": ""} for row in read_log(folder)]


def assert_same_run(found, expected):
    """The same weights, bit for bit, outcome and log; ``found`` and ``expected`` are (folder, module, outcome)."""
    assert_same_weights(found[1].state_dict(), expected[1].state_dict())
    assert found[2] == expected[2]
    assert read_rows(found[0]) == read_rows(expected[0])


def assert_same_weights(found, expected):
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        assert torch.equal(weight, expected[name]), name


class At(Callback):
    """Does something when a hook of Lightning's has been called ``count`` times: ``At("on_train_batch_end", 3, act)``."""

    def __init__(self, hook, count, act):
        self.left = count

        def called(*_, **__):
            self.left -= 1
            if self.left == 0:
                act()

        setattr(self, hook, called)


def send_term():
    os.kill(os.getpid(), signal.SIGTERM)


# Two ways to train, each killed ten times.
KILLED = {
    "plain": {"checkpoint_seconds": 0.0, "epochs": 5},
    "all at once": {
        "checkpoint_seconds": 0.02,
        "epochs": 8,
        "averaging": 0.9,
        "curriculum": 5,
        "accumulate": 2,
        "loader": STREAMED,
    },
}


def train_and_tell(folder, options):
    module, outcome = train(folder, **options)
    if Share.current().rank == 0:
        torch.save({"weights": module.state_dict(), "outcome": outcome}, folder / "result.pt")


def kill_at_random(folder):
    """Kill ten runs of each configuration at random moments, some twice or more, and let each go on until it ends.

    One interpreter and one import of torch do for all: it trains nothing itself, so that no thread is there to be forked.
    """
    torch.set_num_threads(1)
    make_module()  # imports what is imported late
    random = np.random.default_rng(0)
    for name, options in KILLED.items():
        place = Path(folder) / name
        began = time.monotonic()
        _finish(place / "undisturbed", options)
        length = time.monotonic() - began
        kills = runs = 0
        while kills < 10:
            runs += 1
            run = place / f"killed {runs}"
            moments = []
            while kills < 10 and len(moments) < 3:
                moment = random.uniform(0.1, 1.0) * length
                if not _killed(run, options, moment):
                    break
                moments.append(moment)
                kills += 1
            _finish(run, options)
            (run / "kills.txt").write_text("\n".join(map(str, moments)))


def _start(folder, options):
    folder.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if not child:
        status = 1
        try:
            train_and_tell(folder, options)
            status = 0
        finally:
            os._exit(status)
    return child


def _finish(folder, options):
    _, status = os.waitpid(_start(folder, options), 0)
    assert status == 0, f"the training in {folder} failed"


def _killed(folder, options, moment):
    """Start a run and kill it after so many seconds; return whether it was still there."""
    child = _start(folder, options)
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


# Trainings in two processes of learning.launch.together.


class Delivered(Callback):
    """Writes down the first times of the windows that this process gets, a row per batch."""

    def __init__(self):
        self.train, self.validation = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, *_):
        self.train.append(batch.times[:, 0].tolist())

    def on_validation_batch_start(self, trainer, pl_module, batch, *_):
        self.validation.append(batch.times[:, 0].tolist())


# What they train, one after the other: starting takes longer than training.
SHARED = {
    "ddp": {"epochs": 2},
    "fsdp": {"epochs": 2, "strategy": "fsdp"},
    # 56 windows in batches of 18, 18, 18 and 2; 15 of validation, 8 for one and 7 for the other.
    "odd": {
        "fields": make_noise(),
        "epochs": 2,
        "batch_size": 18,
        "accumulate": 2,
        "loader": {"split": Split((0, 60), (60, 79), (80, 100))},
    },
    "streamed": {"epochs": 2, "loader": STREAMED},
    "sampled": {"epochs": 2, "sampling": "scheduled", "network": {"feedback": True}, "averaging": 0.9},
}


def train_shared(folder):
    """Train each of ``SHARED`` in ``folder``, then some of them with a stop in between that the last process asks for."""
    share = Share.current()
    for name, options in SHARED.items():
        delivered = Delivered()
        place = folder / name
        train_and_tell(place, {"processes": share.world, "callbacks": [delivered], **options})
        told = {"train": delivered.train, "validation": delivered.validation}
        (place / f"windows {share.rank}.json").write_text(json.dumps(told))
    for (name, hook), count in STOPPED.items():
        place, options = folder / f"{name} stopped at {hook}", {"processes": share.world, **SHARED[name]}
        asks = [At(hook, count, send_term)] if share.rank else []
        try:
            train(place, callbacks=asks, **options)
        except Interrupted:
            if share.rank == 0:
                shutil.copy(checkpoint(place), place / "interrupted.ckpt")
        train_and_tell(place, options)


STOPPED = {
    ("ddp", "on_train_batch_start"): 10,
    ("ddp", "on_validation_batch_start"): 2,
    ("fsdp", "on_train_batch_start"): 10,
    ("fsdp", "on_validation_batch_start"): 2,
    ("sampled", "on_train_batch_start"): 4,
}


def train_and_stop(folder, count):
    """Train, and ask the parent to stop all at batch ``count``; at none for 0."""

    def ask():
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(1.0)

    asks = [At("on_train_batch_start", count, ask)] if Share.current().rank == 0 and count else []
    train_and_tell(folder, {"processes": 2, "callbacks": asks, **SHARED["ddp"]})


def train_with_a_gap(folder):
    """Train on a wave with one value missing, in the last window: one process meets it in the first epoch."""
    fields = make_waves()
    fields["t2m"][59, 2, 2] = np.nan
    train(folder, fields, processes=Share.current().world, loader={"missing": "mask"})
