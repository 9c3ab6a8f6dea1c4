"""What the networks cost: three beside the plain form of their equations, then parameters, work, time and memory of all.

    python benchmarks/models.py [--out benchmarks/results/models.md]

Windows of 6 + 6 frames of 24 x 52 points, batches of 8, synthetic; a step is forward, loss, backward, clip and AdamW.

The plain form writes the equations down as public code does: float32, one convolution for each operand with the gates that it
feeds, every operation left to autograd. Its cells go into the same loop and take over the same weights; two layers of 64,
kernel 3. All forms take their steps in turns, and the median counts. "ratio" is plain in float32 over climapred in bfloat16;
"of it, form" is plain over climapred, both in bfloat16: what is left when the plain form is given bfloat16 too.

The third table says how far the losses are from those of the plain form in float32, as a share. Along the steps of training,
the largest difference: each form trains its own weights, so that rounding grows where a step overshoots, in either form. At
the same weights, those after the last step: one forecast, which shows rounding alone; bfloat16 keeps 8 bits, 0.4%.

All models have 32 channels in a layer (FC-LSTM: 512 units) and their defaults else, and each runs in a process of its own.
Multiply-adds are those of products and convolutions in one forecast of one window, half of what torch's FlopCounterMode
counts (not in it: bilinear reading beside points in TrajGRU and D-ConvLSTM). Memory is the peak above that before the model
was built: weights, gradients, the optimiser's moments, activations, and on a processor what the libraries load on first use.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from climapred.learning.training import Training, lightning_precision
from climapred.models import MODELS, build_model
from climapred.models.convlstm import ConvLSTMCell
from climapred.models.cost import cost
from climapred.models.predrnn import STLSTMCell
from climapred.models.predrnn_pp import CausalLSTMCell, GradientHighway

HISTORY, HORIZON, BATCH, HEIGHT, WIDTH, ROUNDS, STEPS, THREADS = 6, 6, 8, 24, 52, 6, 2, 2
SIZES = {"channels": 1, "height": HEIGHT, "width": WIDTH, "history": HISTORY, "horizon": HORIZON}
COMPARED = ("convlstm", "predrnn", "predrnn_pp")
HIDDEN = dict.fromkeys(MODELS, 32) | {"fc_lstm": 512}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BF16 = lightning_precision("auto") == "bf16-mixed"


def convolution(*weights: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """Return a convolution that keeps the grid and computes the gates of all ``weights``, from a copy of them."""
    weight = torch.cat(weights).detach().clone()
    made = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], padding="same", bias=bias is not None)
    made.weight = nn.Parameter(weight)
    made.bias = None if bias is None else nn.Parameter(bias.detach().clone())
    return made


class Plain(nn.Module):
    """A cell in the plain form; it starts from the zeros that ``ours`` starts from."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        self.inputs, self.hidden, self.initial_state = ours.inputs, ours.hidden, ours.initial_state


class PlainConvLSTM(Plain):
    def __init__(self, ours: ConvLSTMCell) -> None:
        super().__init__(ours)
        n = self.inputs
        self.of_x = convolution(ours.gates.weight[:, :n]) if n else None
        self.of_h = convolution(ours.gates.weight[:, n:], bias=ours.gates.bias)
        self.w_ci, self.w_cf, self.w_co = (nn.Parameter(weight.clone()) for weight in ours.peepholes.weight.detach())

    def forward(self, x: Tensor | None, state: Any, shared: Any = None) -> Any:
        h, c = state
        gates = self.of_h(h) if x is None else self.of_x(x) + self.of_h(h)
        a_i, a_f, a_c, a_o = gates.chunk(4, dim=1)
        i = torch.sigmoid(a_i + self.w_ci * c)
        f = torch.sigmoid(a_f + self.w_cf * c)
        c = f * c + i * torch.tanh(a_c)
        o = torch.sigmoid(a_o + self.w_co * c)
        h = o * torch.tanh(c)
        return h, (h, c)


class PlainSTLSTM(Plain):
    def __init__(self, ours: STLSTMCell) -> None:
        super().__init__(ours)
        n, temporal, spatial = self.inputs, ours.temporal, ours.spatial
        bias = torch.cat([temporal.bias, spatial.bias])
        self.of_x = convolution(temporal.weight[:, :n], spatial.weight[:, :n], bias=bias)
        self.of_h = convolution(temporal.weight[:, n:])
        self.of_m = convolution(spatial.weight[:, n:])
        self.of_both, self.last = convolution(ours.fusion.gate.weight), convolution(ours.fusion.value.weight)

    def forward(self, x: Tensor, state: Any, m: Tensor) -> Any:
        h, c = state
        x_i, x_f, x_g, x_o, x_i2, x_f2, x_g2 = self.of_x(x).chunk(7, dim=1)
        h_i, h_f, h_g, h_o = self.of_h(h).chunk(4, dim=1)
        m_i, m_f, m_g = self.of_m(m).chunk(3, dim=1)
        c = torch.sigmoid(x_f + h_f) * c + torch.sigmoid(x_i + h_i) * torch.tanh(x_g + h_g)
        m = torch.sigmoid(x_f2 + m_f) * m + torch.sigmoid(x_i2 + m_i) * torch.tanh(x_g2 + m_g)
        both = torch.cat([c, m], dim=1)
        h = torch.sigmoid(x_o + h_o + self.of_both(both)) * torch.tanh(self.last(both))
        return h, (h, c), m


