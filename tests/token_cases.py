"""Operators on a stream of tokens: those that carry over to fewer tokens, those that mix tokens, those that do not."""

from __future__ import annotations

import torch
from token_streams import BATCH, TOKENS, WIDTH, Case, call, chain, codes, folded, heads, item, weight
from torch import fx

from tersor.ir.builder import Builder

aten = torch.ops.aten

# Operators by which no token sees another: the result of a token is a function of that token and its place.
TOKENWISE: dict[str, Case] = {
    "add of a position table": lambda g, x: g.add(x, weight(g, TOKENS, WIDTH)),
    "add of a table with a batch of one": lambda g, x: g.add(weight(g, 1, TOKENS, WIDTH), x),
    "mul of a scale for each token": lambda g, x: g.mul(x, weight(g, TOKENS, 1)),
    "mul of a scale for each channel": lambda g, x: g.mul(x, weight(g, WIDTH)),
    "rotary tables on heads": lambda g, x: g.mul(heads(g, x), weight(g, TOKENS, 4)),
    "gelu": call(aten.gelu.default),
    "where": lambda g, x: g.call(aten.where.self, weight(g, TOKENS, 1, dtype=torch.bool), x, g.mul(x, 2.0)),
    "masked_fill": lambda g, x: g.call(
        aten.masked_fill.Scalar, x, weight(g, 1, TOKENS, 1, dtype=torch.bool), 0.0
    ),
    "and, or": lambda g, x: g.mul(x, g.call(aten.__or__.Tensor, g.call(
        aten.__and__.Tensor, g.call(aten.gt.Scalar, x, 0), weight(g, TOKENS, 1, dtype=torch.bool)),
        g.call(aten.lt.Scalar, x, -1))),
    "lerp": lambda g, x: g.call(aten.lerp.Scalar, x, weight(g, TOKENS, WIDTH), 0.3),
    "to": call(aten.to.dtype, torch.float64),
    "_to_copy": call(aten._to_copy.default, dtype=torch.float64),
    "dropout": call(aten.dropout.default, 0.5, False),
    "feature_dropout": call(aten.feature_dropout.default, 0.5, False),
    "native_dropout": lambda g, x: g.item(g.call(aten.native_dropout.default, x, 0.5, False), 0),
    "copies": chain("contiguous", "clone", "detach", "alias", "lift_fresh", "lift_fresh_copy"),
    "type_as": lambda g, x: g.call(aten.type_as.default, x, weight(g, 1, dtype=torch.float64)),
    "zeros_like, ones_like": lambda g, x: g.add(
        g.call(aten.zeros_like.default, x), g.call(aten.ones_like.default, x)
    ),
    "linear": lambda g, x: g.call(aten.linear.default, x, weight(g, 5, WIDTH), weight(g, 5)),
    "a code for each channel": lambda g, x: g.call(aten.one_hot.default, codes(g, x), 2),
    "a code looked up": lambda g, x: g.call(aten.embedding.default, weight(g, 2, 3), codes(g, x)),
    "an entry looked up": lambda g, x: g.call(aten.index.Tensor, weight(g, 2, 3), [codes(g, x)]),
    "entries looked up and chosen by folded tokens": lambda g, x: g.call(
        aten.reshape.default,
        g.call(aten.gather.default, g.call(
            aten.index.Tensor, weight(g, 3, 2),
            [g.call(aten.select.int, codes(g, flat := folded(g, x, back=False)), 1, 0)],
        ), 1, codes(g, flat)),
        [g.size(x, 0), g.size(x, 1), -1],
    ),
    "columns looked up": lambda g, x: g.call(aten.index.Tensor, weight(g, 3, 2), [None, codes(g, x)]),
    "gather of rows of a table": lambda g, x: g.call(
        aten.gather.default, weight(g, BATCH, 2, WIDTH), 1, codes(g, x)),
    "gather of a channel": lambda g, x: g.call(aten.gather.default, x, 2, codes(g, x)),
    "gather by a table": lambda g, x: g.call(
        aten.gather.default, x, 2,
        g.weight("places", torch.arange(BATCH * TOKENS * 3).reshape(BATCH, TOKENS, 3) * 5 % WIDTH)),
    "scatter among channels": lambda g, x: g.call(
        aten.scatter.src, g.mul(x, 2.0), 2, codes(g, g.call(aten.slice.Tensor, x, 2, 0, 1)), x),
    "scatter of a number to a table": lambda g, x: g.call(
        aten.scatter.value, weight(g, BATCH, TOKENS, WIDTH), 2,
        codes(g, g.call(aten.slice.Tensor, x, 2, 0, 1)), 5.0),
    "batch_norm of channels": lambda g, x: g.call(
        aten.transpose.int, g.call(
            aten.batch_norm.default, g.call(aten.transpose.int, x, 1, 2), None, None, weight(g, WIDTH),
            g.call(aten.abs.default, weight(g, WIDTH)), False, 0.1, 1e-5, False), 1, 2),
    "layer_norm": lambda g, x: g.call(aten.layer_norm.default, x, [WIDTH], weight(g, WIDTH), weight(g, WIDTH)),
    "rms_norm": lambda g, x: g.call(aten.rms_norm.default, x, [WIDTH], weight(g, WIDTH), 1e-6),
    "softmaxes over channels": lambda g, x: g.call(
        aten.log_softmax.int, g.call(aten._softmax.default, g.call(aten.softmax.int, x, -1), 2, False), -1
    ),
    "cumsum over channels": call(aten.cumsum.default, 2),
    "mean of channels": call(aten.mean.dim, [-1], True),
    "sum of channels, their dim gone": call(aten.sum.dim_IntList, [2]),
    "amax, amin": lambda g, x: g.add(g.call(aten.amax.default, x, [2]), g.call(aten.amin.default, x, [-1])),
    "var, std": lambda g, x: g.add(
        g.call(aten.var.correction, x, [2], correction=1), g.call(aten.std.correction, x, [2], correction=1)
    ),
    "max, min": lambda g, x: g.add(g.item(g.call(aten.max.dim, x, 2, True), 0), g.add(
        g.call(aten.unsqueeze.default, g.item(g.call(aten.min.dim, x, -1), 0), 2),
        g.item(g.call(aten.max.dim, x, 2, True), 1))),
    "argmax, argmin, any, all": lambda g, x: g.add(
        g.add(g.call(aten.argmax.default, x, 2), g.call(aten.argmin.default, x, -1)),
        g.add(g.call(aten.any.dim, g.call(aten.gt.Scalar, x, 1), 2), g.call(aten.all.dim, x, -1))),
    "logsumexp": call(aten.logsumexp.default, [2], True),
    "var_mean, std_mean": lambda g, x: g.add(
        g.item(g.call(aten.var_mean.correction, x, [2], correction=1), 1),
        g.item(g.call(aten.std_mean.correction, x, [-1]), 0)),
    "cumprod": call(aten.cumprod.default, 2),
    "glu": call(aten.glu.default),
    "argsort of channels": call(aten.argsort.default, -1, True),
    "roll, flip of channels": lambda g, x: g.call(
        aten.flip.default, g.call(aten.roll.default, x, [1], [-1]), [2]),
    "min of heads": lambda g, x: g.item(g.call(aten.min.dim, heads(g, x), 1), 0),
    "prod": call(aten.prod.dim_int, 2),
    "linalg_vector_norm": call(aten.linalg_vector_norm.default, 2.0, [-1]),
    "sum over heads in front of the tokens": lambda g, x: g.call(aten.sum.dim_IntList, heads(g, x), [1]),
    "transpose": call(aten.transpose.int, 1, 2),
    "t of a matrix": lambda g, x: g.call(aten.t.default, folded(g, x, back=False)),
    "numpy_T": call(aten.numpy_T.default),
    "permute": call(aten.permute.default, [2, 0, -2]),
    "unsqueeze in front": call(aten.unsqueeze.default, 1),
    "unsqueeze behind": call(aten.unsqueeze.default, -1),
    "squeeze": lambda g, x: g.call(aten.squeeze.dim, g.call(aten.unsqueeze.default, x, 1), 1),
    "select a channel": call(aten.select.int, 2, 3),
    "index of channels": lambda g, x: g.call(
        aten.index.Tensor, x, [None, None, g.weight("places", torch.tensor([5, -2]))]
    ),
    "slice of channels": call(aten.slice.Tensor, 2, 1, 5),
    "slice of all the tokens by a literal": lambda g, x: g.call(aten.slice.Tensor, x, 1, 0, g.size(x, 1)),
    "split of channels": item(aten.split.Tensor, 1, 4, -1),
    "split_with_sizes of channels": item(aten.split_with_sizes.default, 1, [3, 5], 2),
    "chunk of channels": item(aten.chunk.default, 1, 2, -1),
    "tensor_split of channels": item(aten.tensor_split.sections, 2, 3, -1),
    "unbind of channels": item(aten.unbind.int, 2, -1),
    "cat of channels with a table": lambda g, x: g.call(aten.cat.default, [x, g.mul(x, 2.0)], -1),
    "stack": lambda g, x: g.call(aten.stack.default, [x, g.mul(x, 2.0)], 1),
    "expand": lambda g, x: g.call(
        aten.expand.default, g.call(aten.unsqueeze.default, x, 1), [g.size(x, 0), 3, g.size(x, 1), WIDTH]
    ),
    "reshape to heads and back": lambda g, x: g.call(
        aten.reshape.default,
        g.call(aten.contiguous.default, g.call(aten.transpose.int, heads(g, x), 1, 2)),
        [g.size(x, 0), g.size(x, 1), -1],
    ),
    "view": lambda g, x: g.call(aten.view.default, x, [-1, g.size(x, 1), 2, 4]),
    "_unsafe_view": lambda g, x: g.call(aten._unsafe_view.default, x, [g.size(x, 0), g.size(x, 1), 4, 2]),
    "flatten of heads": lambda g, x: g.call(
        aten.flatten.using_ints, g.call(aten.transpose.int, heads(g, x), 1, 2), 2
    ),
    "unflatten of channels": call(aten.unflatten.int, 2, [2, 4]),
    "tokens folded into rows and out again": folded,
    "repeat of channels": call(aten.repeat.default, [1, 1, 2]),
    "repeat behind a new dim": call(aten.repeat.default, [3, 1, 1, 1]),
    "repeat_interleave of channels": call(aten.repeat_interleave.self_int, 2, -1),
    "topk of channels": item(aten.topk.default, 0, 2, -1),
    "sort of channels": item(aten.sort.default, 0, -1),
    "matmul by a weight": lambda g, x: g.call(aten.matmul.default, x, weight(g, WIDTH, 3)),
    "matmul by a weight for each token": lambda g, x: g.call(
        aten.matmul.default, g.call(aten.unsqueeze.default, x, 2), weight(g, TOKENS, WIDTH, 3)
    ),
    "mm of folded tokens": lambda g, x: g.call(
        aten.reshape.default,
        g.call(aten.mm.default, g.call(aten.reshape.default, x, [-1, WIDTH]), weight(g, WIDTH, 3)),
        [g.size(x, 0), -1, 3],
    ),
    "bmm of channels": lambda g, x: g.call(aten.bmm.default, x, g.call(
        aten.expand.default, weight(g, 1, WIDTH, 3), [g.size(x, 0), -1, -1])),
    "baddbmm with a table": lambda g, x: g.call(
        aten.baddbmm.default, weight(g, 1, TOKENS, 3), x,
        g.call(aten.expand.default, weight(g, 1, WIDTH, 3), [g.size(x, 0), -1, -1]),
    ),
    "scores of tokens against tokens": lambda g, x: g.call(
        aten.matmul.default, heads(g, x), g.call(aten.transpose.int, heads(g, x), 2, 3)
    ),
    "scores with a bias for each pair": lambda g, x: g.add(
        g.call(aten.matmul.default, heads(g, x), g.call(aten.transpose.int, heads(g, x), 2, 3)),
        weight(g, 1, 2, TOKENS, TOKENS),
    ),
    "einsum by a weight": lambda g, x: g.call(aten.einsum.default, "bnw,wv->bnv", [x, weight(g, WIDTH, 3)]),
    "einsum of tokens against tokens": lambda g, x: g.call(aten.einsum.default, "bnw,bmw->bnm", [x, x]),
}  # fmt: skip


