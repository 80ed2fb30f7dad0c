"""Example inputs: what a model says it takes, and how a caller's values bind to its ``forward``."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from keyword import iskeyword
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..arrays import tensor_of
from ..errors import InputError
from ..program import Program

BATCH = 2
TOKENS = 10
FRAMES = 24
# How alike two names are of which one is taken for the other misspelt: of all letters, those in common.
_MISSPELT = 0.85


def suggested_inputs(model: nn.Module) -> dict[str, Tensor]:
    """Inputs that fit ``model``, from its configuration.

    Raises:
        InputError: the model does not say what it takes.
    """
    for suggest in (_from_huggingface, _from_timm, _from_torch):
        found = suggest(model)
        if found is not None:
            return found
    raise InputError(
        f"{type(model).__name__} does not say what inputs it takes: pass example_inputs, a mapping of the names of "
        f"{_signature_text(model)} to tensors"
    )


def bind_example(model: nn.Module, given: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split the caller's values into tensors by name and other arguments by name; None values are left out.

    Raises:
        InputError: a value has no parameter to go to, is a nest of tensors, or there is no tensor at all.
    """
    parameters = _parameters(model)
    values: dict[str, Any]
    if isinstance(given, Tensor | np.ndarray):
        given = (given,)
    if isinstance(given, Mapping):
        # In the order of the signature, however the mapping was filled: inputs may be given by position later.
        named = {str(name): value for name, value in given.items()}
        values = {name: named[name] for name in parameters if name in named} | named
    elif isinstance(given, Sequence) and not isinstance(given, str):
        names = list(parameters)
        if len(given) > len(names):
            raise InputError(
                f"{len(given)} inputs given, {_signature_text(model)} takes {len(names)}{_advice(model)}"
            )
        values = dict(zip(names, given, strict=False))
    else:
        raise InputError(
            f"example_inputs is a {type(given).__name__}: pass a mapping of names to tensors or a tuple"
        )
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(model.forward).parameters.values())
    unknown = [name for name in values if name not in parameters and not takes_any]
    if unknown:
        raise InputError(f"{_signature_text(model)} has no input {unknown[0]!r}{_advice(model)}")
    unwritable = [name for name in values if not name.isidentifier() or iskeyword(name)]
    if unwritable:
        raise InputError(
            f"input {unwritable[0]!r} is no name that Python can write: wrap the model in a module whose forward names "
            "its inputs"
        )
    values = {name: _as_tensor(name, value) for name, value in values.items()}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    fixed = {name: v for name, v in values.items() if not isinstance(v, Tensor) and v is not None}
    for name, value in fixed.items():
        if not isinstance(value, bool | int | float | str):
            raise InputError(
                f"input {name!r} is a {type(value).__name__}; inputs are tensors, or numbers, strings and booleans "
                "that become constants: wrap the model in a module whose forward takes the tensors one by one"
            )
    if not tensors:
        raise InputError(
            f"example_inputs holds no tensor; {_signature_text(model)} needs at least one tensor input"
        )
    return {name: tensor.detach() for name, tensor in tensors.items()}, fixed


def _as_tensor(name: str, value: Any) -> Any:
    """An array as a tensor, and a number of NumPy's as Python's; what is neither, as it is."""
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray):
        return value
    try:
        return tensor_of(value)
    except ValueError as error:
        raise InputError(
            f"input {name!r} is an array of which no tensor can be made ({error}): give one of numbers"
        ) from error


def swallowed(model: nn.Module, inputs: Iterable[str]) -> dict[str, str]:
    """Of inputs that only ``**kwargs`` of ``forward`` takes, the name that may have been meant; empty for none."""
    known = _parameters(model)
    missing = [name for name in known if name not in set(inputs)]
    near = {name: difflib.get_close_matches(name, missing, 1, _MISSPELT) for name in inputs}
    return {name: near[name][0] if near[name] else "" for name in inputs if name not in known}


def check_read(
    program: Program, names: Mapping[str, str], model: str, counts: Callable[[str], bool]
) -> list[str]:
    """One line for every input of ``names`` that nothing reads.

    Args:
        names: of inputs that may be misspelt, as :func:`swallowed` says; ``model`` is what messages call it.
        counts: whether the model returns something else without an input.

    Raises:
        InputError: it is misspelt, and what was meant is not given.
    """
    read = {str(node.target) for node in program.graph.nodes if node.op == "placeholder" and node.users}
    lines = []
    for name, meant in names.items():
        if name in read or counts(name):
            continue
        if meant:
            raise InputError(
                f"{model} has no input {name!r}, and reads nothing of it: did you mean {meant!r}?"
            )
        lines.append(f"nothing reads input {name!r}: the outputs are the same without it")
    return lines


def tokens_first(model: nn.Module) -> bool:
    """Whether the model takes ``[tokens, batch, features]``, as PyTorch's own layers do unless told otherwise."""
    kinds = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)
    if not isinstance(model, kinds):
        return False
    return not next(m for m in model.modules() if isinstance(m, nn.MultiheadAttention)).batch_first


def unlike(sizes: Iterable[int]) -> int:
    """The smallest size of two or more that is none of ``sizes``."""
    taken = set(sizes)
    return next(size for size in count(2) if size not in taken)


