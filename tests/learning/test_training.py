import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from climapred.grid import cell_areas
from climapred.learning.training import Training, fit, learning_rate_schedule, lightning_precision
from climapred.learning.windows import Split
from climapred.models.recurrent import Network
from climapred.models.scaled import Scaled
from tests.learning.waves import (
    GRID,
    KILLED,
    SPLIT,
    WINDOW,
    At,
    assert_same_run,
    assert_same_weights,
    make_loaders,
    make_module,
    make_noise,
    make_waves,
    read_log,
    read_rows,
    train,
)

# torch 2.13's compiler does what torch itself warns of.
OF_THE_COMPILER = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def windows_of(fields, period):
    starts = SPLIT.starts(period, fields["time"].values, WINDOW)
    return torch.tensor(np.stack([fields["t2m"].values[start : start + 5] for start in starts]))[:, :, None]


def by_hand(module, fields, period):
    """Return forecasts and truth of every window of a period, shapes (windows, horizon, H, W)."""
    windows = windows_of(fields, period)
    with torch.no_grad():
        forecast = module(windows[:, :3], torch.ones(len(windows), 5, 1))
    return forecast[:, :, 0].double().numpy(), windows[:, 3:, 0].double().numpy()


class Tiny(Network):
    """A network of two numbers that writes down how it is called."""

    feeds_back = False

    def __init__(self, feeds_back=False):
        super().__init__(1)
        self.slope, self.offset = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(0.1))
        self.feeds_back, self.calls = feeds_back, []

    def forward(self, frames, steps, *, change, future=None, use_truth=None):
        self.calls.append((self.training, steps, future, use_truth))
        return (frames[:, -1:] * self.slope + self.offset).expand(-1, steps, -1, -1, -1)


def make_tiny(kind=Tiny, **options):
    return Scaled(kind(**options), reference=torch.full((1, 1, 1, 1), 280.0), scale=torch.tensor([3.0]), target="value")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that nobody stops."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, *train(folder)


# What is learned.


class Costly(Tiny):
    """Asks for 5 more than the error costs."""

    def take_penalty(self):
        return torch.tensor(5.0) if self.training else None


def test_what_a_network_asks_for_is_a_part_of_the_loss(tmp_path):
    losses = []
    for kind in (Tiny, Costly):
        train(tmp_path / kind.__name__, module=make_tiny(kind), epochs=1)
        losses.append(float(read_rows(tmp_path / kind.__name__)[0]["train_loss"]))
    assert losses[1] - losses[0] == pytest.approx(5, abs=1e-4)


def test_a_network_learns_to_move_a_wave(tmp_path):
    # Persistence is wrong by 5 |sin(p) - sin(p - d)| = 10 sin(d / 2) |cos|, on average 20 / pi sin(d / 2), with the phase
    # d = 45 and 90 degrees after one and two steps: 2.44 and 4.50 K. (Eight phases average |cos| within 3 per cent.)
    fields = make_waves()
    module, outcome = train(tmp_path, fields, epochs=12, learning_rate=0.02, network={"hidden": 8})
    log = read_log(tmp_path)
    assert float(log[-1]["train_loss"]) < 0.1 * float(log[0]["train_loss"])
    forecast, truth = by_hand(module, fields, "test")
    persistence = np.abs(fields["t2m"].values[np.arange(82, 98)][:, None] - truth).mean(axis=(0, 2, 3))
    np.testing.assert_allclose(persistence, [2.44, 4.50], rtol=0.03)
    assert (np.abs(forecast - truth).mean(axis=(0, 2, 3)) < 0.5 * persistence).all()
    assert outcome["options"]["epochs"] == 12


