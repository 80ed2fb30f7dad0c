"""What token dropping keeps whatever the method: values, rows, sides, positions, shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_programs import Config, build, configs, inputs_of
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tersor.ir.dialect import DIALECT, is_dialect
from tersor.ir.errors import InputError
from tersor.ir.program import GraphInterpreter, Program
from tersor.ir.verifier import verify
from tersor.passes.contract import Refusal
from tersor.passes.pipeline import run
from tersor.passes.registry import find_methods
from tersor.passes.spec import parse_spec
from tersor.passes.tokens.method import TokenMethod

Captured = Callable[[str], Program]
Drop = Callable[[Program, str], Program]
KINDS = ["bert", "vit", "registers", "llama", "gemma", "neox"]
METHODS = [*find_methods(TokenMethod), "cls-attention,fuse=true", "zero-tprune,similar=0"]
CAUSAL = ["norm", "random", "received-attention"]


def legal(kind: str) -> list[str]:
    return CAUSAL if kind in ("llama", "gemma", "neox") else METHODS


def real(value: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    mask = inputs.get("attention_mask")
    return value[mask.bool()] if mask is not None and value.dim() == 3 else value


@pytest.mark.parametrize(("kind", "method"), [(k, m) for k in KINDS for m in legal(k)])
def test_keeping_every_token_changes_nothing(
    captured: Captured, dropped: Drop, kind: str, method: str
) -> None:
    program = captured(kind)
    inputs = dict(program.example_inputs)
    kept = dropped(program, f"token-drop:method={method},keep=1.0")
    for before, after in zip(program.run(inputs), kept.run(inputs), strict=True):
        assert torch.allclose(real(before, inputs), real(after, inputs), atol=2e-6)


PADDED = [(k, m) for k in ("bert", "gemma", "neox") for m in legal(k)] + [
    ("t5", "zero-tprune"),
    ("t5", "tome"),
]


@pytest.mark.parametrize(("kind", "method"), PADDED)
def test_every_row_of_a_padded_batch_gets_what_it_gets_alone_on_either_side(
    captured: Captured, dropped: Drop, texts: Callable[..., dict[str, Tensor]], kind: str, method: str
) -> None:
    program = dropped(captured(kind), f"token-drop:method={method},keep=0.6")
    verify(program)
    right = texts(2, 11)
    alone = {name: value[1:, :7] for name, value in right.items()}
    want = program.run(alone)[0][0]
    assert torch.allclose(program.run(right)[0][1, :7], want, atol=1e-5)
    if kind == "bert":
        return  # its position table counts padding: a row padded on the left is another input
    left = {name: value.clone() for name, value in right.items()}
    for value in left.values():
        value[1] = value[1].roll(4)
    assert torch.allclose(program.run(left)[0][1, 4:], want, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@given(
    config=configs(
        layers=2,
        padding=True,
        parallel=False,
        causal=False,
        window=0,
        positions=False,
        output="hidden",
        dynamic=True,
    ),
    seed=st.integers(0, 99),
)
@settings(max_examples=4, deadline=None)
def test_padding_on_the_left_is_padding_on_the_right_in_random_transformers(
    method: str, config: Config, seed: int
) -> None:
    drop = parse_spec(f"token-drop:method={method},keep=0.6,prefix=1,layers=0")
    sites = drop.legality(build(config))
    assert not isinstance(sites, Refusal), sites
    program = drop.rewrite(build(config), sites)
    right = inputs_of(program, config, batch=3, tokens=8, seed=seed)
    lengths = right["attention_mask"].sum(1).tolist()
    left = {name: value.clone() for name, value in right.items()}
    for value in left.values():
        for row, length in enumerate(lengths):
            value[row] = value[row].roll(8 - length, 0)
    on_the_right, on_the_left = program.run(right)[0], program.run(left)[0]
    for row, length in enumerate(lengths):
        alone = program.run({name: value[row : row + 1, :length] for name, value in right.items()})[0][0]
        assert torch.allclose(on_the_right[row, :length], alone, atol=1e-4)
        assert torch.allclose(on_the_left[row, 8 - length :], alone, atol=1e-4)


@given(config=configs(), method=st.sampled_from(METHODS), keep=st.sampled_from([0.5, 0.7, 1.0]))
@settings(max_examples=25, deadline=None)
def test_random_transformers_are_rewritten_soundly_or_refused_by_node(
    config: Config, method: str, keep: float
) -> None:
    program = build(config)
    before = str(program)
    drop = parse_spec(f"token-drop:method={method},keep={keep}")
    sites = drop.legality(program)
    if isinstance(sites, Refusal):
        assert sites.reason
        assert not sites.node or program.find(sites.node)
        return
    after = drop.rewrite(program, sites)
    verify(after)
    assert str(program) == before, "the program that was given is unchanged"
    inputs = inputs_of(program, config, batch=config.batch, tokens=config.tokens)
    for old, new in zip(program.run(inputs), after.run(inputs), strict=True):
        assert old.shape == new.shape
        assert bool(new.isfinite().all())
        if keep == 1.0 and not config.padding:
            assert torch.allclose(old, new, atol=1e-4)


def test_lengths_other_than_the_examples_work(
    captured: Captured, dropped: Drop, texts: Callable[..., dict[str, Tensor]]
) -> None:
    program = dropped(captured("bert"), "token-drop:method=zero-tprune,keep=0.5")
    for batch, tokens in ((1, 5), (3, 23), (2, 64)):
        assert program.run(texts(batch, tokens))[0].shape == (batch, tokens, 32)
    assert program.ranges["tokens"][0] == 2, "its first and last token always stay"


def test_windowed_layers_get_true_positions(captured: Captured, dropped: Drop) -> None:
    program = dropped(captured("gemma"), "token-drop:method=random,keep=0.5,layers=0+1")
    nodes = [n for n in program.graph.nodes if is_dialect(n, "attention")]
    windowed = [n for n in nodes if n.kwargs["window"]]
    assert [len([a for a in n.args[5:7] if a is not None]) for n in windowed] == [0, 2]
    assert all(n.args[5] is None for n in nodes if not n.kwargs["window"]), (
        "order alone survives the dropping"
    )
    assert windowed[1].args[5].target is torch.ops.tersor.gather_tokens.default


def test_dropped_tokens_keep_the_state_they_were_dropped_with(captured: Captured, dropped: Drop) -> None:
    """With layers 1 and 2 skipped over, a dropped token's last state is its state after attention 0."""
    program = dropped(captured("vit"), "token-drop:method=random,keep=0.5,layers=0")
    scatter = next(n for n in program.graph.nodes if is_dialect(n, "scatter_tokens"))
    base, index, _ = scatter.args
    inspect = program.edit()
    nodes = {n.name: n for n in inspect.graph.nodes}
    inspect.output_node.args = (tuple(nodes[n.name] for n in (base, index, scatter)),)
    before, kept, after = inspect.run(program.example_inputs)
    for row in range(2):
        gone = sorted(set(range(17)) - set(kept[row].tolist()))
        assert len(gone) == 8
        assert torch.equal(before[row, gone], after[row, gone])
        assert not torch.isclose(before[row, kept[row]], after[row, kept[row]]).all()


