"""Every token method in ONNX against the torch target: half precision, lengths down to one token, and keep=1."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import pytest
import token_choices
import torch
from token_choices import assert_differs_by_ties, assert_equal_to_torch
from torch import Tensor, nn

from tersor.codegen.onnx import OnnxExecutable
from tersor.ir.capture import capture
from tersor.ir.program import Program
from tersor.passes.contract import Refusal
from tersor.passes.pipeline import run
from tersor.passes.registry import find_methods
from tersor.passes.spec import parse_spec
from tersor.passes.tokens.method import TokenMethod

Inputs = Mapping[str, Tensor]
METHODS = list(find_methods(TokenMethod))
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
MODELS = ("bert", "vit")
by_method = pytest.mark.parametrize("method", METHODS)


def texts(batch: int, tokens: int) -> Inputs:
    """Rows of which every second is padded on the left or the right."""
    mask = torch.ones(batch, tokens, dtype=torch.int64)
    mask[1::2, : tokens // 3] = 0
    mask[3::4] = mask[3::4].flip(1)
    return {"input_ids": torch.randint(5, 100, (batch, tokens)), "attention_mask": mask}


@cache
def captured(model: str, dtype: torch.dtype) -> Program:
    from transformers import BertConfig, BertModel, ViTConfig, ViTModel

    torch.manual_seed(0)
    if model == "bert":
        bert = BertModel(BertConfig(vocab_size=100, max_position_embeddings=64, **SIZES))
        return capture(sharpened(bert, dtype), dict(texts(4, 12)))
    vit = ViTModel(ViTConfig(image_size=32, patch_size=8, **SIZES))
    return capture(sharpened(vit, dtype), {"pixel_values": torch.randn(2, 3, 32, 32, dtype=dtype)})


def sharpened(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """As initialised, every token attends to every other alike, and choices hang on rounding."""
    for name, weight in model.named_parameters():
        if name.endswith(("query.weight", "key.weight", "q_proj.weight", "k_proj.weight")):
            weight.data *= 40
    return model.eval().to(dtype)


def dropped(program: Program, method: str, keep: float | str) -> Program:
    """The rewritten Program; a test of a method that does not suit this model is skipped with the method's reason."""
    drop = parse_spec(f"token-drop:method={method},keep={keep}")
    sites = drop.legality(program)
    if isinstance(sites, Refusal):
        pytest.skip(sites.reason)
    return drop.rewrite(program, sites)


def lower(program: Program) -> OnnxExecutable:
    return OnnxExecutable.of(program, threads=1)


def lower_portable(program: Program) -> OnnxExecutable:
    return OnnxExecutable.of(program, ops="portable", threads=1)


@by_method
@pytest.mark.parametrize("model", MODELS)
def test_half_precision_is_computed_as_by_torch(
    monkeypatch: pytest.MonkeyPatch, model: str, method: str
) -> None:
    # Rounded to 11 bits after every operator, whose number is what separates this from half an ulp.
    monkeypatch.setattr(token_choices, "TOLERANCE", 2e-2)
    monkeypatch.setattr(token_choices, "TIE", 5e-3)
    program = captured(model, torch.float16)
    if model == "bert":
        cases = [texts(*size) for size in ((3, 33), (1, 12))]
    else:
        cases = [{"pixel_values": torch.randn(n, 3, 32, 32, dtype=torch.float16)} for n in (2, 1)]
    reduced = dropped(program, method, 0.6)
    for inputs in cases:
        assert_differs_by_ties(reduced, inputs, lower)


@by_method
@pytest.mark.parametrize(("ends", "least"), [("", 2), (",prefix=1,last=0", 1)])
def test_sequences_of_a_few_tokens_are_computed_as_by_torch(method: str, ends: str, least: int) -> None:
    program = dropped(captured("bert", torch.float32), method, f"0.6{ends}")
    assert program.ranges["tokens"][0] == least, "tokens that always stay are all there"
    cases = [texts(batch, tokens) for tokens in range(least, 5) for batch in (1, 4)]
    assert_equal_to_torch(program, cases, lower)


@by_method
def test_a_row_of_nothing_but_padding_is_computed_as_by_torch_and_spoils_no_other(method: str) -> None:
    program = dropped(captured("bert", torch.float32), method, 0.6)
    inputs = dict(texts(4, 12))
    inputs["attention_mask"][2] = 0
    alone = {name: value[2:3] for name, value in inputs.items()}
    assert_equal_to_torch(program, [inputs, alone], lower, lower_portable)
    assert all(output.isfinite().all() for each in (inputs, alone) for output in program.run(each))


@by_method
@pytest.mark.parametrize("model", MODELS)
def test_keeping_everything_changes_no_row_not_even_padding(model: str, method: str) -> None:
    program = captured(model, torch.float32)
    kept = dropped(program, method, 1)
    inputs = program.example_inputs
    executables = kept.run(inputs), lower(kept).run(inputs)
    for outputs in executables:
        for want, got in zip(program.run(inputs), outputs, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("restore", ["scatter", "compact"])
@pytest.mark.parametrize("method", ["norm", "received-attention", "zero-tprune", "tome", "pool", "random"])
def test_one_token_that_is_left_of_the_example_is_not_one_at_every_length(method: str, restore: str) -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, dropout=0.0, norm_first=True)
    model = nn.TransformerEncoder(layer, 5, enable_nested_tensor=False).eval()
    spec = f"token-drop:method={method},keep=0.5,layers=0+1+2,restore={restore}"
    program, _ = run(capture(model, {"src": torch.randn(2, 8, 16)}), [spec])
    cases = [{"src": torch.randn(2, length, 16)} for length in (8, 9, 21)]
    for ops in ("portable", "ort"):
        executable = OnnxExecutable.of(program, ops=ops, threads=1)
        for case in cases:
            for want, got in zip(program.run(case), executable.run(case), strict=True):
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
