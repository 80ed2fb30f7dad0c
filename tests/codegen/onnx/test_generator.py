"""Whole generators as ONNX files, run by ONNX Runtime alone: the tokens of generation step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from decoders import DECODERS, PROMPTS, decoder_on, decoder_program
from torch import Tensor, nn

from tersor.codegen.onnx.generator import export_generator, loop
from tersor.codegen.text_limits import most_tokens
from tersor.ir.capture import capture
from tersor.ir.program import Program
from tersor.passes.pipeline import run
from tersor.passes.speculate.lookup import Lookup
from tersor.runtime.generation import Stopping, generate
from tersor.runtime.sampling import Sampling

NEW = (1, 2, 12)


def guessing(module: nn.Module) -> Program:
    return capture(module, {"tokens": torch.tensor([5, 6, 7, 5, 6])}, dynamic={"tokens": {0: "text"}})


@pytest.fixture(scope="module")
def lookup() -> Program:
    return guessing(Lookup(1, 3, 5))


def opened(folder: Path, name: str, guess: Program | None, ends: tuple[int, ...] = (), **options: Any) -> Any:
    program, _ = run(decoder_program(name), ["kv-cache", "speculate"])
    (file,) = export_generator(program, folder / "gen.onnx", ends, guess, **options)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])


def new_tokens(session: Any, prompt: list[int], most: int) -> list[int]:
    given = {"input_ids": np.array([prompt], np.int64), "max_new_tokens": np.array(most, np.int64)}
    (found,) = session.run(None, given)
    assert found.dtype == np.int64
    assert found.shape[0] == 1
    return found[0].tolist()  # type: ignore[no-any-return]


def expected(name: str, prompt: list[int], most: int, ends: tuple[int, ...] = ()) -> list[int]:
    return generate(decoder_on(name, "torch"), [prompt], Stopping(most, ends), Sampling())[0]


@pytest.mark.parametrize("guess", [False, True], ids=["greedy", "guessing"])
@pytest.mark.parametrize("name", DECODERS)
def test_tokens_are_those_of_generate(name: str, guess: bool, lookup: Program, tmp_path: Path) -> None:
    session = opened(tmp_path, name, lookup if guess else None)
    for prompt in [*PROMPTS, [5, 6, 5, 6, 5]]:
        whole = expected(name, prompt, max(NEW))
        for most in NEW:
            assert new_tokens(session, prompt, most) == whole[:most]


@pytest.mark.parametrize("guess", [False, True], ids=["greedy", "guessing"])
@pytest.mark.parametrize("piece", [1, 7, 31])
def test_a_long_prompt_goes_in_pieces(
    piece: int, guess: bool, lookup: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_PIECE", piece)
    session = opened(tmp_path, "gemma3", lookup if guess else None)
    for prompt in PROMPTS:
        assert new_tokens(session, prompt, 9) == expected("gemma3", prompt, 9)


@pytest.mark.parametrize("guess", [False, True], ids=["greedy", "guessing"])
def test_nothing_follows_an_end_token(guess: bool, lookup: Program, tmp_path: Path) -> None:
    free = expected("gemma2", PROMPTS[1], 12)
    ends = (free[3], free[7], 119)
    session = opened(tmp_path, "gemma2", lookup if guess else None, ends)
    for prompt in PROMPTS:
        for most in NEW:
            assert new_tokens(session, prompt, most) == expected("gemma2", prompt, most, ends)
    assert new_tokens(session, PROMPTS[1], 12)[-1] in ends


class Known(nn.Module):
    """Guesses of a text that is known beforehand, of which some places are wrong."""

    def __init__(self, text: list[int], wrong: list[int]) -> None:
        super().__init__()
        guesses = torch.tensor([*text, *[0] * 8])
        guesses[wrong] += 1
        self.register_buffer("text", guesses)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        places = (tokens.shape[0] + torch.arange(4)).clamp(max=self.text.shape[0] - 1)
        return self.text[places], torch.full((1,), 4)


@pytest.mark.parametrize("wrong", [[], [8], [9, 10, 15], list(range(60))])
@pytest.mark.parametrize("name", ["gemma3", "mistral", "gpt2"])
def test_guesses_right_or_wrong_change_no_token(name: str, wrong: list[int], tmp_path: Path) -> None:
    prompt = PROMPTS[1]
    whole = expected(name, prompt, 30)
    text = [*prompt, *whole]
    session = opened(tmp_path, name, guessing(Known(text, [w for w in wrong if w < len(text)])))
    for most in (1, 4, 5, 6, 30):
        assert new_tokens(session, prompt, most) == whole[:most]


def test_nothing_is_asked_for_and_nothing_comes(lookup: Program, tmp_path: Path) -> None:
    session = opened(tmp_path, "llama", lookup)
    for most in (0, -3):
        assert new_tokens(session, [5, 6], most) == []


def test_as_many_as_there_are_numbers_are_as_many_as_come(lookup: Program, tmp_path: Path) -> None:
    """Ends stop it; counted with the prompt, so many were below none."""
    session = opened(tmp_path, "llama", lookup, ends=tuple(range(120)))
    assert len(new_tokens(session, [5, 6], 2**63 - 1)) == 1


def test_a_prompt_that_is_none_is_an_error(lookup: Program, tmp_path: Path) -> None:
    session = opened(tmp_path, "llama", lookup)
    for prompt, what in (
        ([], "prompt out of its range"),
        ([5, -1], "input_ids out of its domain"),
        ([5, 10**6], "input_ids out of its domain"),
    ):
        with pytest.raises(Exception, match=what):
            new_tokens(session, prompt, 3)


def test_past_the_context_is_an_error_before_any_token(tmp_path: Path) -> None:
    program = run(decoder_program("gpt2"), ["kv-cache", "speculate"])[0]
    longest = most_tokens(program)
    assert longest is not None
    session = opened(tmp_path, "gpt2", None)
    assert len(new_tokens(session, [5, 6], longest - 1)) == longest - 1
    for prompt, most in (([5, 6], longest), ([5] * (longest + 1), 1)):
        with pytest.raises(Exception, match="prompt and max_new_tokens past the context"):
            new_tokens(session, prompt, most)


def test_all_operators_are_standard_and_weights_are_stored_once(lookup: Program, tmp_path: Path) -> None:
    opened(tmp_path, "gemma3", lookup)
    model = onnx.load(tmp_path / "gen.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [entry.domain for entry in model.opset_import] == [""]
    (over,) = [node for node in model.graph.node if node.op_type == "Loop"]
    body = over.attribute[0].g
    assert {node.domain for node in (*model.graph.node, *body.node)} <= {"", "ai.onnx"}
    weights = decoder_program("gemma3").weights.values()
    stored = sum(t.nbytes for t in {w.data_ptr(): w for w in weights}.values())
    assert (tmp_path / "gen.onnx").stat().st_size < stored + 400_000
    assert all(len(t.raw_data) <= 1024 for t in body.initializer)


def test_weights_of_a_large_model_lie_beside_it(tmp_path: Path) -> None:
    program, _ = run(decoder_program("llama"), ["kv-cache"])
    written = export_generator(program, tmp_path / "gen.onnx", limit=1 << 10)
    assert len(written) == 2
    session = onnxruntime.InferenceSession(str(written[0]), providers=["CPUExecutionProvider"])
    assert new_tokens(session, PROMPTS[1], 5) == expected("llama", PROMPTS[1], 5)
