"""Dropped programs against the same tokens dropped by hand in the eager model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.dialect import is_dialect
from tersor.ir.program import GraphInterpreter, Program
from tersor.passes.pipeline import run

Captured = Callable[[str], Program]
Drop = Callable[[Program, str], Program]
SITES, KEEP = (0, 1), 0.6


def longest(x: Tensor, prefix: int, last: int) -> Tensor:
    """The tokens of one row with the largest norm, protected ends among them, ascending."""
    tokens = x.shape[0]
    count = prefix + last + math.ceil((tokens - prefix - last) * KEEP - 1e-9)
    score = x.norm(dim=-1)
    score[:prefix] = math.inf
    score[tokens - last :] = math.inf
    return score.topk(count).indices.sort().values


def put_back(parts: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    for base, index in reversed(parts):
        full = base.clone()
        full[index] = x
        x = full
    return x


def test_a_vit_that_drops_tokens_equals_the_eager_model_that_drops_them(
    captured: Captured, models: Callable[[str], nn.Module], dropped: Drop
) -> None:
    model: Any = models("vit")
    program = dropped(captured("vit"), f"token-drop:method=norm,keep={KEEP},layers=0-1,proportional=false")
    pixels = torch.randn(3, 3, 32, 32)
    expected = []
    with torch.no_grad():
        for x in model.embeddings(pixels):
            parts = []
            for number, layer in enumerate(model.layers):
                x = x + layer.attention(layer.layernorm_before(x)[None], None)[0][0]
                if number in SITES:
                    index = longest(x, prefix=1, last=0)
                    parts.append((x, index))
                    x = x[index]
                x = x + layer.mlp(layer.layernorm_after(x))
            expected.append(model.layernorm(put_back(parts, x)))
    hidden = program(pixel_values=pixels)
    assert torch.allclose(hidden.last_hidden_state, torch.stack(expected), atol=1e-5)
    assert torch.allclose(hidden.pooler_output, model.pooler(torch.stack(expected)), atol=1e-5)


def test_positions_of_patches_alone_go_with_them() -> None:
    """DINOv3 turns patches by their place, and neither class token nor registers."""
    row = next(row for row in ARCHITECTURES if row.name == "dinov3")
    model: Any = row.build()
    spec = f"token-drop:method=norm,keep={KEEP},layers=0-1,proportional=false"
    program, report = run(capture(model), [spec])
    assert report.steps[-1].verdict == "kept"
    prefix = 1 + model.config.num_register_tokens
    pixels = torch.randn(3, 3, 32, 32)
    expected = []
    with torch.no_grad():
        cos, sin = model.rope_embeddings(pixels)
        for x in model.embeddings(pixels):
            parts, left = [], torch.arange(len(x))
            for number, layer in enumerate(model.model.layer):
                patches = left[prefix:] - prefix
                rotary = cos[patches], sin[patches]
                x = x + layer.layer_scale1(layer.attention(layer.norm1(x)[None], None, rotary)[0][0])
                if number in SITES:
                    index = longest(x, prefix, last=0)
                    parts.append((x, index))
                    x, left = x[index], left[index]
                x = x + layer.layer_scale2(layer.mlp(layer.norm2(x)))
            expected.append(model.norm(put_back(parts, x)))
    hidden = program(pixel_values=pixels)
    assert torch.allclose(hidden.last_hidden_state, torch.stack(expected), atol=1e-5)


def test_a_llama_that_drops_tokens_equals_the_eager_model_that_drops_them(
    captured: Captured, models: Callable[[str], nn.Module], dropped: Drop
) -> None:
    model: Any = models("llama")
    program = dropped(captured("llama"), f"token-drop:method=norm,keep={KEEP},layers=0-1")
    ids = torch.randint(3, 90, (2, 15))
    expected = []
    with torch.no_grad():
        for x in model.model.embed_tokens(ids):
            positions, parts = torch.arange(15), []
            for number, layer in enumerate(model.model.layers):
                rotary = model.model.rotary_emb(x[None], position_ids=positions[None])
                hidden = (positions[:, None] < positions[None, :])[None, None]
                mask = torch.zeros(hidden.shape).masked_fill(hidden, -math.inf)
                normed = layer.input_layernorm(x)[None]
                x = (
                    x
                    + layer.self_attn(hidden_states=normed, attention_mask=mask, position_embeddings=rotary)[
                        0
                    ][0]
                )
                if number in SITES:
                    index = longest(x, prefix=1, last=1)
                    parts.append((x, index))
                    x, positions = x[index], positions[index]
                x = x + layer.mlp(layer.post_attention_layernorm(x))
            expected.append(model.lm_head(model.model.norm(put_back(parts, x))))
    logits = program(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert torch.allclose(logits, torch.stack(expected), atol=1e-5)
    assert bool(logits[:, -1].isfinite().all())


class Recorder(GraphInterpreter):
    """Keeps every value by node name."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.seen: dict[str, Any] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        self.seen[n.name] = super().run_node(n)
        return self.seen[n.name]


@pytest.mark.parametrize("left", [False, True])
def test_windows_are_distances_between_the_positions_that_tokens_had(
    captured: Captured, dropped: Drop, texts: Callable[..., dict[str, Tensor]], left: bool
) -> None:
    program = dropped(captured("gemma"), "token-drop:method=random,keep=0.5,layers=0-1")
    inputs = texts(2, 14, left=left)
    run = Recorder(program)
    with torch.no_grad():
        run.run(*(inputs[spec.name] for spec in program.inputs))
    *_, node = (n for n in program.graph.nodes if is_dialect(n, "attention") and n.kwargs["window"])
    first, second = (run.seen[n.name] for n in program.graph.nodes if is_dialect(n, "select_tokens"))
    query, key, value = (run.seen[n.name] for n in node.args[:3])
    for row in range(2):
        positions = first[row, second[row]]
        distance = positions[:, None] - positions[None, :]
        real = inputs["attention_mask"][row].bool()[positions]
        visible = (distance >= 0) & (distance < 4) & real[None, :]
        own = [
            x[row : row + 1].repeat_interleave(query.shape[1] // x.shape[1], dim=1)
            for x in (query, key, value)
        ]
        plain = nn.functional.scaled_dot_product_attention(
            *own, attn_mask=visible[None, None], scale=node.kwargs["scale"]
        )
        assert torch.allclose(run.seen[node.name][row, :, real], plain[0][:, real], atol=1e-5)
