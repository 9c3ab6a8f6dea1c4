"""What training minimises, and what the network is fed meanwhile: losses, and schedules over steps and epochs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

Loss = Literal["mse", "mae", "mse+mae"]
Sampling = Literal["none", "scheduled", "reverse"]


def mean_loss(error: Tensor, kind: Loss, *, weights: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Return the mean loss of an error ``(B, S, C, H, W)``, a scalar.

    Args:
        error: forecast - truth in units of the training scale, so that variables weigh the same.
        kind: "mse": squared error; "mae": absolute error; "mse+mae": their sum, L1 + L2 (Wang et al. 2017, PredRNN).
        weights: ``(H, W)`` or ``(H, 1)``, the area of each cell; None where all cells weigh the same.
        mask: bool, shape of ``error``: which values count. Others may be NaN; they add nothing, nor to the gradient. The
            loss is 0 where none counts.
    """
    if mask is not None:
        error = torch.where(mask, error, 0.0)
    loss = error.abs() if kind == "mae" else error.square()
    if kind == "mse+mae":
        loss = loss + error.abs()
    if weights is None and mask is None:
        return loss.mean()
    weights = torch.ones_like(loss[0, 0, 0]) if weights is None else weights.expand_as(loss[0, 0, 0])
    counted = weights.expand_as(loss) if mask is None else weights * mask
    return (loss * weights).sum() / counted.sum().clamp_min(torch.finfo(counted.dtype).tiny)


@dataclass(frozen=True)
class Feeding:
    """What a network that feeds back is fed in training: the true frame, or its own forecast of it.

    Attributes:
        kind: "scheduled": of the leads, the truth with a probability that falls from 1 to 0 (Bengio et al. 2015,
            arXiv:1506.03099, linear decay). "reverse": the other way round while it reads (PredRNN-V2, Wang et al. 2022,
            arXiv:2103.09504, section 3.4): its own forecast of half of the frames at first, all frames true in the end;
            and of the leads the truth of half at first, none in the end. "none": frames true, leads its own.
        end: share of all steps after which nothing is left to chance. Reverse sampling keeps a half until half of
            that, then approaches 1 exponentially for frames (to within e^-5) and falls linearly for leads.
    """

    kind: Sampling = "none"
    end: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in get_args(Sampling):
            raise ValueError(f"sampling must be one of {', '.join(get_args(Sampling))}, got {self.kind!r}")
        if not 0 < self.end <= 1:
            raise ValueError(f"sampling_end is a share of the steps, above 0 and up to 1, got {self.end}")

    def chances(self, progress: float) -> tuple[float, float]:
        """Return the probabilities of the truth, of a frame and of a lead, after a share ``progress`` of all steps.

        >>> Feeding("scheduled", end=0.5).chances(0.25)
        (1.0, 0.5)
        """
        done = progress / self.end
        if self.kind == "none" or done >= 1:
            return 1.0, 0.0
        if self.kind == "scheduled":
            return 1.0, 1 - done
        late = max(0.0, 2 * done - 1)
        return 1 - 0.5 * float(np.exp(-5 * late)), 0.5 * (1 - late)

    def use_truth(self, windows: int, seen: int, leads: int, progress: float, seed: tuple[int, ...]) -> Tensor | None:
        """Return ``use_truth`` ``(B, T + S - 1)`` of ``models.recurrent.EncoderForecaster``, drawn for each window, or None."""
        frames, ahead = self.chances(progress)
        if (frames, ahead) == (1.0, 0.0):
            return None
        chance = np.repeat([frames, ahead], [seen, leads - 1])
        chance[0] = 1.0  # nothing forecasts the first frame
        return torch.from_numpy(np.random.default_rng(seed).random((windows, len(chance))) < chance)


def leads_in_epoch(horizon: int, epoch: int, curriculum: int) -> int:
    """Return how many leads epoch ``epoch`` trains: 1 in the first, all from epoch ``curriculum`` on, in even steps.

    >>> [leads_in_epoch(6, epoch, curriculum=3) for epoch in range(5)]
    [1, 3, 4, 6, 6]
    """
    if epoch >= curriculum:
        return horizon
    return 1 + round((horizon - 1) * epoch / curriculum)
