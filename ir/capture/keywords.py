"""Models whose ``forward`` takes some of its inputs as ``**kwargs``, or by position only."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

from torch import nn


@contextmanager
def spelled_out(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Within the block, ``model.forward`` has a parameter for each of ``names`` in place of its ``**kwargs``.

    ``torch.export`` reads the signature to find which dims of which input vary, and cannot look into ``**kwargs``.
    What ``model.forward`` takes by position only can be given by name, too.
    """
    forward = model.forward
    parameters = inspect.signature(forward).parameters
    extra = [name for name in names if name not in parameters]
    nameless = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_ONLY]
    if not extra and not nameless:
        yield
        return

    def with_names(*args: Any, **kwargs: Any) -> Any:
        by_name = takewhile(kwargs.__contains__, nameless[len(args) :])
        first = [kwargs.pop(name) for name in list(by_name)]
        return forward(*args, *first, **kwargs)

    fixed = [
        p.replace(kind=p.POSITIONAL_OR_KEYWORD) if p.kind is p.POSITIONAL_ONLY else p
        for p in parameters.values()
        if p.kind is not p.VAR_KEYWORD
    ]
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
