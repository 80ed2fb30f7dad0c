"""``flops=``: foretold from the untouched Program, held by the rewritten one."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTModel

from tersor.ir.analyses.cost import cost
from tersor.ir.capture import capture
from tersor.ir.errors import RefusedError
from tersor.ir.program import Program
from tersor.passes.spec import parse_spec
from tersor.passes.tokens.flop_target import forecast, solve_flops


@pytest.fixture(scope="module")
def vit() -> Program:
    config = ViTConfig(
        image_size=64, patch_size=4, hidden_size=32, num_hidden_layers=6, num_attention_heads=2, intermediate_size=64
    )  # fmt: skip
    return capture(ViTModel(config, add_pooling_layer=False).eval(), torch.randn(2, 3, 64, 64))


@pytest.fixture(scope="module")
def decoder() -> Program:
    """Most of its FLOPs are those of the vocabulary, which sees all tokens whatever is dropped."""
    config = LlamaConfig(
        vocab_size=4000, hidden_size=32, num_hidden_layers=6, num_attention_heads=2, intermediate_size=64
    )
    return capture(LlamaForCausalLM(config).eval(), {"input_ids": torch.randint(0, 4000, (2, 64))})


def _share(program: Program, spec: str) -> float:
    instance = parse_spec(spec)
    reduced = instance.rewrite(program, instance.legality(program))  # type: ignore[arg-type]
    sizes = program.sizes()
    return cost(reduced).at(**sizes).flops / cost(program).at(**sizes).flops


@pytest.mark.parametrize("keep", [1000, 700, 250])
def test_free_choice_costs_what_was_foretold(vit: Program, decoder: Program, keep: int) -> None:
    for program in (vit, decoder):
        foretold = forecast(program, [1, 3], program.sizes())(keep)
        found = _share(program, f"token-drop:method=random,proportional=false,layers=1+3,keep={keep / 1000}")
        assert foretold == pytest.approx(found, abs=0.01)
        assert foretold == pytest.approx(1.0) if keep == 1000 else foretold < 1.0


@pytest.mark.parametrize("method", ["zero-tprune", "received-attention", "tome", "random"])
@pytest.mark.parametrize("flops", [0.7, 0.5])
def test_the_share_asked_for_is_what_the_program_costs(vit: Program, method: str, flops: float) -> None:
    assert _share(vit, f"token-drop:method={method},flops={flops}") == pytest.approx(flops, abs=0.004)


def test_the_vocabulary_is_reckoned_with(decoder: Program) -> None:
    assert _share(decoder, "token-drop:method=received-attention,flops=0.9") == pytest.approx(0.9, abs=0.004)


@pytest.mark.parametrize(
    ("spec", "rewrites"), [("method=random,proportional=false", 2), ("method=zero-tprune", 4)]
)
def test_few_rewrites_are_enough(vit: Program, spec: str, rewrites: int) -> None:
    """Even where choosing costs as much as a block, as for these narrow ones."""
    instance = parse_spec(f"token-drop:{spec}")
    calls: list[int] = []

    def rewrite(program: Program, keep: dict[int, int]) -> Program:
        calls.append(next(iter(keep.values())))
        return instance._reduced(program, keep)  # type: ignore[attr-defined, no-any-return]

    solve_flops(vit, [1, 2], 0.7, 1, rewrite)
    assert len(calls) <= rewrites


def test_a_share_below_what_everything_else_costs_is_refused(decoder: Program) -> None:
    with pytest.raises(RefusedError, match=r"flops=0\.3 is out of reach .* name earlier layers"):
        _share(decoder, "token-drop:method=received-attention,flops=0.3")
