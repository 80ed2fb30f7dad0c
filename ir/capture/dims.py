"""Which dimensions of the inputs may vary, what they are called, and the same inputs at other sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from keyword import iskeyword
from typing import Any

import torch
from torch import Tensor

from ..errors import CaptureError, InputError
from ..program import Program

Dims = dict[str, dict[int, str]]


BATCH = "batch"
_FIXING = "its code compares, unpacks or stores that size; where it takes the size from the tensor's shape it may vary"

# Numerator, denominator and addend of every size, and the batch where it is another.
_OTHERS = (
    (2, 1, 1, 1),
    (2, 1, 1, None),
    (1, 1, 1, 1),
    (1, 1, -1, 1),
    (2, 1, 0, 1),
    (2, 1, 0, None),
    (5, 3, 0, None),
    (2, 3, 0, None),
)


def dynamic_dims(inputs: Mapping[str, Tensor], dynamic: Any, tokens_first: bool = False) -> Dims:
    """The dims of each input that may vary, with their names.

    ``"auto"``: dim 0 is the batch; dim 1 counts tokens in ids, masks and ``[batch, tokens, features]`` values, and
    samples in ``[batch, samples]`` values, unless they are as many as the tokens of an input before them.  Images (four
    dims) keep their height and width; ``[batch, 1, n, n]``, or ``[batch, 1, 1, n]``, beside an input of n tokens says
    what these see, and counts them.  A dim whose size differs from its namesake's gets a name of its own.
    ``tokens_first`` swaps the first two dims of such values.

    Raises:
        InputError: an explicit mapping names an unknown input or a dim that the input does not have.
    """
    if dynamic != "auto":
        return _explicit(inputs, dynamic)
    sizes: dict[str, int] = {}
    # Masks of four dims vary with what other inputs count, whichever the model takes first.
    order = sorted(inputs, key=lambda name: inputs[name].dim() >= 4)
    found = {name: _automatic(name, inputs[name], sizes, tokens_first) for name in order}
    return {name: found[name] for name in inputs}


def _automatic(name: str, tensor: Tensor, sizes: dict[str, int], tokens_first: bool) -> dict[int, str]:
    # Ids and masks vary in every dim; the last dim of values holds features, and images keep height and width.
    counted = list(range(tensor.dim() if not tensor.dtype.is_floating_point else min(tensor.dim(), 2)))
    if tensor.dim() >= 4:
        counted = [0, *_dims_of_keys(tensor, sizes.get("tokens", 1))]
    # Beside an input that counts tokens, floats of as many are a mask.
    beside = tensor.dim() != 2 or sizes.get("tokens") == tensor.shape[1] > 1
    usual = (BATCH, "samples" if tensor.dtype.is_floating_point and not beside else "tokens")
    if tokens_first and tensor.dim() == 3:
        usual = ("tokens", BATCH)
    dims: dict[int, str] = {}
    for dim in counted:
        label = usual[dim] if dim < len(usual) else "tokens" if tensor.dim() == 4 else "features"
        size = tensor.shape[dim]
        if sizes.setdefault(label, size) != size:
            label = next((known for known, n in sizes.items() if n == size), f"{name}_{label}")
            sizes.setdefault(label, size)
        dims[dim] = label
    return dims


def _dims_of_keys(tensor: Tensor, tokens: int) -> list[int]:
    """Which dims of ``[batch, 1, queries or 1, keys]`` count so many tokens; none where it is something else."""
    is_mask = tensor.dim() == 4 and tensor.shape[1] == 1 < tokens == tensor.shape[3]
    return (
        [dim for dim in (2, 3) if tensor.shape[dim] == tokens]
        if is_mask and tensor.shape[2] in (1, tokens)
        else []
    )


def _explicit(inputs: Mapping[str, Tensor], dynamic: Any) -> Dims:
    if not isinstance(dynamic, Mapping):
        raise InputError(
            f'dynamic is {dynamic!r}: pass "auto" or a mapping such as {{"input_ids": {{0: "batch"}}}}'
        )
    for name, dims in dynamic.items():
        if name not in inputs:
            raise InputError(f"dynamic names input {name!r}; the inputs are {', '.join(inputs)}")
        if not isinstance(dims, Mapping) or any(isinstance(d, bool) or not isinstance(d, int) for d in dims):
            raise InputError(f'dynamic[{name!r}] is {dims!r}: name dims by their place, as in {{0: "batch"}}')
        for dim in dims:
            if not 0 <= dim < inputs[name].dim():
                raise InputError(
                    f"dynamic names dim {dim} of {name!r}, which has shape {list(inputs[name].shape)}"
                )
            label = dims[dim]
            if not isinstance(label, str) or not label.isidentifier() or iskeyword(label):
                raise InputError(
                    f"dynamic calls dim {dim} of {name!r} {label!r}: give it a name of letters, digits and _, as in "
                    '{0: "batch"}'
                )
    return {name: {int(d): label for d, label in dynamic.get(name, {}).items()} for name in inputs}


def check_dynamic(program: Program, dims: Dims) -> None:
    """Raise CaptureError when a dim that the caller named has been fixed."""
    for spec in program.inputs:
        for dim, label in dims.get(spec.name, {}).items():
            if isinstance(spec.shape[dim], int):
                reason = why_fixed(program, spec.name, dim) or _FIXING
                raise CaptureError(
                    f"dim {dim} of {spec.name!r} was to vary as {label!r} but the model fixes it to "
                    f"{spec.shape[dim]}: {reason}. Or leave it out of dynamic"
                )
            if spec.shape[dim] != label and spec.shape.count(spec.shape[dim]) > 1:
                raise CaptureError(
                    f"dim {dim} of {spec.name!r} was to vary as {label!r}, but to the model it is {spec.shape[dim]!r}, "
                    "as another is: give both one name, or make the code take either size from its own dim"
                )


def why_fixed(program: Program, name: str, dim: int) -> str:
    """Why a dim of an input is a number, as it was noted while capturing; empty where nothing was."""
    begins = f"dim {dim} of {name!r} is fixed at "
    lines: Sequence[str] = program.notes.get("capture", ())
    return next((line.split(": ", 1)[1] for line in lines if line.startswith(begins)), "")


def resized(program: Program) -> Iterator[dict[str, Tensor]]:
    """The example at other batches and lengths, those that show most first; nothing when sizes are fixed.

    A size that shares no factor with the example's shows what was traced for the example's divisors only; a model
    that rejects it may take twice the size, which divides by all that the size itself divides by.  Rows and tokens
    are repeated in order; counting inputs (positions) count on; masks end in padding.  A batch of one comes first:
    the least work, and the size that broadcasting treats apart.
    """
    examples, named = program.example_inputs, set(program.symbols.values())
    sizes = {
        dim: size
        for spec in program.inputs
        for size, dim in zip(examples[spec.name].shape, spec.shape, strict=True)
        if isinstance(dim, str) and dim in named
    }
    tried = [sizes]
    for numerator, denominator, more, rows in _OTHERS:
        other = {
            dim: _within(
                rows if rows and dim == BATCH else n * numerator // denominator + more,
                program.ranges.get(dim, (1, None)),
            )
            for dim, n in sizes.items()
        }
        if other not in tried:
            tried.append(other)
            yield example_at(program, other)


def example_at(program: Program, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """The example at given sizes of its dimensions, made as :func:`resized` says; others stay as they are."""
    return {
        spec.name: _resize(program.example_inputs[spec.name], [sizes.get(str(dim)) for dim in spec.shape])
        for spec in program.called_with
    }


def without_one(program: Program, name: str) -> Program:
    """``program``, in which a size that varies is 2 or more, and why."""
    how = "an example of one row" if name == BATCH else "fixed sizes and an example of 1"
    why = f"the model does something else at 1, which was not traced; capture it with {how} for that"
    high = program.ranges.get(name, (1, None))[1]
    return replace(program, ranges=program.ranges | {name: (2, high)}, least=program.least | {name: why})


def with_one_row(program: Program) -> Program | None:
    """``program`` with its example at a batch of one; None where it takes none, or its batch does not vary."""
    sizes = program.sizes()
    if BATCH not in sizes or program.ranges.get(BATCH, (1, None))[0] > 1:
        return None
    return replace(program, example_inputs=example_at(program, sizes | {BATCH: 1}))


def repeated_row(program: Program, inputs: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Two rows, both the only one of ``inputs``; None where these do not hold one."""
    two = dict(inputs)
    for spec in program.called_with:
        for dim, name in enumerate(spec.shape):
            if name == BATCH and inputs[spec.name].shape[dim] != 1:
                return None
            if name == BATCH:
                two[spec.name] = torch.cat([two[spec.name]] * 2, dim)
    return None if all(two[name] is value for name, value in inputs.items()) else two


def _within(size: int, allowed: tuple[int, int | None]) -> int:
    low, high = allowed
    return max(low, size if high is None else min(high, size))


def _resize(tensor: Tensor, sizes: list[int | None]) -> Tensor:
    for dim, size in enumerate(sizes):
        if size is None or size == tensor.shape[dim]:
            continue
        old = tensor.shape[dim]
        index = torch.arange(size, device=tensor.device)
        step = torch.arange(old, device=tensor.device)
        line = tensor.movedim(dim, -1)
        if (
            tensor.dtype in (torch.int64, torch.int32)
            and old > 1
            and bool((line == line[..., :1] + step).all())
        ):
            tensor = (line[..., :1] + index).movedim(-1, dim).to(tensor.dtype)
            continue
        tensor = tensor.index_select(dim, index % old)
        if dim == 1 and tensor.dim() == 2 and _is_mask(tensor):
            real = tensor.to(torch.uint8).sort(dim=1, descending=True).values
            # Of a row that is padded in front, only the padding may be left.
            real[:, 0] |= line.any(1)
            tensor = real.to(tensor.dtype)
    return tensor


def _is_mask(tensor: Tensor) -> bool:
    return tensor.dtype == torch.bool or bool(((tensor == 0) | (tensor == 1)).all())
