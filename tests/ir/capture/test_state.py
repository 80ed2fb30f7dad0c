"""A model is left as it was found, whatever its tensors are stored as and however the capture ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.capture.state import inference_state
from tersor.ir.errors import CaptureError, InputError

EXAMPLE = torch.randn(2, 4, 4)


class Adjacent(nn.Module):
    """``[batch, 4, 4]`` times a matrix that is held as ``kind`` says, or left aside."""

    adj: Tensor

    def __init__(self, adj: Tensor, kind: str = "buffer", used: bool = True) -> None:
        super().__init__()
        if kind == "buffer":
            self.register_buffer("adj", adj)
        elif kind == "parameter":
            self.adj = nn.Parameter(adj)
        else:
            self.adj = adj
        self.used = used

    def forward(self, x: Tensor) -> Tensor:
        return (self.adj @ x[0])[None] if self.used else x * 2


class Counts(nn.Module):
    """Writes to its buffer before it calls ``inner``, which comes first among the modules."""

    count: Tensor

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.after = nn.Module()
        self.after.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        self.after.count += 1
        return self.inner(x)


SPARSE = [torch.eye(4).to_sparse(), torch.eye(4).to_sparse_csr()]


@pytest.mark.parametrize("kind", ["buffer", "parameter", "attribute"])
@pytest.mark.parametrize("adj", SPARSE, ids=["coo", "csr"])
def test_a_sparse_weight_that_is_used_is_refused_by_name(adj: Tensor, kind: str) -> None:
    with pytest.raises(
        CaptureError, match=rf"the {kind} 'adj' is sparse .* at {__file__}:\d+ .*\.to_dense\(\)"
    ):
        capture(Adjacent(adj, kind), {"x": EXAMPLE})


@pytest.mark.parametrize("kind", ["buffer", "parameter", "attribute"])
@pytest.mark.parametrize("adj", SPARSE, ids=["coo", "csr"])
def test_a_sparse_weight_that_nothing_reads_is_left_out(adj: Tensor, kind: str) -> None:
    program = capture(Adjacent(adj, kind, used=False), {"x": EXAMPLE})
    assert not program.weights


@pytest.mark.parametrize("adj", SPARSE, ids=["coo", "csr"])
def test_buffers_behind_a_sparse_one_are_put_back(adj: Tensor) -> None:
    model = Counts(Adjacent(adj))
    with pytest.raises(CaptureError):
        capture(model, {"x": EXAMPLE})
    assert model.after.count == 0


def test_a_sparse_buffer_that_a_call_wrote_to_is_put_back() -> None:
    model = Adjacent(torch.eye(4).to_sparse())
    with inference_state(model):
        model.adj.mul_(3)
    assert torch.equal(model.adj.to_dense(), torch.eye(4))


def test_a_buffer_that_cannot_be_put_back_keeps_no_other_from_it() -> None:
    stubborn = Adjacent(torch.zeros(4).expand(4, 4))
    model = nn.Sequential(stubborn, nn.BatchNorm1d(4))

    def write() -> None:
        with inference_state(model):
            stubborn.adj.untyped_storage().fill_(1)
            model[1].running_mean += 1

    with pytest.raises(RuntimeError):
        write()
    assert model[1].running_mean.abs().sum() == 0
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_model_without_values_is_one_clear_error() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with pytest.raises(InputError, match=r"device meta .*raised in 0 \(Linear\("):
        capture(model, {"input": EXAMPLE})


def test_an_archive_with_sparse_values_inside_still_loads(tmp_path: Path) -> None:
    class Within(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sparse.mm(x[0].to_sparse(), x[0])[None]

    path = tmp_path / "within.pt2"
    torch.export.save(torch.export.export(Within(), (EXAMPLE,)), path)
    torch.testing.assert_close(capture(path)(EXAMPLE), Within()(EXAMPLE))


class Rebuilding(nn.Module):
    """Takes other parts for good at the first short input, as BigBird does."""

    def __init__(self) -> None:
        super().__init__()
        self.part: nn.Module = nn.Linear(4, 4)
        self.short = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] <= 16:
            self.part = self.short
        result: Tensor = self.part(x)
        return result


def test_a_model_that_gives_itself_other_parts_is_captured_as_it_was_found_and_left_so() -> None:
    model = Rebuilding().eval()
    part, long = model.part, torch.randn(1, 20, 4)
    program = capture(model, {"x": torch.randn(2, 8, 4)})
    assert model.part is part
    assert program.ranges["tokens"] == (1, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(long), part(long))
    whole = capture(model, {"x": long})
    torch.testing.assert_close(whole(x=torch.randn(1, 18, 4)).shape, (1, 18, 4))
    assert whole.ranges["tokens"][0] == 17


def test_what_is_kept_by_a_size_is_named() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kept: dict[int, Tensor] = {}

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.shape[1]
            if tokens not in self.kept:
                self.kept[tokens] = torch.ones(tokens, tokens).tril()
            return self.kept[tokens] @ x

    with pytest.raises(CaptureError, match="keeps something by the size of its inputs"):
        capture(Keeps().eval(), {"x": torch.randn(2, 5, 4)})
