"""The ONNX target's choices among operators, each timed in ONNX Runtime on CPU beside what it was chosen over.

python -m benchmarks.operators                                writes the section `operators` of docs/benchmarks.md
python -m benchmarks.operators --choice norm --seconds 1 --print   a quick look that writes nothing

Both sides are one small Program, lowered by the target: as it chooses, and with that choice undone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import torch
from rich.console import Console
from torch import Tensor, nn

from tersor.codegen.onnx import microsoft
from tersor.codegen.onnx.emitter import MICROSOFT
from tersor.codegen.onnx.export import build
from tersor.codegen.onnx.fusions import FUSIONS
from tersor.codegen.onnx.lowerings import norms
from tersor.codegen.onnx.session import CPU, session_from_model, session_options
from tersor.ir.capture import capture
from tersor.ir.dialect import DIALECT
from tersor.ir.program import Program
from tersor.runtime.paired import PairedTiming, time_pair

from .page import provenance, put_section, table

_MAX_PAIRS = 60
_OPSET_OF_ATTENTION = 23
_FREE = {0: "batch", 1: "tokens"}
_INTRODUCTION = """\
What the ONNX target chooses, against what it chose it over: one small model, lowered both ways, float32. Every row is
one paired comparison: the two sessions take turns in one process, {threads} thread(s) an operator, and the ratio is the
median of the pairs' ratios with its 95% interval."""

_console = Console(stderr=True)
Inputs = dict[str, Tensor]
Lowering = Callable[[Program], ir.Model]


class Attention(nn.Module):
    """Attention from ``[batch, tokens, heads * head_dim]`` to the same; key and value may have fewer heads.

    ``padding [batch, tokens]`` is 0 where a token is none; ``sizes [batch, tokens]`` how many tokens a key stands for.
    """

    def __init__(self, heads: int, kv_heads: int, *, causal: bool = False, window: int = 0) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.causal, self.window = heads, kv_heads, causal, window

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        padding: Tensor | None = None,
        sizes: Tensor | None = None,
    ) -> Tensor:
        q = query.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (x.unflatten(-1, (self.kv_heads, -1)).transpose(1, 2) for x in (key, value))
        # As merging weighs a key that stands for several tokens.
        mask = None if sizes is None else sizes.clamp_min(1.0).log()[:, None, None]
        seen = None if padding is None else padding.ne(0)
        scale = q.shape[-1] ** -0.5
        attention = DIALECT["attention"].overload
        result = attention(q, k, v, mask, seen, scale=scale, causal=self.causal, window=self.window)
        return result.transpose(1, 2).flatten(2)


class Norm(nn.Module):
    """A residual sum of which the second part has its bias still to add, and the layer norm behind it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(width))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        return self.norm(x + (branch + self.bias))


class Rotated(nn.Module):
    """Queries ``[batch, tokens, heads * head_dim]`` whose heads are normed and turned by their places."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, nn.Parameter(torch.rand(width))
        self.frequencies: Tensor
        self.register_buffer("frequencies", 1e-4 ** (torch.arange(0, width, 2) / width))

    def forward(self, query: Tensor) -> Tensor:
        x = query.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        angle = torch.arange(query.shape[1])[None, :, None] * self.frequencies
        both = torch.cat([angle, angle], -1)[:, None]
        first, second = x.chunk(2, -1)
        return (x * both.cos() + torch.cat([-second, first], -1) * both.sin()).transpose(1, 2).flatten(2)


def portable(program: Program) -> ir.Model:
    """By standard operators of the target's own opset."""
    return build(program, "portable", for_session=True)


def chosen(program: Program) -> ir.Model:
    """As the target lowers for ONNX Runtime."""
    return build(program, "ort", for_session=True)


def by_attention(program: Program) -> ir.Model:
    """As chosen, but by the standard's own operator, which takes padding as a mask."""
    model = chosen(program)
    model.graph.opset_imports[""] = _OPSET_OF_ATTENTION
    (node,) = (node for node in model.graph if node.domain == MICROSOFT)
    heads = node.attributes["num_heads"]
    grouped = node.op_type == "GroupQueryAttention"
    inputs = dict(enumerate(node.inputs))  # those left out behind the last one given are not there
    mask = inputs.get(10 if grouped else 5)
    padding = None if grouped else inputs.get(4)
    if padding is not None:
        mask = _visible(model.graph, node, padding)
    attributes = {
        "q_num_heads": heads.as_int(),
        "kv_num_heads": (node.attributes["kv_num_heads"] if grouped else heads).as_int(),
        "scale": node.attributes["scale"].as_float(),
        "is_causal": int(grouped),
    }
    attention = ir.node("Attention", [*node.inputs[:3], mask], attributes)
    ir.convenience.replace_nodes_and_values(
        model.graph, node, [node], [attention], node.outputs[:1], attention.outputs
    )
    common_passes.RemoveUnusedNodesPass()(model)
    return model


