"""Remembered shapes are the shapes that inference from scratch finds."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from random_programs import Config, build, programs
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from tersor.codegen.target import find_target
from tersor.ir.capture import capture
from tersor.ir.inference import Inference, signature
from tersor.ir.program import Program
from tersor.ir.shapes import describe, fake_call, fake_mode


@settings(max_examples=5, deadline=None)
@given(programs(layers=2))
def test_a_remembered_shape_is_the_shape_of_the_call(program: Program) -> None:
    infer = Inference(fake_mode(program))
    for node in program.graph.nodes:
        if node.op == "call_function":
            with fake_mode(program), torch.no_grad():
                fresh = fake_call(node)
            assert describe(infer(node)) == describe(fresh)


def test_equal_layers_are_inferred_once() -> None:
    program = build(Config(layers=3))
    infer = Inference(fake_mode(program))
    values = {node.name: infer(node) for node in program.graph.nodes if node.op == "call_function"}
    assert values["attention_default"] is values["attention_default_2"]
    assert values["gelu_default"] is not values["attention_default"]


def test_signatures_tell_apart_what_operators_do() -> None:
    table = [1, 1.0, True, "1", None, [1], (1,), torch.float32, torch.zeros(2, 3), torch.zeros(3, 2).T,
             torch.zeros(2, 3, dtype=torch.float64), torch.zeros(3, 2)]  # fmt: skip
    assert len({signature(value) for value in table}) == len(table)
    assert signature(torch.zeros(2, 3)) == signature(torch.ones(2, 3))


class Gated(nn.Module):
    """Layers that work on the tokens their gates choose, of which there are others in each."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Linear(8, 1) for _ in range(3))
        self.work = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for gate, work in zip(self.gates, self.work, strict=True):
            chosen = gate(x)[:, 0] > 0
            some = work(x[chosen]) / (1 + x[chosen].shape[0])
            x = x.clone()
            x[chosen] = torch.tanh(some)
        return x


def test_a_size_that_depends_on_data_is_another_one_in_each_layer() -> None:
    torch.manual_seed(0)
    program = capture(Gated().eval(), {"x": torch.randn(9, 8)})
    sizes = [
        free_unbacked_symbols(node.meta["val"])
        for node in program.graph.nodes
        if node.target is torch.ops.aten.linear.default and free_unbacked_symbols(node.meta["val"])
    ]
    assert len(sizes) == 3
    assert len(set().union(*sizes)) == 3


def test_counts_that_coincide_in_the_example_are_not_taken_for_equal() -> None:
    torch.manual_seed(0)
    model = Gated().eval()

    def counts(x: Tensor) -> list[int]:
        found: list[int] = []
        hooks = [
            g.register_forward_hook(lambda _, __, out: found.append(int((out > 0).sum())))
            for g in model.gates
        ]
        model(x)
        for hook in hooks:
            hook.remove()
        return found

    drawn = [torch.randn(9, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(400)]
    example = next(x for x in drawn if len(set(counts(x))) == 1)
    others = [x for x in drawn if len(set(counts(x))) == 3][:4]
    assert len(others) == 4
    executable = find_target("onnx").lower(capture(model, {"x": example}))
    for x in (example, *others):
        torch.testing.assert_close(executable.run({"x": x})[0], model(x), rtol=0, atol=1e-5)