@pytest.mark.parametrize("areas", [None, cell_areas(GRID)], ids=["alike", "by area"])
@pytest.mark.parametrize("loss", ["mse", "mae", "mse+mae"])
def test_the_logged_numbers_are_those_of_plain_numpy(tmp_path, loss, areas):
    # A learning rate of next to nothing leaves the network as it was: both numbers can be computed from outside. Batches
    # of 9 leave a last one of 2 windows, which must count as 2.
    fields = make_noise()
    options = {"loss": loss, "epochs": 1, "learning_rate": 1e-12, "batch_size": 9}
    module, _ = train(tmp_path, fields, areas=areas, area_weighted=areas is not None, **options)
    (row,) = read_log(tmp_path)
    forecast, truth = by_hand(module, fields, "train")
    error = (forecast - truth) / float(module.scale)
    each = {"mse": error**2, "mae": np.abs(error), "mse+mae": error**2 + np.abs(error)}[loss]
    expected = np.average(each, weights=None if areas is None else np.broadcast_to(areas, each.shape))
    assert float(row["train_loss"]) == pytest.approx(expected, rel=1e-5)
    if areas is not None:
        assert expected != pytest.approx(each.mean(), rel=1e-3)
    forecast, truth = by_hand(module, fields, "validation")
    assert float(row["validation_mae"]) == pytest.approx(np.abs(forecast - truth).mean(), rel=1e-5)


def test_the_loss_on_what_is_seen_counts_every_frame_but_the_first(tmp_path):
    fields = make_noise()
    options = {
        "network": {"one_pass": True},
        "loss_on_seen": True,
        "epochs": 1,
        "learning_rate": 1e-12,
        "batch_size": 9,
    }
    module, _ = train(tmp_path, fields, **options)
    (row,) = read_log(tmp_path)
    windows = windows_of(fields, "train")
    with torch.no_grad():  # the frame after one, after two, and then the two leads
        read = [module(windows[:, :seen], torch.ones(len(windows), seen + 1, 1))[:, :, 0] for seen in (1, 2)]
    forecast = np.concatenate([*(one.numpy() for one in read), by_hand(module, fields, "train")[0]], axis=1)
    error = (forecast - windows[:, 1:, 0].numpy()) / float(module.scale)
    assert error.shape[1] == 4
    assert float(row["train_loss"]) == pytest.approx((error**2).mean(), rel=1e-5)
    forecast, truth = by_hand(module, fields, "validation")
    assert float(row["validation_mae"]) == pytest.approx(np.abs(forecast - truth).mean(), rel=1e-5)


def test_a_loss_on_what_is_seen_is_refused_where_nothing_is_forecast_while_reading(tmp_path):
    with pytest.raises(ValueError, match=r"loss_on_seen=True is for .* build it with one_pass=True"):
        train(tmp_path, loss_on_seen=True)


def test_the_weights_of_the_best_epoch_are_kept(tmp_path):
    # Of noise the mean is all that can be known, and the untrained network forecasts it: training makes it worse.
    fields = make_noise()
    module, outcome = train(tmp_path, fields, network={"target": "value", "hidden": 16}, learning_rate=0.1)
    errors = [float(row["validation_mae"]) for row in read_log(tmp_path)]
    assert outcome["best_epoch"] == int(np.argmin(errors)) < 3
    assert outcome["validation_mae"] == min(errors)
    forecast, truth = by_hand(module, fields, "validation")
    assert np.abs(forecast - truth).mean() == pytest.approx(min(errors), rel=1e-5)
    assert not module.training


def test_two_batches_accumulated_are_one_batch_of_both(tmp_path):
    # 48 windows: 6 batches of 8 or 3 of 16, so that each window of the 16 has the same weight in the gradient.
    split = {"split": Split((0, 52), (60, 80), (80, 100))}
    options = {"learning_rate": 0.01, "network": {"hidden": 4}}
    parts, _ = train(tmp_path / "parts", loader=split, batch_size=8, accumulate=2, **options)
    whole, _ = train(tmp_path / "whole", loader=split, batch_size=16, **options)
    for name, weight in parts.state_dict().items():
        torch.testing.assert_close(weight, whole.state_dict()[name], rtol=1e-4, atol=1e-5)  # sums in another order
    first, second = (read_log(tmp_path / name) for name in ("parts", "whole"))
    for row, other in zip(first, second, strict=True):
        assert row["step"] == other["step"]
        assert float(row["train_loss"]) == pytest.approx(float(other["train_loss"]), rel=1e-5)
        assert float(row["learning_rate"]) == pytest.approx(float(other["learning_rate"]))


