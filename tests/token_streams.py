"""Programs that are one stream of tokens and a few operators on it, to hold the rules of the token axis against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from tersor.ir.boundary import spec_of
from tersor.ir.builder import Builder
from tersor.ir.program import Program
from tersor.ir.shapes import SymbolTable
from tersor.ir.structure import Structure

aten = torch.ops.aten
BATCH, TOKENS, WIDTH = 2, 6, 8
Case = Callable[[Builder, fx.Node], fx.Node]


def graph_of(case: Case, dynamic: bool) -> tuple[Program, fx.Node, fx.Node]:
    """A Program that is one stream ``x [batch, tokens, width]`` and the case's operators on it."""
    table, graph = SymbolTable(), fx.Graph()
    sizes = [table.symbol("batch", BATCH), table.symbol("tokens", TOKENS)] if dynamic else [BATCH, TOKENS]
    x = graph.placeholder("x")
    x.meta["val"] = table.tensor([*sizes, WIDTH], torch.float32)
    end = graph.output(())
    program = Program(
        graph, {}, (spec_of(x, "x", table.names),), (), Structure("tensor"), table.names, {}, {}
    )
    g = Builder(program, end)
    stream = g.mul(x, 1.0)
    result = case(g, stream)
    program.output_node.args = ((result,),)
    return program, stream, result


def weight(g: Builder, *shape: int, dtype: torch.dtype = torch.float32) -> fx.Node:
    random = torch.Generator().manual_seed(len(g.program.weights))
    values = torch.randn(shape, generator=random)
    return g.weight("w", values > 0 if dtype == torch.bool else values.to(dtype))


def heads(g: Builder, x: fx.Node) -> fx.Node:
    """``[batch, 2, tokens, 4]``."""
    return g.call(
        aten.transpose.int, g.call(aten.reshape.default, x, [g.size(x, 0), g.size(x, 1), 2, 4]), 1, 2
    )


def folded(g: Builder, x: fx.Node, back: bool = True) -> fx.Node:
    flat = g.call(aten.reshape.default, x, [-1, WIDTH])
    flat = g.call(aten.addmm.default, weight(g, 4), flat, weight(g, WIDTH, 4))
    return g.call(aten.reshape.default, flat, [g.size(x, 0), g.size(x, 1), 4]) if back else flat


def call(target: Any, *args: Any, **kwargs: Any) -> Case:
    return lambda g, x: g.call(target, x, *args, **kwargs)


def item(target: Any, index: int, *args: Any) -> Case:
    return lambda g, x: g.item(g.call(target, x, *args), index)


def chain(*names: str) -> Case:
    def written(g: Builder, x: fx.Node) -> fx.Node:
        for name in names:
            x = g.call(getattr(aten, name).default, x)
        return x

    return written


def codes(g: Builder, x: fx.Node) -> fx.Node:
    """0 or 1 for every entry of the stream."""
    return g.call(aten.to.dtype, g.call(aten.gt.Scalar, x, 0), torch.int64)
