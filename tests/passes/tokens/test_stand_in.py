"""``proportional=true``: kept tokens weigh for the dropped ones that are most like them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_programs import Config, build
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.dialect import is_dialect
from tersor.ir.program import GraphInterpreter, Program
from tersor.ir.verifier import verify
from tersor.passes.contract import Refusal
from tersor.passes.spec import parse_spec


def dropped(program: Program, spec: str) -> Program:
    instance = parse_spec(spec)
    sites = instance.legality(program)
    assert not isinstance(sites, Refusal), str(sites)
    return instance.rewrite(program, sites)


class Recorder(GraphInterpreter):
    """Keeps every value by node name."""

    def run_node(self, n: torch.fx.Node) -> object:
        value = super().run_node(n)
        self.seen = getattr(self, "seen", {}) | {n.name: value}
        return value


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    mask = torch.ones(3, 20, dtype=torch.int64)
    mask[1, 13:] = 0
    mask[2, :5] = 0
    return {"input_ids": torch.randint(0, 100, (3, 20)), "attention_mask": mask}


def test_sizes_equal_a_brute_force_over_rows_of_any_padding(
    tiny_bert: nn.Module, inputs: dict[str, Tensor]
) -> None:
    program = dropped(
        capture(tiny_bert, inputs), "token-drop:method=received-attention,keep=0.5,layers=0,proportional=true"
    )
    run = Recorder(program)
    with torch.no_grad():
        run.run(*(inputs[spec.name] for spec in program.inputs))
    (log_size,) = (n for n in program.graph.nodes if n.target is torch.ops.aten.log.default)
    scored = next(n for n in program.graph.nodes if is_dialect(n, "attention_importance"))
    (index,) = (n for n in program.graph.nodes if is_dialect(n, "select_tokens"))
    sizes = run.seen[log_size.args[0].args[0].name].numpy()
    keys = run.seen[scored.args[1].name].mean(1).numpy()
    kept = run.seen[index.name].numpy()
    for row, real in enumerate(inputs["attention_mask"].numpy().astype(bool)):
        ids = np.flatnonzero(real)
        expected = {int(i): 1.0 for i in kept[row] if real[i]}
        hosts = [i for i in expected if i not in (ids[0], ids[-1])]
        for token in ids:
            if token not in expected:
                cosines = [
                    keys[row, token]
                    @ keys[row, h]
                    / np.linalg.norm(keys[row, token])
                    / np.linalg.norm(keys[row, h])
                    for h in hosts
                ]
                expected[hosts[int(np.argmax(cosines))]] += 1
        found = {int(i): float(s) for i, s in zip(kept[row], sizes[row], strict=True) if real[i]}
        assert found == pytest.approx(expected)
        assert sum(found.values()) == pytest.approx(real.sum())


def test_a_kept_copy_weighs_for_its_dropped_twin() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    x = torch.randn(2, 8, 32).repeat_interleave(2, dim=1)
    program = capture(model, {"src": x})
    spec = "token-drop:method=random,keep=0.7,layers=0,restore=compact"
    for seed in range(100):
        output, kept = dropped(program, f"{spec},seed={seed},proportional=true").run({"src": x})
        if set((kept[0] // 2).tolist()) == set(range(8)):
            break
    else:
        pytest.fail("no seed keeps one of every two twins")
    whole = model(x).gather(1, kept[:, :, None].expand(-1, -1, 32))
    torch.testing.assert_close(output, whole, atol=1e-5, rtol=1e-4)
    plain, _ = dropped(program, f"{spec},seed={seed},proportional=false").run({"src": x})
    assert (plain - whole).abs().max() > 1e-3


def test_causal_attention_is_refused_by_name() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=3, n_head=2, n_positions=64)).eval()
    program = capture(model, {"input_ids": torch.randint(0, 50, (2, 12))})
    refusal = parse_spec("token-drop:method=received-attention,proportional=true").legality(program)
    assert isinstance(refusal, Refusal)
    assert "causal" in refusal.reason
    assert is_dialect(program.find(refusal.node), "attention")


def test_class_attention_is_scored_with_the_weights_that_it_runs_with(tiny_bert: nn.Module) -> None:
    ids = {
        "input_ids": torch.randint(0, 100, (2, 20)),
        "attention_mask": torch.ones(2, 20, dtype=torch.int64),
    }
    program = dropped(
        capture(tiny_bert, ids), "token-drop:method=cls-attention,keep=0.5,layers=0+1,proportional=true"
    )
    run = Recorder(program)
    with torch.no_grad():
        run.run(*(ids[spec.name] for spec in program.inputs))
    attention = [n for n in program.graph.nodes if is_dialect(n, "attention")][1]
    query, key = (run.seen[node.name] for node in attention.args[:2])
    mask = next(n for n in attention.all_input_nodes if n.target is torch.ops.aten.unsqueeze.default)
    logits = query[:, :, :1] @ key.transpose(2, 3) * attention.kwargs["scale"] + run.seen[mask.name]
    expected = logits.softmax(-1)[:, :, 0].mean(1)
    select = [n for n in program.graph.nodes if is_dialect(n, "select_tokens")][1]
    found = run.seen[select.args[0].name]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert run.seen[mask.name].max() > 0.5  # some key does stand for others


def weighs(program: Program) -> bool:
    return any(n.target is torch.ops.aten.log.default for n in program.graph.nodes)


def test_without_being_told_a_kept_token_weighs_for_dropped_ones_unless_tokens_are_ids() -> None:
    features = build(Config(positions=False))
    assert weighs(dropped(features, "token-drop:method=norm,keep=0.5,layers=0"))
    assert not weighs(dropped(features, "token-drop:method=norm,keep=0.5,layers=0,proportional=false"))
    assert not weighs(dropped(build(Config(ids=True)), "token-drop:method=norm,keep=0.5,layers=0"))


@pytest.mark.parametrize("method", ["tome", "pool"])
def test_what_was_merged_weighs_as_much_as_went_into_it(method: str) -> None:
    ids = build(Config(ids=True))
    assert weighs(dropped(ids, f"token-drop:method={method},keep=0.5,layers=0"))
    assert not weighs(dropped(ids, f"token-drop:method={method},keep=0.5,layers=0,proportional=false"))


@pytest.mark.parametrize("config", [Config(causal=True), Config(window=2)])
def test_no_token_weighs_for_others_where_attention_is_causal_or_windowed(config: Config) -> None:
    program = build(config)
    assert not weighs(dropped(program, "token-drop:method=norm,keep=0.5,layers=0"))
    refusal = parse_spec("token-drop:method=norm,keep=0.5,layers=0,proportional=true").legality(program)
    assert isinstance(refusal, Refusal)


def test_a_second_pass_may_follow_one_whose_tokens_weigh_for_others() -> None:
    program = build(Config(layers=3, positions=False, tokens=16))
    first = dropped(program, "token-drop:method=norm,keep=0.5,layers=0")
    assert weighs(first)
    second = dropped(first, "token-drop:method=norm,keep=0.5,layers=1")
    verify(second)
    counts = [n.meta["val"].shape[1] for n in second.graph.nodes if is_dialect(n, "select_tokens")]
    assert len(counts) == 2
    assert torch.isfinite(second.run(second.example_inputs)[0]).all()


def test_what_a_token_stood_for_goes_with_it_when_it_is_dropped_too(
    tiny_bert: nn.Module, inputs: dict[str, Tensor]
) -> None:
    spec = "token-drop:method=received-attention,keep=0.5,layers=0+1,proportional=true"
    program = dropped(capture(tiny_bert, inputs), spec)
    run = Recorder(program)
    with torch.no_grad():
        run.run(*(inputs[spec.name] for spec in program.inputs))
    logs = [n for n in program.graph.nodes if n.target is torch.ops.aten.log.default]
    assert len(logs) == 2
    for node in logs:
        assert torch.equal(
            run.seen[node.args[0].args[0].name].sum(1), inputs["attention_mask"].sum(1).float()
        )
