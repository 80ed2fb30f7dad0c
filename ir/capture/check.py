"""Compare a captured Program with the model it came from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ..dialect import is_dialect
from ..errors import CaptureError
from ..program import Program
from ..raising import arguments, calls
from ..structure import Structure
from .dims import resized

aten = torch.ops.aten

_CASTS = (aten.to, aten._to_copy.default, aten.ne.Scalar, aten.eq.Scalar, aten.logical_not.default)

# Largest difference that reordered sums may leave, relative to the output's largest magnitude.
ROUNDING = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def compare_with_model(program: Program, expected: Any, model: Callable[..., Any]) -> float:
    """Largest absolute difference on the example and at another batch and length, padding left out.

    ``expected`` is what the model returned for the example.

    Raises:
        CaptureError: a difference no rounding explains; the message names output, sizes and both magnitudes.
    """
    worst = _compare(program, program.example_inputs, expected)
    for inputs in resized(program):
        try:
            expected = model(**inputs)
        except (RuntimeError, ValueError, IndexError):
            continue  # A size that the model itself rejects says nothing about the capture.
        return max(worst, _compare(program, inputs, expected))
    return worst


def _compare(program: Program, inputs: Mapping[str, Tensor], result: Any) -> float:
    worst, real = 0.0, _real_keys(program, inputs)
    sizes = ", ".join(f"{name} {list(t.shape)}" for name, t in inputs.items())
    bound = program.bind(**inputs)
    try:
        actual = program.run(bound)
    except (RuntimeError, ValueError, IndexError) as error:
        raise CaptureError(
            f"the captured graph rejects inputs {sizes}, which the model takes ({' '.join(str(error).split())[:300]}): "
            "a size was fixed while tracing. Take it from the tensor's shape in the model, or pass dynamic={} to fix "
            "all sizes"
        ) from error
    for spec, want, got in zip(program.outputs, Structure.flatten(result), actual, strict=True):
        want, got = _real_tokens(want, real), _real_tokens(got, real)
        difference = _difference(want, got)
        scale = max(1.0, _magnitude(want))
        worst = max(worst, difference)
        if not difference <= ROUNDING.get(want.dtype, 0.0) * scale:
            raise CaptureError(
                f"output {spec.name!r} of the captured graph differs from the model by {difference:.3g} (its values "
                f"reach {scale:.3g}) on inputs {sizes}: the model's result depends on state, chance or on Python "
                "values that were fixed while tracing. Make it a function of its inputs, or pass dynamic={} to fix "
                "all sizes"
            )
    return worst


def _difference(want: Tensor, got: Tensor) -> float:
    if want.shape != got.shape:
        return float("inf")
    if not want.numel():
        return 0.0
    if not want.is_floating_point():
        return 0.0 if torch.equal(want, got) else float("inf")
    if want.element_size() < 4:
        want, got = want.float(), got.float()
    largest = float((want - got).abs_().max())
    if math.isfinite(largest):
        return largest
    # Infinities that agree, and values that are no numbers on both sides, differ by nothing.
    equal = (want == got) | (want.isnan() & got.isnan())
    return float((want - got).abs_().masked_fill_(equal, 0.0).max())


def _magnitude(value: Tensor) -> float:
    if not value.numel() or not value.is_floating_point():
        return 0.0
    low, high = value.aminmax()
    return max(abs(float(low)), abs(float(high)))


def _real_keys(program: Program, inputs: Mapping[str, Tensor]) -> Tensor | None:
    """Which tokens are real, bool ``[batch, tokens]``: the padding that attention reads, where it is an input's."""
    for node in program.graph.nodes:
        padding = arguments(node)["padding"] if is_dialect(node, "attention") else None
        source = padding
        while isinstance(source, fx.Node) and source.op == "call_function" and calls(source, *_CASTS):
            source = source.args[0]
        if source is None or source.op != "placeholder":
            continue
        value = inputs[str(source.target)]
        return value == 0 if calls(padding, aten.eq.Scalar, aten.logical_not.default) else value != 0
    mask = inputs.get("attention_mask")
    return mask.bool() if mask is not None and mask.dim() == 2 else None


def _real_tokens(value: Tensor, padding: Tensor | None) -> Tensor:
    # What a model computes at padding is nobody's result: a row that sees nothing is a mean in one kernel and zero
    # in another.
    if padding is None or value.dim() < 2 or value.shape[:2] != padding.shape or bool(padding.all()):
        return value
    return value[padding]
