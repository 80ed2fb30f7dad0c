"""What PyTorch's fused encoder layers give at padding is no result's, or the model is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor.ir.capture import capture

Read = Callable[[Tensor, Tensor], Tensor]
PADDED = torch.tensor([[1] * 7, [1] * 3 + [0] * 4])
WRONG = {"mean": lambda x, real: x.mean(1), "max": lambda x, real: x.amax(1), "sum": lambda x, real: x.sum(1)}
RIGHT = {
    "tokens": lambda x, real: x,
    "first": lambda x, real: x[:, 0],
    "mean of real tokens": lambda x, real: (x * real[..., None]).sum(1) / real.sum(1, keepdim=True),
}


class Classifier(nn.Module):
    """Of ids with a mask, or of ids of which 0 is padding."""

    def __init__(self, read: Read) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.table, self.layers, self.read = nn.Embedding(20, 8), nn.TransformerEncoder(layer, 2), read

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


@pytest.mark.parametrize("by_ids", [False, True])
@pytest.mark.parametrize("example", [PADDED, torch.ones_like(PADDED)], ids=["padded", "whole"])
@pytest.mark.parametrize("read", WRONG.values(), ids=WRONG)
def test_outputs_made_of_padding_are_refused(read: Read, example: Tensor, by_ids: bool) -> None:
    with pytest.raises(tersor.CaptureError, match=r"fused layers .*set_fastpath_enabled\(False\) first"):
        capture(Classifier(read).eval(), inputs(example, by_ids))


@pytest.mark.parametrize("by_ids", [False, True])
@pytest.mark.parametrize("read", RIGHT.values(), ids=RIGHT)
def test_what_reads_real_tokens_is_what_the_model_gives(read: Read, by_ids: bool) -> None:
    model = Classifier(read).eval()
    program = capture(model, inputs(torch.ones_like(PADDED), by_ids))
    assert not program.notes.get("capture")
    given = inputs(PADDED, by_ids)
    with torch.no_grad():
        want = model(**given)
    got = program(**given)
    real = PADDED.bool() if want.dim() == 3 else slice(None)
    torch.testing.assert_close(got[real], want[real])


def test_without_them_the_layers_decide() -> None:
    model = Classifier(lambda x, real: x.mean(1)).eval()
    torch.backends.mha.set_fastpath_enabled(False)
    program = capture(model, inputs(torch.ones_like(PADDED), False))
    given = inputs(PADDED, False)
    with torch.no_grad():
        torch.testing.assert_close(program(**given), model(**given))


def test_a_sample_alone_may_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tersor.ir.capture.fused_layers.hiding", lambda _: ())
    model, whole = Classifier(lambda x, real: x.mean(1)).eval(), inputs(torch.ones_like(PADDED), False)
    (note,) = capture(model, whole).notes["capture"]
    assert "no inputs were found on which tokens are hidden" in note
    with pytest.raises(tersor.CaptureError, match="fused layers"):
        capture(model, whole, samples=lambda program: [program.bind(**inputs(PADDED, False))])


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
    model = Told(says).eval()
    with pytest.raises(tersor.CaptureError, match="fused layers"):
        capture(model, {"ids": torch.randint(3, 20, (2, 7)), "told": told})


LAYOUTS = {
    "channels first": lambda x, real: x.transpose(1, 2),
    "tags": lambda x, real: x.argmax(-1),
    "normal": lambda x, real: torch.nn.functional.normalize(x, dim=-1),
    "all in a row": lambda x, real: x.flatten(0, 1),
    "all but the first": lambda x, real: x[:, 1:],
    "tokens and the first": lambda x, real: (x, x[:, 0]),
}


@pytest.mark.parametrize("by_ids", [False, True])
@pytest.mark.parametrize("example", [PADDED, torch.ones_like(PADDED)], ids=["padded", "whole"])
@pytest.mark.parametrize("read", LAYOUTS.values(), ids=LAYOUTS)
def test_outputs_of_tokens_are_captured_in_any_layout(read: Read, example: Tensor, by_ids: bool) -> None:
    torch.manual_seed(0)
    model = Classifier(read).eval()
    program = capture(model, inputs(example, by_ids))
    given = inputs(torch.ones(2, 11).long(), by_ids)
    with torch.no_grad():
        torch.testing.assert_close(program(**given), model(**given))


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
    model = Causal(RIGHT["tokens"]).eval()
    program = capture(model, inputs(torch.ones_like(PADDED), by_ids))
    given = inputs(PADDED, by_ids)
    with torch.no_grad():
        torch.testing.assert_close(program(**given)[PADDED.bool()], model(**given)[PADDED.bool()])
