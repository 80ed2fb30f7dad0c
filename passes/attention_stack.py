"""What every family that acts on a stack of attention layers asks first."""

from __future__ import annotations

from tersor.ir.analyses.layers import Layers
from tersor.ir.program import Program

from .contract import Refusal


def no_stack(program: Program, stack: Layers) -> Refusal:
    """Why a Program has no attention layers on a residual stream: what is known of the first that is none."""
    if stack.outside:
        node, reason = stack.outside[0]
        return Refusal(f"no stack of attention layers: {reason}", node.name)
    present = {node.name for node in program.graph.nodes}
    for name, reason in program.facts.unraised:
        return Refusal(
            f"no stack of attention layers: one stayed as it was written ({reason})",
            name if name in present else "",
        )
    return Refusal("no stack of attention layers: no attention was found")
