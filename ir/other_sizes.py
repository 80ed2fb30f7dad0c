"""Whether the symbolic shapes of a Program are those that it has at other sizes than its example's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .errors import VerifierError
from .fix_sizes import fix_sizes
from .program import Program
from .shapes import expression

# By what, and by how much past that, sizes exceed the example's: no count that is 1 there is 1 here too.
_TIMES, _MORE = 3, 17


def verify_other_sizes(program: Program) -> None:
    """Infer all shapes at sizes past the example's, and compare them with what the symbolic ones say.

    An operator's shape function that asks whether a size is 1, or equal to another, is answered for the example; where
    the answer is not the same for all sizes, shapes were fixed silently.

    Raises:
        VerifierError: names the first node whose shape is another.
    """
    sizes = _other(program)
    if not sizes:
        return
    try:
        fixed = fix_sizes(program, sizes)
    except VerifierError as error:
        raise VerifierError(f"at {_text(sizes)}: {error}") from error
    by_name = {symbol: sizes[name] for symbol, name in program.symbols.items()}
    concrete = {node.name: node.meta["val"] for node in fixed.graph.nodes if "val" in node.meta}
    for node in program.graph.nodes:
        if node.name not in concrete:
            continue
        pairs = zip(_shapes(node.meta["val"]), _shapes(concrete[node.name]), strict=True)
        for symbolic, numbers in pairs:
            stated = [_value(size, by_name) for size in symbolic]
            if None not in stated and stated != list(numbers):
                raise VerifierError(
                    f"{node.name} ({node.target}, in {node.meta.get('layer') or 'the top level'}) has the shape "
                    f"{list(map(int, numbers))} at {_text(sizes)}, where its symbolic shape {list(symbolic)} says "
                    f"{stated}: a size was fixed to the example's"
                )


def _other(program: Program) -> dict[str, int]:
    sizes = program.sizes()
    other = {}
    for name, (low, high) in program.ranges.items():
        wanted = max(low, _TIMES * sizes.get(name, 1) + _MORE)
        other[name] = wanted if high is None else min(wanted, high)
    return other if set(other) >= set(program.symbols.values()) else {}


def _shapes(value: Any) -> Iterator[Any]:
    for one in value if isinstance(value, tuple | list) else (value,):
        if isinstance(one, Tensor):
            yield one.shape


def _value(size: int | torch.SymInt, by_name: Mapping[str, int]) -> int | None:
    expr = expression(size)
    if expr.is_Integer:
        return int(expr)
    free = {symbol: by_name.get(str(symbol)) for symbol in expr.free_symbols}
    if None in free.values():
        return None  # Depends on data.
    return int(expr.subs(free))


def _text(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} = {size}" for name, size in sizes.items())
