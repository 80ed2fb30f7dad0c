"""What the section on weights says of models whose predictions are known."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from benchmarks.weights import Cost, measure, missed, section


def test_the_loss_is_that_of_perplexities_over_rows() -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 7, (5, 9))
    own, found = (torch.randn(5, 9, 7).log_softmax(-1) for _ in range(2))
    cost = Cost("int8", "int8", 10, [])
    for row in range(5):
        cost.add(ids[row], own[row], found[row])
    mean = [
        torch.nn.functional.nll_loss(side[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        for side in (own, found)
    ]
    assert cost.loss == pytest.approx(math.expm1(float(mean[1] - mean[0])), abs=1e-6)
    assert cost.same / 5 == pytest.approx(float((own.argmax(-1) == found.argmax(-1)).float().mean()))


def test_a_loss_that_is_too_large_or_not_known_well_enough_is_named() -> None:
    known, large, vague = (Cost(kind, kind, 10, list(rows)) for kind, rows in (
        ("int8", [0.001, 0.002] * 50), ("int8", [0.02, 0.021] * 50), ("int4", [0.3, -0.28] * 4),
    ))  # fmt: skip
    assert missed([known]) == []
    assert [text.split(":")[0] for text in missed([known, large, vague])] == ["int8", "int4"]
    costs = [
        Cost(known.kind, known.stored, 10, known.surprise, [0.0] * 100),
        Cost("int4", "int4, 9 matrices int8", 5, [0.01] * 100, [0.02] * 100),
    ]
    text = section(costs, [(math.log(20), math.log(90))] * 100, 8)
    assert "| int4 | int4, 9 matrices int8 | 0 | +1.01% ± 0.00% | 0.0% | 0.0000 | +2.02% ± 0.00% |" in text
    assert "own perplexity in float32: 20.0, cut out 90.0." in text
    assert "Below what is asked: nothing." in text


def test_no_number_and_what_was_kept_in_place_of_another_are_named() -> None:
    rows = [0.025] * 100
    one, kept, auto, left = (
        Cost("int8", "int8", 5, [0.0]),
        Cost("int4", "int4", 5, rows),
        Cost("auto", "int4", 5, rows),
        Cost("int4", "fp32", 5, [0.0] * 100),
    )
    assert [text.split(":")[0] for text in missed([one, kept, auto, left])] == ["int8", "auto"]


def test_a_row_is_measured_as_it_opens_and_cut_out() -> None:
    torch.manual_seed(0)
    tables = [torch.randn(7, 7).double() for _ in range(2)]

    def model(number: int) -> object:
        # What a first token changes: the model knows nothing where it is not 0.
        def run(input_ids: torch.Tensor, **_: object) -> object:
            known = tables[number][input_ids] * (input_ids[:, :1] == 0).double()[..., None]
            return SimpleNamespace(logits=known)

        return run

    row, cost = torch.tensor([[0, 3, 5, 1, 2]]), Cost("int8", "int8", 10, [])
    own = measure(model(0), [(model(1), cost)], row)
    expected = [float(torch.nn.functional.cross_entropy(table[row[0, :-1]], row[0, 1:])) for table in tables]
    assert own == pytest.approx((expected[0], math.log(7)))
    assert cost.surprise == pytest.approx([expected[1] - expected[0]])
    assert cost.cut_out == pytest.approx([0.0])
