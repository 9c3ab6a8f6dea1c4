"""Regions of every kind that a map can show."""

import socket

import numpy as np
import pytest

from climapred.grid import Grid

REGIONS = {
    "uk": Grid(np.linspace(50, 58, 9), np.linspace(-10, 2, 13)),
    "america": Grid(np.linspace(15, 75, 25), np.linspace(200, 330, 53)),
    "globe": Grid.regular(5),
    "north": Grid(np.linspace(50, 90, 21), np.arange(0, 360, 5.0)),
    "south": Grid(np.linspace(-90, -50, 21), np.arange(0, 360, 5.0)),
    "tropics": Grid(np.linspace(-12, 22, 18), np.linspace(90, 150, 31)),
    "fiji": Grid(np.linspace(-22, -14, 9), np.linspace(174, 184, 11)),
}


@pytest.fixture(scope="session")
def regions():
    return REGIONS


@pytest.fixture(scope="session", params=REGIONS)
def region(request):
    return request.param


@pytest.fixture(scope="module")
def no_network():
    def refuse(*_, **__):
        raise AssertionError("a map must not open a socket")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", refuse)
        yield
