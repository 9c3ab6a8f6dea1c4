import numpy as np
import pytest

from climapred.grid import Grid, great_circle_km
from climapred.results.links import adjacency as layouts
from climapred.results.links.adjacency import adjacency_dataset
from climapred.results.links.correlations import correlation_map, strongest_links, weight_by_distance

GRID = Grid(np.linspace(30, 50, 5), np.linspace(200, 230, 7))
TARGET, SOURCE = 2 * 7 + 1, 4 * 7 + 6  # 40 N, 205 E listens to 50 N, 230 E


def planted(strength=4.0, seed=0):
    """Softmax(ReLU) weights of negative noise and one link: every other entry of the row is exactly the floor."""
    logits = np.maximum(-np.abs(np.random.default_rng(seed).normal(size=(GRID.size, GRID.size))), 0)
    logits[TARGET, SOURCE] = strength
    weights = np.exp(logits)
    return adjacency_dataset(weights / weights.sum(axis=1, keepdims=True), GRID)


def random_adjacency(seed=1):
    weights = np.random.default_rng(seed).random((GRID.size, GRID.size))
    return adjacency_dataset(weights / weights.sum(axis=1, keepdims=True), GRID)


def places():
    latitude, longitude = np.meshgrid(GRID.latitude, GRID.longitude, indexing="ij")
    return list(zip(latitude.ravel(), longitude.ravel(), strict=True))


def test_layout_has_row_sums_and_nodes_in_c_order():
    adjacency = planted()
    assert adjacency["weight"].dims == ("node_target", "node_source")
    np.testing.assert_allclose(adjacency["weight"].sum("node_source"), 1)
    assert list(adjacency["source_longitude"].values[:8]) == [*GRID.longitude, GRID.longitude[0]]
    assert float(adjacency["target_latitude"][SOURCE]) == 50
    assert float(adjacency["target_longitude"][SOURCE]) == 230


def test_planted_link_shows_in_the_row_of_its_target():
    listens = correlation_map(planted(), 40, 205)
    # e^4 / (e^4 + 34) - 1 / (e^4 + 34): the link above the floor; all else is the floor itself.
    assert float(listens.sel(latitude=50, longitude=230)) == pytest.approx((np.exp(4) - 1) / (np.exp(4) + 34))
    assert np.count_nonzero(listens) == 1
    assert (listens.attrs["point_latitude"], listens.attrs["point_longitude"]) == (40, 205)


def test_planted_link_shows_in_the_column_of_its_source_and_nowhere_else():
    adjacency = planted()
    heard = correlation_map(adjacency, 50, 230, direction="heard")
    assert float(heard.sel(latitude=40, longitude=205)) > 0.5
    assert np.count_nonzero(np.abs(heard) > 1e-15) == 1
    assert not correlation_map(adjacency, 50, 230).any()
    assert not correlation_map(adjacency, 40, 205, direction="heard").any()


def test_with_the_floor_rows_sum_to_one_and_columns_are_columns():
    adjacency = random_adjacency()
    weights = adjacency["weight"].values
    row = correlation_map(adjacency, 40, 205, above_floor=False)
    np.testing.assert_array_equal(row.values.ravel(), weights[TARGET])
    assert float(row.sum()) == pytest.approx(1)
    column = correlation_map(adjacency, 40, 205, direction="heard")
    np.testing.assert_allclose(column.values.ravel(), weights[:, TARGET] - weights.min(axis=1))
    assert "above the floor" in column.attrs["long_name"]
    assert "above the floor" not in row.attrs["long_name"]


@pytest.mark.parametrize("longitude", [206.9, 206.9 - 360, 206.9 + 360])
def test_nearest_point_is_taken_in_any_count_of_longitudes(longitude):
    field = correlation_map(planted(), 41.2, longitude)
    assert (field.attrs["point_latitude"], field.attrs["point_longitude"]) == (40, 205)


def test_nearest_point_crosses_the_date_line_of_a_periodic_grid():
    grid = Grid(np.array([-10.0, 0, 10]), np.arange(0, 360, 45.0))
    adjacency = adjacency_dataset(np.eye(grid.size), grid)
    assert correlation_map(adjacency, 1, 350).attrs["point_longitude"] == 0


def test_lazy_adjacency_stays_lazy():
    dask = pytest.importorskip("dask")
    adjacency = random_adjacency()
    chunked = adjacency.assign(weight=adjacency["weight"].variable.chunk(node_target=10))
    with dask.config.set(scheduler=lambda *_, **__: pytest.fail("computed")):
        lazy = correlation_map(chunked, 40, 205, direction="heard")
    np.testing.assert_array_equal(lazy, correlation_map(adjacency, 40, 205, direction="heard"))


