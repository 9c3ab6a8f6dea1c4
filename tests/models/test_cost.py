"""Costs against arithmetic by hand, and against what a forecast that is really computed calls."""

import pytest
import torch

from climapred.models import MODELS, build_model
from climapred.models.cost import cost, paper

SIZES = {"height": 5, "width": 6, "history": 3, "horizon": 2}


def test_a_convlstm_by_hand():
    # Encoder: 3 steps of 2 layers, gates from (1 + 4) and (4 + 4) channels; forecaster: 2 steps, from 4 and 4 + 4.
    taps, points = 9 * 4 * 4, 30
    encoder, forecaster, readout = 3 * taps * (5 + 8), 2 * taps * (4 + 8), 2 * 9 * 4
    found = cost("convlstm", hidden=4, **SIZES)
    assert found.multiply_adds == points * (encoder + forecaster + readout)
    weights = taps * (5 + 8 + 4 + 8) + 4 * (16 + 12) + 9 * 4 + 1
    assert found.parameters == weights


def test_attention_counts():
    # Query and two sets of keys and values: scores and sums are N x N x hidden each, beside 1 x 1 convolutions.
    with_memory, without = (cost(name, hidden=4, layers=1, kernel=1, **SIZES) for name in ("sa_convlstm", "convlstm"))
    attention = 2 * 2 * 30 * 30 * 4 * (3 + 2)
    assert with_memory.multiply_adds - without.multiply_adds > attention


def test_patches_and_forcings_count():
    plain, patched = (cost("convlstm", hidden=8, height=8, width=8, history=3, horizon=2, patch=p) for p in (1, 4))
    assert patched.multiply_adds < plain.multiply_adds / 6
    assert cost("predrnn", hidden=4, forcings=2, **SIZES).parameters > cost("predrnn", hidden=4, **SIZES).parameters


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_network_and_nothing_is_left_fake(name):
    found = cost(name, **SIZES)
    network = build_model(name, **SIZES)
    assert found.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert found.multiply_adds > 0
    assert type(torch.zeros(1)) is torch.Tensor


@pytest.mark.parametrize("name", MODELS)
def test_every_model_names_its_paper(name):
    text = paper(name)
    assert text.endswith(".")
    assert any(str(year) in text for year in range(2014, 2024)), text
    assert ":" in text
    assert len(text) < 130


def test_options_are_checked():
    with pytest.raises(ValueError, match="model 'convlstm' has no option depth"):
        cost("convlstm", depth=3, **SIZES)
