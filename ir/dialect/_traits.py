"""What analyses and passes need to know of an operator, told where the operator is defined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Literal


class Role(Enum):
    """What an operator does to tokens.

    ``ATTENDS``: attention.  Its first three operands, query, key and value, are its content; ``Traits.attends`` says
    what every other argument means, and one that it leaves out is refused where tokens are to be reduced.
    The first result is ``[batch, heads, queries, value_dim]``, any further one ``[batch, heads, keys]``.

    ``CHOOSES``: says which tokens count, in scores or indices; nothing but a choice is made of the result.

    ``MOVES``: reduces or restores tokens: its results hold others, or more of them, than its content does.

    ``PLAIN``: nothing of these.
    """

    PLAIN = auto()
    ATTENDS = auto()
    CHOOSES = auto()
    MOVES = auto()


class Dim(Enum):
    """What a dim of an operand of attention has one entry for, or one for all."""

    BATCH = auto()
    QUERIES = auto()
    KEYS = auto()
    OTHER = auto()


# The dims of an operand; one that is given with fewer lines up from the last, as broadcasting does.
Layout = tuple[Dim, ...]
Meaning = Literal["mask", "padding", "query_positions", "key_positions", "sinks"]
_LAYOUTS: dict[Meaning, Layout] = {
    "mask": (Dim.BATCH, Dim.OTHER, Dim.QUERIES, Dim.KEYS),
    "padding": (Dim.BATCH, Dim.KEYS),
    "query_positions": (Dim.BATCH, Dim.QUERIES),
    "key_positions": (Dim.BATCH, Dim.KEYS),
    "sinks": (Dim.OTHER,),
}


@dataclass(frozen=True)
class Attends:
    """What the arguments of an attention operator mean, all but query, key and value; called by their schema names.

    Attributes:
        mask: added to the logits, or bool and true where a key is seen; ``[batch, heads, queries, keys]``.
        padding: bool ``[batch, keys]``, false where a key is hidden from every query.
        query_positions, key_positions: int64 ``[batch or 1, tokens]``, by which ``causal`` and ``window`` go; the
            index where absent.
        sinks: ``[heads]`` logits that carry no value.
        causal: the attribute that hides keys at later positions when true; True where every call hides them.
        window: the attribute that, above 0, hides keys by how far from the query or in which block they are; True
            where every call does, at whatever values.
        lines_up: the dims of each operand of its own; those with queries or keys begin with the batch.  What hides
            padding is none of them, but ``mask`` or ``padding``.
        numbers: what holds numbers of tokens, which name others once tokens are gone: refused where it is given.
        harmless: what says nothing of tokens, such as a scale or a softcap.
        rows_by: the operator that gives the probabilities of some queries, by the same names of arguments; None where
            there is none.
        importance_by: the operator that computes the same, and importance beside it, from ``query_weights`` behind
            the value and otherwise the same arguments; None where there is none.
    """

    mask: str | None = None
    padding: str | None = None
    query_positions: str | None = None
    key_positions: str | None = None
    sinks: str | None = None
    causal: str | bool = False
    window: str | bool = False
    lines_up: Mapping[str, Layout] = field(default_factory=dict)
    numbers: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ()
    rows_by: str | None = None
    importance_by: str | None = None

    def operand(self, meaning: Meaning) -> str | None:
        """What the schema calls the operand of a meaning; None where the operator takes none."""
        name: str | None = getattr(self, meaning)
        return name

    def layouts(self) -> dict[str, Layout]:
        """The dims of every operand that may line up with tokens, by its name."""
        called = ((self.operand(meaning), layout) for meaning, layout in _LAYOUTS.items())
        return {name: layout for name, layout in called if name is not None} | dict(self.lines_up)

    def names(self) -> Iterator[str]:
        """Every argument that is declared."""
        yield from self.layouts()
        yield from (name for name in (self.causal, self.window) if isinstance(name, str))
        yield from (*self.numbers, *self.harmless)


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
        attends: of attention, what its arguments beside the content mean.
    """

    role: Role = Role.PLAIN
    content: tuple[str, ...] = ()
    taken: bool = False
    index: str | None = None
    dim: str | None = None
    onto: str | None = None
    attends: Attends = Attends()

    def names(self) -> Iterator[str]:
        """Every argument that is named."""
        yield from self.content
        yield from (name for name in (self.index, self.dim, self.onto) if name is not None)
        yield from self.attends.names()


PLAIN = Traits()
CHOICE = Traits(Role.CHOOSES)
