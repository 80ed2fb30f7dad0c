"""A model with its weights in a second file is replaced whole, or stays whole, wherever the writing stops."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import tersor
from tersor import onnx_file
from tersor.codegen.onnx import export
from tersor.codegen.onnx.session import run, session_from_file, session_options
from tersor.model import OptimizedModel

LIMIT = 1 << 10
X = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
Write = Callable[[OptimizedModel, Path], list[Path]]


@pytest.fixture(scope="module")
def models() -> tuple[OptimizedModel, OptimizedModel]:
    """Two models of one shape and different weights."""

    def made(seed: int) -> OptimizedModel:
        torch.manual_seed(seed)
        return tersor.optimize_model(nn.Linear(64, 64), example_inputs={"input": X})

    return made(0), made(1)


@pytest.fixture(params=["codegen", "checked"])
def write(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a model with its weights beside it; ``checked`` is what users call."""
    small = partial(export, limit=LIMIT)
    monkeypatch.setattr(onnx_file, "export", small)
    if request.param == "checked":
        return lambda model, path: model.export_onnx(path)
    return lambda model, path: small(model.program, path)


@contextmanager
def stopped(monkeypatch: pytest.MonkeyPatch, step: int, for_good: bool) -> Iterator[list[str]]:
    """Interrupts the call of number ``step`` that moves or removes a file, and all that follow if ``for_good``."""
    taken: list[str] = []

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def step_by_step(path: Any, *args: Any, **kwargs: Any) -> Any:
            taken.append(os.fspath(path))
            if len(taken) == step + 1 or (for_good and len(taken) > step):
                raise KeyboardInterrupt
            return call(path, *args, **kwargs)

        return step_by_step

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", counted(os.replace))
        patch.setattr(os, "unlink", counted(os.unlink))
        yield taken


def output(path: Path) -> torch.Tensor:
    session = session_from_file(path, session_options(1), ["CPUExecutionProvider"])
    return run(session, {session.get_inputs()[0].name: X})[0].clone()


def shown(folder: Path) -> set[Path]:
    return {path for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize("for_good", [False, True], ids=["interrupted", "killed"])
def test_wherever_overwriting_stops_the_file_is_wholly_old_or_wholly_new(
    models: tuple[OptimizedModel, OptimizedModel],
    write: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    for_good: bool,
) -> None:
    old, new = models
    results = [model(input=X) for model in models]
    seen = []
    for step in range(30):
        folder = tmp_path / str(step)
        folder.mkdir()
        path = folder / "model.onnx"
        before = set(write(old, path))
        with stopped(monkeypatch, step, for_good) as taken:
            try:
                after = write(new, path)
            except KeyboardInterrupt:
                after = []
        distances = [float((output(path) - want).abs().max()) for want in results]
        assert min(distances) < 1e-5 < max(distances)
        seen.append(distances[1] < 1e-5)
        if not seen[-1] and not for_good:
            assert shown(folder) == before, "what never got its graph is taken away again"
        if len(taken) <= step:
            break
    assert not after or shown(folder) == set(after)
    assert after
    assert len(after) == 2
    assert seen == sorted(seen)
    assert len(seen) - sum(seen) >= 2, "stopped before either move"
    assert sum(seen) >= 2, "stopped after the last move"


def test_a_smaller_model_takes_the_weights_of_the_one_before_it_away(
    models: tuple[OptimizedModel, OptimizedModel], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    export(models[0].program, path, limit=LIMIT)
    assert export(models[1].program, path) == [path]
    assert shown(tmp_path) == {path}


def test_the_same_model_again_keeps_its_weights(
    models: tuple[OptimizedModel, OptimizedModel], write: Write, tmp_path: Path
) -> None:
    first = write(models[0], tmp_path / "model.onnx")
    assert write(models[0], tmp_path / "model.onnx") == first
    assert shown(tmp_path) == set(first)


def test_files_that_the_replaced_graph_does_not_name_stay(
    models: tuple[OptimizedModel, OptimizedModel], write: Write, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    write(models[0], path)
    others = [tmp_path / name for name in ("model.onnx.0123456789ab.data", "model.onnx.data", "weights.bin")]
    for other in others:
        other.write_bytes(b"mine")
    after = write(models[1], path)
    assert shown(tmp_path) == {*after, *others}


def test_a_graph_that_names_files_of_others_does_not_take_them_with_it(
    models: tuple[OptimizedModel, OptimizedModel], write: Write, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    _, data = write(models[0], path)
    shared = data.rename(tmp_path / "shared.bin")
    graph = onnx.load(path, load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = shared.name
    onnx.save(graph, path)
    write(models[1], path)
    assert shared.exists()


def test_a_damaged_file_is_replaced(
    models: tuple[OptimizedModel, OptimizedModel], write: Write, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    write(models[0], path)
    path.write_bytes(b"\xff" * 40)
    write(models[1], path)
    assert torch.allclose(output(path), models[1](input=X), atol=1e-5)


def test_an_executable_opened_from_a_folder_is_saved_with_its_weights(
    models: tuple[OptimizedModel, OptimizedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tersor.codegen.onnx import executable

    monkeypatch.setattr(executable, "export", partial(export, limit=LIMIT))
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    executable.OnnxExecutable.of(models[0].program, threads=1).save(first)
    executable.OnnxExecutable.load(first).save(second)
    assert {path.name for path in first.iterdir()} == {path.name for path in second.iterdir()}
    assert len(list(first.iterdir())) == 3
    assert torch.allclose(output(second / "model.onnx"), models[0](input=X), atol=1e-5)
