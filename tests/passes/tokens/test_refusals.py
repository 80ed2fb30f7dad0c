"""Where dropping would be wrong it is refused, with the node that stands in the way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from random_programs import Config, build
from torch import Tensor, nn

from tersor.ir.analyses.layers import layers
from tersor.ir.capture import capture
from tersor.ir.errors import RefusedError
from tersor.ir.program import Program
from tersor.passes.contract import Refusal
from tersor.passes.pipeline import run
from tersor.passes.spec import parse_spec
from tersor.passes.tokens.drop import TokenDrop

Refuse = Callable[[Program, str], Refusal]
Captured = Callable[[str], Program]
Drop = Callable[[Program, str], Program]


@pytest.mark.parametrize("method", ["zero-tprune", "tome", "cls-attention", "hired", "pool"])
def test_methods_that_look_ahead_are_refused_in_causal_models(
    captured: Captured, refused: Refuse, method: str
) -> None:
    program = captured("llama")
    refusal = refused(program, f"token-drop:method={method},keep=0.6")
    assert "causal" in refusal.reason
    assert program.find(refusal.node)


def test_a_mask_that_was_not_understood_is_refused() -> None:
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(8, 8)

        def forward(self, x: Tensor, bias: Tensor) -> Tensor:
            for _ in range(2):
                heads = self.project(x)[:, None]
                attended = nn.functional.scaled_dot_product_attention(
                    heads, heads, heads, bias[:, None, None, :]
                )
                x = x + attended[:, 0]
                x = x + self.project(x).relu()
            return x

    program = capture(Biased().eval(), {"x": torch.randn(2, 6, 8), "bias": torch.randn(2, 6)})
    refusal = parse_spec("token-drop:method=random").legality(program)
    assert isinstance(refusal, Refusal)
    assert "computed from bias" in refusal.reason
    assert refusal.node == layers(program)[0].attention[0].name


def test_a_mask_that_hides_more_than_the_padding_that_was_proven_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(8, 8)

        def forward(self, x: Tensor, real: Tensor, bias: Tensor) -> Tensor:
            mask = (1.0 - real[:, None, None, :].float()) * -1e9 + bias[:, None, None, :]
            for _ in range(2):
                heads = self.project(x)[:, None]
                attended = nn.functional.scaled_dot_product_attention(heads, heads, heads, mask)
                x = x + attended[:, 0]
                x = x + self.project(x).relu()
            return x

    inputs = {
        "x": torch.randn(2, 6, 8),
        "real": torch.ones(2, 6, dtype=torch.int64),
        "bias": torch.randn(2, 6),
    }
    refusal = parse_spec("token-drop:method=random").legality(capture(Twice().eval(), inputs))
    assert isinstance(refusal, Refusal)
    assert "computed from bias" in refusal.reason


def test_a_model_without_attention_is_refused(refused: Refuse) -> None:
    program = capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), {"input": torch.randn(2, 4)})
    assert "no attention was found" in refused(program, "token-drop:method=random").reason


def test_the_last_parallel_layer_is_refused(captured: Captured, refused: Refuse) -> None:
    refusal = refused(captured("neox"), "token-drop:method=random,layers=2")
    assert "nothing runs after its attention" in refusal.reason


def test_layers_and_shares_that_do_not_fit_the_model_are_refused(captured: Captured, refused: Refuse) -> None:
    assert "layers 0 to 2" in refused(captured("vit"), "token-drop:method=random,layers=7").reason
    assert (
        "4 values for 2 layers"
        in refused(captured("vit"), "token-drop:method=random,keep=0.9+0.8+0.7+0.6").reason
    )


def test_merging_more_than_half_is_refused_before_anything_is_rewritten(
    captured: Captured, refused: Refuse
) -> None:
    assert "more than half" in refused(captured("vit"), "token-drop:method=tome,keep=0.3").reason


def test_a_method_without_its_class_token_is_refused(captured: Captured, refused: Refuse) -> None:
    assert "no class token" in refused(captured("vit"), "token-drop:method=cls-attention,prefix=0").reason


def test_a_grid_that_is_not_square_is_refused(captured: Captured, refused: Refuse) -> None:
    assert "square" in refused(captured("vit"), "token-drop:method=pool,groups=squares,prefix=2").reason
    assert "fixed number" in refused(captured("bert"), "token-drop:method=pool,groups=squares").reason


def test_an_unreachable_flop_target_is_refused(captured: Captured, dropped: Drop) -> None:
    with pytest.raises(RefusedError, match="out of reach at layers 2"):
        dropped(captured("vit"), "token-drop:method=random,flops=0.1,layers=2")


def test_an_early_layer_that_comes_late_is_refused(captured: Captured, refused: Refuse) -> None:
    assert "early=2" in refused(captured("vit"), "token-drop:method=hired,early=2,layers=1").reason


@pytest.mark.parametrize(
    ("first", "then", "reason"),
    [
        ("random,layers=1", "random,layers=0", "an earlier pass"),
        ("random,layers=1", "random,layers=1", "an earlier pass"),
        ("random,layers=0", "hired,layers=1", "an earlier pass has dropped"),
    ],
)
def test_passes_in_an_order_that_would_be_wrong_are_refused_by_node(
    captured: Captured, dropped: Drop, refused: Refuse, first: str, then: str, reason: str
) -> None:
    program = dropped(captured("vit"), f"token-drop:method={first},keep=0.7")
    refusal = refused(program, f"token-drop:method={then},keep=0.7")
    assert reason in refusal.reason
    assert program.find(refusal.node)


def test_two_attention_branches_of_one_layer_are_reduced_together() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.mlp = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            attend = nn.functional.scaled_dot_product_attention
            for _ in range(2):
                a, b = self.one(x)[:, None], self.two(x)[:, None]
                x = x + attend(a, a, a)[:, 0] + attend(b, b, b)[:, 0]
                x = x + self.mlp(x).relu()
            return x

    program = capture(Branches().eval(), {"x": torch.randn(2, 6, 8)})
    stack = layers(program)
    assert [len(layer.attention) for layer in stack.blocks] == [2, 2]
    drop = parse_spec("token-drop:method=received-attention,keep=1.0,layers=0")
    sites = drop.legality(program)
    assert isinstance(sites, list)
    inputs = {"x": torch.randn(3, 9, 8)}
    assert torch.allclose(drop.rewrite(program, sites).run(inputs)[0], program.run(inputs)[0], atol=1e-5)


def test_a_refusal_that_only_the_options_cause_names_them() -> None:
    program = build(Config(layers=1))
    refusal = parse_spec("token-drop:method=random,layers=5").legality(program)
    assert isinstance(refusal, Refusal)
    assert "layers=5" in refusal.reason


class LogMasked(nn.Module):
    """Blocks whose hand-written attention adds the logarithm of a bounded mask."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.least, self.project = least, nn.Linear(8, 8)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        bias = attention_mask.float().clamp(min=self.least).log()[:, None, None, :]
        for _ in range(3):
            heads = self.project(x)[:, None]
            x = x + nn.functional.scaled_dot_product_attention(heads, heads, heads, bias)[:, 0]
            x = x + self.project(x).relu()
        return x


