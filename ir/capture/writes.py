"""Writes to what outlives a call: buffers, parameters and the caller's tensors.  A Program makes none."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import CaptureError
from .explain import is_foreign, locate

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in .*\n\s*(.*)')
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
        if spec.kind is OutputKind.USER_OUTPUT:
            continue
        if spec.kind is OutputKind.USER_INPUT_MUTATION:
            notes.append(
                f"the model writes to its input {inputs[name]!r}; the Program leaves the caller's tensor as it is"
            )
        elif tensors[name].untyped_storage().data_ptr() in read:
            raise CaptureError(
                f"cannot capture {family}: it writes to {name!r}{place_of(written)} and what it returns depends on "
                f"what {name!r} held before, so that every call changes the next; {_MEND}"
            )
        else:
            notes.append(
                f"the model writes to {name!r}, which nothing that it returns reads; the Program does not"
            )
    return notes


def place_of(node: Any) -> str:
    """`` at FILE:LINE (code)`` for the user's line that made an exported node; nothing where it is not known."""
    frames = [match.groups() for match in _FRAME.finditer(str(node.meta.get("stack_trace", "")))]
    own = [frame for frame in frames if not is_foreign(frame[0])]
    return f" at {own[-1][0]}:{own[-1][1]} ({own[-1][2].strip()})" if own else ""


@contextmanager
def constants_guarded(model: nn.Module) -> Iterator[None]:
    """Within the block, a write to a parameter of ``model`` is a CaptureError, before anything is written.

    So is one to a tensor that is an attribute and no buffer: the exporter takes both for constants.
    """
    guard = _Guard(model)
    try:
        with guard:
            yield
    except Exception as error:
        if guard.written is None:
            raise
        raise CaptureError(
            f"cannot capture {type(model).__name__}: {locate(error, model)}; {_MEND}"
        ) from error


class _Guard(TorchDispatchMode):
    """Raises where an operator is about to write to a parameter or attribute, and keeps its name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        held = [(f"the parameter {name!r}", value) for name, value in model.named_parameters()]
        for path, module in model.named_modules():
            for name, value in vars(module).items():
                held.append((f"the attribute {f'{path}.{name}'.lstrip('.')!r}", value))
        self._names = {
            value.untyped_storage().data_ptr(): name
            for name, value in held
            if isinstance(value, Tensor) and not is_lazy(value) and value.numel()
        }
        self.written: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for argument, value in [*zip(func._schema.arguments, args, strict=False), *_named(func, kwargs)]:
                if argument.is_write and isinstance(value, Tensor):
                    self._check(value)
        return func(*args, **kwargs)

    def _check(self, value: Tensor) -> None:
        name = self._names.get(value.untyped_storage().data_ptr())
        if name is not None:
            self.written = name
            raise CaptureError(f"it writes to {name}")


def _named(func: Any, kwargs: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    return [(a, kwargs[a.name]) for a in func._schema.arguments if a.name in kwargs]
