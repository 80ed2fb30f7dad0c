"""Selection, gather and norm in one launch: ``select_tokens``, ``gather_tokens`` on dim 1, then a norm of the rows.

Every program finds the whole row's selection by itself: that is a binary search over the bits of the scores, 32
sums over a vector in registers, and cheaper than a second launch that waits for the first.
"""

# Kernels are Triton's language, in which an annotation means something else.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, fx

from tersor.ir.dialect import DIALECT, is_dialect
from tersor.ir.dialect.select_tokens import LARGEST as _LARGEST
from tersor.ir.dialect.select_tokens import kept_count
from tersor.ir.operands import arguments

from ..match import Match, computed_from, is_read_beside
from ..patterns import find_norm
from .kernel import Kernel, Variant, above, dtype_reason, launcher, size_class
from .operands import inner_contiguous, padding_bytes

MAX_TOKENS = 16384
MAX_CHANNELS = 16384
LARGEST = tl.constexpr(_LARGEST)
NORMS = {"none": 0, "layer": 1, "rms": 2}

CONFIGS = tuple(
    triton.Config({"ROWS": rows}, num_warps=warps)
    for rows, warps in ((4, 4), (16, 4), (4, 8), (16, 8), (64, 8), (16, 16))
)


@triton.jit
def ordered_bits(scores):
    """int32 that orders as floats that are no NaN do, -0 equal to 0."""
    scores = tl.where(scores == 0.0, 0.0, scores)
    bits = scores.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def first_of(candidates, count):
    """The first ``count`` set lanes of ``candidates``."""
    return candidates & (tl.cumsum(candidates.to(tl.int32), 0) <= count)


@triton.jit
def select(scores, padding, tokens, count, keep_per_mille, prefix, last, BLOCK_T: tl.constexpr):
    """Which lanes ``tersor.select_tokens`` keeps: bool ``[BLOCK_T]``, ``count`` of them set."""
    lanes = tl.arange(0, BLOCK_T)
    inside = lanes < tokens
    fixed = prefix + last
    if padding is not None:
        real = tl.load(padding + lanes, mask=inside, other=0) != 0
    else:
        real = inside
    real_count = tl.sum(real.to(tl.int32), 0)
    ordinal = tl.cumsum(real.to(tl.int32), 0) - 1
    protected = real & ((ordinal < prefix) | (ordinal >= real_count - last))
    score = tl.load(scores + lanes, mask=inside, other=0.0).to(tl.float32)
    # As the operator: infinities and NaN rank between protected tokens and padding.
    score = tl.minimum(tl.where(score > -LARGEST, score, -LARGEST), LARGEST)
    score = tl.where(protected, float("inf"), tl.where(real, score, float("-inf")))
    bits = ordered_bits(score)
    budget = fixed + ((tl.maximum(real_count, fixed) - fixed) * keep_per_mille + 999) // 1000
    budget = tl.minimum(real_count, budget)

    # The largest threshold that at least `budget` tokens reach, bit by bit from the sign down.
    reach = tl.sum((inside & (bits >= 0)).to(tl.int32), 0)
    threshold = tl.where(reach >= budget, 0, -2147483648)
    for step in range(31):
        candidate = threshold | (1 << (30 - step))
        reach = tl.sum((inside & (bits >= candidate)).to(tl.int32), 0)
        threshold = tl.where(reach >= budget, candidate, threshold)
    above_it = inside & (bits > threshold)
    ties = inside & (bits == threshold)
    chosen = real & (above_it | first_of(ties, budget - tl.sum(above_it.to(tl.int32), 0)))
    # Columns left over go to padding.
    return chosen | first_of(inside & (real == 0), count - tl.sum(chosen.to(tl.int32), 0))


@triton.jit
def select_gather_norm_kernel(
    scores,
    padding,
    index,
    x,
    gathered,
    normed,
    weight,
    bias,
    stride_sb,
    stride_pb,
    stride_ib,
    stride_xb,
    stride_xt,
    tokens,
    count,
    channels,
    keep_per_mille,
    prefix,
    last,
    epsilon,
    size_class,
    NORM: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
):
    """One program: ROWS kept tokens of one batch row.  Without ``scores`` the index is read instead of written."""
    blocks = tl.cdiv(count, ROWS)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    lanes = tl.arange(0, BLOCK_T)
    columns = tl.arange(0, BLOCK_C)
    inside = columns < channels
    index += batch * stride_ib
    if scores is not None:
        if padding is not None:
            padding += batch * stride_pb
        kept = select(
            scores + batch * stride_sb, padding, tokens, count, keep_per_mille, prefix, last, BLOCK_T
        )
        place = tl.cumsum(kept.to(tl.int32), 0) - 1
        if block == 0:
            tl.store(index + place, lanes.to(tl.int64), mask=kept & (place < count))
    if weight is not None:
        scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        shift = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)

    for row in range(block * ROWS, tl.minimum(block * ROWS + ROWS, count)):
        if scores is not None:
            token = tl.sum(tl.where(kept & (place == row), lanes, 0), 0).to(tl.int64)
        else:
            token = tl.load(index + row)
        values = tl.load(x + batch * stride_xb + token * stride_xt + columns, mask=inside, other=0.0)
        at = (batch * count + row) * channels + columns
        if gathered is not None:
            tl.store(gathered + at, values, mask=inside)
        if NORM > 0:
            values = values.to(tl.float32)
            if NORM == 1:
                mean = tl.sum(values, 0) / channels
                values = tl.where(inside, values - mean, 0.0)
            variance = tl.sum(values * values, 0) / channels
            values = values / tl.sqrt(variance + epsilon)
            if weight is not None:
                values = values * scale
            if bias is not None:
                values = values + shift
            tl.store(normed + at, values.to(normed.dtype.element_ty), mask=inside)


