"""``token-drop``: reduce the tokens of the residual stream at some layers, bring them back at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import fx

from tersor.ir.analyses.layers import Layers, layers
from tersor.ir.analyses.token_axis import NotTokenwise, TokenAxis, token_axis_to_outputs
from tersor.ir.errors import RefusedError
from tersor.ir.program import Program
from tersor.ir.shapes import Size, expression, size_text

from ..attention_stack import no_stack
from ..contract import Pass, Promise, Refusal, Site
from . import stand_in
from .compact import leave_compact
from .flop_target import solve_flops
from .legality import free_layers, why_not
from .method import TokenMethod, TokenSite
from .protect import Protection, find_protected, holds_token_ids
from .rewrite import Cut, bias_keys, reduce_at
from .schedule import default_layers, per_layer
from .zero_tprune import ZeroTPrune

_KEEP = (0.7,)


@dataclass(frozen=True)
class TokenDrop(Pass):
    """Keep the tokens that matter: score, select and gather after chosen layers, scatter back at the end."""

    name: ClassVar[str] = "token-drop"
    family: ClassVar[str] = "tokens"
    promise: ClassVar[Promise] = Promise.APPROXIMATE

    method: TokenMethod = field(default_factory=ZeroTPrune, metadata={"help": "how tokens are chosen"})
    keep: tuple[float, ...] = field(
        default=_KEEP, metadata={"help": "share kept at each layer: one value, or one per layer"}
    )
    layers: tuple[int, ...] = field(
        default=(), metadata={"help": "layers after whose attention tokens are reduced, from 0"}
    )
    flops: float = field(
        default=0.0,
        metadata={"help": "share of the FLOPs to reach instead of keep (0 = off)", "excludes": ("keep",)},
    )
    prefix: int = field(
        default=-1, metadata={"help": "tokens at the start that stay (-1 = as the graph shows)"}
    )
    last: int = field(
        default=-1, metadata={"help": "real tokens at the end that stay (-1 = as the graph shows)"}
    )

    restore: Literal["scatter", "compact"] = field(
        default="scatter",
        metadata={
            "help": "scatter: outputs have all tokens again; compact: only the kept, and their kept_index"
        },
    )
    proportional: Literal["auto", True, False] = field(
        default="auto",
        metadata={
            "help": "later attention weighs a kept token by how many it stands for; auto: unless tokens are ids"
        },
    )

    def __post_init__(self) -> None:
        if any(not 0.001 <= k <= 1.0 for k in self.keep) or not self.keep:
            raise ValueError(f"keep={'+'.join(f'{k:g}' for k in self.keep)} is outside 0.001 to 1")
        if self.flops and not 0.0 < self.flops < 1.0:
            raise ValueError(f"flops={self.flops:g} is outside 0 to 1")
        if self.flops and self.keep != _KEEP:
            raise ValueError("flops= and keep= say the same thing; give one of them")
        if list(self.layers) != sorted(set(self.layers)) or any(i < 0 for i in self.layers):
            raise ValueError("layers must be ascending, each one once, from 0")
        if self.layers and len(self.keep) not in (1, len(self.layers)):
            raise ValueError(
                f"keep has {len(self.keep)} values for {len(self.layers)} layers; give one, or one each"
            )
        if self.restore not in ("scatter", "compact"):
            raise ValueError(f"restore={self.restore} is neither scatter nor compact")

    def legality(self, program: Program) -> list[Site] | Refusal:
        if program.stepping is not None:
            return Refusal("it keeps a cache, and a token that is dropped would be missing from later steps")
        stack = program.analysis(layers)
        if not len(stack):
            return no_stack(program, stack)
        chosen = self._chosen(stack)
        if isinstance(chosen, Refusal):
            return chosen
        try:
            protection = self._protection(program, stack)
        except NotTokenwise as refusal:
            return Refusal(refusal.reason, refusal.node.name)
        if refused := _nothing_free(stack, protection):
            return refused
        sites: list[Site] = []
        if refused := self._cannot_weigh(stack, min(chosen)):
            return refused
        for index, keep in chosen.items():
            # What one site carries to the next exists only in the rewritten graph; there it is asked again.
            site = _site(program, stack, index, protection, 1000 if self.flops else keep)
            refused = why_not(program, stack, index) or _named(site.attention, self.method.why_not(site))
            if refused:
                return refused
            facts = {"layer": index, "keep": keep, "prefix": protection.prefix, "last": protection.last}
            sites.append(
                Site(site.attention.name, stack[index].label, facts | {"protected": protection.reasons})
            )
        if self.restore == "compact":
            try:
                _to_outputs(program, stack, protection)
            except NotTokenwise as refusal:
                return Refusal(f"restore=compact: {refusal.reason}", refusal.node.name)
        return sites

    def _chosen(self, stack: Layers) -> dict[int, int] | Refusal:
        """Share to keep, in thousandths, by layer."""
        free = free_layers(stack)
        if not free and not self.layers:
            return Refusal("no layer is left after which tokens could be reduced", stack.end.name)
        chosen = self.layers or default_layers(free)
        if max(chosen) >= len(stack):
            given = f"layers={'+'.join(map(str, chosen))}"
            if not stack.outside:
                return Refusal(f"{given}: the model has layers 0 to {len(stack) - 1}")
            node, why = stack.outside[0]
            return Refusal(
                f"{given}: the stack has layers 0 to {len(stack) - 1}; the first attention outside of it: {why}",
                node.name,
            )
        if len(self.keep) not in (1, len(chosen)):
            return Refusal(
                f"keep has {len(self.keep)} values for {len(chosen)} layers; give one, or one each"
            )
        return per_layer(self.keep, chosen)

    def rewrite(self, program: Program, sites: list[Site]) -> Program:
        keep = {int(site.facts["layer"]): int(site.facts["keep"]) for site in sites}
        if self.flops and keep:
            return solve_flops(program, keep, self.flops, self.method.least_keep, self._reduced)
        return self._reduced(program, keep)

    def _reduced(self, program: Program, keep: dict[int, int]) -> Program:
        work = program.edit()
        if not keep:
            return work
        stack = work.analysis(layers)
        protection = self._protection(work, stack)
        cut = Cut(end=stack.end, token_dim=stack.token_dim)
        proportional = self._proportional(work, stack, min(keep))
        compact = self.restore == "compact"
        outputs = _to_outputs(work, stack, protection) if compact else None
        for index, share in sorted(keep.items()):
            site = _site(work, stack, index, protection, share)
            site.carried, site.proportional = cut.carried, proportional
            refused = self.method.why_not(site)
            if refused:
                raise RefusedError(f"{self.method.name} at layer {index} ({site.attention.name}): {refused}")
            reduce_at(work, stack[index], cut, self.method, site)
        bias_keys(work, cut)
        full = stack[min(keep)].after_attention
        if outputs is not None:
            leave_compact(work, cut, outputs, full)
        _require_protected(work, full.meta["val"].shape[cut.token_dim], protection)
        work.notes.setdefault("token-drop", []).append(_note(self, work, keep, cut))
        return work.finished()

    def _proportional(self, program: Program, stack: Layers, first: int) -> bool:
        """Whether kept tokens weigh for others in the attention after layer ``first``.

        What was merged is still there and counts as many.  A dropped patch or frame is mostly like one that stays,
        because an image is sampled more densely than it varies; a dropped word is not.
        """
        if self.proportional != "auto":
            return self.proportional
        if _first_reason(stack, first, stand_in.why_not):
            return False
        return self.method.merges or not holds_token_ids(program, stack)

    def _cannot_weigh(self, stack: Layers, first: int) -> Refusal | None:
        """Why tokens that stay after layer ``first`` cannot weigh for others where they must, or None."""
        if self.proportional is True:
            return _first_reason(stack, first, stand_in.why_not)
        if self.proportional == "auto" and self.method.merges:
            return _first_reason(stack, first, stand_in.why_no_weights)
        return None

    def _protection(self, program: Program, stack: Layers) -> Protection:
        found = find_protected(program, stack)
        prefix = found.prefix if self.prefix < 0 else self.prefix
        last = found.last if self.last < 0 else self.last
        return Protection(prefix, last, found.reasons)


def _site(program: Program, stack: Layers, index: int, protection: Protection, share: int) -> TokenSite:
    layer = stack[index]
    site = TokenSite(
        hidden=layer.after_attention,
        attention=layer.attention[0],
        padding=None,
        layer=index,
        depth=len(stack),
        keep_per_mille=share,
        prefix=protection.prefix,
        last=protection.last,
        earlier=tuple(stack[i].attention[0] for i in range(index)),
    )
    site.padding = site.operand("padding")
    return site


def _nothing_free(stack: Layers, protection: Protection) -> Refusal | None:
    """Where tokens are a fixed number, all of which are protected."""
    tokens = stack.tokens
    if not isinstance(tokens, int) or protection.prefix + protection.last < tokens:
        return None
    return Refusal(
        f"prefix={protection.prefix} and last={protection.last} protect all of the {tokens} tokens",
        stack.end.name,
    )


def _to_outputs(program: Program, stack: Layers, protection: Protection) -> TokenAxis:
    return token_axis_to_outputs(program, stack.end, protection.prefix, protection.last, stack.token_dim)


def _first_reason(stack: Layers, first: int, reason: Callable[[fx.Node], str | None]) -> Refusal | None:
    """What speaks against an attention from layer ``first`` on, or None."""
    attention = (node for layer in stack.blocks[first:] for node in layer.attention)
    return next((refused for node in attention if (refused := _named(node, reason(node)))), None)


def _named(node: fx.Node, reason: str | None) -> Refusal | None:
    return Refusal(reason, node.name) if reason else None


def _require_protected(program: Program, size: Size, protection: Protection) -> None:
    """Let a sequence be at least as long as the tokens that always stay, and note why.

    A count that is right for shorter ones as well needs a maximum, and names the count before it twice: after six
    layers such sizes take sympy half a minute.
    """
    name = program.symbols.get(str(expression(size)))
    if name is None:
        return
    (low, high), tokens = program.ranges.get(name, (1, None)), protection.prefix + protection.last
    if tokens <= low:
        return
    program.ranges = program.ranges | {name: (tokens, high)}
    why = (
        f"token-drop always keeps the first {protection.prefix} and the last {protection.last} tokens, so inputs have "
        f"{tokens} or more, where the model takes {low}; its options prefix and last lower that"
    )
    program.least = program.least | {name: why}


def _note(drop: TokenDrop, program: Program, keep: dict[int, int], cut: Cut) -> dict[str, Any]:
    kept = [size_text(index.meta["val"].shape[1], program.symbols) for index in cut.indices]
    return {
        "method": drop.method.name,
        "keep": {str(layer): share / 1000 for layer, share in keep.items()},
        "tokens": dict(zip(map(str, sorted(keep)), kept, strict=True)),
        "index": [index.name for index in cut.indices],
    }
