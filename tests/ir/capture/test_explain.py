"""Whose line an error names: that of the user's model, however close its folder is to PyTorch's."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from tersor.ir.capture import explain


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages in which PyTorch seems to be installed."""
    folder = tmp_path / "site-packages"
    (folder / "torch").mkdir(parents=True)
    monkeypatch.setattr(torch, "__file__", str(folder / "torch" / "__init__.py"))
    return folder


@pytest.mark.parametrize("file", ["torch/__init__.py", "torch/nn/modules/linear.py", "torch/../torch/x.py"])
def test_what_lies_in_pytorchs_folder_is_foreign(packages: Path, file: str) -> None:
    assert explain.is_foreign(str(packages / file))


@pytest.mark.parametrize(
    "file",
    ["torchvision/models/vision_transformer.py", "torch_geometric/nn/conv.py", "torch/../torchtune/x.py"],
)
def test_a_package_whose_name_begins_like_pytorchs_is_not_foreign(packages: Path, file: str) -> None:
    assert not explain.is_foreign(str(packages / file))


def test_tersors_own_files_are_foreign_and_its_neighbours_are_not() -> None:
    own = Path(explain.__file__).parents[1]
    assert explain.is_foreign(str(own / "capture" / "frontend.py"))
    assert not explain.is_foreign(str(own.with_name(f"{own.name}_of_mine") / "model.py"))


def test_pytorch_behind_a_link_is_foreign_by_both_its_paths(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "environment"
    link.symlink_to(packages)
    monkeypatch.setattr(torch, "__file__", str(link / "torch" / "__init__.py"))
    for folder in (link, packages):
        assert explain.is_foreign(str(folder / "torch" / "nn" / "functional.py"))
        assert not explain.is_foreign(str(folder / "torchvision" / "ops.py"))


def test_an_error_names_the_line_of_a_model_beside_pytorch(packages: Path) -> None:
    file = packages / "torchvit" / "model.py"
    file.parent.mkdir()
    file.write_text(
        "from torch import nn\n"
        "class Model(nn.Module):\n"
        "    def forward(self, x):\n"
        "        raise ValueError('too wide')\n"
    )
    spec = importlib.util.spec_from_file_location("model_beside_pytorch", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model: nn.Module = module.Model()
    with pytest.raises(ValueError, match="too wide") as caught:
        model(torch.ones(1))
    message = explain.locate(caught.value, model)
    assert message == f"too wide, raised at {file}:4 (raise ValueError('too wide'))"
