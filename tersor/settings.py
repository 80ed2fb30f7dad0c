"""What a model goes by when it generates: what the caller says, else what the model came with, else the defaults of
``transformers.generate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from .ir.capture.huggingface import CONTEXT, TOKENS
from .ir.errors import InputError
from .ir.program import Program
from .passes.spec import nearest
from .runtime.processors import OPTIONS
from .runtime.sampling import Sampling

# As many as transformers.generate makes of a model that says nothing else.
_MOST = 20
_LENGTHS = ("max_new_tokens", "max_length")
# No token id is as large: int32 holds all.
_IDS = 2**31
_DIRECT = ("top_k", "top_p", "repetition_penalty")
# By the names of transformers.generate.
NAMES: Sequence[str] = (*_LENGTHS, *TOKENS, "do_sample", *OPTIONS)
# Options of a call that are none of transformers'.
_OF_CALLS = ("attention_mask", "stop", "seed", "stream", "tokenizer", "batch_size")
# Options of transformers that change nothing, with the value at which they do not.
_ASKS_NOTHING = {"use_cache": True, "num_beams": 1, "return_dict_in_generate": False}
# What would give other tokens, and has no form here, with the value that asks for nothing.
_WITHOUT_FORM = {
    "guidance_scale": 1,
    "num_return_sequences": 1,
    "token_healing": False,
    "watermarking_config": None,
    "max_time": None,
}
# What transformers tells ways of generating by.
_WAYS = (
    "num_beams",
    "penalty_alpha",
    "top_k",
    "dola_layers",
    "constraints",
    "force_words_ids",
    "do_sample",
)
_STOPS = "stop_strings"
# All of a model's own settings that change what it generates here, or whether it does.
OWN = frozenset({*NAMES, CONTEXT, _STOPS, *_WITHOUT_FORM, *_WAYS})


@dataclass(frozen=True)
class Settings:
    """Of one call.

    Attributes:
        most, longest: new tokens at most, or tokens of the whole, and the other is None; where nothing says either,
            some new ones, within what the model reads.
        ends: token ids behind which nothing follows.
        fill: the id behind rows that ended before others.
        padding: the id that is no text in a tensor of ids; None where every id is.
        stops: texts behind which nothing follows, that the model came with.
    """

    sampling: Sampling
    most: int | None
    longest: int | None
    ends: frozenset[int]
    fill: int
    padding: int | None = None
    stops: tuple[str, ...] = ()

    @classmethod
    def of(cls, program: Program, given: Mapping[str, Any], seed: int | None = None) -> Settings:
        """Settings for a call with the options ``given``.

        Raises:
            InputError: one of them is unknown or makes no sense; or the model came with settings that have no form
                here.
        """
        asks_nothing = {**_ASKS_NOTHING, **_WITHOUT_FORM}
        given = {name: _plain(value) for name, value in given.items()}
        given = {n: v for n, v in given.items() if n not in asks_nothing or v not in (None, asks_nothing[n])}
        for name in given:
            if name == "generation_config":
                raise InputError("generate takes settings by name: **generation_config.to_diff_dict()")
            if name in asks_nothing:
                raise InputError(
                    f"{name}={given[name]!r} has no form here, where each prompt goes on by one token after another, "
                    "over a cache: leave it out"
                )
            if name not in NAMES:
                raise InputError(f"generate has no option {name!r}{nearest(name, [*NAMES, *_OF_CALLS])}")
        own = dict(program.facts.generation)
        _check_own({**own, **given})
        both = {n: v for n, v in {**own, **given}.items() if n in NAMES}
        direct = {n: value for n in _DIRECT if (value := both.pop(n, None)) is not None}
        temperature = _temperature(both, given)
        most, longest = _lengths(both, own.get(CONTEXT))
        ends, padding = _ends(both, program.facts.config), _padding(both, program.facts.config)
        others = {n: v for n, v in both.items() if n in OPTIONS and n != "temperature" and v is not None}
        return cls(
            Sampling(temperature, seed=seed, others=others, **direct),
            most,
            longest,
            frozenset(ends),
            next(iter(ends), 0) if padding is None else padding,
            None if padding in ends else padding,
            _texts(own.get(_STOPS)),
        )


def _check_own(settings: Mapping[str, Any]) -> None:
    """Raise InputError where they ask for another way to generate than one token after another."""
    from transformers import GenerationConfig
    from transformers.generation import GenerationMode

    asked = {n: settings[n] for n in _WITHOUT_FORM if settings.get(n) not in (None, _WITHOUT_FORM[n])}
    config = GenerationConfig()
    for name in _WAYS:
        setattr(config, name, settings.get(name))
    if not isinstance(config.top_k, int):
        # What is wrong with it is said where it is used.
        config.top_k = None
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise InputError(
            f"this model came with settings for {mode.value.replace('_', ' ')}, which has no form here: change its "
            "generation_config before it is converted"
        )
    if asked:
        name, value = next(iter(asked.items()))
        raise InputError(
            f"this model came with {name}={value!r} among its settings, which has no form here: change its "
            "generation_config before it is converted"
        )


def _temperature(both: dict[str, Any], given: Mapping[str, Any]) -> Any:
    """Of draws; 0 for the most likely token."""
    draws, temperature = both.pop("do_sample", None), both.get("temperature")
    if draws is not None and not isinstance(draws, bool):
        raise InputError(f"do_sample={draws!r} is neither True nor False")
    said = given.get("temperature")
    if said is not None:
        if given.get("do_sample") is not None and bool(said) != draws:
            raise InputError(
                f"do_sample={draws} and temperature={said!r} contradict each other: leave one out"
            )
        return said
    if not draws:
        return 0
    # One of 0 beside do_sample=True is refused as transformers does.
    return 1.0 if temperature is None else temperature


def _lengths(both: Mapping[str, Any], context: int | None) -> tuple[int | None, int | None]:
    """New tokens at most, and tokens at most; where both are said, new tokens count."""
    if both.get("max_new_tokens") is not None:
        return both["max_new_tokens"], None
    if both.get("max_length") is not None:
        return None, both["max_length"]
    return _MOST, context


def _ends(both: Mapping[str, Any], config: Mapping[str, Any]) -> list[int]:
    found = both["eos_token_id"] if "eos_token_id" in both else config.get("eos_token_id")
    ids = [] if found is None else list(found) if isinstance(found, list | tuple | set) else [found]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int):
            raise InputError(f"eos_token_id={found!r}: {token!r} is no token id")
    return ids


def _padding(both: Mapping[str, Any], config: Mapping[str, Any]) -> int | None:
    found = both["pad_token_id"] if "pad_token_id" in both else config.get("pad_token_id")
    if found is not None and (isinstance(found, bool) or not isinstance(found, int) or abs(found) >= _IDS):
        raise InputError(f"pad_token_id={found!r} is no token id")
    return found


def _plain(value: Any) -> Any:
    """``value`` in Python's own numbers and lists where it is in NumPy's or torch's."""
    if isinstance(value, np.generic):
        return value.item()
    return value.tolist() if isinstance(value, np.ndarray | Tensor) else value


def _texts(found: Any) -> tuple[str, ...]:
    return (found,) if isinstance(found, str) else tuple(found or ())
