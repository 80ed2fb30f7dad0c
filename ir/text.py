"""A Program as text: one line an operation, weights by name, repeated layers once."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx

from .layer_path import block_path
from .operands import TO_THE_END
from .program import Program, TensorSpec
from .repeats import Repeat, longest_repeat
from .shapes import dtype_text, size_text

_SHORTEST_LAYER = 4
Namer = Callable[[fx.Node], str]


def program_text(program: Program, weights: bool = False, full: bool = False) -> str:
    """The program as a person reads it.

    Args:
        weights: list every weight with its type first; without it they appear only where they are read.
        full: write out every repeated layer and every operation on sizes.
    """
    return "\n".join(Printer(program, full=full).lines(weights=weights, fold=not full)) + "\n"


@dataclass(frozen=True)
class Line:
    """One operation; ``kind`` is what it computes without the names of values and weights."""

    node: fx.Node
    text: str
    kind: tuple[Any, ...]
    operands: tuple[fx.Node, ...]
    layer: str


class Printer:
    """Renders the nodes of one Program; ``names`` gives values other names than the graph's own."""

    def __init__(
        self, program: Program, *, full: bool = False, names: Mapping[fx.Node, str] | None = None
    ) -> None:
        self.program = program
        self.full = full
        self._names = names or {}
        self._sizes: dict[Any, str] = {}

    def lines(self, *, weights: bool = False, fold: bool = True) -> list[str]:
        return [*self._header(weights), *self._body(fold), f"  return {self._results()}"]

    def operations(self) -> list[Line]:
        """The lines of the body, one an operation, in graph order."""
        return [self._line(node) for node in self.program.graph.nodes if self._is_shown(node)]

    def _is_shown(self, node: fx.Node) -> bool:
        if node.op != "call_function":
            return False
        # Arithmetic on sizes is read where a size is used.
        return self.full or isinstance(node.meta["val"], Tensor | list | tuple)

    def _header(self, weights: bool) -> Iterator[str]:
        program = self.program
        inputs = ", ".join(map(_spec_text, program.inputs))
        outputs = ", ".join(map(_spec_text, program.outputs))
        yield f"program {program.facts.family}({inputs}) -> ({outputs})"
        if program.ranges:
            yield "  " + ", ".join(_range_text(name, *bounds) for name, bounds in program.ranges.items())
        if weights:
            for name, tensor in program.weights.items():
                yield f"  @{name}: {dtype_text(tensor.dtype)}{list(tensor.shape)}"

    def _results(self) -> str:
        results: Any = self.program.output_node.args[0]
        return ", ".join(self._operand(result, "") for result in results)

    def _body(self, fold: bool) -> Iterator[str]:
        lines = self.operations()
        if not fold:
            return (f"  {line.text}" for line in lines)
        return _Folder(lines, lambda node: self._operand(node, "")).render(0, len(lines), "  ")

    def _line(self, node: fx.Node) -> Line:
        layer = node.meta.get("layer") or ""
        operands: list[str] = []
        attributes: list[tuple[str, str]] = []
        kinds: list[Any] = []
        for name, value, keyword in _arguments(node):
            if _holds_tensor(value):
                text = self._value(value, layer)
                operands.append(f"{name}={text}" if keyword else text)
                kinds.append((name, fx.map_arg(value, self._operand_kind)))
            else:
                attributes.append((name, self._value(value, layer)))
        result = self.type_text(node.meta["val"])
        if node.target is operator.getitem:
            call = f"{operands[0]}[{attributes[0][1]}]"
        else:
            call = f"{_op_text(node.target)}({', '.join(operands)})"
            if attributes:
                call += " {" + ", ".join(f"{name}={text}" for name, text in attributes) + "}"
        text = f"%{self._name(node)} = {call} -> {result}"
        kind = (str(node.target), tuple(attributes), repr(kinds), result)
        return Line(node, f"{text}   # {layer}" if layer else text, kind, tuple(node.all_input_nodes), layer)

    def _name(self, node: fx.Node) -> str:
        return self._names.get(node, node.name)

    def _operand_kind(self, node: fx.Node) -> Any:
        return f"<{self.type_text(node.meta['val'])}{' weight' if node.op == 'get_attr' else ''}>"

    def _operand(self, node: fx.Node, layer: str) -> str:
        if node.op == "get_attr":
            name = str(node.target)
            return f"@.{name[len(layer) + 1 :]}" if layer and name.startswith(layer + ".") else f"@{name}"
        if not self.full and isinstance(node.meta["val"], torch.SymInt):
            return self._size(node.meta["val"])
        return f"%{self._name(node)}"

    def _value(self, value: Any, layer: str) -> str:
        if isinstance(value, fx.Node):
            return self._operand(value, layer)
        if isinstance(value, list | tuple):
            return "[" + ", ".join(self._value(item, layer) for item in value) + "]"
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, torch.dtype):
            return dtype_text(value)
        if value == TO_THE_END:
            return "max"
        return "none" if value is None else str(value)

    def _size(self, size: int | torch.SymInt) -> str:
        if isinstance(size, int):
            return str(size)
        expr = size.node.expr
        if expr not in self._sizes:
            self._sizes[expr] = size_text(size, self.program.symbols)
        return self._sizes[expr]

    def type_text(self, value: Any) -> str:
        """A value's type in the form ``f32[batch, tokens, 64]``."""
        if isinstance(value, Tensor):
            return f"{dtype_text(value.dtype)}[{', '.join(self._size(size) for size in value.shape)}]"
        if isinstance(value, list | tuple):
            return "(" + ", ".join(self.type_text(item) for item in value) + ")"
        return self._size(value) if isinstance(value, int | torch.SymInt) else type(value).__name__


