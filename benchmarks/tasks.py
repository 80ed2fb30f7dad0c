"""Real inputs with a question that embeddings have to answer, and the answers scored item by item."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, fx

from examples.real_data import photograph_crops, prose_sections
from examples.real_models import dinov2_vits14, minilm_l6
from tersor.ir.capture import capture
from tersor.ir.dialect import is_dialect
from tersor.ir.program import Program
from tersor.passes.contract import KEPT_INDEX, Refusal
from tersor.passes.spec import parse_spec

from .metrics import (
    Clusters,
    Values,
    cosines,
    first_hits,
    label_hits,
    neighbour_agreement,
    ranks,
    reciprocal_ranks,
)

_BATCH = 16


class Task(ABC):
    """One model with real inputs.

    Attributes:
        title: heading of the task's table.
        metrics: names of what :meth:`scores` returns.
        deciding: those of them in which a method has to beat random choice.
        program: the undropped model, captured at the sizes whose FLOPs are stated.
        sizes: those sizes, by dimension.
        clusters: int64 ``[items]``, equal for items of one source, which are alike.
    """

    title: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    deciding: ClassVar[tuple[str, ...]]
    program: Program
    sizes: dict[str, int]
    clusters: Clusters

    @abstractmethod
    def describe(self) -> str:
        """What was embedded and what was asked, for the page."""

    @abstractmethod
    def scores(self, program: Program) -> dict[str, Values]:
        """Every metric, one value an item, of ``program`` put in the place of the undropped model."""

    def dropped(self, spec: str) -> Program | Refusal:
        """The model rewritten by the pass of ``spec``, or why that pass may not act on it."""
        return _rewritten(self.program, spec)


class Photographs(Task):
    """DINOv2 class-token embeddings of crops: which crop looks most like which, and of which picture is it."""

    title = "DINOv2 ViT-S/14, 224 px (257 tokens)"
    metrics = ("neighbour agreement", "cosine", "picture found")
    deciding = ("neighbour agreement", "cosine")

    def __init__(self, crops: int) -> None:
        self.pixels, names = photograph_crops(224, crops)
        kinds = sorted(set(names))
        self.labels = torch.tensor([kinds.index(name) for name in names])
        self.clusters = self.labels.numpy()
        self.program = capture(dinov2_vits14(224), {"pixel_values": self.pixels[:2]})
        self.sizes = {"batch": 1}
        self._reference = self._embed(self.program)

    def describe(self) -> str:
        return (
            f"{len(self.labels)} crops of {len(set(self.labels.tolist()))} photographs. Cosine: of the class token's "
            "embedding with that of the undropped model. Neighbour agreement: share of crops whose nearest other "
            "crop is the one it was. Picture found: share of crops whose nearest other crop is of the same photograph."
        )

    def scores(self, program: Program) -> dict[str, Values]:
        embeddings = self._embed(program)
        return {
            "neighbour agreement": neighbour_agreement(embeddings, self._reference),
            "cosine": cosines(embeddings, self._reference),
            "picture found": label_hits(embeddings, self.labels),
        }

    def _embed(self, program: Program) -> Tensor:
        batches = _batches({"pixel_values": self.pixels})
        return torch.cat([program.run(batch)[0][:, 0] for batch in batches])


class Manual(Task):
    """MiniLM sentence embeddings of the Python manual: which section does a title belong to."""

    title = "MiniLM-L6, sections of 256 tokens"
    metrics = ("mean reciprocal rank", "accuracy@1", "cosine")
    deciding = ("mean reciprocal rank",)

    def __init__(self, tokens: int = 256) -> None:
        model, tokenizer = minilm_l6()
        titles, texts, pages = zip(*prose_sections(), strict=True)
        self.clusters = np.unique(pages, return_inverse=True)[1]
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        self.sections = dict(tokenizer(list(texts), max_length=tokens, **options))
        self.program = capture(model, {name: value[:2] for name, value in self.sections.items()})
        self.sizes = {"batch": 1, "tokens": tokens}
        self._titles = self._embed(
            self.program, dict(tokenizer(list(titles), padding=True, return_tensors="pt"))
        )
        self._reference = self._embed(self.program, self.sections)

    def describe(self) -> str:
        real = self.sections["attention_mask"].sum(dim=1)
        full = int((real == real.max()).sum())
        return (
            f"{len(real)} sections from {len(set(self.clusters))} pages of the Python language manual, cut at "
            f"{int(real.max())} tokens ({full} fill them, the others are padded), embedded by the mean of their "
            "tokens, of those that stayed where some were dropped. For every title, all sections are ranked; titles "
            "have nothing to drop and go through the undropped model. Cosine: of a section's embedding with that of "
            "the undropped model."
        )

    def dropped(self, spec: str) -> Program | Refusal:
        """Outputs stay compact where restoring them would mix in tokens as they were when they were dropped.

        Where tokens were merged they come back as what they became part of, so that a merged one counts as many.
        """
        restored = _rewritten(self.program, spec)
        if isinstance(restored, Program) and any(map(_holds_dropped, restored.graph.nodes)):
            return _rewritten(self.program, f"{spec},restore=compact")
        return restored

    def scores(self, program: Program) -> dict[str, Values]:
        embeddings = self._embed(program, self.sections)
        rank = ranks(self._titles, embeddings)
        return {
            "mean reciprocal rank": reciprocal_ranks(rank),
            "accuracy@1": first_hits(rank),
            "cosine": cosines(embeddings, self._reference),
        }

    def _embed(self, program: Program, inputs: Mapping[str, Tensor]) -> Tensor:
        pooled = []
        for batch in _batches(inputs):
            results = program.run({spec.name: batch[spec.name] for spec in program.inputs})
            output = dict(zip((spec.name for spec in program.outputs), results, strict=True))
            hidden, real = output["last_hidden_state"], batch["attention_mask"]
            if KEPT_INDEX in output:
                real = real.gather(1, output[KEPT_INDEX])
            weight = real[:, :, None].to(hidden.dtype)
            pooled.append((hidden * weight).sum(dim=1) / weight.sum(dim=1))
        return torch.cat(pooled)


def _holds_dropped(node: fx.Node) -> bool:
    """Whether a node puts the kept tokens back among the hidden states of the dropped ones."""
    return is_dialect(node, "scatter_tokens") and node.meta["val"].dim() == 3


def _rewritten(program: Program, spec: str) -> Program | Refusal:
    instance = parse_spec(spec)
    sites = instance.legality(program)
    return sites if isinstance(sites, Refusal) else instance.rewrite(program, sites)


def _batches(inputs: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    count = len(next(iter(inputs.values())))
    for start in range(0, count, _BATCH):
        yield {name: value[start : start + _BATCH] for name, value in inputs.items()}
