"""From a Program to an ONNX model: one walk over the FX nodes, nothing traced again."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from typing import Any, get_args

import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import torch
from torch import Tensor, fx

from tersor.ir.errors import InputError, LoweringError
from tersor.ir.program import Program, TensorSpec

from .decompose import decomposed, tensor_operands
from .emitter import CHOSEN, Emitter, Ops
from .fusions import FUSIONS
from .limits import LIMITS, limits_text, refusing
from .lowerings import LOWERINGS
from .torchlib import lower_with_torchlib
from .version import IR_VERSION, OPSET
from .weights.kind import Stored

aten = torch.ops.aten


def translate(
    program: Program,
    ops: Ops = "portable",
    metadata: Mapping[str, str] | None = None,
    *,
    stored: Mapping[str, Stored] | None = None,
    for_session: bool = False,
) -> ir.Model:
    """Lower ``program`` to an ONNX model whose weights are the Program's own tensors, not copies.

    Args:
        stored: the weights that are stored otherwise, by name.

    Raises:
        LoweringError: an operator has no ONNX form; the message names operator, node and layer.
        InputError: ``ops`` is neither ``portable`` nor ``ort``.
    """
    if ops not in get_args(Ops):
        raise InputError(f"ops={ops!r} is unknown; choose one of: {', '.join(get_args(Ops))}")
    emitter = Emitter(ops, program.symbols, program.weights, stored=stored, for_session=for_session)
    emitter.shared = _shared_weights(program)
    walker = _Walker(emitter)
    inputs = [_input(emitter, walker, node) for node in program.graph.nodes if node.op == "placeholder"]
    if not for_session:
        for node in program.graph.nodes:
            if node.op == "placeholder":
                walker.values[node] = refusing(emitter, program, str(node.target), walker.values[node])
    walker.walk(program.graph)
    outputs = _outputs(emitter, walker, program, inputs)
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=emitter.nodes,
        initializers=_used(emitter),
        opset_imports=_opsets(emitter),
        name=_name(program.facts.family),
    )
    model = ir.Model(
        graph,
        ir_version=IR_VERSION,
        producer_name="tersor",
        functions=list(emitter.functions.values()),
        metadata_props={
            **(metadata or {}),
            LIMITS: limits_text(program),
            CHOSEN: json.dumps([f"{count} {form}" for form, count in emitter.chosen.items()]),
        },
    )
    if emitter.functions:
        common_passes.InlinePass()(model)
    # Peepholes leave the transposes and reshapes that they looked through behind.
    common_passes.RemoveUnusedNodesPass()(model)
    return model


class _Walker:
    """The values of FX nodes, and how a node gets its values."""

    def __init__(self, emitter: Emitter) -> None:
        self.emitter = emitter
        self.values: dict[fx.Node, Any] = {}

    def walk(self, graph: fx.Graph, owner: fx.GraphModule | None = None) -> None:
        for node in graph.nodes:
            if node.op == "get_attr":
                self.values[node] = (
                    self.emitter.const(
                        getattr(owner, str(node.target)), getattr(owner, str(node.target)).dtype
                    )
                    if owner is not None
                    else None
                )
            elif node.op == "call_function" and node.users:
                self._call(node)

    def value(self, node: fx.Node) -> Any:
        """The value of a node; weights become initializers at their first use."""
        value = self.values[node]
        return self.emitter.weight(str(node.target)) if value is None else value

    def _call(self, node: fx.Node) -> None:
        emitter, fake = self.emitter, node.meta["val"]
        if isinstance(
            fake, torch.SymInt | torch.SymFloat | torch.SymBool | int | float
        ) and emitter.sizes.knows(fake):
            return
        outer = emitter.node
        if outer is not None:
            node.meta.setdefault("layer", outer.meta.get("layer", ""))
        emitter.node = node
        try:
            self._record(node, self._lower(node))
        except LoweringError:
            raise
        except Exception as error:
            raise emitter.fail(f"{type(error).__name__}: {error}") from error
        finally:
            emitter.node = outer

    def _record(self, node: fx.Node, result: Any) -> None:
        fake = node.meta["val"]
        if isinstance(fake, Tensor):
            self._annotate(node.name, result, fake)
        elif isinstance(fake, list | tuple) and isinstance(result, tuple):
            for number, (value, one) in enumerate(zip(result, fake, strict=True)):
                if isinstance(value, ir.Value) and isinstance(one, Tensor):
                    self._annotate(f"{node.name}_{number}", value, one)
        elif isinstance(fake, torch.SymInt):
            self.emitter.sizes.define_scalar(fake, result)
        self.values[node] = result

    def _annotate(self, name: str, value: ir.Value, fake: Tensor) -> None:
        if (value.producer() is not None and value.type is None) or value.shape is None:
            self.emitter.annotate(value, fake)
            self.emitter.rename(value, name)
        self.emitter.sizes.define(value, fake.shape)

    def _lower(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            source = self.value(node.args[0])  # type: ignore[arg-type]
            if isinstance(source, tuple):
                return source[node.args[1]]  # type: ignore[index]
            return self.emitter.op("SequenceAt", source, self.emitter.const(node.args[1]))
        for fusion in FUSIONS.get(node.target, ()):
            fused = fusion(self.emitter, node, self.value)
            if fused is not None:
                return fused
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._operand)
        own = LOWERINGS.get(node.target)
        result = own(self.emitter, *args, **kwargs) if own is not None else NotImplemented
        if result is NotImplemented:
            result = lower_with_torchlib(self.emitter, node, args, kwargs)
        return self._decompose(node) if result is NotImplemented else result

    def _operand(self, node: fx.Node) -> Any:
        fake = node.meta["val"]
        if isinstance(fake, Tensor | list | tuple):
            return self.value(node)
        return fake

    def _decompose(self, node: fx.Node) -> Any:
        module = decomposed(node)
        if module is None:
            raise self.emitter.fail(
                "no lowering of ours, no entry in the exporter's table and no decomposition covers it"
            )
        inner = module.graph
        placeholders = [n for n in inner.nodes if n.op == "placeholder"]
        for placeholder, operand in zip(placeholders, tensor_operands(node), strict=True):
            self.values[placeholder] = self.value(operand)
        self.walk(inner, module)
        result = next(n for n in reversed(inner.nodes) if n.op == "output").args[0]
        if isinstance(result, fx.Node):
            return self.value(result)
        return tuple(self.value(r) for r in result)


def _input(emitter: Emitter, walker: _Walker, node: fx.Node) -> ir.Value:
    value = ir.Value(name=str(node.target))
    emitter.reserve(value.name or "")
    emitter.annotate(value, node.meta["val"])
    emitter.sizes.define(value, node.meta["val"].shape)
    walker.values[node] = value
    return value


def _outputs(emitter: Emitter, walker: _Walker, program: Program, inputs: list[ir.Value]) -> list[ir.Value]:
    """Output values under the names of the Program's outputs, each of them its own."""
    results: list[ir.Value] = []
    taken = {value.name for value in inputs}
    emitter.node = None
    for node, spec in zip(program.output_node.args[0], program.outputs, strict=True):  # type: ignore[arg-type]
        value = walker.value(node)
        if value.producer() is None or any(value is other for other in results):
            value = emitter.op("Identity", value)
            emitter.annotate(value, node.meta["val"])
        name = _output_name(spec, taken)
        for other in emitter.named(name):
            emitter.rename(other, f"{name}_inner")
        value.name = name
        taken.add(name)
        results.append(value)
    return results


def _output_name(spec: TensorSpec, taken: set[str | None]) -> str:
    name = spec.name
    while name in taken:
        name += "_out"
    return name


def _shared_weights(program: Program) -> frozenset[str]:
    """Weights that something other than a linear layer reads: they keep their layout."""
    shared = set()
    for node in program.graph.nodes:
        if node.op == "get_attr" and any(
            u.target is not aten.linear.default or u.args[1] is not node for u in node.users
        ):
            shared.add(str(node.target))
    return frozenset(shared)


def _used(emitter: Emitter) -> list[ir.Value]:
    return [value for value in emitter.initializers.values() if value.uses()]


def _opsets(emitter: Emitter) -> dict[str, int]:
    domains = {node.domain for node in emitter.nodes} | {f.domain for f in emitter.functions.values()}
    return {"": OPSET} | {domain: 1 for domain in sorted(domains) if domain}


def _name(family: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in family) or "program"
