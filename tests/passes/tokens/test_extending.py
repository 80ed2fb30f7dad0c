"""Someone adding a token method writes one file under 60 lines."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "examples" / "custom_token_method.py"
PARTS = ("ir", "passes", "codegen", "runtime")


def python(*arguments: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_runs_and_is_short(tmp_path: Path) -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 60
    output = python(str(EXAMPLE), cwd=tmp_path)
    assert "stands-out keeps ((500*tokens + 999)//1000) tokens" in output


def test_the_page_shows_the_examples_own_code() -> None:
    page = (ROOT / "docs" / "extending.md").read_text()
    shown = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    assert shown
    assert all(block in EXAMPLE.read_text() for block in shown)


def test_a_file_under_the_family_is_enough(tmp_path: Path) -> None:
    """A copy of the package with the example's class as one more file, and nothing else changed."""
    package = tmp_path / "tersor"
    package.mkdir()
    (package / "__init__.py").touch()
    for part in PARTS[:2]:
        shutil.copytree(ROOT / part, package / part, ignore=shutil.ignore_patterns("__pycache__"))
    method = EXAMPLE.read_text().partition("def main")[0]
    (package / "passes" / "tokens" / "stands_out.py").write_text(method)
    code = (
        "from pathlib import Path; import tersor.passes; print(Path(tersor.passes.__file__).parent);"
        "from tersor.passes.spec import parse_spec;"
        "print(parse_spec('token-drop:method=stands-out,keep=0.5,power=1').method)"
    )
    where, made = python("-c", f"import sys; sys.path.insert(0, '.'); {code}", cwd=tmp_path).split()
    assert Path(where) == package / "passes"
    assert made == "StandsOut(power=1.0)"
