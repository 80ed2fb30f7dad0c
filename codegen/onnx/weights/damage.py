"""What storing a matrix otherwise does to what is multiplied by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from tersor.ir.products import PRODUCTS
from tersor.ir.program import GraphInterpreter, Program
from tersor.ir.stepping import run_in_steps

from .kind import Stored


def damage(program: Program, stored: Mapping[str, Stored], inputs: Mapping[str, Tensor]) -> dict[str, float]:
    """How far products with each stored matrix move: ``|x (v - w)|² / |x w|²``, for columns of x that are independent.

    Args:
        inputs: what ``program`` is run on.  Matrices that nothing multiplies are left out.
    """
    squares = _Squares(program, stored)

    def step(given: Mapping[str, Tensor]) -> Any:
        with torch.no_grad():
            return squares.run(*(given[spec.name] for spec in program.inputs))

    if program.stepping is None:
        step(inputs)
    else:
        run_in_steps(program.stepping, program.inputs, program.outputs, step, inputs)
    found = {}
    for name, (square, turned) in squares.sums.items():
        weight = program.weights[name].detach()
        weight = weight.t() if turned else weight
        whole = float((weight.square() @ square).sum())
        off = float(((stored[name].values() - weight).square() @ square).sum())
        found[name] = off / whole if whole else 0.0
    return found


class _Squares(GraphInterpreter):
    """Sums the squares of what every stored matrix is multiplied by.

    Attributes:
        sums: by the matrix's name: float32 ``[in]``, and whether the matrix is ``[in, out]``.
    """

    def __init__(self, program: Program, stored: Mapping[str, Stored]) -> None:
        super().__init__(program)
        self._stored = stored
        self.sums: dict[str, tuple[Tensor, bool]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.target in PRODUCTS:
            left, right, inner = PRODUCTS[n.target]
            weight = n.args[right]
            if isinstance(weight, fx.Node) and weight.op == "get_attr" and str(weight.target) in self._stored:
                x: Tensor = self.env[n.args[left]]  # type: ignore[index]
                square = x.flatten(0, -2).square().sum(0)
                before = self.sums.get(str(weight.target))
                total = square if before is None else before[0] + square
                self.sums[str(weight.target)] = total, inner == 0
        return result