def test_the_kept_weights_are_the_exponential_average(tmp_path):
    decay, seen, averages = 0.8, [], []
    module = make_module()
    before = {name: value.clone() for name, value in module.named_buffers()}

    def after_step():
        weights = {name: weight.detach().double().clone() for name, weight in module.named_parameters()}
        seen.append(weights)
        last = averages[-1] if averages else weights  # the first step begins the average
        averages.append({name: decay * last[name] + (1 - decay) * weight for name, weight in weights.items()})

    every = [At("on_train_batch_end", number, after_step) for number in range(1, 29)]
    _, outcome = train(tmp_path, module=module, averaging=decay, callbacks=every)
    assert len(seen) == 28
    kept = averages[7 * (outcome["best_epoch"] + 1) - 1]
    for name, weight in module.named_parameters():
        torch.testing.assert_close(weight.double(), kept[name], rtol=1e-5, atol=1e-7)
    assert_same_weights(dict(module.named_buffers()), before)  # the average of a constant is the constant
    # What is validated is the average too.
    forecast, truth = by_hand(module, make_waves(), "validation")
    assert outcome["validation_mae"] == pytest.approx(np.abs(forecast - truth).mean(), rel=1e-5)


@pytest.mark.parametrize("patience", [1, 3])
def test_training_stops_when_it_has_been_patient(tmp_path, patience):
    options = {"network": {"target": "value", "hidden": 16}, "learning_rate": 0.1, "schedule": "constant", "epochs": 30}
    found = tmp_path, *train(tmp_path, make_noise(), patience=patience, **options)
    errors = [float(row["validation_mae"]) for row in read_log(tmp_path)]
    best = [int(np.argmin(errors[: epoch + 1])) for epoch in range(len(errors))]
    waited = [epoch - at for epoch, at in enumerate(best)]
    assert waited[-1] == patience  # the first time that it has waited so long
    assert max(waited[:-1]) < patience
    assert len(errors) < 30
    # Run again it is as it was, not an epoch longer.
    rows = read_log(tmp_path)
    again = tmp_path, *train(tmp_path, make_noise(), patience=patience, **options)
    assert_same_run(again, found)
    assert read_log(tmp_path) == rows


def test_the_trained_leads_grow_to_the_horizon(tmp_path):
    module = make_tiny()
    train(tmp_path, module=module, epochs=4, curriculum=2)
    calls = [(training, steps) for training, steps, *_ in module.network.calls]
    # 7 batches of training and 1 of validation in an epoch; of the two leads the first alone, then (1 + 1 / 2, halves to
    # even) still the first, then both. Validation is always of both: epochs can be compared.
    expected = []
    for leads in (1, 1, 2, 2):
        expected += [(True, leads)] * 7 + [(False, 2)]
    assert calls == expected


@pytest.mark.parametrize("form", ["feedback", "one_pass"])
@pytest.mark.parametrize("sampling", ["scheduled", "reverse"])
def test_networks_that_feed_back_train_with_sampling(tmp_path, sampling, form):
    options = {"network": {form: True}, "sampling": sampling, "sampling_end": 1.0, "epochs": 6, "learning_rate": 0.02}
    train(tmp_path / "sampled", **options)
    log = read_log(tmp_path / "sampled")
    assert float(log[-1]["validation_mae"]) < 0.7 * float(log[0]["validation_mae"])
    own = train(tmp_path / "own", **{**options, "sampling": "none"})[1]
    assert own["validation_mae"] != float(log[-1]["validation_mae"])