@pytest.mark.parametrize("least", [1e-9, 1e-30, 0.5])
def test_the_logarithm_of_a_bounded_mask_is_a_mask(least: float) -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    example = {"x": torch.randn(2, 6, 8), "attention_mask": mask}
    program = capture(LogMasked(least).eval(), example)
    refusal = parse_spec("token-drop:method=zero-tprune").legality(program)
    assert isinstance(refusal, Refusal)
    assert "computed from attention_mask" in refusal.reason
    assert refusal.node == layers(program)[0].attention[0].name


@pytest.mark.parametrize("first", ["tome", "pool", "norm"])
def test_weights_of_keys_that_an_earlier_pass_added_hide_nothing(
    captured: Captured, dropped: Drop, first: str
) -> None:
    once = dropped(captured("vit"), f"token-drop:method={first},keep=0.7,layers=0,proportional=true")
    twice = dropped(once, "token-drop:method=norm,keep=0.7,layers=1,proportional=false")
    assert twice.run(twice.example_inputs)[0].isfinite().all()


def test_protecting_more_tokens_than_there_are_is_refused(captured: Captured, refused: Refuse) -> None:
    refusal = refused(captured("vit"), "token-drop:method=norm,prefix=50")
    assert "prefix=50 and last=0 protect all of the 17 tokens" in refusal.reason
    spec = "token-drop:method=norm,prefix=50"
    with pytest.raises(RefusedError, match=r"needs tokens of 51 to 64, and a calibration input has 12"):
        run(captured("bert"), [spec])
    _, report = run(captured("bert"), [spec], on_violation="revert")
    assert report.steps[1].verdict == "refused"


def test_a_share_of_tokens_and_a_share_of_flops_are_not_both_given() -> None:
    with pytest.raises(ValueError, match="give one of them"):
        TokenDrop(flops=0.5, keep=(0.6,))
