"""Training of prompt tokens: a few embeddings behind which a model says what it will say further on.

As in parallel prompt decoding (Chen et al. 2024) the model stays as it is, and teaches: what it says ``n`` tokens
further on in a text is what it is to say behind prompt token ``n``.  Prompt tokens stand behind many tokens of a text
in one step, each seeing the text up to there and those before it, as they will when they are used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from .codegen.text_limits import check_ids, largest_id
from .folders import check_output_file, scratch_folder
from .ir.dialect import DIALECT
from .ir.errors import InputError
from .ir.program import GraphInterpreter, Program
from .ir.prompt_tokens import embeddings, prompts_name, with_prompt_tokens
from .passes import pipeline
from .passes.speculate.ppd import PROMPTS, untrained
from .progress import Report
from .runtime.decoder import Decoder
from .runtime.kv_cache import KvCache

# How far a step moves an embedding, against how embeddings of tokens differ.
_RATE = 0.5
# Prompt tokens begin as far from each other.
_SPREAD = 0.1
# Of the text what comes last, and rows of it at most, is what training is measured on.
_HELD_OUT, _ROWS = 0.1, 8
# So often on the way it is looked how good they are, and the best are kept.
_LOOKS = 4


@dataclass(frozen=True)
class Quality:
    """How well prompt tokens say what the model says later, on text that was not trained on where there is enough.

    Attributes:
        loss: divergence of what is said behind them from what the model says there, nats, the mean over distances.
        first: by distance, the share of places where both find the same token the likeliest.
        places: of the text, behind which they stood.
    """

    loss: float
    first: tuple[float, ...]
    places: int

    def __str__(self) -> str:
        shares = " ".join(f"{share:.0%}" for share in self.first)
        return f"loss {self.loss:.3f}, the model's own token first by distance: {shares}"


@dataclass(frozen=True)
class Trained:
    """Prompt tokens ``[count, width]``, and how good they were before and after."""

    prompts: Tensor
    before: Quality
    after: Quality

    def save(self, file: str | Path) -> Path:
        """Write what ``speculate:drafter=ppd,prompts=FILE`` reads; the file appears whole or not at all.

        Raises:
            InputError: the place cannot be written to.
        """
        path = check_output_file(file)
        with scratch_folder(path) as folder:
            fresh = folder / path.name
            fresh.touch()
            mode = fresh.stat().st_mode
            save_file({PROMPTS: self.prompts.contiguous()}, fresh, {"format": "pt"})
            # safetensors makes files that only their owner can read.
            fresh.chmod(mode)
            fresh.replace(path)
        return path


def train_prompts(
    program: Program,
    tokens: Sequence[int],
    count: int = 3,
    steps: int = 300,
    length: int = 128,
    seed: int = 0,
    progress: Report | None = None,
    opening: Sequence[int] = (),
) -> Trained:
    """Train ``count`` prompt tokens of a language model on a text.

    Args:
        program: as ``capture`` gives it, without a cache.
        tokens: the ids of the text.
        steps: how often they are adjusted, each time by one row of ``length`` tokens.
        seed: makes the same of the same.
        opening: ids that every row begins with, as texts do; a model that knows no others is of no use behind others.

    Raises:
        InputError: the text is too short or holds an id that the model does not take, or the model takes no rows of
            that length.
        RefusedError: the model cannot have a cache or prompt tokens.
    """
    piece = length - len(opening)
    if count < 1 or steps < 1 or piece <= count:
        raise InputError(
            f"{count} prompt tokens in {steps} steps on rows of {length} tokens, {len(opening)} of them the opening: "
            "give at least one of each, and rows that are longer than the opening and the prompt tokens"
        )
    if len(tokens) < piece:
        raise InputError(
            f"the text has {len(tokens)} tokens: give one of at least {piece}, or a smaller length"
        )
    stepped, _ = pipeline.run(program, ["kv-cache", "speculate"])
    check_ids((*opening, *tokens), largest_id(stepped), "the text")
    table = embeddings(stepped)
    generator = torch.Generator().manual_seed(seed)
    spread = float(table.float().std())
    start = untrained(table, count)
    start = start + _SPREAD * spread * torch.randn(start.shape, generator=generator)
    student = _Student(with_prompt_tokens(stepped, start), count, length)
    text = torch.as_tensor(tokens)
    held_out = max(piece, int(_HELD_OUT * len(text)))
    learned, measured = (
        (text[:-held_out], text[-held_out:]) if len(text) >= held_out + piece else (text, text)
    )
    begun = torch.tensor(opening, dtype=text.dtype)
    rows = [torch.cat([begun, part]) for part in measured.unfold(0, piece, piece)[:_ROWS]]
    best = before = student.quality(rows, start)
    kept = start
    prompts = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([prompts], lr=_RATE * spread)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        if progress is not None:
            progress("training prompt tokens", step, steps)
        place = int(torch.randint(len(learned) - piece + 1, (), generator=generator))
        after = torch.randperm(length - count, generator=generator)[: student.groups].sort().values
        optimizer.zero_grad()
        row = torch.cat([begun, learned[place : place + piece]])
        said, own = student.run(row, after, prompts)
        _divergence(said, own).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if (step + 1) % math.ceil(steps / _LOOKS) == 0 or step + 1 == steps:
            found = student.quality(rows, prompts.detach())
            if found.loss < best.loss:
                best, kept = found, prompts.detach().clone()
    return Trained(kept, before, best)


class _Student:
    """A Program that is run with prompt tokens behind many tokens of a row at once."""

    def __init__(self, program: Program, count: int, length: int) -> None:
        """With groups of ``count`` behind tokens of rows of ``length``.

        Raises:
            InputError: the model does not take such rows.
        """
        longest = Decoder(program, _no_target).longest
        if longest is not None and length > longest:
            raise InputError(
                f"the model takes {longest} tokens: rows of {length} are too long, give a smaller length"
            )
        self._program, self._count, self._length = program, count, length
        # About as many prompt tokens as there are tokens.
        self.groups = max(1, min(length // count, length - count))
        assert program.stepping is not None
        self._stepping = program.stepping
        self._inputs = {spec.name: spec.dtype for spec in program.inputs}
        new = length + self.groups * count
        cache = KvCache(self._stepping, program.inputs, 1, longest_step=new, longest_rollback=0)
        cache.reserve(new)
        self._empty = cache.inputs()

    def run(self, row: Tensor, after: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[groups, count, vocabulary]`` behind prompt tokens, and of the model itself as far on.

        Args:
            row: int64 ``[length]``.  after: int64 ``[groups]``, the tokens of the row that groups stand behind.
        """
        length, count, groups = self._length, self._count, len(after)
        number = torch.arange(1, count + 1)
        ahead = (after[:, None] + number).flatten()
        depth = torch.cat([torch.arange(length), ahead])
        probes = torch.cat([torch.zeros(length, dtype=torch.int64), number.repeat(groups)])
        # Text sees text; a prompt token the text up to where it stands, and those of its group up to itself.
        sees = torch.zeros(len(depth), len(depth), dtype=torch.bool)
        sees[:length, :length] = torch.ones(length, length, dtype=torch.bool).tril()
        sees[length:, :length] = torch.arange(length) <= after.repeat_interleave(count)[:, None]
        group = torch.ones(count, count, dtype=torch.bool).tril()
        sees[length:, length:] = torch.block_diag(*[group] * groups)  # type: ignore[no-untyped-call]
        stepping, branches = self._stepping, self._stepping.branches
        assert branches is not None
        assert branches.probes is not None
        given: dict[str, Tensor] = {
            **self._empty,
            stepping.ids: torch.cat([row, row[after].repeat_interleave(count)]),
            stepping.positions: depth,
            stepping.wanted: torch.cat([torch.arange(length, len(depth)), ahead]),
            branches.depth: depth,
            branches.ancestors: sees,
            branches.probes: probes,
        }
        if stepping.padding is not None:
            given[stepping.padding] = torch.ones_like(depth)
        rows = {name: value if name in self._empty else value[None] for name, value in given.items()}
        table = torch.cat([torch.zeros_like(prompts[:1]), prompts])
        logits = _Differentiable(self._program, table).run(
            *(rows[name].to(dtype) for name, dtype in self._inputs.items())
        )[self._logits][0]
        said, own = logits.float().unflatten(0, (2, groups, count))
        return said, own.detach()

    @property
    def _logits(self) -> int:
        states = self._stepping.results
        return next(i for i, spec in enumerate(self._program.outputs) if spec.name not in states)

    def quality(self, rows: Sequence[Tensor], prompts: Tensor) -> Quality:
        """Of ``prompts`` on rows ``[length]``, at places that are spread over them."""
        loss, first = torch.zeros(self._count), torch.zeros(self._count)
        after = torch.linspace(0, self._length - self._count - 1, self.groups).long()
        with torch.no_grad():
            for row in rows:
                said, own = self.run(row, after, prompts)
                loss += _divergence(said, own).mean(0)
                first += (said.argmax(-1) == own.argmax(-1)).float().mean(0)
        shares = (first / len(rows)).tolist()
        return Quality(float(loss.mean() / len(rows)), tuple(shares), len(rows) * len(after))


class _Differentiable(GraphInterpreter):
    """Runs a Program with gradients to the embeddings of its prompt tokens: dialect operators by their meaning."""

    def __init__(self, program: Program, prompts: Tensor) -> None:
        super().__init__(program)
        self._weights = {name: weight.detach() for name, weight in program.weights.items()}
        name = prompts_name(program)
        self._weights[name] = prompts.to(self._weights[name].dtype)
        self._meanings = {op.overload: op.reference for op in DIALECT.values()}

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return super().call_function(self._meanings.get(target, target), args, kwargs)


def _divergence(said: Tensor, own: Tensor) -> Tensor:
    """Of what is said from what the model says, nats ``[...]`` over the last dim."""
    pair = F.log_softmax(said, -1), F.log_softmax(own, -1)
    return F.kl_div(*pair, reduction="none", log_target=True).sum(-1)


def _no_target(program: Program) -> Any:
    raise NotImplementedError("nothing is lowered while prompt tokens are trained")
