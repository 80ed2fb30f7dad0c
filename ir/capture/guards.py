"""What ``torch.export`` assumed about the sizes of the inputs, read from the exported program.

A branch on sizes is traced one way, and the exporter writes the condition down as a line of Python, such as
``(L['x'].size()[1] % 2) == 0``.  The graph is right only where every such line holds.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

Place = tuple[str, int]

_BUILTINS = {function.__name__: function for function in (abs, float, int, max, min, round)}
_MATH = ("ceil", "floor", "trunc", "sqrt", "log", "log2", "log10", "exp", "isnan", "isinf")
_PLAIN = (
    ast.Expression, ast.Compare, ast.BoolOp, ast.UnaryOp, ast.BinOp, ast.IfExp, ast.Load, ast.boolop, ast.operator,
    ast.unaryop, ast.cmpop,
)  # fmt: skip


class UnreadableGuard(ValueError):
    """A guard that is more than arithmetic on sizes; the message is the guard."""


@dataclass(frozen=True)
class Guard:
    """One condition on sizes.

    Attributes:
        text: the condition as the exporter wrote it, inputs by name.
        places: (placeholder name, dim) of every size in it.
        holds: whether it holds for the sizes of ``places``, in their order.
        equality: whether it says that two sizes are one, and no more.
    """

    text: str
    places: tuple[Place, ...]
    holds: Callable[..., bool]
    equality: bool = False


def guards_of(exported: ExportedProgram) -> list[Guard]:
    """The guards of ``exported`` over input sizes; none where this version of torch keeps none.

    Raises:
        UnreadableGuard: a guard holds anything but arithmetic on sizes.  Nothing of it has been run.
    """
    lines = [str(line) for line in getattr(exported, "_guards_code", None) or ()]
    if not lines:
        return []
    inputs = _inputs_by_text(exported)
    found = [_read(line, inputs) for line in lines]
    return [guard for guard in found if guard.places]


def _inputs_by_text(exported: ExportedProgram) -> dict[str, str]:
    """The placeholder of every input, by what a guard calls it: ``L['d']['x-y']`` is ``d_x_y``.

    Names alone do not tell: the exporter writes them in small letters, with ``_`` for all that is no letter or digit,
    and numbers those that are then equal.
    """
    order = [str(name) for name in exported.graph_signature.user_inputs]
    found = {f"L['flat_args'][{index}]": name for index, name in enumerate(order)}
    signature = exported.module_call_graph[0].signature
    if exported.example_inputs is None or signature is None:
        return found
    arguments = list(signature.forward_arg_names or ())
    paths, _ = pytree.tree_flatten_with_path(exported.example_inputs)
    spread: dict[str, str] = {}
    for (path, _leaf), name in zip(paths, order, strict=True):
        place, rest = path[1], pytree.keystr(path[2:])
        if isinstance(place, pytree.MappingKey):
            found[f"L[{place.key!r}]{rest}"] = name
        elif isinstance(place, pytree.SequenceKey) and place.idx < len(arguments):
            argument = arguments[place.idx]
            found[f"L[{argument!r}]{rest}"] = name
            # Of ``*xs`` the signature has the names xs_0, xs_1; guards have ``L['xs'][0]``.
            if several := re.fullmatch(r"(.+)_(\d+)", argument):
                spread[f"L[{several[1]!r}][{several[2]}]{rest}"] = name
    return spread | found


def _read(line: str, inputs: Mapping[str, str]) -> Guard:
    try:
        tree = ast.parse(line.strip(), mode="eval")
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise UnreadableGuard(line) from error
    reader = _Sizes(line, inputs)
    body = reader.visit(tree.body)
    if reader.ignored:
        return Guard(line, (), lambda: True)
    places = tuple(reader.names)
    parameters = ", ".join(reader.names.values())
    function = ast.parse(f"lambda {parameters}: 0", mode="eval")
    assert isinstance(function.body, ast.Lambda)
    function.body.body = body
    code = compile(ast.fix_missing_locations(function), "<guard>", "eval")
    compute = eval(code, {"__builtins__": {}, "math": math, **_BUILTINS})

    def holds(*sizes: int) -> bool:
        try:
            return bool(compute(*sizes))
        except (ArithmeticError, ValueError, TypeError):
            return False

    equality = (
        isinstance(body, ast.Compare)
        and isinstance(body.left, ast.Name)
        and [type(op) for op in body.ops] == [ast.Eq]
        and isinstance(body.comparators[0], ast.Name)
    )
    return Guard(_plain_text(line), places, holds, equality)


class _Sizes(ast.NodeTransformer):
    """Puts a variable where a guard reads a size, and refuses all that is no arithmetic."""

    def __init__(self, line: str, inputs: Mapping[str, str]) -> None:
        self.line, self.inputs = line, inputs
        self.names: dict[Place, str] = {}
        self.ignored = False

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.Subscript):
            return self._size(node)
        if isinstance(node, ast.Constant):
            if isinstance(node.value, bool | int | float):
                return node
        elif isinstance(node, ast.Call):
            return self._call(node)
        elif isinstance(node, _PLAIN):
            return self.generic_visit(node)
        raise UnreadableGuard(self.line)

    def _call(self, node: ast.Call) -> ast.AST:
        if ast.unparse(node.func) == "torch.sym_float":
            node.func = ast.Name("float", ast.Load())
        function = node.func
        if isinstance(function, ast.Attribute) and function.attr == "storage_offset" and not node.args:
            self._input(function.value)
            self.ignored = True
            return ast.Constant(0)
        named = isinstance(function, ast.Name) and function.id in _BUILTINS
        maths = (
            isinstance(function, ast.Attribute)
            and isinstance(function.value, ast.Name)
            and function.value.id == "math"
            and function.attr in _MATH
        )
        if node.keywords or not (named or maths):
            raise UnreadableGuard(self.line)
        node.args = [self.visit(argument) for argument in node.args]
        return node

    def _size(self, node: ast.Subscript) -> ast.AST:
        """``L['x'].size()[1]``; strides are read too, but they are the memory layout's and change no result."""
        call, index = node.value, node.slice
        reads = isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and not call.args
        if not reads or not isinstance(index, ast.Constant) or not isinstance(index.value, int):
            raise UnreadableGuard(self.line)
        assert isinstance(call, ast.Call)
        assert isinstance(call.func, ast.Attribute)
        name = self._input(call.func.value)
        if call.func.attr == "stride":
            self.ignored = True
            return ast.Constant(0)
        if call.func.attr != "size":
            raise UnreadableGuard(self.line)
        variable = self.names.setdefault((name, index.value), f"size_{len(self.names)}")
        return ast.Name(variable, ast.Load())

    def _input(self, node: ast.AST) -> str:
        """The placeholder that ``L['d']['a']`` stands for."""
        name = self.inputs.get(ast.unparse(node))
        if name is None:
            raise UnreadableGuard(self.line)
        return name


