"""Kernels against blocks: on a GPU where there is one, else in Triton's interpreter; and that they compile for a card."""

import copy
import os
import subprocess
import sys

import pytest
import torch

from climapred.models import streamed
from climapred.models.adjacency import LearnedAdjacency, heard

pytest.importorskip("triton", reason="Triton has no wheels for this system")
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LATITUDE, LONGITUDE = [-40.0, -10.0, 10.0, 20.0, 30.0, 40.0, 60.0], [3.0 * step for step in range(19)]
SHAPE = (len(LATITUDE), len(LONGITUDE))  # 133 nodes: three tiles, the last one not full
OPTIONS = [{}, {"directed": True, "relu": False}, {"floor": False}, {"max_km": 3000.0}]
OPTIONS += [{"directed": True, "floor": False, "max_km": 3000.0}, {"relu": False, "directed": True, "max_km": 3000.0}]


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    monkeypatch.setattr(streamed, "FUSED", {DEVICE})


def make(embedding=40, **options):
    torch.manual_seed(0)
    adjacency = LearnedAdjacency(SHAPE, embedding, form="streamed", **options)
    adjacency.place(LATITUDE, LONGITUDE)
    for vectors in adjacency.parameters():
        torch.nn.init.normal_(vectors, std=embedding**-0.25)
    return adjacency.to(DEVICE)


def output_and_gradients(adjacency, x, weights):
    x = x.clone().requires_grad_()
    y = heard(x, adjacency())
    return [y, *torch.autograd.grad((y * weights).square().sum(), [x, *adjacency.parameters()])]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "plain")
@pytest.mark.parametrize(("batch", "embedding"), [(3, 40), (50, 100)], ids=["narrow", "wide"])
def test_the_kernels_give_what_the_blocks_give(options, batch, embedding):
    """Output and all gradients; with less than a tile of fields and vectors, and with more."""
    adjacency = make(embedding, **options)
    x, weights = torch.randn(2, batch, 3, *SHAPE, device=DEVICE).unbind()
    wanted = output_and_gradients(copy.deepcopy(adjacency).double(), x.double(), weights.double())  # goes by blocks
    for ours, reference in zip(output_and_gradients(adjacency, x, weights), wanted, strict=True):
        assert reference.abs().max() > 1e-3
        torch.testing.assert_close(
            ours.double(), reference, rtol=1e-5, atol=1e-5 * float(reference.detach().abs().max())
        )


def test_under_autocast_fields_are_low_and_scores_are_not():
    low_type = torch.bfloat16 if DEVICE == "cuda" else torch.float16  # the interpreter has no bfloat16
    adjacency = make(directed=True, relu=False)
    x = torch.randn(2, 3, *SHAPE, device=DEVICE, requires_grad=True)
    exact = heard(x, adjacency())
    with torch.autocast(DEVICE, low_type):
        links = adjacency()
        low = heard(x, links)
    assert low.dtype == low_type
    assert links.log_sums.dtype == torch.float32
    torch.testing.assert_close(low.float(), exact, rtol=0.02, atol=0.02)
    low.float().square().sum().backward()
    assert x.grad.dtype == adjacency.embedding.grad.dtype == torch.float32


def test_log_sums_hold_where_exponentials_do_not():
    vectors = 40 * torch.eye(5, device=DEVICE)
    torch.testing.assert_close(streamed.log_sums(vectors, vectors), torch.full((5,), 1600.0, device=DEVICE))


def test_vectors_of_other_types_go_by_blocks():
    assert streamed._kernels(torch.zeros(2, 2, device=DEVICE)) is not None
    assert streamed._kernels(torch.zeros(2, 2, device=DEVICE, dtype=torch.float64)) is None


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from climapred.models import fused

options = {"LISTEN": True, "RELU": True, "FLOOR": False, "NEAR": True, "PRECISION": "tf32x3"}
for kernel, tile in (
    (fused._log_sums, fused._TILE),
    (fused._product, fused._TILE),
    (fused._vector_gradient, fused._GRADIENT_TILE),
):
    constants = {**options, **tile, "WIDTH": fused._WIDTH}
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    types = {"chord": "fp32", "nodes": "i32", "depth": "i32", "width": "i32"}
    types |= dict.fromkeys(("values", "own_values", "their_values"), "*bf16")
    signature = {key: types.get(key, "*fp32") for key in kernel.arg_names} | dict.fromkeys(constants, "constexpr")
    if kernel is fused._product:
        signature["out"] = "*bf16"
    source = ASTSource(kernel, signature, constants)
    for capability in (80, 90):
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(fused._LAUNCH))
        print(kernel.__name__, capability, made.metadata.shared, len(made.asm["cubin"]))
"""


@pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine != "x86_64", reason="needs ptxas, which comes with Triton"
)
def test_they_compile_for_cards_and_fit_their_shared_memory(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 3 * 2
    for _, _, shared, size in lines:
        assert int(shared) <= 99 * 1024
        assert int(size) > 0
