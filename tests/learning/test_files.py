import hashlib
import io
import json
import os
import pickle
import re
import resource
import shutil
import struct
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from climapred.learning.files import check_tensors, outline, read_model, write_model

# Written whole or not at all

KILLS = """
    import json, os, resource, shutil, signal, sys
    from pathlib import Path
    import torch
    from climapred.learning.files import write_model

    def save(folder, number, *, operations=None, size=None, fatal=True):
        '''Save in a child that ends before so many file operations, or as soon as a file grows beyond a size.'''
        child = os.fork()
        if child:
            return os.waitpid(child, 0)[1] == 0
        if size is not None:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if fatal else signal.SIG_IGN)
        left = operations
        def audit(event, arguments):
            nonlocal left
            if left is not None and event in ("open", "os.rename", "os.remove") and str(folder) in str(arguments[0]):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(audit)
        content = {"format": 1, "number": number, "note": "x" * 3000}
        try:
            write_model(folder, content, {"weight": torch.full((400,), float(number))})
        except OSError:
            os._exit(1)
        os._exit(0)

    root, lived = Path(sys.argv[1]), {}
    for first in range(8):
        lived[f"first-{first}"] = save(root / f"first-{first}", 1, operations=first)
        shutil.copytree(root / f"first-{first}", root / f"again-{first}")
        lived[f"again-{first}"] = save(root / f"again-{first}", 2)
        second = root / f"second-{first}"
        save(second, 1)
        lived[second.name] = save(second, 2, operations=first)
        for then in range(12):
            third = root / f"third-{first}-{then}"
            shutil.copytree(second, third)
            lived[third.name] = save(third, 3, operations=then)
    for size in (0, 1, 900, 1700, 2500):
        for fatal in (True, False):
            folder = root / f"{'killed' if fatal else 'full'}-{size}"
            save(folder, 1)
            lived[folder.name] = save(folder, 2, size=size, fatal=fatal)
    print(json.dumps(lived))
"""


@dataclass
class Numbered:
    format: int
    number: int
    note: str
    weights_sha256: str


@pytest.fixture(scope="module")
def saves(tmp_path_factory):
    """Folders in which saves were killed, and which of the saves lived; forked where no other thread runs."""
    root = tmp_path_factory.mktemp("saves")
    command = [sys.executable, "-c", textwrap.dedent(KILLS), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return root, json.loads(done.stdout)


def number_in(folder):
    """The number of the model in a folder, on which description and weights must agree; None if it holds none."""
    try:
        _, content, tensors = read_model(folder, Numbered, version=1)
    except FileNotFoundError:
        return None
    assert tensors["weight"].tolist() == [content.number] * 400
    return content.number


def test_a_kill_between_any_two_file_operations_loses_nothing(saves):
    root, lived = saves
    outcomes = set()
    for first in range(8):
        assert number_in(root / f"first-{first}") in ([1] if lived[f"first-{first}"] else [None, 1])
        assert lived[f"again-{first}"]
        assert number_in(root / f"again-{first}") == 2
        second = number_in(root / f"second-{first}")
        assert second in ([2] if lived[f"second-{first}"] else [1, 2])
        for then in range(12):
            name = f"third-{first}-{then}"
            third = number_in(root / name)
            assert third in ([3] if lived[name] else [second, 3]), name
            outcomes.add((lived[f"second-{first}"], second, lived[name], third))
    # Every case has been met: killed before and after the weights were in place, once and twice.
    assert {(False, 1, False, 1), (False, 2, False, 2), (False, 2, False, 3), (False, 2, True, 3)} <= outcomes


def test_a_save_after_a_kill_leaves_two_whole_files(saves):
    root, lived = saves
    finished = [root / name for name in lived if lived[name] and name.startswith(("again", "third"))]
    assert len(finished) > 20
    for folder in finished:
        assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]


@pytest.mark.parametrize("size", [0, 1, 900, 1700, 2500])
def test_a_kill_or_a_full_disk_in_the_middle_of_a_file_leaves_the_older_model(saves, size):
    root, lived = saves
    for name in (f"killed-{size}", f"full-{size}"):
        assert not lived[name]
        assert number_in(root / name) == 1
    assert sorted(path.name for path in (root / f"full-{size}").iterdir()) == ["model.json", "model.safetensors"]


def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        write(tmp_path, {**WHOLE, "rest": {"a": object()}})
    assert list(tmp_path.iterdir()) == []