def lengthen_single_sizes(
    inputs: Mapping[str, Tensor],
    dims: Mapping[str, Mapping[int, str]],
    accepts: Callable[[Mapping[str, Tensor]], bool],
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Inputs in which sizes of one that may vary are larger, as far as the model accepts it.

    A traced size of one would be fixed, because broadcasting treats it apart.

    Args:
        dims: the names of the dims that may vary, by input.
        accepts: whether the model runs on such inputs.

    Returns:
        the inputs, and one line for every dim that had to stay at one.
    """
    result = dict(inputs)
    places: dict[str, list[tuple[str, int]]] = {}
    for name, named in dims.items():
        for dim, label in named.items():
            if inputs[name].shape[dim] == 1:
                places.setdefault(label, []).append((name, dim))
    notes = []
    for found in places.values():
        # A size that nothing else has: two dims must not fit each other because both were one.
        size = unlike(size for tensor in result.values() for size in tensor.shape)
        longer = dict(result)
        for name, dim in found:
            longer[name] = longer[name].repeat_interleave(size, dim)
        if accepts(longer):
            result = longer
        else:
            name, dim = found[0]
            notes.append(
                f"dim {dim} of {name!r} is fixed at 1, the example's: the model rejects the example with more there "
                "alone; give a longer example if it is to vary"
            )
    return result, tuple(notes)


def _from_huggingface(model: nn.Module) -> dict[str, Tensor] | None:
    config, main = getattr(model, "config", None), getattr(model, "main_input_name", None)
    if config is None or not isinstance(main, str):
        return None
    accepted = _parameters(model)
    dtype = next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), torch.float32)
    if main == "input_ids":
        return _text(config, accepted)
    if main == "pixel_values":
        vision = getattr(config, "vision_config", None) or config
        height, width = _pair(getattr(vision, "image_size", None) or 224)
        channels = int(getattr(vision, "num_channels", 3))
        frames = (int(vision.num_frames),) if hasattr(vision, "num_frames") else ()
        return {main: _noise((BATCH, *frames, channels, height, width), dtype)}
    if main == "input_features" and hasattr(config, "max_source_positions"):
        return {main: _noise((BATCH, config.num_mel_bins, 2 * config.max_source_positions), dtype)}
    if main == "input_values" and hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):
        return {main: _noise((BATCH, config.max_length, config.num_mel_bins), dtype)}
    if main == "input_values" and hasattr(config, "conv_kernel"):
        return {main: _noise((BATCH, _samples(config.conv_kernel, config.conv_stride)), dtype)}
    return None


def _text(config: Any, accepted: Mapping[str, Any]) -> dict[str, Tensor]:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = getattr(text, "max_position_embeddings", None)
    # Position tables may start behind the padding id, as RoBERTa's do.
    tokens = TOKENS if not isinstance(limit, int) else max(2, min(TOKENS, limit - 4))
    generator = torch.Generator().manual_seed(0)
    inputs = {"input_ids": torch.randint(int(text.vocab_size), (BATCH, tokens), generator=generator)}
    if "attention_mask" in accepted:
        # With padding in it: models leave a mask of ones out, and would be compared with another kernel.
        inputs["attention_mask"] = torch.ones(BATCH, tokens, dtype=torch.int64)
        inputs["attention_mask"][1, tokens - tokens // 3 :] = 0
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in accepted:
        inputs["decoder_input_ids"] = torch.randint(
            int(text.vocab_size), (BATCH, tokens - 1), generator=generator
        )
    return inputs


def _from_timm(model: nn.Module) -> dict[str, Tensor] | None:
    declared = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if not isinstance(declared, Mapping) or "input_size" not in declared:
        return None
    channels, height, width = declared["input_size"]
    own_size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    height, width = _pair(own_size) if own_size is not None else (height, width)
    convolution = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = convolution.in_channels if convolution is not None else channels
    dtype = next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), torch.float32)
    name = next(iter(_parameters(model)))
    return {name: _noise((BATCH, int(channels), int(height), int(width)), dtype)}


def _from_torch(model: nn.Module) -> dict[str, Tensor] | None:
    if not isinstance(model, nn.TransformerEncoder | nn.TransformerEncoderLayer):
        return None
    attention = next(m for m in model.modules() if isinstance(m, nn.MultiheadAttention))
    shape = (BATCH, TOKENS) if attention.batch_first else (TOKENS, BATCH)
    return {"src": _noise((*shape, attention.embed_dim), attention.out_proj.weight.dtype)}


def _samples(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Audio samples that leave ``FRAMES`` frames behind a stack of unpadded convolutions."""
    length = FRAMES
    for kernel, stride in reversed(list(zip(kernels, strides, strict=True))):
        length = (length - 1) * stride + kernel
    return length


def _noise(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def _pair(size: Any) -> tuple[int, int]:
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _parameters(model: nn.Module) -> dict[str, inspect.Parameter]:
    """Parameters of ``forward`` that have a name of their own, in order."""
    named = inspect.signature(model.forward).parameters
    return {n: p for n, p in named.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _advice(model: nn.Module) -> str:
    """What to do where ``forward`` does not name its inputs; nothing where it does."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return ": give the model that it wraps, its .module"
    kinds = {p.kind for p in inspect.signature(model.forward).parameters.values()}
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return " by position: give a mapping of names to tensors"
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return " by name, and the others have none: wrap the model in a module whose forward names its inputs"
    return ""


def _signature_text(model: nn.Module) -> str:
    return f"{type(model).__name__}.forward({', '.join(_parameters(model))})"
