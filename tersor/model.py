"""``OptimizedModel``: what ``optimize_model`` and ``load`` return."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from . import artifact
from .agreement import measure
from .calibration import Batch, load_batches
from .certificate import CERTIFICATE, read_certificate
from .folders import check_output, check_output_file, whole_folder
from .generating import Generator
from .ir import archive
from .ir.errors import ArtifactError, InputError
from .ir.program import Program, TensorSpec
from .manifest import Manifest, read_manifest
from .passes.deviation import Deviation, Reference
from .passes.report import Report
from .runtime.session import Session
from .runtime.speculation import Statistics
from .verification import Verification, raise_unless_ok, verify_artifact

if TYPE_CHECKING:
    from .codegen.onnx.emitter import Ops
    from .generator_file import EndTokens


class OptimizedModel:
    """A rewritten and lowered model, with what was measured on the way.

    Attributes:
        session: what runs it.
        manifest: target, its options, output structure and dimensions.
        report: what the passes promised and what was measured.
        samples: the inputs on which it was measured.
    """

    def __init__(
        self,
        session: Session,
        manifest: Manifest,
        report: Report,
        samples: list[Batch],
        *,
        program: Program | None = None,
        source: Program | None = None,
        folder: Path | None = None,
        running: Mapping[str, Any] | None = None,
        certificate: Mapping[str, Any] | None = None,
    ) -> None:
        self.session, self.manifest, self.report, self.samples = session, manifest, report, samples
        self._program, self._source, self._folder = program, source, folder
        # Options of the target that say how it runs here, beside those that it was made with.
        self._running = dict(running or {})
        self._generator: Generator | None = None
        self._making = threading.RLock()
        # That of ``folder``, as it was read.
        self._certificate = certificate

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on positional or named inputs, or one mapping of them; returns the model's own output structure.

        An input is a tensor, a NumPy array, a number or nested lists of numbers.

        Raises:
            InputError: an input is missing, unknown, no numbers, of the wrong dtype, or of a size the model does not
                take.
        """
        return self.session(*args, **kwargs)

    def run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Flat outputs in the order of ``outputs``; ``inputs`` by name, checked as in a call."""
        return self.session.run(self.session.bind(inputs))

    def generate(self, inputs: Any = None, *, input_ids: Any = None, **options: Any) -> Any:
        """What follows ``inputs``, one token after another; of a model with ``kv-cache`` among its passes.

        Args:
            inputs: a text, a list of texts, a tensor of token ids ``[batch, tokens]``, or rows of them.
            input_ids: another name of ``inputs``, as in ``generate(**tokenizer(text, return_tensors="pt"))``.
            options: by the names of ``transformers.generate`` and with its defaults, which are those that the model
                came with (``generation_config``): ``attention_mask`` (of a tensor of ids, padding on either side;
                without one, ids that are ``pad_token_id`` are padding, where that ends no text),
                ``max_new_tokens`` (20) or ``max_length``, ``temperature`` (0: the most likely token; above: a draw),
                ``do_sample``, ``top_k`` (50), ``top_p``, ``repetition_penalty``, ``eos_token_id``, ``pad_token_id``,
                and what else of ``tersor.settings.NAMES`` changes scores. Padding is no token to these: ``min_length``
                counts a row's own, where transformers counts padding on its left too (``max_length`` of a tensor
                does so here as well). ``stop``, texts behind which nothing
                follows; ``seed`` of the draws; ``stream``, called with every piece of text (of several prompts: with
                the row and the piece; of token ids: the row and the token); ``tokenizer``, where the model came
                without one; ``batch_size``, prompts under way at once, all of them by default: when one is over, the
                next begins in its place.

        Returns:
            for a text the new text; for texts a list; for token ids the rows with the new tokens behind them.

        Calls from several threads take turns; rows that are to go on side by side belong in one call.

        Raises:
            InputError: the model keeps no cache or has no tokenizer, or an option or a prompt makes no sense.
            ExecutionError: the model gives no numbers.
        """
        if (inputs is None) == (input_ids is None):
            raise InputError("give generate one of inputs and input_ids: a text, or rows of token ids")
        return self.generator(input_ids if inputs is None else inputs, **options)

    @property
    def generator(self) -> Generator:
        """What ``generate`` runs on: the decoder, and the tokenizer that the model came with.

        Raises:
            InputError: the model keeps no cache.
        """
        with self._making:
            if self._generator is None:
                self._generator = Generator(
                    self.program, self.target, {**self.manifest.options, **self._running}, self._folder
                )
            return self._generator

    @property
    def generated(self) -> Statistics:
        """What the last call of ``generate`` took, and what came of tokens that were guessed."""
        return Statistics() if self._generator is None else self._generator.statistics

    @property
    def target(self) -> str:
        return self.manifest.target

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.session.executable.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.session.executable.outputs

    @property
    def program(self) -> Program:
        """The rewritten Program; read from the artifact when it is first asked for.

        Raises:
            ArtifactError: the artifact was written anew since.
        """
        with self._making:
            if self._program is None:
                assert self._folder is not None
                program = archive.load(self._folder)
                self._check_unchanged(self._folder)
                self._program = program
            return self._program

    def save(self, out: str | os.PathLike[str]) -> None:
        """Write the artifact folder, whole or not at all, with its certificate; see ``tersor.artifact``.

        Raises:
            InputError: ``out`` is no path, or holds files that are no part of an artifact, or cannot be written.
        """
        if self._source is None:
            self._copy(check_output(out))
            return
        artifact.write(
            out,
            source=self._source,
            program=self.program,
            executable=self.session.executable,
            report=self.report,
            samples=self.samples,
            manifest=self.manifest,
        )

    def export_onnx(
        self,
        path: str | os.PathLike[str],
        ops: Ops = "portable",
        *,
        generate: bool = False,
        guess: bool = True,
        end_tokens: EndTokens = "model",
    ) -> list[Path]:
        """Write one ONNX file (weights beside it above 2 GB) that computes what the Program computes.

        With ``generate`` the file decodes by itself, in standard operators: it takes ``input_ids`` (int64
        ``[1, prompt]``) and ``max_new_tokens`` (an int64 number), and returns ``new_tokens`` (int64 ``[1, new]``),
        the most likely ones, up to an end: what else the model came with settings for (draws, penalties, texts to stop
        at, tokens that it must or must not say) is no part of it.
        Where ``speculate`` is among the passes, what guesses in it is a chain that follows from the text alone: of
        ``several``, the default, the first drafter that guesses so (``suffix``, which then remembers no other text),
        and nothing of the others.
        Weights are in it as the Program holds them; ``model.onnx`` of a saved artifact has them as they were stored.

        Args:
            ops: ``portable`` for the standard operator set, ``ort`` to allow ONNX Runtime's own operators.
            generate: of a model with ``kv-cache`` among its passes, write prompt in, new tokens out.
            guess: let the file guess ahead where ``speculate`` is among the passes.
            end_tokens: the ids behind which the file adds nothing; the model's own by default, none for None.

        Returns:
            the files written.

        Raises:
            InputError: the path cannot be written, an option makes no sense, or the model is none that generates.
            LoweringError: an operator has no ONNX form, or ONNX Runtime computed something else.
        """
        file = check_output_file(path)
        if generate:
            from .generator_file import export_generating

            return export_generating(self.generator, file, ops, self.report, self.samples, guess, end_tokens)
        if not guess or end_tokens != "model":
            raise InputError("guess and end_tokens are of files that generate: add generate=True")
        from .onnx_file import export_checked

        return export_checked(self.program, file, ops, self.report, self.samples)

    def deviation(self) -> Deviation:
        """Deviation of what runs from the captured model, on ``samples``; from the Program for a loaded model."""
        return measure(self.session.executable, Reference(self._source or self.program, self.samples))

    def verify(self, against: nn.Module | str | Path | None = None) -> Verification:
        """Measure again: see ``tersor.verification`` for a loaded model.

        A model that was never saved has no certificate: what runs is compared with its Program.

        Raises:
            ArtifactError: a file is damaged, or the model deviates by more than is certified.
            LoweringError: an unsaved model does not compute what its Program computes.
        """
        if self._folder is not None:
            return raise_unless_ok(verify_artifact(self._folder, against))
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "artifact"
            self.save(folder)
            return raise_unless_ok(verify_artifact(folder, against if against is not None else self._source))

    def __repr__(self) -> str:
        specs = ", ".join(step.spec for step in self.report.kept)
        return f"OptimizedModel(target={self.target!r}, passes=[{specs}])"

    def _check_unchanged(self, folder: Path) -> None:
        if read_certificate(folder) != self._certificate:
            raise ArtifactError(
                f"{folder} was written anew after it was loaded here, and what runs is what it held then: load it again"
            )

    def _copy(self, out: Path) -> None:
        assert self._folder is not None
        self._check_unchanged(self._folder)
        if out == self._folder:
            return
        artifact.check_files(self._folder)
        with whole_folder(out) as fresh:
            for name in (*read_certificate(self._folder)["files"], CERTIFICATE):
                (fresh / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self._folder / name, fresh / name)


def load(folder: str | os.PathLike[str], *, check: bool = True, **options: Any) -> OptimizedModel:
    """Read what ``OptimizedModel.save`` or ``tersor convert`` wrote.

    Args:
        check: compare every file with its certified hash first (reads all of them once).
        options: options of the target that concern running, such as ``threads=2`` for ONNX.

    Raises:
        InputError: there is no artifact.
        ArtifactError: it is damaged or of another version.
    """
    if not isinstance(folder, str | os.PathLike):
        raise InputError(
            f"{folder!r} names no folder: give the path that save() or `tersor convert` wrote to"
        )
    if not os.fspath(folder):
        raise InputError("the folder's name is empty: give the path that save() or `tersor convert` wrote to")
    path = Path(folder).resolve()
    manifest = read_manifest(path)
    certificate = read_certificate(path)
    if check:
        artifact.check_files(path)
    return OptimizedModel(
        artifact.read_session(path, manifest, options),
        manifest,
        artifact.read_saved_report(path),
        load_batches(path / artifact.SAMPLES),
        folder=path,
        running=options,
        certificate=certificate,
    )