def test_both_files_can_be_read_by_whom_the_umask_lets(tmp_path):
    folder, before = tmp_path / "shared", os.umask(0o027)
    try:
        write(folder)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}


# Read as if anyone had written it


@dataclass(frozen=True)
class Part:
    size: int
    kind: Literal["large", "small"] = "large"

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")


@dataclass(frozen=True)
class Content:
    format: int
    weights_sha256: str
    part: Part
    axis: np.ndarray
    names: tuple[str, ...]
    pair: tuple[int, int] | None
    share: float = 0.5
    flag: bool = False
    rest: dict[str, Any] = field(default_factory=dict)
    derived: int = field(default=0, init=False)


WHOLE = {"format": 3, "part": {"size": 4}, "axis": [1, 2.5], "names": ["a", "b"], "pair": [1, 2]}


def write(folder, content=WHOLE):
    write_model(folder, content, {"weight": torch.tensor([[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]).T})  # not contiguous
    return folder


def read(folder):
    return read_model(folder, Content, version=3)


def test_json_becomes_what_the_type_hints_say(tmp_path):
    path, content, tensors = read(write(tmp_path))
    assert path == tmp_path / "model.json"
    assert (content.part, content.names, content.pair) == (Part(4, "large"), ("a", "b"), (1, 2))
    assert (content.share, content.flag, content.rest) == (0.5, False, {})
    assert content.axis.dtype == np.float64
    np.testing.assert_array_equal(content.axis, [1, 2.5])
    assert torch.equal(tensors["weight"], torch.arange(6.0).view(2, 3))
    other = {"part": {"size": 1, "kind": "small"}, "pair": None, "share": 1, "flag": True, "rest": {"b": [None]}}
    content = read(write(tmp_path, WHOLE | other))[1]
    assert (content.part, content.pair, content.share) == (Part(1, "small"), None, 1)
    assert (content.flag, content.rest) == (True, {"b": [None]})


KNOWN = "known keys: format, weights_sha256, part, axis, names, pair, share, flag, rest: the file is damaged"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"part": {"size": 4.0}}, "part.size must be int, got 4.0: the file is damaged, or was changed after it was "),
        ({"part": {"size": True}}, "part.size must be int, got True"),
        ({"part": {"size": "4"}}, "part.size must be int, got '4'"),
        ({"part": {"size": None}}, "part.size must be int, got None"),
        ({"part": {"size": 0}}, "part: size must be at least 1, got 0"),
        ({"part": {}}, "part: missing keys size; known keys: size, kind"),
        ({"part": {"size": 1, "kid": 2, "a": 3}}, "part: unknown keys a, kid; known keys: size, kind"),
        ({"part": {"size": 1, "kind": 2}}, "part.kind must be Literal"),
        ({"part": [4]}, "part must be an object, got [4]"),
        ({"axis": [1, "2"]}, "axis[1] must be float, got '2'"),
        ({"axis": [1, True]}, "axis[1] must be float, got True"),
        ({"axis": 3}, "must be tuple[float, ...], got 3"),
        ({"axis": [10**400]}, "OverflowError: int too large to convert to float"),
        ({"names": ["a", 2]}, "names[1] must be str, got 2"),
        ({"names": "ab"}, "names must be tuple[str, ...], got 'ab'"),
        ({"pair": [1]}, "pair must be tuple[int, int], got [1]"),
        ({"pair": [1, 2, 3]}, "pair must be tuple[int, int], got [1, 2, 3]"),
        ({"share": "half"}, "share must be float, got 'half'"),
        ({"flag": 1}, "flag must be bool, got 1"),
        ({"rest": []}, "rest must be dict[str, typing.Any], got []"),
        ({"derived": 3}, f"unknown keys derived; {KNOWN}"),
        ({"x": 1, "__class__": "os.system"}, f"unknown keys __class__, x; {KNOWN}"),
        ({f"key{i}": 0 for i in range(10, 18)}, "unknown keys key10, key11, key12, key13, key14 and 3 more; known"),
        ({"k" * 1000: 1}, f"unknown keys {'k' * 200}; known"),
        ({"names": ["a"] * 10**5 + [1] * 10**5}, "names[100000] must be str, got 1"),
        ({"part": {"size": "9" * 10**5}}, "part.size must be int, got '999"),
    ],
)
def test_what_is_not_as_wanted_is_named(tmp_path, change, message):
    write(tmp_path, WHOLE | change)
    with pytest.raises(
        ValueError, match=re.escape(f"{tmp_path / 'model.json'}: ") + ".*" + re.escape(message)
    ) as raised:
        read(tmp_path)
    assert len(str(raised.value)) < 600 + len(str(tmp_path))


