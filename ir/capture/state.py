"""Leave a model as it was found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import transformer
from torch.nn.parameter import is_lazy

_DETECT = "_detect_is_causal_mask"
_REGISTRIES = {"_parameters", "_buffers", "_modules"}
_PLAIN = (bool, int, float, str, type(None))


@contextmanager
def inference_state(model: nn.Module) -> Iterator[None]:
    """Within the block every module is in evaluation mode and PyTorch's fused encoder layer is off.

    Attributes and buffers that calls within the block change are put back.

    The fused layer (``torch._transformer_encoder_layer_fwd``) hides its attention in one opaque operator and, with
    a padding mask, returns other rows for padding than the layers it replaces.  Its layers do not compare the values
    of a mask to find out whether it is causal, which no traced mask can answer: they apply it as it is.
    """
    found = Snapshot(model)
    fastpath = torch.backends.mha.get_fastpath_enabled()
    detect = getattr(transformer, _DETECT, None)
    # Each is put back, whatever happens when another is.
    with ExitStack() as stack:
        stack.callback(found.restore)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fastpath)
        if detect is not None:
            stack.callback(setattr, transformer, _DETECT, detect)
            setattr(transformer, _DETECT, lambda mask, is_causal=None, size=None: is_causal is True)
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        yield


class Snapshot:
    """Attributes, buffers, parameters and parts of every module, and what is in lists, dicts and sets among them."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {module: name for name, module in model.named_modules()}
        self.modules = list(self.names)
        self._before = [(type(module), _attributes(module)) for module in self.modules]
        self._parts = [dict(module._modules) for module in self.modules]
        self._buffers = [_values(module) for module in self.modules]
        self._parameters = [dict(module._parameters) for module in self.modules]

    def rebuilt(self) -> bool:
        """Whether modules have other parts by now."""
        return not all(map(_identical, self._parts, (module._modules for module in self.modules)))

    def changed(self) -> list[tuple[nn.Module, str]]:
        """Attributes that hold something else by now."""
        places = []
        for module, (_, before) in zip(self.modules, self._before, strict=True):
            after = _attributes(module)
            places += [
                (module, name)
                for name in before | after
                if name not in before or name not in after or not _same(before[name][1], after[name][1])
            ]
        return places

    def restore(self) -> None:
        # Each is put back, whatever happens when another is.
        with ExitStack() as stack:
            for module, (kind, _), values in zip(self.modules, self._before, self._buffers, strict=True):
                stack.callback(_put_back, module, values, whole=type(module) is kind)
            for module, (kind, _), held in zip(self.modules, self._before, self._parameters, strict=True):
                if type(module) is kind and not _identical(module._parameters, held):
                    stack.callback(module._parameters.update, held)
                    stack.callback(module._parameters.clear)
            stack.callback(self._restore_attributes)

    def _restore_attributes(self) -> None:
        for module, parts in zip(self.modules, self._parts, strict=True):
            if module._modules != parts:
                module._modules.clear()
                module._modules.update(parts)
        for module, (kind, before) in zip(self.modules, self._before, strict=True):
            if type(module) is not kind:
                continue  # A lazy module became what it stands for.
            for name in _attributes(module).keys() - before.keys():
                del module.__dict__[name]
            module.__dict__.update({name: value for name, (value, _) in before.items()})
            for value, contents in before.values():
                _refill(value, contents)


def _identical(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    return left.keys() == right.keys() and all(left[name] is right[name] for name in left)


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    return {n: (value, _contents(value)) for n, value in vars(module).items() if n not in _REGISTRIES}


def _contents(value: Any) -> Any:
    """``value``, or what a list, dict or set holds now."""
    if isinstance(value, dict):
        return [(key, item, _contents(item)) for key, item in value.items()]
    if isinstance(value, list | set):
        return [(None, item, _contents(item)) for item in value]
    return value


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, list | tuple) and type(left) is type(right):
        return len(left) == len(right) and all(map(_same, left, right))
    return left is right or (isinstance(left, _PLAIN) and type(left) is type(right) and left == right)


def _refill(value: Any, contents: Any) -> None:
    if isinstance(value, dict | list | set) and not _same(_contents(value), contents):
        value.clear()
        for key, item, inner in contents:
            if isinstance(value, dict):
                value[key] = item
            elif isinstance(value, list):
                value.append(item)
            else:
                value.add(item)
            _refill(item, inner)


def _values(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    return {
        name: (buffer, buffer.clone() if isinstance(buffer, Tensor) and not is_lazy(buffer) else None)
        for name, buffer in module._buffers.items()
    }


def _put_back(module: nn.Module, values: dict[str, tuple[Any, Any]], whole: bool) -> None:
    """Buffers of a module; ``whole``: those that it did not have, or had no value of, too."""
    if whole:
        for name in module._buffers.keys() - values.keys():
            del module._buffers[name]
        module._buffers.update({name: None for name, (buffer, _) in values.items() if buffer is None})
    for name, (buffer, before) in values.items():
        if before is not None:
            module._buffers[name] = buffer
            if not _equal(buffer, before):
                buffer.copy_(before)


def _equal(left: Tensor, right: Tensor) -> bool:
    try:
        return torch.equal(left, right)
    except (NotImplementedError, RuntimeError):
        return False  # Sparse tensors and those without values cannot be compared.
