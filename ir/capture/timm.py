"""Load a timm model by name with weights from a local file."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from .weights import check_finite, load_tensors


def load_timm(text: str) -> nn.Module:
    """The model of ``NAME@weights.safetensors``.

    Raises:
        InputError: the name is unknown, no weights are given, or they do not fit.
    """
    name, at, file = text.partition("@")
    if not at or not file:
        raise InputError(
            f"timm:{text} names no weights, and would be random: give them as timm:{name}@weights.safetensors"
        )
    return load_timm_weights(name, Path(file))


def load_timm_weights(name: str, file: Path) -> nn.Module:
    """The timm model ``name`` in evaluation mode with the tensors of ``file``."""
    try:
        import timm
    except ImportError as error:
        raise InputError(f"timm:{name} needs timm ({error}): pip install timm") from error
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 1)
        raise InputError(f"timm has no model {name!r}" + (f"; the nearest is {near[0]!r}" if near else ""))
    if not file.is_file():
        raise InputError(f"no weights at {file}")
    tensors = load_tensors(file)
    model: nn.Module = timm.create_model(name, pretrained=False, **_options(timm, name, tensors))
    expected = model.state_dict()
    for key, tensor in tensors.items():
        if key in expected and expected[key].shape != tensor.shape:
            raise InputError(
                f"{file}: {key} has shape {list(tensor.shape)}, {name} takes {list(expected[key].shape)}"
            )
    missing, unknown = sorted(expected.keys() - tensors), sorted(tensors.keys() - expected)
    if missing or unknown:
        what = f"{name} needs {missing[0]}" if missing else f"{name} has no {unknown[0]}"
        raise InputError(f"{file} does not fit: {what} ({len(missing)} missing, {len(unknown)} unknown)")
    check_finite(tensors.items(), file)
    model.load_state_dict(tensors)
    return model.eval()


def _options(timm: Any, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The number of classes and the image size that the weights were made for."""
    declared = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {}
    head = getattr(declared, "classifier", None)
    if isinstance(head, str):
        weight = tensors.get(f"{head}.weight")
        options["num_classes"] = 0 if weight is None else int(weight.shape[0])
    return options
