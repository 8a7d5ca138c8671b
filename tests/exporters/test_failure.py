"""A converter's failure in words: the operator, and the layers of the model that use it."""

from __future__ import annotations

import pytest
from program_kit import program_of
from torch import nn

from exporters.failure import conversion_error


@pytest.fixture(scope="module")
def program():
    def forward(m, x):
        for layer in (m.a, m.b, m.c, m.d, m.e):
            x = layer(x).relu()
        return x

    return program_of(forward, (1, 4), **{name: nn.Linear(4, 4) for name in "abcde"})


def test_the_operator_and_its_layers_are_named(program):
    error = conversion_error("ONNX", program, RuntimeError("no aten::linear here"))
    assert str(error) == (
        "ONNX: cannot convert aten::linear, used in a, b, c and 2 more: no aten::linear here"
    )
    assert error.hint == "write the layer without linear, or leave this format out"


def test_an_operator_of_the_program_comes_before_what_it_became(program):
    error = conversion_error(
        "X", program, RuntimeError("aten.addmm.default from aten.relu.default")
    )
    assert str(error).startswith("X: cannot convert aten::relu: ")


def test_an_operator_that_only_the_converter_knows_is_named_all_the_same(program):
    error = conversion_error("X", program, RuntimeError("no lowering for aten._fft_c2c.default"))
    assert str(error).startswith("X: cannot convert aten::_fft_c2c: no lowering")


def test_without_an_operator_the_converter_s_words_stand(program):
    error = conversion_error("X", program, ValueError("\n\nout of\nluck\n"), hint="wait")
    assert str(error) == "X: ValueError: out of luck"
    assert error.hint == "wait"


def test_colours_and_the_graph_s_own_code_are_left_out(program):
    text = "\x1b[96maten.linear failed\x1b[0m\nWhile executing %linear : [num_users=1]\n more"
    error = conversion_error("X", program, RuntimeError(text))
    assert str(error).endswith("used in a, b, c and 2 more: aten.linear failed")


def test_long_words_are_cut(program):
    assert len(str(conversion_error("X", program, ValueError("word " * 500)))) < 350
