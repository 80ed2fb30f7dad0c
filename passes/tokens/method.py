"""What a token method is and what it sees."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import fx

from tersor.ir.analyses import attention_facts
from tersor.ir.builder import Builder
from tersor.ir.dialect import Attends, Meaning, dialect_of, traits_of
from tersor.ir.errors import RefusedError
from tersor.ir.shapes import Size

from ..contract import Method
from .stand_in import log_size, stand_in

aten = torch.ops.aten

Restore = Callable[[Builder, fx.Node, fx.Node], fx.Node]


@dataclass
class TokenSite:
    """One place where tokens are reduced: the residual stream right after a layer's attention was added.

    Attributes:
        hidden: the stream ``[batch, tokens, width]``; in the graph before the rewrite it may lie tokens first.
        attention: the layer's attention node.
        padding: bool ``[batch, tokens]``, True for real tokens; None when every token is real.
        layer, depth: index of the layer, from 0, and how many there are.
        keep_per_mille: share of the unprotected tokens to keep, in thousandths.
        prefix, last: real tokens at each end of a row that must stay.
        earlier: attention nodes of the layers before, the first layer's first.
        carried: values that the method attached to tokens at an earlier site, ``[batch, tokens]`` each.
        proportional: whether kept tokens stand in for dropped ones in later attention.
    """

    hidden: fx.Node
    attention: fx.Node
    padding: fx.Node | None
    layer: int
    depth: int
    keep_per_mille: int
    prefix: int
    last: int
    earlier: tuple[fx.Node, ...] = ()
    carried: dict[str, fx.Node] = field(default_factory=dict)
    proportional: bool = False

    @property
    def tokens(self) -> Size:
        """How many tokens the stream holds here."""
        return self.key.meta["val"].shape[2]  # type: ignore[no-any-return]

    @property
    def query(self) -> fx.Node:
        """``[batch, heads, tokens, head_dim]``."""
        return self.attention.args[0]  # type: ignore[return-value]

    @property
    def key(self) -> fx.Node:
        """``[batch, kv_heads, tokens, head_dim]``."""
        return self.attention.args[1]  # type: ignore[return-value]

    @property
    def heads(self) -> int:
        return int(self.query.meta["val"].shape[1])

    @property
    def operator(self) -> str:
        """Which operator of the dialect the attention is."""
        op = dialect_of(self.attention)
        assert op is not None
        return op.name

    @property
    def attends(self) -> Attends:
        """What the operator's file says of its arguments and of its other forms."""
        return traits_of(self.attention).attends

    def operand(self, meaning: Meaning) -> fx.Node | None:
        """An optional tensor operand of the attention: mask, padding, query_positions, key_positions, sinks."""
        return attention_facts.operand(self.attention, meaning)

    def before(self, layer: int) -> TokenSite:
        """The same tokens as an earlier layer's attention saw them."""
        attention = self.earlier[layer]
        padding = attention_facts.operand(attention, "padding")
        return replace(self, attention=attention, padding=padding, layer=layer)

    def real(self, g: Builder) -> fx.Node:
        """1.0 for real tokens and 0.0 for padding, float32 ``[batch, tokens]``."""
        if self.padding is not None:
            return g.call(aten.to.dtype, self.padding, torch.float32)
        # From the key, which is there before the attention too, where query weights are written.
        first = g.call(aten.select.int, g.call(aten.select.int, self.key, 1, 0), 2, 0)
        return g.call(aten.ones_like.default, g.call(aten.to.dtype, first, torch.float32))

    def ordinals(self, g: Builder) -> fx.Node:
        """Index of every token among its row's real tokens, int64 ``[batch, tokens]``."""
        counted = g.call(aten.cumsum.default, self.real(g), 1)
        return g.call(aten.to.dtype, g.add(counted, -1.0), torch.int64)

    def why_no_importance(self) -> str | None:
        """Why ``importance`` cannot be had here, or None."""
        if self.attends.importance_by is not None:
            return None
        if isinstance(self.attention.meta["val"], tuple):
            return f"it is {self.operator}, which yields something for another pass already; put one of them elsewhere"
        return f"it is {self.operator}, of which no form yields importance"

    def importance(
        self, g: Builder, query_weights: Callable[[Builder], fx.Node], iterations: int = 1
    ) -> fx.Node:
        """Attention that each key receives, ``[batch, heads, tokens]``: see ``tersor::attention_importance``.

        ``query_weights`` writes the weights, ``[batch, heads or 1, tokens]``, before the attention.

        Raises:
            RefusedError: for the reason that ``why_no_importance`` gives; a method's ``why_not`` should return it.
        """
        old = self.attention
        if (reason := self.why_no_importance()) is not None:
            raise RefusedError(f"{old.name}: {reason}")
        form = self.attends.importance_by
        assert form is not None
        with g.at(old):
            weights = query_weights(g)
            both = g.op(
                form,
                *old.args[:3],
                weights,
                *old.args[3:],
                **old.kwargs,
                iterations=iterations,
            )
            output, received = g.item(both, 0), g.item(both, 1)
            for node in (weights, both, output, received):
                node.meta["layer"] = old.meta.get("layer", "")
        old.replace_all_uses_with(output)
        g.program.graph.erase_node(old)
        self.attention = both
        return received


