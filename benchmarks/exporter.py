"""What everything is compared with: ``torch.onnx.export(dynamo=True)`` of the untouched model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from tersor.ir.program import Program

Dims = Mapping[str, Mapping[int, str]]


def export_untouched(model: nn.Module, inputs: Mapping[str, Tensor], dims: Dims, path: Path) -> None:
    """Write ``model`` to ``path`` with PyTorch's exporter; ``dims`` names the sizes that stay free, by input."""
    shapes = {name: dict.fromkeys(dims.get(name, {}), torch.export.Dim.DYNAMIC) for name in inputs}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (),
            path,
            kwargs=dict(inputs),
            dynamo=True,
            dynamic_shapes=shapes,
            external_data=True,
            verbose=False,
        )


def free_dims(program: Program) -> Dims:
    """The sizes that capture left free, so that the exporter is asked for the same."""
    return {
        spec.name: {dim: size for dim, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in program.inputs
    }
