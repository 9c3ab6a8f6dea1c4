"""What a network costs: parameters and multiply-adds, on tensors that have shapes only, so that nothing is computed."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from climapred.models import MODELS, build_model


class Cost(NamedTuple):
    """What a network costs.

    Attributes:
        parameters: numbers that are learned.
        multiply_adds: of one forecast from one window, those of convolutions, matrix products and attention; gates, norms
            and the sampling of deformed grids are not counted.
    """

    parameters: int
    multiply_adds: int


def cost(name: str, *, height: int, width: int, history: int, horizon: int, **options: Any) -> Cost:
    """Return what a forecast of ``horizon`` leads from ``history`` frames of ``height`` x ``width`` points costs.

    Args:
        options: as ``build_model`` takes them.

    Raises:
        ValueError: as ``build_model`` does.

    >>> cost("convlstm", height=10, width=20, history=1, horizon=1, hidden=8, layers=1, kernel=1)
    Cost(parameters=665, multiply_adds=110400)
    """
    sizes = {"height": height, "width": width, "history": history, "horizon": horizon}
    products_only = sdpa_kernel(SDPBackend.MATH)  # the counter does not know attention on CPUs
    with FakeTensorMode(), torch.no_grad(), products_only, FlopCounterMode(display=False) as counter:
        network = build_model(name, **sizes, **options)
        channels = network.channels + network.forcings
        frames, future = (torch.empty(1, times, channels, height, width) for times in (history, horizon))
        network(frames, horizon, future=future if network.feeds_back else None)
    return Cost(sum(parameter.numel() for parameter in network.parameters()), counter.get_total_flops() // 2)


def paper(name: str) -> str:
    """Return what a model is and where it comes from: the first line of its module.

    >>> paper("convlstm")
    'ConvLSTM: LSTM whose products with matrices are convolutions (Shi et al. 2015, arXiv:1506.04214).'
    """
    module = inspect.getmodule(MODELS[name])
    assert module is not None
    return str(module.__doc__).strip().split("\n\n")[0].replace("\n", " ")
