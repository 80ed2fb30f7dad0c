"""What is saved is loaded back equal; what is damaged or hostile ends in one error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_programs import Config, build, configs, inputs_of

from tersor.ir.archive import load, save, weights_hash
from tersor.ir.errors import ArtifactError
from tersor.ir.graph_json import _Decoder, encode
from tersor.ir.text import program_text
from tersor.ir.verifier import verify


@settings(max_examples=5, deadline=None)
@given(config=configs(), single=st.booleans())
def test_a_saved_program_loads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, config: Config, single: bool
) -> None:
    program = build(config).edit().with_facts(family="bert", unraised=(("a", "b"),), deviation=0.5)
    program.notes["token-drop"] = [{"layer": 1, "keep": 0.5}]
    path = tmp_path_factory.mktemp("archive") / ("model.safetensors" if single else "model")
    save(program, path)
    loaded = load(path)
    verify(loaded)
    assert program_text(loaded, weights=True, full=True) == program_text(program, weights=True, full=True)
    assert [n.target for n in loaded.graph.nodes] == [n.target for n in program.graph.nodes]
    assert (loaded.facts, loaded.notes, loaded.ranges) == (program.facts, program.notes, program.ranges)
    assert (loaded.inputs, loaded.outputs, loaded.structure) == (
        program.inputs,
        program.outputs,
        program.structure,
    )
    sizes = {"batch": 3, "tokens": 5} if config.dynamic else {"batch": config.batch, "tokens": config.tokens}
    inputs = inputs_of(program, config, **sizes)
    for want, got in zip(program.run(inputs), loaded.run(inputs), strict=True):
        assert torch.equal(want, got)
    for name, value in program.example_inputs.items():
        assert torch.equal(loaded.example_inputs[name], value)


def test_tied_weights_stay_one_tensor(tmp_path: Path) -> None:
    program = build(Config(layers=1)).edit()
    name, tied = "layers.0.attention.key.weight", "layers.0.attention.query.weight"
    program.weights[name] = program.weights[tied]
    save(program, tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.weights[name] is loaded.weights[tied]
    assert list(loaded.weights) == list(program.weights)


def test_strides_of_weights_survive(tmp_path: Path) -> None:
    program = build(Config(layers=1)).edit()
    name = "layers.0.mlp.up.weight"
    program.weights[name] = program.weights[name].T.contiguous().T
    save(program, tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.weights[name].stride() == program.weights[name].stride()
    assert torch.equal(loaded.weights[name], program.weights[name])


def test_weights_in_half_precision_and_views_of_larger_storages_survive(tmp_path: Path) -> None:
    program = build(Config(layers=1)).edit()
    name = "layers.0.mlp.up.weight"
    big = torch.randn(40, 8)
    program.weights[name] = big[4:20]
    save(program, tmp_path / "model")
    loaded = load(tmp_path / "model").weights[name]
    assert torch.equal(loaded, big[4:20])
    assert loaded.untyped_storage().nbytes() == loaded.numel() * 4


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
        | st.sampled_from([
            torch.float32, torch.bool, torch.bfloat16, torch.device("cpu"), torch.strided, torch.contiguous_format,
            torch.channels_last, slice(None, 3, None), slice(1, None, 2),
        ]),
        lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=2), inner, max_size=2),
        max_leaves=8,
    )
)  # fmt: skip
def test_every_argument_survives_json(value: Any) -> None:
    assert _Decoder({})(json.loads(json.dumps(encode(value), allow_nan=False))) == value


def test_the_hash_depends_on_values_and_names_not_on_order_or_strides() -> None:
    a, b = torch.randn(3, 4), torch.randn(2)
    assert weights_hash({"a": a, "b": b}) == weights_hash({"b": b, "a": a.T.contiguous().T})
    assert weights_hash({"a": a}) != weights_hash({"b": a})
    assert weights_hash({"a": a}) != weights_hash({"a": a + 1e-6})
    assert weights_hash({"a": a}) != weights_hash({"a": a.reshape(4, 3)})


def saved(folder: Path) -> dict[str, Any]:
    save(build(Config(layers=1)), folder)
    return json.loads((folder / "program.json").read_text())  # type: ignore[no-any-return]


def test_a_missing_folder_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        load(tmp_path / "nowhere")
    saved(tmp_path)
    (tmp_path / "program.json").unlink()
    with pytest.raises(ArtifactError, match=r"program\.json does not exist"):
        load(tmp_path)


def test_another_version_is_refused(tmp_path: Path) -> None:
    header = saved(tmp_path)
    (tmp_path / "program.json").write_text(json.dumps({**header, "tersor": 99}))
    with pytest.raises(ArtifactError, match="format version 99, this Tersor reads 1"):
        load(tmp_path)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "one")
    save(build(Config(layers=1, seed=1)), tmp_path / "two")
    (tmp_path / "two" / "program.safetensors").replace(tmp_path / "one" / "program.safetensors")
    with pytest.raises(ArtifactError, match="not the ones its graph was saved with"):
        load(tmp_path / "one")


@pytest.mark.parametrize(
    "target",
    [
        "aten.from_file.default",
        "aten.gelu_.default",
        "aten.no_such_op.default",
        "os.system",
        "builtins.eval",
        "operator.methodcaller",
        "torch.load",
        "aten.__class__.default",
        "prim.device.default",
    ],
)
def test_a_file_cannot_name_functions_outside_the_ir(tmp_path: Path, target: str) -> None:
    header = saved(tmp_path)
    node = next(n for n in header["nodes"] if n["target"] == "aten.gelu.default")
    node["target"] = target
    (tmp_path / "program.json").write_text(json.dumps(header))
    with pytest.raises(ArtifactError):
        load(tmp_path)


@pytest.mark.parametrize("name", ["x=({run})", "x\n    {run}\n    (", "*x, y=({run})", "a b"])
def test_the_name_of_an_input_cannot_be_source(tmp_path: Path, name: str) -> None:
    save(build(Config()), tmp_path / "m")
    file, canary = tmp_path / "m" / "program.json", tmp_path / "canary"
    held = json.loads(file.read_text())
    written = name.format(run=f"__import__('os').mkdir({str(canary)!r})")
    placeholder = next(node for node in held["nodes"] if node["op"] == "placeholder")
    for spec in held["inputs"]:
        spec["name"] = written if spec["name"] == placeholder["target"] else spec["name"]
    placeholder["target"] = written
    file.write_text(json.dumps(held))
    with pytest.raises(ArtifactError, match="cannot be the name of an input"):
        load(tmp_path / "m").module()
    assert not canary.exists()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_damage_anywhere_ends_in_one_error_or_in_an_equal_program(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("archive")
    program = build(Config(layers=1, dynamic=False))
    save(program, folder)
    victim = folder / data.draw(st.sampled_from(["program.json", "program.safetensors"]))
    content = bytearray(victim.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:place]
    else:
        content[place] = data.draw(st.integers(0, 255))
    victim.write_bytes(bytes(content))
    try:
        loaded = load(folder)
    except ArtifactError:
        return
    verify(loaded)


def test_what_json_cannot_carry_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    program = build(Config(layers=1)).edit()
    program.notes["callback"] = print
    with pytest.raises(ArtifactError, match="cannot be saved"):
        save(program, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(build(Config(layers=1)), tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("tersor.ir.archive.save_file", full)
    with pytest.raises(ArtifactError, match="no space left"):
        save(build(Config(layers=1, seed=1)), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["program.json", "program.safetensors"]
    load(tmp_path)
