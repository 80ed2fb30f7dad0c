"""Other programs that generate on CPU, for the benchmarks of decoding; each takes part where it is installed.

pip install llama-cpp-python        compiles for about 9 minutes
pip install onnxruntime-genai       its model is built when it is first needed, from the one that it is compared with
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples.real_models import built, gemma3_270m_folder, gemma3_270m_gguf

from .decoding_sides import Side

LLAMA, LLAMA_LOOKUP = "llama.cpp", "llama.cpp lookup"
GENAI = "onnxruntime-genai"
# What it looks up and how many it guesses are its own defaults but for the guesses, which its documents advise on CPU.
_LOOKUP_GUESSES = 2
_LONGEST = 4096


@dataclass
class LlamaCpp:
    """llama.cpp on the GGUF file, greedy, past the end of a text too."""

    name: str
    draft: Any = None
    _model: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        from llama_cpp import Llama

        self._model = Llama(
            str(gemma3_270m_gguf()),
            n_ctx=_LONGEST,
            draft_model=self.draft,
            logits_all=self.draft is not None,
            verbose=False,
        )

    def run(self, prompt: list[int], new: int) -> list[int]:
        # A prompt that begins like the last would be read in part only.
        self._model.reset()
        found: list[int] = []
        for token in self._model.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
            found.append(int(token))
            if len(found) == new:
                break
        return found


@dataclass
class GenAI:
    """onnxruntime-genai, greedy, on the model that its own builder makes."""

    name: str
    precision: str
    _model: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        import onnxruntime_genai

        self._model = onnxruntime_genai.Model(str(_genai_folder(self.precision)))

    def run(self, prompt: list[int], new: int) -> list[int]:
        import onnxruntime_genai

        options = onnxruntime_genai.GeneratorParams(self._model)
        length = len(prompt) + new
        # Its caches of windowed layers must have room for a window.
        options.set_search_options(do_sample=False, min_length=length, max_length=max(length, _LONGEST))
        generator = onnxruntime_genai.Generator(self._model, options)
        generator.append_tokens(prompt)
        while len(generator.get_sequence(0)) < length:
            generator.generate_next_token()
        return list(map(int, generator.get_sequence(0)[len(prompt) :]))


def llama_sides() -> list[Side]:
    """llama.cpp, plain and with its prompt lookup; none where it is not installed."""
    if importlib.util.find_spec("llama_cpp") is None:
        return []
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    lookup = LlamaPromptLookupDecoding(num_pred_tokens=_LOOKUP_GUESSES)
    return [LlamaCpp(LLAMA), LlamaCpp(LLAMA_LOOKUP, lookup)]


def genai_sides(precision: str) -> list[Side]:
    """onnxruntime-genai in ``fp32`` or ``int4``; none where it is not installed."""
    if importlib.util.find_spec("onnxruntime_genai") is None:
        return []
    return [GenAI(f"{GENAI} {precision}", precision)]


def _genai_folder(precision: str) -> Path:
    """The model as its builder writes it.

    It reads the rotary tables of Gemma 3 as transformers 4 described them, so that it is told in those words.
    """
    import runpy

    from transformers import AutoConfig

    read: Any = AutoConfig.from_pretrained

    def as_before(*args: Any, **kwargs: Any) -> Any:
        config = read(*args, **kwargs)
        if not isinstance(config, tuple):
            whole, windows = (
                config.rope_parameters[kind] for kind in ("full_attention", "sliding_attention")
            )
            config.rope_local_base_freq = windows["rope_theta"]
            config.__dict__["rope_parameters"] = dict(whole)
        return config

    def build(folder: Path) -> None:
        source = folder / "source"
        source.mkdir()
        for file in gemma3_270m_folder().iterdir():
            (source / file.name).symlink_to(file)
        config = json.loads((gemma3_270m_folder() / "config.json").read_text())
        (source / "config.json").unlink()
        (source / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
        arguments = sys.argv
        sys.argv = [
            "builder",
            "-m",
            "gemma",
            "-i",
            str(source),
            "-o",
            str(folder),
            "-p",
            precision,
            "-e",
            "cpu",
        ]
        sys.argv += ["-c", str(source)]
        AutoConfig.from_pretrained = as_before
        try:
            runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
        finally:
            sys.argv = arguments
            AutoConfig.from_pretrained = read
        shutil.rmtree(source)

    return built(f"gemma3-270m-genai-{precision}", build)
