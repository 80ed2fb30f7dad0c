"""The commands in one place, and what happens to every error of theirs: one line, one exit code, no traceback."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from . import bench, convert, diff, doctor, generate, inspect, passes, train_prompts, verify, why
from .exit_codes import ExitCode, code_of
from .output import emit_error
from .signals import end_on_signals, ending

# Parameters of the Python interface that errors name, and that are options here: name=value, with or without quotes.
_PARAMETER = re.compile(
    r"\b(example_inputs|calibration|max_deviation|on_violation|require_speedup|target|ops|weights|threads)"
    r"(?:=(?:(['\"])([^'\"]*)\2|([\w.+-]+))?)"
)


class Commands(TyperGroup):
    """The command group; ``main`` is where every way of starting ``tersor`` ends up, the tests' runner included."""

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        arguments = list(sys.argv[1:] if args is None else args)
        shown = "--traceback" in arguments
        extra["standalone_mode"] = False
        code: int
        try:
            with _quiet_libraries(shown):
                result = super().main(arguments or ["--help"], "tersor", **extra)
            code = result if isinstance(result, int) else ExitCode.OK
            if ExitCode.INTERRUPTED in (code, ending()):
                # Typer has made an exit of what the signal raised.
                code = emit_error("interrupted", "Interrupted", ExitCode.INTERRUPTED, arguments)
        except BaseException as error:
            code = _outcome(error, arguments, shown)
        sys.exit(int(code))


app = typer.Typer(
    cls=Commands,
    name="tersor",
    help="A compiler that makes transformer models faster, and measures what each rewrite kept.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command("convert")(convert.convert)
app.command("passes")(passes.passes)
app.command("inspect")(inspect.inspect)
app.command("verify")(verify.verify)
app.command("bench")(bench.bench)
app.command("generate")(generate.generate)
app.command("train-prompts")(train_prompts.train_prompts)
app.command("why")(why.why)
app.command("diff")(diff.diff)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """The console script."""
    end_on_signals()
    # As for `python -m tersor`: a model's module is looked for in the current folder too, though last.
    sys.path.append(str(Path.cwd()))
    app()


def _outcome(error: BaseException, arguments: list[str], shown: bool) -> int:
    """The exit code of a command that ended with ``error``, which is said where somebody has to know of it."""
    # What a signal raised may be another exception by now: libraries catch, wrap and rename what they meet.
    asked = ending()
    if asked == ExitCode.INTERRUPTED or isinstance(error, KeyboardInterrupt | typer.Abort):
        return emit_error("interrupted", "Interrupted", ExitCode.INTERRUPTED, arguments)
    if asked is not None:
        return asked
    # Typer makes an exit of it too.
    if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
        # Whoever read our output has seen enough; Python must not try to flush the rest on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    if isinstance(error, SystemExit):
        # No command of ours raises it: success must not be what the caller of a model's own sys.exit() sees.
        message = (
            f"the code of the model or of an imported module ended the program with sys.exit({error.code!r})"
        )
        return emit_error(message, "InputError", ExitCode.USAGE, arguments)
    if hasattr(
        error, "format_message"
    ):  # a usage error; its class lies in click or in typer, by typer's version
        return emit_error(_usage_message(error), "UsageError", ExitCode.USAGE, arguments)
    if shown:
        traceback.print_exception(error)
    code = code_of(error)
    message = as_options(str(error)) or type(error).__name__
    if code is ExitCode.DEFECT:
        message = f"internal defect: {type(error).__name__}: {message}"
        message += "" if shown else " (run again with --traceback, and please report it)"
    return emit_error(message, type(error).__name__, code, arguments)


def as_options(message: str) -> str:
    """A message that names parameters of the Python interface, with the options of the command line in their place."""

    def option(match: re.Match[str]) -> str:
        name, value = match[1].replace("_", "-"), match[3] or match[4]
        return f"--{name} {value}" if value else f"--{name}"

    message = message.replace("dynamic={}", "--dynamic none")
    message = re.sub(r"\bdynamic(?= names (?:input|dim))|(?<=out of )dynamic\b", "--dynamic", message)
    return _PARAMETER.sub(option, message).replace("example_inputs", "--example-inputs")


def _usage_message(error: Any) -> str:
    near = getattr(error, "possibilities", None)
    context = getattr(error, "ctx", None)
    if hasattr(error, "option_name"):
        hint = f"; did you mean {' or '.join(sorted(near))}?" if near else ""
        if not hint and context is not None:
            hint = f" (see {context.command_path} --help)"
        return f"no option {error.option_name!r}{hint}"
    text = str(error.format_message())
    return f"{text} (see {context.command_path} --help)" if context is not None else text


@contextmanager
def _quiet_libraries(shown: bool) -> Iterator[None]:
    """One error is one line: what libraries log and warn of belongs to their developers."""
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ.setdefault(name, "1")
    if shown:
        yield
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")
    before = logging.root.manager.disable
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.disable(logging.CRITICAL)
            yield
    finally:
        logging.disable(before)
