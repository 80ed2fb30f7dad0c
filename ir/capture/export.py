"""From a module and example inputs to a Program, through ``torch.export``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import OutputKind

from ..boundary import spec_of
from ..errors import CaptureError, InputError, VerifierError
from ..fix_sizes import replace_numbers
from ..inference import propagate
from ..program import ModelFacts, Program
from ..shapes import SymbolTable, expression
from ..structure import Structure
from .conditions import Conditions, conditions_of, intersect
from .explain import innermost, layer_of, locate
from .functional import InPlaceError, make_functional
from .inline import inline_regions, refuse_regions
from .numbers_of_sizes import Made, explain_number, numbers_noted
from .outputs import flat_outputs, structure_of
from .sources import SCRIPTED
from .writes import constants_guarded, explain_writes

aten = torch.ops.aten

# Why a dim is fixed where no line is known to have done it.
_MADE = (
    "the model makes a number of that size, as len(), int(), float() and math.log() do, or computes with something "
    "that has it"
)

# The note of a wider range, by symbol, and of the sizes to be tried for it: ``untraced_sizes.py`` takes it away.
UNTRACED = "untraced"


@dataclass(frozen=True)
class Request:
    """What to export: the model, its inputs by name, and which dimensions may vary.

    Attributes:
        structure: how the model's output nests.
        dynamic: per input name, dims that may vary with the name to give them; ``"auto"`` lets every dim vary
            that the model allows.
        fixed: non-tensor keyword arguments passed on as they are.
        may_fix: whether a dim may be fixed because the model branches on its size; else that is an error.
    """

    model: nn.Module
    inputs: Mapping[str, Tensor]
    structure: Structure
    dynamic: Mapping[str, Mapping[int, str]]
    fixed: Mapping[str, Any]
    facts: ModelFacts
    may_fix: bool = True


def export_program(request: Request) -> Program:
    """Export ``request.model`` and turn the result into a Program; the caller checks it against the model.

    Raises:
        CaptureError: the model cannot be traced, with the module, the line and what to do.
    """
    model, inputs = request.model, dict(request.inputs)
    shapes: dict[str, Any] = {
        name: dict.fromkeys(request.dynamic.get(name, {}), Dim.AUTO) or None for name in inputs
    }
    shapes |= dict.fromkeys(request.fixed)
    with torch.no_grad():
        try:
            # On a failure torch prints the whole graph traced so far; the error says what the user needs.
            with redirect_stderr(StringIO()), flat_outputs(model), numbers_noted() as made:
                exported = torch.export.export(
                    model, (), {**inputs, **request.fixed}, dynamic_shapes=shapes, strict=False
                )
        except Exception as error:
            raise CaptureError(
                f"cannot capture {type(model).__name__}: {locate(error, model)}. {_way_out(error, model)}"
            ) from error
    facts, may_fix = request.facts, request.may_fix
    return convert(exported, request.structure, inputs, request.dynamic, facts, may_fix, made)


def _way_out(error: Exception, model: nn.Module) -> str:
    if isinstance(innermost(error, model), torch.jit.ScriptModule):
        return f"{SCRIPTED}: put the nn.Module that it was made of in its place"
    if "unhashable type" in str(error) and "SymInt" in str(error):
        return (
            "The model keeps something by the size of its inputs (in a dict, a set or an lru_cache), which may vary: "
            "compute it anew in place of keeping it, or pass dynamic={} to fix the sizes"
        )
    return (
        "Control flow and sizes that depend on tensor values cannot be traced: replace them by torch.where or by fixed "
        "sizes, or pass dynamic={} when only changing sizes stand in the way"
    )


def run_model(
    model: nn.Module, inputs: Mapping[str, Tensor], fixed: Mapping[str, Any]
) -> tuple[Any, Structure]:
    """What the model returns for its example, and how that nests.

    Raises:
        InputError: the model rejects the inputs.
        CaptureError: it returns what cannot be an output, or writes to its parameters.
    """
    try:
        with constants_guarded(model):
            output = call_model(model, fixed, **inputs)
    except CaptureError:
        raise
    except Exception as error:
        raise InputError(
            f"{type(model).__name__} rejects the example inputs, {_told(inputs)}: {locate(error, model)}"
        ) from error
    return output, structure_of(output, type(model).__name__)


def _told(inputs: Mapping[str, Tensor]) -> str:
    """Shapes, dtypes and, of whole numbers, the least and the largest."""
    texts = []
    for name, value in inputs.items():
        span = ""
        whole = not (value.is_floating_point() or value.is_complex() or value.is_meta)
        if whole and value.numel():
            with suppress(RuntimeError):  # Some dtypes and layouts have no least number.
                span = f" of {int(value.min())} to {int(value.max())}"
        texts.append(f"{name} {str(value.dtype).removeprefix('torch.')} {list(value.shape)}{span}")
    return ", ".join(texts)


def call_model(model: nn.Module, fixed: Mapping[str, Any], **inputs: Tensor) -> Any:
    """What ``model`` returns for copies of ``inputs``, which it may write to."""
    return model(**{name: value.clone() for name, value in inputs.items()}, **fixed)


def convert(
    exported: ExportedProgram,
    structure: Structure,
    example_inputs: Mapping[str, Tensor],
    dynamic: Mapping[str, Mapping[int, str]],
    facts: ModelFacts,
    may_fix: bool = True,
    made: Made | None = None,
) -> Program:
    """``program_of``, with PyTorch's own functionalization where vmap or writes through several views need it.

    Raises:
        CaptureError: the graph cannot be a Program; the message names the operator and what to do.
    """
    refuse_regions(exported.graph_module, facts.family)
    if any(_is_level(node) for node in exported.graph.nodes):
        exported = _without_levels(exported, facts.family)
    try:
        return program_of(exported, structure, example_inputs, dynamic, facts, may_fix, made)
    except InPlaceError as error:
        try:
            functional = _decomposed(exported)
        except Exception:
            raise error from None
        return program_of(functional, structure, example_inputs, dynamic, facts, may_fix, made)


def _is_level(node: fx.Node) -> bool:
    """Whether a node begins or ends what the exporter leaves of ``torch.vmap`` and the like."""
    return getattr(node.target, "__module__", None) == "torch._functorch.predispatch"


def _decomposed(exported: ExportedProgram) -> ExportedProgram:
    # On a failure torch prints a traceback of its own; the error says what the user needs.
    with redirect_stderr(StringIO()):
        return exported.run_decompositions({})


def _without_levels(exported: ExportedProgram, family: str) -> ExportedProgram:
    try:
        return _decomposed(exported)
    except Exception as error:
        text = " ".join(str(error).split())
        raise CaptureError(
            f"cannot capture {family}: PyTorch cannot resolve its torch.vmap or torch.func ({text[:300]}): write it "
            "with operators on whole tensors"
        ) from error


def program_of(
    exported: ExportedProgram,
    structure: Structure,
    example_inputs: Mapping[str, Tensor],
    dynamic: Mapping[str, Mapping[int, str]],
    facts: ModelFacts,
    may_fix: bool = True,
    made: Made | None = None,
) -> Program:
    """Rebuild the exported graph under the Program's conventions; ``made``: where numbers are made of sizes."""
    signature = exported.graph_signature
    tensors = {**dict(exported.state_dict), **dict(exported.constants)}
    lifted = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    user_inputs = set(signature.user_inputs)
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    weights: dict[str, Tensor] = {}
    shared: dict[int, str] = {}
    names = iter(example_inputs)
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            if node.name in lifted:
                # Tied weights are one storage under two names; one name keeps them one in every artifact.
                tensor = tensors[lifted[node.name]].detach()
                target = shared.setdefault(id(tensors[lifted[node.name]]), lifted[node.name])
                weights.setdefault(target, tensor)
                new = graph.get_attr(target)
            elif isinstance(node.meta.get("val"), Tensor) and node.name in user_inputs:
                new = graph.placeholder(next(names))
            else:
                continue
        elif node.op == "output":
            kinds = [spec.kind for spec in signature.output_specs]
            results = [
                result
                for kind, result in zip(kinds, node.args[0], strict=True)
                if kind is OutputKind.USER_OUTPUT and isinstance(result, fx.Node)
            ]
            new = graph.output(tuple(mapping[r] for r in results))
        else:
            new = graph.node_copy(node, lambda n: mapping[n])
        new.meta = {k: v for k, v in node.meta.items() if k in ("val", "stack_trace")}
        new.meta["layer"] = layer_of(node)
        mapping[node] = new
    inline_regions(graph, exported.graph_module)
    make_functional(graph)
    inputs = {old.name: str(new.target) for old, new in mapping.items() if new.op == "placeholder"}
    left_out = explain_writes(exported, weights, graph, inputs, facts.family)
    varying = {
        str(node.target): {
            dim: label
            for dim, label in dynamic.get(str(node.target), {}).items()
            if not expression(node.meta["val"].shape[dim]).is_Integer
        }
        for node in graph.nodes
        if node.op == "placeholder"
    }
    numbers = [
        f"dim {dim} of {name!r} is fixed at {example_inputs[name].shape[dim]}: "
        + (explain_number(made or {}, name, dim) or _MADE)
        for name, dims in varying.items()
        for dim in dynamic.get(name, {}).keys() - dims.keys()
        if example_inputs[name].shape[dim] != 1
    ]
    conditions = conditions_of(exported, inputs, example_inputs, varying, may_fix)
    try:
        symbols, ranges = retrace(graph, weights, conditions, exported.range_constraints)
    except VerifierError as error:
        raise CaptureError(
            f"cannot capture {facts.family}: {error}. Where a size is computed from the numbers in an input, no "
            "shape is known before the model runs: take it from a tensor's shape, or make it a number"
        ) from error
    specs = tuple(
        spec_of(node, str(node.target), symbols) for node in graph.nodes if node.op == "placeholder"
    )
    outputs = list(graph.nodes)[-1].args[0]
    spec_names = structure.names()
    if len(spec_names) != len(outputs):
        raise CaptureError(
            f"the model returns {len(spec_names)} tensors and the exported graph {len(outputs)}: some output is "
            "not a tensor computed from the inputs; return tensors only"
        )
    notes = [*left_out, *numbers, *conditions.notes]
    untraced = {
        symbol: (conditions.wider.get(name, (1, None)), sorted(conditions.untraced[name]))
        for symbol, name in symbols.items()
        if name in conditions.untraced
    }
    return Program(
        graph=graph,
        weights=weights,
        inputs=specs,
        outputs=tuple(spec_of(n, name, symbols) for n, name in zip(outputs, spec_names, strict=True)),
        structure=structure,
        symbols=symbols,
        ranges=ranges,
        example_inputs=dict(example_inputs),
        facts=facts,
        notes={name: lines for name, lines in (("capture", notes), (UNTRACED, untraced)) if lines},
    )


