"""Random small transformers, built as Programs without tracing a module, for property tests of passes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
from hypothesis import strategies as st
from torch import Tensor, fx

from tersor.ir.boundary import spec_of
from tersor.ir.builder import Builder
from tersor.ir.program import ModelFacts, Program
from tersor.ir.shapes import SymbolTable
from tersor.ir.structure import Structure

aten = torch.ops.aten


@dataclass(frozen=True)
class Config:
    """What a random transformer looks like.

    Attributes:
        parallel: attention and MLP read the same normalised stream and are added together.
        noise: operators that clean-up removes are strewn in: dropouts, copies, repeated work, dead values.
        dynamic: batch and tokens are symbols, not the literal sizes of the example.
        ids: the input is token ids and an embedding table, not features.
        output: ``hidden`` states, ``logits`` over a vocabulary of 13, or the ``first`` token's state.
    """

    layers: int = 2
    heads: int = 2
    kv_heads: int = 2
    head_dim: int = 4
    norm: Literal["pre", "post"] = "pre"
    norm_kind: Literal["layer", "rms"] = "layer"
    mlp: Literal["gelu", "swiglu"] = "gelu"
    parallel: bool = False
    causal: bool = False
    window: int = 0
    padding: bool = False
    positions: bool = True
    ids: bool = False
    dynamic: bool = True
    noise: bool = False
    output: Literal["hidden", "logits", "first"] = "hidden"
    batch: int = 2
    tokens: int = 7
    seed: int = 0

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


def configs(**fixed: Any) -> st.SearchStrategy[Config]:
    """Random configs; ``fixed`` settings are the same in all of them."""

    def repair(config: Config) -> Config:
        kv_heads = max(k for k in range(1, config.kv_heads + 1) if config.heads % k == 0)
        return replace(config, kv_heads=kv_heads, **fixed)

    return st.builds(
        Config,
        layers=st.integers(1, 3),
        heads=st.sampled_from([1, 2, 4]),
        kv_heads=st.integers(1, 4),
        head_dim=st.sampled_from([2, 4, 8]),
        norm=st.sampled_from(["pre", "post"]),
        norm_kind=st.sampled_from(["layer", "rms"]),
        mlp=st.sampled_from(["gelu", "swiglu"]),
        parallel=st.booleans(),
        causal=st.booleans(),
        window=st.sampled_from([0, 0, 3]),
        padding=st.booleans(),
        positions=st.booleans(),
        ids=st.booleans(),
        dynamic=st.booleans(),
        noise=st.booleans(),
        output=st.sampled_from(["hidden", "logits", "first"]),
        batch=st.integers(1, 3),
        tokens=st.integers(4, 9),
        seed=st.integers(0, 1000),
    ).map(repair)


def programs(**fixed: Any) -> st.SearchStrategy[Program]:
    """Random Programs; ``fixed`` settings of :class:`Config` are the same in all of them."""
    return configs(**fixed).map(build)


def inputs_of(
    program: Program, config: Config, *, batch: int, tokens: int, seed: int = 0
) -> dict[str, Tensor]:
    """Random inputs at any size; every padded row keeps at least its first token and is padded at its end."""
    random = torch.Generator().manual_seed(seed)
    inputs: dict[str, Tensor] = {}
    for spec in program.inputs:
        if spec.name == "attention_mask":
            lengths = torch.randint(1, tokens + 1, (batch, 1), generator=random)
            inputs[spec.name] = (torch.arange(tokens)[None] < lengths).to(torch.int64)
        elif spec.name == "input_ids":
            inputs[spec.name] = torch.randint(0, _VOCABULARY, (batch, tokens), generator=random)
        else:
            inputs[spec.name] = torch.randn(batch, tokens, config.width, generator=random)
    return inputs


@cache
def build(config: Config) -> Program:
    """The Program of a config, the same object each time; weights depend on ``config.seed`` alone."""
    return _Transformer(config).program()


_VOCABULARY = 13
_LONGEST = 16


class _Transformer:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.random = torch.Generator().manual_seed(config.seed)
        self.table = SymbolTable()
        graph = fx.Graph()
        self.placeholders = self._placeholders(graph)
        end = graph.output(())
        self.work = Program(
            graph=graph,
            weights={},
            inputs=tuple(spec_of(node, node.name, self.table.names) for node in self.placeholders),
            outputs=(),
            structure=Structure("tensor"),
            symbols=self.table.names,
            ranges={name: (1, _LONGEST if name == "tokens" else None) for name in self.table.names.values()},
            example_inputs={},
            facts=ModelFacts(family="random", config={"vocab_size": _VOCABULARY}),
        )
        self.g = Builder(self.work, end)

    def program(self) -> Program:
        config, work = self.config, self.work
        stream = self._embedded()
        self.batch, self.tokens = self.g.size(stream, 0), self.g.size(stream, 1)
        self.padding = self._padding()
        for i in range(config.layers):
            stream = self._layer(stream, f"layers.{i}")
        self.g.layer = "head"
        if config.norm == "pre":
            stream = self._norm(stream, "norm")
        if config.output == "first":
            stream = self.g.call(aten.select.int, stream, 1, 0)
        if config.output == "logits":
            stream = self._linear(stream, "head", _VOCABULARY)
        name = "logits" if config.output == "logits" else "output"
        work.output_node.args = ((stream,),)
        work.graph.lint()
        examples = inputs_of(work, config, batch=config.batch, tokens=config.tokens, seed=config.seed)
        outputs = (spec_of(stream, name, self.table.names),)
        structure = Structure("dict", (Structure("tensor"),), (name,))
        return replace(work, outputs=outputs, structure=structure, example_inputs=examples)

    def _placeholders(self, graph: fx.Graph) -> list[fx.Node]:
        config, table = self.config, self.table
        sizes: list[Any] = [config.batch, config.tokens]
        if config.dynamic:
            sizes = [table.symbol("batch", config.batch), table.symbol("tokens", config.tokens)]
        nodes = [graph.placeholder("input_ids" if config.ids else "features")]
        nodes[0].meta["val"] = (
            table.tensor(sizes, torch.int64)
            if config.ids
            else table.tensor([*sizes, config.width], torch.float32)
        )
        if config.padding:
            nodes.append(graph.placeholder("attention_mask"))
            nodes[1].meta["val"] = table.tensor(sizes, torch.int64)
        return nodes

    def _embedded(self) -> fx.Node:
        self.g.layer = "embeddings"
        stream = self.placeholders[0]
        if self.config.ids:
            stream = self.g.call(
                aten.embedding.default, self._weight("table", _VOCABULARY, self.config.width), stream
            )
        if self.config.positions:
            table = self._weight("positions", 1, _LONGEST, self.config.width)
            stream = self.g.add(stream, self.g.call(aten.slice.Tensor, table, 1, 0, self.g.size(stream, 1)))
        return self._noisy(stream)

    def _padding(self) -> fx.Node | None:
        if not self.config.padding:
            return None
        return self.g.call(aten.ne.Scalar, self.placeholders[1], 0)

    def _layer(self, stream: fx.Node, path: str) -> fx.Node:
        pre = self.config.norm == "pre"
        attended = self._attention(
            self._norm(stream, f"{path}.norm1") if pre else stream, f"{path}.attention"
        )
        if self.config.parallel:
            inner = self._mlp(self._norm(stream, f"{path}.norm2") if pre else stream, f"{path}.mlp")
            stream = self.g.add(self.g.add(stream, attended), inner)
            return stream if pre else self._norm(stream, f"{path}.norm1")
        self.g.layer = path
        stream = self.g.add(stream, self._noisy(attended))
        if not pre:
            stream = self._norm(stream, f"{path}.norm1")
        inner = self._mlp(self._norm(stream, f"{path}.norm2") if pre else stream, f"{path}.mlp")
        self.g.layer = path
        stream = self.g.add(stream, self._noisy(inner))
        return stream if pre else self._norm(stream, f"{path}.norm2")

    def _attention(self, x: fx.Node, path: str) -> fx.Node:
        config, g = self.config, self.g
        query, key, value = (
            self._heads(x, f"{path}.{part}", heads)
            for part, heads in (("query", config.heads), ("key", config.kv_heads), ("value", config.kv_heads))
        )
        settings: dict[str, Any] = {"scale": config.head_dim**-0.5}
        if config.causal:
            settings["causal"] = True
        if config.window:
            settings["window"] = config.window
        if self.padding is not None:
            settings["padding"] = self.padding
        g.layer = path
        attended = g.op("attention", query, key, value, **settings)
        joined = g.call(aten.reshape.default, g.call(aten.transpose.int, attended, 1, 2),
                        [self.batch, self.tokens, config.width])  # fmt: skip
        return self._linear(self._noisy(joined), f"{path}.out", config.width)

    def _heads(self, x: fx.Node, path: str, heads: int) -> fx.Node:
        projected = self._linear(x, path, heads * self.config.head_dim)
        shape = [self.batch, self.tokens, heads, self.config.head_dim]
        return self.g.call(aten.transpose.int, self.g.call(aten.reshape.default, projected, shape), 1, 2)

    def _mlp(self, x: fx.Node, path: str) -> fx.Node:
        inner = 2 * self.config.width
        if self.config.mlp == "gelu":
            hidden = self.g.call(aten.gelu.default, self._linear(x, f"{path}.up", inner))
        else:
            gate = self.g.call(aten.silu.default, self._linear(x, f"{path}.gate", inner))
            hidden = self.g.mul(gate, self._linear(x, f"{path}.up", inner))
        return self._linear(hidden, f"{path}.down", self.config.width)

    def _norm(self, x: fx.Node, path: str) -> fx.Node:
        self.g.layer = path
        weight = self._weight(f"{path}.weight", self.config.width, around=1.0)
        if self.config.norm_kind == "layer":
            bias = self._weight(f"{path}.bias", self.config.width)
            return self.g.call(aten.layer_norm.default, x, [self.config.width], weight, bias, 1e-5)
        g = self.g
        square = g.call(aten.mean.dim, g.call(aten.pow.Tensor_Scalar, x, 2), [-1], True)
        return g.mul(g.mul(x, g.call(aten.rsqrt.default, g.add(square, 1e-6))), weight)

    def _linear(self, x: fx.Node, path: str, features: int) -> fx.Node:
        self.g.layer = path
        weight = self._weight(f"{path}.weight", features, int(x.meta["val"].shape[-1]))
        return self.g.call(aten.linear.default, x, weight, self._weight(f"{path}.bias", features))

    def _weight(self, name: str, *shape: int, around: float = 0.0) -> fx.Node:
        scale = shape[-1] ** -0.5
        return self.g.weight(name, around + scale * torch.randn(*shape, generator=self.random))

    def _noisy(self, x: fx.Node) -> fx.Node:
        """``x`` through operators that change nothing, with dead and repeated work beside them."""
        if not self.config.noise:
            return x
        g = self.g
        g.call(aten.relu.default, x)
        once, again = (g.call(aten.neg.default, x) for _ in range(2))
        x = g.call(aten.sub.Tensor, g.add(x, g.call(aten.sub.Tensor, once, again)), 0)
        scale = g.call(aten.exp.default, g.call(aten.zeros.default, [1]))
        x = g.mul(g.call(aten.dropout.default, x, 0.1, False), scale)
        x = g.call(aten.transpose.int, g.call(aten.transpose.int, x, 0, 1), 0, 1)
        x = g.call(aten.to.dtype, g.call(aten.contiguous.default, x), torch.float32)
        flat = g.call(aten.reshape.default, x, [-1, self.config.width])
        shape = [g.size(x, 0), g.size(x, 1), self.config.width]
        return g.call(aten.slice.Tensor, g.call(aten.reshape.default, flat, shape), 1, 0, 2**63 - 1)