@pytest.mark.parametrize("block", [10, 10**9])
@pytest.mark.parametrize("min_km", [0.0, 1000.0])
def test_strongest_links_agree_with_a_loop_over_all_pairs(monkeypatch, block, min_km):
    monkeypatch.setattr(layouts, "BLOCK_PAIRS", block)
    adjacency = random_adjacency()
    pairs = []
    for i, target in enumerate(places()):
        for j, source in enumerate(places()):
            distance = float(great_circle_km(*target, *source))
            if distance >= min_km:
                pairs.append((*target, *source, distance, float(adjacency["weight"][i, j])))
    expected = sorted(pairs, key=lambda pair: -pair[-1])[:15]
    links = strongest_links(adjacency, 15, min_km=min_km)
    assert list(links.columns) == [
        "target_latitude",
        "target_longitude",
        "source_latitude",
        "source_longitude",
        "distance_km",
        "weight",
    ]
    np.testing.assert_allclose(links.to_numpy(), expected)


def test_strongest_link_is_the_planted_one_and_few_pairs_give_few_rows():
    first = strongest_links(planted(), 1).iloc[0]
    assert tuple(first.iloc[:4]) == (40, 205, 50, 230)
    assert len(strongest_links(planted(), 10**6)) == GRID.size**2
    assert strongest_links(planted(), 5, min_km=30_000).empty


@pytest.mark.parametrize("block", [10, 10**9])
def test_weight_by_distance_agrees_with_a_loop(monkeypatch, block):
    monkeypatch.setattr(layouts, "BLOCK_PAIRS", block)
    adjacency, edges = random_adjacency(), [0, 1, 700, 1500, 2500, 10_000, 20_000]
    sums, counts = np.zeros(6), np.zeros(6)
    for i, target in enumerate(places()):
        for j, source in enumerate(places()):
            bin_ = int(np.searchsorted(edges, float(great_circle_km(*target, *source)), side="right")) - 1
            sums[bin_] += float(adjacency["weight"][i, j])
            counts[bin_] += 1
    result = weight_by_distance(adjacency, edges)
    np.testing.assert_array_equal(result["count"], counts)
    np.testing.assert_allclose(result["weight"][counts > 0], (sums / np.maximum(counts, 1))[counts > 0])
    assert counts[0] == GRID.size  # each point with itself
    assert np.isnan(result["weight"][-1])  # no two points are that far apart
    assert list(result["distance_upper"].values) == edges[1:]


def test_uniform_weights_are_one_over_n_at_every_distance():
    adjacency = adjacency_dataset(np.full((GRID.size, GRID.size), 1 / GRID.size), GRID)
    result = weight_by_distance(adjacency, [0, 500, 1000, 4000])
    np.testing.assert_allclose(result["weight"], 1 / GRID.size)
    assert int(result["count"].sum()) == GRID.size**2


def test_errors_name_what_was_wanted_and_what_came():
    with pytest.raises(ValueError, match=r"shape \(35, 35\) for Grid\(5 x 7.*got \(6, 6\)"):
        adjacency_dataset(np.eye(6), GRID)
    with pytest.raises(ValueError, match="must be finite, got 35 values"):
        adjacency_dataset(np.where(np.eye(35), np.nan, 1), GRID)
    with pytest.raises(ValueError, match=r"point 60 N, 205 E lies outside.*27.5\.\.52.5 N, 197.5\.\.232.5 E"):
        correlation_map(planted(), 60, 205)
    with pytest.raises(ValueError, match="point 40 N, 2 E lies outside"):
        correlation_map(planted(), 40, 2)
    with pytest.raises(ValueError, match="direction must be one of listens, heard, got 'both'"):
        correlation_map(planted(), 40, 205, direction="both")
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        strongest_links(planted(), 0)
    with pytest.raises(ValueError, match="two increasing edges in km"):
        weight_by_distance(planted(), [0, 500, 500])


def test_adjacency_that_is_no_grid_is_refused():
    adjacency = planted()
    with pytest.raises(ValueError, match="34 nodes that are not the 5 x 7 points"):
        correlation_map(adjacency.isel(node_target=slice(34), node_source=slice(34)), 40, 205)
    shuffled = np.random.default_rng(0).permutation(GRID.size)
    with pytest.raises(ValueError, match="C order"):
        strongest_links(adjacency.isel(node_target=shuffled, node_source=shuffled))
    with pytest.raises(ValueError, match="must link a grid to itself"):
        strongest_links(adjacency.isel(node_source=slice(34)))
    with pytest.raises(ValueError, match="must hold 'weight' with dims"):
        correlation_map(adjacency.rename(weight="correlation"), 40, 205)
    with pytest.raises(ValueError, match=r"lacks the coordinates \['source_latitude'\]"):
        correlation_map(adjacency.drop_vars("source_latitude"), 40, 205)
