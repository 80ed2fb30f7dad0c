"""What analyses need to know of an operator, told where the operator is defined."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto


class Role(Enum):
    """What an operator does to tokens.

    ``ATTENDS``: attention.  ``query``, ``key`` and ``value`` come first; other operands are called as those of
    ``attention`` and ``attention_importance``, and one of another name is refused where tokens are to be reduced.
    The first result is ``[batch, heads, queries, value_dim]``, any further one ``[batch, heads, keys]``.

    ``CHOOSES``: says which tokens count, in scores or indices; nothing but a choice is made of the result.

    ``MOVES``: reduces or restores tokens: its results hold others, or more of them, than its content does.

    ``PLAIN``: nothing of these.
    """

    PLAIN = auto()
    ATTENDS = auto()
    CHOOSES = auto()
    MOVES = auto()


@dataclass(frozen=True)
class Traits:
    """Facts about an operator; operands are called by their names in its schema.

    Attributes:
        role: what it does to tokens.
        content: the operands whose content is in the result, the others only steer; empty where all are.
            ``MOVES`` has exactly one, ``[batch, tokens, ...]``, which ``dim`` may change.
        taken: the result is entries of its content, as they are: no more of it is read, and a bound still holds.
        index: of what moves, the int64 ``[batch, kept]`` that says which token of the content each column stands for.
        dim: the operand that says which dim holds the tokens, in content and results; dim 1 where there is none.
        onto: of what moves, the operand whose tokens the result has, at the dims where they are there.
    """

    role: Role = Role.PLAIN
    content: tuple[str, ...] = ()
    taken: bool = False
    index: str | None = None
    dim: str | None = None
    onto: str | None = None

    def names(self) -> Iterator[str]:
        """Every operand that is named."""
        yield from self.content
        yield from (name for name in (self.index, self.dim, self.onto) if name is not None)


PLAIN = Traits()
ATTENTION = Traits(Role.ATTENDS, content=("query", "key", "value"))
CHOICE = Traits(Role.CHOOSES)
