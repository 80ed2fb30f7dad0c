"""The IR: Programs, the dialect they are written in, and what reads, checks, prints and stores them."""

from .archive import load, save
from .program import ModelFacts, Program, TensorSpec
from .text import program_text
from .verifier import verify

__all__ = ["ModelFacts", "Program", "TensorSpec", "load", "program_text", "save", "verify"]
