"""What an LS-NTP costs: a training step against a plain one, and the streamed adjacency on large grids.

    python benchmarks/ls_ntp.py [--threads 2] [--rounds 6] [--device cpu] [--out benchmarks/results/ls_ntp.md]

Plain: the paper's network in float32, written straight down, with the adjacency built anew in every cell and a decoder that
eats zeros, as in the authors' code. Ours: the same network with the same weights (``variant="paper"``), and the default one,
both under bfloat16 autocast and with a fused optimiser, as the training runs them. A step is forward, mean squared error,
backward and Adam, from 6 frames to 6, batch 8, embedding 512; two of each kind in turn, the best of ``--rounds`` turns. Before
it, both forecast in float32 and must agree to 1e-4.

Streamed: one product with (I + A), forward and backward with gradients for the field and the vectors of the nodes, 32
channels, embedding 128, float32; the best of two. Sparse: the same with the 32 strongest links of each node, without the
choice of them. Dense: bytes of one copy of A.

Memory: peak of a process of its own above what it holds when network and data are there.

With ``--device cuda``: ours compiled (``torch.compile``), the paper's two settings, up to the 1,038,240 nodes of 0.25 degrees;
memory is what torch has allocated there. The share of the peak counts 4 D + 3 M multiplications and additions for a pair, D
channels of a vector and M of the fields (scores and product; on the way back scores, dX, ds, dE and dF), fewer than are done,
against ``--peak`` TFLOP/s. Fields are bfloat16 there, and scores in TensorFloat-32.
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
from typing import Any, NamedTuple, TypeVar

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from climapred.models import build_model
from climapred.models.adjacency import LearnedAdjacency, mix

Found = TypeVar("Found")
BATCH, FRAMES, EMBEDDING, CHANNELS, DEPTH = 8, 6, 512, 32, 128
KINDS = {"plain": "plain", "paper": "ours, paper", "climapred": "ours, climapred"}
NCEP, ERA5 = "21 x 35, hidden 256 (paper, NCEP)", "77 x 125, hidden 128, downsampled (paper, ERA5)"
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "cpu": {
        NCEP: {"height": 21, "width": 35, "hidden": 256},
        "25 x 53, hidden 64": {"height": 25, "width": 53, "hidden": 64},
    },
    "cuda": {
        NCEP: {"height": 21, "width": 35, "hidden": 256},
        ERA5: {"height": 77, "width": 125, "hidden": 128, "downsample": True},
    },
}
GRIDS = {"cpu": [(60, 121), (120, 121), (120, 242)], "cuda": [(120, 242), (181, 360), (361, 720), (721, 1440)]}


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
        encoder = self.network.encoder
        reduce, cells = getattr(encoder, "reduce", nn.Identity()), getattr(encoder, "cell", encoder)
        states, inputs = [], [reduce(x) for x in frames.unbind(1)]
        zeros = frames.new_zeros(len(frames), encoder.hidden, *inputs[0].shape[-2:])
        for cell in cells:
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


def seconds(work: Callable[[], object], rounds: int, device: str) -> float:
    """Return the best time of ``work``."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times)


def measured(work: Callable[[], object], rounds: int, device: str) -> Measured:
    """Return the best time of ``work``, and how far memory rose above what is there now."""
    on_gpu = device == "cuda"
    if on_gpu:
        work()  # compiles
        torch.cuda.reset_peak_memory_stats()
    start = torch.cuda.memory_allocated() if on_gpu else psutil.Process().memory_info().rss
    best = seconds(work, rounds, device)
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Measured(best, (peak - start) / 2**20)


def step_of(kind: str, sizes: dict[str, Any], device: str) -> Callable[[], None]:
    """Return a training step of "plain", "paper" or "climapred"."""
    torch.manual_seed(0)
    variant = "climapred" if kind == "climapred" else "paper"
    network: nn.Module = build_model("ls_ntp", variant=variant, embedding=EMBEDDING, **sizes).to(device)
    forecast: Callable[..., Tensor] = network
    if kind == "plain":
        forecast = Plain(network)
    elif device == "cuda":
        forecast = torch.compile(network)
    optimizer = torch.optim.Adam(network.parameters(), fused=kind != "plain")
    frames, truth = torch.randn(2, BATCH, FRAMES, 1, sizes["height"], sizes["width"], device=device).unbind()

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=kind != "plain"):
            forecasts = forecast(frames, FRAMES)
        loss = (forecasts.float() - truth).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def training_step(kind: str, sizes: dict[str, Any], device: str) -> Measured:
    return measured(step_of(kind, sizes, device), 2, device)


