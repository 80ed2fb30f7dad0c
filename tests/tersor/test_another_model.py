"""Another model than the one that an artifact was made from does not verify, and how it differs is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from text_folder import save_text_model
from torch import Tensor, nn
from transformers import BertConfig, BertModel, ElectraConfig, ElectraModel, ViTConfig, ViTModel

from tersor import InputError, capture, optimize_model
from tersor.same_text import other_text
from tersor.verification import verify_artifact

SIZES: dict[str, Any] = dict(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=32,
)


def bert(like: nn.Module | None = None, **changes: Any) -> nn.Module:
    model = BertModel(BertConfig(**SIZES | changes), add_pooling_layer=False).eval()
    if like is not None:
        model.load_state_dict(like.state_dict())
    return model


def vit() -> nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes)).eval()


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


MODELS: dict[str, tuple[Callable[[nn.Module], Any], str, str]] = {
    "other weights": (lambda _: bert(), "model", "by their values, such as embeddings."),
    "other width": (lambda _: bert(hidden_size=8), "model", "by their shape, such as embeddings."),
    "one layer more": (lambda _: bert(num_hidden_layers=3), "model", "by their values"),
    "other family": (
        lambda _: ElectraModel(ElectraConfig(**SIZES, embedding_size=16)).eval(),
        "model",
        "it is a electra, and the artifact was made from a bert",
    ),
    "other inputs": (lambda _: Doubled(), "model", "no input 'input_ids'"),
    "images": (lambda _: vit(), "model", "it does not take what the artifact takes: ViTModel rejects"),
    "images, captured": (lambda _: capture(vit()), "model", "the program takes: pixel_values"),
    "too few ids": (lambda _: bert(vocab_size=5), "model", "it does not take what the artifact takes"),
    "other activation": (lambda like: bert(like, hidden_act="relu"), "token-drop", "deviates by"),
}


@pytest.mark.parametrize("name", MODELS)
def test_another_model_does_not_verify(saved: Path, encoder: nn.Module, name: str) -> None:
    make, check, reason = MODELS[name]
    torch.manual_seed(5)
    found = verify_artifact(saved, make(encoder))
    assert not found.ok
    (failed,) = [each for each in found.checks if not each.ok]
    assert failed.name.startswith(check), found
    assert reason in failed.detail


def test_an_archive_of_another_model_does_not_verify(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "doubled.pt2"
    torch.export.save(torch.export.export(Doubled(), (torch.randn(2, 3),)), path)
    found = verify_artifact(saved, path)
    assert [(c.name, "the program takes: x" in c.detail) for c in found.checks if not c.ok] == [
        ("model", True)
    ]


def test_a_model_that_is_not_there_says_nothing_of_the_artifact(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model at"):
        verify_artifact(saved, tmp_path / "nowhere")


def test_a_model_of_fixed_sizes_verifies_with_a_batch_of_one(encoder: nn.Module, tmp_path: Path) -> None:
    ids = torch.arange(9)[None]
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    optimize_model(encoder, target="torch", example_inputs=given, dynamic={}).save(tmp_path / "out")
    found = verify_artifact(tmp_path / "out", encoder)
    assert found.ok, found


def _edited(folder: Path, file: str, **changes: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "changes", "reason"),
    [
        (
            "generation_config.json",
            {"do_sample": True, "temperature": 0.3},
            "it generates with do_sample=True",
        ),
        ("generation_config.json", {"eos_token_id": 101}, "it generates with eos_token_id=101"),
        ("tokenizer_config.json", {"model_max_length": 77}, "tokenizer_config.json differs"),
    ],
)
def test_a_model_with_the_same_weights_that_reads_or_writes_other_text_does_not_verify(
    tmp_path: Path, file: str, changes: dict[str, Any], reason: str
) -> None:
    model = save_text_model(tmp_path / "model")
    optimize_model(model, ["kv-cache"], target="torch").save(tmp_path / "out")
    assert verify_artifact(tmp_path / "out", model).ok
    _edited(model, file, **changes)
    (failed,) = [check for check in verify_artifact(tmp_path / "out", model).checks if not check.ok]
    assert failed.name == "text"
    assert reason in failed.detail


def test_what_another_version_of_transformers_writes_is_no_other_text(tmp_path: Path) -> None:
    model = save_text_model(tmp_path / "model")
    optimize_model(model, ["kv-cache"], target="torch").save(tmp_path / "out")
    _edited(model, "generation_config.json", transformers_version="0.0.1", a_field_of_its_own=3)
    source = capture(model)
    # Whatever wrote the file, the library that reads it may put its own version there.
    source = source.with_facts(generation={**source.facts.generation, "transformers_version": "0.0.1"})
    assert verify_artifact(tmp_path / "out", source).ok
    shutil.rmtree(tmp_path / "out" / "tokenizer")
    assert not other_text(source, source, tmp_path / "out")
