import gc
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pytest
import torch

from climapred.learning.callbacks import EpochLog, read_checkpoint
from climapred.learning.dataset import WindowDataset
from climapred.learning.launch import Interrupted
from climapred.learning.loader import WindowLoader
from climapred.learning.training import Training, fit
from tests.learning.waves import (
    SPLIT,
    STREAMED,
    WINDOW,
    At,
    assert_same_run,
    assert_same_weights,
    checkpoint,
    make_module,
    make_noise,
    make_waves,
    read_log,
    send_term,
    train,
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that nobody stops."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, *train(folder)


def every(hook, act, count=100):
    return [At(hook, number, act) for number in range(1, count)]


class Stop(Exception):
    pass


def stop():
    raise Stop


# The log.


def test_the_log_has_a_row_per_epoch(undisturbed):
    folder, _, outcome = undisturbed
    rows = read_log(folder)
    assert tuple(rows[0]) == EpochLog.COLUMNS
    assert ",".join(EpochLog.COLUMNS) == (
        "epoch,step,train_loss,validation_mae,learning_rate,seconds,windows_per_second,waiting"
    )
    # 56 windows in batches of 8: 7 steps an epoch.
    assert [(int(row["epoch"]), int(row["step"])) for row in rows] == [(0, 7), (1, 14), (2, 21), (3, 28)]
    errors = [float(row["validation_mae"]) for row in rows]
    assert outcome["best_epoch"] == int(np.argmin(errors))
    assert outcome["validation_mae"] == min(errors)


def test_a_row_has_the_learning_rate_of_its_last_step(undisturbed):
    # One cycle: half a cosine up from peak / 25 over 30 % of the 28 steps (counted from 0: until 7.4), then one down to
    # peak / 25e4 at step 27.
    peak = 2e-3
    for row in read_log(undisturbed[0]):
        step = int(row["step"]) - 1
        low, share = (peak / 25, step / 7.4) if step < 7.4 else (peak / 25e4, 1 - (step - 7.4) / (27 - 7.4))
        expected = low + (peak - low) * (1 - np.cos(np.pi * share)) / 2
        assert float(row["learning_rate"]) == pytest.approx(expected)


@pytest.mark.parametrize("accumulate", [1, 3, 7])
def test_the_loss_is_the_mean_over_windows_however_they_are_batched(tmp_path, accumulate):
    # The network stays as it is; whole: one batch of all windows. Batches of 9 leave a last one of 2.
    options = {"epochs": 1, "learning_rate": 1e-12}
    train(tmp_path / "whole", make_noise(), batch_size=56, **options)
    train(tmp_path / "parts", make_noise(), batch_size=9, accumulate=accumulate, **options)
    (whole,), (parts,) = (read_log(tmp_path / name) for name in ("whole", "parts"))
    assert float(parts["train_loss"]) == pytest.approx(float(whole["train_loss"]), rel=1e-6)
    assert float(parts["validation_mae"]) == pytest.approx(float(whole["validation_mae"]), rel=1e-6)
    assert int(parts["step"]) == -(-7 // accumulate)


class Slow(WindowDataset):
    """Data that come late."""

    def batch(self, fields, starts):
        time.sleep(0.03)
        return super().batch(fields, starts)


def train_slowly(folder, kind, callbacks=()):
    fields = make_waves()
    dataset, times = kind(fields, WINDOW), fields["time"].values
    starts = {period: SPLIT.starts(period, times, WINDOW) for period in ("train", "validation")}
    loaders = WindowLoader(dataset, starts["train"], 8, seed=0), WindowLoader(dataset, starts["validation"], 8)
    training = Training(epochs=2, batch_size=8, precision="float32")
    keywords = {"history": 3, "training": training, "folder": folder, "show_progress": False}
    fit(make_module(), *loaders, callbacks=callbacks, **keywords)
    return read_log(folder)


def test_the_log_tells_the_pace_and_who_waits(tmp_path):
    late = train_slowly(tmp_path / "late", Slow)
    busy = train_slowly(tmp_path / "busy", WindowDataset, every("on_train_batch_start", lambda: time.sleep(0.03)))
    for row in [*late, *busy]:
        pace, seconds, waiting = (float(row[name]) for name in ("windows_per_second", "seconds", "waiting"))
        assert 0 <= waiting <= 1
        assert 56 / (seconds + 0.01) <= pace <= 56 / (7 * 0.03)  # seconds: validation too, and rounded
        assert seconds >= 7 * 0.03
    assert min(float(row["waiting"]) for row in late) > 0.4
    assert max(float(row["waiting"]) for row in busy) < 0.4


def test_an_epoch_done_again_has_one_row(tmp_path, undisturbed):
    with pytest.raises(Stop):
        train(tmp_path, callbacks=[At("on_train_epoch_end", 3, stop)])  # after the row, before the checkpoint
    assert [row["epoch"] for row in read_log(tmp_path)] == ["0", "1", "2"]
    assert_same_run((tmp_path, *train(tmp_path)), undisturbed)


# Checkpoints.


def test_the_last_and_the_best_checkpoint_are_kept(tmp_path):
    options = {"network": {"target": "value", "hidden": 16}, "learning_rate": 0.1}
    module, outcome = train(tmp_path, make_noise(), **options)
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    last, best = (read_checkpoint(folder / name) for name in ("last.ckpt", "best.ckpt"))
    assert (last["epoch"], best["epoch"]) == (3, outcome["best_epoch"])
    assert best["epoch"] != 3
    assert_same_weights({f"module.{name}": value for name, value in module.state_dict().items()}, best["state_dict"])


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("seconds", [0.0, 1e6])
def test_checkpoints_come_as_often_as_asked_for(tmp_path, seconds, accumulate):
    saved = []

    def look():
        paths = list(tmp_path.glob("checkpoints/*/last.ckpt"))
        saved.append(read_checkpoint(paths[0])["global_step"] if paths else None)

    options = {"epochs": 2, "checkpoint_seconds": seconds, "accumulate": accumulate}
    train(tmp_path, callbacks=every("on_train_batch_start", look), **options)
    # Seen before each of 7 batches, twice. Without a need for more: before the last batch of an epoch and at its end.
    expected = {
        (0.0, 1): [None, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13],
        (1e6, 1): [None, None, None, None, None, None, 6, 7, 7, 7, 7, 7, 7, 13],
        (0.0, 2): [None, None, 1, 1, 2, 2, 3, 4, 4, 5, 5, 6, 6, 7],  # steps of 2, 2, 2 and 1 batches
        (1e6, 2): [None, None, None, None, None, None, 3, 4, 4, 4, 4, 4, 4, 7],
    }
    assert saved == expected[seconds, accumulate]
    assert read_checkpoint(checkpoint(tmp_path))["global_step"] == {1: 14, 2: 8}[accumulate]


def test_a_finished_run_is_not_done_again(undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed[0], tmp_path / "moved")
    before = checkpoint(folder).stat().st_mtime_ns
    assert_same_run((folder, *train(folder)), undisturbed)
    assert checkpoint(folder).stat().st_mtime_ns == before


@pytest.mark.parametrize("changed", [{"identity": "other data"}, {"epochs": 5}, {"loss": "mae"}])
def test_checkpoints_of_other_data_or_options_are_thrown_away(undisturbed, tmp_path, changed):
    folder, fresh = shutil.copytree(undisturbed[0], tmp_path / "copy"), tmp_path / "fresh"
    old = checkpoint(folder).parent
    assert_same_run((folder, *train(folder, **changed)), (fresh, *train(fresh, **changed)))
    assert not old.exists()


# Seven steps an epoch, one batch of validation.
STOPS = [
    ("on_train_batch_start", 1),
    ("on_train_batch_start", 9),
    ("on_train_batch_end", 5),
    ("on_train_batch_end", 14),
    ("on_validation_batch_start", 2),
    ("on_validation_end", 3),
    ("on_train_epoch_end", 2),
    ("on_train_end", 1),
]
OPTIONS = {
    "plain": {"checkpoint_seconds": 0.0},
    "averaged, patient, growing, accumulated, streamed": {
        "checkpoint_seconds": 0.0,
        "averaging": 0.9,
        "patience": 2,
        "curriculum": 2,
        "accumulate": 2,
        "schedule": "cosine",
        "loader": STREAMED,
    },
    "sampled": {"checkpoint_seconds": 0.0, "sampling": "reverse", "network": {"one_pass": True}, "epochs": 3},
}


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp("reference") for name in OPTIONS}
    return {name: (folder, *train(folder, **OPTIONS[name])) for name, folder in folders.items()}


@pytest.mark.parametrize(("hook", "count"), STOPS)
@pytest.mark.parametrize("name", OPTIONS)
def test_a_run_goes_on_bit_for_bit_wherever_it_was_stopped(tmp_path, references, name, hook, count):
    with pytest.raises(Stop):
        train(tmp_path, callbacks=[At(hook, count, stop)], **OPTIONS[name])
    assert_same_run((tmp_path, *train(tmp_path, **OPTIONS[name])), references[name])


class Trap:
    """What runs code when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


DAMAGES = {
    "a pickle that runs code": lambda path, marker: path.write_bytes(pickle.dumps(Trap(marker))),
    "a checkpoint that runs code": lambda path, marker: torch.save({"state_dict": {}, "loops": Trap(marker)}, path),
    "something else": lambda path, _: torch.save([1, 2], path),
    "weights alone": lambda path, _: torch.save({"weight": torch.zeros(1)}, path),
    "cut off": lambda path, _: path.write_bytes(path.read_bytes()[:-1000]),
    "half": lambda path, _: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path, _: path.write_bytes(b""),
    "text": lambda path, _: path.write_text("no checkpoint"),
}


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_no_checkpoint_is_refused_by_name(undisturbed, tmp_path, damage, name):
    folder, marker = shutil.copytree(undisturbed[0], tmp_path / "run"), tmp_path / "marker"
    path = checkpoint(folder, name)
    path.unlink()  # a name of the same file as the other, maybe
    shutil.copy(checkpoint(undisturbed[0], name), path)
    DAMAGES[damage](path, marker)
    wanted = rf"{path} is not a checkpoint of climapred \(.+\); remove it, and the training begins anew"
    with pytest.raises(ValueError, match=wanted):
        train(folder)
    assert not marker.exists()


def test_the_traps_work(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path, undisturbed):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    sizes = []

    def fill():
        sizes.append(checkpoint(tmp_path).read_bytes())
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(sizes[0]) // 2, hard))  # no file can grow beyond that

    try:
        with pytest.raises((OSError, RuntimeError)) as error:
            train(tmp_path, callbacks=[At("on_train_batch_start", 10, fill)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in str(error.value)
    assert checkpoint(tmp_path).read_bytes() == sizes[0]
    assert sorted(path.name for path in checkpoint(tmp_path).parent.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert_same_run((tmp_path, *train(tmp_path)), undisturbed)


# A TERM signal.


def test_a_term_signal_inside_an_epoch_saves_and_exits_with_75(tmp_path, undisturbed):
    program = (
        "import sys, pathlib\n"
        "from tests.learning.waves import At, send_term, train\n"
        "train(pathlib.Path(sys.argv[1]), callbacks=[At('on_train_batch_start', 10, send_term)])\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, tmp_path], timeout=100, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (75, "")
    assert read_checkpoint(checkpoint(tmp_path))["global_step"] == 10  # the step in which it came is done
    assert_same_run((tmp_path, *train(tmp_path)), undisturbed)


# (hook, count): the step of last.ckpt afterwards.
TERMS = {
    ("setup", 1): 1,
    ("on_train_start", 1): 1,
    ("on_train_batch_start", 13): 13,
    ("on_train_batch_start", 14): 13,  # the last one of an epoch is done again, for the validation that follows it
    ("on_validation_start", 2): 13,
    ("on_validation_batch_end", 2): 13,
    ("on_validation_end", 2): 14,
    ("on_train_epoch_end", 2): 14,
    ("on_train_epoch_end", 4): 28,
    ("on_train_end", 1): 28,
}


@pytest.mark.parametrize(("hook", "count"), TERMS)
def test_a_term_signal_at_any_time_saves_and_stops(tmp_path, undisturbed, hook, count):
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as stopped:
        train(tmp_path, callbacks=[At(hook, count, send_term)])
    assert stopped.value.code == 75
    assert "run the same command again" in str(stopped.value)
    gc.collect()
    assert signal.getsignal(signal.SIGTERM) is handler
    assert read_checkpoint(checkpoint(tmp_path))["global_step"] == TERMS[hook, count]
    assert_same_run((tmp_path, *train(tmp_path)), undisturbed)


def test_a_term_signal_waits_for_the_step_of_the_optimiser(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path, accumulate=3, callbacks=[At("on_train_batch_end", 1, send_term)])
    assert read_checkpoint(checkpoint(tmp_path))["global_step"] == 1
    train(tmp_path, accumulate=3)
    train(tmp_path / "whole", accumulate=3)
    assert_same_weights(*(read_checkpoint(checkpoint(run))["state_dict"] for run in (tmp_path, tmp_path / "whole")))


@pytest.mark.parametrize("act", [lambda: None, stop])
def test_the_handler_of_before_hears_the_next_term_signal(tmp_path, act):
    heard, before = [], signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: heard.append("before"))
    try:
        with suppress(Stop):
            train(tmp_path, epochs=1, callbacks=[At("on_train_batch_start", 3, act)])
        gc.collect()
        send_term()
        assert heard == ["before"]
    finally:
        signal.signal(signal.SIGTERM, before)
