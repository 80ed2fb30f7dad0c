"""A kernel says itself what it stands for: one that is declared here is placed, whatever it takes the place of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, fx, nn

from tersor.codegen.triton import TritonExecutable
from tersor.codegen.triton.kernels import KERNELS, Kernel
from tersor.codegen.triton.kernels.kernel import dtype_reason, launcher
from tersor.codegen.triton.match import Match
from tersor.ir.capture import capture
from tersor.ir.dialect import is_dialect

aten = torch.ops.aten


@triton.jit
def gated_kernel(gate, up, gated, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    x = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(gated + at, (x * tl.sigmoid(x) * y).to(gated.dtype.element_ty), mask=inside)


_launch = launcher(gated_kernel, (triton.Config({"BLOCK": 16}),), key=(), interpreted={"BLOCK": 16})


def gated(gate: Tensor, up: Tensor) -> Tensor:
    result = torch.empty_like(gate, memory_format=torch.contiguous_format)
    _launch(
        lambda meta: (triton.cdiv(result.numel(), meta["BLOCK"]),),
        gate=gate.contiguous(),
        up=up.contiguous(),
        gated=result,
        count=result.numel(),
    )
    return result


def reference(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def guard(gate: Tensor, up: Tensor) -> str | None:
    return dtype_reason("gate", gate.dtype)


def match(node: fx.Node) -> Match | None:
    """``silu`` -> ``mul``, of equal shapes; ``node`` is the product."""
    if node.target is not aten.mul.Tensor or not all(isinstance(a, fx.Node) for a in node.args):
        return None
    for gate, up in (node.args, node.args[::-1]):
        same = gate.meta["val"].shape == up.meta["val"].shape  # type: ignore[union-attr]
        if gate.target is aten.silu.default and same:  # type: ignore[union-attr]
            return Match(node, (gate.args[0], up))  # type: ignore[union-attr]
    return None


GATED = Kernel("test_gated", gated, reference, guard, match, variants=())


@pytest.fixture
def declare(monkeypatch: pytest.MonkeyPatch) -> Callable[[Kernel], None]:
    """Declare a kernel for this test, as a file in the kernels' folder would."""
    return lambda kernel: monkeypatch.setitem(KERNELS, kernel.name, kernel)


class Gated(nn.Module):
    def __init__(self, also: bool = False) -> None:
        super().__init__()
        self.gate, self.up, self.also = nn.Linear(6, 10), nn.Linear(6, 10), also

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        act = F.silu(self.gate(x))
        return (self.up(x) * act, act) if self.also else (self.up(x) * act,)


def lowered_and_compared(model: nn.Module, **inputs: Tensor) -> TritonExecutable:
    program = capture(model.eval(), inputs, {name: {0: "batch"} for name in inputs})
    executable = TritonExecutable(program)
    larger = {name: torch.randn(5, *value.shape[1:]).to(value) for name, value in inputs.items()}
    for got, want in zip(executable.run(larger), program.run(larger), strict=True):
        torch.testing.assert_close(got, want, atol=2e-5, rtol=2e-5)
    return executable


def operators(executable: TritonExecutable) -> list[str]:
    nodes = executable._lowered.program.graph.nodes
    return [str(n.target) for n in nodes if isinstance(n.target, torch._ops.OpOverload)]


@pytest.mark.parametrize("also", [False, True], ids=["alone", "read twice"])
def test_a_kernel_of_several_operators_is_placed_where_it_says(
    declare: Callable[[Kernel], None], also: bool
) -> None:
    declare(GATED)
    executable = lowered_and_compared(Gated(also), x=torch.randn(3, 6))
    assert executable.kernels == ("test_gated",)
    assert executable.fallbacks == ()
    # What something else reads is still computed.
    assert operators(executable).count("aten.silu.default") == also
    assert "aten.mul.Tensor" not in operators(executable)


def test_what_its_guard_refuses_runs_as_the_reference_and_is_reported(
    declare: Callable[[Kernel], None],
) -> None:
    declare(GATED)
    executable = lowered_and_compared(Gated().double(), x=torch.randn(3, 6, dtype=torch.float64))
    assert executable.kernels == ()
    (fallback,) = executable.fallbacks
    assert (fallback.kernel, "float64" in fallback.reason) == ("test_gated", True)


def test_a_kernel_may_return_several_values(declare: Callable[[Kernel], None]) -> None:
    def both(gate: Tensor, up: Tensor) -> tuple[Tensor, None, Tensor]:
        return F.silu(gate), None, gated(gate, up)

    def both_match(node: fx.Node) -> Match | None:
        found = match(node)
        act = next((n for n in node.all_input_nodes if n.target is aten.silu.default), None)
        return Match((act, None, node), found.args) if found else None

    declare(replace(GATED, launch=both, match=both_match))
    executable = lowered_and_compared(Gated(also=True), x=torch.randn(3, 6))
    assert executable.kernels == ("test_gated",)
    assert "aten.silu.default" not in operators(executable)


class Attends(nn.Module):
    def forward(self, query: Tensor) -> Tensor:
        return torch.relu(F.scaled_dot_product_attention(query, query, query))


def attention_then_relu(node: fx.Node) -> Match | None:
    """``attention`` -> ``relu``; ``node`` is the relu."""
    if node.target is not aten.relu.default or not is_dialect(node.args[0], "attention"):
        return None
    return Match(node, node.args[0].args, node.args[0].kwargs)  # type: ignore[union-attr]


def rectified(*args: Any, **kwargs: Any) -> Tensor:
    return torch.relu(KERNELS["attention"].launch(*args, **kwargs))


@pytest.mark.parametrize("name", ["a_test_kernel", "z_test_kernel"])
@pytest.mark.parametrize("reason", [None, "it will not"])
def test_where_kernels_overlap_the_larger_goes_first_and_leaves_what_it_refuses_to_the_other(
    declare: Callable[[Kernel], None], name: str, reason: str | None
) -> None:
    made = Kernel(name, rectified, rectified, lambda *_, **__: reason, attention_then_relu, variants=())
    declare(made)
    executable = lowered_and_compared(Attends(), query=torch.randn(2, 2, 5, 8))
    assert executable.kernels == (("attention",) if reason else (name,))
    assert [(f.kernel, f.reason) for f in executable.fallbacks] == ([(name, reason)] if reason else [])


class TwoActs(nn.Module):
    """The second activation reads what the first one gave."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(F.silu(x) + 1)


def test_a_call_whose_operand_needs_its_own_result_is_not_placed(declare: Callable[[Kernel], None]) -> None:
    def acts(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return F.silu(x), torch.relu(y)

    def acts_match(node: fx.Node) -> Match | None:
        if node.target is not aten.relu.default:
            return None
        act = next(n for n in node.graph.nodes if n.target is aten.silu.default)
        return Match((act, node), (act.args[0], node.args[0]))

    declare(Kernel("test_acts", acts, acts, lambda x, y: None, acts_match, variants=()))
    assert lowered_and_compared(TwoActs(), x=torch.randn(3, 6)).kernels == ()


def test_every_kernel_declares_variants_that_are_compiled_ahead_of_time() -> None:
    assert all(kernel.variants for kernel in KERNELS.values())
