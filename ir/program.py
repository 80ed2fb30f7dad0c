"""``Program``: a captured model as one functional FX graph, its weights, and what is known about both."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from .binding import bind_inputs
from .stepping import Stepping, run_in_steps
from .structure import Structure

# Key of the note that names the weights whose inputs were smoothed; see ``passes.smoothing``.
SMOOTHED = "smoothed"


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor at the program's boundary.

    ``shape`` holds an int for a fixed size and the name of a symbolic dimension otherwise, such as ``"batch"``.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype

    @property
    def dynamic(self) -> tuple[str, ...]:
        return tuple(dim for dim in self.shape if isinstance(dim, str))

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TensorSpec:
        """What :meth:`to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        dtype = getattr(torch, str(data["dtype"]), None)
        shape = tuple(data["shape"])
        if not isinstance(dtype, torch.dtype) or not all(isinstance(size, int | str) for size in shape):
            raise ValueError(f"{data['name']!r} has no valid type")
        return TensorSpec(str(data["name"]), shape, dtype)


@dataclass(frozen=True)
class ModelFacts:
    """What capture learned of the model; nothing here decides what is legal, it labels reports.

    Attributes:
        family: the model's own name for its kind (``"bert"``), or its class name.
        source: where it came from, as the user wrote it.
        config: JSON-able configuration, when the model has one.
        generation: JSON-able settings of ``generate`` that the model came with, by transformers' names.
        captured_by: which route captured it (``huggingface``, ``timm``, ``module``, ``archive``).
        unraised: name and reason of attention-like code that stayed plain ATen.
        deviation: largest absolute difference from the model on the example inputs, measured at capture.
        tokenizer_files: tokenizer files found beside the weights, path by name.
        fixed: arguments that are no tensors, which capture made constants, in the order of the model's own.
    """

    family: str = "module"
    source: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    captured_by: str = "module"
    unraised: tuple[tuple[str, str], ...] = ()
    deviation: float | None = None
    tokenizer_files: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, bool | int | float | str] = field(default_factory=dict)


@dataclass
class Program:
    """A functional FX graph over the ATen and ``tersor`` operators.

    Graph conventions: one ``placeholder`` per input in the order of ``inputs``; one ``get_attr`` node per weight
    used, whose target is a key of ``weights``; ``call_function`` nodes only; ``output`` returns a flat tuple in
    the order of ``outputs``.  Every node's ``meta["val"]`` is a fake tensor or a symbolic integer, and
    ``meta["layer"]`` names the module it came from.

    ``symbols`` maps a symbol of the fake values to its dimension's name; ``ranges`` the name to its smallest and
    largest size (None where nothing bounds it).  ``domains`` maps an input of integers to the smallest and largest
    number for which the graph means what the model does; an input that is not in it may hold any.  ``fillers`` maps an
    input ``[batch, ..., tokens]`` to sets of numbers that no row of it may be made of alone, for the same reason: they
    stand for no token there.

    ``least`` says why a dimension may be no smaller, where the model itself takes less.

    With ``stepping`` it is a Program that is run in steps: inputs and outputs then hold its states too, which
    ``structure`` leaves out, and a call with the caller's inputs alone drives it over whole rows.

    A Program is never changed in place: a rewrite works on ``program.edit()`` and returns that, ``finished()``.
    """

    graph: fx.Graph
    weights: dict[str, Tensor]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    structure: Structure
    symbols: dict[str, str]
    ranges: dict[str, tuple[int, int | None]]
    example_inputs: dict[str, Tensor]
    facts: ModelFacts = field(default_factory=ModelFacts)
    notes: dict[str, Any] = field(default_factory=dict)
    domains: dict[str, tuple[int | None, int | None]] = field(default_factory=dict)
    fillers: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    least: dict[str, str] = field(default_factory=dict)
    stepping: Stepping | None = None
    _analyses: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    _analysed: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph as it stands, node by node, and return the model's own output structure."""
        return self.structure.pack(self.run(self.bind(*args, **kwargs)))

    def run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Outputs as a flat tuple in the order of ``outputs``; ``inputs`` by name.

        Of a Program that is run in steps, the outputs without its states, for whole rows.
        """
        if self.stepping is not None:
            return run_in_steps(self.stepping, self.inputs, self.outputs, self.step, inputs)
        return self.step(inputs)

    def step(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """One run of the graph, every input given and every output returned."""
        with torch.no_grad():
            return GraphInterpreter(self).run(*(inputs[spec.name] for spec in self.inputs))  # type: ignore[no-any-return]

    @property
    def called_with(self) -> tuple[TensorSpec, ...]:
        """The inputs that a caller gives: all but what drives a Program that is run in steps."""
        driven = self.stepping.driven if self.stepping is not None else ()
        return tuple(spec for spec in self.inputs if spec.name not in driven)

    @property
    def returned(self) -> tuple[TensorSpec, ...]:
        """The outputs that a caller gets: all but states."""
        states = self.stepping.results if self.stepping is not None else ()
        return tuple(spec for spec in self.outputs if spec.name not in states)

    def bind(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Match call arguments to input names, check them and take them to the CPU; see :func:`bind_inputs`."""
        bound = bind_inputs(self.called_with, self.ranges, args, kwargs, self.least, self.facts.fixed)
        return {name: tensor.cpu() for name, tensor in bound.items()}

    def sizes(self, inputs: Mapping[str, Tensor] | None = None) -> dict[str, int]:
        """The size of every named dimension in ``inputs``, in the example where none are given."""
        inputs = self.example_inputs if inputs is None else inputs
        return {
            dim: int(size)
            for spec in self.called_with
            for dim, size in zip(spec.shape, inputs[spec.name].shape, strict=True)
            if isinstance(dim, str)
        }

    def step_sizes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """``sizes`` with those that no caller gives: what they are in one step over whole rows."""
        if self.stepping is None:
            return dict(sizes)
        specs = {spec.name: spec for spec in self.inputs}
        rows, count = (sizes[n] if isinstance(n, str) else n for n in specs[self.stepping.ids].shape)
        driven = {str(specs[self.stepping.wanted].shape[1]): count}
        for slots in self.stepping.slots:
            driven |= slots.sizes(rows, count)
        return {**driven, **sizes}

    def edit(self) -> Program:
        """A copy whose graph may be changed; weights are shared until replaced."""
        graph = fx.Graph()
        mapping: dict[fx.Node, fx.Node] = {}
        result = graph.graph_copy(self.graph, mapping)
        source_output = next(node for node in reversed(self.graph.nodes) if node.op == "output")
        graph.output(result).meta = dict(source_output.meta)
        for old, new in mapping.items():
            new.meta = dict(old.meta)
        return replace(self, graph=graph, weights=dict(self.weights), notes=copy.deepcopy(self.notes))

    def finished(self) -> Program:
        """This copy, whose rewriting is over, without the values and weights that nothing reads; inputs stay."""
        for node in reversed(self.graph.nodes):
            if node.op in ("call_function", "get_attr") and not node.users:
                self.graph.erase_node(node)
        self.drop_unread_weights()
        return self

    def drop_unread_weights(self) -> None:
        """Forget the weights of this copy that no node reads."""
        read = {node.target for node in self.graph.nodes if node.op == "get_attr"}
        self.weights = {name: weight for name, weight in self.weights.items() if name in read}

    def with_facts(self, **changes: Any) -> Program:
        return replace(self, facts=replace(self.facts, **changes))

    def module(self) -> fx.GraphModule:
        """A runnable module over the same weights, for ``torch.compile`` and the torch target."""
        root = torch.nn.Module()
        names: dict[str, str] = {}
        graph = fx.Graph()
        mapping: dict[fx.Node, fx.Node] = {}
        graph.output(graph.graph_copy(self.graph, mapping))
        for node in graph.nodes:
            if node.op == "get_attr":
                flat = names.setdefault(node.target, f"weight_{len(names)}")
                if not hasattr(root, flat):
                    root.register_buffer(flat, self.weights[node.target])
                node.target = flat
        return fx.GraphModule(root, graph)

    def analysis(self, compute: Any) -> Any:
        """``compute(self)``, computed once for this Program as it stands, and again when it was edited since."""
        state = self._state()
        if len(state) != len(self._analysed) or not all(map(operator.is_, state, self._analysed)):
            self._analyses.clear()
            self._analysed = state
        if compute not in self._analyses:
            self._analyses[compute] = compute(self)
        return self._analyses[compute]

    def _state(self) -> list[Any]:
        """All that an analysis may read: an edit puts another object in some place of this list.

        Comparing which objects they are takes a tenth of a millisecond for 500 nodes; the list keeps them alive, so
        that no later one is taken for one of them.
        """
        state: list[Any] = [self.inputs, self.outputs, self.symbols, self.ranges, self.domains, self.fillers]
        state += self.weights.values()
        for node in self.graph.nodes:
            state += (node, node.target, node.args, node.kwargs, node.meta.get("val"))
        return state

    @property
    def output_node(self) -> fx.Node:
        output: fx.Node = next(node for node in reversed(self.graph.nodes) if node.op == "output")
        return output

    def find(self, name: str) -> fx.Node:
        """The node called ``name``; KeyError if there is none."""
        node: fx.Node
        for node in self.graph.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def __str__(self) -> str:
        from .text import program_text

        return program_text(self)


class GraphInterpreter(fx.Interpreter):
    """Runs a Program's graph; weights are looked up by name, values are freed after their last use."""

    def __init__(self, program: Program) -> None:
        self._weights = program.weights
        super().__init__(torch.nn.Module(), garbage_collect_values=True, graph=program.graph)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Tensor:
        return self._weights[target]