def steps_in_turns(sizes: dict[str, Any], device: str, rounds: int) -> dict[str, float]:
    """Return the best time of a step of each kind: two at a time, then two of the next one."""
    steps = {kind: step_of(kind, sizes, device) for kind in KINDS}
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind, step in steps.items():
            times[kind].append(seconds(step, 2, device))
            print(kind, f"{times[kind][-1]:.3f} s", flush=True)
    return {kind: min(found) for kind, found in times.items()}


def product(form: str, grid: tuple[int, int], device: str) -> Measured:
    """Measure one product, forward and backward."""
    torch.manual_seed(0)
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    adjacency = LearnedAdjacency(grid, DEPTH, form=form).to(device)
    if form == "sparse":
        adjacency()  # the choice of links, which is made once in 50 passes
    x = torch.randn(1, CHANNELS, *grid, requires_grad=True, device=device)

    def work() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            heard = mix(x, adjacency())
        heard.float().square().sum().backward()

    return measured(work, 2, device)


def check(sizes: dict[str, Any], device: str) -> None:
    """Refuse to compare what does not compute the same."""
    torch.manual_seed(0)
    network = build_model("ls_ntp", variant="paper", embedding=EMBEDDING, **sizes).to(device)
    frames = torch.randn(1, FRAMES, 1, sizes["height"], sizes["width"], device=device)
    with torch.no_grad():
        torch.testing.assert_close(network(frames, FRAMES), Plain(network)(frames, FRAMES), rtol=1e-4, atol=1e-4)


def alone(function: Callable[..., Found], *arguments: object) -> Found:
    """Return what ``function`` returns in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        1, context, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
    ) as pool:
        found = pool.submit(function, *arguments).result()
    print(function.__name__, *arguments, found, flush=True)
    return found


def steps_table(device: str, rounds: int) -> list[str]:
    lines = ["| training step | | s | times faster | memory, MiB | of plain |", "| :-- | :-- | --: | --: | --: | --: |"]
    for name, sizes in SETTINGS[device].items():
        check(sizes, device)
        memory = {kind: alone(training_step, kind, sizes, device).memory for kind in KINDS}
        best = alone(steps_in_turns, sizes, device, rounds)  # what this process took, the next ones would seem to
        for kind, found in best.items():
            times, share = best["plain"] / found, memory[kind] / memory["plain"]
            lines.append(f"| {name} | {KINDS[kind]} | {found:.3g} | {times:.1f} | {memory[kind]:,.0f} | {share:.0%} |")
    return lines


def streamed_table(device: str, peak: float) -> list[str]:
    on_gpu = device == "cuda"
    lines = [
        "| streamed, nodes | s | ns per pair | memory, MiB | sparse, s | one copy of A, MiB |"
        + " share of the peak |" * on_gpu,
        "| --: | --: | --: | --: | --: | --: |" + " --: |" * on_gpu,
    ]
    for grid in GRIDS[device]:
        pairs = (grid[0] * grid[1]) ** 2
        found, sparse = (alone(product, form, grid, device) for form in ("streamed", "sparse"))
        streamed = f"{found.seconds:.3g} | {found.seconds / pairs * 1e9:.3g} | {found.memory:,.0f}"
        line = f"| {grid[0] * grid[1]:,} | {streamed} | {sparse.seconds:.3g} | {pairs * 4 / 2**20:,.0f} |"
        share = pairs * 2 * (4 * DEPTH + 3 * CHANNELS) / found.seconds / (peak * 1e12)
        lines.append(line + f" {share:.1%} |" * on_gpu)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ls_ntp.md")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--device", choices=SETTINGS, default="cpu")
    parser.add_argument("--peak", type=float, default=989, help="TFLOP/s of the GPU in bfloat16 (an H100's or H200's)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    where = (
        torch.cuda.get_device_name()
        if options.device == "cuda"
        else f"{options.threads} threads on {platform.machine()}"
    )
    versions = f"{where}; torch {torch.__version__}."
    tables = "\n".join(
        [*steps_table(options.device, options.rounds), "", *streamed_table(options.device, options.peak)]
    )
    text = f"# LS-NTP\n\n{__doc__.strip()}\n\n{versions}\n\n{tables}\n"
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
