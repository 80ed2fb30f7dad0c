"""Models whose ``forward`` takes some of its inputs as ``**kwargs``."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def spelled_out(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Within the block, ``model.forward`` has a parameter for each of ``names`` in place of its ``**kwargs``.

    ``torch.export`` reads the signature to find which dims of which input vary, and cannot look into ``**kwargs``.
    """
    forward = model.forward
    parameters = inspect.signature(forward).parameters
    extra = [name for name in names if name not in parameters]
    if not extra:
        yield
        return

    def with_names(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    fixed = [p for p in parameters.values() if p.kind is not p.VAR_KEYWORD]
    added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in extra]
    with_names.__signature__ = inspect.Signature([*fixed, *added])  # type: ignore[attr-defined]
    own = model.__dict__.get("forward")
    model.forward = with_names
    try:
        yield
    finally:
        del model.forward
        if own is not None:
            model.forward = own
