"""Exit codes: part of the command line's contract, listed in ``docs/cli.md``."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    OK = 0
    FAILED = 1  # a verification or a benchmark that ran, and failed
    USAGE = 2  # bad input: an option, a spec, a model, a file
    REFUSED = 3  # a pass cannot act, a promise or the deviation budget is broken, an operator has no form
    DEFECT = 4  # Tersor's own fault
    INTERRUPTED = 130


def code_of(error: BaseException) -> ExitCode:
    """The exit code of an error that no command has dealt with."""
    from ..ir import errors as kinds

    if isinstance(error, kinds.RefusedError | kinds.PromiseError | kinds.LoweringError):
        return ExitCode.REFUSED
    if isinstance(error, kinds.VerifierError) or not isinstance(error, kinds.TersorError):
        return ExitCode.DEFECT
    return ExitCode.USAGE
