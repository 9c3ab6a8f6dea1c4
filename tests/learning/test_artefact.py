import hashlib
import json
import re
import resource
import struct
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
import xarray as xr

from climapred.data.regrid import regrid
from climapred.grid import Grid, great_circle_km
from climapred.learning import artefact
from climapred.learning.artefact import Scaling, load_model, save_model, scaled_network
from climapred.learning.forecast import forecast
from climapred.learning.windows import Window
from climapred.models import MODELS

HOUR = np.timedelta64(1, "h")

every_kind = pytest.mark.parametrize(
    ("architecture", "inputs", "target"),
    [("ls_ntp", "anomaly", "change"), ("convlstm", "standard", "value"), ("ls_ntp", "minmax", "change")],
)


def edit_description(folder, **changes):
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@every_kind
def test_a_model_comes_back_as_it_was(make_model, fields, tmp_path, architecture, inputs, target):
    model = make_model(architecture, variables=("skt", "t2m"), inputs=inputs, target=target, feedback=True, layers=1)
    loaded = load_model(save_model(model, tmp_path / "new" / "folder"))
    for name in ("name", "architecture", "options", "scaling", "orders", "variables", "grid", "window", "step"):
        assert getattr(loaded, name) == getattr(model, name), name
    assert loaded.training == model.training
    assert loaded.identity() == model.identity()
    for weight, expected in zip(loaded.module.parameters(), model.module.parameters(), strict=True):
        assert torch.equal(weight, expected)
    before, after = (forecast(each, fields, precision="float32") for each in (model, loaded))
    assert before.identical(after)


@pytest.mark.parametrize("architecture", MODELS)
def test_every_model_comes_back_with_its_forecast(make_model, fields, tmp_path, architecture):
    sizes = {"simvp": {"translator": 4, "layers": 2}, "e3d_lstm": {"kernel": 3, "memory": 1}}
    model = make_model(architecture, **sizes.get(architecture, {}))
    loaded = load_model(save_model(model, tmp_path))
    before, after = (forecast(each, fields, precision="float32") for each in (model, loaded))
    assert before.identical(after)
    assert before["t2m"].std("lead_time").min() > 0


def test_a_folder_holds_plain_json_and_safetensors(make_model, tmp_path):
    model = make_model()
    folder = save_model(model, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]
    content = json.loads((folder / "model.json").read_text())
    assert content["options"] == {"hidden": 4, "embedding": 3}
    assert (content["variables"], content["step_seconds"]) == (["t2m"], 21600)
    # The format: 8 bytes with the length of a JSON header, the header, and nothing but numbers.
    raw = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    assert set(header) == set(model.module.state_dict())
    assert len(raw) == 8 + length + sum(4 * tensor.numel() for tensor in model.module.state_dict().values())


def test_identity_follows_every_weight_and_statistic(make_model):
    model = make_model()
    seen = [model.identity()]
    for name, tensor in model.module.state_dict().items():
        tensor.view(-1)[-1] += 0.5
        assert model.identity() not in seen, name
        seen.append(model.identity())
    assert make_model().identity() == make_model().identity()


def test_identity_follows_every_setting_that_changes_a_forecast(make_model):
    model = make_model()
    axes = model.grid.latitude, model.grid.longitude
    changes = [
        {"architecture": "convlstm"},
        {"options": {**model.options, "feedback": True}},
        {"scaling": Scaling("standard")},
        {"scaling": Scaling(target="value")},
        {"orders": (2, 0)},  # as many harmonics as (0, 2)
        {"variables": ("skt",)},
        {"grid": Grid(axes[0] + 1, axes[1])},
        {"grid": Grid(axes[0], axes[1] + 1)},
        {"window": Window(4, 2)},
        {"window": Window(3, 3)},
        {"step": 3 * HOUR},
    ]
    identities = [model.identity(), *(replace(model, **change).identity() for change in changes)]
    assert len(set(identities)) == len(identities)
    same = replace(model, name="other", training={}, step=model.step.astype("timedelta64[ns]"))
    assert same.identity() == model.identity()
    assert replace(model, options=dict(reversed(model.options.items()))).identity() == model.identity()