_launch = launcher(
    select_gather_norm_kernel, CONFIGS, key=("BLOCK_C", "NORM", "size_class"), interpreted={"ROWS": 4}
)


def select_gather_norm(
    x: Tensor,
    scores: Tensor | None = None,
    padding: Tensor | None = None,
    index: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    keep_per_mille: int = 1000,
    prefix: int = 0,
    last: int = 0,
    norm: str = "none",
    epsilon: float = 0.0,
    gather: bool = True,
    norm_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Pick tokens, gather their rows and norm them; the kernel's arguments are those of :func:`reference`."""
    if scores is not None:
        batch, tokens = scores.shape
        count = min(tokens, int(kept_count(tokens, prefix + last, keep_per_mille)))
        scores = inner_contiguous(scores)
        padding = None if padding is None else padding_bytes(padding, batch, tokens)
        index = scores.new_empty(batch, count, dtype=torch.int64)
    else:
        assert index is not None
        index, tokens = inner_contiguous(index), 1
        batch, count = index.shape
    x = inner_contiguous(x).expand(batch, -1, -1)
    channels = x.shape[2]
    gathered = x.new_empty(batch, count, channels) if gather else None
    normed = x.new_empty(batch, count, channels, dtype=norm_dtype or x.dtype) if NORMS[norm] > 0 else None
    if index.numel() > 0:
        _launch(
            lambda meta: (triton.cdiv(count, meta["ROWS"]) * batch,),
            scores=scores,
            padding=padding,
            index=index,
            x=x,
            gathered=gathered,
            normed=normed,
            weight=None if weight is None else weight.contiguous(),
            bias=None if bias is None else bias.contiguous(),
            stride_sb=0 if scores is None else scores.stride(0),
            stride_pb=0 if padding is None else padding.stride(0),
            stride_ib=index.stride(0),
            stride_xb=x.stride(0),
            stride_xt=x.stride(1),
            tokens=tokens,
            count=count,
            channels=channels,
            keep_per_mille=keep_per_mille,
            prefix=prefix,
            last=last,
            epsilon=float(epsilon),
            size_class=size_class(tokens),
            NORM=NORMS[norm],
            BLOCK_T=size_class(tokens),
            BLOCK_C=size_class(channels),
        )
    return index, gathered, normed


def reference(
    x: Tensor,
    scores: Tensor | None = None,
    padding: Tensor | None = None,
    index: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    keep_per_mille: int = 1000,
    prefix: int = 0,
    last: int = 0,
    norm: str = "none",
    epsilon: float = 0.0,
    gather: bool = True,
    norm_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The kernel's specification, from the operators that it stands for.

    Args:
        x: ``[batch or 1, tokens, channels]``.
        scores, padding, keep_per_mille, prefix, last: as for ``tersor.select_tokens``; or no scores, and then
        index: int64 ``[batch, kept]``, already chosen.
        weight, bias: ``[channels]``, of the norm.
        norm: ``none``, ``layer`` (mean and variance) or ``rms`` (mean of squares), with ``epsilon``.
        gather: whether the gathered rows are wanted before the norm, too.
        norm_dtype: dtype of the normed rows; that of ``x`` where absent.

    Returns:
        index ``[batch, kept]``, gathered rows ``[batch, kept, channels]`` and normed rows, None where not asked for.
    """
    if index is None:
        options = {"keep_per_mille": keep_per_mille, "prefix": prefix, "last": last}
        index = DIALECT["select_tokens"].overload(scores, padding, **options)
    rows = DIALECT["gather_tokens"].overload(x, index, 1)
    wide = rows.to(torch.float32)
    if norm == "layer":
        wide = F.layer_norm(
            wide,
            wide.shape[2:],
            None if weight is None else weight.to(torch.float32),
            None if bias is None else bias.to(torch.float32),
            epsilon,
        )
    elif norm == "rms":
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        wide = wide if weight is None else wide * weight.to(torch.float32)
    normed = None if norm == "none" else wide.to(norm_dtype or x.dtype)
    return index, rows if gather else None, normed


def guard(
    x: Tensor,
    scores: Tensor | None = None,
    padding: Tensor | None = None,
    index: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    norm_dtype: torch.dtype | None = None,
    **_: Any,
) -> str | None:
    """Why the kernel does not take these operands, or None."""
    floats = {"x": x, "scores": scores, "the norm's weight": weight, "the norm's bias": bias}
    for name, operand in floats.items():
        if operand is not None and (reason := dtype_reason(name, operand.dtype)):
            return reason
    if norm_dtype is not None and (reason := dtype_reason("the norm's result", norm_dtype)):
        return reason
    if x.dim() != 3:
        return f"x has {x.dim()} dims; the kernel takes [batch, tokens, channels]"
    if above(x.shape[2], MAX_CHANNELS):
        return f"x has {x.shape[2]} channels; the kernel holds a row in registers and takes {MAX_CHANNELS}"
    if scores is not None and above(scores.shape[1], MAX_TOKENS):
        return (
            f"{scores.shape[1]} tokens; the kernel holds a row's scores in registers and takes {MAX_TOKENS}"
        )
    return None


def match(node: fx.Node) -> Match | None:
    """``select_tokens`` -> ``gather_tokens`` on dim 1 -> norm, with either end absent; ``node`` is the gather."""
    if not _gathers_rows(node):
        return None
    x, index = _operand(node, 0), _operand(node, 1)
    norm = find_norm(node)
    select = index if is_dialect(index, "select_tokens") and _taken_along_by(index) is node else None
    if norm is None and select is None:
        return None
    options: dict[str, Any] = {"gather": norm is None or is_read_beside(node, norm.result)}
    operands: tuple[Any, ...] = (None, None, index)
    if select is not None:
        given = arguments(select)
        operands = (given["scores"], given["padding"], None)
        options |= {name: given[name] for name in ("keep_per_mille", "prefix", "last")}
    if norm is not None:
        operands += (norm.weight, norm.bias)
        dtype = norm.result.meta["val"].dtype
        options |= {"norm": norm.kind, "epsilon": norm.epsilon, "norm_dtype": dtype}
    results = (select, node if options["gather"] else None, norm.result if norm else None)
    return Match(results, (x, *operands), options)


def _taken_along_by(select: fx.Node) -> fx.Node | None:
    """A selection goes with one gather: rather with one whose norm it can take along, and never with one that needs
    the selection for what it gathers."""

    def needs_it(gather: fx.Node) -> bool:
        norm = find_norm(gather)
        vectors = (norm.weight, norm.bias) if norm else ()
        return select in computed_from([_operand(gather, 0), *(v for v in vectors if v is not None)])

    able = [user for user in select.users if _gathers_rows(user) and not needs_it(user)]
    return min(able, key=lambda gather: find_norm(gather) is None, default=None)


def _gathers_rows(node: fx.Node) -> bool:
    """Whether ``node`` gathers tokens that are rows of channels; positions and masks are gathered by torch."""
    if not is_dialect(node, "gather_tokens") or node.args[2] != 1:
        return False
    value = node.meta["val"]
    return value.dim() == 3 and value.dtype.is_floating_point  # type: ignore[no-any-return]


def _operand(node: fx.Node, number: int) -> fx.Node:
    """A tensor operand; the dialect's schema makes it one."""
    return node.args[number]  # type: ignore[return-value]


def _variant(
    name: str, dtype: str, block_t: int, block_c: int, config: triton.Config, **absent: Any
) -> Variant:
    return Variant(
        name=f"select + gather + norm {name}",
        kernel=select_gather_norm_kernel,
        pointers={
            "scores": "fp32",
            "padding": "u8",
            "index": "i64",
            **dict.fromkeys(("x", "gathered", "normed", "weight", "bias"), dtype),
        },
        constants={"NORM": 1, "BLOCK_T": block_t, "BLOCK_C": block_c, **absent},
        floats=("epsilon",),
        aligned=("channels",),
        config=config,
    )


KERNEL = Kernel(
    name="select_gather_norm",
    launch=select_gather_norm,
    reference=reference,
    guard=guard,
    match=match,
    variants=(
        _variant("fp16, 257 tokens of 384", "fp16", 512, 512, CONFIGS[0], padding=None),
        _variant("fp16, 512 tokens of 384, padding", "fp16", 512, 512, CONFIGS[0]),
        _variant(
            "bf16, 4096 tokens of 4096, rms", "bf16", 4096, 4096, CONFIGS[3], padding=None, bias=None, NORM=2
        ),
        _variant("fp32, 1370 tokens of 384", "fp32", 2048, 512, CONFIGS[2], padding=None),
        _variant("fp16, gather and norm only", "fp16", 1, 1024, CONFIGS[0], scores=None, padding=None),
    ),
)
