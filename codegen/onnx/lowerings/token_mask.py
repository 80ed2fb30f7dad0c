"""A mask over token indices that something other than attention reads."""

from __future__ import annotations

import onnx_ir as ir
import torch

from tersor.ir.dialect import DIALECT

from ..emitter import Emitter
from ..masks import visible
from ..registry import lowers


@lowers(DIALECT["token_mask"].overload)
def token_mask(
    e: Emitter,
    padding: ir.Value | None,
    queries: int | torch.SymInt,
    keys: int | torch.SymInt,
    causal: bool,
    window: int,
    device: torch.device,
) -> ir.Value:
    seen = visible(e, queries, keys, padding, None, None, causal, window)
    if seen is None:
        true = ir.tensor_adapters.TorchTensor(torch.tensor([True]))
        return e.op("ConstantOfShape", e.shape([1, 1, 1, keys]), value=true)
    return seen
