"""From a Program that is run in steps to a model that generates by itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from tersor.ir.fix_sizes import fix_sizes
from tersor.ir.growing import growing
from tersor.ir.program import Program
from tersor.ir.straight import straight
from tersor.ir.unpaged import unpaged

from ..checks import check_model
from ..emitter import Emitter
from ..file import SINGLE_FILE_LIMIT, write
from ..version import IR_VERSION, OPSET
from .loop import GeneratorLoop
from .part import Part


def build_generator(
    program: Program,
    ends: Collection[int] = (),
    guess: Program | None = None,
    metadata: Mapping[str, str] | None = None,
) -> ir.Model:
    """A model of standard operators that decodes greedily, its cache carried through a ``Loop``.

    It takes ``input_ids``, int64 ``[1, prompt]``, and ``max_new_tokens``, an int64 number, and returns ``new_tokens``,
    int64 ``[1, new]``: as many, or up to the first of ``ends``, which is the last then.  A prompt without tokens, ids
    that the vocabulary has not, or more tokens than the model has positions for, are an error of what runs it.

    Args:
        program: one that is run in steps, whose one output beside its states are logits.
        ends: token ids behind which nothing follows.
        guess: from the tokens so far, int64 ``[n]``, to guesses of the next, int64 ``[k]``, and how many of them count,
            int64 ``[1]``.  They are checked in the step, and those that are the model's own save one each.
        metadata: texts for the model's ``metadata_props``.

    Raises:
        LoweringError: an operator has no ONNX form, or the model fails a check.
    """
    stepping = program.stepping
    assert stepping is not None
    rows = next(spec for spec in program.inputs if spec.name == stepping.ids).shape[0]
    single = straight(unpaged(program))
    if not isinstance(rows, int):
        single = fix_sizes(single, {rows: 1})
    step = Part.of(growing(single))
    guessing = None if guess is None else Part.of(guess, "guess.")
    e = Emitter("portable", {}, {})
    inputs, output = GeneratorLoop(e, single, step, guessing, tuple(ends)).write()
    for value in e.initializers.values():
        value.name = f"loop.{value.name}"
    parts = (step,) if guessing is None else (step, guessing)
    initializers = [value for part in parts for value in part.weights] + list(e.initializers.values())
    graph = ir.Graph(
        inputs,
        [output],
        nodes=e.nodes,
        initializers=[value for value in initializers if value.uses()],
        opset_imports={"": OPSET},
        name="generator",
    )
    model = ir.Model(
        graph, ir_version=IR_VERSION, producer_name="tersor", metadata_props=dict(metadata or {})
    )
    common_passes.NameFixPass()(model)
    check_model(model, portable=True)
    return model


def export_generator(
    program: Program,
    path: Path,
    ends: Collection[int] = (),
    guess: Program | None = None,
    metadata: Mapping[str, str] | None = None,
    limit: int = SINGLE_FILE_LIMIT,
) -> list[Path]:
    """Write :func:`build_generator`'s model; the files written, from ``limit`` bytes on with the weights beside it."""
    return write(build_generator(program, ends, guess, metadata), path, limit)
