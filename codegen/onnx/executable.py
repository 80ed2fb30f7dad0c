"""A Program run by ONNX Runtime."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from tersor.codegen.input_domains import InputDomain, decode_domains, encode_domains, input_domains
from tersor.codegen.target import Executable
from tersor.ir.errors import ArtifactError
from tersor.ir.program import Program, TensorSpec

from .bound_run import BoundRun
from .emitter import CHOSEN, Ops
from .export import build, export
from .file import replacing, weights_beside
from .session import chosen_providers, run, session_from_file, session_from_model, session_options
from .weights import Stored, check_operators, stored_weights

MODEL_FILE, SETTINGS_FILE = "model.onnx", "onnx.json"


class OnnxExecutable(Executable):
    """An ONNX Runtime session, and the Program or file that it came from.

    Attributes:
        metadata: texts for the saved model's ``metadata_props``.
    """

    def __init__(
        self,
        session: Any,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        ops: Ops,
        program: Program | None = None,
        stored: Mapping[str, Stored] | None = None,
        path: Path | None = None,
        domains: tuple[InputDomain, ...] = (),
    ) -> None:
        self.session = session
        self.ops = ops
        self.metadata: dict[str, str] = {}
        self._stored = dict(stored or {})
        self._inputs, self._outputs = inputs, outputs
        self._program, self._path = program, path
        self._domains = domains
        self._bound: BoundRun | None = None
        self._binding = threading.Lock()

    @classmethod
    def of(
        cls,
        program: Program,
        *,
        ops: Ops = "ort",
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        weights: str = "fp32",
        weight_kinds: Mapping[str, str] | None = None,
    ) -> Self:
        """Lower ``program`` and open a session on it; the weights stay where the Program holds them.

        Raises:
            InputError: ``weights`` or ``weight_kinds`` makes no sense for this Program.
            LoweringError: an operator has no ONNX form.
        """
        check_operators(ops, {weights, *(weight_kinds or {}).values()})
        stored = stored_weights(program, weights, weight_kinds)
        model = build(program, ops, stored=stored, for_session=True)
        session = session_from_model(model, session_options(threads), chosen_providers(providers))
        return cls(
            session,
            program.inputs,
            program.outputs,
            ops=ops,
            program=program,
            stored=stored,
            domains=input_domains(program),
        )

    @property
    def chosen(self) -> tuple[str, ...]:
        texts = self.session.get_modelmeta().custom_metadata_map
        return tuple(json.loads(texts.get(CHOSEN, "[]")))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    @property
    def domains(self) -> tuple[InputDomain, ...]:
        return self._domains

    @property
    def rounds_activations(self) -> bool:
        return any(weight.rounds_activations for weight in self._stored.values())

    def describe(self, texts: Mapping[str, str]) -> None:
        self.metadata.update(texts)

    def compute(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return run(self.session, {spec.name: inputs[spec.name] for spec in self._inputs})

    def compute_into(self, inputs: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        with self._binding:
            if self._bound is None or not self._bound.serves(into):
                self._bound = BoundRun(self.session, self._inputs, self._outputs, into)
            return self._bound.run(inputs)

    def save(self, folder: Path) -> None:
        """Write ``model.onnx`` (and its weights beside it above 2 GB) and ``onnx.json``."""
        target = folder / MODEL_FILE
        if self._program is not None:
            export(self._program, target, ops=self.ops, metadata=self.metadata, stored=self._stored)
        elif self._path is not None and self._path.resolve() != target.resolve():
            for source in (self._path, *weights_beside(self._path)):
                shutil.copyfile(source, folder / source.name)
        settings = {
            "ops": self.ops,
            "inputs": [spec.to_json() for spec in self._inputs],
            "outputs": [spec.to_json() for spec in self._outputs],
            "domains": encode_domains(self._domains),
        }
        with replacing(folder / SETTINGS_FILE) as stream:
            stream.write(json.dumps(settings, indent=1).encode())

    @classmethod
    def load(cls, folder: Path, **options: Any) -> Self:
        """Open a session on a saved model; ``threads`` and ``providers`` as for :meth:`of`."""
        path = folder / SETTINGS_FILE
        try:
            settings = json.loads(path.read_text())
            ops = settings["ops"]
            inputs, outputs = (
                tuple(map(TensorSpec.from_json, settings[key])) for key in ("inputs", "outputs")
            )
            domains = decode_domains(settings["domains"], inputs)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{path} is missing or damaged ({error}); save the artifact again") from error
        providers = chosen_providers(options.get("providers"))
        session = session_from_file(folder / MODEL_FILE, session_options(options.get("threads")), providers)
        return cls(session, inputs, outputs, ops=ops, path=folder / MODEL_FILE, domains=domains)
