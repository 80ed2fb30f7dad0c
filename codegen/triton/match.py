"""Places in a graph where a kernel can run, as the kernels' own files find them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from tersor.ir.dialect import is_dialect


@dataclass(frozen=True)
class Match:
    """A place where one call of a kernel gives what some nodes give.

    Attributes:
        results: the node whose value the call returns; where it returns a tuple, one node an entry, and None for
            an entry that nothing asks for.
        args, kwargs: what the kernel is launched with; nodes among them are its operands.
    """

    results: fx.Node | tuple[fx.Node | None, ...]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def replaced(self) -> list[fx.Node]:
        """The nodes whose values the call returns."""
        results = (self.results,) if isinstance(self.results, fx.Node) else self.results
        return [node for node in results if node is not None]

    @property
    def operands(self) -> list[fx.Node]:
        found: list[fx.Node] = []
        fx.map_arg((self.args, dict(self.kwargs)), found.append)
        return found

    @property
    def is_circular(self) -> bool:
        """Whether an operand is computed from what the call would return, so that there is no place for it."""
        return not computed_from(self.operands).isdisjoint(self.replaced)

    @property
    def covered(self) -> set[fx.Node]:
        """All nodes that the call stands for: its results, and those between them and its operands."""
        return computed_from(self.replaced, set(self.operands))


Matcher = Callable[[fx.Node], Match | None]


def operator(name: str) -> Matcher:
    """Matches the dialect operator ``name`` by itself, for a kernel with that operator's arguments and results."""

    def match(node: fx.Node) -> Match | None:
        return Match(node, node.args, node.kwargs) if is_dialect(node, name) else None

    return match


def computed_from(nodes: Iterable[fx.Node], stop: Collection[fx.Node] = ()) -> set[fx.Node]:
    """``nodes`` and all that they are computed from, up to ``stop``, which is left out."""
    seen: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node not in seen and node not in stop:
            seen.add(node)
            pending.extend(node.all_input_nodes)
    return seen


def is_read_beside(node: fx.Node, result: fx.Node) -> bool:
    """Whether an output of the graph needs ``node`` for anything but ``result``."""
    seen = {result}
    pending = list(node.users)
    while pending:
        user = pending.pop()
        if user.op == "output":
            return True
        if user not in seen:
            seen.add(user)
            pending.extend(user.users)
    return False
