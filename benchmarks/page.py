"""The page that benchmarks write: each owns the text between its two markers.

What a machine's memory decides differs from one to another by more than any limit leaves room for, so that a benchmark
may keep the newest part of its section from every other machine, behind that of the last one.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tersor.runtime.machine import machine_facts

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
# Between parts from different machines.
RULE = "\n\n---\n\n"


def write_section(name: str, body: str, page: Path = PAGE, elsewhere: bool = False) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->``.

    Args:
        elsewhere: keep what other machines have found.

    Raises:
        ValueError: the page does not have both markers, once each and in this order.
    """
    text = page.read_text(encoding="utf-8")
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(opening) != 1 or text.count(closing) != 1 or text.index(opening) > text.index(closing):
        raise ValueError(f"{page} must hold {opening} and then {closing}, each once")
    before, rest = text.split(opening)
    old, after = rest.split(closing)
    parts = [body.strip()]
    if elsewhere:
        parts += [part for part in old.strip().split(RULE) if _machine(part) not in ("", _machine(body))]
    page.write_text(f"{before}{opening}\n{RULE.join(parts)}\n{closing}{after}", encoding="utf-8")


def _machine(part: str) -> str:
    """The line of its ``provenance`` that names the processor."""
    return [*part.strip().splitlines(), "", ""][1]


def put_section(name: str, body: str, printed: bool, elsewhere: bool = False) -> None:
    """Write a section, or print it alone, as a run of a part of a benchmark does; ``elsewhere`` as above."""
    if printed:
        print(body)
    else:
        write_section(name, body, elsewhere=elsewhere)


def check_limits(missed: Sequence[str], asked: bool) -> None:
    """Exit with status 1 where ``--check`` was asked for and a limit that a section states is missed."""
    if asked and missed:
        sys.exit("\n".join(["missed:", *missed]))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def provenance(module: str) -> str:
    """When, where, with what and by which command a section was made."""
    facts = machine_facts()
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    # What --check adds is an exit status, and nothing of the section.
    options = [option for option in sys.argv[1:] if option != "--check"]
    command = shlex.join(["python", "-m", f"benchmarks.{module}", *options])
    return "\n".join(
        [
            f"Made by `{command}` on {datetime.now(UTC):%Y-%m-%d}.",
            f"{facts['processor']}, {facts['cores']} cores ({', '.join(facts['instruction_sets'])}).",
            f"{facts['read_bandwidth_gb_s']} GB/s measured read bandwidth, {facts['torch_threads']} threads.",
            f"{versions}.",
        ]
    )
