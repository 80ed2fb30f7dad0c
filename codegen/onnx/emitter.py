"""Writes ONNX nodes for one Program: constants shared, sizes symbolic, types known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor, from_torch_dtype
from torch import Tensor, fx

from tersor.ir.errors import LoweringError
from tersor.ir.shapes import expression, size_text

from .sizes import Sizes
from .weights.kind import Stored

Ops = Literal["portable", "ort"]
Operand = ir.Value | Tensor | int | float | bool | torch.SymInt

MICROSOFT = "com.microsoft"
# Where a model says which forms were chosen: a JSON list.
CHOSEN = "tersor.chosen"
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Emitter:
    """The writer that every lowering gets.

    Attributes:
        ops: ``portable`` (standard operators only) or ``ort`` (ONNX Runtime's own are allowed).
        node: the FX node being lowered.
        shared: names of weights that something other than linear layers reads too.
        stored: the weights that are stored otherwise than the Program holds them, by name.
        for_session: whether the model is run in this process, and not written to a file.
        chosen: how often each form was chosen of the operators that have several.
    """

    def __init__(
        self,
        ops: Ops,
        symbols: Mapping[str, str],
        weights: Mapping[str, Tensor],
        *,
        stored: Mapping[str, Stored] | None = None,
        for_session: bool = False,
    ) -> None:
        self.ops = ops
        self.stored = dict(stored or {})
        self.for_session = for_session
        self.node: fx.Node | None = None
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self.functions: dict[ir.OperatorIdentifier, ir.Function] = {}
        self.sizes = Sizes(self)
        self.symbols = dict(symbols)
        self.shared: frozenset[str] = frozenset()
        self.chosen: Counter[str] = Counter()
        self._weights = weights
        self._constants: dict[tuple[Any, ...], ir.Value] = {}
        self._shared: dict[Hashable, ir.Value] = {}
        self._counter = 0
        self._names: dict[str, ir.Value | None] = dict.fromkeys(weights)
        self._given: set[str] = set()

    # -- nodes

    def op(self, kind: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Append a node with one result; attributes that are None are left out."""
        return self.ops_out(kind, 1, *inputs, domain=domain, **attributes)[0]

    def ops_out(
        self, kind: str, results: int, *inputs: ir.Value | None, domain: str = "", **attributes: Any
    ) -> tuple[ir.Value, ...]:
        """Append a node with several results."""
        given = {name: value for name, value in attributes.items() if value is not None}
        self._counter += 1
        layer = self.layer
        node = ir.Node(
            domain,
            kind,
            inputs,
            attributes=ir.convenience.convert_attributes(given),
            num_outputs=results,
            name=f"{layer + '/' if layer else ''}{kind}_{self._counter}",
        )
        for number, value in enumerate(node.outputs):
            value.name = f"{kind}.{self._counter}" if results == 1 else f"{kind}.{self._counter}.{number}"
        self.nodes.append(node)
        return tuple(node.outputs)

    def adopt(self, node: ir.Node) -> None:
        """Append a node made elsewhere."""
        self._counter += 1
        node.name = f"{self.layer + '/' if self.layer else ''}{node.op_type}_{self._counter}"
        for number, value in enumerate(node.outputs):
            value.name = f"{node.op_type}.{self._counter}.{number}"
        self.nodes.append(node)

    @property
    def layer(self) -> str:
        return str(self.node.meta.get("layer", "")) if self.node is not None else ""

    def fail(self, reason: str, hint: str = "") -> LoweringError:
        """An error that names the operator, node and layer at hand."""
        node = self.node
        where = f"{node.name} ({node.target})" if node is not None else "the graph"
        layer = f", layer {self.layer}" if self.layer else ""
        advice = hint or "keep this model on target='torch', or register a lowering for the operator"
        return LoweringError(f"cannot lower {where}{layer} to ONNX: {reason}; {advice}")

    def shared_value(self, key: Hashable, compute: Callable[[], ir.Value]) -> ir.Value:
        """``compute()``, written once per key: for masks and the like, which every layer asks for again."""
        if key not in self._shared:
            self._shared[key] = compute()
        return self._shared[key]

    def choose(self, form: str) -> None:
        """Note that the operator at hand, which has several, takes this form."""
        assert self.node is not None
        name = getattr(self.node.target, "_opname", str(self.node.target))
        self.chosen[f"{name} by {form}"] += 1

    # -- constants and weights

    def const(self, value: Any, dtype: torch.dtype = torch.int64) -> ir.Value:
        """A constant tensor from a number, a nest of numbers or a small tensor; equal constants are one."""
        tensor = value.to(dtype) if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype)
        tensor = tensor.detach().contiguous()
        key = (dtype, tuple(tensor.shape), tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        if key not in self._constants:
            self._constants[key] = self.initializer(f"const.{len(self._constants)}", tensor)
        return self._constants[key]

    def ints(self, values: Sequence[int]) -> ir.Value:
        """A 1-D int64 constant."""
        return self.const(list(values), torch.int64)

    def weight(self, name: str) -> ir.Value:
        """The initializer of a weight of the Program."""
        return self._read(name, name, lambda weight: weight)

    def transposed_weight(self, name: str) -> ir.Value:
        """A weight matrix stored transposed; nothing is copied before the file is written."""
        if self.for_session:
            return self.shared_value(
                ("transposed", name), lambda: self.op("Transpose", self.weight(name), perm=[1, 0])
            )
        return self._read(f"{name}.T", name, Tensor.t)

    def _read(self, under: str, name: str, view: Callable[[Tensor], Tensor]) -> ir.Value:
        weight, stored = self._weights[name].detach(), self.stored.get(name)
        if stored is None:
            return self.initializer(under, view(weight))
        return stored.read(self, under, weight, view)

    def initializer(self, name: str, tensor: Tensor) -> ir.Value:
        """The initializer for ``name``, which is ``tensor`` where there is none yet.

        It is called so too, unless an input is: those are names that a caller knows, as are outputs' (``named``).
        """
        if name in self.initializers:
            return self.initializers[name]
        held = TorchTensor(tensor, name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(held.shape), type=ir.TensorType(held.dtype), const_value=held
        )
        value.meta["val"] = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        if name in self._given:
            self.rename(value, name)
        else:
            self._names[name] = value
        self.initializers[name] = value
        return value

    # -- types and shapes

    def annotate(self, value: ir.Value, fake: Tensor) -> None:
        """Write the dtype and symbolic shape of ``fake`` onto ``value``."""
        value.meta["val"] = fake
        value.type = ir.TensorType(from_torch_dtype(fake.dtype))
        dims: list[int | str] = []
        for size in fake.shape:
            expr = expression(size)
            dims.append(int(expr) if expr.is_Integer else size_text(size, self.symbols))
        value.shape = ir.Shape(dims)

    def reserve(self, name: str) -> None:
        """Keep the name of an input from being given to a value."""
        self._names[name] = None
        self._given.add(name)

    def rename(self, value: ir.Value, name: str) -> None:
        """Give a value a readable name, with a suffix where it is taken."""
        unique, number = name, 0
        while unique in self._names:
            number += 1
            unique = f"{name}_{number}"
        self._names[unique] = value
        value.name = unique

    def named(self, name: str) -> list[ir.Value]:
        """The values that have this name now."""
        value = self._names.get(name)
        return [value] if value is not None and value.name == name else []

    def fake(self, value: ir.Value) -> Tensor:
        """The fake tensor of a value that stands for an FX node or a weight."""
        fake = value.meta.get("val")
        if not isinstance(fake, Tensor):
            raise self.fail(f"the value {value.name} has no known shape")
        return fake

    @property
    def result(self) -> Tensor:
        """The fake tensor of the node at hand (of its first result when it has several)."""
        assert self.node is not None
        value = self.node.meta["val"]
        return value if isinstance(value, Tensor) else value[0]

    def cast(self, value: ir.Value, dtype: torch.dtype) -> ir.Value:
        """``value`` in ``dtype``; nothing is written where its dtype is known to be that."""
        target = from_torch_dtype(dtype)
        if value.dtype == target:
            return value
        result = self.op("Cast", value, to=int(target))
        result.type = ir.TensorType(target)
        fake = value.meta.get("val")
        if isinstance(fake, Tensor):
            result.meta["val"] = fake.to(dtype)
        return result

    def operand(self, value: Operand, dtype: torch.dtype) -> ir.Value:
        """A tensor, number or size as a value of ``dtype``."""
        if isinstance(value, ir.Value):
            return self.cast(value, dtype)
        if isinstance(value, torch.SymInt | torch.SymFloat):
            return self.cast(self.sizes.scalar(value), dtype)
        return self.const(value, dtype)

    # -- sizes

    def shape(self, sizes: Sequence[int | torch.SymInt]) -> ir.Value:
        """Sizes as a 1-D int64 value: a constant where all are fixed."""
        return self.sizes.vector(sizes)

    def reshape(
        self, value: ir.Value, sizes: Sequence[int | torch.SymInt], current: Sequence[Any] | None = None
    ) -> ir.Value:
        """Reshape; dims that keep their size are written 0, one unknown is written -1, the rest is computed."""
        before = self.fake(value).shape if current is None else current
        target: list[int | torch.SymInt] = []
        unknown = 0
        for position, size in enumerate(sizes):
            expr = expression(size)
            if expr.is_Integer and int(expr) != 0:
                target.append(int(expr))
            elif position < len(before) and expression(before[position]) == expr:
                target.append(0)
            elif expr.is_Integer:
                return self.op("Reshape", value, self.shape(sizes), allowzero=1)
            else:
                unknown += 1
                target.append(-1 if unknown == 1 else size)
        if unknown > 1:
            # The one -1 goes to the first unknown; the others are computed from the inputs' sizes.
            return self.op("Reshape", value, self.shape(target))
        return self.op("Reshape", value, self.ints([int(t) for t in target]))


def stored_name(source: Any) -> str | None:
    """The name of the weight that an argument of an FX node is; None for a computed value."""
    return str(source.target) if isinstance(source, fx.Node) and source.op == "get_attr" else None