def shares(g: Builder, x: fx.Node) -> fx.Node:
    """Attention weights ``[batch, 2, tokens, tokens]``."""
    scores = g.call(aten.matmul.default, heads(g, x), g.call(aten.transpose.int, heads(g, x), 2, 3))
    return g.call(aten.softmax.int, scores, -1)


# The tokens see each other, so the results differ with fewer of them; the axis still has to be where it is said.
MIXING: dict[str, Case] = {
    "attention": lambda g, x: g.op("attention", heads(g, x), heads(g, x), heads(g, x), scale=0.5),
    "attention with a bias": lambda g, x: g.op(
        "attention", heads(g, x), heads(g, x), heads(g, x), weight(g, 2, TOKENS, TOKENS), scale=0.5
    ),
    "attention_importance": lambda g, x: g.item(
        g.op("attention_importance", heads(g, x), heads(g, x), heads(g, x), weight(g, 1, 1, TOKENS), scale=0.5), 0
    ),
    "softmax(scores) times values": lambda g, x: g.call(aten.matmul.default, shares(g, x), heads(g, x)),
    "weights dropped out and scaled by head": lambda g, x: g.call(
        aten.matmul.default,
        g.mul(weight(g, 2, 1, 1), g.call(aten.dropout.default, shares(g, x), 0.5, False)),
        heads(g, x),
    ),
    "weights whose heads are mixed": lambda g, x: g.call(
        aten.matmul.default,
        g.call(aten.permute.default, g.call(aten.linear.default, g.call(
            aten.permute.default, shares(g, x), [0, 2, 3, 1]), weight(g, 2, 2)), [0, 3, 1, 2]),
        heads(g, x),
    ),
    "weights with heads folded into the batch": lambda g, x: g.call(
        aten.reshape.default,
        g.call(
            aten.bmm.default,
            g.call(aten.reshape.default, shares(g, x), [2 * BATCH, g.size(x, 1), g.size(x, 1)]),
            g.call(aten.reshape.default, heads(g, x), [2 * BATCH, g.size(x, 1), 4]),
        ),
        [BATCH, 2, g.size(x, 1), 4],
    ),
    "einsum of weights and values": lambda g, x: g.call(
        aten.einsum.default, "bhqk,bhkd->bhqd", [shares(g, x), heads(g, x)]
    ),
}  # fmt: skip