def _plain_text(line: str) -> str:
    if len(line) > 200:
        line = f"{line[:120]} ... {line[-60:]}"
    text = re.sub(r"L((?:\[[^\]]*\])+)\.size", lambda m: "_".join(re.findall(r"\w+", m[1])) + ".size", line)
    return re.sub(r"^\(([^()]*(?:\([^()]*\)[^()]*)*)\)(?= [=!<>])", r"\1", text.strip())


def interval(holds: Callable[[int], bool], example: int) -> tuple[int, int | None] | None:
    """The sizes around ``example`` for which a condition holds, None where it is no matter of a range.

    A condition whose truth changes at most twice has a range (``n <= 64``), or leaves out a few sizes on one side of
    the example (``n != 197``); one that comes and goes (``n % 2 == 0``) has none, and one size alone is no range.
    Every size up to several thousand is asked, then powers of two: conditions on sizes come from a model's own
    constants, and those are smaller.
    """
    limit = max(8192, 2 * example)
    held = [holds(size) for size in range(1, limit + 1)]
    changes = [size for size in range(1, limit) if held[size] != held[size - 1]]
    if not held[example - 1] or len(changes) > 2:
        return None
    low = max((size + 1 for size in changes if size < example), default=1)
    high = min((size for size in changes if size >= example), default=None)
    high = _last(holds, limit) if high is None else high
    return None if low == high else (low, high)


def left_out_alone(holds: Callable[[int], bool], example: int) -> int | None:
    """The one size for which a condition does not hold; None where there are more of them, or none."""
    limit = max(8192, 2 * example)
    wrong = [size for size in range(1, limit + 1) if not holds(size)]
    return wrong[0] if len(wrong) == 1 and _last(holds, limit) is None else None


def _last(holds: Callable[[int], bool], known: int) -> int | None:
    """The last size that holds above ``known``; None where all do."""
    while known < 2**31:
        beyond = 2 * known + 1
        if not holds(beyond):
            while beyond - known > 1:
                middle = (known + beyond) // 2
                known, beyond = (middle, beyond) if holds(middle) else (known, middle)
            return known
        known = beyond
    return None


def holds_throughout(
    guard: Guard, sizes: Mapping[Place, int | str], allowed: Mapping[str, list[int]]
) -> bool:
    """Whether ``guard`` holds for every combination of ``allowed`` sizes of its named dimensions."""
    combinations: list[dict[str, int]] = [{}]
    for name in dict.fromkeys(s for place in guard.places if isinstance(s := sizes[place], str)):
        combinations = [{**known, name: size} for known in combinations for size in allowed[name]]
    return all(guard.holds(*at(guard, sizes, known)) for known in combinations)


def at(guard: Guard, sizes: Mapping[Place, int | str], values: Mapping[str, int]) -> list[int]:
    """The sizes of the guard's places when the named dimensions have ``values``."""
    found = (sizes[place] for place in guard.places)
    return [values[size] if isinstance(size, str) else size for size in found]
