"""Reduced Gaussian grids: their points, names and what tells one from another."""

import numpy as np

from climapred.grid import Grid
from climapred.reduced import ReducedGrid


def test_reduced_grids():
    o32 = ReducedGrid.octahedral(32)
    assert (o32.size, o32.shape, repr(o32)) == (5248, (5248,), "ReducedGrid(O32, 5248 points)")
    latitude, longitude = o32.centres()
    assert latitude[0] == latitude[19] > latitude[20]  # 20 points on the northernmost row, then 24
    np.testing.assert_allclose(longitude[20:44], 15 * np.arange(24))
    assert o32 == ReducedGrid(32, o32.points) != ReducedGrid.octahedral(16)
    assert len({o32, ReducedGrid.octahedral(32)}) == 1
    assert o32.hash != Grid.gaussian(32).hash
    assert repr(ReducedGrid(2, (20, 25, 25, 20))) == "ReducedGrid(N2, 90 points)"
