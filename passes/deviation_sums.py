"""What is added up of the differences between rows of one output and another's, a part at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Elements compared at a time: what is computed of them in float64 stays in cache, where all logits are gigabytes.
_CHUNK = 1 << 18
# What is the same on both sides and as large was written in for "none", as in masked logits: it would hide that the
# rest differs.
_FILLER = 1e4


@dataclass(frozen=True)
class Sums:
    """Sums over some rows of one sample; ``cosine_distance``, ``kl`` and ``agreeing`` are not yet divided by rows."""

    rows: int
    cosine_distance: float
    norm_squared: float
    gap_squared: float
    max_abs: float
    scale: float
    kl: float
    agreeing: float
    finite: bool

    @staticmethod
    def of(want: Tensor, got: Tensor, logits: bool) -> Sums:
        # Logits are hundreds of megabytes: every sweep over them that is left out here is seen in the compile time.
        if torch.equal(want, got):
            return Sums._of_equal(want, logits)
        exact = not want.is_floating_point()
        agreeing = float(_same_top(want, got).sum()) if logits else 0.0
        plain = within(want, _FILLER) and within(got, _FILLER)
        want, got = want.double(), got.double()
        gap, finite = got - want, True
        kept_want, kept_got = want, got
        if not plain:
            # Infinities that agree differ by nothing; their difference would be NaN.
            same = want == got
            gap.masked_fill_(same, 0.0)
            filler = same & ~(want.abs() < _FILLER)
            kept_want, kept_got = (
                want.masked_fill(filler | ~want.isfinite(), 0.0),
                got.masked_fill(filler, 0.0),
            )
            finite = bool((got.isfinite() | same).all())
        squares = torch.linalg.vecdot(kept_want, kept_want)
        if exact:
            distance = (gap != 0).double().mean(-1) if want.numel() else want.new_zeros(0)
        else:
            distance = _cosine_distance(
                torch.linalg.vecdot(kept_want, kept_got), squares, torch.linalg.vecdot(kept_got, kept_got)
            )
        kl = 0.0
        if logits:
            # A class that the reference excludes adds nothing to its row, and a row of no numbers nothing at all.
            counted = gap if plain else gap.masked_fill(want == -math.inf, 0.0)
            kl = float(_divergence(want, got, counted).nan_to_num(nan=0.0, posinf=math.inf).sum())
        return Sums(
            rows=want.shape[0],
            cosine_distance=float(distance.sum()),
            norm_squared=float(squares.sum()),
            gap_squared=float(torch.linalg.vecdot(gap, gap).sum()),
            max_abs=_magnitude(gap),
            scale=_magnitude(kept_want),
            kl=kl,
            agreeing=agreeing,
            finite=finite,
        )

    @staticmethod
    def _of_equal(values: Tensor, logits: bool) -> Sums:
        # The common case of exact passes, without the dozen sweeps that a difference takes.
        known = values.double()
        if not within(values, _FILLER):
            known = known.masked_fill(~(known.abs() < _FILLER), 0.0)
        return Sums(
            rows=values.shape[0],
            cosine_distance=0.0,
            norm_squared=float(torch.linalg.vecdot(known, known).sum()),
            gap_squared=0.0,
            max_abs=0.0,
            scale=_magnitude(known),
            kl=0.0,
            agreeing=float(values.shape[0]) if logits else 0.0,
            finite=True,
        )


def summed(want: Tensor, got: Tensor, logits: bool) -> list[Sums]:
    """Of rows ``[rows, features]`` that are wanted and were got, a part at a time."""
    return [Sums.of(*chunk, logits) for chunk in zip(_chunks(want), _chunks(got), strict=True)]


def within(value: Tensor, bound: float) -> bool:
    """Whether every magnitude is below ``bound``; takes no second tensor of that size, too large for logits."""
    if not value.numel() or not value.is_floating_point():
        return True
    low, high = value.aminmax()
    return bool((low > -bound) & (high < bound))


def _chunks(rows: Tensor) -> tuple[Tensor, ...]:
    return torch.split(rows, max(1, _CHUNK // max(1, rows.shape[-1])))


def _magnitude(value: Tensor) -> float:
    """The largest magnitude; NaN where a value is."""
    if not value.numel():
        return 0.0
    low, high = value.aminmax()
    return max(-float(low), float(high)) if not low.isnan() else math.nan


def _cosine_distance(product: Tensor, want: Tensor, got: Tensor) -> Tensor:
    """``1 - cos`` of every row; 0 between two zero vectors, 1 between a zero vector and another.

    Args:
        product: the two vectors' products; and each one's with itself.
    """
    cosine: Tensor = product / (want.sqrt() * got.sqrt()).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where((want == 0) & (got == 0), 0.0, (1.0 - cosine).clamp(min=0.0))


def _same_top(want: Tensor, got: Tensor) -> Tensor:
    """Whether the reference's most likely class is one of the most likely, of every row."""
    return got.take_along_dim(want.argmax(-1, keepdim=True), -1).squeeze(-1) == got.amax(-1)


def _divergence(want: Tensor, got: Tensor, gap: Tensor) -> Tensor:
    """KL of the distributions that rows of logits predict, from the reference's; ``gap`` is ``got - want``.

    The difference of two log-probabilities is that of the logits and of the rows' normalisers.
    """
    high = want.amax(-1, keepdim=True)
    weight = (want - high).exp_()
    total = weight.sum(-1)
    shift = torch.linalg.vecdot(weight, gap) / total
    divergence: Tensor = got.logsumexp(-1) - (total.log() + high.squeeze(-1)) - shift
    return divergence
