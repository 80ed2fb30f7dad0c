"""Token dropping on a GPU: the Triton target beside the torch target and the model itself.

python -m benchmarks.gpu                            prints its section; needs a GPU
python -m benchmarks.gpu --seconds 1                a quick look

A model of the shape of ViT-S/14 with random weights: times, not quality.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from transformers import Dinov2Config, Dinov2Model

import tersor

from .page import provenance, table

MODEL, PATCH = "model", 14
Row = list[str]
PASSES = ["token-drop:method=zero-tprune,flops=0.65"]
SIDES: dict[str, tuple[str, list[str]]] = {
    "torch": ("torch", []),
    "triton": ("triton", []),
    "torch, dropped": ("torch", PASSES),
    "triton, dropped": ("triton", PASSES),
}
_WHAT = """\
A Vision Transformer of the shape of ViT-S/14 with random weights, {dtype}, milliseconds a batch, median of turns.
*model*: eager PyTorch, as it was; the others: Tersor's targets, undropped and with `{passes}`."""


def vit(pixels: int, dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=pixels, patch_size=PATCH
    )
    return Dinov2Model(config).eval().to("cuda", dtype)


def milliseconds(sides: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Of every side, in turns, for so long."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for call in sides.values():
        for _ in range(3):
            call()
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(times[MODEL]) < 5:
        for name, call in sides.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            times[name].append(start.elapsed_time(end))
    return {name: median(found) for name, found in times.items()}


def sides_of(pixels: int, dtype: torch.dtype) -> dict[str, Callable[..., Any]]:
    """The model and what Tersor makes of it from one image, which takes any batch."""
    model = vit(pixels, dtype)
    example = {"pixel_values": torch.randn(1, 3, pixels, pixels, device="cuda", dtype=dtype)}
    sides: dict[str, Callable[..., Any]] = {MODEL: model}
    for name, (target, passes) in SIDES.items():
        sides[name] = tersor.optimize_model(copy.deepcopy(model), passes, target, example_inputs=example)
    return sides


def measured(
    sides: dict[str, Callable[..., Any]], pixels: int, batch: int, dtype: torch.dtype, seconds: float
) -> Row:
    images = torch.randn(batch, 3, pixels, pixels, device="cuda", dtype=dtype)
    found = milliseconds({name: partial(side, pixel_values=images) for name, side in sides.items()}, seconds)
    tokens = 1 + (pixels // PATCH) ** 2
    ratios = [f"{found[name] / found[MODEL]:.2f}" for name in SIDES]
    return [str(tokens), str(batch), *(f"{found[name]:.2f}" for name in sides), *ratios]


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=5, help="how long each row is measured")
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"])
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    dtype = getattr(torch, options.dtype)
    header = ["tokens", "batch", MODEL, *SIDES, *(f"{name} / {MODEL}" for name in SIDES)]
    rows = []
    for pixels in (224, 518):
        sides = sides_of(pixels, dtype)
        for batch in (1, 8, 64):
            rows.append(measured(sides, pixels, batch, dtype, options.seconds))
            print(*rows[-1], file=sys.stderr, flush=True)
    text = _WHAT.format(dtype=options.dtype, passes=PASSES[0])
    print(
        "\n".join([provenance("gpu"), f"{torch.cuda.get_device_name()}.", "", text, "", table(header, rows)])
    )


if __name__ == "__main__":
    main()
