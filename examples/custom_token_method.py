"""A token method of your own, in one file outside the package, used through a spec string.

    python examples/custom_token_method.py

The method keeps the tokens whose key is least like the average key: what stands out stays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import fx, nn

from tersor.ir.builder import Builder
from tersor.ir.capture import capture
from tersor.passes.pipeline import run
from tersor.passes.tokens.method import Scorer, TokenSite

aten = torch.ops.aten


@dataclass(frozen=True)
class StandsOut(Scorer):
    """Keep the tokens whose key is farthest from the mean key."""

    name: ClassVar[str] = "stands-out"
    power: float = field(default=2.0, metadata={"help": "order of the norm that measures the distance"})

    def score(self, g: Builder, site: TokenSite) -> fx.Node:
        key = g.mean(site.key, [1])  # [batch, tokens, head_dim]
        real = g.call(aten.unsqueeze.default, site.real(g), 2)  # padding must not move the mean
        total = g.call(aten.sum.dim_IntList, g.mul(key, real), [1], True)
        mean = g.call(aten.div.Tensor, total, g.call(aten.sum.dim_IntList, real, [1], True))
        distance = g.call(aten.sub.Tensor, key, mean)
        return g.call(aten.linalg_vector_norm.default, distance, self.power, [-1])  # [batch, tokens]


def main() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).eval()
    program = capture(model, {"src": torch.randn(2, 20, 32)})
    fast, _ = run(program, ["token-drop:method=stands-out,keep=0.5,layers=1,power=1"])
    (kept,) = fast.notes["token-drop"][0]["tokens"].values()
    (output,) = fast.run(fast.example_inputs)
    print(f"stands-out keeps {kept} tokens after layer 1; the output is {list(output.shape)} as before")


if __name__ == "__main__":
    main()
