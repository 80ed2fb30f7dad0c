"""Where a model may come from: factories, timm names and archives; and the error when it is not there."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.dialect import is_dialect
from tersor.ir.errors import InputError


@pytest.fixture
def factory(tmp_path, monkeypatch) -> str:
    """A module on the path with factories of a small encoder."""
    (tmp_path / "own_models.py").write_text(
        "from torch import nn\n"
        "def encoder():\n"
        "    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1)\n"
        "class holder:\n"
        "    ready = encoder()\n"
        "def broken():\n"
        "    raise ValueError('no such size')\n"
        "def number():\n"
        "    return 3\n"
        "constant = 5\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_models", raising=False)
    return "own_models"


@pytest.mark.parametrize("attribute", ["encoder", "holder.ready"])
def test_a_factory_or_a_module_is_found_by_its_path(factory, attribute):
    program = capture(f"{factory}:{attribute}")
    assert program.facts.source == f"{factory}:{attribute}"
    assert sum(is_dialect(n, "attention") for n in program.graph.nodes) == 1


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("nothing", "has no 'nothing'"),
        ("broken", "raised ValueError: no such size"),
        ("number", "gives a int"),
        ("constant", "neither a module nor a factory"),
    ],
)
def test_a_factory_that_gives_no_model_is_named(factory, attribute, message):
    with pytest.raises(InputError, match=message):
        capture(f"{factory}:{attribute}")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("nowhere", "no model at 'nowhere'"),
        ("no.such.module:thing", "cannot import"),
        ("two words:thing", "no model at"),
        ("timm:vit_tiny_patch16_224", "names no weights"),
        ("timm:vit_tiny_patch16_22@x.safetensors", "nearest is 'vit_tiny_patch16_224'"),
        ("timm:vit_tiny_patch16_224@none.safetensors", "no weights at none.safetensors"),
        ("none.pt2", "no archive at"),
        (3, "cannot capture a int"),
    ],
)
def test_what_is_no_model_is_one_error(where, message):
    with pytest.raises(InputError, match=message):
        capture(where)


def test_a_lone_weight_file_says_what_is_missing(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(InputError, match="give the model's folder"):
        capture(file)


@pytest.fixture(scope="module")
def timm_weights(tmp_path_factory) -> Path:
    timm = pytest.importorskip("timm")
    file = tmp_path_factory.mktemp("timm") / "weights.safetensors"
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=7).state_dict(), file)
    return file


def test_a_timm_name_takes_its_classes_from_the_weights(timm_weights):
    program = capture(f"timm:vit_tiny_patch16_224@{timm_weights}")
    assert program.outputs[0].shape == ("batch", 7)
    assert program.facts.captured_by == "timm"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("blocks.3.mlp.fc1.weight"), "needs blocks.3.mlp.fc1.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), "has no extra"),
        (lambda t: t.update(cls_token=torch.zeros(1, 1, 8)), "cls_token has shape"),
        (lambda t: t["cls_token"].fill_(float("nan")), "cls_token has 192 values"),
    ],
)
def test_timm_weights_that_do_not_fit_are_named(timm_weights, tmp_path, change, message):
    from safetensors.torch import load_file

    tensors = load_file(timm_weights)
    change(tensors)
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=message):
        capture(f"timm:vit_tiny_patch16_224@{tmp_path / 'w.safetensors'}")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor, *, keys: Tensor) -> dict[str, Tensor]:
        return {"y": self.attention(x, keys, keys, need_weights=False)[0]}


@pytest.fixture
def archive(tmp_path) -> Path:
    auto = torch.export.Dim.AUTO
    shapes = {"x": {0: auto, 1: auto}, "keys": {0: auto, 1: auto}}
    given = {"keys": torch.randn(2, 5, 16)}
    with torch.no_grad():
        exported = torch.export.export(Model().eval(), (torch.randn(2, 3, 16),), given, dynamic_shapes=shapes)
    path = tmp_path / "model.pt2"
    torch.export.save(exported, path)
    return path


def test_an_archive_keeps_its_inputs_structure_and_free_dims(archive):
    program = capture(archive)
    assert [spec.name for spec in program.inputs] == ["x", "keys"]
    assert program.inputs[0].shape[:2] == ("batch", "tokens")
    assert program.inputs[1].shape[0] == "batch"
    assert isinstance(program.inputs[1].shape[1], str)
    assert sum(is_dialect(n, "attention") for n in program.graph.nodes) == 1
    x, keys = torch.randn(4, 6, 16), torch.randn(4, 9, 16)
    expected = torch.export.load(str(archive)).module()(x, keys=keys)["y"]
    torch.testing.assert_close(program(x=x, keys=keys)["y"], expected)


def rewrite(archive: Path, target: Path, name: str, change) -> Path:
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.namelist():
            data = old.read(entry)
            new.writestr(entry, change(data) if entry.endswith(name) else data)
    return target


def test_pickles_inside_an_archive_are_refused(archive, tmp_path):
    def mark(data: bytes) -> bytes:
        held = json.loads(data)
        next(iter(held["config"].values()))["use_pickle"] = True
        return json.dumps(held).encode()

    path = rewrite(archive, tmp_path / "pickled.pt2", "model_weights_config.json", mark)
    with pytest.raises(InputError, match="as a pickle"):
        capture(path)


class RunsCode:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_sample_inputs_that_would_run_code_are_refused(archive, tmp_path, capsys):
    import io

    def poison(_: bytes) -> bytes:
        buffer = io.BytesIO()
        torch.save(((RunsCode(),), {}), buffer)
        return buffer.getvalue()

    path = rewrite(archive, tmp_path / "poisoned.pt2", "sample_inputs/model.pt", poison)
    with pytest.raises(InputError, match="no plain tensors"):
        capture(path)
    assert "never run" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04junk"])
def test_a_file_that_is_no_archive_is_one_error(tmp_path, content):
    path = tmp_path / "model.pt2"
    path.write_bytes(content)
    with pytest.raises(InputError, match="no whole archive"):
        capture(path)


def test_a_zip_of_something_else_is_one_error(tmp_path):
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("hello.txt", "hello")
    with pytest.raises(InputError, match=r"holds no models/model.json"):
        capture(path)


@pytest.mark.parametrize("make", [torch.jit.script, lambda model: torch.jit.trace(model, torch.ones(2, 4))])
def test_a_torchscript_module_is_refused_with_what_to_give_instead(make):
    with pytest.raises(InputError, match=r"TorchScript modules.* are not captured: give the nn\.Module"):
        capture(make(nn.Linear(4, 4)), {"input": torch.randn(2, 4)})
