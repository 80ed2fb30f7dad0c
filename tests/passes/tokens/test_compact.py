"""restore=compact: outputs of the kept tokens only, and which they are; passes after passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.program import Program
from tersor.ir.structure import Structure
from tersor.ir.verifier import verify
from tersor.passes.contract import Refusal
from tersor.passes.spec import parse_spec
from tersor.passes.tokens.compact import with_leaf

Captured = Callable[[str], Program]
Drop = Callable[[Program, str], Program]


def taken(full: Tensor, index: Tensor) -> Tensor:
    return full.gather(1, index[:, :, None].expand(-1, -1, full.shape[2]))


@pytest.mark.parametrize(
    ("kind", "method"),
    [("vit", "random"), ("vit", "tome"), ("vit", "pool,groups=squares"), ("registers", "zero-tprune"),
     ("bert", "zero-tprune"), ("bert", "pool"), ("llama", "received-attention"), ("gemma", "norm"),
     ("neox", "random")],
)  # fmt: skip
def test_compact_outputs_are_the_kept_tokens_of_the_full_ones(
    captured: Captured, dropped: Drop, kind: str, method: str
) -> None:
    spec = f"token-drop:method={method},keep=0.6"
    full = dropped(captured(kind), spec)
    compact = dropped(captured(kind), spec + ",restore=compact")
    verify(compact)
    want, got = full(**full.example_inputs), compact(**full.example_inputs)
    index = got["kept_index"]
    assert index.dtype == torch.int64
    mask = full.example_inputs.get("attention_mask", torch.ones(want[0].shape[:2]))
    real = mask.bool().gather(1, index)
    assert torch.allclose(got[0][real], taken(want[0], index)[real], atol=1e-6)
    assert got[0].shape[1] < want[0].shape[1]
    assert [spec.name for spec in compact.outputs] == [*(s.name for s in full.outputs), "kept_index"]
    if "pooler_output" in want:
        assert torch.allclose(got.pooler_output, want.pooler_output, atol=1e-6)


def test_a_mean_over_the_tokens_needs_them_back() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder(x).mean(1)

    program = capture(Pooled().eval(), {"x": torch.randn(2, 6, 8)})
    assert isinstance(parse_spec("token-drop:method=random").legality(program), list)
    refusal = parse_spec("token-drop:method=random,restore=compact").legality(program)
    assert isinstance(refusal, Refusal)
    assert "restore=compact: reduces over the tokens" in refusal.reason
    assert program.find(refusal.node).target is torch.ops.aten.mean.dim


def test_reading_a_token_that_may_be_dropped_is_refused(captured: Captured) -> None:
    refusal = parse_spec("token-drop:method=random,restore=compact,prefix=0").legality(captured("vit"))
    assert isinstance(refusal, Refusal)
    assert "position 0, which may be dropped" in refusal.reason


@pytest.mark.parametrize("kind", ["vit", "bert", "llama", "gemma"])
def test_two_passes_on_later_and_later_layers_equal_one_pass_on_both(
    captured: Captured, dropped: Drop, kind: str
) -> None:
    program, spec = captured(kind), "token-drop:method=received-attention,proportional=false"
    one = dropped(program, f"{spec},keep=0.7+0.6,layers=0-1")
    first = dropped(program, f"{spec},keep=0.7,layers=0")
    both = dropped(first, f"{spec},keep=0.6,layers=1")
    verify(both)
    for a, b in zip(one.run(program.example_inputs), both.run(program.example_inputs), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "vit", "llama", "neox"])
def test_a_compact_pass_after_a_compact_pass_returns_original_positions(
    captured: Captured, dropped: Drop, kind: str
) -> None:
    program, spec = captured(kind), "token-drop:method=random,proportional=false,restore=compact"
    one = dropped(program, f"{spec},keep=0.7+0.6,layers=0-1")
    first = dropped(program, f"{spec},keep=0.7,layers=0")
    both = dropped(first, f"{spec},keep=0.6,layers=1")
    verify(both)
    want, got = one(**program.example_inputs), both(**program.example_inputs)
    assert torch.equal(want["kept_index"], got["kept_index"])
    assert torch.allclose(want[0], got[0], atol=1e-6)


@pytest.mark.parametrize("kind", ["vit", "bert", "llama"])
def test_a_pass_after_a_compact_pass_may_bring_its_own_tokens_back(
    captured: Captured, dropped: Drop, kind: str
) -> None:
    first = dropped(captured(kind), "token-drop:method=random,keep=0.7,layers=0,restore=compact")
    both = dropped(first, "token-drop:method=random,keep=0.6,layers=1")
    verify(both)
    want, got = first(**first.example_inputs), both(**first.example_inputs)
    assert torch.equal(want["kept_index"], got["kept_index"])
    assert got[0].shape == want[0].shape


def test_the_default_layers_of_a_second_pass_lie_behind_the_first(captured: Captured, dropped: Drop) -> None:
    first = dropped(captured("vit"), "token-drop:method=random,keep=0.7,layers=0")
    sites = parse_spec("token-drop:method=random,keep=0.7").legality(first)
    assert isinstance(sites, list)
    assert [site.facts["layer"] for site in sites] == [1]


def test_an_added_output_is_read_by_name_whatever_the_model_returned() -> None:
    leaf = Structure("tensor")
    for structure, keys in (
        (leaf, ["output", "kept_index"]),
        (Structure("tuple", (leaf, leaf)), ["output_0", "output_1", "kept_index"]),
        (Structure("dict", (leaf,), ("a",)), ["a", "kept_index"]),
        (Structure("object", (leaf,), ("a",), "some:Class"), ["a", "kept_index"]),
        (Structure("namedtuple", (leaf,), ("a",), "some:Class"), ["a", "kept_index"]),
    ):
        grown = with_leaf(structure, "kept_index")
        assert grown.names() == keys
        packed = grown.pack([torch.tensor(i) for i in range(len(keys))])
        assert int(packed["kept_index"]) == len(keys) - 1