def test_adjacency_is_that_of_the_embedding(make_model):
    model = make_model("ls_ntp", smooth=1)
    weights, shared = model.adjacency(), model.module.network.shared
    targets, sources = (vectors.detach().double().numpy() for vectors in (shared.embedding, shared.sources))
    assert weights.shape == (35, 35)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    scores = np.exp(targets @ sources.T)
    np.testing.assert_allclose(weights, scores / scores.sum(axis=1, keepdims=True), rtol=1e-5)
    assert make_model("convlstm").adjacency() is None


def test_a_save_that_ended_between_its_files_has_saved(make_model, tmp_path):
    # What a kill between the two renames leaves (tests/learning/test_files.py kills): the new weights beside the older
    # description, and the new description under another name.
    first, second = make_model(seed=0), make_model(seed=1, layers=1)
    save_model(first, tmp_path / "a")
    save_model(second, tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").replace(tmp_path / "a" / "model.safetensors")
    (tmp_path / "b" / "model.json").replace(tmp_path / "a" / "model.json.tmp")
    assert load_model(tmp_path / "a").identity() == second.identity()
    assert load_model(save_model(first, tmp_path / "a")).identity() == first.identity()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["model.json", "model.safetensors"]


def test_a_folder_without_model_says_what_is_missing(make_model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no trained model in .*nowhere: model.json is missing"):
        load_model(tmp_path / "nowhere")
    (save_model(make_model(), tmp_path) / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors is missing"):
        load_model(tmp_path)


def test_weights_that_are_not_those_described_are_refused(make_model, tmp_path):
    weights = save_model(make_model(), tmp_path / "a") / "model.safetensors"
    other = save_model(make_model(seed=1), tmp_path / "b") / "model.safetensors"
    whole = weights.read_bytes()
    for wrong in (other.read_bytes(), whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        weights.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"model.safetensors is not the file that model.json describes"):
            load_model(tmp_path / "a")


def test_a_newer_format_is_refused(make_model, tmp_path):
    edit_description(save_model(make_model(), tmp_path), format=2, future=True)
    with pytest.raises(ValueError, match=r"model.json has format 2, this climapred reads 1; update climapred"):
        load_model(tmp_path)


UNFIT = r"it does not fit model.safetensors, in which "


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"future": 1}, "unknown keys future; known keys: format, name, architecture, options, scaling, orders, var"),
        ({"name": 3}, "name must be str, got 3"),
        ({"architecture": "lstm"}, "unknown model 'lstm'; known models: convlstm, ls_ntp"),
        ({"architecture": "__class__"}, "unknown model '__class__'; known models: "),
        ({"architecture": "os.system"}, "unknown model 'os.system'; known models: "),
        ({"architecture": "convlstm", "options": {"hidden": 4}}, UNFIT + "network.encoder.* unknown and .* more"),
        ({"options": {"hidden": "4"}}, "option hidden of model 'ls_ntp' must be int, got '4'"),
        ({"options": {"hidden": 4, "depth": 3}}, "model 'ls_ntp' has no option depth; its options: height, width"),
        ({"options": {"hidden": 4, "channels": 1}}, "options of ls_ntp: channels come from the data, leave them out"),
        ({"options": {"hidden": 0}}, "hidden must be at least 1, got 0"),
        ({"options": {"name": "convlstm"}}, "TypeError: .*multiple values for argument 'name'"),
        ({"options": [4]}, r"options must be dict\[str, typing.Any\], got \[4\]"),
        ({"options": {"hidden": 5, "embedding": 3}}, UNFIT + r"network.encoder.* must be float32 .*, got float32"),
        (
            {"options": {"hidden": 4, "embedding": 3, "layers": 3}},
            UNFIT + r"network.* is missing; .* and \d+ more: the file",
        ),
        ({"options": {"hidden": 10**9}}, "RuntimeError: "),
        ({"options": {"hidden": 10**30}}, "TypeError: .*Overflow"),
        ({"options": {"layers": 10**9}}, "the options ask for a far larger network than the one whose weights are"),
        ({"options": {"hidden": 4, "embedding": 10**12}}, UNFIT + "network.shared.embedding must be float32"),
        ({"scaling": {"inputs": "raw"}}, "scaling: inputs must be one of anomaly, standard, minmax, got 'raw'"),
        ({"scaling": {"target": "wind"}}, "scaling: target must be one of change, value, got 'wind'"),
        ({"scaling": {"power": 2}}, "scaling: unknown keys power; known keys: inputs, target"),
        (
            {"scaling": {"inputs": "standard"}},
            'orders must be numbers for inputs "anomaly", null for others, got .0, 2',
        ),
        ({"scaling": {"inputs": "standard"}, "orders": None}, UNFIT + r"reference must be float32 \(1, 1, 1, 1\), got"),
        ({"orders": None}, 'orders must be numbers for inputs "anomaly", null for others, got None'),
        ({"orders": [1, 2]}, UNFIT + r"reference must be float32 \(15, 1, 5, 7\), got float32 \(5, 1, 5, 7\)"),
        ({"orders": [10**9, 10**9]}, r"(Overflow|Runtime)Error"),
        ({"orders": [10**4, 10**4]}, UNFIT + r"reference must be float32 \(400040001, 1, 5, 7\), got"),
        ({"orders": [0, -2]}, r"orders must be 0 or more, got \(0, -2\)"),
        ({"orders": [2]}, r"orders must be tuple\[int, int\], got \[2\]"),
        ({"variables": []}, r"variables must be of t2m, air, .*, got \(\)"),
        ({"variables": ["tas"]}, r"variables must be of t2m, air, .*, got \('tas',\)"),
        ({"variables": ["t2m", "t2m"]}, r"variables must be of t2m, air, .*, each once, got \('t2m', 't2m'\)"),
        ({"variables": ["t2m", "skt"]}, UNFIT + r".* must be float32 .*, got"),
        ({"grid": {"latitude": [0, 1]}}, "grid: missing keys longitude; known keys: latitude, longitude, latitude_b"),
        ({"grid": {"latitude": [1, 0], "longitude": [0, 1]}}, "grid: latitude must increase"),
        ({"grid": {"latitude": [0, float("nan")], "longitude": [0, 1]}}, "grid: latitude must be 1-D, finite and"),
        (
            {"grid": {"latitude": [0, 1], "longitude": [0, 1]}},
            UNFIT + r"network.shared.embedding must be .*; reference",
        ),
        ({"grid": {"latitude": [0, 1], "longitude": [0, 1], "periodic": True}}, "grid: unknown keys periodic"),
        ({"window": {"history": 3}}, "window: missing keys horizon; known keys: history, horizon"),
        ({"window": {"history": 0, "horizon": 2}}, "window: .* history >= 1"),
        ({"window": {"history": 3.0, "horizon": 2}}, "window.history must be int, got 3.0"),
        ({"step_seconds": 0}, "step_seconds must be 1 or more, and below 2.31, got 0"),
        ({"step_seconds": 10**30}, "step_seconds must be 1 or more, and below"),
        ({"step_seconds": "6 h"}, "step_seconds must be int, got '6 h'"),
        ({"training": "none"}, r"training must be dict"),
        ({"weights_sha256": None}, "weights_sha256 must be str, got None"),
    ],
)
def test_a_description_that_no_save_writes_is_refused(make_model, tmp_path, changes, message):
    edit_description(save_model(make_model(), tmp_path), **changes)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "model.json")) + f": .*{message}") as raised:
        load_model(tmp_path)
    assert str(raised.value).endswith("was changed after it was written; copy it again or train again")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100_000  # kB


