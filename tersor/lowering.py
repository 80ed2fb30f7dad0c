"""Lower a Program with a target's options checked, and run it on the number of threads that was asked for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from .codegen.target import Executable, Target, find_target
from .ir.errors import InputError
from .ir.program import Program
from .passes.spec import nearest


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
    for key in given:
        if key not in known:
            raise InputError(f"target {name!r} has no option {key!r}{nearest(key, known)}")
    return target, given


def lower(program: Program, name: str, options: Mapping[str, Any]) -> Executable:
    """``program`` in the form that the target called ``name`` runs.

    Raises:
        InputError: the target or an option is unknown.
        LoweringError: the target has no form for an operator of the program.
    """
    target, given = target_with_options(name, options)
    return target.lower(program, **given)
