"""Import a ``.pt2`` archive of ``torch.export.save``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass
from torch.export.pt2_archive._package import load_pt2
from torch.utils import _pytree as pytree

from ...errors import CaptureError, InputError
from ...program import ModelFacts, Program
from ...shapes import expression
from ..dims import Dims, dynamic_dims
from ..export import convert
from ..guards import UnreadableGuard, guards_of
from ..inline import refuse_regions
from ..outputs import structure_of
from .members import safe_copy


def load_archive(path: Path) -> ExportedProgram:
    """The exported program in ``path``.

    Raises:
        InputError: the file is missing, damaged, made by another PyTorch, or holds what reading it could run.
    """
    if not path.is_file():
        raise InputError(f"no archive at {path}")
    copy = safe_copy(path)
    try:
        # torch.export.load tries older formats, which are pickles, where this fails.
        exported = cast(ExportedProgram, load_pt2(copy).exported_programs["model"])
        held = pytree.tree_leaves([exported.state_dict, exported.constants, exported.example_inputs])
        if any(isinstance(value, Tensor) and value.device.type != "cpu" for value in held):
            return move_to_device_pass(exported, "cpu")
        return exported
    except Exception as error:
        what = f"cannot be read by torch {torch.__version__}"
        raise InputError(_unusable(str(path), what, error)) from error


def import_archive(exported: ExportedProgram, facts: ModelFacts) -> tuple[Program, Callable[..., Any]]:
    """The Program of an exported program, and a function of its inputs by name that runs the original."""
    if exported.example_inputs is None:
        raise CaptureError(
            f"{facts.source} was saved without sample inputs; export it again, saving keeps them"
        )
    leaves, spec = pytree.tree_flatten(exported.example_inputs)
    names = list(exported.graph_signature.user_inputs)
    if len(names) != len(leaves):
        raise CaptureError(f"{facts.source} takes {len(names)} inputs but holds {len(leaves)} sample inputs")
    examples = {str(n): leaf for n, leaf in zip(names, leaves, strict=True) if isinstance(leaf, Tensor)}
    try:
        guards_of(exported)
    except UnreadableGuard as error:
        # torch runs these lines as Python.
        raise InputError(
            f"{facts.source} holds a condition on its inputs that is no arithmetic on sizes, running it could run any "
            f"code: {str(error)[:200]}"
        ) from error
    refuse_regions(exported.graph_module, facts.source)
    module = _module(exported, facts.source)

    def call(**values: Tensor) -> Any:
        given = [values.get(str(n), leaf) for n, leaf in zip(names, leaves, strict=True)]
        # An exported model may write to its inputs.
        given = [value.clone() if isinstance(value, Tensor) else value for value in given]
        args, kwargs = pytree.tree_unflatten(given, spec)
        return module(*args, **kwargs)

    try:
        result = call(**examples)
    except Exception as error:
        raise InputError(_unusable(facts.source, "cannot run on its own sample inputs", error)) from error
    structure = structure_of(result, facts.source)
    return convert(exported, structure, examples, _labels(exported, examples), facts), call


def _module(exported: ExportedProgram, source: str) -> Any:
    try:
        return exported.module()
    except Exception as error:
        raise InputError(_unusable(source, "holds no whole model", error)) from error


def _unusable(source: str, what: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{source} {what} ({type(error).__name__}: {text[:300]}): export the model again"


def _labels(exported: ExportedProgram, examples: Mapping[str, Tensor]) -> Dims:
    """A name for every symbolic dim of the inputs: the usual one where its place has one, else the symbol's own."""
    usual = dynamic_dims(examples, "auto")
    known: dict[str, str] = {}
    labels: Dims = {}
    for node in exported.graph.nodes:
        value = node.meta.get("val")
        if node.op != "placeholder" or node.name not in examples:
            continue
        for dim, size in enumerate(value.shape):
            symbol = str(expression(size))
            if isinstance(size, torch.SymInt) and not symbol.isdigit():
                name = known.setdefault(symbol, usual[node.name].get(dim, symbol))
                labels.setdefault(node.name, {})[dim] = name
    return labels
