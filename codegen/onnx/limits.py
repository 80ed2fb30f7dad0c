"""A file refuses inputs that its Program does not stand for the model on, in standard operators.

In this process inputs are checked before a session sees them (``ir/binding.py``, ``codegen/input_domains.py``).  A file
is run by whoever has it, and would compute something else without a word.
"""

from __future__ import annotations

import json

import onnx_ir as ir

from tersor.codegen.index_limits import index_limits
from tersor.codegen.input_domains import input_domains
from tersor.ir.fillers import runs_of
from tersor.ir.program import Program

from .emitter import Emitter

LIMITS = "tersor.limits"
_SUMMED = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.INT32, ir.DataType.INT64)
_INT64 = int(ir.DataType.INT64)


def limits_text(program: Program) -> str:
    """JSON of what is bounded, by name: sizes of dimensions, numbers in inputs, and what rows are not made of."""
    sizes = {
        n: list(bounds) for n, bounds in program.ranges.items() if bounds[0] > 1 or bounds[1] is not None
    }
    numbers = {d.input: [d.low, d.high] for d in input_domains(program) if not d.fillers}
    return json.dumps({"dimensions": sizes, "inputs": numbers, "rows_are_not_all": program.fillers})


def refusing(e: Emitter, program: Program, name: str, value: ir.Value) -> ir.Value:
    """The input ``name``, read through an operator that fails where a size or a number is out of bounds.

    A size is looked at in the first of the caller's inputs that has it; states are what the Program itself returned.
    """
    given = program.called_with
    spec = next((spec for spec in given if spec.name == name), None)
    if spec is None:
        return value
    before = given[: given.index(spec)]
    seen = {size for other in before for size in other.dynamic}
    result = value
    for place, size in enumerate(spec.shape):
        if isinstance(size, str) and size not in seen and size in program.ranges:
            seen.add(size)
            low, high = program.ranges[size]
            if low > 1 or high is not None:
                count = e.op("Shape", value, start=place, end=place + 1)
                result = bounded(e, result, count, max(low, 0), high, f"{size} out of its range")
    low, high = program.domains.get(name, (None, None))
    if low is None and name in index_limits(program):
        # Past the last row whatever looks them up fails by itself; but -1 is the last row to it.
        low = 0
    if low is not None or high is not None:
        result = bounded(e, result, e.op("Cast", value, to=_INT64), low, high, f"{name} out of its domain")
    sets = program.fillers.get(name, ())
    numbers = e.op("Cast", value, to=_INT64) if sets else value
    for fillers in sets:
        real = [e.op("Cast", _outside(e, numbers, *run), to=_INT64) for run in runs_of(fillers)]
        all_real = real[0] if len(real) == 1 else e.op("Min", *real)
        counts = e.op("ReduceSum", all_real, e.ints([-1]), keepdims=0)
        result = bounded(e, result, counts, 1, None, f"a row of {name} without a token")
    if result is not value:
        e.annotate(result, e.fake(value))
    return result


def _outside(e: Emitter, numbers: ir.Value, low: int, high: int) -> ir.Value:
    if low == high:
        return e.op("Not", e.op("Equal", numbers, e.const(low)))
    return e.op("Or", e.op("Less", numbers, e.const(low)), e.op("Greater", numbers, e.const(high)))


def bounded(
    e: Emitter, value: ir.Value, numbers: ir.Value, low: int | None, high: int | None, what: str
) -> ir.Value:
    """``value``, through an operator that fails, with ``what`` in its name, where any of ``numbers`` is out of bounds.

    It adds what is found at place 0 of a zero, or at place 1, where there is none.
    """
    wrong = []
    if low is not None:
        wrong.append(e.op("Less", numbers, e.const(low)))
    if high is not None:
        wrong.append(e.op("Greater", numbers, e.const(high)))
    either = wrong[0] if len(wrong) == 1 else e.op("Or", *wrong)
    # Of inputs without any number nothing is wrong.
    places = e.op(
        "Concat", e.op("Reshape", e.op("Cast", either, to=_INT64), e.ints([-1])), e.ints([0]), axis=0
    )
    zero = e.op("Gather", e.ints([0]), e.op("ReduceMax", places, keepdims=0))
    producer = zero.producer()
    assert producer is not None
    producer.name = f"{what}/{producer.name}"
    dtype = value.dtype
    assert dtype is not None
    # Sums are defined for these everywhere.
    wide = (
        dtype if dtype in _SUMMED else ir.DataType.FLOAT if dtype.is_floating_point() else ir.DataType.INT64
    )
    given = value if wide == dtype else e.op("Cast", value, to=int(wide))
    result = e.op("Add", given, zero if wide == ir.DataType.INT64 else e.op("Cast", zero, to=int(wide)))
    result = result if wide == dtype else e.op("Cast", result, to=int(dtype))
    result.type = value.type
    return result
