"""Mixtures of experts as dense batched products while a model is captured.

transformers dispatches tokens to experts by data-dependent loops or by a grouped matmul; neither is plain ATen
with static ranks.  Running every expert on every token and weighting by the router is the same sum in another
order, and its shapes depend on nothing but the token count.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

NAME = "tersor_dense"


@contextmanager
def dense_experts(model: nn.Module) -> Iterator[set[str]]:
    """Within the block, every experts module of ``model`` that asks transformers' interface runs densely.

    Yields:
        a line of what that costs, for each number of experts that ran so.
    """
    told: set[str] = set()
    try:
        from transformers.integrations.moe import ExpertsInterface
    except ImportError:
        yield told
        return

    def run(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        count, chosen = _count(experts), int(top_k_index.shape[-1])
        if count > chosen:
            told.add(
                f"every token runs through all {count} experts, of which the model runs {chosen}: these layers take "
                f"{count / chosen:g} times the model's FLOPs, and are slower than the model where that counts"
            )
        return dense_forward(experts, hidden_states, top_k_index, top_k_weights)

    ExpertsInterface.register(NAME, run)
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    before = [
        (config, config._experts_implementation_internal)
        for config in configs.values()
        if hasattr(config, "_experts_implementation_internal")
    ]
    try:
        for config, _ in before:
            config._experts_implementation_internal = NAME
        yield told
    finally:
        for config, implementation in before:
            config._experts_implementation_internal = implementation


def dense_forward(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """transformers' experts function: ``[tokens, width]`` in and out, routing ``[tokens, k]``."""
    one_hot = nn.functional.one_hot(top_k_index, _count(experts)).to(top_k_weights.dtype)
    routing = (one_hot * top_k_weights[:, :, None]).sum(1)
    inner = _per_expert(experts, "gate_up_proj" if experts.has_gate else "up_proj", hidden_states[None])
    inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
    outer = _per_expert(experts, "down_proj", inner)
    if getattr(experts, "has_post_expert_norm", False):  # transformers 5.17 has no such norm
        outer = experts.post_expert_norm(outer)
    mixed: Tensor = (outer * routing.transpose(0, 1)[:, :, None]).sum(0)
    return mixed.to(hidden_states.dtype)


def _count(experts: Any) -> int:
    return int((experts.gate_up_proj if experts.has_gate else experts.up_proj).shape[0])


def _per_expert(experts: Any, name: str, x: Tensor) -> Tensor:
    """``[experts or 1, tokens, in]`` times each expert's weight: ``[experts, tokens, out]``."""
    weight: Tensor = getattr(experts, name)
    product = torch.matmul(x, weight if experts.is_transposed else weight.transpose(1, 2))
    return product + getattr(experts, f"{name}_bias")[:, None, :] if experts.has_bias else product
