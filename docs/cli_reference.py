"""Writes the reference part of `docs/cli.md` from the commands themselves: `python docs/cli_reference.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.main import get_command

from tersor.cli import app

PAGE = Path(__file__).with_name("cli.md")
BEGIN, END = "<!-- from the commands: python docs/cli_reference.py -->", "<!-- end -->"


def reference() -> str:
    """Every command with its arguments and options, as Markdown."""
    root: Any = get_command(app)
    return "\n".join(_command(name, root.commands[name]) for name in root.commands)


def updated(page: str) -> str:
    """`page` with its reference part replaced."""
    head, rest = page.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}\n\n{reference()}\n{END}{tail}"


def _command(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and "--help" not in p.opts]
    usage = " ".join([_argument_name(p) if p.required else f"[{_argument_name(p)}]" for p in arguments])
    required = " ".join(f"{p.opts[0]} {p.metavar}" for p in options if p.required)
    line = " ".join(part for part in ("tersor", name, usage, required, "[OPTIONS]") if part)
    rows = [f"| `{_argument_name(p)}` | {_cell(p.help)} |" for p in arguments]
    rows += [f"| `{_flags(p)}` | {_cell(p.help)}{_default(p)} |" for p in options]
    return f"### `{line}`\n\n{command.help}\n\n| | |\n|---|---|\n" + "\n".join(rows) + "\n"


def _argument_name(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _flags(parameter: Any) -> str:
    flags = ", ".join(parameter.opts)
    if parameter.is_flag:
        return "/".join([flags, *parameter.secondary_opts])
    # Option(metavar=) is set on every option that takes a value: what typer makes up differs between versions.
    return f"{flags} {_cell(parameter.metavar)}"


def _default(parameter: Any) -> str:
    shown = parameter.show_default
    if isinstance(shown, str):
        return f" Default: {shown}."
    value = getattr(parameter.default, "value", parameter.default)
    return f" Default: {value}." if shown and value not in (None, False) else ""


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
