"""Batches against slicing by hand: from every kind of source, through every tier, in parts, and when files or workers fail."""

import gc
import json
import multiprocessing
import os
import pickle
import re
import signal
import threading
import tracemalloc
import weakref
from types import SimpleNamespace

import dask.array
import numpy as np
import psutil
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from climapred.data import store
from climapred.grid import Grid
from climapred.learning.dataset import WindowDataset, forcing_channels
from climapred.learning.loader import WindowLoader
from climapred.learning.order import Share
from climapred.learning.windows import Window

WINDOW, STARTS = Window(3, 2), np.arange(56)
FRAME = 4 * 2 * 5 * 7  # bytes of two variables on 5 x 7 points
TIERS = {
    "memory": {"tier": "memory"},
    "device": {"tier": "device", "device": "cpu"},
    "stream": {"tier": "stream", "memory_limit": 40 * FRAME},
}


@pytest.fixture(scope="session")
def sources(fields, tmp_path_factory):
    """Where the same fields may come from: a function that opens each of them."""
    folder = tmp_path_factory.mktemp("sources")
    write_store(folder / "store.zarr", fields)
    turned = fields.transpose("longitude", "time", "latitude")
    chunks = {name: {"chunks": (9, 5, 7)} for name in fields}
    fields.to_zarr(folder / "plain.zarr", encoding=chunks, zarr_format=3, consolidated=False)
    turned.to_zarr(folder / "turned.zarr", zarr_format=2, encoding={name: {"chunks": (7, 11, 5)} for name in fields})
    fields.to_netcdf(folder / "fields.nc", encoding={name: {"chunksizes": (10, 5, 7)} for name in fields})
    return {
        "store": lambda: store.open_store(folder / "store.zarr"),
        "plain zarr": lambda: xr.open_zarr(folder / "plain.zarr", consolidated=False, chunks=None)[["t2m", "skt"]],
        "turned zarr": lambda: xr.open_zarr(folder / "turned.zarr", chunks=None)[["t2m", "skt"]],
        "netcdf": lambda: xr.open_dataset(folder / "fields.nc"),
        "dask": lambda: fields.chunk(time=7, latitude=2),
        "float64": lambda: fields.astype("float64"),
        "in memory": lambda: fields,
    }


def write_store(path, fields, chunk=4, shard=12):
    """Write a climapred store with chunks and shards of so many times."""
    times, layout = fields["time"].values, store.Layout(chunk, shard)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.Layout, "plan", lambda *_, **__: layout)
        store.create_store(path, grid=Grid.of(fields), times=times, variables=list(fields), attributes={})
    for name, field in fields.items():
        for start, stop in layout.regions(len(times)):
            store.write_region(path, name, start, field.values[start:stop])
    store.finish_store(path, {})


def by_hand(fields, window, starts):
    """The windows at ``starts``, (B, T, C, H, W), one frame after the other."""
    values = np.stack([field.values for field in fields.data_vars.values()], axis=1)
    return np.stack([np.stack([values[start + offset] for offset in window.offsets]) for start in starts])


def starts_of(batch, fields):
    return np.searchsorted(fields["time"].values, batch.times[:, 0].numpy().view("M8[ns]")).tolist()


def all_starts(batches, fields):
    return [start for batch in batches for start in starts_of(batch, fields)]


def assert_holds(batches, fields, window=WINDOW):
    """Each window of the batches is that of its times."""
    for batch in batches:
        starts = starts_of(batch, fields)
        np.testing.assert_array_equal(batch.fields, by_hand(fields, window, starts))
        times = fields["time"].values[np.array(starts)[:, None] + window.offsets]
        np.testing.assert_array_equal(batch.times.numpy().view("M8[ns]"), times)


def assert_same(found, expected):
    """The same batches, bit for bit."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(part, counterpart) for part, counterpart in zip(one, other, strict=True))


class Watched(WindowDataset):
    """Keeps a record of what is read, and of the bytes of blocks that are held at the same time."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.reads, self.held, self.most = [], 0, 0

    def read(self, start, stop):
        self.reads.append((start, stop))
        size = (stop - start) * self.frame_bytes
        self.held += size
        self.most = max(self.most, self.held)
        block = super().read(start, stop)
        weakref.finalize(block, self._release, size)
        return block

    def _release(self, size):
        self.held -= size


