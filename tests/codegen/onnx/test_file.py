"""Weights that are stored apart from the graph lie where engines can map them."""

from __future__ import annotations

import mmap
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from tersor.codegen.onnx import export
from tersor.ir.capture import capture


class Odd(nn.Module):
    """Weights of sizes that fill no page, or just one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = (301, 1024, 1025, 3000)
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(size)) for size in sizes)

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = x + (x[:, :1] * weight).sin().mean(-1, keepdim=True)
        return x


def test_every_weight_starts_a_page_and_is_whole(tmp_path: Path) -> None:
    model = Odd()
    graph, data = export(capture(model, torch.randn(2, 8)), tmp_path / "model.onnx", limit=1 << 10)
    stored = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in onnx.load(graph, load_external_data=False).graph.initializer
        if tensor.external_data
    }
    assert len(stored) == 4
    content, ends = data.read_bytes(), [0]
    for name, weight in model.named_parameters():
        offset, length = (int(stored[name][key]) for key in ("offset", "length"))
        assert offset % 4096 == 0
        assert offset % mmap.ALLOCATIONGRANULARITY == 0
        assert content[offset : offset + length] == weight.detach().numpy().tobytes()
        assert stored[name]["location"] == data.name
        ends.append(offset + length)
    assert len(content) == max(ends)


def test_the_name_of_a_weights_file_holds_all_of_its_weights(tmp_path: Path) -> None:
    """Two models that differ in any one weight may stand in one folder without reading each other's."""
    names = set()
    for changed in (None, *range(4)):
        model = Odd()
        if changed is not None:
            model.weights[changed].data[0] += 1
        _, data = export(capture(model, torch.randn(2, 8)), tmp_path / "model.onnx", limit=1 << 10)
        names.add(data.name)
    assert len(names) == 5
