"""What PyTorch's fused encoder layers give, at padding too, is what the Program gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor.ir.analyses.layers import layers
from tersor.ir.capture import capture

Read = Callable[[Tensor, Tensor], Tensor]
PADDED = torch.tensor([[1] * 7, [1] * 3 + [0] * 4])
LEFT = PADDED.flip(1)
READS: dict[str, Read] = {
    "tokens": lambda x, real: x,
    "first": lambda x, real: x[:, 0],
    "mean of real tokens": lambda x, real: (x * real[..., None]).sum(1) / real.sum(1, keepdim=True),
    "mean": lambda x, real: x.mean(1),
    "max": lambda x, real: x.amax(1),
    "sum over length": lambda x, real: x.sum(1) / real.sum(1, keepdim=True),
    "sums so far": lambda x, real: x.cumsum(1),
    "neighbours": lambda x, real: x[:, 1:] - x[:, :-1],
    "all pairs": lambda x, real: x @ x.transpose(1, 2),
    "window": lambda x, real: nn.functional.avg_pool1d(x.transpose(1, 2), 3, 1, 1),
    "channels first": lambda x, real: x.transpose(1, 2),
    "tags": lambda x, real: x.argmax(-1),
    "all in a row": lambda x, real: x.flatten(0, 1),
}


class Classifier(nn.Module):
    """Of ids with a mask, or of ids of which 0 is padding."""

    def __init__(self, read: Read, norm: nn.Module | None = None, **how: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            8, 2, 16, batch_first=True, norm_first=how.pop("norm_first", False)
        )
        self.layers = nn.TransformerEncoder(layer, 2, norm, **how)
        self.table, self.read = nn.Embedding(20, 8), read

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        real = ids != 0 if mask is None else mask != 0
        return self.read(self.layers(self.table(ids), src_key_padding_mask=~real), real)


@pytest.fixture(autouse=True)
def fused() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(True)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


def inputs(mask: Tensor, by_ids: bool) -> dict[str, Tensor]:
    ids = torch.randint(1, 20, mask.shape)
    return {"ids": ids * mask} if by_ids else {"ids": ids, "mask": mask}


def agree(model: nn.Module, example: dict[str, Tensor], *given: dict[str, Tensor]) -> tersor.Program:
    """The Program, which gives what the model gives, at padding too."""
    program = capture(model, example)
    for one in given:
        with torch.no_grad():
            torch.testing.assert_close(program(**one), model(**one))
    return program


@pytest.mark.parametrize("by_ids", [False, True])
@pytest.mark.parametrize("example", [PADDED, torch.ones_like(PADDED)], ids=["padded", "whole"])
@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_what_is_made_of_padding_is_what_the_model_makes_of_it(
    read: Read, example: Tensor, by_ids: bool
) -> None:
    torch.manual_seed(0)
    masks = [PADDED, LEFT, torch.cat([PADDED, LEFT]), torch.ones(3, 11).long()]
    program = agree(
        Classifier(read).eval(), inputs(example, by_ids), *(inputs(mask, by_ids) for mask in masks)
    )
    # With gradients padded rows are others.
    notes = program.notes.get("capture", [])
    assert all("without gradients" in note for note in notes)
    if read in map(READS.get, ("tokens", "first", "mean of real tokens")):
        assert not notes
    if read in map(READS.get, ("mean", "max", "window")):
        assert len(notes) == 1


@pytest.mark.parametrize(
    "how",
    [{"norm": nn.LayerNorm(8)}, {"norm_first": True}, {"enable_nested_tensor": False}, {"mask_check": False}],
    ids=str,
)
def test_encoders_of_every_make(how: dict[str, Any]) -> None:
    model = Classifier(READS["mean"], **how).eval()
    agree(model, inputs(torch.ones_like(PADDED), True), inputs(PADDED, True))


def test_zeros_at_padding_leave_the_stack_what_it_is() -> None:
    program = agree(Classifier(READS["tokens"]).eval(), inputs(torch.ones_like(PADDED), True))
    stack = layers(program)
    assert len(stack) == 2
    assert stack.end.target is torch.ops.aten.layer_norm.default


def test_without_them_the_layers_decide() -> None:
    model = Classifier(READS["mean"]).eval()
    torch.backends.mha.set_fastpath_enabled(False)
    program = capture(model, inputs(torch.ones_like(PADDED), False))
    given = inputs(PADDED, False)
    with torch.no_grad():
        torch.testing.assert_close(program(**given), model(**given))


def test_masks_that_fused_layers_take_for_others_are_refused() -> None:
    """They hide whatever a float mask is not 0 for, biases too."""

    class Biased(Classifier):
        def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
            place = torch.arange(ids.shape[1])
            return self.layers(self.table(ids), mask=-(place[:, None] - place[None]).abs().float())

    with pytest.raises(tersor.CaptureError, match=r"fused layers .*set_fastpath_enabled\(False\) first"):
        capture(Biased(READS["tokens"]).eval(), {"ids": torch.randint(1, 20, (2, 7))})


class Told(Classifier):
    """A mean of tokens, told what is padding as ``says`` does."""

    def __init__(self, says: Callable[[Told, Tensor, Tensor], Tensor]) -> None:
        super().__init__(lambda x, real: x.mean(1))
        self.says, self.padding = says, nn.Buffer(torch.tensor(0))
        with torch.no_grad():
            self.table.weight[0] = 0

    def forward(self, ids: Tensor, told: Tensor) -> Tensor:  # type: ignore[override]
        x = self.table(ids)
        return self.layers(x, src_key_padding_mask=self.says(self, ids, told)).mean(1)


LENGTHS, SHARES = torch.tensor([7, 7]), torch.ones(2, 7)
SPELLINGS = {
    "lengths": (lambda m, ids, n: torch.arange(ids.shape[1])[None] >= n[:, None], LENGTHS),
    "positive": (lambda m, ids, n: ~(ids > 0), LENGTHS),
    "any": (lambda m, ids, n: ~ids.bool(), LENGTHS),
    "below": (lambda m, ids, n: ids < 1, LENGTHS),
    "buffer": (lambda m, ids, n: ids == m.padding, LENGTHS),
    "embedding": (lambda m, ids, n: m.table(ids).abs().sum(-1) == 0, LENGTHS),
    "among": (lambda m, ids, n: torch.isin(ids, torch.tensor([0, 2])), LENGTHS),
    "float mask": (lambda m, ids, mask: (1 - mask).bool(), SHARES),
    "half": (lambda m, ids, mask: mask < 0.5, SHARES),
}


@pytest.mark.parametrize(("says", "told"), SPELLINGS.values(), ids=SPELLINGS)
def test_padding_may_be_told_in_any_way(says: Callable[..., Tensor], told: Tensor) -> None:
    ids, some = torch.randint(3, 20, (2, 7)), PADDED.sum(1) if told.dim() == 1 else PADDED.float()
    agree(Told(says).eval(), {"ids": ids, "told": told}, {"ids": ids * PADDED, "told": some})


@pytest.mark.parametrize("by_ids", [False, True])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32], ids=str)
def test_causality_beside_padding_is_captured(dtype: torch.dtype, by_ids: bool) -> None:
    """On the left, where the first queries see nothing, the model itself has no numbers."""

    class Causal(Classifier):
        def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
            padding = ids == 0 if mask is None else mask == 0
            later = torch.ones(ids.shape[1], ids.shape[1]).triu(1).bool()
            hidden = later if dtype == torch.bool else torch.zeros(later.shape).masked_fill(later, -torch.inf)
            padding = (
                padding if dtype == torch.bool else torch.zeros(ids.shape).masked_fill(padding, -torch.inf)
            )
            return self.layers(self.table(ids), mask=hidden, src_key_padding_mask=padding)

    torch.manual_seed(0)
    model = Causal(READS["tokens"]).eval()
    program = capture(model, inputs(torch.ones_like(PADDED), by_ids))
    given = inputs(PADDED, by_ids)
    with torch.no_grad():
        torch.testing.assert_close(program(**given)[PADDED.bool()], model(**given)[PADDED.bool()])
