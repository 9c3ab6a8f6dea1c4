import csv
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from climapred.data.statistics import training_statistics
from climapred.grid import Grid
from climapred.learning.artefact import Scaling, scaled_network
from climapred.learning.loader import WindowDataset, window_loader
from climapred.learning.training import LossLog, Training, fit, lightning_precision
from climapred.learning.windows import Split, Window

GRID = Grid.regular(10, region=(20, 70, 150, 260))
WINDOW, SPLIT = Window(3, 2), Split((0, 60), (60, 80), (80, 100))


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


def make_task(fields, *, target="change", hidden=6, kind=WindowDataset, batch_size=8, seed=0):
    """Return an untrained network and the loaders of training and validation."""
    module, orders = scaled_network(
        "convlstm",
        {"hidden": hidden, "layers": 1},
        scaling=Scaling("standard", target),
        statistics=training_statistics(make_waves(), annual=0, daily=0),
        variables=("t2m",),
        seed=seed,
    )
    dataset, times = kind(fields, WINDOW, orders), fields["time"].values
    train, validation = (SPLIT.starts(period, times, WINDOW) for period in ("train", "validation"))
    return module, window_loader(dataset, train, batch_size, seed=seed), window_loader(dataset, validation, 32)


def train(folder, fields=None, *, identity="", kind=WindowDataset, target="change", hidden=6, **options):
    options = {"epochs": 4, "batch_size": 8, "precision": "float32", **options}
    training = Training(**options)
    fields = make_waves() if fields is None else fields
    module, *loaders = make_task(
        fields, target=target, hidden=hidden, kind=kind, batch_size=training.batch_size, seed=training.seed
    )
    arguments = {"history": WINDOW.history, "training": training, "folder": folder, "identity": identity}
    return module, fit(module, *loaders, show_progress=False, **arguments)