def test_what_sampling_feeds(tmp_path):
    module = make_tiny(feeds_back=True)
    options = {"epochs": 2, "batch_size": 28, "sampling": "scheduled", "sampling_end": 0.75, "learning_rate": 1e-12}
    fields = make_waves()
    train(tmp_path, fields, module=module, **options)
    trained, validated = ([call for call in module.network.calls if call[0] == kind] for kind in (True, False))
    # 4 steps, so that progress / end is 0, 1/3, 2/3, 1: at first the truth alone, in the end the network's own (None).
    first, second, third, last = (use_truth for *_, use_truth in trained)
    assert first.shape == (28, 4)
    assert first.all()
    assert second[:, :3].all()
    assert third[:, :3].all()
    assert 0 < third[:, 3].sum() < 28
    assert last is None
    truth = (windows_of(fields, "train")[:, 3:] - 280) / 3
    futures = torch.cat([trained[0][2], trained[1][2]])  # an epoch of batches has each window once
    torch.testing.assert_close(futures.sum(), truth.sum(), rtol=1e-4, atol=1e-2)
    assert futures.shape == truth.shape
    assert all(future is None and use_truth is None for _, _, future, use_truth in validated)


def test_sampling_is_refused_for_a_network_that_does_not_feed_back(tmp_path):
    wanted = "sampling='reverse' is for networks that eat their own forecasts; .* feedback=True or one_pass=True"
    with pytest.raises(ValueError, match=wanted):
        train(tmp_path, sampling="reverse")


def test_missing_values_are_masked_in_what_is_seen_and_in_the_truth(tmp_path):
    fields = make_waves()
    values = fields["t2m"].values
    land = np.zeros(GRID.shape, dtype=bool)
    land[2:4, 3:6] = True  # always missing there, and sometimes elsewhere
    values[:, land] = np.nan
    values[np.random.default_rng(0).random(values.shape) < 0.05] = np.nan
    masked = {"missing": "mask"}
    module, outcome = train(tmp_path, fields, epochs=8, learning_rate=0.02, network=masked, loader=masked)
    assert all(weight.isfinite().all() for weight in module.parameters())
    log = read_log(tmp_path)
    assert float(log[-1]["train_loss"]) < 0.3 * float(log[0]["train_loss"])
    forecast, truth = by_hand(module, fields, "validation")
    assert np.isfinite(forecast).all()
    assert outcome["validation_mae"] == pytest.approx(np.nanmean(np.abs(forecast - truth)), rel=1e-5)


def test_a_validation_period_without_any_truth_is_refused(tmp_path):
    fields = make_waves()
    fields["t2m"][60:80] = np.nan
    masked = {"missing": "mask"}
    with pytest.raises(ValueError, match="every truth in the validation period is missing"):
        train(tmp_path, fields, network=masked, loader=masked)


# How it is computed.


def test_bfloat16_trains_too_and_keeps_the_weights_in_single_precision(tmp_path, undisturbed):
    module, outcome = train(tmp_path, precision="bf16")
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    # Rounding of 0.4 % in forward and backward pass; the errors of a few steps do not build up to per cents.
    assert outcome["validation_mae"] == pytest.approx(undisturbed[2]["validation_mae"], rel=0.05)
    assert outcome["validation_mae"] != undisturbed[2]["validation_mae"]


def test_precision_has_three_names():
    assert lightning_precision("bf16") == "bf16-mixed"
    assert lightning_precision("float32") == "32-true"
    assert lightning_precision("auto") in ("bf16-mixed", "32-true")
    with pytest.raises(ValueError, match="precision must be one of auto, bf16, float32, got 'fp16'"):
        lightning_precision("fp16")


@pytest.mark.slow
@OF_THE_COMPILER
def test_a_compiled_network_learns_the_same(tmp_path, undisturbed):
    module, compiled = make_module(), []
    look = At("on_train_batch_end", 1, lambda: compiled.append(module.network._compiled_call_impl))
    _, outcome = train(tmp_path, module=module, compile=True, callbacks=[look])
    assert compiled[0] is not None
    for row, other in zip(read_log(tmp_path), read_log(undisturbed[0]), strict=True):
        for name in ("train_loss", "validation_mae"):  # fused operations round otherwise
            assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-3)
    assert module.network._compiled_call_impl is None
    assert outcome["options"]["compile"]


@OF_THE_COMPILER
def test_a_network_is_not_left_compiled_by_an_error(tmp_path):
    def fail():
        raise RuntimeError("a failing callback")

    module = make_module()
    with pytest.raises(RuntimeError, match="a failing callback"):
        train(tmp_path, module=module, compile=True, callbacks=[At("on_train_start", 1, fail)])
    assert module.network._compiled_call_impl is None