def test_missing_keys_are_named(tmp_path):
    for name in ("part", "axis", "names", "pair"):
        write(tmp_path, {key: value for key, value in WHOLE.items() if key != name})
        with pytest.raises(ValueError, match=rf"model.json: missing keys {name}; {KNOWN}"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "JSONDecodeError: Expecting value"),
        (b'{"format": 3', "JSONDecodeError"),
        (b"\x80\x04\x95", "UnicodeDecodeError"),
        (b"[" * 100_000, "RecursionError"),
        (b'{"format": 3, "rest": ' + b"[" * 100_000, "RecursionError"),
        (b"1" * 5000, r"Exceeds the limit \(4300 digits\)"),
        (b"[3]", r'it must hold a JSON object with "format": 3, got \[3\]'),
        (b"3", r'it must hold a JSON object with "format": 3, got 3'),
        (b"{}", "a JSON object with .*, got {}"),
        (b'{"format": "3"}', "a JSON object with .*, got {'format': '3'}"),
        (b'{"format": 3.0}', "a JSON object with .*, got {'format': 3.0}"),
        (b'{"format": true}', "a JSON object with .*, got {'format': True}"),
        (b'{"format": 0}', "a JSON object with .*, got {'format': 0}"),
    ],
)
def test_a_description_that_is_none_is_refused(tmp_path, text, message):
    (write(tmp_path) / "model.json").write_bytes(text)
    with pytest.raises(ValueError, match=rf"model.json: .*{message}.*: the file is damaged.*; copy it again or train"):
        read(tmp_path)
    (tmp_path / "model.json.tmp").write_bytes(text)  # as after a kill while it was written
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_another_format_says_which_side_is_older(tmp_path):
    write(tmp_path, {"format": 4, "future": 1})
    with pytest.raises(ValueError, match=r"model.json has format 4, this climapred reads 3; update climapred$"):
        read(tmp_path)
    write(tmp_path, {"format": 2, "past": 1})
    with pytest.raises(ValueError, match=r"model.json has format 2, this climapred reads 3; train it again$"):
        read(tmp_path)


def test_what_is_no_file_counts_as_missing(tmp_path):
    write(tmp_path)
    shutil.copy(tmp_path / "model.json", tmp_path / "model.json.tmp")
    (tmp_path / "model.safetensors").rename(tmp_path / "kept")
    with pytest.raises(FileNotFoundError, match=r"no trained model in .*: model.safetensors is missing; train it"):
        read(tmp_path)
    (tmp_path / "kept").rename(tmp_path / "model.safetensors")
    (tmp_path / "model.json.tmp").unlink()
    for name in ("model.json", "model.safetensors"):
        (tmp_path / name).rename(tmp_path / "kept")
        os.mkfifo(tmp_path / name)  # reading it would wait for ever
        os.mkfifo(tmp_path / "model.json.tmp")
        with pytest.raises(FileNotFoundError, match=rf"no trained model in .*: {name} is missing; train it"):
            read(tmp_path)
        (tmp_path / "model.json.tmp").unlink()
        (tmp_path / "kept").rename(tmp_path / name)
    assert read(tmp_path)[1].names == ("a", "b")


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def header(entries, data=b"\0" * 16, length=None):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"weight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


HOSTILE_WEIGHTS = {
    "empty": b"",
    "short": b"abc",
    "no header": struct.pack("<Q", 10**6) + b"{",
    "huge header": header({}, length=2**62),
    "no json": struct.pack("<Q", 4) + b"[[[[",
    "beyond the file": header(entry(offsets=(0, 10**12), shape=(25 * 10**10,))),
    "before the file": header(entry(offsets=(-16, 0))),
    "backwards": header(entry(offsets=(16, 0))),
    "shape beyond the data": header(entry(shape=(10**9, 10**9))),
    "shape beyond integers": header(entry(shape=(10**18, 10**18))),
    "unknown type": header(entry("os.system")),
    "type that torch lacks": header(entry("F4", shape=(32,))),
    "overlapping": header(entry() | {"other": entry()["weight"]}),
}


