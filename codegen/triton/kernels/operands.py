"""The operands that ``attention`` and ``attention_importance`` share, brought into the form their kernels take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .kernel import FLOAT_DTYPES, above, dtype_reason, interpreting, size_class

MAX_HEAD_DIM = 256
FLOAT_ARGUMENTS = ("scale", "softcap")
OPTIONAL_POINTERS = ("mask", "padding", "query_positions", "key_positions", "sinks")


@dataclass(frozen=True)
class AttentionOperands:
    """Everything that decides the probabilities; fields as in ``tersor.attention``."""

    query: Tensor
    key: Tensor
    mask: Tensor | None = None
    padding: Tensor | None = None
    query_positions: Tensor | None = None
    key_positions: Tensor | None = None
    sinks: Tensor | None = None
    scale: float = 1.0
    causal: bool = False
    window: int = 0
    softcap: float = 0.0

    def arguments(self) -> dict[str, Any]:
        """The kernel arguments that these operands decide, by name."""
        batch, heads, queries, head_dim = self.query.shape
        keys = self.key.shape[2]
        query, key = inner_contiguous(self.query), inner_contiguous(self.key)
        mask = None if self.mask is None else self.mask.expand(batch, heads, queries, keys)
        padding = None if self.padding is None else padding_bytes(self.padding, batch, keys)
        # Without causality or a window no kernel reads positions; None there lets whole blocks be passed over.
        ordered = self.causal or self.window > 0
        query_at = _rows(self.query_positions if ordered else None, batch, queries)
        key_at = _rows(self.key_positions if ordered else None, batch, keys)
        mask_strides = (0, 0, 0, 0) if mask is None else mask.stride()
        return {
            "query": query,
            "key": key,
            "mask": bytes_of(mask) if mask is not None and mask.dtype == torch.bool else mask,
            "padding": padding,
            "query_positions": query_at,
            "key_positions": key_at,
            **dict(zip(("stride_qb", "stride_qh", "stride_qm"), query.stride(), strict=False)),
            **dict(zip(("stride_kb", "stride_kh", "stride_kn"), key.stride(), strict=False)),
            **dict(zip(("stride_mb", "stride_mh", "stride_mm", "stride_mn"), mask_strides, strict=True)),
            "stride_pb": 0 if padding is None else padding.stride(0),
            "stride_qpb": 0 if query_at is None else query_at.stride(0),
            "stride_kpb": 0 if key_at is None else key_at.stride(0),
            "heads": heads,
            "groups": heads // self.key.shape[1],
            "queries": queries,
            "keys": keys,
            "head_dim": head_dim,
            "scale": float(self.scale),
            "softcap": float(self.softcap),
            "size_class": size_class(keys),
            "BLOCK_D": block_of(head_dim),
            "SOFTCAP": self.softcap > 0,
            "CAUSAL": bool(self.causal),
            "WINDOW": max(int(self.window), 0),
            "BOOL_MASK": mask is not None and mask.dtype == torch.bool,
            "PRECISION": dot_precision(
                self.query.dtype == torch.float32, on_amd=torch.version.hip is not None
            ),
            "UPCAST": interpreting() and self.query.dtype == torch.bfloat16,
        }


def block_of(width: int) -> int:
    """A head dim padded to a size that ``tl.dot`` takes: a power of two, at least 16."""
    return max(16, size_class(width))


def dot_precision(float32: bool, on_amd: bool = False) -> str:
    """How float32 products are formed: NVIDIA's tensor cores get there with three TF32 products, AMD multiplies."""
    return "tf32x3" if float32 and not on_amd else "ieee"


def inner_contiguous(tensor: Tensor) -> Tensor:
    """``tensor``, copied only if its last dim is not contiguous."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def bytes_of(mask: Tensor) -> Tensor:
    """A bool tensor's own memory as uint8; broadcast dims stay broadcast."""
    return mask.view(torch.uint8)


def padding_bytes(padding: Tensor, batch: int, tokens: int) -> Tensor:
    """Padding as uint8 ``[batch, tokens]`` whose rows are contiguous."""
    return bytes_of(inner_contiguous(padding.bool().expand(batch, tokens)))


def _rows(positions: Tensor | None, batch: int, tokens: int) -> Tensor | None:
    return None if positions is None else inner_contiguous(positions.expand(batch, tokens))


def attention_guard(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    padding: Tensor | None = None,
    query_positions: Tensor | None = None,
    key_positions: Tensor | None = None,
    sinks: Tensor | None = None,
    **_: Any,
) -> str | None:
    """Why the attention kernels do not take these operands, or None."""
    for name, operand in (("query", query), ("key", key), ("value", value)):
        if reason := dtype_reason(name, operand.dtype):
            return reason
        if operand.dtype != query.dtype:
            return f"{name} is {operand.dtype} and query {query.dtype}; the kernel takes one dtype"
        if operand.dim() != 4:
            return f"{name} has {operand.dim()} dims; the kernel takes [batch, heads, tokens, head_dim]"
        if above(operand.shape[3], MAX_HEAD_DIM):
            return f"{name} has head_dim {operand.shape[3]}; the kernel takes at most {MAX_HEAD_DIM}"
    if mask is not None and mask.dtype not in (torch.bool, *FLOAT_DTYPES):
        return f"the mask is {mask.dtype}; the kernel takes bool, float32, float16 and bfloat16"
    if mask is not None and mask.dim() > 4:
        return f"the mask has {mask.dim()} dims; the kernel takes at most 4"
    if padding is not None and padding.dim() != 2:
        return f"padding has {padding.dim()} dims; the kernel takes [batch, keys]"
    for name, positions in (("query_positions", query_positions), ("key_positions", key_positions)):
        if positions is not None and (positions.dim() != 2 or positions.dtype != torch.int64):
            return f"{name} are {positions.dtype} of {positions.dim()} dims; the kernel takes int64 [batch, tokens]"
    if sinks is not None:
        return dtype_reason("sinks", sinks.dtype)
    return None
