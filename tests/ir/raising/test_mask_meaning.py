"""A mask's meaning is proved by running the code that makes it; what is not proved stays an operand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.dialect import is_dialect
from tersor.ir.program import Program

HEADS, WIDTH = 2, 8
LOWEST = torch.finfo(torch.float32).min
Mask = Callable[[Tensor, Tensor], Tensor | None]


class Masked(nn.Module):
    """SDPA over ``x [batch, tokens, width]`` under the mask that ``make(x, real)`` returns."""

    def __init__(self, make: Mask) -> None:
        super().__init__()
        self.make = make
        self.triangle = nn.Buffer(torch.tril(torch.ones(1, 1, 40, 40)).bool())
        self.table = nn.Parameter(torch.randn(HEADS, 40, 40))

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        heads = F.layer_norm(x, (WIDTH,)).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        mask = self.make(self, x, real)  # type: ignore[call-arg,arg-type]
        return F.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask).transpose(1, 2).flatten(2)


def index(x: Tensor) -> Tensor:
    n = torch.arange(x.shape[1])
    return n[:, None] - n[None, :]


def padding_bool(_: Masked, x: Tensor, real: Tensor) -> Tensor:
    return real[:, None, None, :].bool()


def padding_additive(_: Masked, x: Tensor, real: Tensor) -> Tensor:
    return (1.0 - real[:, None, None, :].float()) * LOWEST


def padding_both_ways(_: Masked, x: Tensor, real: Tensor) -> Tensor:
    return (real[:, None, :, None] * real[:, None, None, :]).bool()


def padding_inverted(_: Masked, x: Tensor, real: Tensor) -> Tensor:
    dropped = (real == 0)[:, None, None, :]
    return torch.zeros(dropped.shape).masked_fill(dropped, float("-inf"))


def causal_table(model: Masked, x: Tensor, real: Tensor) -> Tensor:
    return model.triangle[:, :, : x.shape[1], : x.shape[1]]


def causal_and_padding(_: Masked, x: Tensor, real: Tensor) -> Tensor:
    return (index(x) >= 0) & real[:, None, None, :].bool()


def window_both_sides(_: Masked, x: Tensor, real: Tensor) -> Tensor:
    return index(x).abs() < 12


def causal_window_with_padding(_: Masked, x: Tensor, real: Tensor) -> Tensor:
    seen = (index(x) >= 0) & (index(x) <= 10) & real[:, None, None, :].bool()
    return torch.where(seen, 0.0, LOWEST)


def everything(_: Masked, x: Tensor, real: Tensor) -> Tensor:
    return torch.zeros(x.shape[1], x.shape[1])


def bias_where_real(model: Masked, x: Tensor, real: Tensor) -> Tensor:
    bias = model.table[:, : x.shape[1], : x.shape[1]]
    return torch.where(real[:, None, None, :].bool(), bias, LOWEST)


def bias_plus_causal(model: Masked, x: Tensor, real: Tensor) -> Tensor:
    hidden = torch.zeros(1).expand(index(x).shape).masked_fill(index(x) < 0, LOWEST)
    return model.table[:, : x.shape[1], : x.shape[1]] + hidden


PROVED = [
    # mask, causal, window, padding, bias left
    (padding_bool, False, 0, True, False),
    (padding_additive, False, 0, True, False),
    (padding_both_ways, False, 0, True, False),
    (padding_inverted, False, 0, True, False),
    (causal_table, True, 0, False, False),
    (causal_and_padding, True, 0, True, False),
    (window_both_sides, False, 12, False, False),
    (causal_window_with_padding, True, 11, True, False),
    (everything, False, 0, False, False),
    (bias_where_real, False, 0, True, True),
    (bias_plus_causal, True, 0, False, True),
]


def captured(make: Mask, length: int = 7) -> tuple[nn.Module, Program, torch.fx.Node]:
    torch.manual_seed(0)
    model = Masked(make).eval()
    real = torch.ones(2, length, dtype=torch.int64)
    real[1, length - 2 :] = 0
    program = capture(model, {"x": torch.randn(2, length, WIDTH), "real": real})
    (node,) = (n for n in program.graph.nodes if is_dialect(n, "attention"))
    return model, program, node


def agree(model: nn.Module, program: Program, length: int) -> None:
    x = torch.randn(3, length, WIDTH)
    real = (torch.arange(length)[None] < torch.tensor([[length], [length - 2], [3]])).long()
    torch.testing.assert_close(
        program(x, real)[real.bool()], model(x, real)[real.bool()], atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("make", "causal", "window", "padding", "biased"), PROVED, ids=lambda v: getattr(v, "__name__", "")
)
def test_the_meaning_is_found_and_the_result_stays(make, causal, window, padding, biased):
    model, program, node = captured(make)
    found = (node.kwargs["causal"], node.kwargs["window"], node.args[4] is not None, node.args[3] is not None)
    assert found == (causal, window, padding, biased)
    for length in (5, 33):
        agree(model, program, length)


def blocks(_: Masked, x: Tensor, real: Tensor) -> Tensor:
    n = torch.arange(x.shape[1]) // 4
    return n[:, None] == n[None, :]


def first_token_sees_all(_: Masked, x: Tensor, real: Tensor) -> Tensor:
    return (index(x) >= 0) | (torch.arange(x.shape[1]) == 0)[:, None]


def mildly_discouraged(_: Masked, x: Tensor, real: Tensor) -> Tensor:
    return (1.0 - real[:, None, None, :].float()) * -5.0


def by_content(_: Masked, x: Tensor, real: Tensor) -> Tensor:
    return (x.sum(-1) > 0)[:, None, None, :] | (index(x) == 0)


def differs_between_heads(_: Masked, x: Tensor, real: Tensor) -> Tensor:
    return index(x)[None].abs() < torch.tensor([2, 5])[:, None, None]


def far_window(_: Masked, x: Tensor, real: Tensor) -> Tensor:
    return index(x).abs() < 100_000


@pytest.mark.parametrize(
    "make",
    [blocks, first_token_sees_all, mildly_discouraged, by_content, differs_between_heads, far_window],
    ids=lambda v: v.__name__,
)
def test_what_is_not_proved_stays_an_operand(make):
    model, program, node = captured(make)
    assert node.args[3] is not None
    assert (node.kwargs["causal"], node.kwargs["window"], node.args[4]) == (False, 0, None)
    agree(model, program, 11)


def third_row_sees_all(_: Masked, x: Tensor, real: Tensor) -> Tensor:
    return real[:, None, None, :].bool() | (torch.arange(x.shape[0]) >= 2)[:, None, None, None]


def fourth_row_is_causal(_: Masked, x: Tensor, real: Tensor) -> Tensor:
    other = torch.arange(x.shape[0])[:, None, None, None] != 3
    return real[:, None, None, :].bool() & ((index(x) >= 0) | other)


def rows(x: Tensor) -> Tensor:
    return torch.arange(x.shape[0])[:, None, None, None]


def rows_past_a_float(_: Masked, x: Tensor, real: Tensor) -> Tensor:
    return real[:, None, None, :].bool() | (rows(x) * 0.25 > 1.5)


def rows_past_a_quotient(_: Masked, x: Tensor, real: Tensor) -> Tensor:
    return ~((rows(x) / 2 > 3) & (torch.arange(x.shape[1]) > 2)).expand(-1, 1, x.shape[1], -1)


def rows_past_a_large_number(_: Masked, x: Tensor, real: Tensor) -> Tensor:
    return ~((rows(x) >= 200) & (torch.arange(x.shape[1]) > 2)).expand(-1, 1, x.shape[1], -1)


def rows_of_a_table(model: Masked, x: Tensor, real: Tensor) -> Tensor:
    few = (model.triangle[0, 0, 6, : x.shape[0]])[:, None, None, None]
    return few | (torch.arange(x.shape[1]) <= 2).expand(x.shape[0], 1, x.shape[1], -1)


@pytest.mark.parametrize(
    "make",
    [third_row_sees_all, fourth_row_is_causal, rows_past_a_float, rows_past_a_quotient, rows_past_a_large_number,
     rows_of_a_table],
    ids=lambda v: v.__name__,
)  # fmt: skip
def test_a_row_unlike_the_others_is_seen_past_the_example(make):
    model, program, node = captured(make)
    assert node.args[4] is None
    batch = 240 if make is rows_past_a_large_number else 30
    x = torch.randn(batch, 9, WIDTH)
    real = (torch.arange(9)[None] < torch.randint(2, 10, (batch, 1))).long()
    torch.testing.assert_close(program(x, real), model(x, real), atol=1e-6, rtol=1e-5)


def early_rows_ignore_it(rows: Callable[[int], int]) -> Mask:
    """As where half of a batch runs unconditioned: what ``real`` says of those rows does not count."""

    def make(_: Masked, x: Tensor, real: Tensor) -> Tensor:
        ignored = torch.arange(x.shape[0])[:, None] < rows(x.shape[0])
        return (real.bool() | ignored)[:, None, None]

    return make


def early_rows_are_filled(_: Masked, x: Tensor, real: Tensor) -> Tensor:
    ignored = torch.arange(x.shape[0])[:, None] < 1
    return (1.0 - real.masked_fill(ignored, 1)[:, None, None].float()) * -1e9


@pytest.mark.parametrize(
    "make",
    [*map(early_rows_ignore_it, (lambda n: n // 2, lambda n: 1, lambda n: n - 1)), early_rows_are_filled],
    ids=["half", "first", "all but the last", "filled"],
)
@pytest.mark.parametrize("padded", [0, 1])
def test_rows_that_ignore_the_padding_are_seen_whichever_the_example_pads(make, padded):
    """Nor is the model refused for what is wrong with a proof."""
    model = Masked(make).eval()
    real = torch.ones(2, 7, dtype=torch.int64)
    real[padded, 4:] = 0
    program = capture(model, {"x": torch.randn(2, 7, WIDTH), "real": real})
    x, real = (
        torch.randn(5, 9, WIDTH),
        (torch.arange(9)[None] < torch.tensor([[3], [5], [9], [4], [2]])).long(),
    )
    torch.testing.assert_close(program(x, real), model(x, real), atol=1e-6, rtol=1e-5)


def picked_by_row(_: Masked, x: Tensor, real: Tensor) -> Tensor:
    row = torch.arange(x.shape[0])[:, None, None, None]
    return real.bool()[row, torch.arange(x.shape[1])[None, None, None, :]]


def picked_from_another_row(_: Masked, x: Tensor, real: Tensor) -> Tensor:
    row = (x.shape[0] - 1 - torch.arange(x.shape[0]))[:, None, None, None]
    return real.bool()[row, torch.arange(x.shape[1])[None, None, None, :]]


def test_rows_may_number_what_is_picked_of_the_padding():
    """As masks of Hugging Face do, which are written for one row and one pair of tokens."""
    _, _, node = captured(picked_by_row)
    assert node.args[4] is not None
    _, _, node = captured(picked_from_another_row)
    assert node.args[4] is None


class Across(nn.Module):
    """Attention of ``x`` over ``y`` under the mask that ``make(queries, keys)`` returns."""

    def __init__(self, make: Callable[[int, int], Tensor]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        query, key = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (x, y))
        mask = self.make(x.shape[1], y.shape[1])
        return F.scaled_dot_product_attention(query, key, key, attn_mask=mask).transpose(1, 2).flatten(2)


def apart(queries: int, keys: int) -> Tensor:
    return torch.arange(queries)[:, None] - torch.arange(keys)[None]


@pytest.mark.parametrize(
    ("make", "causal", "window"),
    [
        (lambda q, k: apart(q, k) >= 0, True, 0),
        (lambda q, k: apart(q, k).abs() < 12, False, 12),
        (lambda q, k: apart(q, k) + (k - q) >= 0, False, 0),
        (lambda q, k: torch.ones(q, k).bool().tril(k - q), False, 0),
        (lambda q, k: (apart(q, k) + (k - q)).abs() < 12, False, 0),
        (lambda q, k: (torch.arange(k) < q).expand(q, k), False, 0),
        (lambda q, k: (torch.arange(k) >= k - q).expand(q, k), False, 0),
    ],
    ids=[
        "causal",
        "window",
        "causal from the end",
        "triangle from the end",
        "window from the end",
        "first",
        "last",
    ],
)
@pytest.mark.parametrize("sizes", [(7, 11), (11, 7)], ids=str)
def test_where_queries_are_not_the_keys_their_numbers_differ_in_trials(make, causal, window, sizes):
    model = Across(make).eval()
    program = capture(model, {"x": torch.randn(2, sizes[0], WIDTH), "y": torch.randn(2, sizes[1], WIDTH)})
    (node,) = (n for n in program.graph.nodes if is_dialect(n, "attention"))
    assert (node.kwargs["causal"], node.kwargs["window"]) == (causal, window)
    for queries, keys in ((40, 70), (70, 40), (5, 6), (6, 5), (8, 8)):
        x, y = torch.randn(3, queries, WIDTH), torch.randn(3, keys, WIDTH)
        seen = make(queries, keys).any(-1)
        torch.testing.assert_close(program(x, y)[:, seen], model(x, y)[:, seen], atol=1e-6, rtol=1e-5)


def flagged_see_all(_: Masked, x: Tensor, real: Tensor) -> Tensor:
    return (real[:, None, :, None] != 0) | (index(x) == 0)


def unflagged_see_all(_: Masked, x: Tensor, real: Tensor) -> Tensor:
    return (real[:, None, :, None] == 0) | (index(x) == 0)


def alone_if_flags_agree(_: Masked, x: Tensor, real: Tensor) -> Tensor:
    return (index(x) == 0) & (real[:, None, :, None] == real[:, None, None, :])


@pytest.mark.parametrize(
    "make", [flagged_see_all, unflagged_see_all, alone_if_flags_agree], ids=lambda v: v.__name__
)
def test_a_flag_of_tokens_that_see_themselves_alone_is_no_padding(make):
    model, program, node = captured(make)
    assert node.args[4] is None
    x = torch.randn(3, 9, WIDTH)
    real = (torch.arange(9)[None] < torch.tensor([[9], [7], [3]])).long()
    torch.testing.assert_close(program(x, real), model(x, real), atol=1e-6, rtol=1e-5)


def test_a_window_wider_than_the_example_is_still_seen():
    _, _, node = captured(window_both_sides, length=5)
    assert node.kwargs["window"] == 12


def test_layers_share_one_node_for_the_padding(tiny_bert):
    program = capture(tiny_bert)
    paddings = {n.args[4] for n in program.graph.nodes if is_dialect(n, "attention")}
    assert len(paddings) == 1


def test_ids_compared_with_a_padding_id_are_read_through_the_comparison():
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, WIDTH)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embed(ids).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            return F.scaled_dot_product_attention(x, x, x, attn_mask=(ids != 1)[:, None, None, :])

    model = Text().eval()
    ids = torch.tensor([[2, 3, 0, 1, 1], [0, 0, 5, 8, 1]])
    program = capture(model, {"ids": ids})
    (node,) = (n for n in program.graph.nodes if is_dialect(n, "attention"))
    assert node.args[3] is None
    assert node.args[4].meta["val"].dtype == torch.bool
    torch.testing.assert_close(program(ids), model(ids))


class Guided(nn.Module):
    """Twice the batch, whose last rows see all keys once there are more than a hundred."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch = x.shape[0]
        both = self.project(torch.cat([x, x]))[:, None]
        late = torch.arange(2 * batch) / (2 * batch) > 0.99
        seen = torch.cat([mask, mask]).bool() | late[:, None]
        return F.scaled_dot_product_attention(both, both, both, attn_mask=seen[:, None, None])


@pytest.mark.parametrize(
    "dynamic", ["auto", {"x": {0: "batch"}, "mask": {0: "batch"}}], ids=["any", "static"]
)
def test_rows_are_seen_to_differ_where_there_are_twice_as_many_as_in_the_batch(dynamic):
    model = Guided().eval()
    mask = torch.ones(2, 6, dtype=torch.long)
    program = capture(model, {"x": torch.randn(2, 6, 8), "mask": mask}, dynamic)
    x, mask = torch.randn(60, 6, 8), torch.ones(60, 6, dtype=torch.long)
    mask[:, 4:] = 0
    torch.testing.assert_close(program(x, mask), model(x, mask), atol=1e-6, rtol=1e-5)
