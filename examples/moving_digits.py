"""Moving digits: FC-LSTM, ConvLSTM and PredRNN on the benchmark of their papers, with one short budget, on a processor.

    python examples/moving_digits.py [--steps 600] [--threads 2] [--out benchmarks/results/moving_digits.md]

Two handwritten digits cross a field of 64 x 64 pixels in straight lines and bounce off its edges; ten frames are seen, ten are
forecast (Srivastava et al. 2015, arXiv:1502.04681). The digits are the 8 x 8 images that scikit-learn brings along, smoothly
upscaled: figures compare with each other, not with those of papers, which train a hundred times longer on MNIST's digits.
Errors are sums over the pixels of a frame, as in the papers; test sequences show digits that training has not seen.

All three are compared in one form, as in Table 1 of PredRNN (Wang et al. 2017): a stack of two layers reads the frames, goes on
with its own forecasts, and learns from every frame but the first, those that it reads included. Layer norm of the gates,
optimiser, batches and steps are the same; the highest learning rate is the better of two tried for each.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from climapred.models import Network, build_model

SIZE, SEEN, AHEAD, BATCH = 64, 10, 10, 8
NETWORKS = {  # name: options, and the highest learning rate; from weaker to stronger, say the papers
    "fc_lstm": ({"hidden": 256, "height": SIZE, "width": SIZE}, 3e-3),
    "convlstm": ({"hidden": 32, "kernel": 3, "patch": 4}, 6e-3),
    "predrnn": ({"hidden": 32, "kernel": 3, "patch": 4}, 6e-3),
}
FORM = {"one_pass": True, "norm": True}


def digits(side: int = 22) -> tuple[Tensor, Tensor]:
    """Return images (N, side, side) from 0 to 1, for training and for the test."""
    images = torch.from_numpy(load_digits().images).float()[:, None] / 16
    images = F.interpolate(images, size=(side, side), mode="bicubic").clamp(0, 1)[:, 0]
    return images[:1500], images[1500:]


def moving(images: Tensor, seed: int, batch: int = BATCH, count: int = 2) -> Iterator[Tensor]:
    """Yield batches (B, T, 1, 64, 64) of ``count`` digits each, without end and the same for a seed."""
    generator = torch.Generator().manual_seed(seed)
    side, times = images.shape[-1], torch.arange(SEEN + AHEAD)
    span = SIZE - side
    while True:
        start = span * torch.rand(batch, count, 2, generator=generator)
        angle = 2 * torch.pi * torch.rand(batch, count, generator=generator)
        pace = 3.6 * torch.stack([angle.cos(), angle.sin()], dim=-1)
        # Without edges a digit would go straight on; folding that line back and forth into 0 ... span lets it bounce.
        places = start[:, None] + pace[:, None] * times[None, :, None, None]
        places = (span - (places.remainder(2 * span) - span).abs()).round().long()
        rows, columns = F.one_hot(places.unsqueeze(-1) + torch.arange(side), SIZE).float().unbind(-3)
        chosen = images[torch.randint(len(images), (batch, 1, count), generator=generator)]
        yield (rows.mT @ chosen @ columns).amax(dim=2, keepdim=True)


def train(network: Network, images: Tensor, *, steps: int, rate: float) -> None:
    """Fit ``network`` in bfloat16 with AdamW, a learning rate that rises and falls, and clipped gradients."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.2)
    for _, frames in zip(range(steps), moving(images, seed=0), strict=False):
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.mse_loss(network(frames[:, :SEEN], AHEAD, whole=True).float(), frames[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def errors(network: Network, images: Tensor, batches: int) -> tuple[float, float]:
    """Return the mean squared and the mean absolute error of test sequences, both summed over the pixels of a frame."""
    found = []
    for _, frames in zip(range(batches), moving(images, seed=1), strict=False):
        with torch.autocast("cpu", torch.bfloat16):
            error = network(frames[:, :SEEN], AHEAD).float().clamp(0, 1) - frames[:, SEEN:]
        found.append(torch.stack([error.square().sum((-1, -2)).mean(), error.abs().sum((-1, -2)).mean()]))
    squared, absolute = torch.stack(found).mean(0).tolist()
    return squared, absolute


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help="steps of training of each network, of 8 sequences")
    parser.add_argument("--test", type=int, default=64, help="test batches, of 8 sequences")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write the table there too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    training_images, test_images = digits()
    lines = [
        "| network | MSE per frame | MAE per frame | parameters | training, processor s |",
        "| :-- | --: | --: | --: | --: |",
    ]
    squares = []
    for name, (sizes, rate) in NETWORKS.items():
        torch.manual_seed(0)
        network = build_model(name, **FORM, **sizes)
        began = time.process_time()
        train(network, training_images, steps=options.steps, rate=rate)
        took = time.process_time() - began
        squared, absolute = errors(network.eval(), test_images, options.test)
        squares.append(squared)
        parameters = sum(weight.numel() for weight in network.parameters())
        lines.append(f"| {name} | {squared:.1f} | {absolute:.1f} | {parameters:,} | {took:.0f} |")
        print(lines[-1], flush=True)
    order = "as in the papers" if squares == sorted(squares, reverse=True) else "NOT as in the papers"
    table = "\n".join(lines) + f"\n\nThe order is {order}."
    text = f"# Moving digits\n\n{__doc__.strip()}\n\n{options.steps} steps of {BATCH} sequences each, one seed.\n\n{table}\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