def test_tensorboard_gets_the_log_too(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tmp_path, epochs=2, tensorboard=True)
    (file,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    found = events.EventAccumulator(str(file)).Reload()
    for name in ("validation_mae", "train_loss"):
        logged = [event.value for event in found.Scalars(name)]
        np.testing.assert_allclose(logged, [float(row[name]) for row in read_log(tmp_path)], rtol=1e-6)


def test_without_tensorboard_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # what makes Python find no package of this name
    with pytest.raises(ImportError, match=r"tensorboard=True needs .* pip install 'climapred\[tensorboard\]'"):
        train(tmp_path, tensorboard=True)


def test_a_run_without_clipping_and_with_progress_bar(tmp_path, capsys):
    training = Training(epochs=1, clip=0, precision="float32")
    fit(make_module(), *make_loaders(), history=3, training=training, folder=tmp_path)
    shown = "".join(capsys.readouterr())
    assert "Epoch 0: 100%" in shown
    assert "windows/s=" in shown
    assert "waiting=" in shown
    assert len(read_log(tmp_path)) == 1


def test_clipping_bounds_the_step(tmp_path):
    norms = {}
    for clip in (0.0, 1e-3):
        module = make_module()
        found = norms.setdefault(clip, [])

        def measure(module=module, found=found):
            found.append(math.hypot(*(float(weight.grad.norm()) for weight in module.parameters())))

        every = [At("on_before_zero_grad", number, measure) for number in range(2, 8)]  # the first has no gradient yet
        train(tmp_path / str(clip), module=module, epochs=1, clip=clip, callbacks=every)
    assert max(norms[1e-3]) <= 1e-3 * (1 + 1e-5)
    assert min(norms[0.0]) > 1e-3


# The learning rate.


def rates(training, steps):
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=training.learning_rate)
    schedule, found = learning_rate_schedule(optimizer, training, steps), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return np.array(found)


@pytest.mark.parametrize("steps", [10, 28, 100])
@pytest.mark.parametrize("warmup", [0, 0.1, 0.3])
def test_one_cycle_rises_and_falls_in_half_cosines(warmup, steps):
    # Half a cosine from peak / 25 up to the peak at step warmup * steps - 1, then one down to peak / 25e4 at the last step.
    step, top, peak = np.arange(steps), warmup * steps - 1, 0.01
    down = peak / 25e4 + (peak - peak / 25e4) * (1 + np.cos(np.pi * (step - top) / (steps - 1 - top))) / 2
    up = peak / 25 + (peak - peak / 25) * (1 - np.cos(np.pi * step / top)) / 2 if top > 0 else down
    expected = np.where(step < top, up, down)
    np.testing.assert_allclose(rates(Training(learning_rate=peak, warmup=warmup), steps), expected, rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 10, 28, 100])
@pytest.mark.parametrize("warmup", [0, 0.1, 0.3])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_others_rise_in_a_line_and_fall_in_half_a_cosine_or_stay(schedule, warmup, steps):
    step, rising, peak = np.arange(steps), warmup * steps, 0.01
    after = np.ones(steps)
    if schedule == "cosine":
        after = (1 + np.cos(np.pi * np.clip((step - rising) / max(1, steps - rising), 0, 1))) / 2
    expected = peak * np.where(step + 1 < rising, (step + 1) / max(rising, 1), after)
    training = Training(learning_rate=peak, warmup=warmup, schedule=schedule)
    found = rates(training, steps)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert found[-1] > 0  # the last step still counts
    assert found.max() <= peak


# What ends it.


def test_missing_values_in_the_input_are_found_there(tmp_path):
    fields = make_waves()
    fields["t2m"][0, 2, 2] = np.nan  # of the first window, seen
    wanted = (
        r"the loss became nan in epoch 0, step (\d) \(windows from 2013-01-01T00 to 2013-01-\d\dT\d\d\): "
        "input NOT finite, truth finite, output NOT finite; lower training.learning_rate or training.clip, or use "
        "training.precision=float32"
    )
    with pytest.raises(FloatingPointError, match=wanted):
        train(tmp_path, fields, loader={"missing": "mask"})


