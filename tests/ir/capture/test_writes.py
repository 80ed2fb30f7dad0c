"""A Program is a function: what a model writes and reads again is refused, what nobody reads is noted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.errors import CaptureError
from tersor.ir.verifier import verify


class State(nn.Module):
    """``[batch, tokens, 4]`` through ``step(model, x)``, which may write to all that the model holds."""

    def __init__(self, step: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.step = step
        self.register_buffer("count", torch.ones(()))
        self.register_buffer("running", torch.ones(4))
        self.scale = nn.Parameter(torch.ones(4))
        self.embed = nn.Embedding(16, 4, max_norm=0.5)
        self.norm = nn.BatchNorm1d(4)
        self.instance = nn.InstanceNorm1d(4, track_running_stats=True)
        self.plain = torch.ones(4)
        self.calls = 0
        self.seen: list[Any] = []
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self, x)


def state_of(model: State) -> list[Any]:
    values: list[Any] = [model.calls, list(model.seen), model.last, model.plain.tolist()]
    return values + [value.tolist() for value in model.state_dict().values()]


# The exporter tells of which line of a ``forward`` an operator is, and not of the functions that it calls.
FORWARD = "self.step(self, x)"


def counted(m: Any, x: Tensor) -> Tensor:
    m.count += 1
    return x * m.count


def averaged(m: Any, x: Tensor) -> Tensor:
    y = x * m.running
    m.running.mul_(0.9).add_(0.1 * x.mean((0, 1)))
    return y


def assigned(m: Any, x: Tensor) -> Tensor:
    m.running = 0.5 * m.running + x.mean((0, 1))
    return x * m.running


def sliced(m: Any, x: Tensor) -> Tensor:
    m.running[:3] += 1
    return x * m.running


def scaled(m: Any, x: Tensor) -> Tensor:
    m.scale.data.mul_(2)
    return x * m.scale


def added_into(m: Any, x: Tensor) -> Tensor:
    torch.add(m.scale, 1, out=m.scale)
    return x * m.scale


def normed(m: Any, x: Tensor) -> Tensor:
    m.norm.train()
    y: Tensor = m.norm(x.transpose(1, 2))
    return y


def normed_alone(m: Any, x: Tensor) -> Tensor:
    m.instance.train()
    y: Tensor = m.instance(x.transpose(1, 2))
    return y


def aliased(m: Any, x: Tensor) -> Tensor:
    m.running.mul_(2)
    return x * m.part.sum()


class Aliased(State):
    def __init__(self) -> None:
        super().__init__(aliased)
        self.register_buffer("part", self.running[:2])


def unregistered(m: Any, x: Tensor) -> Tensor:
    m.plain.mul_(2)
    return x * m.plain


def called(m: Any, x: Tensor) -> Tensor:
    m.calls += 1
    return x if m.calls < 100 else -x


def listed(m: Any, x: Tensor) -> Tensor:
    m.seen.append(x)
    return x + len(m.seen)


def remembered(m: Any, x: Tensor) -> Tensor:
    y = x if m.last is None else x + m.last.mean()
    m.last = x
    return y


@pytest.mark.parametrize(
    ("step", "what", "line"),
    [
        (counted, "'count'", FORWARD),
        (averaged, "'running'", FORWARD),
        (assigned, "'running'", FORWARD),
        (sliced, "'running'", FORWARD),
        (scaled, "parameter 'scale'", "m.scale.data.mul_(2)"),
        (added_into, "parameter 'scale'", "torch.add(m.scale, 1, out=m.scale)"),
        (lambda m, x: x + m.embed(torch.arange(4)).sum(), "parameter 'embed.weight'", "m.embed"),
        (normed, "'norm.running_mean'", FORWARD),
        (normed_alone, "updates running statistics: leave its module in evaluation mode", FORWARD),
        (unregistered, "attribute 'plain'", "m.plain.mul_(2)"),
        (called, "'calls'", "m.calls += 1"),
        (listed, "'seen'", "m.seen.append"),
        (remembered, "'last'", "m.last is None"),
    ],
)
def test_state_that_reaches_a_result_names_the_line_and_is_left_alone(
    step: Any, what: str, line: str
) -> None:
    model = State(step).eval()
    before = state_of(model)
    with pytest.raises(CaptureError) as caught:
        capture(model, {"x": torch.randn(2, 5, 4)})
    text = str(caught.value)
    assert what in text
    assert "test_writes.py" in text
    assert line in text
    assert state_of(model) == before


def test_a_write_seen_through_another_buffer_is_refused() -> None:
    with pytest.raises(CaptureError, match="through other views or outlives the call"):
        capture(Aliased().eval(), {"x": torch.randn(2, 5, 4)})


def counted_only(m: Any, x: Tensor) -> Tensor:
    m.count += 1
    return x * 2


def overwritten(m: Any, x: Tensor) -> Tensor:
    m.running.copy_(x.mean((0, 1)))
    return x * m.running


def kept(m: Any, x: Tensor) -> Tensor:
    m.last = x * 2
    y: Tensor = m.last + 1
    return y


@pytest.mark.parametrize(
    ("step", "note"),
    [(counted_only, "writes to 'count'"), (overwritten, "writes to 'running'"), (kept, "attribute 'last'")],
)
def test_writes_that_no_result_can_tell_are_noted(step: Any, note: str) -> None:
    model = State(step).eval()
    before = state_of(model)
    program = capture(model, {"x": torch.randn(2, 5, 4)})
    assert note in " ".join(program.notes["capture"])
    assert state_of(model) == before
    x = torch.randn(3, 7, 4)
    for _ in range(2):
        torch.testing.assert_close(program(x), model(x))


def cached(m: Any, x: Tensor) -> Tensor:
    if m.last is None or m.last.shape[0] < x.shape[1]:
        m.last = torch.arange(x.shape[1] * 4.0).reshape(-1, 4)
    y: Tensor = x + m.last[: x.shape[1]]
    return y


def test_a_cache_that_a_second_call_leaves_alone_is_no_state() -> None:
    model = State(cached).eval()
    program = capture(model, {"x": torch.randn(2, 5, 4)})
    assert model.last is None
    x = torch.randn(2, 5, 4)
    torch.testing.assert_close(program(x), model(x))


def added(m: Any, x: Tensor) -> Tensor:
    return x.add_(1) * 2


def zeroed(m: Any, x: Tensor) -> Tensor:
    x[:, 0] = 0
    return x + 1


def masked(m: Any, x: Tensor) -> Tensor:
    x[x < 0] = 0
    return x * 2


def halved(m: Any, x: Tensor) -> Tensor:
    left, _ = x.chunk(2, -1)
    left.mul_(2)
    return x + 1


def turned(m: Any, x: Tensor) -> Tensor:
    y = x.transpose(1, 2)
    y[:, 0, 1:] = 3
    x.mul_(2)
    return y + 1


@pytest.mark.parametrize("step", [added, zeroed, masked, halved, turned])
def test_a_write_to_an_input_changes_the_result_and_not_the_callers_tensor(step: Any) -> None:
    model, x = State(step).eval(), torch.randn(2, 5, 4)
    given = x.clone()
    program = capture(model, {"x": given})
    assert torch.equal(given, x)
    assert "writes to its input 'x'" in program.notes["capture"][0]
    verify(program)
    given = torch.randn(3, 7, 4)
    x = given.clone()
    torch.testing.assert_close(program(given), model(given.clone()))
    assert torch.equal(given, x)


def chunked(m: Any, x: Tensor) -> Tensor:
    x = x * 1
    left, _ = x.chunk(2, -1)
    left.mul_(2)
    return x


def nested(m: Any, x: Tensor) -> Tensor:
    x = x * 1
    first = x.view(*x.shape[:2], 2, 2)[:, 0]
    x.mul_(2)
    return x + first.flatten(1)[:, None]


@pytest.mark.parametrize("step", [chunked, nested])
def test_writes_are_seen_through_every_view(step: Any) -> None:
    model = State(step).eval()
    program = capture(model, {"x": torch.randn(2, 5, 4)})
    x = torch.randn(3, 7, 4)
    torch.testing.assert_close(program(x), model(x))


def filled(m: Any, x: Tensor) -> Tensor:
    return torch.cat([torch.empty(x.shape[0], 0, 4).fill_(1.0), x], dim=1)


def test_a_write_to_an_empty_tensor_is_none_to_another() -> None:
    """Tensors without elements share the address of no storage."""
    model = State(filled).eval()
    model.plain = torch.zeros(0)
    capture(model, {"x": torch.randn(2, 5, 4)})


def test_parameters_that_the_first_call_makes_are_captured() -> None:
    model = nn.LazyLinear(3)
    program = capture(model, {"input": torch.randn(2, 5)})
    x = torch.randn(4, 5)
    torch.testing.assert_close(program(x), model(x))


def test_a_function_that_the_model_compiles_is_compiled_after_the_capture_too() -> None:
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model = State(torch.compile(lambda m, x: x * m.running + 1, backend=backend)).eval()
    capture(model, {"x": torch.randn(2, 5, 4)})
    graphs.clear()
    model(torch.randn(2, 5, 4))
    assert graphs


def test_a_buffer_that_is_assigned_its_own_value_is_none_that_is_written() -> None:
    """As CTRL moves its positions to where the input is."""

    def step(model: Any, x: Tensor) -> Tensor:
        model.running = model.running.to(x.device)
        return x * model.running

    model = State(step).eval()
    program = capture(model, {"x": torch.randn(2, 3, 4)})
    x = torch.randn(2, 5, 4)
    assert torch.equal(program(x), model(x))
