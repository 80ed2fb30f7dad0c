"""The verifier: every rule a Program obeys, as a table, checked after every pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from .dialect import dialect_of
from .errors import VerifierError
from .inference import Inference, inference_of
from .program import Program, TensorSpec
from .shapes import describe, fake_mode, same_size, size_text
from .targets import target_name


@dataclass(frozen=True)
class NodeRule:
    """``why_not(program, node)`` says how a node of kind ``op`` breaks the rule; None when it keeps it."""

    op: str
    why_not: Callable[[Program, fx.Node], str | None]


def verify(program: Program, *, shapes: bool = True) -> None:
    """Check every invariant of ``program``.

    Args:
        shapes: also infer every node's fake value again and compare it with the stored one.

    Raises:
        VerifierError: names the first node that breaks a rule, its layer and the reason.
    """
    for message in violations(program, shapes=shapes):
        raise VerifierError(message)


def violations(program: Program, *, shapes: bool = True) -> Iterator[str]:
    """Every broken rule as one line, in the order found."""
    try:
        program.graph.lint()
    except Exception as error:
        # What follows assumes a well-formed graph.
        yield f"the graph is malformed: {str(error).splitlines()[0]}"
        return
    yield from _boundary(program)
    infer = inference_of(fake_mode(program))
    for node in program.graph.nodes:
        broken = [why for rule in RULES if rule.op == node.op and (why := rule.why_not(program, node))]
        yield from (_at(node, why) for why in broken)
        if not broken and shapes and node.op == "call_function":
            why = _shape_differs(infer, node)
            if why:
                yield _at(node, why)
    used = {node.target for node in program.graph.nodes if node.op == "get_attr"}
    for name in program.weights.keys() - used:
        yield f"weight {name!r} is dead: no node reads it; remove it from Program.weights"


def _at(node: fx.Node, why: str) -> str:
    layer = node.meta.get("layer")
    target = "" if node.op == "output" else f" ({node.target})"
    return f"{node.name}{target}{f' in {layer}' if layer else ''}: {why}"


def _boundary(program: Program) -> Iterator[str]:
    placeholders = [node.target for node in program.graph.nodes if node.op == "placeholder"]
    names = [spec.name for spec in program.inputs]
    if placeholders != names:
        yield f"placeholders {placeholders} are not the inputs {names}"
    if program.stepping is not None:
        unknown = program.stepping.driven - set(names)
        unknown |= program.stepping.results - {spec.name for spec in program.outputs}
        if unknown:
            yield f"it is driven by {', '.join(sorted(unknown))}, which it does not have"
    environment = fake_mode(program).shape_env
    if environment is None:
        return
    for symbol, name in program.symbols.items():
        size = environment.replace(sympy.Symbol(symbol, positive=True, integer=True))
        if size.is_Integer:
            yield f"dimension {name!r} was fixed to {size}: some operator's shape function demands one size"


def _has_value(_: Program, node: fx.Node) -> str | None:
    return None if "val" in node.meta else "it has no meta['val']; insert nodes with a Builder"


def _known_target(_: Program, node: fx.Node) -> str | None:
    try:
        target_name(node.target)
    except ValueError as error:
        return str(error)
    return None


def _dialect_check(_: Program, node: fx.Node) -> str | None:
    op = dialect_of(node)
    if op is None or op.check is None:
        return None
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    return op.check(*args, **kwargs)


def _known_weight(program: Program, node: fx.Node) -> str | None:
    weight = program.weights.get(str(node.target))
    if weight is None:
        return f"weight {node.target!r} is not in Program.weights"
    value = node.meta.get("val")
    if isinstance(value, Tensor) and (value.shape != weight.shape or value.dtype != weight.dtype):
        return f"its value is {describe(value)}, the weight {describe(weight)}"
    return None


def _input_matches(program: Program, node: fx.Node) -> str | None:
    spec = next((s for s in program.inputs if s.name == node.target), None)
    return None if spec is None else _differs(program, spec, node)


def _outputs_match(program: Program, node: fx.Node) -> str | None:
    results = node.args[0]
    if not isinstance(results, tuple) or not all(isinstance(r, fx.Node) for r in results):
        return "the output is not a flat tuple of nodes"
    if len(results) != len(program.outputs):
        return f"{len(results)} results, but {len(program.outputs)} outputs are declared"
    if len(program.structure.names()) != len(program.returned):
        return (
            f"{len(program.returned)} results, but the structure has {len(program.structure.names())} tensors"
        )
    pairs = zip(program.outputs, results, strict=True)
    return next((why for spec, r in pairs if (why := _differs(program, spec, r))), None)


def _differs(program: Program, spec: TensorSpec, node: fx.Node) -> str | None:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return f"{spec.name!r} is not a tensor but {value!r}"
    shape = tuple(size_text(size, program.symbols) for size in value.shape)
    if value.dtype != spec.dtype or shape != tuple(str(size) for size in spec.shape):
        return (
            f"{spec.name!r} is declared {list(spec.shape)} {spec.dtype}, computed {list(shape)} {value.dtype}"
        )
    return None


def _no_such_op(_: Program, node: fx.Node) -> str:
    return f"{node.op} nodes are not part of the IR; only placeholder, get_attr, call_function and output are"


RULES = (
    NodeRule("call_module", _no_such_op),
    NodeRule("call_method", _no_such_op),
    NodeRule("placeholder", _has_value),
    NodeRule("get_attr", _has_value),
    NodeRule("call_function", _has_value),
    NodeRule("placeholder", _input_matches),
    NodeRule("get_attr", _known_weight),
    NodeRule("call_function", _known_target),
    NodeRule("call_function", _dialect_check),
    NodeRule("output", _outputs_match),
)


def _shape_differs(infer: Inference, node: fx.Node) -> str | None:
    """Infer ``node`` from its operands' stored values, which were checked before it."""
    try:
        inferred = infer(node)
    except VerifierError as error:
        return str(error)
    stored = node.meta["val"]
    if _same(stored, inferred):
        return None
    return f"its stored value is {_describe(stored)}, but its operands give {_describe(inferred)}"


def _same(stored: Any, inferred: Any) -> bool:
    if isinstance(stored, Tensor) and isinstance(inferred, Tensor):
        kind = (stored.dtype, stored.device, stored.dim()) == (
            inferred.dtype,
            inferred.device,
            inferred.dim(),
        )
        return kind and all(_same(a, b) for a, b in zip(stored.shape, inferred.shape, strict=True))
    if isinstance(stored, list | tuple) and isinstance(inferred, list | tuple):
        return len(stored) == len(inferred) and all(
            _same(a, b) for a, b in zip(stored, inferred, strict=True)
        )
    if isinstance(stored, int | torch.SymInt) and isinstance(inferred, int | torch.SymInt):
        if free_unbacked_symbols(inferred):
            # A size that depends on data gets a new symbol each time it is inferred.
            return bool(free_unbacked_symbols(stored))
        return same_size(stored, inferred)
    return type(stored) is type(inferred) and (
        isinstance(stored, torch.SymBool | torch.SymFloat) or stored == inferred
    )


def _describe(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "(" + ", ".join(_describe(item) for item in value) + ")"
    return describe(value)
