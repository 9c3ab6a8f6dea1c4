"""Kelvin in, kelvin out: what a network sees and predicts, as a wrapper round a network that knows neither."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Inputs = Literal["anomaly", "standard", "minmax"]
Target = Literal["change", "value"]


class Scaled(nn.Module):
    """A network between physical fields.

    What it sees, x = (field - reference) / scale:
        "anomaly"   reference: the training climatology at the time of the frame; scale: standard deviation of the anomalies
        "standard"  reference: training mean;    scale: training standard deviation
        "minmax"    reference: training minimum; scale: training maximum - minimum (LS-NTP's own choice)
    What it predicts, for each lead:
        "change"    x(lead) - x(last frame): an untrained network is then anomaly persistence
        "value"     x(lead)

    Args:
        network: ``network(x (B, T, C, H, W), steps) -> (B, steps, C, H, W)``.
        reference: (F, C, H, W) harmonic coefficients of the climatology, or (1, C, 1, 1) for a constant.
        scale: (C,), in the units of the fields.
        target: see above.
    """

    reference: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, *, reference: Tensor, scale: Tensor, target: Target = "change") -> None:
        super().__init__()
        if not (scale > 0).all():
            raise ValueError(f"scale must be positive in every channel, got {scale.tolist()}; is a field constant?")
        self.network, self.target = network, target
        self.register_buffer("reference", reference.float())
        self.register_buffer("scale", scale.float()[:, None, None])

    def forward(self, fields: Tensor, calendar: Tensor) -> Tensor:
        """Return the forecast ``(B, S, C, H, W)``.

        Args:
            fields: ``(B, T, C, H, W)``, physical units.
            calendar: ``(B, T + S, F)``, the harmonics of the times of the T frames and the S leads
                (``climapred.calendar.harmonic_design``); F = 1 (ones) for a constant reference.
        """
        frames = fields.shape[1]
        with torch.autocast(fields.device.type, enabled=False):  # kelvin do not fit into bfloat16
            reference = torch.einsum("btf,fchw->btchw", calendar, self.reference)
            seen = (fields - reference[:, :frames]) / self.scale
        steps = calendar.shape[1] - frames
        predicted = self.network(seen, steps)
        with torch.autocast(fields.device.type, enabled=False):
            predicted = predicted.float()
            if self.target == "change":
                predicted = predicted + seen[:, -1:]
            return predicted * self.scale + reference[:, frames:]
