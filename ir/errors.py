"""Errors a user can act on: each message names the input, the reason and the mend."""

from __future__ import annotations


class TersorError(Exception):
    """Base of every error that Tersor raises on purpose; the CLI prints its message and no traceback."""


class InputError(TersorError):
    """A value handed to a program, pass or command does not fit."""


class CaptureError(TersorError):
    """A model cannot be captured; the message names the module, the line and what to do."""


class SpecError(TersorError):
    """A pass spec string cannot be parsed, or names something that does not exist."""


class VerifierError(TersorError):
    """A Program breaks an invariant: a defect of the pass that made it, never of the user."""


class RefusedError(TersorError):
    """A pass cannot act on this Program; the message names the node and the reason."""


class PromiseError(TersorError):
    """A pass was measured to break what it promised, or its deviation passed the user's budget."""


class LoweringError(TersorError):
    """A Program cannot be lowered to the target; the message names the op and the node."""


class ExecutionError(TersorError):
    """A lowered program failed while it ran; the message names the node and the inputs."""


class ArtifactError(TersorError):
    """A saved artifact is damaged, of another version, or does not match its certificate."""
