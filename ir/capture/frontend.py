"""``capture``: the way in.  Find the model, its inputs and its free dimensions, export, raise, compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..errors import CaptureError, InputError
from ..program import Program
from ..raising import raise_attention
from ..structure import Structure
from .attributes import explain_attributes
from .check import Samples, compare_on, compare_with_model
from .dim_names import named_by_attention
from .dims import check_dynamic
from .empty_rows import can_be_tried, refusing_empty_rows, wrong_in_empty_rows
from .example_rows import Example, NotTheExampleError, Reasons, check_takes, examples
from .experts import dense_experts
from .export import Request, call_model, run_model
from .fused_layers import explain_fused_layers, zeros_at_padding
from .host import on_the_host
from .huggingface import cache_free, is_huggingface, packed_as_called, semantic_attention
from .inputs import (
    bind_example,
    check_read,
    lengthen_single_sizes,
    suggested_inputs,
    swallowed,
    tokens_first,
)
from .keywords import spelled_out
from .padded import hides, wrong_at_padding
from .sources import Source, find_source
from .state import Snapshot, inference_state
from .untraced_sizes import with_untraced_sizes
from .whole_tables import exported

Dynamic = Literal["auto"] | Mapping[str, Mapping[int, str]]


def capture(
    model_or_path: nn.Module | str | Path,
    example_inputs: Any = None,
    dynamic: Dynamic = "auto",
    samples: Samples | None = None,
) -> Program:
    """Capture a model as a Program and measure that it computes what the model computes.

    Args:
        model_or_path: a module (Hugging Face, timm or any other), or where to find one: a Hugging Face folder
            (``config.json`` and safetensors), a ``.pt2`` archive, ``timm:NAME@weights.safetensors`` or
            ``module.path:factory``.
        example_inputs: a mapping of input names to tensors, a tuple of tensors, or one tensor; arguments that are
            no tensors are passed to the model as they are and become constants.  May be left out where the model
            says what it takes.  A batch or length of one is repeated, because a traced size of one would be fixed;
            where the model rejects that, or takes one row for something else, ``notes["capture"]`` says what was
            fixed.
        dynamic: ``"auto"`` lets every batch and length dimension vary that the model allows, and fixes the heights
            and widths of images; a mapping such as ``{"input_ids": {0: "batch", 1: "tokens"}}`` names the
            dimensions that must vary; ``{}`` fixes all.
        samples: further inputs on which the model is run and compared with the Program, as the Program takes them.

    Returns:
        the Program, in evaluation mode, sharing the model's weights, or over copies on the CPU where those are on
        another device.  ``facts.deviation`` holds the largest absolute difference from the model, on the example and
        at another batch and length; ``facts.unraised`` the attention-like code that stayed plain ATen, with reasons.

    Raises:
        InputError: the path, the folder's files, the inputs or ``dynamic`` do not fit.
        CaptureError: the model cannot be traced, a dimension that was asked for cannot vary, or the captured
            graph does not compute what the model computes, on a sample either.
    """
    source = find_source(model_or_path)
    with torch.no_grad():
        if source.exported is not None:
            return _from_archive(source, samples)
        captured = partial(_from_module, source, source.module, example_inputs, dynamic, samples)
        try:
            return captured(must_take=dynamic == "auto" and example_inputs is not None)
        except NotTheExampleError as found:
            kept = found.kept
        try:
            return captured(kept=kept)
        except (InputError, CaptureError):
            # Samples may hold more, and say what is wanted.
            return captured()


def _from_module(
    source: Source,
    model: nn.Module,
    example_inputs: Any,
    dynamic: Dynamic,
    samples: Samples | None,
    must_take: bool = False,
    kept: Reasons | None = None,
) -> Program:
    """As :func:`capture`.

    Args:
        must_take: whether the Program must take the example as it was given, sizes of one included.
        kept: where sizes of one stay, and why.

    Raises:
        NotTheExampleError: it does not take it.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    with on_the_host(model), inference_state(model), zeros_at_padding(fused), ExitStack() as stack:
        given = example_inputs if example_inputs is not None else suggested_inputs(model)
        inputs, fixed = bind_example(model, given)
        inputs = {name: tensor.cpu() for name, tensor in inputs.items()}
        stack.enter_context(packed_as_called(model, partial(call_model, model, fixed, **inputs)))
        stack.enter_context(cache_free(model))
        unnamed = swallowed(model, inputs)
        stack.enter_context(spelled_out(model, [*inputs, *fixed]))
        notes = tuple(f"{name} is fixed at {value!r}, as it was given" for name, value in fixed.items())
        before = Snapshot(model)
        choice = examples(inputs, dynamic, tokens_first(model), example_inputs is None, kept)
        as_given = inputs
        example, (expected, structure) = _first_taken(model, fixed, choice, as_given, before)
        inputs, dims = dict(example.inputs), example.dims
        notes += example.notes
        if any(inputs[name].shape[dim] == 1 for name, named in dims.items() for dim in named):
            inputs, told = lengthen_single_sizes(inputs, dims, partial(_runs, model, fixed))
            notes += told
            expected, structure = run_model(model, inputs, fixed)
        notes += tuple(explain_attributes(model, before, partial(call_model, model, fixed, **inputs)))
        if before.rebuilt():
            # For inputs such as these: what it makes of others is in the model as it was found.
            before.restore()
        experts: set[str] = set()
        with ExitStack() as dialect:
            if is_huggingface(model):
                dialect.enter_context(semantic_attention(model))
                experts = dialect.enter_context(dense_experts(model))
            facts = replace(source.facts, fixed=fixed)
            request = Request(model, inputs, structure, dims, fixed, facts, may_fix=dynamic == "auto")
            candidates = list(exported(request))
            notes += tuple(sorted(experts))
        call = partial(call_model, model, fixed)
        check = partial(check_takes, given=as_given) if must_take else None
        rename = named_by_attention if dynamic == "auto" else None
        for program in candidates:
            if dynamic != "auto":
                check_dynamic(program, dims)
            own = program is candidates[-1]
            result = expected if own else call(**program.example_inputs)
            try:
                program = _raised(program, result, call, rename, samples, check)
            except CaptureError:
                if own:
                    raise
                continue
            if own or _takes(program, inputs):
                break
        counts = partial(_counts, model, fixed, inputs, expected, structure)
        notes += tuple(check_read(program, unnamed, type(model).__name__, counts))
        notes += tuple(explain_fused_layers(program, model, call, fused, samples))
        if notes:
            program.notes["capture"] = [*notes, *program.notes.get("capture", ())]
        return program


