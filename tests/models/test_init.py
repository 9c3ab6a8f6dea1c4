"""What holds for every model: shapes, any number of leads, gradients everywhere, determinism, a turning globe, compiling."""

import pytest
import torch

from climapred.models import MODELS, build_model, grid_bound, has_option

GRID = {"height": 5, "width": 6}
SIZES = {"fc_lstm": {"hidden": 6}, "simvp": {"hidden": 4, "translator": 6, "layers": 2, "kernel": 7, "expansion": 2}}
SIZES |= {"ls_ntp": {"hidden": 3, "embedding": 4}, "agcrn": {"hidden": 3, "embedding": 4}}
DEEP = {"predrnn_pp", "mim"}  # cannot do with one layer
WINDOWED = {"simvp"}  # takes one number of frames
every_model = pytest.mark.parametrize("name", MODELS)


def make_network(name, *, channels=2, forcings=1, alive=True, history=3, **options):
    """A small float64 network; ``alive``: all its weights are random, the readout's too."""
    torch.manual_seed(0)
    sizes = {**GRID, "history": history, "horizon": 2, **SIZES.get(name, {"hidden": 3}), **options}
    network = build_model(name, channels=channels, forcings=forcings, **sizes).double()
    starts_at_zero = ("readout.", "receive.", "shared.embedding")
    at_zero = [weight for key, weight in network.named_parameters() if any(part in key for part in starts_at_zero)]
    for parameter in at_zero if alive else ():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def make_frames(times=3, *, batch=2, channels=3, height=5, width=6, seed=1):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(batch, times, channels, height, width, dtype=torch.float64, generator=random)


@every_model
@pytest.mark.parametrize("history", [1, 3])
@pytest.mark.parametrize("steps", [1, 5])
def test_any_number_of_frames_gives_any_number_of_leads(name, history, steps):
    network = make_network(name, history=history)
    forecast = network(make_frames(history), steps, future=make_frames(steps, seed=2))
    assert forecast.shape == (2, steps, 2, 5, 6)
    assert forecast.isfinite().all()
    assert (network.channels, network.forcings) == (2, 1)
    with pytest.raises(ValueError, match="frames must have 2 channels and 1 forcings"):
        network(make_frames(history, channels=2), 1)


@every_model
def test_the_first_leads_do_not_depend_on_how_many_follow(name):
    network, frames, future = make_network(name).eval(), make_frames(), make_frames(5, seed=2)
    torch.testing.assert_close(network(frames, 5, future=future)[:, :2], network(frames, 2, future=future[:, :2]))


@every_model
def test_windows_of_a_batch_do_not_meet(name):
    network, frames, future = make_network(name).eval(), make_frames(batch=3), make_frames(2, batch=3, seed=2)
    together = network(frames, 2, future=future)
    for number in range(3):
        alone = network(frames[number : number + 1], 2, future=future[number : number + 1])
        torch.testing.assert_close(together[number : number + 1], alone)


@every_model
def test_untrained_it_forecasts_zero_or_persistence(name):
    network, frames = make_network(name, forcings=0, alive=False), make_frames(channels=2)
    assert not network(frames, 2).any()
    torch.testing.assert_close(network(frames, 2, change=True), frames[:, -1:].expand(-1, 2, -1, -1, -1))


@every_model
def test_every_parameter_has_a_gradient(name):
    network = make_network(name)
    loss = network(make_frames(), 3, future=make_frames(3, seed=2)).square().sum()
    penalty = network.take_penalty()
    (loss if penalty is None else loss + penalty).backward()
    dead = [key for key, weight in network.named_parameters() if weight.grad is None or not weight.grad.abs().max() > 0]
    assert dead == []


@every_model
def test_a_seed_makes_the_weights_and_they_the_forecast(name):
    one, other = make_network(name), make_network(name)
    frames, future = make_frames(), make_frames(2, seed=2)
    assert torch.equal(one(frames, 2, future=future), other(frames, 2, future=future))
    restored = make_network(name, alive=False)
    restored.load_state_dict(one.state_dict())
    assert torch.equal(restored(frames, 2, future=future), one(frames, 2, future=future))


@every_model
def test_it_learns(name):
    """A blob goes east, a point a step: within 40 steps the squared error falls by half."""
    torch.manual_seed(0)
    network = make_network(name, channels=1, forcings=0, alive=False).float()
    places = torch.arange(6.0)
    east = torch.stack([torch.exp(-((places - 0.5 * time - 1) ** 2)).expand(5, 6) for time in range(5)])
    frames, truth = east[None, :3, None], east[None, 3:, None]
    optimizer, losses = torch.optim.Adam(network.parameters(), lr=0.01), []
    for _ in range(40):
        loss = (network(frames, 2, change=True) - truth).square().mean()
        penalty = network.take_penalty()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2


