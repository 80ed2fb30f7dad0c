"""Programs are of the host: a model that is on another device is captured over copies of its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_HELD_HERE = ("cpu", "meta")


@contextmanager
def on_the_host(model: nn.Module) -> Iterator[None]:
    """Within the block what the model's parameters, buffers and tensor attributes hold is on the CPU.

    They are the same objects, so that what is tied stays so, and hold what they held when the block is over.
    """
    copies: dict[Any, Tensor] = {}
    with ExitStack() as stack:
        for tensor in _tensors(model):
            if tensor.device.type in _HELD_HERE or is_lazy(tensor):
                continue
            held = tensor.data
            key = (held.device, held.dtype, held.data_ptr(), held.shape, held.stride())
            stack.callback(setattr, tensor, "data", held)
            tensor.data = copies[key] if key in copies else copies.setdefault(key, held.cpu())
        yield


def _tensors(model: nn.Module) -> list[Tensor]:
    found = [
        value
        for module in model.modules()
        for value in chain(module._parameters.values(), module._buffers.values(), vars(module).values())
        if isinstance(value, torch.Tensor)
    ]
    return list({id(tensor): tensor for tensor in found}.values())
