"""One tiny encoder, captured once for all tests of the front door."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tersor import Program, capture, optimize_model


def make_encoder() -> torch.nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    return BertModel(config, add_pooling_layer=False).eval()


@pytest.fixture(scope="session")
def encoder() -> torch.nn.Module:
    return make_encoder()


@pytest.fixture(scope="session")
def program(encoder: torch.nn.Module) -> Program:
    return capture(encoder)


@pytest.fixture(scope="session")
def batches() -> list[dict[str, torch.Tensor]]:
    """Two batches of 2 and 3 rows, 12 and 9 tokens, the second with padding."""
    generator = torch.Generator().manual_seed(1)
    masks = [torch.ones(2, 12, dtype=torch.int64), torch.ones(3, 9, dtype=torch.int64)]
    masks[1][2, 6:] = 0
    return [
        {"input_ids": torch.randint(0, 50, m.shape, generator=generator), "attention_mask": m} for m in masks
    ]


@pytest.fixture(scope="session")
def saved(
    program: Program, batches: list[dict[str, torch.Tensor]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An artifact for the torch target with token dropping; not to be changed."""
    folder = tmp_path_factory.mktemp("saved") / "out"
    fast = optimize_model(
        program,
        ["token-drop:method=norm,keep=0.6,layers=0"],
        "torch",
        calibration=batches,
        require_speedup=False,
    )
    fast.save(folder)
    return folder
