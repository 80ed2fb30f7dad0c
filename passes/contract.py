"""The pass contract: what a pass declares, what it may do, and what its promise means.

===========  ===============================================================================================
Term         Meaning
===========  ===============================================================================================
pure         ``rewrite`` works on ``program.edit()``; the Program it was given prints and runs as before.
             Values and weights that nothing reads any more may be left lying: the pipeline drops them.
legality     Reads the Program only.  Returns every place the pass may act on, or one Refusal that names the
             node and the reason.  An empty list says: legal, and there is nothing to do.
site         A place by node name.  ``rewrite`` changes the graph at the sites it is given and at what
             follows from them, nowhere else; the pipeline may hand it fewer sites than ``legality`` found.
Exact        On every input the outputs equal those of the Program before the pass, up to rounding.
GreedyExact  On every input the most likely token is the same at every position; scores may differ.
Approximate  Outputs differ by an amount that is measured on data and held against the user's budget.
compact      Outputs that hold some of the tokens only.  The pass then adds the output ``kept_index``, int64
             ``[batch, kept]``: the place of each in the captured model's outputs, which they are held against.
===========  ===============================================================================================

A family is one structural rewrite plus methods that fill its slots.  A slot is a field of the pass annotated
with the family's abstract ``Method`` class; its methods are the concrete subclasses in the family's folder:

    class TokenMethod(Method): ...                          # passes/tokens/method.py

    @dataclass(frozen=True)
    class DropTokens(Pass):                                 # passes/tokens/drop.py
        name, family, promise = "token-drop", "tokens", Promise.APPROXIMATE
        method: TokenMethod = field(default=Random(), metadata={"help": "how tokens are chosen"})
        keep: float = field(default=0.7, metadata={"help": "share of tokens that stays"})

    token-drop:method=zero-tprune,keep=0.7,iterations=30    # iterations is a field of ZeroTPrune
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, ClassVar

from tersor.ir.program import Program

KEPT_INDEX = "kept_index"


class Promise(Enum):
    """How much of a Program's behaviour a pass keeps; see the table in the module's docstring."""

    EXACT = "exact"
    GREEDY_EXACT = "greedy-exact"
    APPROXIMATE = "approximate"


@dataclass(frozen=True)
class Site:
    """A place where a pass can act.

    Attributes:
        node: name of the node; ``program.edit().find(site.node)`` finds it in the copy.
        layer: the module the node came from, as reports print it.
        facts: what legality proved there and the rewrite relies on.
    """

    node: str
    layer: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """Why a pass may not act on a Program; ``node`` is the name of the node that stands in the way."""

    reason: str
    node: str = ""

    def __str__(self) -> str:
        return f"{self.reason} (at {self.node})" if self.node else self.reason


class Method(ABC):
    """Base of the methods that fill a pass's slot.  Subclasses are frozen dataclasses; fields are options.

    The class docstring's first line is what ``tersor passes`` prints.

    Attributes:
        name: what the spec string calls it; only concrete methods have one.
        promise: stands in for the promise of the pass where it is set.
    """

    name: ClassVar[str]
    promise: ClassVar[Promise | None] = None


@dataclass(frozen=True)
class Pass(ABC):
    """Base of every pass.  Subclasses are frozen dataclasses whose fields are options.

    ``metadata["help"]`` of a field says what the option does, ``metadata["excludes"]`` which options must not be
    given beside it; ``__post_init__`` checks the values and raises ValueError with one line.

    Attributes:
        name: what the spec string calls it; only concrete passes have one.
        family: the folder of ``passes`` it belongs to.
        promise: what it keeps when its method does not say otherwise.
        must_pay: whether it is there for speed, so that a pipeline which measures latency times its result, and may
            take it back.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    promise: ClassVar[Promise]
    must_pay: ClassVar[bool] = True

    @abstractmethod
    def legality(self, program: Program) -> list[Site] | Refusal:
        """Where the pass can act on ``program``, in graph order, or why it cannot."""

    @abstractmethod
    def rewrite(self, program: Program, sites: list[Site]) -> Program:
        """``program`` rewritten at ``sites``; ``program`` itself is unchanged."""

    @property
    def methods(self) -> dict[str, Method]:
        """The methods that fill this pass's slots, by field name."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {name: value for name, value in values if isinstance(value, Method)}

    @property
    def promised(self) -> Promise:
        """The promise of this instance: that of its first method that declares one, else the class's."""
        declared = (method.promise for method in self.methods.values() if method.promise is not None)
        return next(declared, type(self).promise)