def retrace(
    graph: fx.Graph,
    weights: Mapping[str, Tensor],
    conditions: Conditions,
    constraints: Mapping[Any, Any],
) -> tuple[dict[str, str], dict[str, tuple[int, int | None]]]:
    """Give every node a fake value in a fresh mode where dims of one name share one symbol.

    Export proves equal only what the model compares; that ``input_ids`` and ``attention_mask`` have one length is
    known from the names the caller gave their dims.  Returns the name of every symbol, and the range of every
    name as export found it (a position table bounds a length, for example).  Symbolic sizes that ``conditions`` leaves
    out become numbers.
    """
    table = SymbolTable()
    bounds: dict[str, tuple[int, int | None]] = {}
    fixed = False
    for node in graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder":
            sizes: list[int | torch.SymInt] = []
            for dim, size in enumerate(value.shape):
                expr = expression(size)
                if expr.is_Integer:
                    sizes.append(int(expr))
                    continue
                name = conditions.dynamic.get(str(node.target), {}).get(dim)
                if name is None:
                    fixed = True
                    sizes.append(int(size.node.hint))
                    continue
                sizes.append(table.symbol(name, int(size.node.hint)))
                if expr in constraints:
                    low, high = constraints[expr].lower, constraints[expr].upper
                    limit = int(high) if getattr(high, "is_Integer", False) and int(high) < 2**31 else None
                    found = (1 if int(low) <= 2 else int(low), limit)
                    bounds[name] = intersect(found, bounds.get(name, (1, None)))
                    bounds[name] = intersect(bounds[name], conditions.ranges.get(name, (1, None)))
            node.meta["val"] = table.tensor(sizes, value.dtype)
        elif node.op == "get_attr":
            node.meta["val"] = table.constant(weights[node.target])
    propagate(graph, table.mode)
    if fixed:
        replace_numbers(graph)
    for symbol, known in table.shape_env.replacements.items():
        if known.is_number and str(symbol) in table.names:
            raise CaptureError(
                f"the size called {table.names[str(symbol)]!r} cannot vary: the graph is right for {known} only. Give "
                "the dims of that name separate names, or pass dynamic={} to fix all sizes"
            )
    return table.names, bounds