def test_every_key_of_a_description_is_needed(make_model, tmp_path):
    path = save_model(make_model(), tmp_path) / "model.json"
    whole = json.loads(path.read_text())
    for name in whole:
        path.write_text(json.dumps({key: value for key, value in whole.items() if key != name}))
        with pytest.raises(
            ValueError, match="a JSON object with" if name == "format" else f": missing keys {name}; known"
        ):
            load_model(tmp_path)
    # Cell bounds follow from the points where they are left out, as in files of earlier versions.
    for name in ("latitude_bounds", "longitude_bounds"):
        del whole["grid"][name]
    path.write_text(json.dumps(whole))
    assert load_model(tmp_path).grid == make_model().grid


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("scale"), "scale is missing"),
        (lambda tensors: tensors.update(more=torch.zeros(3)), "more is unknown"),
        (lambda tensors: tensors["reference"].fill_(np.nan), "reference holds NaN or infinity"),
        (lambda tensors: tensors.update(scale=tensors["scale"].double()), "scale must be float32 .*, got float64 "),
        (
            lambda tensors: tensors.update(scale=torch.ones(2, 1, 1)),
            r"scale must be float32 \(1, 1, 1\), got .*\(2, 1, 1",
        ),
        (lambda tensors: tensors["scale"].fill_(0), "scale must be positive in every channel"),
    ],
)
def test_weights_of_another_network_are_refused(make_model, tmp_path, change, message):
    weights = save_model(make_model(), tmp_path) / "model.safetensors"
    tensors = safetensors.torch.load(weights.read_bytes())
    change(tensors)
    weights.write_bytes(safetensors.torch.save(tensors))
    edit_description(tmp_path, weights_sha256=hashlib.sha256(weights.read_bytes()).hexdigest())
    with pytest.raises(ValueError, match=rf"model.json: .*{message}.*; copy it again or train again"):
        load_model(tmp_path)