def test_missing_values_in_the_truth_are_found_there(tmp_path):
    fields = make_waves()
    fields["t2m"][59, 2, 2] = np.nan  # the second lead of the last window
    wanted = r"became nan in epoch 0, step \d .* to 2013-01-15T18\): input finite, truth NOT finite, output finite"
    with pytest.raises(FloatingPointError, match=wanted):
        train(tmp_path, fields, loader={"missing": "mask"})


def test_an_infinite_value_is_not_masked(tmp_path):
    fields = make_waves()
    fields["t2m"][59, 2, 2] = np.inf
    fields["t2m"][:, 3, 3] = np.nan
    masked = {"missing": "mask"}
    wanted = "became (inf|nan) .*: input finite, truth NOT finite, output finite"
    with pytest.raises(FloatingPointError, match=wanted):
        train(tmp_path, fields, network=masked, loader=masked)
    fields["t2m"][59, 2, 2] = 280
    train(tmp_path, fields, epochs=1, network=masked, loader=masked)


def test_an_overflow_of_the_loss_stops_the_training(tmp_path):
    wanted = "became inf in epoch 0, step 0 .*: input finite, truth finite, output finite"
    with pytest.raises(FloatingPointError, match=wanted):
        train(tmp_path, make_waves() * 1e22)


class Explodes(nn.Module):
    """A network whose output is finite and whose output's gradient is not."""

    def forward(self, x, value):
        return Backward.apply(x, value)


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, value):
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.full_like(gradient, ctx.value), None