def _visible(graph: ir.Graph, node: ir.Node, padding: ir.Value) -> ir.Value:
    """``[batch, keys]`` as the bool mask ``[batch, 1, queries, keys]``, which the operator does not broadcast."""
    first, one, axes = (ir.node("Constant", [], {"value_ints": ints}) for ints in ([1, 1], [1], [1, 2]))
    queries = ir.node("Shape", [node.inputs[0]], {"start": 1, "end": 2})
    shape = ir.node("Concat", [part.outputs[0] for part in (first, queries, one)], {"axis": 0})
    truth = ir.node("Cast", [padding], {"to": int(ir.DataType.BOOL)})
    wide = ir.node("Unsqueeze", [truth.outputs[0], axes.outputs[0]])
    mask = ir.node("Expand", [wide.outputs[0], shape.outputs[0]])
    graph.insert_before(node, [first, one, axes, queries, shape, truth, wide, mask])
    return mask.outputs[0]


def bias_written_out(program: Program) -> ir.Model:
    """As chosen, but with a bias of keys given for every query."""
    with patch.object(microsoft, "split_key_bias", lambda _, sight: (None, sight)):
        return chosen(program)


def sum_fused(program: Program) -> ir.Model:
    """As chosen, but with a sum that ONNX Runtime fuses with the norm behind it."""
    with patch.object(norms, "keep_sum_apart", lambda _: None):
        return chosen(program)


def unfused(program: Program) -> ir.Model:
    """As chosen, but every operator by itself."""
    with patch.dict(FUSIONS, clear=True):
        return chosen(program)


@dataclass(frozen=True)
class Side:
    """A model of one computation, what it is given, and how it is lowered."""

    name: str
    model: nn.Module
    inputs: Inputs
    lower: Lowering

    def lowered(self) -> ir.Model:
        """With batch and tokens free."""
        few = {name: value[:1].repeat_interleave(2, 0) for name, value in self.inputs.items()}
        return self.lower(capture(self.model.eval(), few, dict.fromkeys(few, _FREE)))

    def call(self, threads: int) -> Callable[[], Any]:
        """A run of a session on the lowered model, NumPy in, NumPy out."""
        session = session_from_model(self.lowered(), session_options(threads), [CPU])
        feeds = {value.name: self.inputs[value.name].numpy() for value in session.get_inputs()}
        return lambda: session.run(None, feeds)


@dataclass(frozen=True)
class Case:
    """One size: what stands before the slash, and what is held against it, each in a comparison of its own."""

    title: str
    before: Side
    after: tuple[Side, ...]


