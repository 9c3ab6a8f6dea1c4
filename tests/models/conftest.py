"""One thread: sums in a fixed order, and no fight for cores among parallel tests."""

import torch

torch.set_num_threads(1)