@dataclass
class Reduction:
    """What a method did at a site.

    Attributes:
        hidden: the stream with fewer tokens ``[batch, kept, width]``.
        index: int64 ``[batch, kept]``, ascending: the token that each column stands for.
        restore: writes the full-length stream again, from the stream at the site and the reduced one.
        carried: per-token values to hand to the next site, with fewer tokens already.
        key_bias: float ``[batch, kept]`` to add to the logits of every key in the layers that follow.
    """

    hidden: fx.Node
    index: fx.Node
    restore: Restore
    carried: dict[str, fx.Node] = field(default_factory=dict)
    key_bias: fx.Node | None = None


class TokenMethod(Method):
    """How tokens are reduced at one site; fills the slot of ``token-drop``.

    ``least_keep`` is the smallest share (in thousandths) that the method can keep at one site; ``merges`` says that
    tokens which go are mixed into those that stay.
    """

    least_keep: ClassVar[int] = 50
    merges: ClassVar[bool] = False

    @abstractmethod
    def reduce(self, g: Builder, site: TokenSite) -> Reduction:
        """Write the reduction before ``g.before``."""

    def why_not(self, site: TokenSite) -> str | None:
        """Why the method makes no sense at a site, or None."""
        return None


class Scorer(TokenMethod):
    """A method that scores tokens and keeps the best; the rest is dropped where it stands."""

    @abstractmethod
    def score(self, g: Builder, site: TokenSite) -> fx.Node:
        """One score per token ``[batch, tokens]``; higher stays."""

    def reduce(self, g: Builder, site: TokenSite) -> Reduction:
        index = select(g, site, self.score(g, site), site.keep_per_mille)
        return drop(g, site, index)


def select(g: Builder, site: TokenSite, score: fx.Node, keep_per_mille: int) -> fx.Node:
    """Index of the best tokens, protected ones among them."""
    return g.op(
        "select_tokens",
        score,
        site.padding,
        keep_per_mille=keep_per_mille,
        prefix=site.prefix,
        last=site.last,
    )


def drop(g: Builder, site: TokenSite, index: fx.Node) -> Reduction:
    """Keep the tokens of ``index``; dropped ones come back at the end as they were at the site."""
    hidden = g.op("gather_tokens", site.hidden, index, 1)
    carried = {name: g.op("gather_tokens", value, index, 1) for name, value in site.carried.items()}
    bias = None
    if site.proportional:
        carried["size"] = stand_in(g, site, index)
        bias = log_size(g, carried["size"])
    return Reduction(
        hidden=hidden,
        index=index,
        restore=lambda b, base, reduced: b.op("scatter_tokens", base, index, reduced),
        carried=carried,
        key_bias=bias,
    )
