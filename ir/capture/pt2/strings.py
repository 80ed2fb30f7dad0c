"""Which strings of a ``.pt2`` archive PyTorch may see.

``torch.export.load`` evaluates the expressions of sizes, looks operators up by attribute, imports what structures
name, and writes the names of values into Python source that it runs.  Every check here returns the string to hand on,
or raises ``ValueError`` with the reason.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from typing import Any

import torch

from ...targets import NAMESPACES, find_target, touches_files
from ..inline import TRANSPARENT

Check = Callable[[str], str]

_PATH_PART = re.compile(r"[\w:/@+ -]+")
_PLAIN_TEXT = re.compile(r"[\w .,:;/@+*=<>()\[\]-]*")
_GUARD = re.compile(r"[\w .,()\[\]'+*/%<>=!&|~^-]*")
_NUMBER_WORDS = {"Infinity", "-Infinity", "NaN"}
_OPERATOR = re.compile(r"torch\.ops\.(\w+)\.(\w+)\.(\w+)")
# Refused once they are read, with the line that calls them: nothing runs before that.
_CONTROL_FLOW = {"cond", "while_loop", "map_impl", "scan"}
_VMAP = {
    f"torch._functorch.predispatch.{name}"
    for name in (
        "lazy_load_decompositions", "_vmap_increment_nesting", "_vmap_decrement_nesting", "_add_batch_dim",
        "_remove_batch_dim",
    )
}  # fmt: skip

_FUNCTIONS = {
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Mod", "Max", "Min", "Abs", "And", "Or", "Not",
    "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan",
    "GreaterThan", "Piecewise", "ExprCondPair", "floor", "ceiling", "FloorDiv", "ModularIndexing", "Where",
    "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv", "LShift", "RShift", "PowByNatural", "FloatPow",
    "FloatTrueDiv", "IntTrueDiv", "IsNonOverlappingAndDenseIndicator", "TruncToFloat", "TruncToInt", "RoundToInt",
    "RoundDecimal", "ToFloat", "Identity",
}  # fmt: skip
_POWERS = {"Pow", "PowByNatural", "FloatPow", "LShift"}
_CONSTANTS = {"true", "false", "oo", "nan"}
_SYMBOL = re.compile(r"[A-Za-z_]+\d{0,6}")
_NUMERAL = re.compile(r"-?[\d.]{1,40}(e[+-]?\d{1,3})?")
_LARGEST_EXPONENT = 64


def anything(text: str) -> str:
    """Text that is stored or printed, and no more."""
    return text


def identifier(text: str) -> str:
    """A name that PyTorch writes into source."""
    if text and not text.isidentifier():
        raise ValueError(f"{_short(text)} is no name of a value")
    return text


def size(text: str) -> str:
    """A size whose range is given, such as ``s0`` or ``s0 + 1``; PyTorch counts up to the number in ``u7``."""
    if re.match(r"[a-z]+\d{6}", text):
        raise ValueError(f"{_short(text)} is no name of a size")
    return plain(text)


def dotted(text: str) -> str:
    """The place of a module or tensor, such as ``layers.0.weight``."""
    for part in text.split(".") if text else ():
        if not _PATH_PART.fullmatch(part) or (part.startswith("__") and part.endswith("__")):
            raise ValueError(f"{_short(text)} is no place in a module")
    return text


def plain(text: str) -> str:
    """Text without quotes, escapes or lines, which stays text inside a string of source."""
    if not _PLAIN_TEXT.fullmatch(text):
        raise ValueError(f"{_short(text)} holds more than letters, digits and plain signs")
    return text


def number_word(text: str) -> str:
    """A float that JSON cannot write as a number."""
    if text not in _NUMBER_WORDS:
        raise ValueError(f"{_short(text)} stands where a number belongs")
    return text


def guard(text: str) -> str:
    """A condition on sizes, by its letters; :mod:`.guards` reads what it says before anything runs it."""
    if not _GUARD.fullmatch(text):
        raise ValueError(f"the condition {_short(text)} is no arithmetic on sizes")
    return text


def operator(text: str) -> str:
    """An operator of the IR, in place or not, a region of it, a step of vmap, or arithmetic on sizes."""
    region = text.removeprefix("torch.ops.higher_order.")
    if region != text:
        if region in TRANSPARENT | _CONTROL_FLOW:
            return text
        raise ValueError(f"it calls {_short(text)}, a higher-order operator that Tersor does not run")
    match = _OPERATOR.fullmatch(text)
    if text in _VMAP:
        return text
    if match is None:
        try:
            find_target(
                "operator." + text.removeprefix("_operator.") if text.startswith("_operator.") else text
            )
        except ValueError as error:
            raise ValueError(
                f"it calls {_short(text)}, neither an operator nor arithmetic on sizes"
            ) from error
        return text
    if match[1] not in NAMESPACES:
        raise ValueError(f"it calls {text}, whose namespace is none of {', '.join(NAMESPACES)}")
    found = getattr(getattr(getattr(torch.ops, match[1]), match[2], None), match[3], None)
    if not isinstance(found, torch._ops.OpOverload):
        raise ValueError(f"this version of torch has no operator {text}")
    if touches_files(found):
        raise ValueError(f"it calls {text}, which reads or writes files")
    return text


def expression(text: str) -> str:
    """Arithmetic on sizes as SymPy writes it, such as ``Mul(Integer(2), Symbol('s0', positive=True))``."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"the size {_short(text)} is no expression") from error
    try:
        _arithmetic(tree.body)
    except ValueError as error:
        raise ValueError(f"the size {_short(text)} is no arithmetic: {error}") from error
    return ast.unparse(tree)


