"""Import a ``.pt2`` archive of ``torch.export.save``."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from ..errors import CaptureError, InputError
from ..program import ModelFacts, Program
from ..shapes import expression
from .dims import Dims, dynamic_dims
from .export import convert
from .guards import UnreadableGuard, guards_of
from .outputs import structure_of


def load_archive(path: Path) -> ExportedProgram:
    """The exported program in ``path``.

    Raises:
        InputError: the file is missing, damaged, made by another PyTorch, or holds pickled values.
    """
    if not path.is_file():
        raise InputError(f"no archive at {path}")
    _refuse_pickles(path)
    try:
        return torch.export.load(str(path))
    except Exception as error:
        text = " ".join(str(error).split())
        raise InputError(
            f"{path} cannot be read by torch {torch.__version__} ({type(error).__name__}: {text[:300]}): export it "
            "again with this version"
        ) from error


def _refuse_pickles(path: Path) -> None:
    """torch.export.load unpickles some tensors and, at a pinch, the sample inputs; those could run code."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            for name in names:
                if name.endswith("_config.json") and "/data/" in name:
                    held = json.loads(archive.read(name)).get("config", {})
                    pickled = [key for key, entry in held.items() if entry.get("use_pickle")]
                    if pickled:
                        raise InputError(
                            f"{path} holds {pickled[0]} as a pickle, which can run code when it is read: export the "
                            "model with plain tensors"
                        )
            if not any(name.endswith("models/model.json") for name in names):
                raise InputError(f"{path} is no archive of torch.export.save: it holds no models/model.json")
            for name in names:
                if "/sample_inputs/" in name:
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
    except InputError:
        raise
    except zipfile.BadZipFile as error:
        raise InputError(f"{path} is no whole archive ({error}): fetch or export it again") from error
    except Exception as error:
        raise InputError(
            f"{path} holds sample inputs that are no plain tensors, reading them could run code: export the model "
            "with tensor inputs"
        ) from error


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
    module = exported.module()

    def call(**values: Tensor) -> Any:
        given = [values.get(str(n), leaf) for n, leaf in zip(names, leaves, strict=True)]
        # An exported model may write to its inputs.
        given = [value.clone() if isinstance(value, Tensor) else value for value in given]
        args, kwargs = pytree.tree_unflatten(given, spec)
        return module(*args, **kwargs)

    structure = structure_of(call(**examples), facts.source)
    return convert(exported, structure, examples, _labels(exported, examples), facts), call


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
