"""An archive is read without running what it holds, and without trusting what it says."""

from __future__ import annotations

import json
import pickle
import re
import struct
import sys
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pt2_files import (
    CONSTANTS,
    PROGRAM,
    SAMPLES,
    WEIGHTS,
    Touches,
    edited,
    members,
    pickled,
    save,
    save_small,
    write,
)
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.capture.pt2.archive import load_archive
from tersor.ir.errors import InputError, TersorError

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return save_small(tmp_path_factory.mktemp("small") / "small.pt2")


def refused(path: Path, canary: Path) -> str:
    """The error, on one line, of a file that ran nothing."""
    with pytest.raises(TersorError) as caught:
        capture(path)
    assert not canary.exists()
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_an_archive_with_ranges_derived_dims_constants_and_tied_weights_loads(small):
    program = capture(small)
    x, right = torch.randn(5, 8, 4), torch.randn(6)
    given = {"x": x, "pair_left": torch.randn(5), "pair_right": right, "scale": torch.ones(4)}
    expected = torch.export.load(str(small)).module()(
        x, {"left": given["pair_left"], "right": right}, scale=given["scale"]
    )
    found = program(**given)
    torch.testing.assert_close(found["y"], expected["y"])
    torch.testing.assert_close(found["z"], expected["z"])
    exported = load_archive(small)
    assert exported.state_dict["first.weight"].data_ptr() == exported.state_dict["tied.weight"].data_ptr()
    assert exported.constants["narrow"].dtype == torch.bfloat16


def test_an_archive_with_files_of_its_writer_loads(small, tmp_path):
    path = write(tmp_path / "extra.pt2", {**members(small), "extra/notes.txt": b"hello"})
    assert capture(path).inputs[0].name == "x"


