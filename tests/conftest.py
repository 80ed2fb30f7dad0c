"""What every test starts from: a sound installation, no network, fixed seeds."""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported, here and in subprocesses
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import torch
from hypothesis import settings

# A run of the tests judges the change before it, so that it draws the same examples every time; `make fuzz` looks for
# new ones.
settings.register_profile("same", derandomize=True, print_blob=True)
settings.register_profile("fuzz", derandomize=False, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def pytest_configure(config: pytest.Config) -> None:
    """Stops at once, with what to do, where every test would otherwise fail with somebody else's traceback."""
    if importlib.util.find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
        except Exception as error:
            pytest.exit(
                f"the installed torchvision does not fit the installed torch ({error}); transformers and timm "
                "cannot be imported beside it: run `pip uninstall torchvision`, then `make setup`",
                returncode=3,
            )
    if importlib.util.find_spec("tersor.ir") is None:
        pytest.exit("Tersor is not installed here: run `make setup`", returncode=3)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """The same random numbers for a test however many ran before it, and torch's settings put back."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    yield
    torch.set_grad_enabled(grad)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture
def rng() -> np.random.Generator:
    """NumPy random numbers for brute-force references."""
    return np.random.default_rng(0)


@pytest.fixture
def tiny_bert() -> torch.nn.Module:
    """A BERT of 3 layers, 4 heads and 32 channels: ids `[b, t <= 64]` below 100."""
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(
            vocab_size=100,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
        )
    ).eval()


@pytest.fixture
def tiny_vit() -> torch.nn.Module:
    """A ViT of 3 layers, 4 heads and 32 channels: pixels `[b, 3, 32, 32]`, 16 patches and a class token."""
    from transformers import ViTConfig, ViTModel

    return ViTModel(
        ViTConfig(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            image_size=32,
            patch_size=8,
        ),
        add_pooling_layer=False,
    ).eval()


@pytest.fixture
def tiny_llama() -> torch.nn.Module:
    """A causal decoder of 3 layers, 4 heads over 2 key-value heads, 32 channels: ids `[b, t <= 64]` below 100."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=100,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
        )
    ).eval()