class PlainCausalLSTM(Plain):
    def __init__(self, ours: CausalLSTMCell) -> None:
        super().__init__(ours)
        n, hidden = self.inputs, self.hidden
        first, second, output = (layer.weight for layer in (ours.temporal, ours.spatial, ours.output))
        x, middle, last = slice(0, n), slice(n, n + hidden), slice(n + hidden, None)
        bias = torch.cat([ours.temporal.bias, ours.spatial.bias, ours.output.bias])
        self.of_x = convolution(first[:, x], second[:, x], output[:, x], bias=bias)
        self.of_h, self.of_c = convolution(first[:, middle]), convolution(first[:, last])
        self.of_new_c = convolution(second[:, middle], output[:, middle])
        self.of_m, self.of_new_m = convolution(second[:, last]), convolution(output[:, last])
        self.carry, self.last = convolution(ours.carry.weight), convolution(ours.fusion.weight)

    def forward(self, x: Tensor, state: Any, m: Tensor) -> Any:
        h, c = state
        x_i, x_f, x_g, x_i2, x_f2, x_g2, x_o = self.of_x(x).chunk(7, dim=1)
        h_i, h_f, h_g = self.of_h(h).chunk(3, dim=1)
        c_i, c_f, c_g = self.of_c(c).chunk(3, dim=1)
        c = torch.sigmoid(x_f + h_f + c_f) * c + torch.sigmoid(x_i + h_i + c_i) * torch.tanh(x_g + h_g + c_g)
        c_i2, c_f2, c_g2, c_o = self.of_new_c(c).chunk(4, dim=1)
        m_i, m_f, m_g = self.of_m(m).chunk(3, dim=1)
        added = torch.sigmoid(x_i2 + c_i2 + m_i) * torch.tanh(x_g2 + c_g2 + m_g)
        m = torch.sigmoid(x_f2 + c_f2 + m_f) * torch.tanh(self.carry(m)) + added
        o = torch.tanh(x_o + c_o + self.of_new_m(m))
        h = o * torch.tanh(self.last(torch.cat([c, m], dim=1)))
        return h, (h, c), m


class PlainHighway(Plain):
    def __init__(self, ours: GradientHighway) -> None:
        super().__init__(ours)
        self.of_x = convolution(ours.gates.weight[:, : self.hidden], bias=ours.gates.bias)
        self.of_z = convolution(ours.gates.weight[:, self.hidden :])

    def forward(self, x: Tensor, state: Any, m: Tensor) -> Any:
        (z,) = state
        x_p, x_s = self.of_x(x).chunk(2, dim=1)
        z_p, z_s = self.of_z(z).chunk(2, dim=1)
        p, s = torch.tanh(x_p + z_p), torch.sigmoid(x_s + z_s)
        z = s * p + (1 - s) * z
        return z, (z,), m


PLAIN: dict[type, Callable[[Any], Plain]] = {
    ConvLSTMCell: PlainConvLSTM,
    STLSTMCell: PlainSTLSTM,
    CausalLSTMCell: PlainCausalLSTM,
    GradientHighway: PlainHighway,
}


def plain(network: nn.Module) -> nn.Module:
    """Return ``network`` with its cells in the plain form."""
    made = copy.deepcopy(network)
    for layers in (made.encoder, made.forecaster):
        for place, cell in enumerate(layers or ()):
            layers[place] = PLAIN[type(cell)](cell)
    return made


def windows() -> Tensor:
    """Return a batch (B, T, 1, H, W) of waves that travel east."""
    generator = torch.Generator().manual_seed(0)
    phase, speed, number = (torch.rand(3, BATCH, 4, 1, 1, 1, generator=generator) * 6).unbind()
    times = torch.arange(HISTORY + HORIZON)[:, None, None]
    rows, columns = torch.arange(HEIGHT)[:, None] / HEIGHT, torch.arange(WIDTH) / WIDTH
    waves = torch.sin(phase + 6.28 * number.ceil() * columns - 0.2 * speed * times) * torch.cos(number * rows)
    return waves.mean(1).unsqueeze(2).to(DEVICE)


