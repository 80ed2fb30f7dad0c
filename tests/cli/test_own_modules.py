"""Models that do not say what they take, and methods of the user's own, are for every command that meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tersor import InputError
from tersor.imports import import_from, module_text
from tersor.passes.contract import Method, Pass
from tersor.passes.registry import find_methods, unregistered
from tersor.passes.tokens.method import TokenMethod

MODEL = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.layers = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, words):
        return self.layers(words)

def make():
    return Net().eval()
"""
METHOD = """
from dataclasses import dataclass, field
from typing import ClassVar
from torch import fx
from tersor.ir.builder import Builder
from tersor.passes.registry import unregistered
from tersor.passes.tokens.method import Scorer, TokenSite

@dataclass(frozen=True)
class FirstHead(Scorer):
    \"\"\"Keep tokens by the first channel of their keys.\"\"\"

    name: ClassVar[str] = "{name}"
    channel: int = field(default=0, metadata={{"help": "which channel"}})

    def score(self, g: Builder, site: TokenSite) -> fx.Node:
        return g.mean(site.key, [1, 3])
"""


@pytest.fixture(autouse=True)
def _nothing_stays_defined() -> Iterator[None]:
    """Passes and methods of files that a test imports are nobody's after it."""
    yield
    for base in (Pass, Method):
        for kind in _subclasses(base):
            if kind.__module__.startswith("tersor_import_"):
                unregistered(kind)


def _subclasses(base: type) -> Iterator[type]:
    for kind in base.__subclasses__():
        yield kind
        yield from _subclasses(kind)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model_of_mine.py").write_text(MODEL)
    save_file({"words": torch.randn(2, 9, 16)}, tmp_path / "words.safetensors")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_that_captures_takes_example_inputs(tersor: Any, place: Path) -> None:
    model, given = "model_of_mine:make", ("--example-inputs", "words.safetensors")
    for command in (
        ["inspect", model],
        ["diff", model, model],
        ["convert", model, "-o", "out", "--target", "torch"],
    ):
        outcome = tersor(*command)
        assert outcome.code == 2
        assert "pass --example-inputs" in outcome.error
        assert not (place / "out").exists()
        outcome = tersor(*command, *given)
        assert outcome.code == 0, outcome.stderr
    assert "made up" not in outcome.stdout
    assert tersor("verify", "out", "--against", model).code == 0


@pytest.mark.parametrize(
    ("given", "shape"),
    [
        ((), ["batch", "tokens", 16]),
        (("--dynamic", "auto"), ["batch", "tokens", 16]),
        (("--dynamic", "none"), [2, 9, 16]),
        (("--dynamic", "words:1=length"), [2, "length", 16]),
        (("--dynamic", "words:0=rows,1=length"), ["rows", "length", 16]),
    ],
    ids=str,
)
def test_which_sizes_may_vary_is_the_users_to_say(
    tersor: Any, place: Path, given: tuple[str, ...], shape: list[Any]
) -> None:
    given = ("model_of_mine:make", "--example-inputs", "words.safetensors", *given)
    assert tersor("inspect", *given, "--json").json["inputs"][0]["shape"] == shape
    outcome = tersor("convert", *given, "--target", "torch", "-o", "out")
    assert outcome.code == 0, outcome.stderr
    assert json.loads((place / "out" / "manifest.json").read_text())["inputs"][0]["shape"] == shape
    assert tersor("verify", "out", "--against", "model_of_mine:make").code == 0


def test_a_size_that_cannot_vary_is_one_clear_error(tersor: Any, place: Path) -> None:
    given = ("model_of_mine:make", "--example-inputs", "words.safetensors")
    for dynamic, message in (
        ("word:0=batch", "--dynamic names input 'word'; the inputs are words"),
        ("words:3=batch", "--dynamic names dim 3 of 'words', which has shape [2, 9, 16]"),
    ):
        outcome = tersor("inspect", *given, "--dynamic", dynamic)
        assert outcome.code == 2
        assert message in outcome.error