# What a batch holds


@pytest.mark.parametrize("tier", TIERS)
def test_forcings_come_after_the_variables(fields, tier):
    names, window = ("day_of_year", "latitude"), Window(2, 2, lead_spacing=3)
    dataset = WindowDataset(fields, window, forcings=names)
    places = [fields[name].values for name in ("latitude", "longitude")]
    for batch in WindowLoader(dataset, np.arange(50), 8, seed=0, **TIERS[tier]):
        assert batch.fields.shape[1:] == (4, 6, 5, 7)
        np.testing.assert_array_equal(batch.fields[:, :, :2], by_hand(fields, window, starts_of(batch, fields)))
        expected = forcing_channels(names, batch.times.numpy().view("M8[ns]"), *places)
        np.testing.assert_array_equal(batch.fields[:, :, 2:], expected)


# Sources and tiers


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("source", ["store", "plain zarr", "turned zarr", "netcdf", "dask", "float64", "in memory"])
@pytest.mark.parametrize("window", [WINDOW, Window(2, 3, lead_spacing=4)])
def test_every_source_gives_the_same_windows_through_every_tier(fields, sources, source, tier, window):
    starts = np.delete(np.arange(60 - window.extent), [5, 6, 20, 21, 22, 40])
    opened = sources[source]()
    batches = list(WindowLoader(WindowDataset(opened, window), starts, 6, seed=3, **TIERS[tier]))
    assert [len(batch.fields) for batch in batches] == [6] * (len(starts) // 6) + [len(starts) % 6] * (
        len(starts) % 6 > 0
    )
    assert sorted(all_starts(batches, fields)) == starts.tolist()
    assert_holds(batches, fields, window)
    if tier != "stream":
        assert_same(batches, list(WindowLoader(WindowDataset(fields, window), starts, 6, seed=3, tier="memory")))


@pytest.mark.parametrize(
    ("source", "chunk"),
    [("store", 4), ("plain zarr", 9), ("turned zarr", 11), ("netcdf", 10), ("dask", 7), ("in memory", 1)],
)
def test_blocks_are_made_of_whole_chunks(sources, source, chunk):
    dataset = Watched(sources[source]().isel(time=slice(0, 58)), WINDOW)
    assert dataset.chunk == chunk
    starts = np.arange(54)
    loader = WindowLoader(dataset, starts, 6, tier="stream", memory_limit=90 * FRAME)
    assert sum(len(batch.fields) for batch in loader) == 54
    length = dataset.reads[1][0]
    assert length % chunk == 0
    assert dataset.reads == [(start, min(start + length, 54) + 4) for start in range(0, 54, length)]


@pytest.mark.parametrize("tier", TIERS)
def test_without_a_seed_windows_come_in_the_order_of_time(fields, tier):
    dataset = WindowDataset(fields, WINDOW)
    batches = list(WindowLoader(dataset, STARTS, 10, **TIERS[tier]))
    assert all_starts(batches, fields) == STARTS.tolist()
    assert [len(batch.fields) for batch in batches] == [10, 10, 9, 9, 9, 9]  # as equal as they can be


