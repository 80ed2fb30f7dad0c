"""What compact outputs deviate by: they are held against the reference's rows of the same tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.errors import PromiseError
from tersor.ir.program import Program
from tersor.passes.cleanup import Cleanup
from tersor.passes.deviation import Reference
from tersor.passes.pipeline import run

Captured = Callable[[str], Program]
Drop = Callable[[Program, str], Program]
SPEC = "token-drop:method=received-attention,keep=0.5,layers=0,restore=compact"


class HiddenOnly(nn.Module):
    """The hidden states of a model and nothing else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask)[0]  # type: ignore[no-any-return]


def by_hand(want: Tensor, got: Tensor, index: Tensor, mask: Tensor) -> float:
    """Mean cosine distance of the kept real tokens."""
    rows = [
        (want[b, t].double(), got[b, column].double())
        for b in range(len(index))
        for column, t in enumerate(index[b].tolist())
        if mask[b, t]
    ]
    return float(torch.stack([1 - nn.functional.cosine_similarity(a, c, dim=0) for a, c in rows]).mean())


def test_an_encoder_whose_only_output_is_per_token_is_compared_at_the_kept_tokens(
    models: Callable[[str], nn.Module], texts: Callable[..., dict[str, Tensor]]
) -> None:
    program = capture(HiddenOnly(models("bert")).eval(), texts())
    compact, report = run(program, [SPEC])
    assert report.deviation is not None
    assert (report.steps[1].verdict, report.deviation.not_compared) == ("kept", ())
    want, got = program(**program.example_inputs), compact(**program.example_inputs)
    expected = by_hand(want, got.output, got.kept_index, program.example_inputs["attention_mask"])
    assert report.deviation.overall == pytest.approx(expected, rel=1e-6)
    assert expected > 1e-6


def test_the_logits_of_a_decoder_are_compared_at_the_kept_tokens(captured: Captured) -> None:
    program = captured("llama")
    _, report = run(program, [SPEC])
    assert report.deviation is not None
    logits = report.deviation.outputs[0]
    assert logits.kl is not None
    assert logits.kl > 0
    assert 0 < (logits.top1_agreement or 0) <= 1


def test_a_compact_output_counts_beside_others(captured: Captured) -> None:
    _, report = run(captured("vit"), [SPEC])
    assert report.deviation is not None
    assert [output.name for output in report.deviation.outputs] == ["last_hidden_state", "pooler_output"]
    both = [output.cosine_distance for output in report.deviation.outputs]
    assert report.deviation.overall == pytest.approx(sum(both) / 2)


def test_the_budget_holds_for_compact_outputs(
    models: Callable[[str], nn.Module], texts: Callable[..., dict[str, Tensor]]
) -> None:
    program = capture(HiddenOnly(models("bert")).eval(), texts())
    with pytest.raises(PromiseError, match=r"deviates by .*, past the budget of 1e-09"):
        run(program, [SPEC], max_deviation=1e-9)
    _, report = run(program, [SPEC], max_deviation=1e-9, on_violation="revert")
    assert report.steps[1].verdict == "reverted"


def test_a_spoiled_compact_output_is_seen_and_spoiled_padding_is_not(
    captured: Captured, dropped: Drop
) -> None:
    program = captured("bert")
    compact = dropped(program, SPEC + ",proportional=false")
    reference = Reference(program, [program.example_inputs])
    outputs = dict(zip([s.name for s in compact.outputs], compact.run(program.example_inputs), strict=True))
    mask = program.example_inputs["attention_mask"].bool().gather(1, outputs["kept_index"])
    assert not mask.all()
    hidden = outputs["last_hidden_state"]
    plain = reference.compare_outputs([outputs])
    padded = {**outputs, "last_hidden_state": hidden.masked_fill(~mask[..., None], float("nan"))}
    assert reference.compare_outputs([padded]).overall == pytest.approx(plain.overall)
    spoiled = {**outputs, "last_hidden_state": hidden.masked_fill(mask[..., None], float("nan"))}
    assert not reference.compare_outputs([spoiled]).finite


@pytest.mark.parametrize(
    "index", [torch.full((2, 6), 99), torch.full((2, 6), -1), torch.zeros(2, 5, dtype=torch.int64)]
)
def test_an_index_that_fits_neither_output_leaves_nothing_to_compare(
    captured: Captured, index: Tensor
) -> None:
    program = captured("bert")
    reference = Reference(program, [program.example_inputs])
    outputs = {"last_hidden_state": reference.outputs[0]["last_hidden_state"][:, :6], "kept_index": index}
    assert "last_hidden_state" in reference.compare_outputs([outputs]).not_compared


def test_tokens_of_a_compact_reference_are_not_looked_up_by_where_they_once_were(
    captured: Captured, dropped: Drop
) -> None:
    """Its places hold other tokens than those of the same numbers, so that an index proves nothing here."""
    compact = dropped(captured("bert"), SPEC)
    reference = Reference(compact, [compact.example_inputs])
    outputs = reference.outputs[0]
    index = outputs["kept_index"]
    held = torch.arange(3).expand(len(index), 3)
    assert not torch.equal(index[:, :3], held), "a token has moved"
    fewer = {"kept_index": held, "last_hidden_state": outputs["last_hidden_state"][:, :3]}
    deviation = reference.compare_outputs([{**outputs, **fewer}])
    assert set(fewer) <= set(deviation.not_compared)
    assert [output.name for output in deviation.outputs] == ["pooler_output"]


def test_a_compact_program_equals_itself_but_for_its_padding(captured: Captured, dropped: Drop) -> None:
    compact = dropped(captured("bert"), SPEC)
    _, report = run(compact, [Cleanup()])
    assert report.deviation is not None
    assert report.deviation.is_rounding
    reference = Reference(compact, [compact.example_inputs])
    outputs = reference.outputs[0]
    mask = compact.example_inputs["attention_mask"].bool().gather(1, outputs["kept_index"])
    spoiled = outputs["last_hidden_state"].masked_fill(~mask[..., None], float("nan"))
    assert reference.compare_outputs([{**outputs, "last_hidden_state": spoiled}]).is_rounding
