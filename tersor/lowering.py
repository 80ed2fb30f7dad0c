"""Lower a Program with a target's options checked, and run it on the number of threads that was asked for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .codegen.stepped import called_whole
from .codegen.target import Executable, Target, find_target
from .ir.errors import InputError
from .ir.program import Program
from .passes.spec import nearest

# More than any machine has; ONNX Runtime would start them all.
_MOST_THREADS = 1024


def target_with_options(name: str, options: Mapping[str, Any]) -> tuple[Target, dict[str, Any]]:
    """The target called ``name`` and those of ``options`` that are given, known to be its own.

    Raises:
        InputError: there is no such target, or it has no such option.
    """
    target = find_target(name)
    given = {key: value for key, value in options.items() if value is not None}
    parameters = inspect.signature(target.lower).parameters
    known = [p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY]
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return target, given
    hints = get_type_hints(target.lower)
    for key, value in given.items():
        if key not in known:
            raise InputError(f"target {name!r} has no option {key!r}{nearest(key, known)}")
        _check_value(key, value, hints[key])
    target.check_options(given)
    return target, given


def _check_value(key: str, value: Any, hint: Any) -> None:
    """Raise InputError where the option's type alone shows that a value is wrong, before any work is done."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            known = list(map(str, get_args(hint)))
            raise InputError(f"{key}={value!r} is unknown{nearest(str(value), known)}")
    elif bool in (hint, *get_args(hint)):
        if not isinstance(value, bool):
            raise InputError(f"{key}={value!r} is neither True nor False")
    elif int in (hint, *get_args(hint)) and (not isinstance(value, int) or isinstance(value, bool)):
        raise InputError(f"{key}={value!r} is no whole number")
    if key == "threads" and not 1 <= value <= _MOST_THREADS:
        raise InputError(f"threads={value} is no number of threads: give 1 to {_MOST_THREADS}")


def lower(program: Program, name: str, options: Mapping[str, Any]) -> Executable:
    """``program`` in the form that the target called ``name`` runs.

    Raises:
        InputError: the target or an option is unknown.
        LoweringError: the target has no form for an operator of the program.
    """
    target, given = target_with_options(name, options)
    return called_whole(target.lower(program, **given), program.stepping)
