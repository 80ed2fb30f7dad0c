"""Text that a person can read: one line an operation, sizes by name, weights by name, layers once."""

from __future__ import annotations

from random_programs import Config, build

from tersor.ir.text import program_text


def test_attention_reads_as_one_line_with_everything_that_decides_it() -> None:
    text = program_text(build(Config(layers=1, padding=True, causal=True)))
    line = next(line for line in text.splitlines() if " = attention(" in line)
    assert line.strip() == (
        "%attention_default = attention(%transpose_int, %transpose_int_1, %transpose_int_2, padding=%ne_scalar) "
        "{scale=0.5, causal=true, window=0, softcap=0.0} -> f32[batch, 2, tokens, 4]   # layers.0.attention"
    )


def test_weights_are_named_where_they_are_read() -> None:
    program = build(Config(layers=1))
    assert "%linear_default = linear(%layer_norm_default, @.weight, @.bias)" in program_text(program)
    listed = program_text(program, weights=True)
    assert "  @layers.0.mlp.up.weight: f32[16, 8]" in listed.splitlines()


def test_sizes_are_written_where_they_are_used() -> None:
    text = program_text(build(Config(layers=1)))
    assert "reshape(%linear_default) {shape=[batch, tokens, 2, 4]}" in text
    assert "sym_size" not in text
    assert "sym_size" in program_text(build(Config(layers=1)), full=True)


def test_equal_layers_are_written_once() -> None:
    three, nine = (build(Config(layers=n, dynamic=False)) for n in (3, 9))
    text = program_text(nine)
    assert "layers.0 .. layers.8: the same 20 ops, 9 times {" in text
    assert len(text.splitlines()) == len(program_text(three).splitlines())
    assert text.count("= attention(") == 1


def test_what_passes_from_layer_to_layer_is_named() -> None:
    text = program_text(build(Config(layers=3, dynamic=False)))
    assert "  } the next reads %add_tensor_2 for %add_tensor; %add_tensor_6 is the last %add_tensor_2" in text


def test_full_text_writes_every_layer() -> None:
    text = program_text(build(Config(layers=3, dynamic=False)), full=True)
    assert text.count("= attention(") == 3
    assert "the same" not in text


def test_a_layer_that_differs_is_not_folded_with_its_neighbours() -> None:
    program = build(Config(layers=5, dynamic=False)).edit()
    program.find("attention_default_2").update_kwarg("causal", True)
    text = program_text(program)
    assert text.count("= attention(") == 3
    assert "layers.0 .. layers.1: the same 20 ops, 2 times" in text
    assert "layers.3 .. layers.4: the same 20 ops, 2 times" in text


def test_a_program_prints_as_its_text() -> None:
    program = build(Config(layers=1))
    assert str(program) == program_text(program)


def test_two_layers_are_enough_to_be_written_once() -> None:
    for norm in ("pre", "post"):
        text = program_text(build(Config(layers=2, norm=norm, padding=True)))
        assert "layers.0 .. layers.1: the same" in text
        assert text.count("= attention(") == 1
