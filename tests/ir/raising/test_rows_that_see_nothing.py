"""Queries that see no key: an average of all values where finite numbers hide keys, zeros where -inf or a bool does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attends import CHANNELS, Attends, Hide, assert_is
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.program import Program

ONES, PADDED = torch.ones(2, 6, dtype=torch.long), torch.tensor([[1] * 9, [1] * 4 + [0] * 5])


def keys(number: float) -> Hide:
    return lambda scores, mask: scores.masked_fill(mask[:, None, None, :] == 0, number)


def added(number: float) -> Hide:
    return lambda scores, mask: scores + (1.0 - mask[:, None, None, :].float()) * number


def chosen(scores: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask[:, None, None, :].bool(), scores, torch.finfo(scores.dtype).min)


def both(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(mask[:, None, :, None] * mask[:, None, None, :] == 0, -1e9)


def behind(diagonal: int, number: float = -1e9) -> Hide:
    def hide(scores: Tensor, mask: Tensor) -> Tensor:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(diagonal)
        return scores.masked_fill(later | (mask[:, None, None, :] == 0), number)

    return hide


def attention(program: Program) -> Any:
    (node,) = (n for n in program.graph.nodes if "attention" in str(n.target))
    return node


@pytest.mark.parametrize("hide", [keys(-1e9), keys(-1e4), keys(-65504.0), added(-1e9), chosen])
def test_a_query_with_nothing_to_attend_to_averages_as_the_model_does(hide: Hide) -> None:
    """As in guidance, where one half has no memory; and where the example shows it, too."""
    model = Attends(hide).eval()
    x, memory, hidden = torch.randn(2, 5, CHANNELS), torch.randn(2, 7, CHANNELS), torch.ones(2, 7).long()
    hidden[1] = 0
    for mask in (torch.ones_like(hidden), hidden):
        program = capture(model, {"x": x, "mask": mask, "memory": memory})
        assert_is(program, model, x=x, memory=memory, mask=hidden)
        assert attention(program).args[3] is not None


def test_where_infinity_hides_the_padding_of_a_memory_is_padding() -> None:
    example = {"x": torch.randn(2, 5, CHANNELS), "mask": torch.ones(2, 7).long()}
    program = capture(Attends(keys(float("-inf"))).eval(), {**example, "memory": torch.randn(2, 7, CHANNELS)})
    assert attention(program).args[3] is None
    assert attention(program).args[4] is not None


def test_the_first_token_of_strict_causality_averages() -> None:
    model = Attends(behind(0)).eval()
    program = capture(model, {"x": torch.randn(2, 6, CHANNELS), "mask": ONES})
    assert_is(program, model, x=torch.randn(2, 9, CHANNELS), mask=torch.ones(2, 9).long())


@pytest.mark.parametrize("read", [lambda x: x.mean(1), lambda x: x.amax(1)], ids=["mean", "max"])
@pytest.mark.parametrize("hide", [both, behind(1), behind(1, torch.finfo(torch.float32).min)])
def test_padded_queries_count_where_a_result_is_made_of_them(
    hide: Hide, read: Callable[[Tensor], Tensor]
) -> None:
    model = Attends(hide, read).eval()
    program = capture(model, {"x": torch.randn(2, 6, CHANNELS), "mask": ONES})
    for mask in (PADDED, PADDED.flip(1)):
        assert_is(program, model, x=torch.randn(2, 9, CHANNELS), mask=mask)


@pytest.mark.parametrize(("hide", "causal"), [(both, False), (behind(1), True), (keys(-1e9), False)])
def test_they_do_not_where_every_token_has_its_own(hide: Hide, causal: bool) -> None:
    """Padding stays known as such, and what is computed at it is nobody's."""
    program = capture(Attends(hide).eval(), {"x": torch.randn(2, 6, CHANNELS), "mask": ONES})
    node = attention(program)
    assert node.args[3] is None
    assert node.args[4] is not None
    assert node.kwargs["causal"] is causal


def test_padding_that_is_computed_from_ids_is_padding() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(20, CHANNELS)
            self.attends = Attends(lambda scores, mask: scores.masked_fill(~mask[:, None, None, :], -1e9))

        def forward(self, ids: Tensor) -> Tensor:
            return self.attends(self.table(ids), ids != 0)

    program = capture(Reads().eval(), {"ids": torch.randint(1, 20, (2, 6))})
    assert attention(program).args[4] is not None
