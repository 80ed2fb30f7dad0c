"""Where tokens may be reduced: facts of the graph that hold whatever the method."""

from __future__ import annotations

from torch import fx

from tersor.ir.analyses.attention_facts import operand, undeclared
from tersor.ir.analyses.hiding import hides_nothing
from tersor.ir.analyses.layers import Layer, Layers, restores_or_reduces
from tersor.ir.analyses.token_axis import NotTokenwise, depends_on_inputs, token_axis
from tersor.ir.program import Program
from tersor.ir.shapes import same_shape, same_size

from ..contract import Refusal


def free_layers(stack: Layers) -> list[int]:
    """Layers after whose attention something is left to save, and which no earlier pass has been at or behind."""
    return [
        layer.index
        for layer in stack.blocks
        if layer.after_attention is not stack.end and _reduced_behind(stack, layer) is None
    ]


def _reduced_behind(stack: Layers, layer: Layer) -> fx.Node | None:
    """Where an earlier pass reduces the stream between the start of ``layer`` and the end of the stack."""
    region = stack.stream[stack.stream.index(layer.start) + 1 : stack.stream.index(stack.end)]
    return next((node for node in region if restores_or_reduces(node)), None)


def why_not(program: Program, stack: Layers, index: int) -> Refusal | None:
    """Why tokens cannot be reduced after the attention of layer ``index``; None when they can."""
    layer = stack[index]
    if layer.after_attention is stack.end:
        return Refusal(
            f"layer {index} is the last and nothing runs after its attention that fewer tokens would save",
            layer.attention[0].name,
        )
    reduced = _reduced_behind(stack, layer)
    if reduced is not None:
        return Refusal(
            f"an earlier pass reduces tokens at layer {index} or behind it; give one pass all the layers, or let later "
            "passes act on later layers",
            reduced.name,
        )
    for node in layer.attention:
        if (unknown := undeclared(node)) is not None:
            return Refusal(unknown, node.name)
    if not same_shape(layer.after_attention.meta["val"].shape, stack.end.meta["val"].shape):
        return Refusal("the stream leaves the last layer in another shape than it has here", stack.end.name)
    try:
        token_axis(program, layer.after_attention, stack.end, stack.token_dim)
    except NotTokenwise as refusal:
        return Refusal(refusal.reason, refusal.node.name)
    return _attention_differs(layer, stack.token_dim) or _opaque_mask(layer.attention[0])


def _attention_differs(layer: Layer, dim: int) -> Refusal | None:
    """Scores are read off the attention: it must be over the tokens that the stream holds at the site."""
    tokens = layer.after_attention.meta["val"].shape[dim]
    for node in layer.attention:
        for what, source in zip(("queries", "keys"), node.args[:2], strict=True):
            size = source.meta["val"].shape[2]  # type: ignore[union-attr]
            if not same_size(size, tokens):
                return Refusal(
                    f"it has {size} {what} where the stream after it holds {tokens} tokens", node.name
                )
    if len({operand(node, "padding") for node in layer.attention}) > 1:
        return Refusal("attention branches of one layer hide different padding", layer.attention[1].name)
    return None


def _opaque_mask(attention: fx.Node) -> Refusal | None:
    """A mask computed from an input may hide padding, and padding must never be taken for content."""
    mask = operand(attention, "mask")
    if mask is None:
        return None
    inputs = depends_on_inputs(mask)
    if not inputs or hides_nothing(mask):
        return None
    return Refusal(
        f"its mask {mask.name} is computed from {', '.join(sorted(inputs))} and was not proven to be causal, a window "
        "or padding (which adds -1e4 or less where it hides), so padding cannot be told from content",
        attention.name,
    )
