"""``python -m tersor.codegen.triton.table``: compile every kernel variant for every architecture, print what it uses.

With ``--write docs/triton.md`` the table between the file's two marks is replaced.  No GPU is needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import triton

from .aot import ARCHITECTURES, Usage, compile_variant
from .kernels import KERNELS

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def usages(architectures: Sequence[str], only: str = "") -> dict[str, dict[str, Usage]]:
    """Usage by variant and architecture, of the variants whose name contains ``only``."""
    variants = [v for kernel in KERNELS.values() for v in kernel.variants if only in v.name]
    return {v.name: {arch: compile_variant(v, arch) for arch in architectures} for v in variants}


def markdown(rows: dict[str, dict[str, Usage]], architectures: Sequence[str]) -> str:
    """The table as Markdown: registers / spilled bytes / shared KiB."""
    lines = [
        f"Triton {triton.__version__}; per cell: registers a thread / bytes spilled a thread / shared memory in KiB.",
        "",
        "| kernel | " + " | ".join(architectures) + " |",
        "|---|" + "---|" * len(architectures),
    ]
    for name, cells in rows.items():
        texts = [
            f"{u.registers} / {u.spills} / {u.shared / 1024:.1f}" for u in (cells[a] for a in architectures)
        ]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tersor.codegen.triton.table", description=__doc__)
    parser.add_argument("--arch", action="append", choices=sorted(ARCHITECTURES), help="default: all")
    parser.add_argument("--only", default="", help="variants whose name contains this")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    parser.add_argument("--write", type=Path, help="Markdown file whose table is replaced")
    options = parser.parse_args(arguments)
    architectures = options.arch or list(ARCHITECTURES)
    rows = usages(architectures, options.only)
    if not rows:
        parser.error(f"no kernel variant has {options.only!r} in its name")
    text = markdown(rows, architectures)
    if options.write is not None:
        page = options.write.read_text()
        if BEGIN not in page or END not in page:
            parser.error(f"{options.write} lacks the marks {BEGIN!r} and {END!r}")
        head, rest = page.split(BEGIN, 1)
        options.write.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}")
    if options.json:
        json.dump({n: {a: asdict(u) for a, u in cells.items()} for n, cells in rows.items()}, sys.stdout)
    else:
        print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
