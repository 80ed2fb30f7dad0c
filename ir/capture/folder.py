"""Load a Hugging Face model folder: ``config.json`` and safetensors, nothing that runs code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from .weights import check_finite, read_json, stored_in, weight_files

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
)

GENERATION = "generation_config.json"


def load_folder(folder: Path) -> nn.Module:
    """The model of ``folder`` in float32 and evaluation mode.

    Raises:
        InputError: a file is missing, damaged, pickled, or does not fit the configuration.
    """
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise InputError(f"{folder} holds no config.json: is it a model folder saved by save_pretrained?")
    config = read_json(config_file)
    # transformers takes a damaged one for none.
    if (folder / GENERATION).is_file():
        read_json(folder / GENERATION)
    files = weight_files(folder)
    if "model_type" not in config and isinstance(config.get("architecture"), str):
        from .timm import load_timm_weights

        return load_timm_weights(str(config["architecture"]), files[0])
    kind = _model_class(folder, config)
    _check_shapes(folder, kind, files)
    model = _load(folder, kind)
    check_finite(model.named_parameters(), folder)
    return model


def tokenizer_files_of(model: Any) -> dict[str, str]:
    """Tokenizer files beside the weights that a Hugging Face model was loaded from, path by name.

    Of a hub, those that are in its cache on this machine.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    name = str(getattr(model, "name_or_path", "") or "")
    if not name:
        return {}
    folder = Path(name)
    if folder.is_dir():
        return {file: str(folder / file) for file in TOKENIZER_FILES if (folder / file).is_file()}
    revision = getattr(model.config, "_commit_hash", None)
    try:
        cached = {file: try_to_load_from_cache(name, file, revision=revision) for file in TOKENIZER_FILES}
    except HFValidationError:
        # A folder that is gone, or a name of the caller's own.
        return {}
    return {file: path for file, path in cached.items() if isinstance(path, str)}


def _model_class(folder: Path, config: dict[str, Any]) -> Any:
    """The class that ``architectures`` names, else the plain model of ``model_type``."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    model_type, names = config.get("model_type"), config.get("architectures")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING_NAMES:
        raise InputError(
            f"{folder / 'config.json'}: model_type {model_type!r} is none that transformers "
            f"{transformers.__version__} knows; models with code of their own are loaded by you and passed as modules"
        )
    if names is None or names == []:
        return transformers.AutoModel
    if not isinstance(names, list) or not isinstance(names[0], str):
        raise InputError(
            f"{folder / 'config.json'}: architectures is {names!r}, where a list of names was expected"
        )
    kind = getattr(transformers, names[0], None)
    if not isinstance(kind, type) or not issubclass(kind, transformers.PreTrainedModel):
        raise InputError(
            f"{folder / 'config.json'}: architecture {names[0]!r} is no model of transformers "
            f"{transformers.__version__}"
        )
    return kind


def _check_shapes(folder: Path, kind: Any, files: list[Path]) -> None:
    """Compare the shapes in the files' headers with the model's, before anything is allocated."""
    from transformers import AutoConfig

    tensors = sum(len(stored_in(file)) for file in files)
    try:
        with _quiet(), torch.device("meta"):
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            _check_layers(folder, config, tensors)
            model = kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{folder / 'config.json'} describes no model: {_one_line(error)}") from error
    expected = model.state_dict()
    for file in files:
        for name, (shape, dtype) in stored_in(file).items():
            if name not in expected:
                continue
            if list(expected[name].shape) != shape:
                raise InputError(
                    f"{file}: {name} has shape {shape}, config.json describes {list(expected[name].shape)}: the two "
                    "belong to different models"
                )
            if expected[name].is_floating_point() and not dtype.startswith(("F", "BF")):
                raise InputError(
                    f"{file}: {name} holds {dtype} where the model computes with floating-point numbers: quantised "
                    "weights have to be dequantised first"
                )


def _check_layers(folder: Path, config: Any, tensors: int) -> None:
    """A model of a thousand million layers is not built, not even without its weights."""
    count = getattr(config, "num_hidden_layers", None)
    # Layers may share weights, though not thousands of them.
    if isinstance(count, int) and count > max(1000, tensors):
        raise InputError(
            f"{folder / 'config.json'} says {count} layers, and the weights are {tensors} tensors: the two belong to "
            "different models"
        )


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def _load(folder: Path, kind: Any) -> nn.Module:
    try:
        with _quiet():
            model, info = kind.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:
        raise InputError(f"{folder}: the weights do not fit config.json ({_one_line(error)})") from error
    missing = sorted(str(name) for name in info.get("missing_keys") or ())
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} weights are missing, the first is {missing[0]}: config.json describes another "
            "model than the weights, or the weights are incomplete; where the model does without them, load it "
            "yourself and give the module"
        )
    return model.eval()  # type: ignore[no-any-return]


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers reports loading to the log and draws progress bars; errors come back as exceptions anyway."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
