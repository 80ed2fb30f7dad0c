"""The shape of the source: imports point left, files are short, and nothing names the machine it was written on."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# ir <- passes <- codegen <- runtime <- tersor.  What passes and lowerings share is dialect ops, so neither a lowering
# nor a session ever imports a pass: a new method must not need a new lowering.
MAY_IMPORT = {
    "ir": {"ir"},
    "passes": {"ir", "passes"},
    "codegen": {"ir", "codegen"},
    "runtime": {"ir", "codegen", "runtime"},
    "tersor": {"ir", "passes", "codegen", "runtime", "tersor"},
}
PARTS = set(MAY_IMPORT) - {"tersor"}
MAX_LINES = 400


def source_files() -> list[Path]:
    """Everything git tracks or would track; every file where there is no git."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode == 0:
        found = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        hidden = {".git", ".venv", "build", "__pycache__"}
        found = [path for path in ROOT.rglob("*") if not hidden & set(path.relative_to(ROOT).parts)]
    return sorted(path for path in found if path.is_file())


def imported_modules(tree: ast.AST, package: str) -> list[tuple[int, str]]:
    """Line and full name of all that a module of `package` imports, inside functions and by name too.

    `from a import b` gives `a.b`: whether `b` is a module or not, it lies in the part that this names.
    """
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = (
                node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            )
            if function in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                found.append((node.lineno, node.args[0].value))
    return found


def part_of(module: str) -> str | None:
    """The part that a full module name lies in; None for other people's modules."""
    head, *rest = module.split(".")
    if head != "tersor":
        return None
    return rest[0] if rest and rest[0] in PARTS else "tersor"


def wrong_imports(source: str, part: str, package: str) -> list[str]:
    wrong = []
    for line, module in imported_modules(ast.parse(source), package):
        target = part_of(module)
        if target is not None and target not in MAY_IMPORT[part]:
            wrong.append(f"{line}: {part} may not import {module}")
        elif module.split(".")[0] in PARTS:
            wrong.append(
                f"{line}: {module} is a bare name that exists in the checkout only; say tersor.{module}"
            )
    return wrong


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_point_left(part: str) -> None:
    wrong = []
    for file in source_files():
        where = file.relative_to(ROOT)
        if file.suffix != ".py" or where.parts[0] != part:
            continue
        package = ".".join((() if part == "tersor" else ("tersor",)) + where.parent.parts)
        wrong += [f"{where}:{problem}" for problem in wrong_imports(file.read_text(), part, package)]
    assert not wrong, "\n".join(wrong)


def test_tests_and_examples_import_the_installed_names() -> None:
    wrong = []
    for file in source_files():
        where = file.relative_to(ROOT)
        if file.suffix == ".py" and where.parts[0] in ("tests", "examples", "benchmarks", "docs"):
            bare = imported_modules(ast.parse(file.read_text()), "")
            wrong += [f"{where}:{line}: {name}" for line, name in bare if name.split(".")[0] in PARTS]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("part", "package", "source", "refused"),
    [
        ("ir", "tersor.ir", "from ..passes import pipeline", "may not import tersor.passes.pipeline"),
        (
            "ir",
            "tersor.ir.capture",
            "def f():\n    from tersor import load",
            "2: ir may not import tersor.load",
        ),
        (
            "passes",
            "tersor.passes.tokens",
            "import tersor.codegen.onnx",
            "passes may not import tersor.codegen",
        ),
        ("codegen", "tersor.codegen", "from tersor import passes", "codegen may not import tersor.passes"),
        ("runtime", "tersor.runtime", "import_module('tersor.passes.tokens')", "runtime may not import"),
        ("codegen", "tersor.codegen", "from ir import program", "bare name"),
        ("passes", "tersor.passes.tokens", "from ...ir.program import Program", None),
        ("passes", "tersor.passes.tokens", "from . import scorer; from .. import contract", None),
        ("tersor", "tersor", "from tersor.passes import Pass; from .ir import capture; import torch", None),
    ],
)
def test_the_import_check_itself(part: str, package: str, source: str, refused: str | None) -> None:
    wrong = wrong_imports(source, part, package)
    assert [refused in problem for problem in wrong] == ([True] if refused else [])


def test_no_source_file_is_longer_than_a_person_reads() -> None:
    lengths = {file: len(file.read_text().splitlines()) for file in source_files() if file.suffix == ".py"}
    long = [f"{file.relative_to(ROOT)}: {lines}" for file, lines in lengths.items() if lines > MAX_LINES]
    assert not long, f"more than {MAX_LINES} lines: " + ", ".join(long)


def test_every_source_folder_is_a_package() -> None:
    """setup.py finds packages by their `__init__.py`: a folder without one would be missing from the wheel."""
    folders = {
        f.parent for f in source_files() if f.suffix == ".py" and f.relative_to(ROOT).parts[0] in MAY_IMPORT
    }
    assert not [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists()]


def test_no_file_names_the_machine_it_was_written_on() -> None:
    absolute = re.compile(rb"(?<![\w.\-/{}~$])/(?:work|root|home/[a-z]\w*|Users/\w+|tmp/bash_jobs)\b")
    checkout = re.compile(re.escape(str(ROOT).encode()) + rb"\b")
    found = []
    for file in source_files():
        if file == Path(__file__).resolve() or b"\0" in (text := file.read_bytes()):
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if absolute.search(line) or checkout.search(line):
                shown = line.strip()[:100].decode(errors="replace")
                found.append(f"{file.relative_to(ROOT)}:{number}: {shown}")
    assert not found, "\n".join(found)
