"""Where two token sequences part, and whether the logits there were equal but for rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

# Logits behind a sequence of tokens, [vocabulary].
Logits = Callable[[Sequence[int]], Tensor]


@dataclass(frozen=True)
class Divergence:
    """The first place at which two sequences differ.

    Attributes:
        place: how many new tokens agree before it.
        tokens: the two that follow there, the reference's first.
        margin: by how much the reference's logits prefer its own token.
        rounding: the largest difference of the two sides' logits there.
    """

    place: int
    tokens: tuple[int, int]
    margin: float
    rounding: float

    @property
    def is_tie(self) -> bool:
        """Whether rounding explains it: each of the two logits may be off by as much as any is."""
        return self.margin <= 2 * self.rounding

    def __str__(self) -> str:
        what = "a tie" if self.is_tie else "no tie"
        return (
            f"token {self.place}: {self.tokens[0]} and {self.tokens[1]}, margin {self.margin:.3g} where logits differ "
            f"by up to {self.rounding:.3g}: {what}"
        )


def first_divergence(
    prompt: Sequence[int], expected: Sequence[int], found: Sequence[int], reference: Logits, ours: Logits
) -> Divergence | None:
    """Where ``found`` leaves ``expected``; None where it does not.

    Args:
        expected, found: new tokens behind ``prompt``, of the reference and of what is compared with it.
        reference, ours: the logits of both, from which the tokens were chosen as the most likely.
    """
    for place, (want, got) in enumerate(zip(expected, found, strict=False)):
        if want == got:
            continue
        before = [*prompt, *expected[:place]]
        theirs, mine = reference(before).double(), ours(before).double()
        return Divergence(
            place, (want, got), float(theirs[want] - theirs[got]), float((theirs - mine).abs().max())
        )
    return None