def attention_case(
    batch: int, tokens: int, heads: int, kv_heads: int, width: int, *, padded: bool = False, **order: Any
) -> Case:
    """Written out, by the standard's operator, and by the one that the target chooses; ``order``: causal, window."""
    inputs = {
        "query": torch.randn(batch, tokens, heads * width),
        "key": torch.randn(batch, tokens, kv_heads * width),
        "value": torch.randn(batch, tokens, kv_heads * width),
    }
    if padded:
        inputs["padding"] = (torch.arange(tokens) < tokens - tokens // 8).long().repeat(batch, 1)
    own = "GroupQueryAttention" if order.get("causal") else "MultiHeadAttention"
    model = Attention(heads, kv_heads, **order)
    # With a window the standard's operator would need all that is visible written out.
    standard = () if order.get("window") else (Side("`Attention`", model, inputs, by_attention),)
    title = f"{batch} x {tokens}, {heads}{'' if heads == kv_heads else f' / {kv_heads}'} x {width}"
    for name, value in order.items():
        title += f", {name}" if value is True else f", {name} {value}"
    return Case(
        title + (", padding" if padded else ""),
        Side("written out", model, inputs, portable),
        (*standard, Side(f"`{own}`", model, inputs, chosen)),
    )


def key_bias_case(tokens: int) -> Case:
    inputs = {name: torch.randn(1, tokens, 384) for name in ("query", "key", "value")}
    biased = {**inputs, "sizes": torch.randint(1, 4, (1, tokens)).float()}
    model = Attention(6, 6)
    return Case(
        f"1 x {tokens}, 6 x 64",
        Side("no bias", model, inputs, chosen),
        (Side("written out", model, biased, bias_written_out), Side("a column", model, biased, chosen)),
    )


def norm_case(tokens: int) -> Case:
    model, inputs = Norm(384), {name: torch.randn(1, tokens, 384) for name in ("x", "branch")}
    apart = Side("`Sum`, `LayerNormalization`", model, inputs, chosen)
    return Case(f"1 x {tokens} x 384", apart, (Side("`SkipLayerNormalization`", model, inputs, sum_fused),))


def rotated_case(tokens: int, heads: int, width: int) -> Case:
    model, inputs = Rotated(heads, width), {"query": torch.randn(1, tokens, heads * width)}
    return Case(
        f"1 x {tokens}, {heads} x {width}",
        Side("written out", model, inputs, unfused),
        (Side("`SimplifiedLayerNormalization`, `RotaryEmbedding`", model, inputs, chosen),),
    )


@dataclass(frozen=True)
class Choice:
    """What the target decides, and the cases that it rests on."""

    title: str
    size: str
    cases: Callable[[], list[Case]]


CHOICES = {
    "attention": Choice(
        "Attention, every query seeing every key",
        "batch x tokens, heads x head_dim",
        lambda: [
            attention_case(1, 257, 6, 6, 64),
            attention_case(1, 1370, 6, 6, 64),
            attention_case(4, 257, 6, 6, 64),
            attention_case(1, 256, 12, 12, 32, padded=True),
            attention_case(1, 512, 12, 12, 32, padded=True),
            attention_case(4, 256, 12, 12, 32, padded=True),
        ],
    ),
    "causal-attention": Choice(
        "Causal attention",
        "batch x tokens, heads / key heads x head_dim",
        lambda: [
            attention_case(1, 64, 4, 1, 256, causal=True, padded=True),
            attention_case(1, 512, 4, 1, 256, causal=True),
            attention_case(1, 512, 4, 1, 256, causal=True, padded=True),
            attention_case(1, 1024, 4, 1, 256, causal=True, padded=True),
            attention_case(1, 1024, 4, 1, 256, causal=True, window=512, padded=True),
            attention_case(1, 512, 8, 2, 64, causal=True, padded=True),
            attention_case(1, 1024, 8, 2, 64, causal=True, padded=True),
            attention_case(1, 2048, 8, 2, 64, causal=True, padded=True),
            attention_case(2, 256, 12, 12, 64, causal=True, padded=True),
        ],
    ),
    "key-bias": Choice(
        "A bias of keys in `MultiHeadAttention`",
        "batch x tokens, heads x head_dim",
        lambda: [key_bias_case(tokens) for tokens in (200, 700, 1065)],
    ),
    "norm": Choice(
        "A sum before a layer norm",
        "batch x tokens x width",
        lambda: [norm_case(tokens) for tokens in (132, 256, 1370)],
    ),
    "rotary": Choice(
        "Norm and rotation of heads",
        "batch x tokens, heads x head_dim",
        lambda: [rotated_case(tokens, 4, 256) for tokens in (1, 8, 512)] + [rotated_case(512, 32, 128)],
    ),
}


@dataclass(frozen=True)
class Row:
    """One comparison."""

    case: str
    before: str
    after: str
    pair: PairedTiming


def measure(choice: Choice, threads: int, seconds: float) -> Iterator[Row]:
    for case in choice.cases():
        before = case.before.call(threads)
        for side in case.after:
            pair = time_pair(before, side.call(threads), pairs=_MAX_PAIRS, seconds=seconds)
            _console.print(f"{case.title}, {side.name} / {case.before.name}: {pair}", highlight=False)
            yield Row(case.title, case.before.name, side.name, pair)


def section(rows: Mapping[str, Sequence[Row]], threads: int) -> str:
    """The whole section of the page, from rows by the name of their choice."""
    parts = [provenance("operators"), "", _INTRODUCTION.format(threads=threads)]
    for name, measured in rows.items():
        choice = CHOICES[name]
        header = [choice.size, "after / before", "before ms", "after ms", "ratio (95%)"]
        parts += ["", f"### {choice.title}", "", table(header, [_cells(row) for row in measured])]
    return "\n".join(parts)


def _cells(row: Row) -> list[str]:
    pair = row.pair
    times = (f"{seconds * 1e3:.3f}" for seconds in (pair.before, pair.after))
    ratio = f"{pair.ratio:.3f} ({pair.low:.3f} to {pair.high:.3f})"
    return [row.case, f"{row.after} / {row.before}", *times, ratio]


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.operators", description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1, help="threads an operator")
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each comparison")
    parser.add_argument("--choice", choices=CHOICES, action="append", help="only this one; writes nothing")
    parser.add_argument("--print", action="store_true", help="print the section and write nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows = {
        name: list(measure(CHOICES[name], options.threads, options.seconds))
        for name in options.choice or CHOICES
    }
    text = section(rows, options.threads)
    put_section("operators", text, bool(options.print or options.choice))


if __name__ == "__main__":
    main()