def hostile_pickles(marker):
    """Two ways in which a model can be a program; each has worked on whoever unpickles it."""
    stream = io.BytesIO()
    torch.save({"weight": Hostile(marker)}, stream)
    torch.load(io.BytesIO(stream.getvalue()), weights_only=False)
    marker.rmdir()
    plain = pickle.dumps(Hostile(marker))
    pickle.loads(plain)
    marker.rmdir()
    return {"torch": stream.getvalue(), "pickle": plain}


@pytest.mark.parametrize("kind", [*HOSTILE_WEIGHTS, "pickle", "torch"])
def test_weights_that_are_none_are_refused_and_run_nothing(tmp_path, kind):
    marker, path = tmp_path / "marker", write(tmp_path) / "model.json"
    raw = (HOSTILE_WEIGHTS | hostile_pickles(marker))[kind]
    (tmp_path / "model.safetensors").write_bytes(raw)
    vouched = {"weights_sha256": hashlib.sha256(raw).hexdigest()}  # as an attacker would
    path.write_text(json.dumps(json.loads(path.read_text()) | vouched))
    with pytest.raises(ValueError, match=r"model.safetensors: \w+Error: .*: the file is damaged"):
        read(tmp_path)
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"model.json: .*: the file is damaged"):
        read(tmp_path)
    assert not marker.exists()


def test_weights_that_are_not_those_described_are_refused(tmp_path):
    weights = write(tmp_path) / "model.safetensors"
    whole = weights.read_bytes()
    for wrong in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        weights.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"safetensors is not the file that model.json describes; copy both again"):
            read(tmp_path)


# Tensors as a network wants them


def layers(count=3, width=4):
    return torch.nn.Sequential(*(torch.nn.Conv2d(width, width, 3) for _ in range(count)))


def test_an_outline_has_the_shapes_and_nothing_else():
    network, before = layers(), torch.random.get_rng_state()
    found = outline(layers, like=network.state_dict())
    assert {name: (value.shape, value.dtype) for name, value in found.state_dict().items()} == {
        name: (value.shape, value.dtype) for name, value in network.state_dict().items()
    }
    assert all(value.is_meta for value in found.state_dict().values())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_outline_of_something_huge_costs_nothing():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert outline(lambda: layers(1, 20_000), like={})[0].weight.shape == (20_000, 20_000, 3, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB; in full it would be 14 GB
    with pytest.raises(ValueError, match="ask for a far larger network than the one whose weights are stored"):
        outline(lambda: layers(10**9, 1), like={"weight": torch.zeros(1)})
    assert torch.is_grad_enabled()  # it was refused within an initialisation, which keeps no gradients
    # A network of 500 layers is not far larger than one of 500 layers.
    assert len(outline(lambda: layers(500), like=layers(500, 1).state_dict())) == 500


def test_tensors_that_do_not_fit_are_named():
    wanted = {"a": torch.zeros(2, 3), "b": torch.zeros(4), "c": torch.zeros(1)}
    check_tensors({name: value + 1 for name, value in wanted.items()}, wanted)

    def refused(tensors, message):
        with pytest.raises(ValueError, match=f"it does not fit model.safetensors, in which {message}$"):
            check_tensors(tensors, wanted)

    refused({"a": wanted["a"], "b": wanted["b"]}, "c is missing")
    refused(wanted | {"d": torch.zeros(1)}, "d is unknown")
    refused(wanted | {"a": torch.zeros(3, 2)}, r"a must be float32 \(2, 3\), got float32 \(3, 2\)")
    refused(wanted | {"a": torch.zeros(2, 3).half()}, r"a must be float32 \(2, 3\), got float16 \(2, 3\)")
    refused({"e": torch.zeros(1), "b": torch.zeros(5), "c": wanted["c"]}, "a is missing; b must be .*; e is unknown")
    refused({}, "a is missing; b is missing; c is missing")
    refused({f"x{i}": torch.zeros(1) for i in range(5)} | wanted, r"x0 is unknown; .*; x4 is unknown")
    refused({f"x{i}": torch.zeros(1) for i in range(6)} | wanted, r"x0 is unknown; .*; x4 is unknown and 1 more")
    for value in (np.nan, np.inf):
        refused(wanted | {"b": torch.tensor([0, 0, 0, value])}, "b holds NaN or infinity")