class Transparent(GraphInterpreter):
    """Calls the references of dialect operators directly, so that a counter sees the products in them."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(target, torch._ops.OpOverload) and target.namespace == "tersor":
            return DIALECT[target._opname].reference(*args, **kwargs)
        return super().call_function(target, args, kwargs)


@pytest.mark.parametrize("method", ["zero-tprune,early=2", "tome", "received-attention", "pool"])
def test_a_flop_target_is_reached_by_an_independent_count(method: str) -> None:
    wide = Config(layers=4, heads=2, head_dim=8, dynamic=True, batch=1, tokens=9, positions=False)
    program = build(wide).edit()
    program.example_inputs = {"features": torch.randn(1, 160, wide.width)}
    drop = parse_spec(f"token-drop:method={method},flops=0.65,layers=1+2")
    sites = drop.legality(program)
    assert isinstance(sites, list)
    counts = []
    for each in (program, drop.rewrite(program, sites)):
        # The fused kernel for the CPU is in no table of the counter; the plain one is products it knows.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            Transparent(each).run(program.example_inputs["features"])
        counts.append(counter.get_total_flops())
    assert counts[1] / counts[0] == pytest.approx(0.65, abs=0.01)


def test_notes_say_what_was_kept(captured: Captured, dropped: Drop) -> None:
    (note,) = dropped(captured("vit"), "token-drop:method=random,keep=0.5,layers=0+2").notes["token-drop"]
    assert note["method"] == "random"
    assert note["keep"] == {"0": 0.5, "2": 0.5}
    assert note["tokens"] == {"0": "9", "2": "5"}
    (note,) = dropped(captured("bert"), "token-drop:method=random,keep=0.5,layers=1").notes["token-drop"]
    assert "tokens" in note["tokens"]["1"], "a symbolic count is in the dimension's own name"


def test_an_input_shorter_than_the_protected_tokens_is_refused_with_who_asks_for_more(
    captured: Captured,
) -> None:
    program, report = run(captured("bert"), ["token-drop:method=norm,keep=0.6,layers=1"])
    inputs = {name: value[:, :1] for name, value in program.example_inputs.items()}
    why = "token-drop always keeps the first 1 and the last 1 tokens, so inputs have 2 or more"
    with pytest.raises(
        InputError, match=f"tokens = 1; 2 to .* are taken: {why}.* prefix and last lower that"
    ):
        program(**inputs)
    assert any(why in note for note in report.to_json()["notes"])
