"""Token operators in ONNX choose the same tokens as the reference, at any batch, length and padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tersor.codegen.onnx import OnnxExecutable

from .conftest import assert_same, small_program

aten = torch.ops.aten
DIMS = {
    "scores": {0: "batch", 1: "tokens"},
    "padding": {0: "batch", 1: "tokens"},
    "metric": {0: "batch", 1: "tokens"},
    "x": {0: "batch", 1: "tokens"},
    "index": {0: "batch", 1: "kept"},
    "size": {0: "batch", 1: "tokens"},
}
SHAPES = ((2, 11), (1, 8), (3, 17), (1, 30))


def ragged(batch: int, tokens: int, left: bool) -> Tensor:
    """Rows of falling length, padded on one side; the first row is full."""
    lengths = torch.tensor([max(4, tokens - 3 * row) for row in range(batch)])
    place = torch.arange(tokens)[None]
    return place >= (tokens - lengths)[:, None] if left else place < lengths[:, None]


@pytest.mark.parametrize(("prefix", "last"), [(0, 0), (1, 0), (1, 1), (5, 0)])
@pytest.mark.parametrize("keep", [300, 700, 1000])
def test_selection_without_padding(agree: Any, prefix: int, last: int, keep: int) -> None:
    def build(b: Any, scores: Any) -> Any:
        return b.op("select_tokens", scores, None, keep_per_mille=keep, prefix=prefix, last=last)

    agree(build, DIMS, *({"scores": torch.randn(b, n)} for b, n in SHAPES))


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize(("prefix", "last"), [(0, 0), (1, 1), (2, 0)])
def test_every_row_keeps_its_own_share(agree: Any, left: bool, prefix: int, last: int) -> None:
    def build(b: Any, scores: Any, padding: Any) -> Any:
        return b.op("select_tokens", scores, padding, keep_per_mille=600, prefix=prefix, last=last)

    agree(build, DIMS, *({"scores": torch.randn(b, n), "padding": ragged(b, n, left)} for b, n in SHAPES))


SPECIAL = torch.tensor(
    [float("inf"), float("-inf"), float("nan"), -0.0, 0.0, 1.0, torch.finfo(torch.float32).max]
)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("prefix", "last"), [(0, 0), (1, 1)])
def test_infinite_scores_and_nan_rank_between_the_protected_and_padding(
    agree: Any, padded: bool, prefix: int, last: int
) -> None:
    def build(b: Any, scores: Any, padding: Any = None) -> Any:
        return b.op("select_tokens", scores, padding, keep_per_mille=400, prefix=prefix, last=last)

    cases = []
    for batch, tokens in SHAPES:
        scores = SPECIAL[torch.randint(len(SPECIAL), (batch, tokens))]
        padding = {"padding": torch.rand(batch, tokens) < 0.6} if padded else {}
        cases.append({"scores": scores, **padding})
    agree(build, DIMS, *cases)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_equal_scores_keep_the_earlier_token(data: st.DataObject) -> None:
    tokens = data.draw(st.integers(3, 40))
    draw = st.lists(st.sampled_from([0.0, -1.0, 2.5]), min_size=tokens, max_size=tokens)
    scores = torch.tensor([data.draw(draw), data.draw(draw)])
    program = small_program(
        lambda b, s: b.op("select_tokens", s, keep_per_mille=500), DIMS, {"scores": scores}
    )
    assert_same(
        program.run({"scores": scores}), OnnxExecutable.of(program, threads=1).run({"scores": scores}), 0
    )


@pytest.mark.parametrize(("prefix", "last"), [(0, 0), (1, 0), (1, 1), (0, 2)])
@pytest.mark.parametrize("keep", [500, 800, 1000])
def test_matching_without_padding(agree: Any, prefix: int, last: int, keep: int) -> None:
    def build(b: Any, metric: Any) -> Any:
        node = b.op("match_tokens", metric, None, keep_per_mille=keep, prefix=prefix, last=last)
        return tuple(b.item(node, i) for i in range(4))

    agree(
        build, DIMS, *({"metric": torch.randn(b, n, 6)} for b, n in (*SHAPES, (2, 3), (1, prefix + last + 1)))
    )


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize(("prefix", "last"), [(0, 0), (2, 0), (1, 1)])
def test_matching_rows_of_different_lengths(agree: Any, left: bool, prefix: int, last: int) -> None:
    def build(b: Any, metric: Any, padding: Any) -> Any:
        node = b.op("match_tokens", metric, padding, keep_per_mille=700, prefix=prefix, last=last)
        return tuple(b.item(node, i) for i in range(4))

    agree(build, DIMS, *({"metric": torch.randn(b, n, 6), "padding": ragged(b, n, left)} for b, n in SHAPES))


def _half_merged(b: Any, x: Any, size: Any) -> Any:
    match = b.op("match_tokens", x, None, keep_per_mille=500)
    merged = b.op("merge_tokens", x, size, *(b.item(match, i) for i in range(3)))
    return b.item(merged, 0), b.item(merged, 1)


def test_merging_keeps_every_token_it_joins(agree: Any) -> None:
    agree(
        _half_merged, DIMS, *({"x": torch.randn(b, n, 6), "size": torch.rand(b, n) + 0.5} for b, n in SHAPES)
    )


def test_many_sources_may_join_one_target(agree: Any) -> None:
    x = torch.ones(2, 64, 6) + 1e-3 * torch.randn(2, 64, 6)
    x[:, 2::2] *= -1
    agree(_half_merged, DIMS, {"x": x, "size": torch.ones(2, 64)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_merging_adds_up_in_a_dtype_that_the_runtime_can_add(agree: Any, dtype: torch.dtype) -> None:
    x = torch.ones(2, 64, 6) + 1e-2 * torch.randn(2, 64, 6)
    x[:, 2::2] *= -1
    rtol = 8 * torch.finfo(dtype).eps
    agree(_half_merged, DIMS, {"x": x.to(dtype), "size": torch.rand(2, 64) + 0.5}, rtol=rtol)


@pytest.mark.parametrize("fixed", [False, True], ids=["any length", "one length"])
@pytest.mark.parametrize("padded", [False, True])
def test_merging_nothing_is_the_identity_of_every_row(agree: Any, padded: bool, fixed: bool) -> None:
    def build(b: Any, x: Any, padding: Any = None) -> Any:
        size = b.call(aten.to.dtype, padding, torch.float32) if padded else None
        size = size or b.call(aten.ones_like.default, b.call(aten.select.int, x, 2, 0))
        match = b.op("match_tokens", x, padding, keep_per_mille=1000, prefix=1)
        kept, source, target = (b.item(match, i) for i in range(3))
        merged = b.op("merge_tokens", x, size, kept, source, target)
        hidden = b.item(merged, 0)
        back = b.op("scatter_tokens", b.mul(x, 0.0), source, b.op("gather_tokens", x, source, 1))
        return hidden, b.item(merged, 1), b.add(back, b.op("scatter_tokens", x, kept, hidden))

    def case(batch: int, tokens: int) -> dict[str, Tensor]:
        padding = {"padding": ragged(batch, tokens, left=batch == 3)} if padded else {}
        return {"x": torch.randn(batch, tokens, 6), **padding}

    cases = [case(*sizes) for sizes in (SHAPES[:1] if fixed else (*SHAPES, (1, 1)))]
    agree(build, {} if fixed else DIMS, *cases)
    program = small_program(build, {} if fixed else DIMS, cases[0])
    for inputs in cases:
        assert torch.equal(program.run(inputs)[0], inputs["x"])


@pytest.mark.parametrize("rank", [2, 3])
def test_a_batch_of_one_serves_every_row(agree: Any, rank: int) -> None:
    shape = (1, 9, 5)[:rank]

    def build(b: Any, x: Any, index: Any) -> Any:
        return b.op("gather_tokens", x, index, 1)

    cases = ({"x": torch.randn(shape), "index": torch.randint(0, 9, (batch, 4))} for batch in (2, 3, 1))
    agree(build, {"index": DIMS["index"]}, *cases)


@pytest.mark.parametrize(
    ("shape", "dim"),
    [((2, 9, 5), 1), ((2, 4, 9, 5), 2), ((2, 9), 1), ((2, 1, 3, 9), 3), ((1, 9, 5), 1)],
    ids=str,
)
def test_gathering_along_any_token_dim(agree: Any, shape: tuple[int, ...], dim: int) -> None:
    def case(batch: int, tokens: int, kept: int) -> dict[str, Tensor]:
        sizes = list(shape)
        sizes[0], sizes[dim] = (1 if shape[0] == 1 else batch), tokens
        index = torch.stack([torch.randperm(tokens)[:kept].sort().values for _ in range(batch)])
        return {"x": torch.randn(sizes), "index": index}

    dims = {"x": {dim: "tokens"} | ({} if shape[0] == 1 else {0: "batch"}), "index": DIMS["index"]}
    build = lambda b, x, index: b.op("gather_tokens", x, index, dim)  # noqa: E731
    agree(build, dims, case(2, 9, 4), case(1, 7, 7), case(3, 12, 2))


def test_dropped_tokens_are_scattered_back_in_order(agree: Any) -> None:
    def build(b: Any, x: Any, scores: Any) -> Any:
        index = b.op("select_tokens", scores, keep_per_mille=600, prefix=1)
        kept = b.op("gather_tokens", x, index, 1)
        return b.op("scatter_tokens", x, index, b.mul(kept, 2.0))

    agree(build, DIMS, *({"x": torch.randn(b, n, 6), "scores": torch.randn(b, n)} for b, n in SHAPES))
