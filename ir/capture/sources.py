"""Find the model a caller means: a module at hand, or a string that says where it is."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from ..errors import InputError
from ..program import ModelFacts
from .huggingface import config_of, generation_of, is_huggingface

SCRIPTED = "TorchScript modules, of torch.jit.script, trace or load, are not captured"


@dataclass(frozen=True)
class Source:
    """A model ready for capture: a module, or a program that ``torch.export`` saved."""

    facts: ModelFacts
    module: nn.Module = field(default_factory=nn.Identity)
    exported: ExportedProgram | None = None


def find_source(model_or_path: Any) -> Source:
    """Resolve what the caller handed over; see ``capture`` for the forms.

    Raises:
        InputError: there is nothing there, or it cannot be read.
    """
    if isinstance(model_or_path, nn.Module):
        return _of_module(model_or_path, "")
    if not isinstance(model_or_path, str | Path):
        raise InputError(
            f"cannot capture a {type(model_or_path).__name__}: pass an nn.Module, a model folder, a .pt2 archive, "
            "timm:NAME@weights.safetensors or module.path:factory"
        )
    text, path = str(model_or_path), Path(model_or_path)
    if not str(model_or_path):
        # An empty path is the working folder, which nobody means who says nothing.
        raise InputError(
            "the model's name is empty: give a model folder, a .pt2 archive or module.path:factory"
        )
    if text.startswith("timm:"):
        from .timm import load_timm

        return _of_module(load_timm(text.removeprefix("timm:")), text)
    if path.is_dir():
        from .folder import load_folder

        return _of_module(load_folder(path), text)
    if path.suffix == ".pt2":
        from .pt2.archive import load_archive

        return Source(ModelFacts(source=text, captured_by="archive"), exported=load_archive(path))
    if path.is_file():
        raise InputError(
            f"{text} is a file of weights or unknown kind: give the model's folder, a .pt2 archive, or the weights "
            "behind a timm name, as in timm:vit_small_patch16_224@weights.safetensors"
        )
    module_name, colon, attribute = text.partition(":")
    if colon and all(part.isidentifier() for part in [*module_name.split("."), *attribute.split(".")]):
        return _of_module(_from_factory(module_name, attribute), text)
    raise InputError(
        f"no model at {text!r}: expected a model folder, a .pt2 archive, timm:NAME@weights.safetensors or "
        "module.path:factory"
    )


def _of_module(model: nn.Module, source: str) -> Source:
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            f"{source or 'the model'} is a {type(model).__name__}. {SCRIPTED}: give the nn.Module that it was made of"
        )
    config = config_of(model)
    route, tokenizer_files = "module", {}
    if is_huggingface(model):
        from .folder import tokenizer_files_of

        route = "huggingface"
        tokenizer_files = tokenizer_files_of(model)
    elif type(model).__module__.startswith("timm."):
        route = "timm"
    facts = ModelFacts(
        family=str(config.get("model_type") or type(model).__name__),
        source=source,
        config=config,
        generation=generation_of(model),
        captured_by=route,
        tokenizer_files=tokenizer_files,
    )
    return Source(facts, model)


def _from_factory(module_name: str, attribute: str) -> nn.Module:
    where = f"{module_name}:{attribute}"
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(f"cannot import the module of {where}: {error}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise InputError(f"{where}: {module_name} has no {attribute!r}")
        found = getattr(found, part)
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise InputError(f"{where} is a {type(found).__name__}, neither a module nor a factory of one")
        try:
            found = found()
        except Exception as error:
            raise InputError(f"{where}() raised {type(error).__name__}: {error}") from error
    if not isinstance(found, nn.Module):
        raise InputError(f"{where} gives a {type(found).__name__}, not an nn.Module")
    return found
