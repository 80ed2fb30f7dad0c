"""The pipeline's report as an artifact keeps it, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .ir.analyses.cost import Totals
from .passes.contract import Promise, Site
from .passes.deviation import Deviation, OutputDeviation
from .passes.report import Report, Step
from .passes.storage import Storage, trial_from_json


def read_report(data: Mapping[str, Any]) -> Report:
    """The inverse of ``Report.to_json``.

    Raises:
        KeyError, TypeError, ValueError: the data is no report, or its totals are not those of its steps.
    """
    report = Report(
        tuple(_step(step) for step in data["steps"]),
        {str(name): int(size) for name, size in data["sizes"].items()},
        int(data["samples"]),
        read_deviation(data["deviation"]),
        tuple(map(str, data.get("notes", ()))),
        _storage(data.get("storage")),
    )
    for key, total in (("before", report.before), ("after", report.after)):
        if _totals(data[key]) != total:
            raise ValueError(f"{key!r} is not what its steps say")
    return report


def read_deviation(data: Mapping[str, Any] | None) -> Deviation | None:
    """The inverse of ``Deviation.to_json``, in which numbers that are not finite may be texts.

    Raises:
        KeyError, TypeError, ValueError: the data is no deviation, or its overall one is not that of its outputs.
    """
    if data is None:
        return None
    outputs = tuple(
        OutputDeviation(
            name=str(output["name"]),
            cosine_distance=float(output["cosine_distance"]),
            relative_l2=float(output["relative_l2"]),
            max_abs=float(output["max_abs"]),
            rounding=float(output["rounding"]),
            kl=_optional(output["kl"]),
            top1_agreement=_optional(output["top1_agreement"]),
            finite=bool(output["finite"]),
        )
        for output in data["outputs"]
    )
    deviation = Deviation(outputs, int(data["samples"]), tuple(map(str, data["not_compared"])))
    if float(data["overall"]) != deviation.overall:
        raise ValueError(f"'overall' is {data['overall']}, and its outputs give {deviation.overall}")
    return deviation


def _storage(data: Mapping[str, Any] | None) -> Storage | None:
    if data is None:
        return None
    deviation = read_deviation(data["deviation"])
    trials = tuple(map(trial_from_json, data["trials"]))
    if deviation is None or not trials:
        raise ValueError("'storage' holds no measurement")
    return Storage(
        str(data["measure"]),
        int(data["positions"]),
        float(data["most_loss"]),
        int(data["bytes"]),
        trials,
        deviation,
        int(data.get("smoothed", 0)),
    )


def _step(data: Mapping[str, Any]) -> Step:
    verdict = data["verdict"]
    if verdict not in ("kept", "reverted", "refused", "unchanged"):
        raise ValueError(f"{verdict!r} is no verdict")
    return Step(
        spec=str(data["spec"]),
        family=str(data["family"]),
        promise=Promise(data["promise"]),
        verdict=verdict,
        reason=str(data["reason"]),
        sites=tuple(Site(str(s["node"]), str(s["layer"]), dict(s["facts"])) for s in data["sites"]),
        deviation=read_deviation(data["deviation"]),
        before=_totals(data["before"]),
        after=_totals(data["after"]),
        latency_ratio=_optional(data["latency_ratio"]),
        seconds=float(data["seconds"]),
    )


def _optional(number: Any) -> float | None:
    return None if number is None else float(number)


def _totals(data: Mapping[str, Any] | None) -> Totals | None:
    return (
        None if data is None else Totals(**{key: int(data[key]) for key in ("flops", "bytes", "parameters")})
    )