def steps(network: nn.Module, frames: Tensor, *, bf16: bool) -> Iterator[tuple[float, float]]:
    """Train on one batch, for as long as it is asked to; yield seconds and loss of each step."""
    options = Training()
    weights = list(network.parameters())
    optimizer = torch.optim.AdamW(weights, lr=options.learning_rate, weight_decay=options.weight_decay)
    while True:
        began = time.perf_counter()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            forecast = network(frames[:, :HISTORY], HORIZON)
        loss = (forecast - frames[:, HISTORY:]).square().mean()
        penalty = network.take_penalty()
        optimizer.zero_grad()
        (loss if penalty is None else loss + penalty).backward()
        torch.nn.utils.clip_grad_norm_(weights, options.clip)
        optimizer.step()
        value = loss.item()  # waits for a GPU
        yield time.perf_counter() - began, value


def comparison(name: str) -> tuple[list[str], list[str]]:
    """Return a row of the first table, and one of the third."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    ours, frames = build_model(name, hidden=64, layers=2, kernel=3, **SIZES).to(DEVICE), windows()
    networks = {
        "plain": (plain(ours), False),
        "plain bf16": (plain(ours), BF16),
        "float32": (copy.deepcopy(ours), False),
        "channels_last": (copy.deepcopy(ours).to(memory_format=torch.channels_last), BF16),
        "bf16": (ours, BF16),
    }
    forms = {form: steps(network, frames, bf16=bf16) for form, (network, bf16) in networks.items()}
    rounds = [{form: next(training) for form, training in forms.items()} for _ in range(ROUNDS)]
    median = {form: statistics.median(of_round[form][0] for of_round in rounds[1:]) for form in forms}
    apart = [
        f"{max(abs(of_round[form][1] / of_round['plain'][1] - 1) for of_round in rounds):.3%}"
        for form in ("float32", "plain bf16", "bf16")
    ]
    exact = loss_of(plain(ours), frames, bf16=False)
    same = [abs(loss_of(form, frames, bf16=bf16) / exact - 1) for form, bf16 in ((ours, False), (ours, BF16))]
    ratios = [median["plain"] / median["bf16"], median["plain bf16"] / median["bf16"]]
    times = [name, *(f"{seconds:.2f}" for seconds in median.values()), *(f"{ratio:.1f}" for ratio in ratios)]
    return times, [name, *apart, *(f"{share:.3%}" for share in same)]


@torch.no_grad()
def loss_of(network: nn.Module, frames: Tensor, *, bf16: bool) -> float:
    """Return the loss without a step."""
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
        forecast = network(frames[:, :HISTORY], HORIZON)
    return (forecast - frames[:, HISTORY:]).square().mean().item()


class Peak:
    """Largest memory above that at the start, in MiB, over a ``with`` block: of the GPU's tensors, or of this process."""

    def __enter__(self) -> Peak:
        self.process, self.stop = psutil.Process(), threading.Event()
        self.start = self.highest = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.stop.wait(0.005):
            self.highest = max(self.highest, self.process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
        on_gpu = DEVICE.type == "cuda"
        self.mib = (torch.cuda.max_memory_allocated() if on_gpu else self.highest - self.start) / 2**20


def measured(name: str, compiled: bool) -> list[str]:
    """Return a row of the second table."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    frames = windows()
    with Peak() as peak:
        network = build_model(name, hidden=HIDDEN[name], **SIZES).to(DEVICE)
        if compiled:
            network.compile()
        training = steps(network, frames, bf16=BF16)
        _, *timed = [next(training)[0] for _ in range(1 + STEPS)]
    parameters, counted = cost(name, hidden=HIDDEN[name], **SIZES)
    return [name, f"{parameters:,}", f"{counted / 1e9:.2f}", f"{statistics.median(timed):.3f}", f"{peak.mib:,.0f}"]


def table(*head: str, rows: list[list[str]]) -> str:
    marks = [":--", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (list(head), marks, *rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="compile the models of the second table")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "models.md")
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as alone:
        compared = list(alone.map(comparison, COMPARED))
        costs = list(alone.map(measured, MODELS, [options.compile] * len(MODELS)))
    ours = "bf16" if BF16 else "float32"
    head = [
        "plain, s",
        f"plain {ours}, s",
        "float32, s",
        f"{ours} channels_last, s",
        f"{ours}, s",
        "ratio",
        "of it, form",
    ]
    along = [f"{form}, along" for form in ("float32", f"plain {ours}", ours)]
    first = table("model", *head, rows=[times for times, _ in compared])
    second = table("model", "parameters", "10^9 multiply-adds", f"step in {ours}, s", "peak, MiB", rows=costs)
    third = table(
        "model", *along, "float32, same weights", f"{ours}, same weights", rows=[apart for _, apart in compared]
    )
    machine = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{THREADS} threads on {platform.machine()}"
    versions = f"{machine}; torch {torch.__version__}{'; second table compiled' if options.compile else ''}."
    text = f"# Models\n\n{__doc__.strip()}\n\n{versions}\n\n{first}\n\n{second}\n\n{third}\n"
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
