"""Find the line of the user's model in an error that tracing raised."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch
from torch import fx, nn

# Of what a module is made with, in messages.
_LONGEST_TOLD = 60
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in .*\n\s*(.*)')


def locate(error: BaseException, model: nn.Module) -> str:
    """``reason, raised in MODULE at FILE:LINE (code)``, for the innermost frame that runs the model's own code."""
    import linecache

    names = {id(module): name for name, module in model.named_modules()}
    module_text = place = ""
    for frame, line in _frames(error):
        file = frame.f_code.co_filename
        owner = frame.f_locals.get("self")
        if id(owner) in names and names[id(owner)]:
            module_text = f" in {names[id(owner)]} ({_kind(owner)})"
        if Path(file).is_file() and not is_foreign(file):
            code = linecache.getline(file, line).strip()
            open_end = " ..." if code.count("(") > code.count(")") else ""
            place = f" at {file}:{line} ({code}{open_end})"
    lines = [text for text in str(error).strip().splitlines() if text.strip()]
    reason = lines[0].strip().rstrip(".") if lines else type(error).__name__
    return f"{reason}, raised{module_text}{place}" if module_text or place else reason


def _kind(module: nn.Module) -> str:
    """Its class, and of PyTorch's own what it is made with: how many rows a table has."""
    own = is_foreign(inspect.getfile(type(module)))
    told = module.extra_repr() if own else ""
    return (
        f"{type(module).__name__}({told})" if told and len(told) <= _LONGEST_TOLD else type(module).__name__
    )


def innermost(error: BaseException, model: nn.Module) -> nn.Module | None:
    """The module of ``model`` in which ``error`` was raised."""
    held = {id(module) for module in model.modules()}
    owners = [frame.f_locals.get("self") for frame, _ in _frames(error)]
    return next((owner for owner in reversed(owners) if id(owner) in held), None)


def place_of(node: fx.Node) -> str:
    """`` at FILE:LINE (code)`` for the user's line that made an exported node; nothing where it is not known."""
    frames = [match.groups() for match in _FRAME.finditer(str(node.meta.get("stack_trace", "")))]
    # Code that was made while tracing is in no file.
    own = [frame for frame in frames if Path(frame[0]).is_file() and not is_foreign(frame[0])]
    return f" at {own[-1][0]}:{own[-1][1]} ({own[-1][2].strip()})" if own else ""


def layer_of(node: fx.Node) -> str:
    """The path of the module that an exported node is of; empty for the model itself."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path, _ = list(stack.values())[-1]
    return str(path)


def is_foreign(file: str) -> bool:
    """Whether ``file`` is PyTorch's or Tersor's own."""
    # Resolved on both sides: an environment may be reached through a link.
    own = Path(torch.__file__).resolve().parent, Path(__file__).resolve().parents[1]
    return any(Path(file).resolve().is_relative_to(folder) for folder in own)


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """Frames of the whole chain of errors, the first cause's last: tracing wraps what the model raised."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    for link in chain:
        trace = link.__traceback__
        below_model = False
        while trace is not None:
            below_model = below_model or isinstance(trace.tb_frame.f_locals.get("self"), nn.Module)
            if below_model:
                yield trace.tb_frame, trace.tb_lineno
            trace = trace.tb_next