def test_a_method_of_ones_own_is_found_by_every_command_that_reads_specs(tersor: Any, place: Path) -> None:
    (place / "method_of_mine.py").write_text(METHOD.format(name="first-head"))
    model, given = "model_of_mine:make", ("--example-inputs", "words.safetensors")
    request = ("convert", model, *given, "-p", "token-drop:method=first-head,keep=0.5", "--target", "torch")
    assert "no method 'first-head'" in tersor(*request, "-o", "out").error
    imported = ("--import", "method_of_mine.py")
    outcome = tersor(*request, *imported, "-o", "out")
    assert outcome.code == 0, outcome.stderr
    assert "method=first-head" in tersor("passes", "token-drop", *imported).stdout
    assert "method=first-head" in tersor("inspect", model, *given, *imported).stdout
    assert tersor("verify", "out", "--against", model, *imported).code == 0
    unregistered(find_methods(TokenMethod)["first-head"])
    outcome = tersor("verify", "out", "--against", model)
    assert outcome.code == 1
    assert "it was defined outside Tersor, in method_of_mine.py: import that first (--import" in outcome.error
    assert tersor("verify", "out").code == 0


@pytest.mark.parametrize(
    ("score", "reason"),
    [
        ("1 / 0", "fails at method_of_mine.py:17, in score: ZeroDivisionError"),
        ("site.key", "gave cannot be used: select_tokens"),
        ("g.op('no_such_op', site.key)", "fails at method_of_mine.py:17, in score: KeyError: 'no_such_op'"),
    ],
)
def test_a_broken_method_of_ones_own_is_bad_input(tersor: Any, place: Path, score: str, reason: str) -> None:
    code = METHOD.format(name="broken-head").replace("g.mean(site.key, [1, 3])", score)
    (place / "method_of_mine.py").write_text(code)
    given = ("--example-inputs", "words.safetensors", "--import", "method_of_mine.py", "--target", "torch")
    outcome = tersor(
        "convert", "model_of_mine:make", *given, "-p", "token-drop:method=broken-head", "-o", "out"
    )
    assert outcome.code == 2, outcome
    assert "your method 'broken-head' " in outcome.error
    assert reason in outcome.error
    assert not (place / "out").exists()


def test_a_factory_that_ends_the_program_is_an_error(tersor: Any) -> None:
    outcome = tersor("inspect", "sys:exit")
    assert (outcome.code, outcome.stdout) == (2, "")
    assert "ended the program with sys.exit(None)" in outcome.error


def test_the_example_of_the_documentation_is_found_by_the_command() -> None:
    # In a process of its own: a method that is defined stays.
    example = Path(__file__).parents[2] / "examples" / "custom_token_method.py"
    command = [sys.executable, "-m", "tersor", "passes", "token-drop", "--import", str(example), "--json"]
    listed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    (methods,) = (entry["methods"]["method"] for entry in listed["passes"])
    assert "stands-out" in [method["name"] for method in methods]


def test_a_file_is_imported_once_and_under_a_name_of_its_own(tmp_path: Path) -> None:
    random = sys.modules.get("random")
    (tmp_path / "random.py").write_text("value = 3")
    module = import_from(str(tmp_path / "random.py"))
    assert module.value == 3
    assert sys.modules.get("random") is random
    assert import_from(str(tmp_path / "random.py")) is module
    assert module_text(module.__name__) == "random.py"
    assert module_text("json.decoder") == "json.decoder"


@pytest.mark.parametrize("content", ["1/0", "raise SystemExit(3)", "def f(:", "import no_such_module", "\0"])
def test_a_module_that_cannot_be_run_is_one_clear_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(content)
    before = set(sys.modules)
    with pytest.raises(InputError, match=r"cannot import .*broken\.py"):
        import_from(str(path))
    assert not {name for name in set(sys.modules) - before if "broken" in name}


DRAFTER = """
from dataclasses import dataclass
from typing import ClassVar
from tersor.ir.drafting import Drafting
from tersor.passes.registry import unregistered
from tersor.passes.speculate.drafter import Drafter

class _Nothing(Drafting):
    def extend(self, tokens): pass
    def draft(self, most, outlook=None): return []

@dataclass(frozen=True)
class Silent(Drafter):
    \"\"\"Guess nothing.\"\"\"

    name: ClassVar[str] = "silent"

    def begin(self, rows=None): return _Nothing()
"""


def test_a_drafter_of_ones_own_generates(tersor: Any, tmp_path: Path) -> None:
    from text_folder import save_text_model

    (tmp_path / "silent_drafter.py").write_text(DRAFTER)
    imported = ("--import", tmp_path / "silent_drafter.py")
    request = (
        "convert",
        save_text_model(tmp_path / "model"),
        "-p",
        "kv-cache",
        "-p",
        "speculate:drafter=silent",
    )
    outcome = tersor(*request, *imported, "--target", "torch", "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.stderr
    told = tersor("generate", tmp_path / "out", "Once", "--max-new-tokens", "5", *imported)
    assert told.code == 0, told.stderr
