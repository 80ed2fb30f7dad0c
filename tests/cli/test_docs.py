"""`docs/cli.md` says what the commands take, the codes they exit with, and the files they write."""

from __future__ import annotations

from pathlib import Path

from docs.cli_reference import PAGE, updated
from tersor.cli.exit_codes import ExitCode


def test_the_reference_is_what_the_commands_say() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == updated(page), "run: python docs/cli_reference.py"


def test_every_exit_code_is_listed() -> None:
    text = PAGE.read_text(encoding="utf-8").partition("## Exit codes")[2].partition("\n## ")[0]
    codes = {int(part) for line in text.splitlines() if line.startswith("| ") for part in line.split("|")[1].split(",")
             if part.strip().isdigit()}  # fmt: skip
    assert codes == {int(code) for code in ExitCode} | {128 + 15}


def test_every_file_of_an_artifact_is_listed(artifact: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"`{path.relative_to(artifact)}`" in page for path in artifact.rglob("*") if path.is_file())
