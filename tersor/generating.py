"""``OptimizedModel.generate``: text or token ids in, the same with what follows out."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .codegen.target import find_target
from .cost_cache import kept
from .ir.capture.huggingface import CONTEXT
from .ir.errors import InputError
from .ir.program import Program
from .ir.straight import straight
from .passes.deviation import is_logits
from .passes.spec import parse_spec
from .passes.speculate.insert import NOTE, Speculate
from .runtime.decoder import Decoder
from .runtime.draft_models import DraftModels
from .runtime.generation import Stopping, generate
from .runtime.sampling import Sampling
from .runtime.speculation import Statistics
from .settings import Settings
from .text import Written, load_tokenizer, stops_at, token_ids, tokenizer_folder


@dataclass
class Generator:
    """What generation keeps between calls: the lowered forms of the Program, and the tokenizer.

    Calls from several threads take turns: forms, their buffers and what drafters remember are shared.

    Attributes:
        artifact: the folder that the model was loaded from; None where it was made in this process.
        drafter: who guesses; None where nobody does.
        statistics: what came of guesses in the last call.
        notes: what is to be known of what the last call gave, a line each; they are warnings too.
    """

    program: Program
    target: str
    options: Mapping[str, Any]
    artifact: Path | None = None

    def __post_init__(self) -> None:
        """Raises InputError where the Program keeps no cache, or scores no tokens."""
        lower = find_target(self.target).lower
        self.decoder = Decoder(
            self.program,
            lambda program: lower(program, **self.options),
            lambda measure, now: kept(self.artifact, {"target": self.target, **self.options}, measure, now),
        )
        returned = self.program.returned
        if len(returned) != 1 or not is_logits(self.program, returned[0].name):
            names = ", ".join(spec.name for spec in returned)
            raise InputError(
                f"this model gives {names}, and not scores over a vocabulary alone: convert one with a language head, "
                "or let one that has it return its scores alone, as {'logits': scores}"
            )
        noted = self.program.notes.get(NOTE)
        pass_ = None if noted is None else parse_spec(noted)
        self.drafter = pass_.drafter if isinstance(pass_, Speculate) else None
        models = {} if self.drafter is None else self.drafter.models(straight(self.program))
        self._models = DraftModels(models, lambda program: lower(program, **self._options_of(program)))
        self._guess = None if self.drafter is None else self.drafter.begin
        self.statistics = Statistics()
        self.notes: tuple[str, ...] = ()
        # A callback of ``stream`` may generate, too.
        self._turn = threading.RLock()
        self._folder = tokenizer_folder(self.program, self.artifact)
        self._tokenizer: Any = None

    def _options_of(self, draft: Program) -> Mapping[str, Any]:
        """How a model that guesses is lowered: what it shares with the one that checks is stored as there."""
        own = {n for n, weight in draft.weights.items() if self.program.weights.get(n) is weight}
        options = dict(self.options)
        if not own:
            options.pop("weights", None)
        kinds = options.pop("weight_kinds", None)
        shared = {name: kind for name, kind in (kinds or {}).items() if name in own}
        return options | ({"weight_kinds": shared} if shared else {})

    @property
    def tokenizer(self) -> Any:
        """The model's own tokenizer.

        Raises:
            InputError: it came without one.
        """
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._folder)
        return self._tokenizer

    @property
    def ends(self) -> frozenset[int]:
        """The token ids behind which nothing follows."""
        return Settings.of(self.program, {}).ends

    def likeliest(self, prompt: Sequence[int], most: int) -> list[int]:
        """At most so many new tokens, each the one that the model itself finds likeliest, whatever settings say."""
        stopping = Stopping(most, self.ends)
        with self._turn:
            found = generate(
                self.decoder, [prompt], stopping, Sampling(), guess=self._guess, models=self._models
            )
        return found[0]

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """See ``OptimizedModel.generate``."""
        with self._turn:
            return self._generate(inputs, **options)

    def _generate(
        self,
        inputs: Any,
        *,
        attention_mask: Any = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        stream: Callable[[Any], object] | None = None,
        tokenizer: Any = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> Any:
        settings = Settings.of(self.program, options, seed)
        check_call(stop, stream, batch_size, tokenizer)
        is_text = _is_text(inputs)
        stops = [*([stop] if isinstance(stop, str) else stop or ()), *settings.stops]
        tokenizer = tokenizer or (self.tokenizer if is_text or stops else None)
        texts = [inputs] if isinstance(inputs, str) else inputs
        if is_text and attention_mask is not None:
            raise InputError("attention_mask belongs to a tensor of ids: texts have no padding")
        if is_text:
            prompts = [token_ids(tokenizer, text) for text in texts]
        else:
            prompts = self._rows(inputs, attention_mask, settings.padding)
        if not prompts:
            raise InputError("there is no prompt: give a text, or rows of token ids")
        ends_text = stops_at(tokenizer, stops) if stops else None
        stopping = Stopping(settings.most, settings.ends, ends_text, settings.longest)
        if settings.longest is not None and isinstance(inputs, Tensor | np.ndarray):
            # Padding counts, as the row is so long with it.
            left = _left(settings.longest, inputs.shape[1])
            most = left if settings.most is None else min(settings.most, left)
            stopping = replace(stopping, most=most, longest=None)
        written = [Written(tokenizer) for _ in prompts] if is_text else []
        self.notes = self._notes(prompts, stopping)
        for note in self.notes:
            # Of whoever called OptimizedModel.generate.
            warnings.warn(note, stacklevel=4)

        def tell(row: int, token: int) -> None:
            if is_text:
                piece = written[row].append(token)
                if stream is not None and piece:
                    stream(piece if isinstance(inputs, str) else (row, piece))
            elif stream is not None:
                stream((row, token))

        self.statistics = Statistics()
        new = generate(
            self.decoder,
            prompts,
            stopping,
            settings.sampling,
            tell,
            self._guess,
            self.statistics,
            batch_size,
            self._models,
        )
        if is_text:
            for row, text in enumerate(written):
                rest = text.finish()
                if stream is not None and rest:
                    stream(rest if isinstance(inputs, str) else (row, rest))
            return written[0].text if isinstance(inputs, str) else [text.text for text in written]
        if isinstance(inputs, Tensor | np.ndarray):
            return _padded(torch.as_tensor(inputs), new, settings.fill)
        return [prompt + tokens for prompt, tokens in zip(prompts, new, strict=True)]

    def _rows(self, inputs: Any, attention_mask: Any, padding: int | None) -> list[list[int]]:
        """Rows of token ids without their padding, which is what the mask says, or has the id ``padding``."""
        if not isinstance(inputs, Tensor | np.ndarray):
            return _listed(inputs, attention_mask)
        ids, real = _padded_rows(inputs, attention_mask, padding)
        windows = {slots.window for slots in self.decoder.stepping.slots} - {0}
        # A window counts places; what is left out of the midst of a row would let it reach further back.
        gaps = (real.diff(dim=1, prepend=torch.zeros(len(real), 1, dtype=torch.int64)) == 1).sum(1) > 1
        if windows and gaps.any():
            raise InputError(
                f"row {int(gaps.nonzero()[0, 0])} has padding between its tokens, and layers of this model look "
                f"{min(windows)} places back, padding counted: pad rows in front or behind"
            )
        return [row[keep].tolist() for row, keep in zip(ids, real.bool(), strict=True)]

    def _notes(self, prompts: Sequence[Sequence[int]], stopping: Stopping) -> tuple[str, ...]:
        context = dict(self.program.facts.generation).get(CONTEXT)
        longest = max(len(prompt) + stopping.left(prompt) for prompt in prompts)
        # Where positions are a table of the model's, what is past it is refused.
        if context is None or self.decoder.longest is not None or longest <= context:
            return ()
        note = (
            f"up to {longest} tokens with what follows, and the model was made for texts of {context} "
            f"({CONTEXT}): past that it may say anything; ask for fewer with max_new_tokens, or shorten the prompt"
        )
        return (note,)


def _padded(ids: Tensor, new: list[list[int]], fill: int) -> Tensor:
    """``ids`` with the new tokens behind, and padding behind those of rows that ended before the longest."""
    longest = max(map(len, new))
    rows = [tokens + [fill] * (longest - len(tokens)) for tokens in new]
    return torch.cat([ids, torch.tensor(rows, dtype=ids.dtype, device=ids.device)], dim=1)


def check_call(stop: Any, stream: Any, batch_size: Any, tokenizer: Any) -> None:
    """Raises InputError where one of these arguments makes no sense."""
    texts = () if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, Sequence) or any(not isinstance(text, str) or not text for text in texts):
        raise InputError(f"stop={stop!r} is no text: give one, or a list of them")
    if stream is not None and not callable(stream):
        raise InputError(f"stream={stream!r} cannot be called: give a function of a piece")
    whole = isinstance(batch_size, int) and not isinstance(batch_size, bool)
    if batch_size is not None and not (whole and batch_size >= 1):
        raise InputError(f"batch_size={batch_size!r} is no number of prompts: give an integer from 1 up")
    if tokenizer is not None and not (callable(tokenizer) and hasattr(tokenizer, "decode")):
        raise InputError(f"tokenizer={tokenizer!r} is none: give one of transformers, or leave it out")


def _is_text(inputs: Any) -> bool:
    texts = [inputs] if isinstance(inputs, str) else inputs
    return isinstance(texts, list | tuple) and bool(texts) and all(isinstance(t, str) for t in texts)


def _left(longest: int, width: int) -> int:
    if width >= longest:
        raise InputError(
            f"max_length={longest}, and the prompts have {width} tokens already: give a larger one, or max_new_tokens"
        )
    return longest - width


def _tensor(name: str, given: Any) -> Tensor:
    try:
        return torch.as_tensor(given).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{name} is no tensor: give numbers [batch, tokens], as many in every row ({' '.join(str(error).split())})"
        ) from error


def _padded_rows(inputs: Any, attention_mask: Any, padding: int | None) -> tuple[Tensor, Tensor]:
    """Ids ``[batch, tokens]``, and as int64 where they are tokens and no padding."""
    ids = _tensor("input_ids", inputs)
    if ids.dim() != 2 or ids.dtype not in (torch.int32, torch.int64):
        raise InputError(
            f"input_ids is {list(ids.shape)} {ids.dtype}: give integers [batch, tokens] of int64 or int32, or texts"
        )
    if attention_mask is not None:
        real = _tensor("attention_mask", attention_mask)
        if not ((real == 0) | (real == 1)).all():
            raise InputError(
                "attention_mask holds other numbers than 0 and 1: give 1 at tokens and 0 at padding, and not what "
                "is added to scores"
            )
    else:
        real = torch.ones_like(ids) if padding is None else ids != padding
    if real.shape != ids.shape:
        raise InputError(f"attention_mask is {list(real.shape)}, and input_ids {list(ids.shape)}")
    return ids, real.long()


def _listed(inputs: Any, attention_mask: Any) -> list[list[int]]:
    if isinstance(inputs, list | tuple) and all(isinstance(row, list | tuple) for row in inputs):
        if attention_mask is not None:
            raise InputError(
                "attention_mask belongs to a tensor of ids: leave padding out of rows that are lists"
            )
        return [[int(t) if isinstance(t, np.integer) else t for t in row] for row in inputs]
    raise InputError(
        f"a {type(inputs).__name__} is no prompt: give a text, a list of texts, rows of token ids, or a tensor of them"
    )
