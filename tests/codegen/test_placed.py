"""A Program on another device; "meta" stands in for a GPU."""

from __future__ import annotations

import torch

from tersor.codegen.placed import move_constants, placed
from tersor.codegen.torch import TorchExecutable
from tersor.ir.builder import Builder
from tersor.ir.capture import capture

aten = torch.ops.aten


class Affine(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + torch.arange(4, device=x.device)


def test_constants_move_with_the_graph() -> None:
    """No node makes its value on another device than the one named."""
    program = capture(Affine().eval(), {"x": torch.randn(2, 4)}).edit()
    g = Builder(program, program.output_node)
    made = [
        g.call(aten.arange.default, 4, device=torch.device("cpu")),
        g.call(aten.zeros.default, [2, 4]),
        g.op("token_mask", None, 4, 4, True, 0, torch.device("cpu")),
    ]
    program.output_node.args = ((*program.output_node.args[0], *made),)
    move_constants(program, torch.device("meta"))
    outputs = program.module().to("meta")(torch.empty(2, 4, device="meta"))
    assert {output.device.type for output in outputs} == {"meta"}


def test_the_program_stays_where_it_is() -> None:
    program = capture(Affine().eval(), {"x": torch.randn(2, 4)})
    before = str(program.graph)
    assert placed(program, torch.device("meta"))(torch.empty(2, 4, device="meta"))[0].is_meta
    assert str(program.graph) == before
    assert {weight.device.type for weight in program.weights.values()} == {"cpu"}


def test_torch_runs_where_its_inputs_are() -> None:
    program = capture(Affine().eval(), {"x": torch.randn(2, 4)})
    executable = TorchExecutable(program)
    x = torch.randn(3, 4)
    for device in ("cpu", "meta", "cpu"):
        (result,) = executable.run({"x": x.to(device)})
        assert result.device.type == device
    torch.testing.assert_close(result, program.run({"x": x})[0])
