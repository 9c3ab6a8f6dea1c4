import pytest
import torch

from climapred.models import MODELS, build_model, grid_bound
from climapred.models.recurrent import EncoderForecaster

SIZE = {"height": 4, "width": 5, "hidden": 3}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_built_with_or_without_more_than_its_grid(name):
    network = build_model(name, channels=2, layers=1, feedback=True, **SIZE)
    assert isinstance(network, EncoderForecaster)
    assert network.channels == 2
    assert len(network.encoder) == len(network.forecaster) == 1


def test_a_model_without_grid_ignores_it():
    with_grid, without = build_model("convlstm", **SIZE), build_model("convlstm", hidden=3)
    assert repr(with_grid) == repr(without)


@pytest.mark.parametrize("name", MODELS)
def test_weights_that_are_not_bound_to_a_grid_fit_any(name):
    small, large = (
        {key: tensor.shape for key, tensor in build_model(name, hidden=3, height=height, width=5).state_dict().items()}
        for height in (4, 6)
    )
    assert (small != large) == grid_bound(name)


@pytest.mark.parametrize("name", MODELS)
def test_patches_are_for_models_without_a_grid(name):
    options = {"hidden": 3, "height": 5, "width": 7, "patch": 2}
    if grid_bound(name):
        with pytest.raises(
            ValueError, match=f"model '{name}' has weights for every point of the grid and takes no patch"
        ):
            build_model(name, **options)
        return
    network = build_model(name, channels=2, forcings=1, **options)
    assert (network.channels, network.forcings, network.network.channels) == (2, 1, 8)
    assert network(torch.randn(2, 3, 3, 5, 7), 4, future=torch.randn(2, 4, 3, 5, 7)).shape == (2, 4, 2, 5, 7)
    with pytest.raises(ValueError, match="patch must be at least 1, got 0"):
        build_model(name, hidden=3, patch=0)


@pytest.mark.parametrize("name", MODELS)
def test_a_periodic_model_turns_with_the_globe(name):
    if grid_bound(name):
        return  # its weights know the places
    torch.manual_seed(0)
    network = build_model(name, hidden=3, periodic=True).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    frames = torch.randn(1, 3, 1, 6, 8, dtype=torch.float64)
    turned = network(frames.roll(3, dims=-1), 2)
    torch.testing.assert_close(turned, network(frames, 2).roll(3, dims=-1))


def test_a_grid_bound_model_must_be_known():
    assert grid_bound("ls_ntp")
    assert not grid_bound("convlstm")
    with pytest.raises(ValueError, match=r"unknown model 'lstm'; known models: convlstm, ls_ntp"):
        grid_bound("lstm")


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [("hidden", "64", "int"), ("hidden", 8.0, "int"), ("layers", True, "int"), ("feedback", "no", "bool")],
)
def test_options_of_another_type_are_refused(option, value, wanted):
    # A text is true, and true is 1: without a check these would build another network than the one that was meant.
    with pytest.raises(ValueError, match=f"option {option} of model 'convlstm' must be {wanted}, got {value!r}"):
        build_model("convlstm", **{option: value})


def test_errors_list_what_is_known():
    with pytest.raises(ValueError, match=r"unknown model 'lstm'; known models: convlstm, ls_ntp"):
        build_model("lstm")
    options = (
        "height, width, channels, forcings, hidden, layers, kernel, embedding, feedback, one_pass, patch, periodic"
    )
    with pytest.raises(ValueError, match=rf"model 'ls_ntp' has no option depth, gates; its options: {options}"):
        build_model("ls_ntp", gates=4, depth=1, **SIZE)
    with pytest.raises(ValueError, match="model 'convlstm' has no option embedding"):
        build_model("convlstm", embedding=4, **SIZE)
    with pytest.raises(ValueError, match=r"model 'ls_ntp' needs height, width$"):
        build_model("ls_ntp", hidden=3)
    with pytest.raises(ValueError, match=r"model 'ls_ntp' needs height$"):
        build_model("ls_ntp", width=3)