REFUSED: dict[str, tuple[Case, str]] = {
    "mean over the tokens": (call(aten.mean.dim, [1]), "reduces over the tokens"),
    "mean over everything": (call(aten.mean.default), "reduces over the tokens"),
    "select of a position": (call(aten.select.int, 1, 0), "position 0, which may be dropped"),
    "range of positions": (call(aten.slice.Tensor, 1, 1), "range of token positions"),
    "index of positions": (
        lambda g, x: g.call(aten.index.Tensor, x, [None, g.weight("places", torch.tensor([1]))]),
        "works along the token axis",
    ),
    "index of places by a table of them": (
        lambda g, x: g.call(aten.index.Tensor, x, [None, None, g.weight("places", torch.tensor([[1]]))]),
        "by a table of places",
    ),
    "index by a mask": (
        lambda g, x: g.call(aten.index.Tensor, weight(g, BATCH, TOKENS, WIDTH), [g.call(aten.gt.Scalar, x, 0)]),
        "by a mask",
    ),
    "index of a table made of the stream": (
        lambda g, x: g.call(
            aten.index.Tensor, g.call(aten.reshape.default, x, [BATCH * TOKENS, WIDTH]), [codes(g, x)]
        ),
        "a table that is computed from the tokens",
    ),
    "gather of tokens": (
        lambda g, x: g.call(aten.gather.default, x, 1, codes(g, x)),
        "takes tokens by their place",
    ),
    "gather for some tokens": (
        lambda g, x: g.call(
            aten.gather.default, x, 2, g.weight("places", torch.zeros(BATCH, 1, 3, dtype=torch.int64))
        ),
        "some of the tokens only",
    ),
    "gather of channels beside tokens": (
        lambda g, x: g.call(
            aten.gather.default, g.call(aten.slice.Tensor, x, 2, 0, TOKENS), 0,
            g.call(aten.transpose.int, g.call(aten.slice.Tensor, codes(g, x), 2, 0, TOKENS), 1, 2),
        ),
        "holds no tokens",
    ),
    "scatter of tokens": (
        lambda g, x: g.call(aten.scatter.src, x, 1, codes(g, x), x),
        "writes tokens to other places",
    ),
    "batch_norm by the tokens' mean": (
        lambda g, x: g.call(
            aten.batch_norm.default, g.call(aten.transpose.int, x, 1, 2), None, None, None, None, True, 0.1, 1e-5, False
        ),
        "norms by the mean of all tokens",
    ),
    "max over the tokens": (item(aten.max.dim, 0, 1), "reduces over the tokens"),
    "argmax over everything": (call(aten.argmax.default), "reduces over the tokens"),
    "roll of the tokens": (call(aten.roll.default, [1], [1]), "works along the token axis"),
    "roll of everything": (call(aten.roll.default, [1]), "works along the token axis"),
    "flip of the tokens": (call(aten.flip.default, [1]), "works along the token axis"),
    "argsort of the tokens": (call(aten.argsort.default, 1), "works along the token axis"),
    "repeat of the tokens": (call(aten.repeat.default, [1, 2, 1]), "repeats the tokens"),
    "index of pairs": (
        lambda g, x: g.call(
            aten.index.Tensor, x, [g.weight("rows", torch.tensor([0])), g.weight("places", torch.tensor([1]))]
        ),
        "by several lists of places",
    ),
    "split of the tokens": (item(aten.split.Tensor, 0, 3, 1), "splits the tokens"),
    "tokens joined to the stream": (
        lambda g, x: g.call(aten.cat.default, [x, x], 1),
        "adds tokens to the stream",
    ),
    "a table made of the stream": (
        lambda g, x: g.call(
            aten.embedding.default, g.call(aten.reshape.default, x, [BATCH * TOKENS, WIDTH]), codes(g, x)
        ),
        "a table that is computed from the tokens",
    ),
    "layer norm over tokens": (
        lambda g, x: g.call(aten.layer_norm.default, g.call(aten.transpose.int, x, 1, 2), [TOKENS]),
        "works along the token axis",
    ),
    "MLP over tokens": (
        lambda g, x: g.call(aten.linear.default, g.call(aten.transpose.int, x, 1, 2), weight(g, 4, TOKENS)),
        "works along the token axis",
    ),
    "running sum over tokens": (call(aten.cumsum.default, 1), "works along the token axis"),
    "sort of the tokens": (item(aten.sort.default, 0, 1), "works along the token axis"),
    "a token-mixing convolution": (
        lambda g, x: g.call(
            aten.conv1d.default, g.call(aten.transpose.int, x, 1, 2), weight(g, WIDTH, WIDTH, 3), None, [1], [1]
        ),
        "no rule says",
    ),
    "a weight over fixed positions": (
        lambda g, x: g.call(aten.matmul.default, weight(g, 4, TOKENS), x),
        "weights that belong to fixed positions",
    ),
    "einsum over fixed positions": (
        lambda g, x: g.call(aten.einsum.default, "bnw,nm->bmw", [x, weight(g, TOKENS, TOKENS)]),
        "weights that belong to fixed positions",
    ),
    "a window partition": (call(aten.reshape.default, [-1, 2, 3, WIDTH]), "takes the token dim"),
    "reduction of folded tokens": (
        lambda g, x: g.call(aten.sum.dim_IntList, folded(g, x, back=False), [0]),
        "reduces over the tokens",
    ),
    "softmax of the stream over its tokens": (
        lambda g, x: g.add(x, g.call(aten.softmax.int, x, 1)),
        "normalised over the tokens, and add.* reads it other than as the weights of a sum",
    ),
    "a softmax that is also returned": (
        lambda g, x: g.mul(g.call(aten.softmax.int, x, 1), 2.0),
        "normalised over the tokens, and output reads it",
    ),
    "a gate normalised over the tokens": (
        lambda g, x: g.mul(g.call(aten.softmax.int, x, 1), x),
        "normalised over the tokens, and mul",
    ),
    "weights summed up over the queries": (
        lambda g, x: g.call(aten.matmul.default, g.call(aten.transpose.int, shares(g, x), 2, 3), heads(g, x)),
        "normalised over the tokens, and matmul",
    ),
    "weights divided by": (
        lambda g, x: g.call(aten.matmul.default, g.call(aten.div.Tensor, shares(g, x), shares(g, x)), heads(g, x)),
        "normalised over the tokens, and div",
    ),
    "einsum that keeps the weights": (
        lambda g, x: g.call(aten.einsum.default, "bhqk,bhkd->bhqkd", [shares(g, x), heads(g, x)]), "and einsum",
    ),
    "log_softmax over the tokens": (call(aten.log_softmax.int, 1), "works along the token axis"),
    "softmax over folded tokens": (
        lambda g, x: g.call(aten.softmax.int, folded(g, x, back=False), 0),
        "folded together",
    ),
    "a table where the batch is not in front": (
        lambda g, x: g.add(g.call(aten.transpose.int, x, 0, 1), weight(g, TOKENS, 1, 1)),
        "dim 0 is not proven to be the batch",
    ),
    "a table where heads are folded into the batch": (
        lambda g, x: g.add(
            g.call(aten.reshape.default, heads(g, x), [-1, TOKENS, 4]), weight(g, 1, TOKENS, 1)
        ),
        "dim 0 is not proven to be the batch",
    ),
    "a weight computed from the stream": (
        lambda g, x: g.call(
            aten.linear.default, x, g.call(aten.reshape.default, x, [BATCH * TOKENS, WIDTH])
        ),
        "computed from the stream, as a weight",
    ),
    "tokens lined up with channels": (
        lambda g, x: g.mul(
            g.call(aten.slice.Tensor, x, 2, 0, TOKENS),
            g.call(aten.transpose.int, g.call(aten.slice.Tensor, x, 2, 0, TOKENS), 1, 2),
        ),
        "holds no tokens",
    ),
    "attention whose mask is computed from the stream": (
        lambda g, x: g.op(
            "attention", heads(g, x), heads(g, x), heads(g, x),
            g.call(aten.unsqueeze.default, g.call(aten.einsum.default, "bnw,bmw->bnm", [x, x]), 1), scale=0.5,
        ),
        "its mask is computed from the stream",
    ),
    "attention over heads": (
        lambda g, x: g.op("attention", *[g.call(aten.transpose.int, heads(g, x), 1, 2)] * 3, scale=0.5),
        "its query is not",
    ),
    "tokens that an earlier pass selects": (
        lambda g, x: g.op("select_tokens", g.call(aten.select.int, x, 2, 0), keep_per_mille=500),
        "an earlier pass",
    ),
    "tokens that an earlier pass gathers": (
        lambda g, x: g.op("gather_tokens", x, g.weight("index", torch.zeros(BATCH, 3, dtype=torch.int64)), 1),
        "an earlier pass",
    ),
}  # fmt: skip