def test_loading_leaves_the_random_numbers_and_the_files_alone(make_model, tmp_path):
    folder = save_model(make_model(), tmp_path)
    files, state = {path.name: path.read_bytes() for path in folder.iterdir()}, torch.random.get_rng_state()
    first, second = load_model(folder), load_model(folder)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert not first.module.training
    for tensor in first.module.state_dict().values():
        tensor.zero_()
    assert second.identity() == make_model().identity()


# On another grid


def test_a_model_of_single_cells_is_the_same_on_a_part_of_its_grid(make_model, fields):
    # With a kernel of one cell nothing comes from elsewhere: the forecast of a region is the region of the forecast.
    model = make_model("convlstm", kernel=1, variables=("t2m", "skt"), feedback=True)
    part = fields.isel(latitude=slice(1, 4), longitude=slice(2, 7))
    for method in ("bilinear", "nearest", "conservative"):
        moved = model.on_grid(Grid.of(part), method)
        assert moved.grid == Grid.of(part)
        found, whole = (
            forecast(each, fields=data, steps=5, precision="float32") for each, data in ((moved, part), (model, fields))
        )
        expected = whole.isel(latitude=slice(1, 4), longitude=slice(2, 7))
        xr.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("method", ["bilinear", "conservative"])
def test_anomaly_persistence_and_regridding_change_places(make_model, fields, method):
    # An untrained model adds climatologies and fields, and regridding is linear: regrid, then forecast, or the reverse.
    model = make_model("convlstm")
    torch.nn.init.zeros_(model.module.network.readout.weight)
    fine = Grid.regular(4, region=(24, 56, 204, 256))
    found = forecast(model.on_grid(fine, method), regrid(fields, fine, method), steps=4)
    xr.testing.assert_allclose(
        found.drop_attrs(), regrid(forecast(model, fields, steps=4), fine, method).drop_attrs(), rtol=0, atol=1e-3
    )


