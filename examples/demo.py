"""Two real models converted to ONNX with token dropping, and run before and after: `make demo`.

DINOv2 looks at photographs, MiniLM reads English; both run in ONNX Runtime on CPU, undropped and dropped, and the
table says what dropping saved and what it changed.  The ten lines that matter are `convert` below.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the weights come from installed packages

import torch
from real_data import photographs, prose
from real_models import dinov2_vits14, minilm_l6
from rich.console import Console
from rich.table import Table
from sympy import Integer
from torch import Tensor

import tersor
from tersor.ir.analyses.cost import cost
from tersor.ir.analyses.layers import is_attention
from tersor.ir.shapes import expression
from tersor.runtime.paired import time_pair

# A log is no narrower than the table; a terminal says how wide it is.
_console = Console(width=None if sys.stdout.isatty() else 120)
Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Pair:
    """One model in ONNX Runtime, without and with token dropping."""

    undropped: tersor.OptimizedModel
    dropped: tersor.OptimizedModel


def convert(model: torch.nn.Module, inputs: Inputs, spec: str) -> Pair:
    program = tersor.capture(model, example_inputs=inputs)
    return Pair(
        undropped=tersor.optimize_model(program, target="onnx"),
        dropped=tersor.optimize_model(program, passes=[spec], target="onnx"),
    )


def picture_embedding(output: Any, _: Inputs) -> Tensor:
    """The class token, which is what DINOv2 is used by."""
    return output.last_hidden_state[:, 0]  # type: ignore[no-any-return]


def sentence_embedding(output: Any, inputs: Inputs) -> Tensor:
    """The mean over real tokens, as sentence-transformers takes it; over those that stayed, where some were dropped."""
    real = inputs["attention_mask"]
    if hasattr(output, "kept_index"):
        real = real.gather(1, output.kept_index)
    weight = real[:, :, None].float()
    return (output.last_hidden_state * weight).sum(1) / weight.sum(1)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Demo:
    """What is converted, what it is run on, and what its users take from its output."""

    title: str
    load: Callable[[], tuple[torch.nn.Module, Inputs]]
    embed: Callable[[Any, Inputs], Tensor]
    spec: str


def _pictures() -> tuple[torch.nn.Module, Inputs]:
    return dinov2_vits14(224), {"pixel_values": photographs(224)[:4].contiguous()}


def _sentences() -> tuple[torch.nn.Module, Inputs]:
    model, tokenizer = minilm_l6()
    texts = [text for _, text in prose(min_chars=1500)[:4]]
    return model, dict(tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt"))


DEMOS = (
    Demo("DINOv2 ViT-S/14\n4 photographs, 224 px", _pictures, picture_embedding, "token-drop:flops=0.65"),
    Demo(
        "MiniLM-L6\n4 texts of 256 tokens",
        _sentences,
        sentence_embedding,
        "token-drop:flops=0.65,restore=compact",
    ),
)


def tokens_per_layer(program: tersor.Program, sizes: Mapping[str, int]) -> str:
    """Tokens that the layers' attention reads at these sizes, such as ``257 x4, 182 x3``."""
    counts = []
    for node in filter(is_attention, program.graph.nodes):
        size = expression(node.args[0].meta["val"].shape[2])
        counts.append(
            int(size.xreplace({s: Integer(sizes[program.symbols[str(s)]]) for s in size.free_symbols}))
        )
    return ", ".join(f"{count} x{len(list(group))}" for count, group in groupby(counts))


def add_rows(table: Table, demo: Demo, seconds: float) -> None:
    """Convert ``demo``'s model, run both versions, and add a row for each."""
    with _console.status(f"converting {demo.title.splitlines()[0]}"):
        model, inputs = demo.load()
        pair = convert(model, inputs, demo.spec)
    with _console.status(f"running {demo.title.splitlines()[0]}"):
        timing = time_pair(lambda: pair.undropped(inputs), lambda: pair.dropped(inputs), seconds=seconds)
        reference, embedding = (demo.embed(fast(inputs), inputs) for fast in (pair.undropped, pair.dropped))
    sizes = pair.undropped.program.sizes(inputs)
    flops = [cost(fast.program).at(**sizes).flops for fast in (pair.undropped, pair.dropped)]
    deviation = 1 - torch.cosine_similarity(embedding, reference).mean().item()
    table.add_row(
        demo.title,
        "undropped",
        tokens_per_layer(pair.undropped.program, sizes),
        f"{flops[0] / 1e9:.1f}",
        f"{timing.before * 1e3:.0f} ms",
        "",
    )
    table.add_row(
        "",
        demo.spec.replace(":", "\n").replace(",", "\n"),
        tokens_per_layer(pair.dropped.program, sizes),
        f"{flops[1] / 1e9:.1f} ({flops[1] / flops[0]:.0%})",
        f"{timing.after * 1e3:.0f} ms ({timing.ratio:.0%})",
        f"{deviation:.3f}",
        end_section=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=15.0, help="time spent on timing each model")
    options = parser.parse_args()
    table = Table(title="Token dropping in ONNX Runtime on CPU")
    for column in ("model", "version", "tokens per layer"):
        table.add_column(column)
    for column in ("GFLOPs", "latency", "output deviation"):
        table.add_column(column, justify="right")
    for demo in DEMOS:
        add_rows(table, demo, options.seconds)
    _console.print(table)
    _console.print(
        "Latency: median over paired runs that take turns. "
        "Output deviation: mean cosine distance of the embeddings from the undropped ones."
    )


if __name__ == "__main__":
    main()
