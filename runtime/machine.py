"""What a timing was taken on: processor, cores, memory bandwidth and the versions of what ran."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

# Instruction sets on which matrix products and quantised kernels depend.
_INSTRUCTION_SETS = (
    "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx_vnni",
    "amx_tile", "amx_int8", "amx_bf16", "neon", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
_PACKAGES = (
    "tersor",
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnx",
    "onnxscript",
    "transformers",
    "timm",
    "triton",
)
_BUFFER_BYTES = 256 << 20


def machine_facts(*, bandwidth: bool = True) -> dict[str, Any]:
    """Facts of this machine as JSON-able data.

    Args:
        bandwidth: measure the read bandwidth too, which takes about half a second and 256 MiB, once a process.
    """
    facts: dict[str, Any] = {
        "processor": processor_name(),
        "instruction_sets": list(instruction_sets()),
        "cores": usable_cores(),
        "torch_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": package_versions(),
    }
    if bandwidth:
        facts["read_bandwidth_gb_s"] = round(read_bandwidth() / 1e9, 1)
    return facts


def processor_name() -> str:
    return _processor_info().get("model name") or platform.processor() or platform.machine()


def instruction_sets() -> tuple[str, ...]:
    """Those instruction sets of the processor that matter here; empty where the system does not tell."""
    info = _processor_info()
    present = set((info.get("flags") or info.get("Features") or "").split())
    return tuple(name for name in _INSTRUCTION_SETS if name in present)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what runs, Python first; those not installed are left out."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


@cache
def read_bandwidth() -> float:
    """Bytes a second that all of torch's threads together read from memory: the best of five sums of a buffer.

    The floor of a batch-1 step is the bytes of the weights over this number.
    """
    buffer = torch.ones(_BUFFER_BYTES // 8, dtype=torch.float64)
    best = float("inf")
    for _ in range(5):
        start = perf_counter()
        buffer.sum()
        best = min(best, perf_counter() - start)
    return _BUFFER_BYTES / best


@cache
def _processor_info() -> Mapping[str, str]:
    """The first processor's fields in ``/proc/cpuinfo``; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
