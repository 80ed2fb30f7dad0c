"""Looking through the transposes and reshapes that a model puts around its attention, and at sums before its norms.

A model splits heads by ``reshape`` and ``transpose``; operators that take ``[batch, tokens, width]`` want neither.
Undoing them while lowering leaves nothing for an optimiser to find.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch

from tersor.ir.shapes import expression

from .emitter import Emitter

Size = int | torch.SymInt
_SWAP = [0, 2, 1, 3]


def heads_as_width(e: Emitter, x: ir.Value) -> ir.Value:
    """``[batch, heads, tokens, d]`` as ``[batch, tokens, heads * d]``; the split that made it is undone."""
    fake = e.fake(x)
    batch, heads, tokens, width = fake.shape
    source = transposed_from(x, _SWAP)
    if source is None:
        source = e.op("Transpose", x, perm=_SWAP)
    else:
        whole = reshaped_from(source)
        if whole is not None and same_shape(e, whole, [batch, tokens, int(heads) * int(width)]):
            return whole
    return e.op("Reshape", source, e.ints([0, 0, int(heads) * int(width)]))


def tokens_before_heads(e: Emitter, x: ir.Value) -> ir.Value:
    """``[batch, heads, tokens, d]`` as ``[batch, tokens, heads, d]``; the transpose that made it is undone."""
    return transposed(e, x, _SWAP)


def split_heads(e: Emitter, x: ir.Value, sizes: Sequence[Size]) -> ir.Value:
    """``[batch, tokens, heads * d]`` as ``[batch, heads, tokens, d]``; ``sizes`` are batch, tokens, heads, d."""
    mode_shape = [*sizes[:2], int(sizes[2]) * int(sizes[3])]
    remember(e, x, mode_shape)
    parts = e.op("Reshape", x, e.ints([0, 0, int(sizes[2]), int(sizes[3])]))
    remember(e, parts, sizes)
    return e.op("Transpose", parts, perm=_SWAP)


def remember(e: Emitter, x: ir.Value, sizes: Sequence[Size]) -> None:
    """Note the shape of a value that stands for no FX node."""
    x.meta["sizes"] = tuple(expression(s) for s in sizes)


def same_shape(e: Emitter, x: ir.Value, sizes: Sequence[Size]) -> bool:
    """Whether ``x`` is known to have exactly these sizes."""
    known = x.meta.get("sizes")
    if known is None:
        fake = x.meta.get("val")
        if not isinstance(fake, torch.Tensor):
            return False
        known = tuple(expression(s) for s in fake.shape)
    return known == tuple(expression(s) for s in sizes)


def transposed(e: Emitter, x: ir.Value, order: list[int]) -> ir.Value:
    """``x`` permuted; a permutation of a permutation is one, and the identity is none."""
    inner = transpose_of(x)
    if inner is not None:
        x, order = inner[0], [inner[1][d] for d in order]
    return x if order == list(range(len(order))) else e.op("Transpose", x, perm=order)


def transposed_from(x: ir.Value, perm: Sequence[int]) -> ir.Value | None:
    """What ``x`` is a transpose by ``perm`` of, or None."""
    found = transpose_of(x)
    return found[0] if found is not None and found[1] == list(perm) else None


def transpose_of(x: ir.Value) -> tuple[ir.Value, list[int]] | None:
    """The operand and the permutation of the Transpose that made ``x``, or None."""
    node = x.producer()
    if node is None or node.op_type != "Transpose" or node.domain or node.inputs[0] is None:
        return None
    return node.inputs[0], list(node.attributes["perm"].as_ints())


def reshaped_from(x: ir.Value) -> ir.Value | None:
    """What ``x`` is a reshape of, or None."""
    node = x.producer()
    return node.inputs[0] if node is not None and node.op_type == "Reshape" and not node.domain else None


def inverted(x: ir.Value) -> ir.Value | None:
    """What ``x`` is the reciprocal of, or None."""
    node = x.producer()
    return node.inputs[0] if node is not None and node.op_type == "Reciprocal" and not node.domain else None


def keep_sum_apart(x: ir.Value) -> None:
    """Let the float32 ``Add`` that made ``x`` be a ``Sum``, which ONNX Runtime does not fuse with a norm behind it.

    Its ``SkipLayerNormalization`` takes longer than what it replaces, bias included: `docs/benchmarks.md` (Operators)
    has the times of both.
    """
    node = x.producer()
    if node is not None and node.op_type == "Add" and not node.domain and x.dtype == ir.DataType.FLOAT:
        node.op_type = "Sum"
