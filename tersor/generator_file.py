"""An ONNX file that generates by itself, compared with its Program's own generation before it appears."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from .calibration import Batch
from .codegen.onnx.emitter import Ops
from .codegen.onnx.file import put_in_place
from .codegen.onnx.generator import export_generator
from .codegen.onnx.session import run, trial_session
from .codegen.target import find_target
from .folders import scratch_folder
from .generating import Generator
from .ir.capture import capture
from .ir.errors import InputError, LoweringError
from .ir.program import Program
from .onnx_file import report_metadata
from .passes.contract import Pass
from .passes.registry import find_methods
from .passes.report import Report
from .passes.speculate.drafter import Drafter
from .passes.speculate.insert import Speculate
from .runtime.decoder import Decoder
from .runtime.divergence import first_divergence
from .runtime.generation import Stopping, generate
from .runtime.sampling import Sampling

EndTokens = int | Sequence[int] | Literal["model"] | None

# Guesses that a step checks at most: more cost as much as they bring on the CPUs at hand.
_GUESSES = 16
# What is compared: prompts of so many tokens at most, and so many new ones.
_LONGEST_PROMPT, _NEW = 48, 16
# Options of a target that say how weights are stored.
_STORING = ("weights", "weight_kinds")


def export_generating(
    generator: Generator,
    path: Path,
    ops: Ops,
    report: Report,
    samples: Sequence[Batch],
    guess: bool = True,
    end_tokens: EndTokens = "model",
) -> list[Path]:
    """See ``OptimizedModel.export_onnx``."""
    if ops != "portable":
        raise InputError(
            f"ops={ops!r} with generate=True: such a file is of standard operators only, leave ops out"
        )
    program, ends = generator.program, _ends(generator, end_tokens)
    _check_inputs(program)
    guessing = _guessing(generator) if guess else None
    with scratch_folder(path) as folder:
        written = export_generator(program, folder / path.name, ends, guessing, report_metadata(report))
        _compare(trial_session(folder / path.name), _unrounded(generator), _prompts(generator, samples), ends)
        return put_in_place(written, path)


def _ends(generator: Generator, given: EndTokens) -> list[int]:
    if given == "model":
        return sorted(generator.ends)
    ids: Any = [] if given is None else list(given) if isinstance(given, Iterable) else [given]
    vocabulary = generator.program.returned[0].shape[-1]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < int(vocabulary):
            raise InputError(
                f"end_tokens={given!r}: {token!r} is no token id from 0 to {int(vocabulary) - 1}"
            )
    return sorted(set(ids))


def _check_inputs(program: Program) -> None:
    assert program.stepping is not None
    others = [
        s.name for s in program.called_with if s.name not in (program.stepping.ids, program.stepping.padding)
    ]
    if others:
        raise InputError(
            f"this model also takes {', '.join(others)}, which a file that generates is not given: capture it with "
            "token ids and their mask alone"
        )


def drafter_of(passes: Iterable[Pass]) -> Drafter | None:
    """Who guesses in what these passes make; None where nobody does."""
    return next((pass_.drafter for pass_ in passes if isinstance(pass_, Speculate)), None)


def guessing_module(drafter: Drafter) -> nn.Module:
    """What guesses in a file; raises InputError where a drafter cannot."""
    module = drafter.as_module(_GUESSES)
    if module is None:
        known = find_methods(Drafter)
        able = [name for name, kind in known.items() if _is_able(kind)]
        raise InputError(
            f"the drafter {drafter.name!r} remembers more than the text, which a file cannot: use speculate:drafter= "
            f"with one of {', '.join(sorted(able))}, or write the file without guesses (guess=False, or "
            "--no-guess on the command line)"
        )
    return module


def _is_able(kind: type) -> bool:
    """Whether a drafter at its defaults can guess in a file; not so where an option of it has no default."""
    try:
        return kind().as_module(_GUESSES) is not None
    except (TypeError, ValueError, InputError):
        return False


def _guessing(generator: Generator) -> Program | None:
    """What guesses, as a Program of its own; None where nobody does."""
    if generator.drafter is None:
        return None
    return capture(
        guessing_module(generator.drafter),
        {"tokens": torch.tensor([5, 6, 7, 5, 6, 7, 5, 6])},
        dynamic={"tokens": {0: "text"}},
    )


def _prompts(generator: Generator, samples: Sequence[Batch]) -> list[list[int]]:
    """A row of the samples, its first token alone, and what repeats, so that guesses are right there."""
    stepping = generator.program.stepping
    assert stepping is not None
    ids = samples[0][stepping.ids][0]
    if stepping.padding is not None:
        ids = ids[samples[0][stepping.padding][0].bool()]
    longest = generator.decoder.longest
    most = _LONGEST_PROMPT if longest is None else max(1, min(_LONGEST_PROMPT, longest - _NEW))
    row: list[int] = ids.tolist()
    return [row[:most], row[:1], (row[:6] * most)[:most]]


def _unrounded(generator: Generator) -> Decoder:
    """What decodes with the weights that a file has: the Program's own, whatever the artifact's are stored as."""
    options = {name: value for name, value in generator.options.items() if name not in _STORING}
    if options == generator.options:
        return generator.decoder
    return Decoder(generator.program, partial(find_target(generator.target).lower, **options))


def _compare(session: Any, decoder: Decoder, prompts: Sequence[list[int]], ends: Sequence[int]) -> None:
    """Raise LoweringError unless the file gives the tokens of the Program's own generation, but for ties."""
    program, longest = decoder.program, decoder.longest

    def again(tokens: Sequence[int]) -> torch.Tensor:
        given = {spec.name: torch.ones(1, len(tokens), dtype=spec.dtype) for spec in program.called_with}
        assert program.stepping is not None
        given[program.stepping.ids] = torch.tensor([list(tokens)], dtype=given[program.stepping.ids].dtype)
        return program.run(given)[0][0, -1]

    def reference(tokens: Sequence[int]) -> torch.Tensor:
        return decoder.prefill(decoder.new_cache(1), 0, tokens)

    for prompt in prompts:
        new = _NEW if longest is None else min(_NEW, longest - len(prompt))
        expected = generate(decoder, [prompt], Stopping(new, ends), Sampling())[0]
        given = {"input_ids": torch.tensor([prompt]), "max_new_tokens": torch.tensor(new)}
        found = run(session, given)[0][0].tolist()
        if found == expected:
            continue
        parted = first_divergence(prompt, expected, found, reference, again)
        assert parted is not None
        if not parted.is_tie:
            raise LoweringError(
                f"the file does not generate what the Program generates behind {len(prompt)} tokens: {parted}. This is "
                "a defect of the lowering: please report it with the model's configuration and the passes"
            )
