"""How far a rewritten Program's outputs are from those of the one it came from, measured on data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, overload

import torch
from torch import Tensor

from tersor.ir.analyses.real_tokens import padding_inputs, real_tokens, take_real
from tersor.ir.analyses.rounding import rounding_allowances
from tersor.ir.program import Program

from .contract import KEPT_INDEX
from .deviation_sums import Sums, summed, within

# Bytes of outputs that a reference holds on to: logits of a large vocabulary are a gigabyte for a thousand tokens.
_MOST_HELD = 2 << 30

Inputs = Mapping[str, Tensor]
Outputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class OutputDeviation:
    """One named output, over all samples; padding is left out.

    Attributes:
        cosine_distance: mean of ``1 - cos`` over positions; of integer outputs the share that differs.
        relative_l2: ``|got - want| / |want|`` over the whole output.
        max_abs: largest absolute difference.
        rounding: largest absolute difference over the largest magnitude and the allowance for reordered sums of the
            coarsest dtype that the reference computes the output in; at most 1 when the outputs agree to rounding.
        kl: mean divergence of the predicted distribution from the reference's, in nats; logits only.
        top1_agreement: share of positions with the same most likely token; logits only.
        finite: whether every value is finite wherever the reference is.
    """

    name: str
    cosine_distance: float
    relative_l2: float
    max_abs: float
    rounding: float
    kl: float | None
    top1_agreement: float | None
    finite: bool


@dataclass(frozen=True)
class Deviation:
    """Deviation of every comparable output; ``not_compared`` are outputs that are missing or of another shape.

    An output of the kept tokens only is compared with those tokens of the reference's, as ``kept_index`` says.
    """

    outputs: tuple[OutputDeviation, ...]
    samples: int
    not_compared: tuple[str, ...] = ()

    @property
    def overall(self) -> float:
        """Mean cosine distance over the outputs; infinite when a value is not finite or nothing can be compared."""
        if not self.outputs or not self.finite:
            return math.inf
        return sum(output.cosine_distance for output in self.outputs) / len(self.outputs)

    @property
    def finite(self) -> bool:
        return all(output.finite for output in self.outputs)

    @property
    def is_rounding(self) -> bool:
        """Whether all outputs are there and agree to rounding."""
        within = all(output.finite and output.rounding <= 1.0 for output in self.outputs)
        return bool(self.outputs) and not self.not_compared and within

    @property
    def top1_agreement(self) -> float | None:
        """Smallest agreement over the outputs that are logits; None when none is."""
        known = [o.top1_agreement for o in self.outputs if o.top1_agreement is not None]
        return min(known, default=None)

    def to_json(self) -> dict[str, Any]:
        return {"overall": self.overall, **asdict(self)}


class Reference:
    """Outputs of a Program on calibration inputs, for others to be compared with."""

    def __init__(self, program: Program, samples: Sequence[Inputs]) -> None:
        self.program = program
        self.samples = [program.bind(**sample) for sample in samples]
        self.outputs: Sequence[Outputs] = _Returned(program, self.samples)
        self._real = [real_tokens(program, sample) for sample in self.samples]
        self._last: tuple[Iterable[Outputs], Deviation] | None = None

    def compare(self, program: Program) -> Deviation:
        """Deviation of ``program``, whose inputs are the same, from this reference."""
        return self.compare_outputs(_named_outputs(program, sample) for sample in self.samples)

    def compare_outputs(self, outputs: Iterable[Outputs]) -> Deviation:
        """Deviation of outputs by name, one mapping a sample, that were computed elsewhere.

        They are asked for one after another, and none is held on to: together they may be larger than memory.
        """
        # The last pass and the whole pipeline are asked about the same outputs.
        if self._last is None or self._last[0] is not outputs:
            self._last = outputs, self._compared(outputs)
        return self._last[1]

    def _compared(self, outputs: Iterable[Outputs]) -> Deviation:
        logits = {spec.name: is_logits(self.program, spec.name) for spec in self.program.returned}
        sums: dict[str, list[Sums]] = {name: [] for name in logits}
        for want, got, real in zip(self.outputs, outputs, self._real, strict=True):
            for name in list(sums):
                pair = _lined_up(name, want, got, real.get(name))
                if pair is None:
                    del sums[name]
                else:
                    sums[name] += summed(*pair, logits[name])
        allowances = rounding_allowances(self.program)
        compared = [_total(name, parts, logits[name], allowances[name]) for name, parts in sums.items()]
        missing = tuple(name for name in logits if name not in sums)
        return Deviation(tuple(compared), len(self.samples), missing)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not compared, as it is taken for padding: a line for all outputs that one input tells it of."""
        lines: dict[str, None] = {}
        for name, inputs in padding_inputs(self.program).items():
            masks = [real[name] for real in self._real]
            hidden = 1 - sum(int(mask.sum()) for mask in masks) / max(1, sum(mask.numel() for mask in masks))
            if hidden:
                told = " and ".join(map(repr, inputs)) or "the model"
                lines[
                    f"outputs are compared at the tokens that {told} lets attention see: the others ({hidden:.1%}) "
                    "are taken for padding"
                ] = None
        return tuple(lines)

    @property
    def finite(self) -> bool:
        """Whether the reference itself is finite; without that nothing can be compared with it."""
        return all(
            within(_rows(value, real.get(name)), math.inf)
            for sample, real in zip(self.outputs, self._real, strict=True)
            for name, value in sample.items()
        )


