"""Writes to what outlives a call: buffers, parameters and the caller's tensors.  A Program makes none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import HigherOrderOperator
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import CaptureError
from .explain import locate, place_of
from .inline import call_of, way_out

aten = torch.ops.aten

_COPIES = (
    *(aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten._to_copy.default),
    *(aten.alias.default, aten.detach.default, aten.clone.default),
)
_MEND = (
    "a Program is a function of its inputs. Compute a new tensor in place of the write, or make the state an input and "
    "an output of forward"
)


def explain_writes(
    exported: ExportedProgram,
    weights: Mapping[str, Tensor],
    graph: fx.Graph,
    inputs: Mapping[str, str],
    family: str,
) -> list[str]:
    """One line for every write that the functional ``graph`` leaves out.

    A write to a buffer or parameter is left out where nothing that ``graph`` returns reads what the buffer held
    before the call: then no call can tell the calls before it.

    Args:
        inputs: the input's name for every placeholder of ``exported``.

    Raises:
        CaptureError: something returned depends on what an earlier call wrote; the message names the line.
    """
    read = {
        weights[str(node.target)].untyped_storage().data_ptr(): str(node.target)
        for node in graph.nodes
        if node.op == "get_attr"
    }
    tensors = {**dict(exported.state_dict), **dict(exported.constants)}
    results = next(iter(reversed(exported.graph.nodes))).args[0]
    notes = []
    for spec, written in zip(exported.graph_signature.output_specs, results, strict=True):
        name = str(spec.target)
        if spec.kind is OutputKind.USER_OUTPUT or _held_before(written, exported) == name:
            continue
        if spec.kind is OutputKind.USER_INPUT_MUTATION:
            notes.append(
                f"the model writes to its input {inputs[name]!r}; the Program leaves the caller's tensor as it is"
            )
        elif _has_storage(tensors[name]) and tensors[name].untyped_storage().data_ptr() in read:
            raise CaptureError(
                f"cannot capture {family}: it writes to {name!r}{place_of(written)} and what it returns depends on "
                f"what {name!r} held before, so that every call changes the next; {_MEND}"
            )
        else:
            notes.append(
                f"the model writes to {name!r}, which nothing that it returns reads; the Program does not"
            )
    return notes


def _held_before(written: Any, exported: ExportedProgram) -> str | None:
    """The buffer whose own value is written, through copies that change nothing."""
    signature = exported.graph_signature
    held = {**signature.inputs_to_buffers, **signature.inputs_to_parameters}
    while isinstance(written, fx.Node) and written.op != "placeholder":
        source = written.args[0] if written.args else None
        if written.target not in _COPIES or not isinstance(source, fx.Node):
            return None
        if source.meta["val"].dtype != written.meta["val"].dtype:
            return None
        written = source
    return held.get(written.name) if isinstance(written, fx.Node) else None


@contextmanager
def constants_guarded(model: nn.Module) -> Iterator[None]:
    """Within the block, a write to a parameter of ``model`` is a CaptureError, before anything is written.

    So is one to a tensor that is an attribute and no buffer: the exporter takes both for constants.  And so is what no
    Program can hold: a sparse weight, and an operator that calls Python functions, such as ``torch.cond``.
    """
    guard = _Guard(model)
    try:
        # A function that is compiled under the guard would be left uncompiled ever after, torch.cond's own too.
        with torch.compiler.set_stance("force_eager"), guard:
            yield
    except Exception as error:
        if not guard.way_out:
            raise
        raise CaptureError(
            f"cannot capture {type(model).__name__}: {locate(error, model)}; {guard.way_out}"
        ) from error


class _Guard(TorchDispatchMode):
    """Raises where an operator is about to write to a parameter or attribute, reads a sparse one or calls functions.

    Attributes:
        way_out: what to do about the operator that was refused; empty until one is.
    """

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        held = [(f"the parameter {name!r}", value) for name, value in model.named_parameters()]
        for path, module in model.named_modules():
            for name, value in vars(module).items():
                held.append((f"the attribute {f'{path}.{name}'.lstrip('.')!r}", value))
        self._names = {
            value.untyped_storage().data_ptr(): name
            for name, value in held
            if isinstance(value, Tensor) and not is_lazy(value) and _has_storage(value) and value.numel()
        }
        held += [(f"the buffer {name!r}", value) for name, value in model.named_buffers()]
        self._sparse = {
            id(value): name for name, value in held if isinstance(value, Tensor) and not _has_storage(value)
        }
        self.way_out = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            self.way_out = way_out(func)
            raise CaptureError(call_of(func))
        for value in tree_leaves((args, kwargs)) if self._sparse else ():
            if id(value) in self._sparse:
                self.way_out = "a Program holds dense weights: store it dense, as .to_dense() gives it"
                raise CaptureError(f"{self._sparse[id(value)]} is sparse ({value.layout})")
        if func._schema.is_mutable:
            for argument, value in [*zip(func._schema.arguments, args, strict=False), *_named(func, kwargs)]:
                if argument.is_write and isinstance(value, Tensor):
                    self._check(value)
        return func(*args, **kwargs)

    def _check(self, value: Tensor) -> None:
        name = self._names.get(value.untyped_storage().data_ptr()) if _has_storage(value) else None
        if name is not None:
            self.way_out = _MEND
            raise CaptureError(f"it writes to {name}")


def _has_storage(value: Tensor) -> bool:
    """Whether ``value`` lies in one piece of memory; a sparse tensor is several tensors."""
    return value.layout is torch.strided


def _named(func: Any, kwargs: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    return [(a, kwargs[a.name]) for a in func._schema.arguments if a.name in kwargs]
