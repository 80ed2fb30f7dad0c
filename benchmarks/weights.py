"""What every kind of weights costs Gemma 3 270M: bytes, and perplexity on text that it was not converted with.

python -m benchmarks.weights            prints its section
python -m benchmarks.weights --rows 8   a quick look

Nothing is timed: the section `quantised` says how fast they are.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

import tersor
from examples.prompts import untouched_rows
from examples.real_data import prose
from tersor.codegen.onnx.weights import find_kind, kinds
from tersor.storing import AUTO_LOSS

from .decoding_sides import gemma
from .page import check_limits, provenance, table

# Rows of text that kinds are settled on, and rows behind them on which all are measured; tokens of each.
SETTLED_ON, ROWS, TOKENS = 8, 96, 256
AUTO = "auto"
_SAID = """\
Gemma 3 270M with `kv-cache`, on {positions} tokens of the Python manual behind those that it was converted with
(calibration of {settled} rows of {tokens}). *Perplexity*: over that of the model in float32, with its standard error
over rows; *same top token* and *divergence* (KL, mean) against its predictions. *Cut out*: perplexity on the same rows
without `<bos>`, as text that begins in the midst of another would be read, over that of the model in float32 on them;
no limit holds there. *Stored*: where one kind costs more than it may, some matrices are in another."""

_console = Console(stderr=True)


@dataclass
class Cost:
    """Of one kind: what it is settled as, and sums over rows that were measured.

    Attributes:
        surprise: by row, how much more a token takes, in nats.
        cut_out: the same without the token that opens texts.
    """

    kind: str
    stored: str
    bytes: int
    surprise: list[float]
    cut_out: list[float] = field(default_factory=list)
    same: float = 0.0
    divergence: float = 0.0

    @property
    def loss(self) -> float:
        """By what share perplexity is larger."""
        return _loss(self.surprise)

    @property
    def error(self) -> float:
        """Its standard error; rows are independent, tokens of one are not."""
        return _error(self.surprise)

    def add(self, ids: Tensor, own: Tensor, found: Tensor) -> None:
        """One row: ``ids [tokens]``, and both models' log-probabilities ``[tokens, vocabulary]``."""
        self.surprise.append(_surprise(ids, found) - _surprise(ids, own))
        self.same += float((own.argmax(1) == found.argmax(1)).float().mean())
        self.divergence += float((own.exp() * (own - found)).sum(1).mean())


def _surprise(ids: Tensor, predicted: Tensor) -> float:
    """What a token of ``ids [tokens]`` takes on average, in nats, by ``[tokens, vocabulary]`` log-probabilities."""
    return -float(predicted[:-1].gather(1, ids[1:, None]).mean())


def _loss(surprise: Sequence[float]) -> float:
    return math.expm1(sum(surprise) / len(surprise))


def _error(surprise: Sequence[float]) -> float:
    if len(surprise) < 2:
        return math.nan
    spread = float(torch.tensor(surprise, dtype=torch.float64).std())
    return (1 + _loss(surprise)) * spread / math.sqrt(len(surprise))


def converted(kind: str, model: Any, example: dict[str, Tensor], rows: Tensor) -> tuple[Any, Cost]:
    """The model in that kind, settled on ``rows [rows, tokens]``; nothing is measured of it."""
    fast = tersor.optimize_model(
        model,
        ["kv-cache"],
        "onnx",
        example_inputs=example,
        calibration=[_given(row) for row in rows.split(1)],
        require_speedup=False,
        on_violation="revert",
        weights=kind,
    )
    assert fast.report.storage is not None
    kept = fast.report.storage.kept
    return fast, Cost(kind, kept.kind, kept.bytes, [])


def measure(model: Any, sides: Sequence[tuple[Any, Cost]], row: Tensor) -> tuple[float, float]:
    """Add what every side costs on ``row [1, tokens]``, which opens as texts do; the model's own nats a token on it,
    and without what opens it."""
    whole, cut = (_predicted(model, ids) for ids in (row, row[:, 1:]))
    for fast, cost in sides:
        cost.add(row[0], whole, _predicted(fast, row))
        cost.cut_out.append(_surprise(row[0, 1:], _predicted(fast, row[:, 1:])) - _surprise(row[0, 1:], cut))
    return _surprise(row[0], whole), _surprise(row[0, 1:], cut)


def _predicted(model: Any, ids: Tensor) -> Tensor:
    return model(**_given(ids)).logits[0].log_softmax(-1)


def _given(row: Tensor) -> dict[str, Tensor]:
    return {"input_ids": row, "attention_mask": torch.ones_like(row)}


def missed(costs: Sequence[Cost]) -> list[str]:
    """Kinds that cost more than they may, or of which too little was measured to tell."""
    found = []
    for cost in costs:
        # A kind is asked for as little whatever was kept in its place.
        kind = find_kind(cost.kind) if cost.kind != AUTO else None
        most = kind.most_loss if kind is not None else AUTO_LOSS
        if not abs(cost.loss) + 2 * cost.error <= most:
            found.append(f"{cost.kind}: {cost.loss:+.2%} and twice {cost.error:.2%} (at most {most:.0%})")
    return found


def section(costs: Sequence[Cost], own: Sequence[tuple[float, float]], settled: int) -> str:
    """The whole section of the page; ``own``: what :func:`measure` gives of every row."""
    count = len(costs[0].surprise)
    rows = [
        [
            cost.kind,
            cost.stored if cost.stored != cost.kind else "",
            f"{cost.bytes / 1e6:.0f}",
            f"{cost.loss:+.2%} ± {cost.error:.2%}",
            f"{cost.same / count:.1%}",
            f"{cost.divergence / count:.4f}",
            f"{_loss(cost.cut_out):+.2%} ± {_error(cost.cut_out):.2%}",
        ]
        for cost in costs
    ]
    whole, cut = (math.exp(sum(nats) / count) for nats in zip(*own, strict=True))
    short = missed(costs)
    return "\n".join(
        [
            provenance("weights"),
            "",
            _SAID.format(positions=count * (TOKENS - 1), settled=settled, tokens=TOKENS),
            "",
            table(["kind", "stored", "MB", "perplexity", "same top token", "divergence", "cut out"], rows),
            "",
            f"The model's own perplexity in float32: {whole:.1f}, cut out {cut:.1f}.",
            "",
            "Below what is asked: " + ("; ".join(short) if short else "nothing") + ".",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.weights", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=ROWS, help="rows that are measured")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a stated limit is missed")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    model, tokenizer, example = gemma()
    count = SETTLED_ON + options.rows
    rows = torch.tensor(untouched_rows(tokenizer, prose(), count, TOKENS))
    sides = []
    for kind in (*kinds(), AUTO):
        sides.append(side := converted(kind, model, example, rows[:SETTLED_ON]))
        _console.print(f"{kind}: {side[1].stored}", highlight=False)
    own = []
    for number, row in enumerate(rows[SETTLED_ON:].split(1), 1):
        own.append(measure(model, sides, row))
        _console.print(f"row {number} of {options.rows}", highlight=False)
    costs = [cost for _, cost in sides]
    print(section(costs, own, SETTLED_ON))
    check_limits(missed(costs), options.check)


if __name__ == "__main__":
    main()
