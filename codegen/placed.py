"""A Program as a module on a device: Programs are of the host, and some targets run them elsewhere."""

from __future__ import annotations

import torch
from torch import fx

from tersor.ir.operands import arguments
from tersor.ir.program import Program


def placed(program: Program, device: torch.device) -> fx.GraphModule:
    """``program.module()`` with its weights, and all that its graph makes from no tensor, on ``device``."""
    if device.type == "cpu":
        return program.module()
    edited = program.edit()
    move_constants(edited, device)
    return edited.module().to(device)


def move_constants(program: Program, device: torch.device) -> None:
    """Let every node of ``program`` (an edited copy) that names or implies a device name ``device``."""
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        node.args = fx.node.map_aggregate(node.args, lambda a: device if isinstance(a, torch.device) else a)
        node.kwargs = fx.node.map_aggregate(
            node.kwargs, lambda a: device if isinstance(a, torch.device) else a
        )
        if _makes_a_tensor(node):
            node.kwargs = {**node.kwargs, "device": device}


def _makes_a_tensor(node: fx.Node) -> bool:
    """Whether ``node`` creates a tensor from no tensor, and names no device to create it on."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or all(argument.name != "device" for argument in schema.arguments):
        return False
    if arguments(node)["device"] is not None:
        return False
    return not any(isinstance(n.meta.get("val"), torch.Tensor) for n in node.all_input_nodes)
