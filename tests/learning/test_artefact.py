import json
import os
import struct

import numpy as np
import pytest
import torch

from climapred.learning.artefact import Scaling, load_model, save_model, scaled_network
from climapred.learning.forecast import forecast

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


def test_adjacency_is_that_of_the_embedding(make_model):
    model = make_model("ls_ntp")
    weights, vectors = model.adjacency(), model.module.network.shared.embedding.detach().double().numpy()
    assert weights.shape == (35, 35)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    scores = np.exp(np.maximum(vectors @ vectors.T, 0))
    np.testing.assert_allclose(weights, scores / scores.sum(axis=1, keepdims=True), rtol=1e-5)
    assert make_model("convlstm").adjacency() is None


def test_a_model_is_whole_or_not_there(make_model, tmp_path, monkeypatch):
    # A second model is saved over a first one, and the process ends before its description is in place: the folder must
    # not join the description of the first to the weights of the second.
    save_model(make_model(seed=0), tmp_path)
    replace = os.replace

    def interrupted(source, target):
        if str(target).endswith("model.json"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    second = make_model(seed=1)
    with pytest.raises(KeyboardInterrupt):
        save_model(second, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model.json is missing; train it with `climapred run`"):
        load_model(tmp_path)
    monkeypatch.undo()
    assert load_model(save_model(second, tmp_path)).identity() == second.identity()


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
    edit_description(save_model(make_model(), tmp_path), format=2)
    with pytest.raises(ValueError, match=r"model.json has format 2, this climapred reads 1; update climapred"):
        load_model(tmp_path)


def test_statistics_become_reference_and_scale(fields, statistics):
    def make(inputs):
        module, orders = scaled_network(
            "convlstm",
            {"hidden": 2},
            scaling=Scaling(inputs),
            statistics=statistics,
            variables=("skt", "t2m"),
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
        arguments = {"scaling": Scaling(), "statistics": statistics, "variables": ("t2m",)}
        return scaled_network("convlstm", {"hidden": 2}, seed=seed, **arguments)[0].network.encoder[0].gates.weight

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_what_cannot_be_built_is_named(statistics):
    def make(architecture="convlstm", options=None, variables=("t2m",)):
        return scaled_network(
            architecture, options or {}, scaling=Scaling(), statistics=statistics, variables=variables, seed=0
        )

    with pytest.raises(ValueError, match="the statistics lack msl, u10; they hold t2m, skt"):
        make(variables=("t2m", "u10", "msl"))
    with pytest.raises(ValueError, match="options of convlstm: channels, height come from the data, leave them out"):
        make(options={"channels": 3, "height": 4})
    with pytest.raises(ValueError, match="unknown model 'lstm'"):
        make("lstm")