def _first_taken(
    model: nn.Module,
    fixed: Mapping[str, Any],
    choice: Sequence[Example],
    given: Mapping[str, torch.Tensor],
    before: Snapshot,
) -> tuple[Example, tuple[Any, Structure]]:
    """The first example that the model takes, and what it returns for it.

    Args:
        given: the example as it was given.
        before: the model's state before, which a call that fails must not leave its mark on.
    """
    for example in choice[:-1]:
        with suppress(InputError):
            return example, run_model(model, example.inputs, fixed)
        before.restore()
    try:
        return choice[-1], run_model(model, choice[-1].inputs, fixed)
    except InputError as error:
        if all(choice[-1].inputs[name] is value for name, value in given.items()):
            raise
        raise InputError(
            f"{error}; rows of the example were repeated, as dynamic lets their number vary: leave that dim out where "
            "the model takes one row"
        ) from error


def _takes(program: Program, inputs: Mapping[str, torch.Tensor]) -> bool:
    try:
        program.bind(**inputs)
    except InputError:
        return False
    return True


def _counts(
    model: nn.Module,
    fixed: Mapping[str, Any],
    inputs: Mapping[str, torch.Tensor],
    expected: Any,
    structure: Structure,
    name: str,
) -> bool:
    """Whether the model returns something else, or nothing, without an input."""
    without = {other: value for other, value in inputs.items() if other != name}
    try:
        found, nest = run_model(model, without, fixed)
    except (InputError, CaptureError):
        return True
    pairs = zip(Structure.flatten(found), Structure.flatten(expected), strict=False)
    return nest != structure or not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)


def _runs(model: nn.Module, fixed: Mapping[str, Any], inputs: Mapping[str, torch.Tensor]) -> bool:
    try:
        run_model(model, inputs, fixed)
    except InputError:
        return False
    return True


def _from_archive(source: Source, samples: Samples | None) -> Program:
    from .pt2.archive import import_archive

    assert source.exported is not None
    program, call = import_archive(source.exported, source.facts)
    return _raised(program, call(**program.example_inputs), call, None, samples)


def _as_on_samples(program: Program, model: Callable[..., Any], samples: Samples | None) -> Program:
    """The Program, with the largest difference from the model on samples too."""
    worst = program.facts.deviation or 0.0
    for number, inputs in enumerate(samples(program) if samples is not None else ()):
        try:
            expected = model(**inputs)
        except (RuntimeError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"the model itself does not take sample {number}: {reason}") from error
        try:
            worst = max(worst, compare_on(program, inputs, expected))
        except CaptureError as error:
            raise CaptureError(f"on sample {number}: {error}") from error
    return program.with_facts(deviation=worst)


def _raised(
    program: Program,
    expected: Any,
    model: Callable[..., Any],
    rename: Callable[[Program], Program] | None,
    samples: Samples | None,
    check: Callable[[Program], None] | None = None,
) -> Program:
    """The Program with its attention raised, compared with the model, which returned ``expected`` for the example.

    ``check`` may raise where the Program is not to be used.
    """

    def raised(padded_rows: bool) -> Program:
        found = raise_attention(program, padded_rows)
        return found if rename is None else rename(found)

    def compared(found: Program, own_masks: bool = False) -> Program:
        found = compare_with_model(found, expected, model)
        found = with_untraced_sizes(refusing_empty_rows(found, model, own_masks), model)
        if check is not None:
            check(found)
        return _as_on_samples(found, model, samples)

    short = raised(False)
    whole = raised(True) if any(map(hides, short.graph.nodes)) else short
    if str(whole) == str(short):
        return compared(short)

    # Where it matters whether padded rows count, trials have to show that nothing reads them.
    def wrong_somewhere() -> str | None:
        return wrong_at_padding(short, model) or wrong_in_empty_rows(short, model, whole)

    if can_be_tried(short) and wrong_somewhere() is None:
        with suppress(CaptureError):  # Inputs that are none of the trials' may show it yet.
            return compared(short, own_masks=True)
    found = compared(whole)
    wrong = wrong_at_padding(found, model)
    if wrong is not None:
        raise CaptureError(f"where rows are padded, {wrong}")
    return found
