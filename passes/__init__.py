"""Graph rewrites, what they promise, and the pipeline that runs and checks them."""

from .contract import Method, Pass, Promise, Refusal, Site
from .pipeline import run
from .registry import find_methods, find_passes
from .report import Report, Step
from .spec import Spec, options_of, parse_spec

__all__ = [
    "Method",
    "Pass",
    "Promise",
    "Refusal",
    "Report",
    "Site",
    "Spec",
    "Step",
    "find_methods",
    "find_passes",
    "options_of",
    "parse_spec",
    "run",
]
