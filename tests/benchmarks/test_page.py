"""Each benchmark writes its own section and leaves the rest of the page alone."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from importlib import import_module
from pathlib import Path
from string import Formatter
from typing import Any

import pytest

import benchmarks
from benchmarks.page import PAGE, RULE, provenance, table, write_section

BENCHMARKS = [
    path.stem
    for path in sorted(Path(benchmarks.__file__).parent.glob("*.py"))
    if "_INTRODUCTION =" in path.read_text()
]


def test_only_the_text_between_the_markers_changes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("top\n<!-- a -->\nold\n<!-- /a -->\nmiddle\n<!-- b -->\nkept\n<!-- /b -->\nend\n")
    write_section("a", "new\n", page)
    assert (
        page.read_text() == "top\n<!-- a -->\nnew\n<!-- /a -->\nmiddle\n<!-- b -->\nkept\n<!-- /b -->\nend\n"
    )


def test_what_another_machine_found_is_kept_behind(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- a -->\nold\n<!-- /a -->\nend\n")
    found = (("A", 1), ("B", 2), ("A", 3))
    first, other, again = (f"Made by\n{machine}, 2 cores\n\n{figure}" for machine, figure in found)
    for text in (first, other, again):
        write_section("a", text, page, elsewhere=True)
    assert page.read_text() == f"<!-- a -->\n{again}{RULE}{other}\n<!-- /a -->\nend\n"


@pytest.mark.parametrize(
    "text", ["nothing", "<!-- a -->", "<!-- /a --> <!-- a -->", "<!-- a --> <!-- a --> <!-- /a -->"]
)
def test_a_page_without_its_markers_is_refused_and_unchanged(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="each once"):
        write_section("a", "new", page)
    assert page.read_text() == text


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_real_page_has_a_place_for_every_benchmark(name: str, tmp_path: Path) -> None:
    copy = tmp_path / "benchmarks.md"
    copy.write_text(PAGE.read_text())
    write_section(name, "measured", copy)
    assert "measured" in copy.read_text()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_real_page_says_what_its_benchmark_says_now(name: str) -> None:
    """A section whose introduction is another one was made by other code: run that benchmark again."""
    page = PAGE.read_text()
    section = page[page.index(f"<!-- {name} -->") : page.index(f"<!-- /{name} -->")].split(RULE)[0]
    # A setting in braces is whatever the run had.
    parts = Formatter().parse(import_module(f"benchmarks.{name}")._INTRODUCTION)
    pattern = "".join(re.escape(text) + (".+?" if setting else "") for text, setting, *_ in parts)
    assert re.search(f"\n{pattern}\n", section)


def bench_commands() -> set[str]:
    """What `make bench` runs, as a section says it."""
    target = (PAGE.parents[1] / "Makefile").read_text().split("\nbench:")[1].split("\n\n")[0]
    return {line.strip().replace("$(PY)", "python") for line in target.splitlines()[1:]}


def test_every_section_was_made_by_what_make_bench_runs() -> None:
    made = re.findall(r"^Made by `(.*)` on ", PAGE.read_text(), re.MULTILINE)
    assert made
    assert set(made) <= bench_commands()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_make_bench_runs_every_benchmark(name: str) -> None:
    assert [command for command in bench_commands() if command.split()[2] == f"benchmarks.{name}"]


def test_a_section_says_the_command_as_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = defaultdict[str, Any](str, versions={}, instruction_sets=[])
    monkeypatch.setattr("benchmarks.page.machine_facts", lambda: facts)
    monkeypatch.setattr(sys, "argv", ["/somewhere/speed.py", "--seconds", "10", "--method", "tome:a b"])
    said = provenance("speed").splitlines()[0]
    assert said.startswith("Made by `python -m benchmarks.speed --seconds 10 --method 'tome:a b'` on ")


def test_table_is_markdown_with_numbers_to_the_right() -> None:
    assert table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"
