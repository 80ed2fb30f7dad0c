"""Kernels take the place of exactly the nodes they stand for, and the graph computes what it did."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tersor.codegen.triton import TritonExecutable
from tersor.ir.capture import capture
from tersor.ir.program import Program

SELECT_GATHER_NORM = ("select_gather_norm",)


def pick(scores: Tensor) -> Tensor:
    return torch.ops.tersor.select_tokens(scores, scores > -1.5, keep_per_mille=600, prefix=1)


def gather(x: Tensor, index: Tensor) -> Tensor:
    return torch.ops.tersor.gather_tokens(x, index, 1)


class WrittenNorm(nn.Module):
    """The root-mean-square norm as decoders write it; Gemma's adds 1 to the weight and casts after."""

    def __init__(self, gemma: bool) -> None:
        super().__init__()
        self.weight, self.gemma = nn.Parameter(torch.randn(12)), gemma

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        if self.gemma:
            return (normed * (1.0 + self.weight.float())).type_as(x)
        return self.weight * normed.to(x.dtype)


class NormAfterGather(nn.Module):
    def __init__(self, norm: nn.Module, residual: bool = False, positions: bool = False) -> None:
        super().__init__()
        self.norm, self.residual, self.positions = norm, residual, positions

    def forward(self, x: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        index = pick(scores)
        kept = gather(x, index)
        normed = self.norm(kept) + (kept if self.residual else 0)
        return (normed, index, gather(scores, index)) if self.positions else (normed,)


class TwoStreams(nn.Module):
    """One selection, two gathers; the second gathers what the first one changed."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(12)

    def forward(self, x: Tensor, scores: Tensor) -> Tensor:
        index = pick(scores)
        changed = torch.ops.tersor.scatter_tokens(x, index, gather(x, index) * 2)
        return self.norm(gather(changed, index))


class GatherOfItsOwnSelection(nn.Module):
    """What is gathered depends on the selection, so selecting cannot wait for the gather."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(12)

    def forward(self, x: Tensor, scores: Tensor) -> Tensor:
        index = pick(scores)
        return self.norm(gather(x + 0.01 * index.sum(1)[:, None, None], index))


class SelectionReadEarly(nn.Module):
    """The index is read before the gathered value exists."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(12, 12), nn.LayerNorm(12)

    def forward(self, x: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        index = pick(scores)
        early = gather(scores, index) * 2
        return self.norm(gather(self.linear(x), index)), early


class NormOfTheSecond(nn.Module):
    """One selection, two gathers, of which only the later one is normed."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(12)

    def forward(self, x: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        index = pick(scores)
        plain = gather(x, index) * 2
        return plain, self.norm(gather(x + 1, index))


def program_of(model: nn.Module, dtype: torch.dtype = torch.float32) -> Program:
    inputs = {"x": torch.randn(2, 11, 12, dtype=dtype), "scores": torch.randn(2, 11)}
    return capture(model.to(dtype).eval(), inputs, {name: {0: "batch", 1: "tokens"} for name in inputs})


def lowered_and_compared(program: Program, batch: int = 3, tokens: int = 17) -> TritonExecutable:
    """Lower, run at sizes other than the example's, compare with the Program itself."""
    executable = TritonExecutable(program)
    dtype = program.inputs[0].dtype
    inputs = {"x": torch.randn(batch, tokens, 12, dtype=dtype), "scores": torch.randn(batch, tokens)}
    for got, want in zip(executable.run(inputs), program.run(inputs), strict=True):
        torch.testing.assert_close(got, want, atol=2e-5, rtol=2e-5)
    return executable


def targets(executable: TritonExecutable) -> str:
    return str(executable._lowered.program.graph)


@pytest.mark.parametrize(("residual", "positions"), [(False, True), (True, False)])
@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm(12),
        nn.LayerNorm(12, elementwise_affine=False),
        nn.RMSNorm(12),
        WrittenNorm(False),
        WrittenNorm(True),
    ],
    ids=["layer", "bare", "rms", "written", "gemma"],
)
def test_selection_gather_and_norm_become_one_kernel(
    norm: nn.Module, residual: bool, positions: bool
) -> None:
    executable = lowered_and_compared(program_of(NormAfterGather(norm, residual, positions)))
    assert executable.kernels == SELECT_GATHER_NORM
    assert executable.fallbacks == ()
    left = targets(executable)
    assert not any(name in left for name in ("select_tokens", "layer_norm", "rms_norm", "aten.rsqrt"))
    assert left.count("tersor.gather_tokens") == positions
    assert f"gather: {residual}" in left


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm((3, 4)), nn.Identity(), nn.Softmax(dim=-1)], ids=["two dims", "none", "softmax"]
)
def test_without_a_norm_of_the_rows_selection_and_gather_become_one_kernel(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Unflatten(2, (3, 4)), norm) if isinstance(norm, nn.LayerNorm) else norm
    executable = lowered_and_compared(program_of(NormAfterGather(model)))
    assert executable.kernels == SELECT_GATHER_NORM
    assert "norm:" not in targets(executable)


