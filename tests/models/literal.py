"""The time loop once more, frame by frame, for transcriptions of papers' equations."""

import torch
import torch.nn.functional as F


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