def test_a_model_that_moved_says_where_it_comes_from(make_model, tmp_path):
    model = make_model("convlstm")
    before, small, smaller = model.identity(), Grid.regular(5, (20, 60, 210, 250)), Grid.regular(5, (30, 50, 210, 250))
    moved = load_model(save_model(model.on_grid(small).on_grid(smaller), tmp_path))
    assert moved.grid == smaller
    assert moved.module.reference.shape[-2:] == smaller.shape
    assert Grid(**moved.training["trained_on"]) == model.grid
    assert moved.training["loss"] == np.pi
    assert moved.identity() != before
    # The model that moved shares nothing with the one that stays.
    moved = model.on_grid(small)
    for tensor in moved.module.state_dict().values():
        tensor.zero_()
    assert (model.identity(), model.training) == (before, make_model().training)
    assert model.on_grid(model.grid) is model


def test_a_model_without_climatology_goes_anywhere(make_model):
    model, elsewhere = make_model("convlstm", inputs="standard"), Grid.regular(2, (-30, -10, 0, 20))
    moved = model.on_grid(elsewhere)
    assert torch.equal(moved.module.reference, model.module.reference)
    assert (moved.grid, Grid(**moved.training["trained_on"])) == (elsewhere, model.grid)
    assert moved.identity() != model.identity()


def test_a_model_stays_inside_its_climatology(make_model):
    model = make_model("convlstm")  # 20..60 N, 200..260 E
    beyond = (
        r"model small cannot move to Grid\(6 x 4, 20..70 N, 210..240 E\): 4 of its 24 points lie outside "
        r"Grid\(5 x 7, 20..60 N, 200..260 E\), where the model's climatology is known; choose a region inside"
    )
    with pytest.raises(ValueError, match=beyond):
        model.on_grid(Grid.regular(10, (20, 70, 210, 240)))
    with pytest.raises(ValueError, match="no point of the target lies in the source"):
        model.on_grid(Grid.regular(10, (-40, 0, 210, 240)))
    with pytest.raises(ValueError, match="method must be one of nearest, bilinear, conservative, got 'cubic'"):
        model.on_grid(Grid.regular(5, (20, 60, 210, 250)), "cubic")


def test_a_model_that_belongs_to_its_grid_says_why(make_model):
    model = make_model("ls_ntp")
    why = (
        r"model small cannot move to Grid\(3 x 4.*\): the weights of ls_ntp belong to the points they were trained on, an "
        r"adjacency holds one learned vector for each of the 5 x 7 points of Grid\(5 x 7, 20..60 N, 200..260 E\); regrid "
        r"the fields instead: climapred.regrid\(fields, model.grid\)"
    )
    with pytest.raises(ValueError, match=why):
        model.on_grid(Grid.regular(10, (30, 50, 210, 240)))
    assert model.on_grid(model.grid) is model


# What a network is made of