@pytest.mark.parametrize("tier", TIERS)
def test_the_order_depends_on_seed_and_epoch_alone(fields, tier):
    def epochs(seed, count=2):
        loader = WindowLoader(WindowDataset(fields, WINDOW), STARTS, 8, seed=seed, **TIERS[tier])
        return [all_starts(loader, fields) for _ in range(count)]

    first, second = epochs(0)
    torch.manual_seed(1)
    assert epochs(0) == [first, second]
    assert sorted(first) == sorted(second) == STARTS.tolist()
    assert first != second
    assert epochs(1)[0] not in (first, second)
    assert first != sorted(first)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_streamed_epoch_delivers_each_window_once_reads_each_block_once_and_keeps_its_limit(fields, data):
    window = data.draw(st.builds(Window, *[st.integers(1, 4)] * 2, *[st.integers(1, 3)] * 2))
    count = 60 - window.extent + 1
    starts = np.array(sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=count))))
    limit = data.draw(st.integers(2 * window.extent, 150)) * FRAME
    size, seed = data.draw(st.integers(1, 20)), data.draw(st.none() | st.integers(0, 5))
    dataset = Watched(fields, window)
    loader = WindowLoader(dataset, starts, size, seed=seed, tier="stream", memory_limit=limit)
    for _ in range(2):
        batches = list(loader)
        assert sorted(all_starts(batches, fields)) == starts.tolist()
        assert_holds(batches, fields, window)
        begins = [start for start, _ in dataset.reads]
        assert len(set(begins)) == len(begins)
        assert set(begins) <= set(starts.tolist())
        dataset.reads.clear()
        assert dataset.held == 0
    assert dataset.most <= limit


def test_a_streamed_store_leaves_most_of_it_on_disk(tmp_path):
    # 60 MB in shards of 6 MB, and 16 MB of blocks. On top come the batches (4 of 1.2 MB), and what Zarr needs to read a block
    # of 2.6 MB in chunks of 1.2 MB: three of them as they are in the file, decoded, and put together.
    grid = Grid.regular(2, region=(-90, 90, 0, 326))
    times = np.datetime64("2013-01-01", "ns") + np.arange(1000) * np.timedelta64(6, "h")
    values = np.random.default_rng(0).standard_normal((100, *grid.shape)).astype("float32")
    values = np.tile(values, (10, 1, 1)) + np.arange(1000, dtype="float32")[:, None, None]
    fields = xr.Dataset({"t2m": (("time", "latitude", "longitude"), values)}, {"time": times, **grid.coordinates()})
    assert 59e6 < fields.nbytes < 61e6
    write_store(tmp_path / "store.zarr", fields, chunk=20, shard=100)
    dataset = Watched(store.open_store(tmp_path / "store.zarr"), WINDOW)
    loader = WindowLoader(dataset, np.arange(996), 4, seed=0, tier="stream", memory_limit=16_000_000)
    delivered = []
    tracemalloc.start()
    try:
        for batch in loader:
            starts = starts_of(batch, fields)
            delivered += starts
            np.testing.assert_array_equal(batch.fields[:, 0, 0], values[starts])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sorted(delivered) == list(range(996))
    assert 8e6 < dataset.most <= 16e6
    assert peak < 32e6
    assert sum(stop - start for start, stop in dataset.reads) < 1.3 * 1000


class Source:
    """An array that counts how often it is read."""

    def __init__(self, values):
        self.values, self.dtype, self.shape, self.ndim = values, values.dtype, values.shape, values.ndim
        self.reads = 0

    def __getitem__(self, key):
        found = self.values[key]
        self.reads += found.size > 0
        return found


