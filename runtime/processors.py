"""What changes the scores of tokens before one is chosen: transformers' own processors, by the options of its
``generate`` and in its order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tersor.ir.errors import InputError

# Takes ids [1, tokens] and scores [1, vocabulary], and returns scores.
Processor = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Text:
    """What processors go by, beside the tokens so far.

    Attributes:
        prompt: its tokens.
        longest: of how many tokens the whole is at most, the new ones among them.
        ends: token ids behind which nothing follows.
    """

    prompt: Sequence[int] = (0,)
    longest: int = 1
    ends: Sequence[int] = ()

    @property
    def ids(self) -> Tensor:
        return torch.tensor([list(self.prompt)], dtype=torch.int64)


@dataclass(frozen=True)
class _Option:
    """Of one option: whether a value asks for anything, and the processor that it asks for."""

    counts: Callable[[Any], bool]
    make: Callable[[Any, Text, Any], Processor]
    of_ends: bool = False


def _given(value: Any) -> bool:
    return value is not None


def _positive(value: Any) -> bool:
    return value is not None and value != 0


def _not_one(value: Any) -> bool:
    return value is not None and value != 1


def _said(value: Any) -> bool:
    if value is not None and not isinstance(value, bool):
        raise TypeError("it is neither True nor False")
    return value is True


# Of every token, the most likely one's too; `t` is transformers' module of processors.
_ALWAYS: Mapping[str, _Option] = {
    "sequence_bias": _Option(_given, lambda v, text, t: t.SequenceBiasLogitsProcessor(v)),
    "encoder_repetition_penalty": _Option(
        _not_one, lambda v, text, t: t.EncoderRepetitionPenaltyLogitsProcessor(v, text.ids)
    ),
    "repetition_penalty": _Option(_not_one, lambda v, text, t: t.RepetitionPenaltyLogitsProcessor(float(v))),
    "no_repeat_ngram_size": _Option(_positive, lambda v, text, t: t.NoRepeatNGramLogitsProcessor(v)),
    "encoder_no_repeat_ngram_size": _Option(
        _positive, lambda v, text, t: t.EncoderNoRepeatNGramLogitsProcessor(v, text.ids)
    ),
    "bad_words_ids": _Option(
        _given, lambda v, text, t: t.NoBadWordsLogitsProcessor(v, list(text.ends) or None)
    ),
    "min_length": _Option(
        _positive, lambda v, text, t: t.MinLengthLogitsProcessor(v, list(text.ends)), of_ends=True
    ),
    "min_new_tokens": _Option(
        _positive,
        lambda v, text, t: t.MinNewTokensLengthLogitsProcessor(len(text.prompt), v, list(text.ends)),
        of_ends=True,
    ),
    "forced_bos_token_id": _Option(_given, lambda v, text, t: t.ForcedBOSTokenLogitsProcessor(v)),
    "forced_eos_token_id": _Option(
        _given, lambda v, text, t: t.ForcedEOSTokenLogitsProcessor(text.longest, v)
    ),
    "remove_invalid_values": _Option(_said, lambda v, text, t: t.InfNanRemoveLogitsProcessor()),
    "exponential_decay_length_penalty": _Option(
        _given,
        lambda v, text, t: t.ExponentialDecayLengthPenalty(tuple(v), list(text.ends), len(text.prompt)),
        of_ends=True,
    ),
    "suppress_tokens": _Option(_given, lambda v, text, t: t.SuppressTokensLogitsProcessor(v)),
    "begin_suppress_tokens": _Option(
        _given, lambda v, text, t: t.SuppressTokensAtBeginLogitsProcessor(v, len(text.prompt))
    ),
}
# Of what a draw is from.
_DRAWS: Mapping[str, _Option] = {
    "temperature": _Option(_not_one, lambda v, text, t: t.TemperatureLogitsWarper(float(v))),
    "top_h": _Option(_given, lambda v, text, t: t.TopHLogitsWarper(v)),
    "top_k": _Option(_positive, lambda v, text, t: t.TopKLogitsWarper(v)),
    "top_p": _Option(_not_one, lambda v, text, t: t.TopPLogitsWarper(v)),
    "min_p": _Option(_given, lambda v, text, t: t.MinPLogitsWarper(v)),
    "typical_p": _Option(_not_one, lambda v, text, t: t.TypicalLogitsWarper(v)),
    "epsilon_cutoff": _Option(_positive, lambda v, text, t: t.EpsilonLogitsWarper(v)),
    "eta_cutoff": _Option(_positive, lambda v, text, t: t.EtaLogitsWarper(v)),
    "renormalize_logits": _Option(_said, lambda v, text, t: t.LogitNormalization()),
}
# Longer texts show nothing of an option that shorter ones do not, and may be longer than memory.
_LONGEST_CHECKED = 4096
# What leaves the same of all tokens and of those alone that the processors before it leave is not among these.
ABOVE_TOP_K = frozenset({"top_h"})

OPTIONS: Sequence[str] = (*_ALWAYS, *_DRAWS)


def processors_of(
    options: Mapping[str, Any], text: Text, draws: bool
) -> tuple[list[Processor], list[Processor]]:
    """What applies always, and what to draws only.

    Args:
        options: values by the names in ``OPTIONS``.

    Raises:
        InputError: a value makes no sense.
    """
    return _made(_ALWAYS, options, text), _made(_DRAWS, options, text) if draws else []


def check_processors(options: Mapping[str, Any], text: Text, vocabulary: int) -> None:
    """Raise InputError where an option, of those that are not checked otherwise, does not fit the vocabulary."""
    scores = torch.zeros(1, vocabulary)
    text = replace(text, longest=min(text.longest, _LONGEST_CHECKED))
    # Some do nothing but behind the first token, or before the last.
    others = {1, max(1, text.longest - 1)}
    texts = [text.ids, *(torch.zeros(1, length, dtype=torch.int64) for length in others)]
    for name, option in _ALWAYS.items():
        for processor in _made({name: option}, options, text):
            try:
                for ids in texts:
                    processor(ids, scores.clone())
            except (IndexError, RuntimeError, ValueError) as error:
                raise _no_sense(name, options[name], error) from error


def _made(known: Mapping[str, _Option], options: Mapping[str, Any], text: Text) -> list[Processor]:
    import transformers.generation.logits_process as processes

    made = []
    for name, option in known.items():
        value = options.get(name)
        try:
            if option.counts(value) and (text.ends or not option.of_ends):
                made.append(option.make(value, text, processes))
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            raise _no_sense(name, value, error) from error
    return made


def _no_sense(name: str, value: Any, error: Exception) -> InputError:
    return InputError(f"{name}={value!r} makes no sense here: {' '.join(str(error).split())[:300]}")