class _Folder:
    """Writes a list of lines with consecutive repeats written once."""

    def __init__(self, lines: list[Line], operand: Namer) -> None:
        numbers: dict[Any, int] = {}
        self.lines, self.operand = lines, operand
        self.keys = [numbers.setdefault(line.kind, len(numbers)) for line in lines]
        self.position = {line.node: i for i, line in enumerate(lines)}

    def render(self, start: int, stop: int, indent: str) -> Iterator[str]:
        repeat = self._repeat(start, stop)
        if repeat is None:
            yield from (indent + line.text for line in self.lines[start:stop])
            return
        yield from self.render(start, repeat.start, indent)
        yield f"{indent}{self._title(repeat)}: the same {repeat.period} ops, {repeat.count} times {{"
        yield from self.render(repeat.start, repeat.start + repeat.period, indent + "  ")
        yield f"{indent}}} {'; '.join(self._carried(repeat))}"
        yield from self.render(repeat.stop, stop, indent)

    def _title(self, repeat: Repeat) -> str:
        blocks = [block_path(line.layer) for line in self.lines[repeat.start : repeat.stop]]
        numbered = [block for block in blocks if block[-1:].isdigit()] or blocks
        return f"{numbered[0]} .. {numbered[-1]}"

    def _operands(self, i: int) -> list[fx.Node]:
        return [node for node in self.lines[i].operands if node in self.position]

    def _repeat(self, start: int, stop: int) -> Repeat | None:
        """The repeat that shortens the text most, begun where one copy is most nearly one block."""
        for equal in (self._corresponds, self._equal):
            found = longest_repeat(self.keys, equal, start=start, stop=stop, shortest=_SHORTEST_LAYER)
            if found is not None:
                repeat, slack = found
                starts = sorted(
                    range(repeat.start, repeat.start + slack + 1), key=lambda s: self._borders(s, repeat)
                )
                shifted = (Repeat(first, repeat.period, repeat.count) for first in starts)
                valid = next(filter(self._is_loop, shifted), None)
                if valid is not None:
                    return valid
        return None

    def _borders(self, start: int, repeat: Repeat) -> int:
        """How often a copy that begins at ``start`` passes from one block to another."""
        blocks = [block_path(line.layer) for line in self.lines[start : start + repeat.period]]
        return sum(a != b for a, b in pairwise(blocks)) + (not blocks[0][-1:].isdigit())

    def _equal(self, i: int, period: int) -> bool:
        """Operands are the same value or as far back as in the other copy; weights differ in name."""
        left, right = self._operands(i), self._operands(i + period)
        return len(left) == len(right) and all(map(self._same_or_shifted(period), left, right))

    def _corresponds(self, i: int, period: int) -> bool:
        """As ``_equal``, and an operand may be one that enters the first copy and is carried to the second."""
        same = self._same_or_shifted(period)
        left, right = self._operands(i), self._operands(i + period)
        return len(left) == len(right) and all(
            same(a, b) or self.position[a] < i <= self.position[b] + period
            for a, b in zip(left, right, strict=True)
        )

    def _same_or_shifted(self, period: int) -> Callable[[fx.Node, fx.Node], bool]:
        return lambda a, b: a is b or self.position[a] + period == self.position[b]

    def _is_loop(self, repeat: Repeat) -> bool:
        """Whether every copy reads what the one before it left where the first reads what entered."""
        second = repeat.start + repeat.period
        if not all(self._equal(i, repeat.period) for i in range(second, repeat.stop - repeat.period)):
            return False
        same = self._same_or_shifted(repeat.period)
        entering: dict[fx.Node, fx.Node] = {}
        for i in range(repeat.start, second):
            for a, b in zip(self._operands(i), self._operands(i + repeat.period), strict=True):
                if same(a, b):
                    continue
                carried = self.position[a] < repeat.start <= self.position[b] < second
                if not carried or entering.setdefault(a, b) is not b:
                    return False
        return True

    def _carried(self, repeat: Repeat) -> list[str]:
        """How values pass from copy to copy, and which values of the last are read after the repeat."""
        copy = range(repeat.start, repeat.start + repeat.period)
        entering = {
            a: b
            for i in copy
            for a, b in zip(self._operands(i), self._operands(i + repeat.period), strict=True)
            if a is not b and self.position[a] < repeat.start
        }
        notes = [f"the next reads {self.operand(b)} for {self.operand(a)}" for a, b in entering.items()]
        later = {line.node for line in self.lines[repeat.stop :]}
        shift = repeat.period * (repeat.count - 1)
        notes += [
            f"{self.operand(self.lines[i + shift].node)} is the last {self.operand(self.lines[i].node)}"
            for i in copy
            if any(user in later or user.op == "output" for user in self.lines[i + shift].node.users)
        ]
        return notes