class Sizes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        return x[:, : n // 2 + 1] * (n / 2) + n % 3 + n**2


def test_an_archive_with_arithmetic_on_sizes_loads(tmp_path):
    auto = torch.export.Dim.AUTO
    path = save(Sizes(), (torch.randn(2, 9),), None, tmp_path / "s.pt2", dynamic_shapes=({0: auto, 1: auto},))
    x = torch.randn(3, 11)
    torch.testing.assert_close(capture(path)(x=x), Sizes()(x))


@pytest.mark.parametrize("folder", ["weights", "constants"])
def test_tensors_in_the_old_format_are_never_unpickled(small, tmp_path, folder):
    canary = tmp_path / "canary"
    name = f"data/{folder}/model.pt"
    path = write(tmp_path / "bad.pt2", {**members(small), name: pickled({"first.weight": Touches(canary)})})
    message = refused(path, canary)
    assert f"{name} may be a pickle" in message
    assert "torch.export.save of torch" in message


@pytest.mark.parametrize("prefix", ["opaque_obj_", "custom_obj_", "tensor_"])
def test_objects_among_the_constants_are_never_unpickled(small, tmp_path, prefix):
    def add(held: Any) -> None:
        entry = next(iter(held["config"].values()))
        held["config"]["c"] = {
            **entry,
            "path_name": f"{prefix}9",
            "use_pickle": True,
        }

    canary = tmp_path / "canary"
    found = members(small)
    data = pickle.dumps(Touches(canary)) if prefix == "opaque_obj_" else pickled(Touches(canary))
    found |= {f"data/constants/{prefix}9": data, CONSTANTS: edited(found[CONSTANTS], add)}
    assert "pickle" in refused(write(tmp_path / "bad.pt2", found), canary)


@pytest.mark.parametrize("evil_first", [True, False])
def test_a_member_that_comes_twice_is_refused(small, tmp_path, evil_first):
    def mark(held: Any) -> None:
        next(iter(held["config"].values()))["use_pickle"] = True

    canary = tmp_path / "canary"
    found = members(small)
    found["data/weights/weight_0"] = pickled(Touches(canary))
    evil, good = (WEIGHTS, edited(found[WEIGHTS], mark)), (WEIGHTS, found.pop(WEIGHTS))
    files = [*found.items(), *((evil, good) if evil_first else (good, evil))]
    assert f"{WEIGHTS} comes twice" in refused(write(tmp_path / "bad.pt2", files), canary)


def test_a_key_that_comes_twice_is_refused(small, tmp_path):
    found = members(small)
    found[WEIGHTS] = found[WEIGHTS].replace(
        b'"use_pickle": false', b'"use_pickle": true, "use_pickle": false', 1
    )
    message = refused(write(tmp_path / "bad.pt2", found), tmp_path / "canary")
    assert f"{WEIGHTS}: the key 'use_pickle' comes twice" in message


def test_the_format_before_this_one_is_refused(small, tmp_path):
    """torch.export.load falls back to it when the new one cannot be read."""
    canary = tmp_path / "canary"
    path = tmp_path / "bad.pt2"
    found = members(small)
    found["archive_version"] = b""
    write(path, found)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("version", "8.20")
        file.writestr("serialized_exported_program.json", found[PROGRAM])
        for name in ("state_dict", "constants", "example_inputs"):
            file.writestr(f"serialized_{name}.pt", pickled({"x": Touches(canary)}))
    assert "version is nothing that torch.export.save writes" in refused(path, canary)


def test_a_packed_member_is_refused(small, tmp_path):
    path = tmp_path / "bad.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members(small).items():
            file.writestr(f"small/{name}", data)
    assert "is packed" in refused(path, tmp_path / "canary")


def _headers(content: bytes) -> list[int]:
    """Where the entries of an archive's list of members begin."""
    return [match.start() for match in re.finditer(rb"PK\x01\x02", content)]


def test_members_that_share_their_bytes_are_refused(small, tmp_path):
    """A small file could take all memory: every member may be as large as the file."""
    content = bytearray(small.read_bytes())
    for place in _headers(content):
        content[place + 20 : place + 28] = struct.pack("<II", *[len(content) // 2] * 2)
    path = tmp_path / "bad.pt2"
    path.write_bytes(content)
    assert "is packed" in refused(path, tmp_path / "canary")


def test_an_encrypted_archive_is_one_clear_error(small, tmp_path):
    content = bytearray(small.read_bytes())
    for place in _headers(content):
        content[place + 8] |= 1
    path = tmp_path / "bad.pt2"
    path.write_bytes(content)
    assert "is encrypted" in refused(path, tmp_path / "canary")


def test_bytes_in_another_machines_order_are_refused(small, tmp_path):
    other = {"little": b"big", "big": b"little"}[sys.byteorder]
    path = write(tmp_path / "bad.pt2", {**members(small), "byteorder": other})
    assert "byteorder is not this machine's" in refused(path, tmp_path / "canary")


def test_names_in_a_nodes_history_are_not_looked_up(small, tmp_path):
    def remember(held: Any) -> None:
        for node in held["graph_module"]["graph"]["nodes"]:
            node["metadata"] |= {"source_fn_stack": "f,torch.hub.load", "custom": "no JSON"}

    found = members(small)
    found[PROGRAM] = edited(found[PROGRAM], remember)
    exported = load_archive(write(tmp_path / "history.pt2", found))
    for node in exported.graph.nodes:
        assert not {"source_fn_stack", "custom"} & node.meta.keys()
        assert node.op != "call_function" or "nn_module_stack" in node.meta


def test_a_tensor_that_is_said_to_hold_more_than_its_bytes_is_refused(small, tmp_path):
    def grow(held: Any) -> None:
        held["config"]["nothing"]["tensor_meta"]["sizes"] = [{"as_int": 10**12}]

    found = members(small)
    found[WEIGHTS] = edited(found[WEIGHTS], grow)
    assert "is empty" in refused(write(tmp_path / "bad.pt2", found), tmp_path / "canary")


def test_keys_of_sample_inputs_stay_out_of_source(small, tmp_path):
    """PyTorch writes them into the message of a check, between double quotes."""
    canary = tmp_path / "canary"
    key = f"it's\" if __import__('os').mkdir({str(canary)!r}) else \""
    samples = (
        (torch.randn(3, 8, 4), {key: torch.randn(5), "right": torch.randn(6)}),
        {"scale": torch.ones(4)},
    )
    message = refused(write(tmp_path / "bad.pt2", {**members(small), SAMPLES: pickled(samples)}), canary)
    assert "no plain tensors" in message


def evil_strings(canary: Path) -> list[str]:
    run = f"__import__('os').mkdir('{canary}')"
    enum = json.dumps({"__enum__": True, "fqn": "evil_module:E", "name": "a"})
    return [
        run,
        f"Integer({run})",
        f"x\n{run}\n#",
        f"x=({run})",
        f'a") or {run} or ("',
        f"a' + {run} + '",
        "torch.os.system",
        "torch.hub.load",
        "_operator.attrgetter",
        "torch.ops.aten.save.default",
        "__class__.forward",
        json.dumps([1, {"type": "builtins.dict", "context": enum, "children_spec": []}]),
        "",
        "x",
        "s0",
        "😀",
    ]


def leaves(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all strings, keys and numbers."""
    if isinstance(value, dict):
        return [p for key, part in value.items() for p in leaves(part, (*place, key))]
    if isinstance(value, list):
        return [p for i, part in enumerate(value) for p in leaves(part, (*place, i))]
    return [place]


def put(held: Any, place: tuple[Any, ...], value: Any, as_key: bool) -> None:
    for part in place[:-1]:
        held = held[part]
    if as_key and isinstance(held, dict) and isinstance(value, str):
        held[value] = held.pop(place[-1])
    else:
        held[place[-1]] = value


@pytest.fixture(scope="module")
def evil_module(tmp_path_factory):
    """A module on the path that marks its import."""
    folder = tmp_path_factory.mktemp("path")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        (folder / "evil_module.py").write_text(f"import os\nos.mkdir({str(folder / 'canary')!r})\n")
        yield folder / "canary"


FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@FEW
@given(data=st.data())
def test_whatever_is_changed_in_the_json_runs_nothing(small, tmp_path_factory, evil_module, data):
    folder = tmp_path_factory.mktemp("mutated")
    canary = folder / "canary"
    found = members(small)
    name = data.draw(st.sampled_from([PROGRAM, PROGRAM, PROGRAM, WEIGHTS, CONSTANTS]))
    held = json.loads(found[name])
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(leaves(held)))
        numbers = [0, -1, 7, 2**70, 1.5, True, None, [], {}, {"as_string": "x"}]
        value = data.draw(st.sampled_from([*evil_strings(canary), *numbers]))
        put(held, place, value, data.draw(st.booleans()))
    found[name] = json.dumps(held).encode()
    path = write(folder / "mutated.pt2", found)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(TersorError):
            capture(path)
    assert not canary.exists()
    assert not evil_module.exists()


@FEW
@given(data=st.data())
def test_whatever_happens_to_the_bytes_is_one_error_or_the_right_model(small, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes") / "broken.pt2"
    content = bytearray(small.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, 3 * len(content)))])
    with suppress(InputError):
        exported = load_archive(path)
        assert len(exported.graph.nodes) == len(load_archive(small).graph.nodes)