@every_model
def test_bfloat16_is_close(name):
    network = make_network(name).float().eval()
    frames, future = make_frames().float(), make_frames(2, seed=2).float()
    exact = network(frames, 2, future=future)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(frames, 2, future=future).float()
    assert float(((rounded - exact).norm() / exact.norm()).detach()) < 0.1


@pytest.mark.parametrize("name", ["convlstm", "fc_lstm", "predrnn"])
def test_a_norm_of_the_gates_has_live_parameters_and_knows_no_other_window(name):
    network, frames, future = make_network(name, norm=True), make_frames(), make_frames(2, seed=2)
    forecast = network(frames, 2, future=future)
    weights = dict(network.named_parameters())
    slopes = torch.autograd.grad(forecast.square().sum(), [*weights.values()])
    assert [key for key, slope in zip(weights, slopes, strict=True) if not slope.any()] == []
    assert len(weights) > len([*make_network(name).parameters()])
    torch.testing.assert_close(network(frames[:1], 2, future=future[:1]), forecast[:1])


@every_model
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's compiler does
def test_it_compiles_in_one_graph(name):
    """Without a break in the graph (``fullgraph``), with the same forecast and gradients."""
    network, frames, future = make_network(name), make_frames(), make_frames(2, seed=2)
    torch.compiler.reset()  # all models share one loop, and a code object is compiled a few times only
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    found, expected = (each(frames, 2, future=future) for each in (compiled, network))
    torch.testing.assert_close(found, expected)
    weights = [*network.parameters()]
    slopes = (torch.autograd.grad(forecast.square().sum(), weights) for forecast in (found, expected))
    torch.testing.assert_close(*slopes)


@every_model
def test_it_eats_the_truth_or_its_own_forecast_as_it_is_told(name):
    """Scheduled sampling: a late lead depends on the truth of earlier ones where that is eaten, and on forcings always."""
    network = make_network(name, **({"feedback": True} if has_option(name, "feedback") else {}))
    frames, future = make_frames(), make_frames(5, seed=2).requires_grad_()
    for eaten in (True, False):
        use_truth = torch.tensor([[True] * 3 + [eaten] * 4] * 2)
        forecast = network(frames, 5, future=future, use_truth=use_truth)
        (slope,) = torch.autograd.grad(forecast[:, -1].square().sum(), future)
        assert bool(slope[:, :, :2].any()) == eaten
        assert slope[:, :, 2:].any()


@pytest.mark.parametrize("name", [name for name in MODELS if has_option(name, "one_pass")])
def test_one_pass_does_not_see_the_frames_that_are_hidden_from_it(name):
    """Reverse scheduled sampling (PredRNN-V2): in place of a hidden frame the network eats its own forecast of it."""
    network, frames = make_network(name, one_pass=True), make_frames().requires_grad_()
    for hidden in (True, False):
        use_truth = torch.tensor([[True, not hidden, True, False]] * 2)
        forecast = network(frames, 2, future=make_frames(2, seed=2), use_truth=use_truth)
        (slope,) = torch.autograd.grad(forecast.square().sum(), frames)
        assert bool(slope[:, 1, :2].any()) != hidden
        assert all(slope[:, time, :2].any() for time in (0, 2))


@every_model
@pytest.mark.parametrize("form", [{"feedback": True}, {"one_pass": False}, {"one_pass": True}])
def test_forms_are_options_of_those_that_have_them(name, form):
    if "feedback" not in build_options(name):
        with pytest.raises(ValueError, match=f"model '{name}' has no option {next(iter(form))}"):
            make_network(name, **form)
        return
    network = make_network(name, **form)
    assert network(make_frames(), 2, future=make_frames(2, seed=2)).shape == (2, 2, 2, 5, 6)
    if "one_pass" in form:
        assert (network.forecaster is None) == form["one_pass"]


def build_options(name):
    """The options that an error lists."""
    with pytest.raises(ValueError, match="has no option nothing") as error:
        build_model(name, nothing=1)
    return str(error.value).split("its options: ")[1].split(", ")