def _arguments(node: fx.Node) -> Iterator[tuple[str, Any, bool]]:
    """Name, value and whether the name must be written, for every argument that says something.

    Attributes at their default are left out, save those of dialect operators, whose meaning they are.
    """
    if not isinstance(node.target, torch._ops.OpOverload):
        yield from ((f"arg{i}", value, False) for i, value in enumerate(node.args))
        yield from ((name, value, True) for name, value in node.kwargs.items())
        return
    skipped = False
    for i, argument in enumerate(node.target._schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        given = i < len(node.args) or argument.name in node.kwargs
        value = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name, default)
        attribute = "Tensor" not in str(argument.type)
        if not attribute and value is None:
            skipped = True
        elif not attribute:
            yield argument.name, value, skipped
        elif node.target.namespace == "tersor" or (given and value != default):
            yield argument.name, value, True


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds_tensor, value))
    return isinstance(value, fx.Node) and isinstance(value.meta["val"], Tensor | list | tuple)


def _op_text(target: Any) -> str:
    return str(target._opname if isinstance(target, torch._ops.OpOverload) else target.__name__)


def _spec_text(spec: TensorSpec) -> str:
    return f"{spec.name}: {dtype_text(spec.dtype)}[{', '.join(str(size) for size in spec.shape)}]"


def _range_text(name: str, low: int, high: int | None) -> str:
    return f"{name} >= {low}" if high is None else f"{low} <= {name} <= {high}"
