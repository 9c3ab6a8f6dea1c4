"""What an LS-NTP costs: a training step against a plain one, and the streamed adjacency on large grids.

    python benchmarks/ls_ntp.py [--threads 2] [--out benchmarks/results/ls_ntp.md]

Plain: the paper's network in float32, written straight down, with the adjacency built anew in every cell and a decoder that
eats zeros, as in the authors' code. Ours: the same network with the same weights (``variant="paper"``), and the default one,
both under bfloat16 autocast as the training runs them. A step is forward, mean squared error, backward and Adam, from 6
frames to 6, batch 8, embedding 512; the best of three. Before it, both forecast in float32 and must agree to 1e-4.

Streamed: one product with (I + A), forward and backward with gradients for the field and the vectors of the nodes, 32
channels, embedding 128, float32; the best of two. Sparse: the same with the 32 strongest links of each node, without the
choice of them. Dense: bytes of one copy of A.

Memory: peak of the process above what it holds when network and data are there. Every number is from a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from climapred.models import build_model
from climapred.models.adjacency import LearnedAdjacency, mix

BATCH, FRAMES, EMBEDDING, CHANNELS = 8, 6, 512, 32
SETTINGS = {"21 x 35, hidden 256 (paper, NCEP)": (21, 35, 256), "25 x 53, hidden 64": (25, 53, 64)}
NODES = {7_260: (60, 121), 14_520: (120, 121), 29_040: (120, 242)}


class Measured(NamedTuple):
    """Seconds, and MiB above the start."""

    seconds: float
    memory: float


class Plain(nn.Module):
    """The paper's network on the weights of ours, as its equations stand."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def step(self, cell: nn.Module, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        hidden, memory = state
        together = torch.cat([x, hidden], dim=1)
        together = together * torch.sigmoid(cell.attention.score(together))
        batch, channels, height, width = together.shape
        embedding = self.network.shared.embedding
        support = torch.softmax(F.relu(embedding @ embedding.T), dim=1)
        support = torch.eye(len(embedding)) + support
        nodes = together.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        mixed = torch.einsum("nm,bmc->bnc", support, nodes).permute(0, 2, 1).reshape(together.shape)
        a_i, a_f, a_c, a_o = F.relu(F.conv2d(mixed, cell.gates.weight, padding=1)).chunk(4, dim=1)
        w_i, w_f, w_o = cell.peepholes.weight
        i, f = torch.sigmoid(a_i + memory * w_i), torch.sigmoid(a_f + memory * w_f)
        memory = f * memory + i * torch.tanh(a_c)
        return torch.sigmoid(a_o + memory * w_o) * torch.tanh(memory), memory

    def forward(self, frames: Tensor, steps: int) -> Tensor:
        batch, _, _, height, width = frames.shape
        zeros = frames.new_zeros(batch, self.network.encoder.hidden, height, width)
        states, inputs = [], list(frames.unbind(1))
        for cell in self.network.encoder:
            state, outputs = (zeros, zeros), []
            for x in inputs:
                state = self.step(cell, x, state)
                outputs.append(state[0])
            states.append(state)
            inputs = outputs
        inputs = [zeros] * steps
        for cell, state in zip(self.network.forecaster, states, strict=True):
            outputs = []
            for x in inputs:
                state = self.step(cell, x, state)
                outputs.append(state[0])
            inputs = outputs
        return torch.stack([self.network.readout(x) for x in inputs], dim=1)


def measured(work: Callable[[], object], rounds: int) -> Measured:
    """Return the best time of ``work``, and how far memory rose above what is there now."""
    start, times = psutil.Process().memory_info().rss, []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return Measured(min(times), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - start) / 2**20)


def training_step(kind: str, height: int, width: int, hidden: int) -> Measured:
    """Measure steps of "plain", "paper" or "climapred"."""
    torch.manual_seed(0)
    variant = "climapred" if kind == "climapred" else "paper"
    sizes = {"height": height, "width": width, "hidden": hidden, "embedding": EMBEDDING}
    network: nn.Module = build_model("ls_ntp", variant=variant, **sizes)
    if kind == "plain":
        network = Plain(network)
    optimizer = torch.optim.Adam(network.parameters())
    frames, truth = torch.randn(2, BATCH, FRAMES, 1, height, width).unbind()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=kind != "plain"):
            forecast = network(frames, FRAMES)
        loss = (forecast.float() - truth).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return measured(step, 3)


def product(form: str, height: int, width: int) -> Measured:
    """Measure one product, forward and backward."""
    torch.manual_seed(0)
    adjacency = LearnedAdjacency(height * width, 128, form=form)
    if form == "sparse":
        adjacency()  # the choice of links, which is made once in 50 passes
    x = torch.randn(1, CHANNELS, height, width, requires_grad=True)
    return measured(lambda: mix(x, adjacency()).square().sum().backward(), 2)


def check(height: int, width: int, hidden: int) -> None:
    """Refuse to compare what does not compute the same."""
    torch.manual_seed(0)
    network = build_model("ls_ntp", variant="paper", height=height, width=width, hidden=hidden, embedding=EMBEDDING)
    frames = torch.randn(1, FRAMES, 1, height, width)
    with torch.no_grad():
        torch.testing.assert_close(network(frames, FRAMES), Plain(network)(frames, FRAMES), rtol=1e-4, atol=1e-4)


def alone(function: Callable[..., Measured], *arguments: object) -> Measured:
    """Return what ``function`` returns in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        1, context, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
    ) as pool:
        found = pool.submit(function, *arguments).result()
    print(function.__name__, *arguments, found, flush=True)
    return found


def steps_table() -> list[str]:
    lines = ["| training step | | s | times faster | memory, MiB | of plain |", "| :-- | :-- | --: | --: | --: | --: |"]
    for name, sizes in SETTINGS.items():
        check(*sizes)
        plain = alone(training_step, "plain", *sizes)
        lines.append(f"| {name} | plain | {plain.seconds:.2f} | 1.0 | {plain.memory:,.0f} | 100% |")
        for kind in ("paper", "climapred"):
            ours = alone(training_step, kind, *sizes)
            ratios = f"{plain.seconds / ours.seconds:.1f} | {ours.memory:,.0f} | {ours.memory / plain.memory:.0%}"
            lines.append(f"| | ours, {kind} | {ours.seconds:.2f} | {ratios} |")
    return lines


def streamed_table() -> list[str]:
    lines = [
        "| streamed, nodes | s | ns per pair | memory, MiB | sparse, s | one copy of A, MiB |",
        "| --: | --: | --: | --: | --: | --: |",
    ]
    for nodes, grid in NODES.items():
        found, sparse = (alone(product, form, *grid) for form in ("streamed", "sparse"))
        per_pair, dense = found.seconds / nodes**2 * 1e9, nodes**2 * 4 / 2**20
        streamed = f"{found.seconds:.2f} | {per_pair:.1f} | {found.memory:,.0f}"
        lines.append(f"| {nodes:,} | {streamed} | {sparse.seconds:.2f} | {dense:,.0f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ls_ntp.md")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    versions = f"{options.threads} threads on {platform.machine()}; torch {torch.__version__}."
    tables = "\n".join([*steps_table(), "", *streamed_table()])
    text = f"# LS-NTP\n\n{__doc__.strip()}\n\n{versions}\n\n{tables}\n"
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
