"""The time loop once more, frame by frame, for transcriptions of papers' equations."""

import torch
import torch.nn.functional as F

CHANNELS, FORCINGS, HIDDEN, HISTORY, SHAPE = 2, 1, 3, 2, (5, 6)  # of the networks that share what follows


def make_network(model, **options):
    """A small float64 network in which every parameter, that of the readout too, has a part in the result."""
    torch.manual_seed(0)
    sizes = {"channels": CHANNELS, "forcings": FORCINGS, "hidden": HIDDEN, "layers": 3, "kernel": 3}
    network = model(**(sizes | options)).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return network


def make_frames(times=HISTORY, *, channels=CHANNELS + FORCINGS, seed=1):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(2, times, channels, *SHAPE, dtype=torch.float64, generator=random)


def gate(convolution, number, *operands):
    """Pre-activation of gate ``number``: one convolution for each operand, whose weights lie side by side."""
    rows, total = slice(number * HIDDEN, (number + 1) * HIDDEN), 0
    operands = [operand for operand in operands if operand is not None]
    kernels = convolution.weight[rows].split([operand.shape[1] for operand in operands], dim=1)
    for kernel, operand in zip(kernels, operands, strict=True):
        total = total + F.conv2d(operand, kernel, padding=kernel.shape[-1] // 2)
    return total if convolution.bias is None else total + convolution.bias[rows].view(-1, 1, 1)


def normed(gates, norm):
    """Layer norm, sample by sample: what is left of the mean over all gates and points in units of the spread, then w g + b."""
    samples = []
    for sample in gates:
        rest = sample - sample.mean()
        samples.append(rest / (rest.square().mean() + norm.eps) ** 0.5)
    shape = (-1, *[1] * (gates.ndim - 2))
    return norm.weight.view(shape) * torch.stack(samples) + norm.bias.view(shape)


def unrolled(network, frames, steps, future, step, *, cells=lambda cell: cell):
    """The forecast of a network with a 1 x 1 readout, whose cells ``step(cells, x)`` stands for.

    Frames are eaten by the encoder, then by the forecaster or by the encoder again: the last frame, then own forecasts, with
    the forcings of ``future``; by one that does not feed back, nothing.
    """
    own, outputs, readout = None, [], network.readout
    layers, inputs = cells(network.encoder), list(frames.unbind(1))
    if network.forecaster is not None:
        for x in inputs:
            step(layers, x)
        layers, inputs = cells(network.forecaster), inputs[-1:]
    for time in range(len(inputs) - 1 + steps):
        seen = time < len(inputs)
        x = inputs[time] if seen else torch.cat([own, future[:, time - len(inputs), network.channels :]], dim=1)
        own = F.conv2d(step(layers, x if network.feeds_back else None), readout.weight, readout.bias)
        outputs.append(own)
    return torch.stack(outputs[-steps:], dim=1)