class Breaks(Tiny):
    """``offset`` gets a gradient of ``value`` in every cell; ``slope`` a good one."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, frames, steps, **_):
        offset = Backward.apply(self.offset.expand_as(frames[:, -1:]), self.value)
        return (frames[:, -1:] * self.slope + offset).expand(-1, steps, -1, -1, -1)


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_is_named(tmp_path, value, clip):
    wanted = (
        f"the gradient became {value} in epoch 0, step 0: input and output finite, gradients NOT finite: that of "
        "network.offset; lower training.learning_rate"
    )
    with pytest.raises(FloatingPointError, match=wanted):
        train(tmp_path, module=make_tiny(Breaks, value=value), clip=clip)


def test_many_bad_gradients_are_counted(tmp_path):
    class Many(Tiny):
        def __init__(self):
            super().__init__()
            self.more = nn.ParameterList(nn.Parameter(torch.tensor(0.1)) for _ in range(6))

        def forward(self, frames, steps, **_):
            return super().forward(Backward.apply(frames * sum(self.more), math.inf), steps, change=False)

    wanted = "NOT finite: that of network.more.0, network.more.1, network.more.2 and 3 others;"
    with pytest.raises(FloatingPointError, match=wanted):
        train(tmp_path, module=make_tiny(Many))


def test_a_norm_that_overflows_is_no_bad_gradient(tmp_path):
    with pytest.raises(
        FloatingPointError, match=r"gradient became inf .*, gradients each finite, their norm overflows"
    ):
        train(tmp_path, module=make_tiny(Breaks, value=1e30))


def test_missing_values_in_the_validation_period_stop_the_training(tmp_path):
    fields = make_waves()
    fields["t2m"][60, 2, 2] = np.nan
    wanted = (
        r"the validation error became nan in epoch 0, step 7 \(windows from 2013-01-16T00 to .*\): input NOT finite, "
        "truth finite, output NOT finite"
    )
    with pytest.raises(FloatingPointError, match=wanted):
        train(tmp_path, fields, loader={"missing": "mask"})


WRONG = {
    "schedule must be one of one_cycle, cosine, constant, got 'linear'": {"schedule": "linear"},
    "loss must be one of mse, mae, mse\\+mae, got 'rmse'": {"loss": "rmse"},
    "precision must be one of auto, bf16, float32, got 'fp16'": {"precision": "fp16"},
    "strategy must be one of ddp, fsdp, got 'dp'": {"strategy": "dp"},
    "epochs must be at least 1, got 0": {"epochs": 0},
    "batch_size must be at least 1, got -8": {"batch_size": -8},
    "accumulate must be at least 1, got 0": {"accumulate": 0},
    "processes must be at least 1, got 0": {"processes": 0},
    "learning_rate must be above 0, got 0": {"learning_rate": 0},
    "learning_rate must be above 0, got nan": {"learning_rate": math.nan},
    "weight_decay must be at least 0, got -0.1": {"weight_decay": -0.1},
    "clip must be at least 0, got -1": {"clip": -1},
    "patience must be at least 0, got -1": {"patience": -1},
    "curriculum must be at least 0, got -2": {"curriculum": -2},
    "checkpoint_seconds must be at least 0, got -1": {"checkpoint_seconds": -1},
    "seed must be at least 0, got -1": {"seed": -1},
    "warmup must be at least 0 and below 1, got 1": {"warmup": 1},
    "averaging must be at least 0 and below 1, got -0.5": {"averaging": -0.5},
    "sampling must be one of none, scheduled, reverse, got 'half'": {"sampling": "half"},
    "sampling_end is a share of the steps, above 0 and up to 1, got 0": {"sampling_end": 0},
    "averaging needs whole weights in each process; use strategy ddp": {"strategy": "fsdp", "averaging": 0.9},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_options_are_named(message):
    with pytest.raises(ValueError, match=message):
        Training(**WRONG[message])


def test_an_area_weighted_loss_needs_areas(tmp_path):
    with pytest.raises(ValueError, match="an area-weighted loss needs the areas of the cells"):
        train(tmp_path, area_weighted=True)


@pytest.mark.parametrize("options", [{"processes": 2}, {"strategy": "fsdp"}])
def test_several_processes_must_be_started_by_someone(tmp_path, options):
    with pytest.raises(RuntimeError, match=r"this process is alone.*: start it with `climapred run`, with torchrun"):
        train(tmp_path, **options)


# Begun again.


def test_the_same_arguments_give_the_same_run(tmp_path, undisturbed):
    assert_same_run((tmp_path, *train(tmp_path)), undisturbed)
    other = train(tmp_path / "other", seed=1)[0]
    assert not torch.equal(other.network.readout.weight, undisturbed[1].network.readout.weight)


class Stop(Exception):
    pass


def stop():
    raise Stop


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_batch_start", "on_validation_batch_end"])
def test_an_error_leaves_no_trace_in_the_loaders(tmp_path, hook, undisturbed):
    loaders = make_loaders()
    loaders[1].batch_size = 4  # several batches of validation
    training, module = Training(epochs=4, batch_size=8, precision="float32"), make_module()
    keywords = {"history": 3, "training": training, "show_progress": False}
    with pytest.raises(Stop):
        fit(make_module(), *loaders, folder=tmp_path / "stopped", callbacks=[At(hook, 2, stop)], **keywords)
    outcome = fit(module, *loaders, folder=tmp_path / "again", **keywords)
    assert_same_weights(module.state_dict(), undisturbed[1].state_dict())
    assert outcome["validation_mae"] == pytest.approx(undisturbed[2]["validation_mae"], rel=1e-6)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Return a folder in which a child has killed its own children; see ``waves.kill_at_random``."""
    folder = tmp_path_factory.mktemp("killed")
    program = "import sys; from tests.learning.waves import kill_at_random; kill_at_random(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, folder], check=True, timeout=300)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLED)
def test_a_run_killed_at_random_ends_where_the_undisturbed_one_ends(killed, name):
    expected = torch.load(killed / name / "undisturbed" / "result.pt")
    kills = 0
    for folder in sorted((killed / name).glob("killed *")):
        found = torch.load(folder / "result.pt")
        assert_same_weights(found["weights"], expected["weights"])
        assert found["outcome"] == expected["outcome"]
        assert read_rows(folder) == read_rows(killed / name / "undisturbed")
        kills += len((folder / "kills.txt").read_text().split())
    assert kills == 10
