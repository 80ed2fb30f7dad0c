from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from kernel_places import device, ignored_files, tune_nothing

collect_ignore_glob = ignored_files()
tune_nothing()


@pytest.fixture
def _operands_where_kernels_run() -> Iterator[None]:
    if device().type == "cpu":
        yield
        return
    torch.set_default_device(device())
    yield
    torch.set_default_device(None)


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's convolutions round float32 to ten bits of mantissa by default, kernels and other operators do not."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
