"""What a model returns: how it nests, and the flat tuple of tensors that the exporter is given in its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..errors import CaptureError
from ..structure import Structure


def structure_of(output: Any, model: str) -> Structure:
    """How ``output`` nests; ``model`` is what messages call its origin.

    Raises:
        CaptureError: it holds something other than tensors, no tensor, or two tensors of one name.
    """
    try:
        structure = Structure.of(output)
    except TypeError as error:
        raise CaptureError(
            f"cannot capture {model}: {error}. Return tensors, None, and tuples, lists, dicts, named tuples or "
            "dataclasses of them: wrap it in a module that returns these, and a number as torch.tensor(number) or not "
            "at all"
        ) from error
    names = Counter(structure.names())
    if not names:
        raise CaptureError(f"cannot capture {model}: it returns no tensor")
    name, count = names.most_common(1)[0]
    if count > 1:
        raise CaptureError(
            f"cannot capture {model}: {count} of its outputs are called {name!r}; wrap it in a module that gives them "
            "keys of their own"
        )
    return structure


@contextmanager
def flat_outputs(model: nn.Module) -> Iterator[None]:
    """Within the block ``model`` returns the tensors of its output as one tuple, in its structure's order.

    The exporter takes only classes that were registered with it.
    """

    def flatten(_: nn.Module, __: Any, output: Any) -> tuple[Any, ...]:
        return tuple(Structure.flatten(output))

    handle = model.register_forward_hook(flatten)
    try:
        yield
    finally:
        handle.remove()
