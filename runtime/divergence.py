"""Where two token sequences part, and whether the logits there were equal but for rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

# Logits behind a sequence of tokens, [vocabulary].
Logits = Callable[[Sequence[int]], Tensor]


@dataclass(frozen=True)
class Divergence:
    """The first place at which two sequences differ.

    Attributes:
        place: how many new tokens agree before it.
        tokens: the two that follow there, the reference's first; None where one of them ends, which is no tie.
        margin: by how much the reference's logits prefer its own token.
        rounding: by how much the reference's logits differ from themselves, computed together with others.
        difference: by how much ours differ from them; None where we have none.
    """

    place: int
    tokens: tuple[int | None, int | None]
    margin: float
    rounding: float
    difference: float | None = None

    @property
    def is_tie(self) -> bool:
        """Whether rounding explains it: each of the two logits may be off by as much as any is.

        Where the reference prefers the other token by more, what it chose is not what its logits say.
        """
        return None not in self.tokens and abs(self.margin) <= 2 * self.rounding

    def __str__(self) -> str:
        if None in self.tokens:
            goes_on, ends = (
                ("the model", "what is compared")
                if self.tokens[1] is None
                else ("what is compared", "the model")
            )
            return f"token {self.place}: {ends} ends there, {goes_on} goes on: no tie"
        what = "a tie" if self.is_tie else "no tie"
        told = "" if self.difference is None else f"; ours differ by up to {self.difference:.3g}"
        return (
            f"token {self.place}: {self.tokens[0]} and {self.tokens[1]}, margin {self.margin:.3g} where rounding moves "
            f"logits by up to {self.rounding:.3g}: {what}{told}"
        )


def first_divergence(
    prompt: Sequence[int],
    expected: Sequence[int],
    found: Sequence[int],
    reference: Logits,
    again: Logits,
    ours: Logits | None = None,
) -> Divergence | None:
    """Where ``found`` leaves ``expected``, or one of them ends before the other; None where they are the same.

    Args:
        expected, found: new tokens behind ``prompt``, of the reference and of what is compared with it.
        reference: the logits from which ``expected`` was chosen as the most likely.
        again: the same by the same model, computed with more rows or tokens beside it.  What is compared has no part
            in this: what it does wrong must not pass for rounding.
        ours: the logits of what is compared, where it has any.
    """
    for place, (want, got) in enumerate(zip_longest(expected, found)):
        if want == got:
            continue
        if want is None or got is None:
            return Divergence(place, (want, got), math.inf, 0.0)
        before = [*prompt, *expected[:place]]
        theirs, same = (side(before).float() for side in (reference, again))
        difference = None if ours is None else float((theirs - ours(before).float()).abs().max())
        # Two runs may happen to agree to the last bit, which says nothing of a third.
        least = torch.finfo(torch.float32).eps * float(theirs.abs().max())
        return Divergence(
            place,
            (want, got),
            float(theirs[want] - theirs[got]),
            max(least, float((theirs - same).abs().max())),
            difference,
        )
    return None
