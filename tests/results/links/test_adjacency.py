import numpy as np
import pytest
import xarray as xr

from climapred.grid import Grid, cell_areas, great_circle_km
from climapred.results.cf import adjacency_to_cf, check_cf, write_netcdf
from climapred.results.links import adjacency as layouts
from climapred.results.links.adjacency import adjacency_dataset, grid_of, row_blocks, top_links
from climapred.results.links.correlations import correlation_map, hub_map, strongest_links, weight_by_distance

GRID = Grid(np.linspace(30, 70, 5), np.linspace(200, 230, 7))


def sparse_weights(links=4, seed=0):
    """A softmax of ReLU scores with a few links in each row: all else is exactly the floor, and the top layout holds all."""
    random = np.random.default_rng(seed)
    scores = np.zeros((GRID.size, GRID.size))
    for row in scores:
        row[random.choice(GRID.size, links, replace=False)] = random.uniform(1, 5, links)
    weights = np.exp(scores)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def both():
    weights = sparse_weights()
    return adjacency_dataset(weights, GRID), top_links([weights[:10], weights[10:]], GRID, count=6)


def test_the_top_layout_has_the_largest_of_each_row_and_what_it_leaves_out():
    weights = np.random.default_rng(1).random((GRID.size, GRID.size)).astype(np.float32)
    top = top_links((weights[start : start + 4] for start in range(0, GRID.size, 4)), GRID, count=5)
    order = np.argsort(-weights, axis=1)[:, :5]
    np.testing.assert_array_equal(top["source_node"], order)
    np.testing.assert_array_equal(top["weight"], np.take_along_axis(weights, order, axis=1))
    np.testing.assert_array_equal(top["floor"], weights.min(axis=1))
    above = weights - weights.min(axis=1, keepdims=True)
    np.testing.assert_allclose(
        top["unlisted"] + (top["weight"] - top["floor"]).sum("link"), above.sum(axis=1), rtol=1e-5
    )


@pytest.mark.parametrize("block", [20, 10**9])
def test_both_layouts_tell_the_same(monkeypatch, both, block):
    monkeypatch.setattr(layouts, "BLOCK_PAIRS", block)
    top = both[1]
    assert grid_of(top) == GRID
    for direction in ("listens", "heard"):
        for above_floor in (True, False):
            maps = [correlation_map(of, 50, 215, direction=direction, above_floor=above_floor) for of in both]
            xr.testing.assert_allclose(*maps, atol=1e-7)
            assert maps[0].attrs == maps[1].attrs
    found = [strongest_links(of, 20, min_km=500) for of in both]
    np.testing.assert_allclose(found[1].to_numpy(), found[0].to_numpy(), rtol=1e-6)
    for above_floor in (True, False):
        curves = [weight_by_distance(of, [0, 500, 2000, 5000], above_floor=above_floor) for of in both]
        xr.testing.assert_allclose(*curves, atol=1e-7)
        hubs = [hub_map(of, min_km=1000, above_floor=above_floor) for of in both]
        xr.testing.assert_allclose(*hubs, rtol=1e-5)
    assert float(top["unlisted"].max()) < 1e-6


@pytest.mark.parametrize("above_floor", [True, False])
@pytest.mark.parametrize("min_km", [0.0, 1500.0])
def test_hubs_agree_with_a_loop_over_all_pairs(both, above_floor, min_km):
    weights, areas = both[0]["weight"].values.astype(float), cell_areas(GRID).ravel()
    places = [(latitude, longitude) for latitude in GRID.latitude for longitude in GRID.longitude]
    listens, heard = np.zeros(GRID.size), np.zeros(GRID.size)
    for i, target in enumerate(places):
        for j, source in enumerate(places):
            if float(great_circle_km(*target, *source)) >= min_km:
                weight = weights[i, j] - (weights[i].min() if above_floor else 0)
                listens[i] += weight
                heard[j] += areas[i] * weight / areas.mean()
    hubs = hub_map(both[0], min_km=min_km, above_floor=above_floor)
    np.testing.assert_allclose(hubs["listens"].values.ravel(), listens)
    np.testing.assert_allclose(hubs["heard"].values.ravel(), heard)
    area_mean = np.average(hubs["listens"], weights=cell_areas(GRID))
    assert float(hubs["heard"].mean()) == pytest.approx(area_mean)  # what is heard is what is listened to
    assert ("above the floor" in hubs["heard"].attrs["long_name"]) == above_floor


def test_without_links_every_place_listens_and_is_heard_alike():
    hubs = hub_map(adjacency_dataset(np.full((GRID.size, GRID.size), 1 / GRID.size), GRID), above_floor=False)
    np.testing.assert_allclose(hubs["listens"], 1)
    np.testing.assert_allclose(hubs["heard"], 1)
    assert not hub_map(adjacency_dataset(np.full((GRID.size, GRID.size), 1 / GRID.size), GRID))["heard"].any()


@pytest.mark.parametrize("layout", [0, 1])
def test_both_layouts_follow_cf_and_come_back(both, layout, tmp_path):
    path = write_netcdf(adjacency_to_cf(both[layout], source="seeded noise"), tmp_path / "links.nc")
    assert check_cf(path) == []
    with xr.open_dataset(path) as stored:
        xr.testing.assert_allclose(stored.load().drop_attrs(deep=False), both[layout].drop_attrs(deep=False))
        blocks = [weights for _, weights in row_blocks(stored)]
    np.testing.assert_allclose(np.concatenate(blocks), both[0]["weight"], rtol=1e-6)


def test_every_third_target_stands_for_the_rest(both):
    thin = weight_by_distance(both[0], [0, 500, 2000, 5000], every=3)
    kept = both[0].isel(node_target=slice(None, None, 3))["weight"].values
    places = [(latitude, longitude) for latitude in GRID.latitude for longitude in GRID.longitude]
    distance = np.array([[great_circle_km(*target, *source) for source in places] for target in places[::3]])
    assert int(thin["count"].sum()) == kept.size
    assert float(thin["weight"][1]) == pytest.approx(kept[(distance >= 500) & (distance < 2000)].mean())


def test_few_points_have_all_their_links_in_the_top_layout():
    weights = sparse_weights()
    top = top_links([weights], GRID)
    assert top.sizes["link"] == GRID.size
    np.testing.assert_array_equal(next(row_blocks(top))[1], weights)


def test_a_lazy_top_adjacency_tells_who_listens(both):
    lazy = both[1].chunk(node_target=4)
    xr.testing.assert_allclose(
        correlation_map(lazy, 50, 215, direction="heard").compute(),
        correlation_map(both[0], 50, 215, direction="heard"),
    )


def test_errors_name_what_was_wanted():
    weights = sparse_weights()
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        top_links([weights], GRID, count=0)
    with pytest.raises(ValueError, match=r"blocks must hold 35 rows .* got 30"):
        top_links([weights[:30]], GRID, count=2)
    with pytest.raises(ValueError, match=r"blocks must have shape \(rows, 35\).* got \(35, 30\)"):
        top_links([weights[:, :30]], GRID, count=2)
    with pytest.raises(ValueError, match="weights must be finite, got 1 values"):
        top_links([np.where(np.arange(35 * 35).reshape(35, 35) == 7, np.nan, weights)], GRID, count=2)
    with pytest.raises(ValueError, match="needs the grid of its nodes"):
        adjacency_to_cf(weights, source="test")
    with pytest.raises(ValueError, match=r"weight' with dims \('node_target', 'link'\)"):
        adjacency_to_cf(top_links([weights], GRID, count=2).rename(link="rank"), source="test")
