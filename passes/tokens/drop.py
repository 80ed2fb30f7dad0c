"""``token-drop``: reduce the tokens of the residual stream at some layers, bring them back at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import fx

from tersor.ir.analyses.layers import Layers, layers
from tersor.ir.analyses.token_axis import NotTokenwise, depends_on_inputs, token_axis
from tersor.ir.errors import RefusedError
from tersor.ir.program import Program

from ..contract import Pass, Promise, Refusal, Site
from .method import TokenMethod, TokenSite
from .protect import Protection, find_protected
from .rewrite import Cut, reduce_at
from .schedule import default_layers, per_layer, solve_flops
from .zero_tprune import ZeroTPrune


@dataclass(frozen=True)
class TokenDrop(Pass):
    """Keep the tokens that matter: score, select and gather after chosen layers, scatter back at the end."""

    name: ClassVar[str] = "token-drop"
    family: ClassVar[str] = "tokens"
    promise: ClassVar[Promise] = Promise.APPROXIMATE

    method: TokenMethod = field(default_factory=ZeroTPrune, metadata={"help": "how tokens are chosen"})
    keep: tuple[float, ...] = field(
        default=(0.7,), metadata={"help": "share kept at each layer: one value, or one per layer"}
    )
    layers: tuple[int, ...] = field(
        default=(), metadata={"help": "layers after whose attention tokens are reduced, from 0"}
    )
    flops: float = field(
        default=0.0, metadata={"help": "share of the FLOPs to reach instead of keep (0 = off)"}
    )
    prefix: int = field(
        default=-1, metadata={"help": "tokens at the start that stay (-1 = as the graph shows)"}
    )
    last: int = field(
        default=-1, metadata={"help": "real tokens at the end that stay (-1 = as the graph shows)"}
    )

    def __post_init__(self) -> None:
        if any(not 0.0 < k <= 1.0 for k in self.keep) or not self.keep:
            raise ValueError(f"keep={'+'.join(f'{k:g}' for k in self.keep)} is outside 0 to 1")
        if self.flops and not 0.0 < self.flops < 1.0:
            raise ValueError(f"flops={self.flops:g} is outside 0 to 1")
        if list(self.layers) != sorted(set(self.layers)) or any(i < 0 for i in self.layers):
            raise ValueError("layers must be ascending, each one once, from 0")
        if self.layers and len(self.keep) not in (1, len(self.layers)):
            raise ValueError(
                f"keep has {len(self.keep)} values for {len(self.layers)} layers; give one, or one each"
            )

    def legality(self, program: Program) -> list[Site] | Refusal:
        stack = program.analysis(layers)
        if not len(stack):
            first = stack.outside[0] if stack.outside else None
            reason = first[1] if first else "no attention was found"
            return Refusal(f"no stack of attention layers: {reason}", first[0].name if first else "")
        chosen = self.layers or default_layers(len(stack))
        if max(chosen) >= len(stack):
            return Refusal(f"layers={'+'.join(map(str, chosen))}: the model has layers 0 to {len(stack) - 1}")
        if len(self.keep) not in (1, len(chosen)):
            return Refusal(
                f"keep has {len(self.keep)} values for {len(chosen)} layers; give one, or one each"
            )
        protection = self._protection(program, stack)
        sites = []
        for index in chosen:
            layer = stack[index]
            try:
                token_axis(program, layer.after_attention, stack[len(stack) - 1].end)
            except NotTokenwise as refusal:
                return Refusal(refusal.reason, refusal.node.name)
            refused = _opaque_mask(program, layer.attention[0])
            refused = refused or self.method.why_not(_site(program, stack, index, protection, 1000))
            if refused:
                return Refusal(refused, layer.attention[0].name)
            facts = {"layer": index, "prefix": protection.prefix, "last": protection.last}
            sites.append(
                Site(layer.attention[0].name, layer.label, facts | {"protected": protection.reasons})
            )
        return sites

    def rewrite(self, program: Program, sites: list[Site]) -> Program:
        chosen = [int(site.facts["layer"]) for site in sites]
        if self.flops:
            keep = solve_flops(
                program, chosen, self.flops, self.method.least_keep, lambda k: self._reduced(program, k)
            )
        else:
            keep = per_layer(self.keep, chosen)
        return self._reduced(program, keep)

    def _reduced(self, program: Program, keep: dict[int, int]) -> Program:
        work = program.edit()
        stack = work.analysis(layers)
        protection = self._protection(work, stack)
        cut = Cut(end=stack[len(stack) - 1].end)
        for index, share in sorted(keep.items()):
            site = _site(work, stack, index, protection, share)
            site.carried = cut.carried
            refused = self.method.why_not(site)
            if refused:
                raise RefusedError(f"{self.method.name} at layer {index}: {refused}")
            reduce_at(work, stack[index], len(stack), cut, self.method, site)
        work.graph.eliminate_dead_code()
        used = {node.target for node in work.graph.nodes if node.op == "get_attr"}
        work.weights = {name: tensor for name, tensor in work.weights.items() if name in used}
        work.notes.setdefault("token-drop", []).append(_note(self, keep, cut))
        work._analyses.clear()
        return work

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
    )
    site.padding = site.operand("padding")
    return site


def _opaque_mask(program: Program, attention: fx.Node) -> str | None:
    """A mask computed from an input may hide padding, and padding must never be taken for content."""
    schema = attention.target._schema  # type: ignore[union-attr]
    position = [a.name for a in schema.arguments].index("mask")
    mask = attention.args[position] if position < len(attention.args) else attention.kwargs.get("mask")
    if not isinstance(mask, fx.Node):
        return None
    inputs = depends_on_inputs(program, mask)
    if not inputs:
        return None
    return (
        f"its mask {mask.name} is computed from {', '.join(sorted(inputs))} and was not proven to be causal, a "
        "window or padding, so padding cannot be told from content"
    )


def _note(drop: TokenDrop, keep: dict[int, int], cut: Cut) -> dict[str, Any]:
    kept = [str(index.meta["val"].shape[1]) for index in cut.indices]
    return {
        "method": drop.method.name,
        "keep": {str(layer): share / 1000 for layer, share in keep.items()},
        "tokens": dict(zip(map(str, keep), kept, strict=True)),
        "index": [index.name for index in cut.indices],
    }