def read_log(folder):
    with (folder / "log.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def assert_same_run(found, expected):
    """The same weights, bit for bit, outcome and log; ``found`` and ``expected`` are (folder, module, outcome)."""
    for (name, weight), other in zip(found[1].state_dict().items(), expected[1].state_dict().values(), strict=True):
        assert torch.equal(weight, other), name
    assert found[2] == expected[2]
    first, second = ([row | {"seconds": ""} for row in read_log(folder)] for folder, *_ in (found, expected))
    assert first == second


def by_hand(module, fields, period):
    """Return forecasts and truth of every window of a period, shapes (windows, horizon, H, W)."""
    starts = SPLIT.starts(period, fields["time"].values, WINDOW)
    windows = torch.tensor(np.stack([fields["t2m"].values[start : start + 5] for start in starts]))[:, :, None]
    with torch.no_grad():
        forecast = module(windows[:, :3], torch.ones(len(starts), 5, 1))
    return forecast[:, :, 0].double().numpy(), windows[:, 3:, 0].double().numpy()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that nobody kills."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, *train(folder)


def test_a_network_learns_to_move_a_wave(tmp_path):
    # Persistence is wrong by 5 |sin(p) - sin(p - d)| = 10 sin(d / 2) |cos|, on average 20 / pi sin(d / 2), with the phase
    # d = 45 and 90 degrees after one and two steps: 2.44 and 4.50 K. (Eight phases average |cos| within 3 per cent.)
    fields = make_waves()
    module, outcome = train(tmp_path, fields, epochs=12, learning_rate=0.02, hidden=8)
    log = read_log(tmp_path)
    assert float(log[-1]["train_loss"]) < 0.1 * float(log[0]["train_loss"])
    forecast, truth = by_hand(module, fields, "test")
    persistence = np.abs(fields["t2m"].values[np.arange(82, 98)][:, None] - truth).mean(axis=(0, 2, 3))
    np.testing.assert_allclose(persistence, [2.44, 4.50], rtol=0.03)
    assert (np.abs(forecast - truth).mean(axis=(0, 2, 3)) < 0.5 * persistence).all()
    assert outcome["options"]["epochs"] == 12


def test_the_log_has_a_row_per_epoch(undisturbed):
    folder, _, outcome = undisturbed
    rows = read_log(folder)
    assert tuple(rows[0]) == LossLog.COLUMNS
    assert LossLog.COLUMNS == ("epoch", "step", "train_loss", "validation_mae", "learning_rate", "seconds")
    # 56 windows in batches of 8: 7 steps an epoch.
    assert [(int(row["epoch"]), int(row["step"])) for row in rows] == [(0, 7), (1, 14), (2, 21), (3, 28)]
    errors = [float(row["validation_mae"]) for row in rows]
    assert outcome["best_epoch"] == int(np.argmin(errors))
    assert outcome["validation_mae"] == min(errors)


def test_the_learning_rate_goes_through_one_cycle(undisturbed):
    # Half a cosine up, from peak / 25, over 30 % of the 28 steps (counted from 0: until 7.4), then one down to peak / 25e4
    # at step 27. A row has the rate of the step to come, the last one a step behind the end.
    peak = 2e-3
    for row in read_log(undisturbed[0]):
        step = int(row["step"])
        low, share = (peak / 25, step / 7.4) if step < 7.4 else (peak / 25e4, 1 - (step - 7.4) / (27 - 7.4))
        expected = low + (peak - low) * (1 - np.cos(np.pi * share)) / 2
        assert float(row["learning_rate"]) == pytest.approx(expected)


@pytest.mark.parametrize("loss", ["mse", "mae"])
def test_the_logged_numbers_are_those_of_plain_numpy(tmp_path, loss):
    # A learning rate of next to nothing leaves the network as it was: both numbers can be computed from outside. Batches
    # of 9 leave a last one of 2 windows, which must count as 2.
    fields = make_noise()
    module, _ = train(tmp_path, fields, loss=loss, epochs=1, learning_rate=1e-12, batch_size=9)
    (row,) = read_log(tmp_path)
    forecast, truth = by_hand(module, fields, "train")
    error = (forecast - truth) / float(module.scale)
    expected = (error**2).mean() if loss == "mse" else np.abs(error).mean()
    assert float(row["train_loss"]) == pytest.approx(expected, rel=1e-5)
    forecast, truth = by_hand(module, fields, "validation")
    assert float(row["validation_mae"]) == pytest.approx(np.abs(forecast - truth).mean(), rel=1e-5)


def test_the_weights_of_the_best_epoch_are_kept(tmp_path):
    # Of noise the mean is all that can be known, and the untrained network forecasts it: training makes it worse.
    fields = make_noise()
    module, outcome = train(tmp_path, fields, target="value", learning_rate=0.1, hidden=16)
    errors = [float(row["validation_mae"]) for row in read_log(tmp_path)]
    assert outcome["best_epoch"] == int(np.argmin(errors)) < 3
    forecast, truth = by_hand(module, fields, "validation")
    assert np.abs(forecast - truth).mean() == pytest.approx(min(errors), rel=1e-5)
    assert not module.training


def test_bfloat16_trains_too_and_keeps_the_weights_in_single_precision(tmp_path, undisturbed):
    module, outcome = train(tmp_path, precision="bf16")
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    # Rounding of 0.4 % in forward and backward pass; the errors of a few steps do not build up to per cents.
    assert outcome["validation_mae"] == pytest.approx(undisturbed[2]["validation_mae"], rel=0.05)


def test_a_run_without_clipping_and_with_progress_bar(tmp_path, capsys):
    module, *loaders = make_task(make_waves())
    training = Training(epochs=1, clip=0, precision="float32")
    fit(module, *loaders, history=3, training=training, folder=tmp_path)
    assert "Epoch 0: 100%" in "".join(capsys.readouterr())
    assert len(read_log(tmp_path)) == 1


def test_the_same_arguments_give_the_same_run(tmp_path, undisturbed):
    assert_same_run((tmp_path, *train(tmp_path)), undisturbed)


def test_a_finished_run_is_not_done_again(undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed[0], tmp_path / "copy")
    checkpoint = (folder / "checkpoints" / "last.ckpt").read_bytes()
    assert_same_run((folder, *train(folder)), undisturbed)
    assert (folder / "checkpoints" / "last.ckpt").read_bytes() == checkpoint


@pytest.mark.parametrize("changed", [{"identity": "other data"}, {"epochs": 5}])
def test_checkpoints_of_other_data_or_options_are_thrown_away(undisturbed, tmp_path, changed):
    folder = shutil.copytree(undisturbed[0], tmp_path / "copy")
    fresh = tmp_path / "fresh"
    assert_same_run((folder, *train(folder, **changed)), (fresh, *train(fresh, **changed)))


def test_missing_values_stop_the_training(tmp_path):
    fields = make_waves()
    fields["t2m"][30, 2, 2] = np.nan
    wanted = (
        r"the loss became nan in epoch 0, step \d: input finite: False, forecast finite: (True|False); lower "
        "training.learning_rate or training.clip, or use training.precision=float32"
    )
    with pytest.raises(FloatingPointError, match=wanted):
        train(tmp_path, fields)


def test_an_overflow_stops_the_training(tmp_path):
    with pytest.raises(
        FloatingPointError, match="became inf in epoch 0, step 0: input finite: True, forecast finite: True"
    ):
        train(tmp_path, make_waves() * 1e22)


def test_missing_values_in_the_validation_period_stop_the_training(tmp_path):
    fields = make_waves()
    fields["t2m"][70, 2, 2] = np.nan
    with pytest.raises(FloatingPointError, match="the validation error became nan in epoch 0: input finite: False"):
        train(tmp_path, fields)


def test_precision_has_three_names():
    assert lightning_precision("bf16") == "bf16-mixed"
    assert lightning_precision("float32") == "32-true"
    assert lightning_precision("auto") in ("bf16-mixed", "32-true")
    with pytest.raises(ValueError, match="precision must be one of auto, bf16, float32, got 'fp16'"):
        lightning_precision("fp16")


# Kills. An epoch fetches 7 batches for training and 1 for validation, so that fetch 19 is the third of epoch 2.
DEATHS = {
    "in the first epoch": ("batch", 3),
    "in the middle of epoch 2": ("batch", 19),
    "in the validation of epoch 2": ("batch", 24),
    "between the log and the last checkpoint of epoch 1": ("last.ckpt", 2),
}


class Countdown:
    """Kills this process, as a power cut would, when something has happened ``left`` times."""

    def __init__(self, name, left):
        self.name, self.left = name, left

    def tick(self, name):
        self.left -= name == self.name
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def train_and_die(folder, name, count):
    """Train until the process is killed: at a batch, or just before a file is put in its place."""
    countdown, replace = Countdown(name, count), os.replace

    class Counted(WindowDataset):
        def __getitem__(self, starts):
            countdown.tick("batch")
            return super().__getitem__(starts)

    def counted_replace(source, target):
        countdown.tick(Path(target).name)
        replace(source, target)

    os.replace = counted_replace
    train(folder, kind=Counted)


def die_in_all_ways(folder):
    """Start a child for each way to die: one interpreter and one import of torch do for all."""
    torch.set_num_threads(1)
    for number, death in enumerate(DEATHS.values()):
        child = os.fork()
        if not child:
            train_and_die(folder / str(number), *death)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


SCRIPT = """
import importlib.util, pathlib, sys
specification = importlib.util.spec_from_file_location("tests_of_training", sys.argv[1])
tests = importlib.util.module_from_spec(specification)
specification.loader.exec_module(tests)
tests.die_in_all_ways(pathlib.Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Return a folder with two folders per death, as the killed left them: the original and one that has moved."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "script.py").write_text(SCRIPT)
    subprocess.run([sys.executable, folder / "script.py", __file__, folder], check=True, timeout=300)
    for number in range(len(DEATHS)):
        shutil.copytree(folder / str(number), folder / f"{number} moved")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("place", ["", " moved"])
@pytest.mark.parametrize("death", DEATHS)
def test_a_killed_run_ends_where_the_undisturbed_one_ends(killed, undisturbed, death, place):
    folder = killed / f"{list(DEATHS).index(death)}{place}"
    assert (folder / "checkpoints" / "last.ckpt").exists() == (death != "in the first epoch")
    assert_same_run((folder, *train(folder)), undisturbed)