def test_a_second_gather_takes_only_its_norm_along() -> None:
    executable = lowered_and_compared(program_of(TwoStreams()))
    assert executable.kernels == SELECT_GATHER_NORM * 2
    assert "layer_norm" not in targets(executable).replace("norm: layer", "")


def test_a_selection_goes_with_the_gather_that_is_normed() -> None:
    executable = lowered_and_compared(program_of(NormOfTheSecond()))
    assert executable.kernels == SELECT_GATHER_NORM
    left = targets(executable)
    assert ("tersor.select_tokens" in left, left.count("tersor.gather_tokens")) == (False, 1)


def test_a_selection_that_the_gathered_value_needs_stays_where_it_is() -> None:
    executable = lowered_and_compared(program_of(GatherOfItsOwnSelection()))
    assert executable.kernels == SELECT_GATHER_NORM
    assert "tersor.select_tokens" in targets(executable)


def test_readers_of_the_index_move_behind_the_kernel() -> None:
    executable = lowered_and_compared(program_of(SelectionReadEarly()))
    assert executable.kernels == SELECT_GATHER_NORM
    assert "tersor.select_tokens" not in targets(executable)


def test_lowering_leaves_the_program_as_it_was() -> None:
    program = program_of(NormAfterGather(nn.LayerNorm(12)))
    before = str(program.graph)
    TritonExecutable(program)
    assert str(program.graph) == before


def test_a_dtype_that_no_kernel_takes_runs_the_reference_and_is_reported() -> None:
    executable = lowered_and_compared(program_of(NormAfterGather(nn.LayerNorm(12)), torch.float64))
    assert executable.kernels == ()
    (fallback,) = executable.fallbacks
    assert "float64" in fallback.reason
    assert fallback.node in targets(executable)


def test_a_size_that_no_kernel_takes_runs_the_reference_and_is_reported_after_the_run() -> None:
    executable = TritonExecutable(program_of(NormAfterGather(nn.LayerNorm(12))))
    assert executable.fallbacks == ()
    inputs = {"x": torch.randn(1, 20_000, 12), "scores": torch.randn(1, 20_000)}
    for _ in range(2):
        (got,) = executable.run(inputs)
    torch.testing.assert_close(got, executable.program.run(inputs)[0], atol=2e-5, rtol=2e-5)
    (fallback,) = executable.fallbacks
    assert "20000 tokens" in fallback.reason


def test_what_was_saved_runs_the_same(tmp_path: Path) -> None:
    program = program_of(NormAfterGather(nn.LayerNorm(12)))
    executable = TritonExecutable(program)
    executable.save(tmp_path)
    loaded = TritonExecutable.load(tmp_path)
    inputs = {"x": torch.randn(1, 5, 12), "scores": torch.randn(1, 5)}
    assert loaded.kernels == executable.kernels
    assert loaded.inputs == executable.inputs
    assert all(torch.equal(a, b) for a, b in zip(loaded.run(inputs), executable.run(inputs), strict=True))
