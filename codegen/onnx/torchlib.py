"""The exporter's own translation table (torchlib), for operators that no lowering of ours covers.

Its entries are onnxscript functions, which are traced here one call at a time; the table is only loaded when some
operator needs it, because that takes about a second.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from .emitter import Emitter
from .version import OPSET


def lower_with_torchlib(emitter: Emitter, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Values of ``node`` by the exporter's table, or ``NotImplemented`` where it has no entry.

    Raises:
        Exception: whatever the entry raises for operands that it does not take.
    """
    import onnxscript
    from torch.onnx._internal.exporter import _building, _dispatching

    function, _ = _dispatching.dispatch(node, _registry())
    if function is None:
        return NotImplemented
    opset = onnxscript.values.Opset("", OPSET)
    proxies: dict[ir.Value, ir.Value] = {}
    convert = functools.partial(_argument, emitter, opset, proxies)
    recorder = _building.OpRecorder(opset, {})
    with onnxscript.evaluator.default_as(recorder):
        # A dtype left out travels as -1 in the table's signatures.
        result = function(
            *(convert(a) for a in args),
            **{k: -1 if k == "dtype" and v is None else convert(v) for k, v in kwargs.items()},
        )
    if any(recorded.op_type in _CHANGED for recorded in recorder.nodes):
        return NotImplemented
    for proxy, value in {p: v for v, p in proxies.items()}.items():
        ir.convenience.replace_all_uses_with(proxy, value)
    _take(emitter, recorder)
    back = {p: v for v, p in proxies.items()}
    if isinstance(result, Sequence):
        return tuple(back.get(value, value) for value in result)
    return back.get(result, result)


# The table is written for opset 18.  Of the operators in it, what these two take has changed by ours.
_CHANGED = {"DFT", "GridSample"}


@functools.cache
def _registry() -> Any:
    from torch.onnx._internal.exporter import _registration

    # It warns of every torchvision operator where torchvision is not installed.
    logger = logging.getLogger(_registration.__name__)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return _registration.ONNXRegistry.from_torchlib(OPSET)
    finally:
        logger.setLevel(level)


def _take(emitter: Emitter, recorder: Any) -> None:
    """Move the recorded nodes and the functions they call into the emitter."""
    for node in recorder.nodes:
        emitter.adopt(node)
    for identifier, function in recorder.functions.items():
        if identifier in emitter.functions:
            continue
        if not isinstance(function, ir.Function):
            function = ir.serde.deserialize_function(function.to_function_proto())
        function.opset_imports[""] = OPSET
        emitter.functions[identifier] = function


def _argument(emitter: Emitter, opset: Any, proxies: dict[ir.Value, ir.Value], argument: Any) -> Any:
    """An argument as the table takes it: enums as ints and strings, tensors as values that know operators."""
    from torch.onnx._internal.exporter import _tensors

    if isinstance(argument, torch.SymInt):
        argument = emitter.sizes.scalar(argument)
    elif isinstance(argument, torch.SymFloat):
        argument = emitter.operand(argument, torch.float32)
    if isinstance(argument, ir.Value):
        if argument not in proxies:
            proxies[argument] = _tensors.SymbolicTensor(
                opset, argument.name, argument.shape, argument.type, const_value=argument.const_value
            )
        return proxies[argument]
    if isinstance(argument, list | tuple):
        return [_argument(emitter, opset, proxies, a) for a in argument]
    if isinstance(argument, torch.device | torch.memory_format | torch.layout):
        return str(argument)
    if isinstance(argument, torch.dtype):
        return int(ir.tensor_adapters.from_torch_dtype(argument))
    return argument
