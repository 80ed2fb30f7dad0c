"""What a Program must be for its attention to be given a cache, as facts of the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from tersor.ir.analyses.attention_facts import is_causal, operand
from tersor.ir.analyses.layers import is_attention, layers
from tersor.ir.dialect import is_dialect
from tersor.ir.evaluate import evaluate, sources_of
from tersor.ir.operands import arguments
from tersor.ir.program import Program
from tersor.ir.same_elements import COPIES
from tersor.ir.shapes import same_size

from ..attention_stack import no_stack
from ..contract import Refusal

aten = torch.ops.aten


@dataclass(frozen=True)
class Decoder:
    """A causal decoder.

    Attributes:
        ids: the node of its input of token ids.  start: the stream ``[batch, tokens, width]`` that these become.
        padding: the input that is 0 at padding; None where no attention reads any.
        attentions: in graph order.
    """

    ids: str
    ids_name: str
    start: fx.Node
    padding: str | None
    attentions: tuple[fx.Node, ...]


def read_decoder(program: Program) -> Decoder | Refusal:
    """The decoder that a Program is, or why it is none."""
    if program.stepping is not None:
        return Refusal("it keeps a cache already")
    stack = program.analysis(layers)
    attentions = tuple(node for node in program.graph.nodes if is_attention(node))
    if not len(stack) or stack.outside:
        return no_stack(program, stack)
    for node in attentions:
        if (why := _why_not(node)) is not None:
            return Refusal(why, node.name)
    if stack.token_dim != 1:
        return Refusal("the stream has its tokens before its batch", stack[0].start.name)
    looked_up = _lookups(program)
    if len(looked_up) != 1:
        return Refusal(
            f"{len(looked_up)} embeddings look up token ids, so that which input holds them is not told",
            looked_up[1][1].name if looked_up else stack.stream[0].name,
        )
    ids, start = looked_up[0]
    if (refused := _read_elsewhere(ids, start)) is not None:
        return refused
    if not isinstance(count := ids.meta["val"].shape[1], torch.SymInt):
        return Refusal(
            f"it takes rows of {count} tokens and no others, and a cache is fed a few: capture it with a length "
            "that may vary",
            ids.name,
        )
    padding = _padding(program, attentions)
    if isinstance(padding, Refusal):
        return padding
    for node in program.graph.nodes:
        # What is computed from one that is read is refused where it meets the stream, by what it is.
        if node.op == "placeholder" and not node.users and node.target not in (ids.target, padding):
            return Refusal(f"nothing reads its input {str(node.target)!r}: capture the model without it")
    return Decoder(ids.name, str(ids.target), start, padding, attentions)


def _why_not(node: fx.Node) -> str | None:
    if not is_dialect(node, "attention"):
        return "it has more results than attention itself, or other operands: insert the cache before other passes"
    if not is_causal(node):
        return "it is not causal: later tokens change earlier ones, which a cache keeps"
    for meaning in ("mask", "query_positions", "key_positions"):
        if (given := operand(node, meaning)) is not None:  # type: ignore[arg-type]
            return f"its {meaning.replace('_', ' ')} {given.name} is about tokens that a cache would have to keep"
    if not same_size(
        arguments(node)["query"].meta["val"].shape[2], arguments(node)["key"].meta["val"].shape[2]
    ):
        return "it has more or fewer queries than keys"
    return None


def _lookups(program: Program) -> list[tuple[fx.Node, fx.Node]]:
    """Inputs ``[batch, tokens]`` of ids, and the embedding of each that looks them up."""
    found = []
    for node in program.graph.nodes:
        if node.target is aten.embedding.default:
            source = _copied_from(node.args[1])
            if source.op == "placeholder" and source.meta["val"].dim() == 2:
                found.append((source, node))
    return found


def _copied_from(node: Any) -> fx.Node:
    """What ``node`` is a copy of, of the same shape."""
    while node.op == "call_function" and isinstance(node.args[0], fx.Node):
        packet = getattr(node.target, "overloadpacket", None)
        if not (packet in COPIES or packet is aten.reshape) or not _same_sizes(node, node.args[0]):
            break
        node = node.args[0]
    return node  # type: ignore[no-any-return]


def _read_elsewhere(ids: fx.Node, start: fx.Node) -> Refusal | None:
    """What else reads the token ids, other than their sizes: it may differ with the ids around them."""
    pending, seen = [ids], {ids}
    while pending:
        for user in pending.pop().users:
            if user is start or user in seen or user.target is aten.sym_size.int:
                continue
            if _copied_from(user) is not ids:
                return Refusal("reads token ids beside the embedding", user.name)
            seen.add(user)
            pending.append(user)
    return None


def _same_sizes(node: fx.Node, other: fx.Node) -> bool:
    mine, theirs = node.meta["val"].shape, other.meta["val"].shape
    return len(mine) == len(theirs) and all(map(same_size, mine, theirs))


def _padding(program: Program, attentions: tuple[fx.Node, ...]) -> str | Refusal | None:
    """The input that every attention's padding is a copy of."""
    found: set[str] = set()
    for node in attentions:
        given: Any = operand(node, "padding")
        if given is None:
            continue
        names = {str(n.target) for n in sources_of([given]) if n.op == "placeholder"}
        mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
        if len(names) != 1 or not torch.equal(
            evaluate(program, [given], dict.fromkeys(names, mask))[given].bool(), mask.bool()
        ):
            return Refusal("its padding is not that of one input, 1 at tokens and 0 at padding", node.name)
        found |= names
    if len(found) > 1:
        return Refusal(f"padding is hidden by several inputs: {', '.join(sorted(found))}", attentions[0].name)
    return found.pop() if found else None