def test_statistics_become_reference_and_scale(fields, statistics):
    def make(inputs):
        module, orders = scaled_network(
            "convlstm",
            {"hidden": 2},
            scaling=Scaling(inputs),
            statistics=statistics,
            variables=("skt", "t2m"),
            window=Window(3, 2),
            seed=0,
        )
        return module.reference.numpy(), module.scale.flatten().numpy(), orders

    skt, t2m = (fields[name].values[:40].astype(float) for name in ("skt", "t2m"))
    reference, scale, orders = make("standard")
    assert orders is None
    np.testing.assert_allclose(reference.flatten(), [skt.mean(), t2m.mean()], rtol=1e-6)
    np.testing.assert_allclose(scale, [skt.std(), t2m.std()], rtol=1e-5)
    reference, scale, orders = make("minmax")
    assert orders is None
    np.testing.assert_allclose(reference.flatten(), [skt.min(), t2m.min()], rtol=1e-6)
    np.testing.assert_allclose(scale, [np.ptp(skt), np.ptp(t2m)], rtol=1e-5)
    reference, scale, orders = make("anomaly")
    assert orders == (0, 2)
    expected = statistics["climatology"].sel(variable=["skt", "t2m"])
    np.testing.assert_allclose(reference, expected.transpose("harmonic", "variable", ...), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(scale, statistics["anomaly_std"].sel(variable=["skt", "t2m"]), rtol=1e-6)


def test_a_seed_makes_the_weights(statistics):
    def weights(seed):
        torch.rand(seed + 1)
        arguments = {"scaling": Scaling(), "statistics": statistics, "variables": ("t2m",), "window": Window(3, 2)}
        return scaled_network("convlstm", {"hidden": 2}, seed=seed, **arguments)[0].network.encoder[0].gates.weight

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_what_cannot_be_built_is_named(statistics):
    def make(architecture="convlstm", options=None, variables=("t2m",)):
        arguments = {"statistics": statistics, "variables": variables, "window": Window(3, 2)}
        return scaled_network(architecture, options or {}, scaling=Scaling(), seed=0, **arguments)

    with pytest.raises(ValueError, match="the statistics lack msl, u10; they hold t2m, skt"):
        make(variables=("t2m", "u10", "msl"))
    with pytest.raises(ValueError, match="options of convlstm: channels, height come from the data, leave them out"):
        make(options={"channels": 3, "height": 4})
    with pytest.raises(ValueError, match="unknown model 'lstm'"):
        make("lstm")
    with pytest.raises(ValueError, match="inputs must be one of anomaly, standard, minmax, got 'anomalies'"):
        Scaling("anomalies")
    with pytest.raises(ValueError, match="target must be one of change, value, got 'values'"):
        Scaling(target="values")


@pytest.mark.parametrize("form", ["dense", "streamed"])
def test_links_have_a_longest_distance_and_every_other_point_may_be_a_node(fields, make_model, tmp_path, form):
    model = make_model(max_km=1500.0, downsample=True, adjacency=form)
    assert model.node_grid.shape == (2, 3)
    nodes = model.node_grid.latitude, model.node_grid.longitude
    np.testing.assert_array_equal(model.node_grid.latitude, fields["latitude"].values[[1, 3]])
    np.testing.assert_array_equal(model.node_grid.longitude, fields["longitude"].values[[1, 3, 5]])
    latitude, longitude = (axis.ravel() for axis in np.meshgrid(*nodes, indexing="ij"))
    far = great_circle_km(latitude[:, None], longitude[:, None], latitude, longitude) > 1500
    assert 0 < far.sum() < far.size
    np.testing.assert_array_equal(model.adjacency() == 0, far)
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    np.testing.assert_array_equal(loaded.adjacency(), model.adjacency())
    seen = fields.isel(time=slice(0, 3))
    xr.testing.assert_identical(loaded.forecast(seen), model.forecast(seen))


def test_the_adjacency_of_agcrn_is_a_matrix_too(make_model):
    weights = make_model("agcrn", embedding=4).adjacency()
    assert weights.shape == (35, 35)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)


def test_of_signed_weights_the_modulus_is_told(make_model):
    model = make_model("ls_ntp", smooth=1, adjacency="low_rank")
    shared = model.module.network.shared
    signed = (shared.embedding @ shared.sources.T).detach().numpy() / 35**0.5
    assert (signed < 0).any()
    np.testing.assert_allclose(model.adjacency(), abs(signed), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("form", ["dense", "streamed", "sparse", "low_rank"])
def test_the_rows_of_an_adjacency_come_a_few_at_a_time(make_model, monkeypatch, form):
    model = make_model(adjacency=form, links=5)
    whole = model.adjacency()
    assert (np.count_nonzero(whole) == 35 * 5) == (form == "sparse")
    monkeypatch.setattr(artefact, "_PAIRS_AT_ONCE", 4 * 35)
    blocks = list(model.adjacency_rows())
    assert [len(block) for block in blocks] == [4] * 8 + [3]
    np.testing.assert_allclose(np.concatenate(blocks), whole, rtol=1e-6)
    rows = model.adjacency_rows()
    next(rows)
    assert torch.is_grad_enabled()  # while a generator waits
    monkeypatch.setattr(artefact, "_MOST_NODES", 34)
    with pytest.raises(
        ValueError, match=r"adjacency of Grid\(5 x 7, .* is too large for one array; take adjacency_rows"
    ):
        model.adjacency()
    with pytest.raises(ValueError, match="has no adjacency"):
        next(make_model("convlstm").adjacency_rows())
