"""FLOPs counted while a Program runs, to hold the cost analysis against."""

from __future__ import annotations

from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tersor.ir.dialect import DIALECT
from tersor.ir.program import GraphInterpreter, Program


class _Opened(GraphInterpreter):
    """Calls the reference of a dialect operator in its place, so that the counter sees the products inside."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if getattr(target, "namespace", "") == "tersor":
            return DIALECT[target._opname].reference(*args, **kwargs)
        return super().call_function(target, args, kwargs)


def counted_flops(program: Program, inputs: dict[str, Any]) -> int:
    """What ``torch.utils.flop_counter`` counts while ``program`` runs on ``inputs``."""
    # The counter has no formula for the fused attention of CPUs: as plain products it is counted.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        _Opened(program).run(*(inputs[spec.name] for spec in program.inputs))
    return int(counter.get_total_flops())
