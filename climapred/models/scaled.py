"""Kelvin in, kelvin out: what a network sees and predicts, as a wrapper round a network that knows neither."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Inputs = Literal["anomaly", "standard", "minmax"]
Target = Literal["change", "value"]
Missing = Literal["refuse", "mask"]


class Scaled(nn.Module):
    """A network between physical fields.

    What it sees, x = (field - reference) / scale:
        "anomaly"   reference: the training climatology at the time of the frame; scale: standard deviation of the anomalies
        "standard"  reference: training mean;    scale: training standard deviation
        "minmax"    reference: training minimum; scale: training maximum - minimum (LS-NTP's own choice)
    What it predicts, for each lead:
        "change"    x(lead) - x(last frame): an untrained network is then anomaly persistence
        "value"     x(lead)

    Forcing channels come after the C variables and pass as they are.

    Args:
        network: ``network(x (B, T, C + K, H, W), steps, change=, future=, use_truth=) -> (B, steps, C, H, W)``; see
            ``models.recurrent.EncoderForecaster``.
        reference: (F, C, H, W) harmonic coefficients of the climatology, or (1, C, 1, 1) for a constant.
        scale: (C,), in the units of the fields.
        target: see above.
        missing: "mask" lets the network see the reference where a field is NaN; else NaN spreads.
    """

    reference: Tensor
    scale: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        reference: Tensor,
        scale: Tensor,
        target: Target = "change",
        missing: Missing = "refuse",
    ) -> None:
        super().__init__()
        if not (scale > 0).all():
            raise ValueError(f"scale must be positive in every channel, got {scale.tolist()}; is a field constant?")
        self.network, self.target, self.missing = network, target, missing
        self.register_buffer("reference", reference.float())
        self.register_buffer("scale", scale.float()[:, None, None])

    def forward(
        self,
        fields: Tensor,
        calendar: Tensor,
        *,
        future: Tensor | None = None,
        use_truth: Tensor | None = None,
        whole: bool = False,
    ) -> Tensor:
        """Return the forecast ``(B, S, C, H, W)``.

        Args:
            fields: ``(B, T, C + K, H, W)``, physical units.
            calendar: ``(B, T + S, F)``, the harmonics of the times of the T frames and the S leads
                (``climapred.calendar.harmonic_design``); F = 1 (ones) for a constant reference.
            future: ``(B, S, C + K, H, W)``, physical units, for a network that eats forcings or the truth of the leads.
            use_truth: ``(B, T + S - 1)``; see ``models.recurrent.EncoderForecaster``.
            whole: return forecasts of the frames that are seen, too, ``(B, T - 1 + S, C, H, W)``; of one-pass networks.
        """
        frames = fields.shape[1]
        with torch.autocast(fields.device.type, enabled=False):  # kelvin do not fit into bfloat16
            reference = torch.einsum("btf,fchw->btchw", calendar, self.reference)
            seen = self._scaled(fields, reference[:, :frames])
            ahead = None if future is None else self._scaled(future, reference[:, frames:])
        steps = calendar.shape[1] - frames
        options = {"whole": True} if whole else {}  # other networks know no such option
        predicted = self.network(
            seen, steps, change=self.target == "change", future=ahead, use_truth=use_truth, **options
        )
        with torch.autocast(fields.device.type, enabled=False):
            return predicted.float() * self.scale + reference[:, -predicted.shape[1] :]

    def _scaled(self, fields: Tensor, reference: Tensor) -> Tensor:
        channels = len(self.scale)
        variables, forcings = fields[:, :, :channels], fields[:, :, channels:]
        if variables.shape[:3] != reference.shape[:3]:
            raise ValueError(
                f"fields and future must have {channels} variables and together as many times as the calendar, got shape "
                f"{tuple(fields.shape)} for (batch, times, variables) {tuple(reference.shape[:3])}"
            )
        variables = (variables - reference) / self.scale
        if self.missing == "mask":
            variables = torch.where(variables.isnan(), 0.0, variables)
        return torch.cat([variables, forcings], dim=2) if forcings.shape[2] else variables
