"""The loop around a step: what goes into it, which of the tokens that come of it stand, and when it is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import from_torch_dtype

from tersor.codegen.text_limits import largest_id, most_tokens
from tersor.ir.program import Program, TensorSpec
from tersor.ir.stepping import Slots, State, Stepping

from ..emitter import Emitter
from ..limits import bounded
from .part import Part

# A longer prompt goes in pieces: windowed layers then compute no scores that are thrown away.
_PIECE = 512
_END = torch.iinfo(torch.int64).max
# More new tokens than there is memory for; where a prompt and they are counted together, nothing overflows.
_MOST = 1 << 40


@dataclass(frozen=True)
class _Guesses:
    """Guessed tokens, int64 ``[n]``, and how many they are, int64 ``[1]``."""

    tokens: ir.Value
    count: ir.Value


class GeneratorLoop:
    """Writes the loop.  Carried are the text (prompt and new tokens), how many of its tokens the states hold, states.

    The body serves prompt and steps alike: it is fed what the states do not hold yet, first the prompt, then the last
    token, and guesses behind it.  Counts are int64 ``[1]``.
    """

    def __init__(
        self, e: Emitter, program: Program, step: Part, guess: Part | None, ends: Sequence[int]
    ) -> None:
        """Of the ``step`` that ``program`` became, and of what guesses, with ``ends`` behind which nothing follows."""
        assert program.stepping is not None
        self._e, self._step, self._guess, self._ends = e, step, guess, ends
        self._stepping: Stepping = program.stepping
        self._specs: Mapping[str, TensorSpec] = {spec.name: spec for spec in program.inputs}
        self._largest_id = largest_id(program)
        self._longest = most_tokens(program)
        self._states = [(slots, state) for slots in self._stepping.slots for state in slots.states]

    def write(self) -> tuple[list[ir.Value], ir.Value]:
        """Write it into the emitter; the model's inputs and its output."""
        e = self._e
        ids = _value("input_ids", torch.int64, [1, "prompt"])
        most = _value("max_new_tokens", torch.int64, [])
        prompt = e.op("Shape", ids, start=1)
        few = e.op("Min", most, e.const(_MOST))
        limit = e.op("Add", prompt, e.op("Reshape", few, e.ints([1])))
        known = bounded(e, ids, prompt, 1, None, "prompt out of its range")
        if self._longest is not None:
            # The last of all is never read.
            most_of_all = self._longest + 1
            known = bounded(e, known, limit, None, most_of_all, "prompt and max_new_tokens past the context")
        known = bounded(e, known, ids, 0, self._largest_id, "input_ids out of its domain")
        text = e.op("Reshape", known, e.ints([-1]))
        begins = e.op("Less", prompt, limit)
        outside, e.nodes = e.nodes, []
        body = self._body(limit)
        e.nodes = outside
        empty = [self._empty(state) for _, state in self._states]
        first = (None, self._scalar(begins), text, e.ints([0]), *empty)
        results = e.ops_out("Loop", len(first) - 2, *first, body=body)
        new = e.op("Unsqueeze", self._cut(results[0], prompt, e.ints([_END])), e.ints([0]))
        new.name, new.type, new.shape = "new_tokens", ir.TensorType(ir.DataType.INT64), ir.Shape([1, "new"])
        return [ids, most], new

    def _body(self, limit: ir.Value) -> ir.Graph:
        """From what is carried to the same after one step, as long as the text is shorter than ``limit``."""
        e = self._e
        turn, going = _value("turn", torch.int64, []), _value("going", torch.bool, [])
        text, held = _value("text", torch.int64, ["text"]), _value("held", torch.int64, [1])
        carried = {state.name: self._carried(state) for _, state in self._states}
        known, last = self._known(text, held)
        guesses = None if self._guess is None else self._guesses(self._guess, text, limit, last)
        results = self._step.write(e, {**self._driven(text, held, known, last, guesses), **carried})
        (logits,) = (value for name, value in results.items() if name not in self._stepping.results)
        best = e.op("ArgMax", e.cast(logits, torch.float32), axis=-1, keepdims=0)
        # No Squeeze: where nothing is wanted of a piece, ONNX Runtime before 1.32 leaves the vocabulary's dim there.
        new = e.op("Reshape", best, e.ints([-1]))
        now_held, wrong = e.op("Add", held, known), None
        if guesses is not None:
            right = self._right(new, guesses)
            # Behind the guesses that are right stands the model's own next token.
            new = self._cut(new, e.ints([0]), e.op("Add", right, e.ints([1])))
            now_held, wrong = e.op("Add", now_held, right), e.op("Sub", guesses.count, right)
        new, ended = self._up_to_an_end(new)
        longer = e.op("Concat", text, new, axis=0)
        more = e.op("Less", e.op("Shape", longer), limit)
        if ended is not None:
            more = e.op("And", more, e.op("Not", ended))
        kept = [self._kept(slots, results[state.result], wrong) for slots, state in self._states]
        outputs = [self._scalar(more), longer, now_held, *kept]
        for value, given in zip(outputs, (going, text, held, *carried.values()), strict=True):
            value.type = given.type
        return ir.Graph(
            [turn, going, text, held, *carried.values()],
            outputs,
            nodes=e.nodes,
            initializers=self._step.constants + (() if self._guess is None else self._guess.constants),
            name="step",
        )

    def _known(self, text: ir.Value, held: ir.Value) -> tuple[ir.Value, ir.Value]:
        """How many tokens of the text are fed, and 1 where they reach its end, else 0."""
        e = self._e
        left = e.op("Sub", e.op("Shape", text), held)
        last = e.op("LessOrEqual", left, e.ints([_PIECE]))
        return e.op("Min", left, e.ints([_PIECE])), e.op("Cast", last, to=int(ir.DataType.INT64))

    def _guesses(self, guess: Part, text: ir.Value, limit: ir.Value, last: ir.Value) -> _Guesses:
        """What is checked of the guesses behind the text."""
        e = self._e
        (name,) = guess.inputs
        tokens, count = guess.write(e, {name: text}).values()
        # The step itself gives one token more than its guesses; and inside of a prompt nothing is guessed.
        room = e.op("Sub", e.op("Sub", limit, e.op("Shape", text)), e.ints([1]))
        count = e.op("Mul", e.op("Min", count, room), last)
        return _Guesses(self._cut(tokens, e.ints([0]), count), count)

    def _driven(
        self, text: ir.Value, held: ir.Value, known: ir.Value, last: ir.Value, guesses: _Guesses | None
    ) -> dict[str, ir.Value]:
        """The inputs of a step but for its states: of the known tokens only the last has an output, if it ends them."""
        e, stepping = self._e, self._stepping
        fed, count = self._cut(text, held, e.op("Add", held, known)), known
        if guesses is not None:
            fed, count = e.op("Concat", fed, guesses.tokens, axis=0), e.op("Add", known, guesses.count)
        given = {
            stepping.ids: e.op("Unsqueeze", fed, e.ints([0])),
            stepping.positions: self._range(held, e.op("Add", held, count)),
            stepping.wanted: self._range(e.op("Sub", known, last), count),
        }
        if self._specs[stepping.ids].dtype != torch.int64:
            given[stepping.ids] = e.cast(given[stepping.ids], self._specs[stepping.ids].dtype)
        if stepping.padding is not None:
            one = e.const([[1]], self._specs[stepping.padding].dtype)
            given[stepping.padding] = e.op("Expand", one, e.op("Shape", given[stepping.ids]))
        return given

    def _right(self, chosen: ir.Value, guesses: _Guesses) -> ir.Value:
        """How many guesses are what the model chose, given that those before them are."""
        e = self._e
        same = e.op("Equal", self._cut(chosen, e.ints([0]), guesses.count), guesses.tokens)
        return self._first_zero(e.op("Cast", same, to=int(ir.DataType.INT32)))

    def _up_to_an_end(self, new: ir.Value) -> tuple[ir.Value, ir.Value | None]:
        """The new tokens up to the first that ends the text, and whether there is one (bool ``[1]``)."""
        if not self._ends:
            return new, None
        e = self._e
        ends = e.op("Equal", e.op("Unsqueeze", new, e.ints([1])), e.const([list(self._ends)]))
        ending = e.op("ReduceMax", e.op("Cast", ends, to=int(ir.DataType.INT32)), e.ints([1]), keepdims=0)
        place = self._first_zero(e.op("Sub", e.const([1], torch.int32), ending))
        ended = e.op("Less", place, e.op("Shape", new))
        return self._cut(new, e.ints([0]), e.op("Add", place, e.ints([1]))), ended

    def _first_zero(self, numbers: ir.Value) -> ir.Value:
        """Where the first 0 of int32 ``[n]`` is; ``n`` where there is none."""
        e = self._e
        return e.op("ArgMin", e.op("Concat", numbers, e.const([0], torch.int32), axis=0), axis=0, keepdims=1)

    def _kept(self, slots: Slots, present: ir.Value, wrong: ir.Value | None) -> ir.Value:
        """A state without the last ``wrong`` tokens, and without those that no later token sees."""
        e = self._e
        if wrong is None and not slots.window:
            return present
        if wrong is None and slots.window > 1:
            # Counted from the end; further back than the first is the first.
            return self._cut(present, e.ints([1 - slots.window]), e.ints([_END]), 2)
        end = e.op("Shape", present, start=2, end=3)
        end = end if wrong is None else e.op("Sub", end, wrong)
        start = e.ints([0])
        if slots.window:
            start = e.op("Max", e.op("Sub", end, e.ints([slots.window - 1])), start)
        return self._cut(present, start, end, 2)

    def _empty(self, state: State) -> ir.Value:
        spec = self._specs[state.name]
        return self._e.const(torch.zeros(1, int(spec.shape[1]), 0, int(spec.shape[3])), spec.dtype)

    def _carried(self, state: State) -> ir.Value:
        spec = self._specs[state.name]
        return _value(state.name, spec.dtype, [1, int(spec.shape[1]), None, int(spec.shape[3])])

    def _cut(self, x: ir.Value, start: ir.Value, end: ir.Value, axis: int = 0) -> ir.Value:
        return self._e.op("Slice", x, start, end, self._e.ints([axis]))

    def _range(self, start: ir.Value, end: ir.Value) -> ir.Value:
        """The numbers from ``start`` up to ``end``, int64 ``[1, n]``."""
        e = self._e
        numbers = e.op("Range", self._scalar(start), self._scalar(end), e.const(1))
        return e.op("Unsqueeze", numbers, e.ints([0]))

    def _scalar(self, x: ir.Value) -> ir.Value:
        return self._e.op("Squeeze", x, self._e.ints([0]))


def _value(name: str, dtype: torch.dtype, sizes: Sequence[int | str | None]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(from_torch_dtype(dtype)), shape=ir.Shape(sizes))
