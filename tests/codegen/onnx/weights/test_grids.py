"""Blocks found in values are those that the values came from."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tersor.codegen.onnx.weights.grids import on_grid

ROWS, WIDTH = 6, 256


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def half(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    """Scales as files hold them: float16."""
    return (torch.rand(shape, generator=g) * 0.02 + 1e-4).half().float()


def symmetric(seed: int, low: int, high: int, size: int = 32, sub_scale: bool = False) -> Tensor:
    g = draw(seed)
    q = torch.randint(low, high + 1, (ROWS, WIDTH // size, size), generator=g).float()
    scale = half((ROWS, WIDTH // size, 1), g)
    if sub_scale:
        scale = scale * torch.randint(-128, 128, scale.shape, generator=g)
    return (scale * q).reshape(ROWS, WIDTH)


def affine(seed: int, high: int) -> Tensor:
    """As Q4_K and Q5_K: a scale and a minimum of 6 bits, each times a float16, in float32."""
    g = draw(seed)
    shape = (ROWS, WIDTH // 32, 1)
    q = torch.randint(0, high + 1, (ROWS, WIDTH // 32, 32), generator=g).float()
    scale = half(shape, g) * torch.randint(0, 64, shape, generator=g)
    minimum = half(shape, g) * torch.randint(0, 64, shape, generator=g)
    return (scale * q - minimum).reshape(ROWS, WIDTH)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    form=st.sampled_from([(-127, 127, 32), (-16, 15, 32), (-8, 7, 32), (-32, 31, 16)]),
)
def test_symmetric_blocks_are_found_bit_for_bit(seed: int, form: tuple[int, int, int]) -> None:
    low, high, size = form
    weight = symmetric(seed, low, high, size, sub_scale=size == 16)
    found = on_grid(weight)
    assert found is not None
    assert torch.equal(found.values(), weight)
    assert found.bits == (4 if low == -8 else 8)
    assert found.offsets is None


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), high=st.sampled_from([15, 31]))
def test_blocks_with_a_minimum_are_found_but_for_the_rounding_of_a_sum(seed: int, high: int) -> None:
    weight = affine(seed, high)
    found = on_grid(weight)
    assert found is not None
    largest = weight.reshape(ROWS, -1, 32).abs().amax(-1, keepdim=True)
    off = (found.values() - weight).reshape(ROWS, -1, 32).abs()
    # 8 scale - minimum is rounded too.
    assert bool((off <= 32 * torch.finfo(torch.float32).eps * largest.clamp(min=1e-30)).all())
    assert found.bits == (4 if high == 15 else 8)


@pytest.mark.parametrize("name", ["Q8_0", "Q5_0", "Q4_0", "Q4_1", "Q5_1"])
def test_what_gguf_packs_is_found(name: str) -> None:
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[name]
    weight = torch.randn(ROWS, WIDTH, generator=draw(3)) * 0.05
    packed = gguf.quants.quantize(weight.numpy(), kind)
    values = torch.from_numpy(gguf.quants.dequantize(packed, kind))
    found = on_grid(values)
    assert found is not None
    torch.testing.assert_close(found.values(), values, rtol=0, atol=1e-6 * float(values.abs().max()))
    if name.endswith("_0"):
        assert torch.equal(found.values(), values)


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K", "Q6_K"])
def test_blocks_of_any_bytes_of_a_k_quant_are_found(name: str) -> None:
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    packed = torch.randint(0, 256, (ROWS * WIDTH // block, size), dtype=torch.uint8, generator=draw(5))
    # The float16 scales must be numbers; where they are depends on the kind.
    scale = torch.full((len(packed),), 0.01).half().view(torch.uint8).reshape(-1, 2)
    places = {"Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [size - 2]}[name]
    for place in places:
        packed[:, place : place + 2] = scale
    values = torch.from_numpy(gguf.quants.dequantize(packed.numpy(), kind)).reshape(ROWS, WIDTH)
    found = on_grid(values)
    assert found is not None
    torch.testing.assert_close(found.values(), values, rtol=0, atol=2e-6 * float(values.abs().max()))
    if name == "Q6_K":
        assert torch.equal(found.values(), values)


def test_numbers_on_no_grid_are_left_alone() -> None:
    assert on_grid(torch.randn(40, 256)) is None
    nearly = symmetric(1, -127, 127)
    nearly[ROWS - 1, 17] *= 1.001
    assert on_grid(nearly) is None


def test_rows_in_another_order_and_zero_blocks_are_found() -> None:
    weight = symmetric(2, -127, 127)
    weight[2, 32:64] = 0.0
    found = on_grid(weight[torch.tensor([5, 2, 0, 1, 4, 3])])
    assert found is not None
    assert torch.equal(found.values(), weight[torch.tensor([5, 2, 0, 1, 4, 3])])
