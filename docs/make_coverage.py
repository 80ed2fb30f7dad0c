"""Writes ``docs/coverage.md`` from the capture matrix: ``python docs/make_coverage.py``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import torch  # noqa: E402
import transformers  # noqa: E402
from architectures import ARCHITECTURES  # noqa: E402
from capture_matrix import BATCH, CACHE, DROPS, LENGTHS, Row, measure  # noqa: E402
from rich.progress import track  # noqa: E402

HEADER = f"""# What capture covers

Written by `python docs/make_coverage.py`.  `tests/test_capture_matrix.py` captures every row again: names, reasons and
what is legal must be as stated here, and deviations rounding; how large that is differs between machines.

Small random models of each architecture, captured without example inputs where the model says what it takes.
"Attention" is the number of `tersor.attention` nodes over the number of attention layers that the configuration
states.  Both deviations are the largest difference from the untouched model on inputs of another batch
({BATCH}) and other lengths ({", ".join(map(str, LENGTHS))} tokens, padded), padding left out: of the Program run by
PyTorch, and of the portable ONNX file that clean-up and export make of it, run by ONNX Runtime on CPU.  0 means equal
to the last bit.  "Drops" and "Cache" say whether `{DROPS[0]}` (where attention is causal, `{DROPS[1]}`) and
`{CACHE}` are legal for the family; what they gain is another question, which `require_speedup` asks.  Experts run
densely: every token runs through all of them, so that the FLOPs of these layers are more than the model's by the ratio
that a note of the report gives.

| Architecture | Kind | Attention | Dynamic | Program | ONNX | Drops | Cache | Fails because |
|---|---|---|---|---|---|---|---|---|
"""


def line(row: Row) -> str:
    known = row.architecture
    found = "-" if row.found is None else f"{row.found}/{known.attention}"
    figures = ["-" if x is None else f"{x:.1e}" if x else "0" for x in (row.deviation, row.onnx)]
    cells = [
        known.name,
        known.group,
        found,
        ", ".join(row.dynamic) or "-",
        *figures,
        *row.legal,
        known.fails or row.problem,
    ]
    return f"| {' | '.join(cells)} |"


def reasons(rows: Sequence[Row], what: str, why: Callable[[Row], str]) -> str:
    """What keeps a pass from acting, and where."""
    names: dict[str, list[str]] = {}
    for row in rows:
        if why(row):
            names.setdefault(why(row), []).append(row.architecture.name)
    found = (f"- {what} not {', '.join(where)}: {reason}.\n" for reason, where in names.items())
    return "".join(found)


def main() -> None:
    rows = [measure(a, onnx=True) for a in track(ARCHITECTURES, "capturing")]
    passed = sum(not row.problem for row in rows)
    exact = sum(row.deviation == 0 for row in rows)
    summary = (
        f"\n{passed} of {len(rows)} rows pass, {exact} of them equal to the model to the last bit. "
        f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}.\n"
    )
    told = reasons(rows, "Drops", lambda row: row.drops) + reasons(rows, "Cache", lambda row: row.caches)
    text = HEADER + "\n".join(map(line, rows)) + "\n" + summary + "\nWhat is not legal, and why:\n\n" + told
    (ROOT / "docs" / "coverage.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
