"""The rows of the example: one alone is repeated, as a traced size of one is fixed, unless the model takes no other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .dims import BATCH, Dims, dynamic_dims

ROWS = 2
_APART = "the model does something else for a row alone than for several: give an example of two rows or more for those"


class OneRowApartError(Exception):
    """A row alone, such as the example is, is something else to the model than to the Program that takes several."""


@dataclass(frozen=True)
class Example:
    """Inputs to capture with.

    Attributes:
        dims: those that may vary, by input.
        why_one: why it has one row, which is all that the Program will take; empty where it may take more.
    """

    inputs: Mapping[str, Tensor]
    dims: Dims
    why_one: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """One line where the batch is fixed."""
        return (f"the batch is fixed at 1, the example's: {self.why_one}",) if self.why_one else ()


def examples(
    inputs: Mapping[str, Tensor],
    dynamic: Any,
    tokens_first: bool,
    suggested: bool = False,
    apart: bool = False,
) -> list[Example]:
    """What to capture with: the first that the model takes.

    Args:
        dynamic: what ``capture`` was told; a batch of one is repeated where it is to vary.
        tokens_first: whether rows are counted by the second dim.
        suggested: whether nobody gave the inputs, so that one row of them would do.
        apart: whether the model is known to do something else for a row alone, which is what is wanted.
    """
    first, place = next(iter(inputs)), int(tokens_first)
    dims = dynamic_dims(inputs, dynamic, tokens_first)
    rows = inputs[first].shape[place] if inputs[first].dim() > place else 0
    if place not in dims[first] or rows != 1:
        found = [Example(inputs, dims)]
        if suggested:
            one = {name: value.narrow(place, 0, 1) for name, value in inputs.items()}
            found.append(_alone(one, "the model rejects an example of more rows", dynamic, tokens_first))
        return found
    two = {
        name: value.repeat_interleave(ROWS, place)
        if value.dim() > place and value.shape[place] == 1
        else value
        for name, value in inputs.items()
    }
    several = Example(two, dynamic_dims(two, dynamic, tokens_first))
    if apart:
        return [_alone(inputs, _APART, dynamic, tokens_first)]
    return [several, _alone(inputs, f"the model rejects it with {ROWS} such rows", dynamic, tokens_first)]


def _alone(inputs: Mapping[str, Tensor], why: str, dynamic: Any, tokens_first: bool) -> Example:
    dims = {
        name: {dim: label for dim, label in named.items() if label != BATCH}
        for name, named in dynamic_dims(inputs, dynamic, tokens_first).items()
    }
    return Example(inputs, dims, why)