def _arithmetic(node: ast.AST) -> None:
    if isinstance(node, ast.Call):
        _call(node)
    elif isinstance(node, ast.Constant):
        if not isinstance(node.value, bool | int | float):
            raise ValueError(f"it holds {_short(repr(node.value))}")
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        _arithmetic(node.operand)
    elif not isinstance(node, ast.Name) or node.id not in _CONSTANTS:
        raise ValueError(f"it holds {_short(ast.unparse(node))}")


def _call(node: ast.Call) -> None:
    if not isinstance(node.func, ast.Name) or node.func.id not in _FUNCTIONS:
        raise ValueError(f"it calls {_short(ast.unparse(node.func))}")
    arguments = list(node.args)
    for keyword in node.keywords:
        if keyword.arg is None or not isinstance(keyword.value, ast.Constant):
            raise ValueError(f"it holds {_short(ast.unparse(keyword.value))}")
        if not isinstance(keyword.value.value, bool | int):
            raise ValueError(f"it holds {_short(repr(keyword.value.value))}")
    first = arguments[0] if arguments else None
    if isinstance(first, ast.Constant) and isinstance(first.value, str):
        written = {"Symbol": _SYMBOL, "Float": _NUMERAL}.get(node.func.id)
        if written is None or not written.fullmatch(first.value):
            raise ValueError(f"it holds {_short(repr(first.value))}")
        arguments = arguments[1:]
    if node.func.id in _POWERS and len(arguments) == 2:
        _exponent(arguments[1])
    for argument in arguments:
        _arithmetic(argument)


def _exponent(node: ast.expr) -> None:
    """SymPy works powers of numbers out, whatever time and memory they take."""
    for part in ast.walk(node):
        power = isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id in _POWERS
        large = (
            isinstance(part, ast.Constant)
            and isinstance(part.value, int | float)
            and part.value > _LARGEST_EXPONENT
        )
        if power or large:
            raise ValueError("its exponent is too large")


def structure(text: str) -> str:
    """How arguments or results are nested; the types are looked up by name, and nothing may be imported for them."""
    version, top = read_json(text)
    return json.dumps([version, _structure(top)])


def call_structure(text: str) -> str:
    """A structure of arguments: the keywords, too, are written into source."""
    version, top = read_json(text)
    for half in top["children_spec"]:
        if half["type"] == "builtins.dict":
            for key in json.loads(half["context"]):
                if not isinstance(key, str) or not identifier(key):
                    raise ValueError(f"{_short(str(key))} is no name of a keyword")
    return json.dumps([version, _structure(top)])


def _structure(spec: dict[str, Any]) -> dict[str, Any]:
    kind, context = spec["type"], spec["context"]
    if kind is not None:
        if not isinstance(kind, str):
            raise ValueError("a structure's type is no name")
        dotted(kind)
        if isinstance(context, str) and kind != "collections.namedtuple":
            context = json.dumps(_context(read_json(context)))
        else:
            context = _context(context)
    return {
        "type": kind,
        "context": context,
        "children_spec": [_structure(child) for child in spec["children_spec"]],
    }


def _context(value: Any) -> Any:
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, list):
        return [_context(part) for part in value]
    if isinstance(value, dict):
        raise ValueError("a structure names a type to import")
    return value


def read_json(data: str | bytes) -> Any:
    """JSON in which no key comes twice.

    Raises:
        ValueError: it is no JSON, or two readers could understand it differently.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"the key {_short(max(keys, key=keys.count))} comes twice")
        return found

    return json.loads(data, object_pairs_hook=once)


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:80]}...")
