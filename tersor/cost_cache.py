"""Where the measured cost of steps is kept between processes: once for each artifact on each machine."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .certificate import CERTIFICATE
from .runtime.cost_curve import CostCurve
from .runtime.machine import machine_facts

# What was found is measured again where a step takes so many times as long now, or as short.
_OFF = 2.0


def kept(
    artifact: Path | None,
    options: Mapping[str, Any],
    measure: Callable[[], CostCurve],
    now: Callable[[], float],
) -> CostCurve:
    """What ``measure`` found, in this process or an earlier one that ran the same artifact in the same way here.

    What cannot be read is measured again, and what cannot be written is not kept: a cache is no reason to fail.

    Args:
        now: seconds of a step of one token, by which what was found while the machine was busy is told.
    """
    path = None if artifact is None else _file(artifact, options)
    if path is None:
        return measure()
    try:
        curve = CostCurve.from_json(json.loads(path.read_text(encoding="utf-8")))
        if 1 / _OFF < now() / curve.of(1) < _OFF:
            return curve
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, RecursionError):
        pass
    curve = measure()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as stream:
            json.dump(curve.to_json(), stream)
        Path(stream.name).replace(path)
    except OSError:
        pass
    return curve


def _file(artifact: Path, options: Mapping[str, Any]) -> Path | None:
    """Named after all that a measurement depends on; None where there is no certificate, or this user has no home."""
    try:
        certificate = (artifact / CERTIFICATE).read_bytes()
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except (OSError, RuntimeError):
        return None
    facts = json.dumps([machine_facts(bandwidth=False), dict(options)], sort_keys=True, default=str)
    name = hashlib.sha256(certificate + facts.encode()).hexdigest()[:32]
    return home / "tersor" / "cost-curves" / f"{name}.json"