@every_model
@pytest.mark.parametrize("layers", [1, 2])
def test_depth_is_an_option(name, layers):
    if layers == 1 and name in DEEP | WINDOWED:
        with pytest.raises(ValueError, match="layers must be at least 2"):
            make_network(name, layers=layers)
        return
    make_network(name, layers=layers)


def test_a_model_without_grid_or_window_ignores_them():
    sizes = {**GRID, "history": 3, "horizon": 2}
    assert repr(build_model("convlstm", **sizes, hidden=3)) == repr(build_model("convlstm", hidden=3))


@every_model
def test_weights_that_are_not_bound_to_a_grid_fit_any(name):
    small, large = (
        {key: tensor.shape for key, tensor in make_network(name, height=height).state_dict().items()}
        for height in (4, 6)
    )
    assert (small != large) == grid_bound(name)


@every_model
def test_patches_are_for_models_without_a_grid(name):
    options = {"height": 5, "width": 7, "patch": 2}
    if grid_bound(name):
        with pytest.raises(
            ValueError, match=f"model '{name}' has weights for every point of the grid and takes no patch"
        ):
            make_network(name, **options)
        return
    network = make_network(name, **options)
    assert (network.channels, network.forcings, network.network.channels) == (2, 1, 8)
    frames, future = make_frames(width=7), make_frames(4, width=7, seed=2)
    assert network(frames, 4, future=future).shape == (2, 4, 2, 5, 7)
    with pytest.raises(ValueError, match="patch must be at least 1, got 0"):
        make_network(name, patch=0)


@every_model
def test_a_periodic_model_turns_with_the_globe(name):
    network = make_network(name, periodic=True).eval()
    if grid_bound(name):
        return  # its weights know the places
    frames, future = make_frames(width=8), make_frames(5, width=8, seed=2)
    turned = network(frames.roll(3, dims=-1), 5, future=future.roll(3, dims=-1))
    torch.testing.assert_close(turned, network(frames, 5, future=future).roll(3, dims=-1), rtol=0, atol=1e-9)


def test_a_grid_bound_model_must_be_known():
    assert [name for name in MODELS if grid_bound(name)] == ["ls_ntp", "fc_lstm", "agcrn"]
    with pytest.raises(ValueError, match=r"unknown model 'lstm'; known models: convlstm, ls_ntp, .*, simvp"):
        grid_bound("lstm")


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("hidden", "64", "int"),
        ("hidden", 8.0, "int"),
        ("layers", True, "int"),
        ("feedback", "no", "bool"),
        ("patch", 2.0, "int"),
        ("periodic", 1, "bool"),
    ],
)
def test_options_of_another_type_are_refused(option, value, wanted):
    # A text is true, and true is 1: without a check these would build another network than the one that was meant.
    with pytest.raises(ValueError, match=f"option {option} of model 'convlstm' must be {wanted}, got {value!r}"):
        build_model("convlstm", **{option: value})


def test_a_whole_number_may_stand_for_a_real_one():
    assert build_model("predrnn", hidden=3, decouple=1).encoder.weight == 1
    with pytest.raises(ValueError, match="option decouple of model 'predrnn' must be float, got True"):
        build_model("predrnn", hidden=3, decouple=True)


def test_errors_list_what_is_known():
    with pytest.raises(ValueError, match=r"unknown model 'lstm'; known models: convlstm, ls_ntp"):
        build_model("lstm")
    options = (
        "height, width, channels, forcings, hidden, layers, kernel, embedding, feedback, one_pass, variant, downsample, "
        "attention, long_range, short_range, self_loop, branch, smooth, directed, relu, floor, max_km, adjacency, links, "
        "refresh, patch, periodic"
    )
    with pytest.raises(ValueError, match=rf"model 'ls_ntp' has no option depth, gates; its options: {options}$"):
        build_model("ls_ntp", gates=4, depth=1, hidden=3, **GRID)
    with pytest.raises(ValueError, match=r"model 'ls_ntp' needs height, width$"):
        build_model("ls_ntp", hidden=3)
    with pytest.raises(ValueError, match=r"model 'ls_ntp' needs height$"):
        build_model("ls_ntp", width=3)


def test_an_option_that_may_be_left_to_the_variant_takes_none_and_its_own_type():
    assert build_model("ls_ntp", branch=None, **GRID).encoder[0].form.branch == 8
    assert build_model("ls_ntp", branch=3, **GRID).encoder[0].form.branch == 3
    with pytest.raises(ValueError, match=r"option branch of model 'ls_ntp' must be int or NoneType, got 2\.5"):
        build_model("ls_ntp", branch=2.5, **GRID)
