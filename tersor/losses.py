"""What an executable loses of a Program: perplexity on text, else how far its outputs are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .agreement import measure
from .calibration import Batch
from .codegen.stepped import Stepped
from .codegen.target import Executable
from .ir.analyses.attention_facts import is_causal
from .ir.dialect import Role, dialect_of, traits_of
from .ir.errors import InputError
from .ir.program import Program, TensorSpec
from .ir.stepping import Step, Stepping, run_in_steps
from .passes.deviation import Deviation, Reference, is_logits
from .text import load_tokenizer, opening, tokenizer_folder

_WINDOWS, _TOKENS, _CHARACTERS = 16, 128, 1200
_MASK = "attention_mask"


@dataclass(frozen=True)
class Loss:
    """``share`` as in ``passes.storage.Trial.loss``, and its standard error."""

    share: float
    error: float = 0.0


class Losses:
    """Executables of one Program, measured on the same inputs.

    Attributes:
        measure: ``perplexity`` of text that follows; ``predictions``: the divergence of predicted distributions, which
            is how much perplexity grows on what the Program itself would write; or ``cosine distance``.
        positions: predicted tokens, or rows that are compared.
        text: what is predicted; nothing where the Program scores no next tokens, or there is no tokenizer.
        notes: what is to be known of the text, a line each.
    """

    def __init__(self, program: Program, samples: Sequence[Batch], calibrated: bool) -> None:
        """
        Args:
            samples: what outputs are compared on; where they are the user's own (``calibrated``), the text too.
        """
        self.reference = Reference(program, samples)
        self._language = _Language.of(program)
        self.text: list[Batch] = []
        if self._language is not None:
            self.text = list(samples) if calibrated else _prose(program, self._language)
        self.notes = _unopened(program, self._language, self.text) if self._language and calibrated else ()
        self.measure = "perplexity" if self.text else "predictions" if self._language else "cosine distance"
        self._own = self._surprise(_whole(program))
        self.positions = sum(map(len, self._own)) or sum(
            output[..., 0].numel() for outputs in self.reference.outputs for output in outputs.values()
        )

    def of(self, executable: Executable) -> tuple[Loss, Deviation]:
        """What ``executable`` loses, and the deviation of its outputs on the samples."""
        deviation = measure(executable, self.reference)
        if not deviation.finite or deviation.not_compared:
            return Loss(math.inf), deviation
        if self.text:
            rows = [
                found - own for found, own in zip(self._surprise(_whole(executable)), self._own, strict=True)
            ]
            mean = float(torch.cat(rows).mean())
            ratio = math.exp(mean)
            return Loss(ratio - 1.0, ratio * _error(rows, mean)), deviation
        if self._language is not None:
            return Loss(math.expm1(max(output.kl or 0.0 for output in deviation.outputs))), deviation
        return Loss(deviation.overall), deviation

    def _surprise(self, run: Callable[[Batch], Sequence[Tensor]]) -> list[Tensor]:
        """By row, minus the log-probability of every token of the text but the first, float64 ``[tokens - 1]``."""
        found = []
        for batch in self.text:
            assert self._language is not None
            ids = batch[self._language.ids]
            real = batch[_MASK].bool() if _MASK in batch else torch.ones_like(ids, dtype=torch.bool)
            logits = run(batch)[self._language.logits]
            for row in range(len(ids)):
                here = real[row, :-1] & real[row, 1:]
                predicted = logits[row, :-1][here].float()
                targets = ids[row, 1:][here]
                chosen = predicted.gather(1, targets[:, None])[:, 0]
                found.append((predicted.logsumexp(1) - chosen).double())
        return found


def _error(rows: Sequence[Tensor], mean: float) -> float:
    """The standard error of a mean over tokens, of which only those of different rows are independent."""
    parts = rows if len(rows) > 1 else [place[None] for place in rows[0]]
    if len(parts) < 2:
        return 0.0
    apart = torch.stack([(part - mean).sum() for part in parts])
    return float(apart.norm()) / sum(map(len, parts)) * math.sqrt(len(parts) / (len(parts) - 1))


def _whole(runs: Program | Executable) -> Callable[[Batch], Sequence[Tensor]]:
    """What runs rows of text: in one step where it is run in steps, of which the usual ones take twice as long."""
    if isinstance(runs, Program) and runs.stepping is not None:
        return partial(_in_one_step, runs.stepping, runs.inputs, runs.outputs, runs.step)
    if isinstance(runs, Stepped):
        return partial(_in_one_step, runs.stepping, runs.steps.inputs, runs.steps.outputs, runs.steps.run)
    return runs.run


def _in_one_step(
    stepping: Stepping, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], step: Step, batch: Batch
) -> Sequence[Tensor]:
    return run_in_steps(stepping, inputs, outputs, step, batch, [])


@dataclass(frozen=True)
class _Language:
    """A Program that scores the next token: the input of ids, and which of what it returns are the scores."""

    ids: str
    logits: int

    @staticmethod
    def of(program: Program) -> _Language | None:
        """None where it is none, or takes more than ids and a mask."""
        ids = program.stepping.ids if program.stepping is not None else "input_ids"
        given = {spec.name: spec for spec in program.called_with}
        scores = [i for i, spec in enumerate(program.returned) if is_logits(program, spec.name)]
        if ids not in given or given.keys() - {ids, _MASK} or len(scores) != 1 or not _looks_back(program):
            return None
        if len(given[ids].shape) != 2 or len(program.returned[scores[0]].shape) != 3:
            return None
        return _Language(ids, scores[0])


def _looks_back(program: Program) -> bool:
    """Whether no token sees a later one."""
    attention = [n for n in program.graph.nodes if dialect_of(n) and traits_of(n).role is Role.ATTENDS]
    return program.stepping is not None or (
        bool(attention) and all(map(is_causal, attention)) and not program.facts.unraised
    )


def _prose(program: Program, language: _Language) -> list[Batch]:
    """Rows of the standard library's documentation by the model's own tokenizer; none where it has no tokenizer."""
    from pydoc_data.topics import topics

    tokenizer = _tokenizer(program)
    if tokenizer is None:
        return []
    text = "\n\n".join(topics[name] for name in sorted(topics))
    starts = [len(text) * number // _WINDOWS for number in range(_WINDOWS)]
    rows = [tokenizer(text[start : start + _CHARACTERS])["input_ids"][:_TOKENS] for start in starts]
    try:
        return [_bound(program, language, torch.tensor([row])) for row in rows if len(row) == _TOKENS]
    except InputError:
        # It takes rows of another length, or fewer ids than its tokenizer has.
        return []


def _unopened(program: Program, language: _Language, text: Sequence[Batch]) -> tuple[str, ...]:
    """Whether no row opens as the tokenizer's texts do: without it some models predict next to nothing."""
    tokenizer = _tokenizer(program)
    begun = opening(tokenizer) if tokenizer is not None else []
    if not begun or not text:
        return ()
    for batch in text:
        real = (
            batch[_MASK].bool() if _MASK in batch else torch.ones_like(batch[language.ids], dtype=torch.bool)
        )
        for row, here in zip(batch[language.ids], real, strict=True):
            if row[here][: len(begun)].tolist() == begun:
                return ()
    told = " ".join(map(str, tokenizer.convert_ids_to_tokens(begun)))
    note = (
        f"no row of calibration opens with {told}, as the tokenizer has every text do: models that were trained so "
        "predict much worse without it, and perplexity is measured on these rows"
    )
    return (note,)


def _tokenizer(program: Program) -> Any:
    """The one beside the weights; None where there is none that can be read."""
    folder = tokenizer_folder(program, None)
    try:
        return load_tokenizer(folder) if folder is not None else None
    except InputError:
        return None


def _bound(program: Program, language: _Language, ids: Tensor) -> Batch:
    names = {spec.name for spec in program.called_with}
    mask = {_MASK: torch.ones_like(ids)} if _MASK in names else {}
    return program.bind(**{language.ids: ids}, **mask)
