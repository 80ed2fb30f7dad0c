"""What numbers the inputs of a Program may hold: read off the Program, saved, and checked before a target runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from tersor.ir.errors import InputError
from tersor.ir.fillers import rows_of_fillers, runs_of
from tersor.ir.program import Program, TensorSpec

from .index_limits import index_limits

# Runs of numbers that a message tells.
_TOLD = 6
Reason = Literal["embedding", "mask", "no token"]

_WHY: dict[Reason, str] = {
    "embedding": "rows of an embedding; give ids of the tokenizer that belongs to the model",
    "mask": "beyond that the model's own code makes no mask of it; give 0 and 1, for instance (mask != 0).long()",
    "no token": "attention sees nothing of it, and the model's own code makes something else of it; leave the row out, "
    "or let it have a token",
}


@dataclass(frozen=True)
class InputDomain:
    """What one input may hold.

    Attributes:
        low, high: smallest and largest number; None where nothing bounds them.
        fillers: of an input ``[batch, ..., tokens]``, the numbers that no row may be made of alone.
    """

    input: str
    low: int | None
    high: int | None
    reason: Reason
    fillers: tuple[int, ...] = ()

    def check(self, value: Tensor) -> None:
        """Raise InputError with input, number, place, reason and mend where ``value`` holds something else."""
        if self.fillers:
            empty = rows_of_fillers(value, self.fillers)
            if bool(empty.any()):
                row = "[" + ", ".join(map(str, empty.nonzero()[0].tolist())) + "]"
                told = _told(self.fillers)
                raise InputError(
                    f"row {row} of input {self.input!r} holds nothing but {told} ({_WHY[self.reason]})"
                )
        low, high = (int(bound) for bound in value.aminmax())
        too_low = self.low is not None and low < self.low
        if not too_low and (self.high is None or high <= self.high):
            return
        wrong = low if too_low else high
        place = (value == wrong).nonzero()[0].tolist()
        raise InputError(
            f"input {self.input!r} is {wrong} at {place}; the model takes {self._range()} there ({_WHY[self.reason]})"
        )

    def _range(self) -> str:
        if self.low is None:
            return f"{self.high} or less"
        return f"{self.low} or more" if self.high is None else f"{self.low} to {self.high}"


def _told(numbers: Sequence[int]) -> str:
    """The first of many numbers, and how many more there are."""
    texts: list[str] = []
    left = len(numbers)
    for low, high in runs_of(numbers)[:_TOLD]:
        texts += [f"{low} to {high}"] if high > low + 1 else map(str, sorted({low, high}))
        left -= high - low + 1
    return " and ".join([*texts, f"{left} more numbers"] if left else texts)


def input_domains(program: Program) -> tuple[InputDomain, ...]:
    """Inputs that number rows of embeddings, masks whose meaning is proved for some numbers, and rows of no token."""
    rows = (InputDomain(name, 0, limit - 1, "embedding") for name, limit in index_limits(program).items())
    masks = (InputDomain(name, low, high, "mask") for name, (low, high) in program.domains.items())
    fillers = (
        InputDomain(name, None, None, "no token", found)
        for name, sets in program.fillers.items()
        for found in sets
    )
    return (*rows, *masks, *fillers)


def check_inputs(inputs: Mapping[str, Tensor], domains: Iterable[InputDomain]) -> None:
    """See that inputs are within their domains.

    Torch says which operator failed and not which input, ONNX takes -1 for the last row without a word, and nothing
    fails at a 2 in a mask whose meaning is proved for zeros and ones.  Values on another device are left alone:
    reading them would make every run wait for it.

    Raises:
        InputError: a value is outside; the message names the input, the value, its place, the range and the mend.
    """
    for domain in domains:
        value = inputs[domain.input]
        if value.device.type == "cpu" and value.numel():
            domain.check(value)


def encode_domains(domains: Iterable[InputDomain]) -> list[dict[str, Any]]:
    """``domains`` as JSON takes them."""
    return [asdict(domain) for domain in domains]


def decode_domains(data: Any, specs: Iterable[TensorSpec]) -> tuple[InputDomain, ...]:
    """The inverse of :func:`encode_domains`.

    Raises:
        ValueError, KeyError, TypeError: ``data`` is no such list, or names an input that ``specs`` do not have.
    """
    names = {spec.name for spec in specs}
    domains = []
    for item in data:
        low, high = _bound(item["low"]), _bound(item["high"])
        domain = InputDomain(str(item["input"]), low, high, item["reason"], tuple(map(int, item["fillers"])))
        if domain.input not in names or domain.reason not in get_args(Reason):
            raise ValueError(f"domain of an unknown input or kind: {domain}")
        domains.append(domain)
    return tuple(domains)


def _bound(value: Any) -> int | None:
    return None if value is None else int(value)
