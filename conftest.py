"""Without a GPU, Triton's kernels run in its interpreter, which is chosen before Triton is loaded."""

import os
from importlib.util import find_spec

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
collect_ignore = [] if find_spec("triton") else ["climapred/models/fused.py"]
