"""One thread (sums in a fixed order, no fight for cores), a small sample, and models on it that need no training."""

import numpy as np
import pytest
import torch

from climapred.data.statistics import training_statistics
from climapred.grid import Grid
from climapred.learning.artefact import Scaling, TrainedModel, scaled_network
from climapred.learning.windows import Window, time_step
from climapred.testing import synthetic_temperature

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def fields():
    """``t2m`` and, from another seed, ``skt``: 60 times six hours apart, 5 x 7 points."""
    grid = Grid.regular(10, region=(20, 60, 200, 260))
    first, second = (synthetic_temperature(grid, periods=60, links=(), seed=seed).fields for seed in (0, 1))
    return first.assign(skt=second["t2m"].assign_attrs(standard_name="surface_temperature"))


@pytest.fixture(scope="session")
def statistics(fields):
    return training_statistics(fields.isel(time=slice(0, 40)))


@pytest.fixture(scope="session")
def make_model(fields, statistics):
    """Return a function that makes a model with random weights, its readout and its adjacency included."""

    def make(architecture="ls_ntp", *, variables=("t2m",), inputs="anomaly", target="change", seed=0, **options):
        options = {"hidden": 4, **({"embedding": 3} if architecture == "ls_ntp" else {}), **options}
        scaling = Scaling(inputs, target)
        module, orders = scaled_network(
            architecture,
            options,
            scaling=scaling,
            statistics=statistics,
            variables=variables,
            window=Window(3, 2),
            seed=seed,
        )
        readout = module.network.readout
        torch.nn.init.normal_(getattr(readout, "linear", readout).weight, std=0.3)
        if architecture == "ls_ntp":
            torch.nn.init.normal_(module.network.shared.embedding)
        return TrainedModel(
            name="small",
            architecture=architecture,
            options=options,
            scaling=scaling,
            orders=orders,
            variables=variables,
            grid=Grid.of(fields),
            window=Window(3, 2),
            step=time_step(fields["time"].values),
            module=module.eval(),
            training={"epochs": 0, "source": "sample", "loss": np.pi},
        )

    return make