def test_nothing_is_read_before_the_first_batch_and_no_graph_is_computed_for_a_window(fields):
    source = Source(fields["t2m"].values)
    lazy = fields[["t2m"]].copy(data={"t2m": dask.array.from_array(source, chunks=(6, 5, 7))})
    dataset = WindowDataset(lazy, WINDOW)
    streamed = WindowLoader(dataset, STARTS, 8, seed=0, tier="stream", memory_limit=60 * FRAME // 2)
    resident = WindowLoader(dataset, STARTS, 8, seed=0, tier="memory")
    for loader in (streamed, resident):
        loader.load_state_dict(loader.state_dict())
        assert (len(loader), loader.tier, source.reads) == (7, loader.tier, 0)
        iter(loader)
    assert source.reads == 0
    assert_holds(list(streamed), fields[["t2m"]])
    # 10 blocks of one chunk each: frames 0 to 5 and the 4 after them come from two chunks.
    assert source.reads == 19
    source.reads = 0
    for _ in range(3):
        assert len(list(resident)) == 7
    assert source.reads == 10


@pytest.mark.parametrize("writeable", [True, False])
def test_fields_in_memory_are_neither_written_to_nor_need_to_be_writeable(fields, writeable):
    values = fields["t2m"].values.copy()
    values.flags.writeable = writeable
    given_fields = fields[["t2m"]].copy(data={"t2m": values})
    for tier in TIERS:
        for batch in WindowLoader(WindowDataset(given_fields, WINDOW), STARTS, 8, seed=0, **TIERS[tier]):
            batch.fields.zero_()
    np.testing.assert_array_equal(values, fields["t2m"].values)


@pytest.mark.parametrize("tier", TIERS)
def test_a_batch_that_is_kept_is_never_written_to_again(fields, tier):
    loader = WindowLoader(WindowDataset(fields, WINDOW), STARTS, 4, seed=0, **TIERS[tier])
    kept, parts = [], []
    for batch in loader:
        kept.append((batch, batch.fields.clone()))
    for batch in loader:  # of these only a piece is kept, as an array or a view
        parts.append((batch.fields.numpy()[1:, 0], starts_of(batch, fields)))
        parts.append((batch.fields[1:].flatten(2)[:, 0].view(3, 2, 5, 7), starts_of(batch, fields)))
    del batch
    for batch, content in kept:
        assert torch.equal(batch.fields, content)
    for part, starts in parts:
        np.testing.assert_array_equal(part, by_hand(fields, WINDOW, starts)[1:, 0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU gets batches from torch's own page-locked memory")
@pytest.mark.parametrize("tier", ["memory", "stream"])
def test_memory_of_batches_that_are_dropped_is_used_again(fields, tier, monkeypatch):
    allocate, shapes = np.empty, []

    def counted(shape, *arguments, **keywords):
        shapes.append(shape)
        return allocate(shape, *arguments, **keywords)

    monkeypatch.setattr(np, "empty", counted)
    loader = WindowLoader(WindowDataset(fields, WINDOW), STARTS, 4, seed=0, **TIERS[tier])
    places = {batch.fields.data_ptr() for _ in range(2) for batch in loader}
    assert len(places) == shapes.count((4, 5, 2, 5, 7)) <= 3


# Where windows are cut


def test_auto_takes_memory_when_there_is_room_and_streams_otherwise(fields, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    size, room = 60 * FRAME, SimpleNamespace(available=0, total=4 * 60 * FRAME)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: room)

    def tier(available, **keywords):
        room.available = available
        return WindowLoader(WindowDataset(fields, WINDOW), STARTS, 8, **keywords).tier

    assert tier(2 * size + 1) == "memory"
    assert tier(2 * size - 1) == "stream"
    # Two processes hold the fields twice; they decide by what the machine has, so that they agree.
    assert tier(0, share=Share(0, 2)) == "stream"
    room.total += 1
    assert tier(0, share=Share(0, 2)) == "memory"
    assert tier(0, tier="memory") == "memory"


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_auto_uses_frames_that_another_loader_has_read_already(fields, monkeypatch, device):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    dataset = WindowDataset(fields, WINDOW)
    dataset.resident(torch.device(device))
    assert WindowLoader(dataset, STARTS, 8).tier == ("memory" if device == "cpu" else "device")


def test_the_limit_that_an_error_asks_for_is_enough(tmp_path):
    grid = Grid.regular(3)
    times = np.datetime64("2013-01-01", "ns") + np.arange(40) * np.timedelta64(6, "h")
    values = np.random.default_rng(0).standard_normal((40, *grid.shape)).astype("float32")
    fields = xr.Dataset({"t2m": (("time", "latitude", "longitude"), values)}, {"time": times, **grid.coordinates()})
    dataset, starts = Watched(fields, Window(4, 8)), np.arange(29)

    def loader(limit):
        return WindowLoader(dataset, starts, 5, seed=0, tier="stream", memory_limit=limit)

    with pytest.raises(
        ValueError, match=r"memory_limit 0\.35 MB is too little to stream windows that span 12"
    ) as error:
        len(list(loader(350_000)))
    (needed,) = re.findall(r"of 0\.03 MB; it takes ([0-9.]+) MB", str(error.value))
    limit = round(float(needed) * 1e6)
    batches = list(loader(limit))
    assert sorted(all_starts(batches, fields)) == starts.tolist()
    assert dataset.most <= limit
    with pytest.raises(ValueError, match=f"it takes {needed} MB"):
        next(iter(loader(limit - 10_000)))


# Going on after a stop


def stop_after(loader, count):
    """Take so many batches, over as many epochs as that takes; return where the loader is, as it is kept in a file."""
    while count:
        for _ in loader:
            count -= 1
            if not count:
                break
    return json.loads(json.dumps(loader.state_dict()))


@pytest.mark.parametrize("seed", [2, None])
@pytest.mark.parametrize("tier", TIERS)
def test_a_new_loader_goes_on_with_the_batches_that_are_left(fields, tier, seed):
    def make():
        return WindowLoader(WindowDataset(fields, WINDOW), STARTS, 6, seed=seed, **TIERS[tier])

    undisturbed = make()
    epochs = [list(undisturbed) for _ in range(3)]
    expected = [batch for epoch in epochs for batch in epoch]
    assert [len(epoch) for epoch in epochs] == [10] * 3
    for count in range(21):
        state = stop_after(make(), count)
        assert (state["epoch"], state["position"]) == divmod(count, 10)
        resumed = make()
        resumed.load_state_dict(state)
        assert_same([batch for _ in range(state["epoch"], 3) for batch in resumed], expected[count:])


def test_the_place_is_that_of_the_next_batch_even_while_the_last_one_is_used(fields):
    loader = WindowLoader(WindowDataset(fields, WINDOW), STARTS, 20, seed=0, tier="memory")
    places = [(loader.epoch, loader.position) for _ in loader]
    assert places == [(0, 1), (0, 2), (1, 0)]


def test_a_place_of_another_order_is_refused(fields):
    dataset = WindowDataset(fields, WINDOW)

    def make(starts=STARTS, batch_size=8, **keywords):
        return WindowLoader(dataset, starts, batch_size, **{"seed": 0, "tier": "memory", **keywords})

    state = make().state_dict()
    make(tier="device", device="cpu").load_state_dict(state)  # cut elsewhere, in the same order
    make(share=Share(1, 2)).load_state_dict(state)
    for other, message in [
        (make(seed=1), r"another loader: seed 0 \(here 1\)"),
        (make(seed=None), r"seed 0 \(here None\)"),
        (make(batch_size=7), r"batch_size 8 \(here 7\), batches 7 \(here 8\)"),
        (make(STARTS[:-1]), r"windows 56 #[0-9a-f]{8} \(here 55 #[0-9a-f]{8}\)"),
        (make(tier="stream"), r"streamed False \(here True\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state)
        assert (other.epoch, other.position) == (0, 0)
    with pytest.raises(ValueError, match=r"loader: windows 55 #[0-9a-f]{8} \(here 55 #[0-9a-f]{8}\)"):
        make(STARTS[1:]).load_state_dict(make(STARTS[:-1]).state_dict())
    streamed = make(tier="stream", memory_limit=40 * FRAME).state_dict()
    make(tier="stream", memory_limit=40 * FRAME, workers=2).load_state_dict(streamed)
    with pytest.raises(ValueError, match=r"blocks \[\d+, \d+\] \(here \[\d+, \d+\]\)"):
        make(tier="stream", memory_limit=90 * FRAME).load_state_dict(streamed)
    with pytest.raises(ValueError, match=r"processes 1 \(here 2\)"):
        make(tier="stream", memory_limit=40 * FRAME, share=Share(0, 2)).load_state_dict(streamed)
    with pytest.raises(ValueError, match="streamed None"):
        make().load_state_dict({"epoch": 1, "position": 0})


@pytest.mark.parametrize(("before", "after"), [("memory", "stream"), ("stream", "memory")])
def test_auto_goes_on_in_the_tier_of_the_stopped_run(fields, monkeypatch, before, after):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    room = {"memory": SimpleNamespace(available=1e9), "stream": SimpleNamespace(available=0)}

    def make(tier):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: room[tier])
        return WindowLoader(WindowDataset(fields, WINDOW), STARTS, 8, seed=0, memory_limit=40 * FRAME)

    expected = list(make(before))
    state = stop_after(make(before), 3)
    resumed = make(after)
    assert resumed.tier == after
    resumed.load_state_dict(state)
    assert resumed.tier == before
    assert_same(list(resumed), expected[3:])


@pytest.mark.parametrize("tier", TIERS)
def test_set_epoch_goes_to_its_beginning_and_leaves_the_current_one_alone(fields, tier):
    dataset = WindowDataset(fields, WINDOW)
    first, second = (WindowLoader(dataset, STARTS, 8, seed=0, **TIERS[tier]) for _ in range(2))
    epochs = [list(first) for _ in range(3)]
    second.set_epoch(2)
    next(iter(second))
    second.set_epoch(2)
    assert_same(list(second), epochs[2][1:])
    second.set_epoch(1)
    assert_same(list(second), epochs[1])


# Several processes


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("tier", TIERS)
def test_processes_share_an_epoch_of_training(fields, tier, world):
    dataset, starts = WindowDataset(fields, WINDOW), STARTS[:55]
    loaders = [
        WindowLoader(dataset, starts, 12, seed=0, share=Share(rank, world), **TIERS[tier]) for rank in range(world)
    ]
    single = list(WindowLoader(dataset, starts, 12, seed=0, **TIERS[tier]))
    for epoch in range(2):
        parts = [list(loader) for loader in loaders]
        assert len({tuple(len(batch.fields) for batch in part) for part in parts}) == 1
        assert len(parts[0]) == len(loaders[0]) == 5
        delivered = [start for part in parts for start in all_starts(part, fields)]
        assert len(delivered) == len(set(delivered)) == 55 - 55 % world
        for part in parts:
            assert_holds(part, fields)
        if tier == "stream":  # each from its own part of the files
            pieces = np.arange(len(delivered)).reshape(world, -1).tolist()
            assert [sorted(all_starts(part, fields)) for part in parts] == pieces
        elif epoch == 0:
            for number in range(4):
                together = sorted(start for part in parts for start in starts_of(part[number], fields))
                assert together == sorted(starts_of(single[number], fields))


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("tier", TIERS)
def test_processes_share_the_windows_of_validation_without_a_rest(fields, tier, world):
    dataset = WindowDataset(fields, WINDOW)
    for count in (world, 7, 25, 56):
        parts = [
            list(WindowLoader(dataset, STARTS[:count], 6, share=Share(rank, world), **TIERS[tier]))
            for rank in range(world)
        ]
        assert len({len(part) for part in parts}) == 1
        assert sorted(start for part in parts for start in all_starts(part, fields)) == list(range(count))


@given(st.integers(1, 56), st.integers(1, 10), st.integers(1, 5), st.booleans(), st.sampled_from(["memory", "stream"]))
def test_every_process_has_as_many_batches_none_of_them_empty(fields, count, local, world, train, tier):
    dataset, seed = WindowDataset(fields, WINDOW), 0 if train else None
    loaders = [
        WindowLoader(dataset, STARTS[:count], local * world, seed=seed, tier=tier, share=Share(rank, world))
        for rank in range(world)
    ]
    if count < world:
        for loader in loaders:
            with pytest.raises(ValueError, match=f"{count} windows are too few for {world} processes"):
                len(loader)
        return
    sizes = [loader.sizes for loader in loaders]
    assert len({len(of_one) for of_one in sizes}) == 1
    assert min(min(of_one) for of_one in sizes) >= 1
    assert sum(map(sum, sizes)) == (count - count % world if train else count)
    if train:
        assert len(set(map(tuple, sizes))) == 1
        assert sizes[0][:-1] == [local] * (len(sizes[0]) - 1)
    else:
        assert max(max(of_one) - min(of_one) for of_one in sizes) <= 1
    assert max(max(of_one) for of_one in sizes) <= local + (not train and count // world < -(-count // (local * world)))


def test_the_environment_says_which_process_this_is(fields, monkeypatch):
    loader = WindowLoader(WindowDataset(fields, WINDOW), STARTS, 8, tier="memory")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert loader.share == Share(1, 4)
    assert all_starts(loader, fields) == STARTS[1::4].tolist()


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"tier": "disk"}, "tier must be one of auto, device, memory, stream, got 'disk'"),
        ({"starts": []}, "a loader needs at least one window, got no starts"),
        ({"starts": [3, 2, 9]}, "starts must increase: a seed shuffles them"),
        ({"starts": [3, 3, 9]}, "starts must increase"),
        ({"starts": [-1, 4]}, "the windows at -1 to 4 span 5 times each; the fields hold 60 times"),
        ({"starts": [0, 56]}, "the windows at 0 to 56 span 5 times each; the fields hold 60 times"),
    ],
)
def test_a_loader_refuses(fields, arguments, message):
    with pytest.raises(ValueError, match=message):
        WindowLoader(WindowDataset(fields, WINDOW), **({"starts": STARTS, "batch_size": 4} | arguments))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_device_tier_needs_a_device(fields):
    with pytest.raises(ValueError, match='tier "device" finds no GPU here; use "auto", "memory" or "stream"'):
        WindowLoader(WindowDataset(fields, WINDOW), STARTS, 4, tier="device")


def test_a_batch_that_processes_cannot_share_is_refused(fields):
    loader = WindowLoader(WindowDataset(fields, WINDOW), STARTS, 8, share=Share(0, 3))
    with pytest.raises(ValueError, match="batch_size counts the windows of all processes: 8 does not divide by 3"):
        next(iter(loader))


# Bad data and bad luck


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_missing_values_are_refused_or_handed_on(fields, tier, value):
    holes = fields.copy(deep=True)
    holes["skt"][33, 2:4, 1:] = value  # 12 of 35 cells
    loader = WindowLoader(WindowDataset(holes, WINDOW), STARTS, 8, seed=0, **TIERS[tier])
    with pytest.raises(
        ValueError, match=r"skt has missing values \(34\.3% of the cells at 20..-..-..T..:00\)"
    ) as error:
        list(loader)
    assert str(np.datetime_as_string(holes["time"].values[33], unit="m")) in str(error.value)
    assert "in fields in memory: a lost shard, or a field with gaps; build it again, fill" in str(error.value)
    masked = WindowLoader(WindowDataset(holes, WINDOW, missing="mask"), STARTS, 8, seed=0, **TIERS[tier])
    assert_holds(list(masked), holes)


def test_large_values_are_not_taken_for_missing_ones(fields):
    large = fields[["t2m"]] * np.float32(1e36)
    assert_holds(list(WindowLoader(WindowDataset(large, WINDOW), STARTS, 8, tier="memory")), large)


@pytest.fixture
def own_store(fields, tmp_path):
    write_store(tmp_path / "store.zarr", fields)
    return tmp_path / "store.zarr"


@pytest.mark.parametrize("tier", TIERS)
def test_a_lost_shard_is_named(fields, own_store, tier):
    (own_store / "skt" / "c" / "2" / "0" / "0").unlink()  # times 24 to 35
    loader = WindowLoader(WindowDataset(store.open_store(own_store), WINDOW), STARTS, 8, **TIERS[tier])
    moment = np.datetime_as_string(fields["time"].values[24], unit="m")
    with pytest.raises(
        ValueError, match=rf"skt has missing values \(100\.0% of the cells at {moment}\) in .*store\.zarr: a lost"
    ):
        list(loader)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("damage", ["overwritten", "cut"])
def test_an_unreadable_shard_is_named(fields, own_store, tier, damage):
    shard = own_store / "skt" / "c" / "2" / "0" / "0"
    content = shard.read_bytes()
    random = np.random.default_rng(0)
    shard.write_bytes({"overwritten": random.bytes(len(content)), "cut": content[:-40]}[damage])
    loader = WindowLoader(WindowDataset(store.open_store(own_store), WINDOW), STARTS, 8, **TIERS[tier])
    with pytest.raises(
        RuntimeError, match=r"cannot read skt from (\S+) to (\S+) of .*store\.zarr: .*; build it again"
    ) as error:
        list(loader)
    first, last = re.findall(r"from (\S+) to (\S+) of", str(error.value))[0]
    assert np.datetime64(first) <= fields["time"].values[35]
    assert np.datetime64(last) >= fields["time"].values[24]


def test_a_store_with_one_time_too_few_is_refused(own_store):
    short = store.open_store(own_store).isel(time=slice(0, 59))
    with pytest.raises(ValueError, match="the windows at 0 to 55 span 5 times each; the fields hold 59 times"):
        WindowLoader(WindowDataset(short, WINDOW), STARTS, 8)


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


def test_an_iteration_that_is_left_ends_its_thread_and_the_next_one_goes_on(fields):
    before = len(reading_threads())
    dataset = Watched(fields, WINDOW)
    loader = WindowLoader(dataset, STARTS, 4, seed=0, **TIERS["stream"])
    expected = list(WindowLoader(WindowDataset(fields, WINDOW), STARTS, 4, seed=0, **TIERS["stream"]))
    delivered = []
    while loader.epoch == 0:
        for batch in loader:
            delivered.append(batch)
            if len(delivered) % 3 == 0:
                break
        gc.collect()
        assert len(reading_threads()) == before
        assert dataset.held == 0
    assert_same(delivered, expected)


def test_an_error_ends_the_thread(fields):
    before = len(reading_threads())
    holes = fields.where(fields["time"] < fields["time"][50])
    loader = WindowLoader(WindowDataset(holes, WINDOW), STARTS, 4, **TIERS["stream"])
    with pytest.raises(ValueError, match=r"t2m has missing values \(100.0%"):
        list(loader)
    gc.collect()
    assert len(reading_threads()) == before


def test_a_dataset_travels_to_workers_without_the_frames_that_are_in_memory(fields, own_store):
    dataset = WindowDataset(store.open_store(own_store), WINDOW)
    size = len(pickle.dumps(dataset))
    assert dataset.resident(torch.device("cpu")).shape == (60, 2, 5, 7)
    assert len(pickle.dumps(dataset)) < size + 1000 < 60 * FRAME
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.resident_on is None
    assert_holds([copy[np.array([3, 50])]], fields)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_deliver_what_a_thread_delivers(own_store, workers):
    others = set(multiprocessing.active_children())
    dataset = WindowDataset(store.open_store(own_store), WINDOW, forcings=("hour",))
    keywords = {"seed": 0, **TIERS["stream"]}
    thread = WindowLoader(dataset, STARTS, 6, **keywords)
    expected = [batch for _ in range(3) for batch in thread]
    loader = WindowLoader(dataset, STARTS, 6, workers=workers, **keywords)
    found = list(loader)
    processes = set(multiprocessing.active_children()) - others
    assert len(processes) == workers
    for batch in loader:  # left half-way, then gone on with
        found.append(batch)
        if loader.position == 4:
            break
    found += [batch for _ in range(2) for batch in loader]
    assert_same(found, expected)
    assert set(multiprocessing.active_children()) - others == processes
    del loader, batch
    gc.collect()
    assert not set(multiprocessing.active_children()) - others


def test_an_error_of_a_worker_keeps_its_kind_and_a_killed_worker_is_named(own_store, tmp_path):
    others = set(multiprocessing.active_children())
    dataset = WindowDataset(store.open_store(own_store), WINDOW)
    loader = WindowLoader(dataset, STARTS, 2, workers=1, **TIERS["stream"])
    shard = own_store / "t2m" / "c" / "4" / "0" / "0"
    shard.rename(tmp_path / "shard")
    with pytest.raises(ValueError, match=r"t2m has missing values \(100\.0% of the cells at .*: a lost shard"):
        list(loader)
    (tmp_path / "shard").rename(shard)
    loader.set_epoch(1)
    batches = iter(loader)
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - others
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"a loader worker died: .*use fewer workers or a lower memory_limit"):
        list(batches)
    position = loader.position
    assert len(list(loader)) == len(loader) - position  # with a new worker