class _Returned(Sequence[Outputs]):
    """What a Program returns for every sample: held as far as there is room, else computed whenever it is asked for."""

    def __init__(self, program: Program, samples: Sequence[Inputs]) -> None:
        """Raises what the Program raises on any of them."""
        self._program, self._samples = program, samples
        self._held: dict[int, Outputs] = {}
        room = _MOST_HELD
        for number, sample in enumerate(samples):
            outputs = _named_outputs(program, sample)
            size = sum(value.nbytes for value in outputs.values())
            if size <= room:
                room -= size
                self._held[number] = {name: _by_itself(value) for name, value in outputs.items()}

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, place: int) -> Outputs: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Outputs]: ...
    def __getitem__(self, place: int | slice) -> Outputs | Sequence[Outputs]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        number = range(len(self))[place]
        held = self._held.get(number)
        return _named_outputs(self._program, self._samples[number]) if held is None else held


def _by_itself(value: Tensor) -> Tensor:
    """``value``, without what it is a small part of."""
    return value.clone() if value.untyped_storage().nbytes() > 2 * value.nbytes else value


def is_logits(program: Program, output: str) -> bool:
    """Whether an output ``[..., classes]`` holds scores over a vocabulary or over classes, by its width or its name.

    The width is that of the vocabulary; or the field's name begins or ends with ``logits``, as in Hugging Face's
    output classes (``start_logits``, ``logits_per_image``).  Nothing in a graph tells scores from an embedding, which
    is a product with weights too.  One score alone is no distribution.
    """
    spec = next(spec for spec in program.outputs if spec.name == output)
    # An entry of a tuple is called by its place, behind the field that holds the tuple.
    field = next((part for part in reversed(output.split(".")) if not part.isdecimal()), "")
    vocabulary = program.facts.config.get("vocab_size")
    return (
        spec.dtype.is_floating_point
        and len(spec.shape) >= 2
        and spec.shape[-1] != 1
        and (
            field.startswith("logits")
            or field.endswith("logits")
            or (vocabulary is not None and spec.shape[-1] == vocabulary)
        )
    )


def _named_outputs(program: Program, sample: Inputs) -> dict[str, Tensor]:
    return dict(zip((spec.name for spec in program.returned), program.run(sample), strict=True))


def _lined_up(name: str, want: Outputs, got: Outputs, real: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Rows of one output of the reference and of another Program; None where they cannot be held together."""
    expected, value = want[name], got.get(name)
    if value is None:
        return None
    if value.shape != expected.shape:
        kept = got.get(KEPT_INDEX)
        # The reference's own index says where its tokens came from, which is not where they are in its outputs.
        if kept is None or KEPT_INDEX in want or expected.dim() < 2 or not _indexes(kept, expected):
            return None
        if value.shape != (*kept.shape, *expected.shape[2:]):
            return None
        real = None if real is None else real.expand(expected.shape[:2]).gather(1, kept)
        index = kept.reshape(*kept.shape, *[1] * (expected.dim() - 2))
        expected = torch.take_along_dim(expected, index, 1)
    return _rows(expected, real), _rows(value, real)


def _indexes(kept: Tensor, full: Tensor) -> bool:
    """Whether ``kept [batch, kept]`` holds places in dim 1 of ``full [batch, tokens, ...]``."""
    if kept.dtype != torch.int64 or kept.dim() != 2 or not kept.numel() or kept.shape[0] != full.shape[0]:
        return False
    low, high = kept.aminmax()
    return bool(low >= 0) and bool(high < full.shape[1])


def _rows(value: Tensor, real: Tensor | None) -> Tensor:
    """Vectors to compare, ``[rows, features]``, without padding."""
    value = take_real(value, real)
    features = value.shape[-1] if value.dim() > 1 and value.shape[-1] > 1 else max(1, value.numel())
    return value.reshape(-1, features)


def _total(name: str, parts: Sequence[Sums], logits: bool, allowance: float) -> OutputDeviation:
    count = sum(p.rows for p in parts) or 1
    scale = max((p.scale for p in parts), default=0.0)
    max_abs = max((p.max_abs for p in parts), default=0.0)
    norm = math.sqrt(sum(p.norm_squared for p in parts))
    gap = math.sqrt(sum(p.gap_squared for p in parts))
    return OutputDeviation(
        name,
        cosine_distance=sum(p.cosine_distance for p in parts) / count,
        relative_l2=_ratio(gap, norm),
        max_abs=max_abs,
        rounding=_ratio(max_abs, scale * allowance),
        kl=sum(p.kl for p in parts) / count if logits else None,
        top1_agreement=sum(p.agreeing for p in parts) / count if logits else None,
        finite=all(p.finite for p in parts),
    )


def _ratio(part: float, whole: float) -> float:
    if math.isnan(part):
        return math.inf
    return part / whole if whole else (math.inf if part else 0.0)
