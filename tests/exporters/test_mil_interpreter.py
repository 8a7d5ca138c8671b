"""The interpreter itself: precision, range, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from mil_kit import Forward, captured, save
from torch import nn

from edgevit.errors import VerificationError
from exporters.base import CannotVerifyError
from exporters.mil import Extreme, Interpreter, MilProgram

SHAPE = (1, 6, 8)


def program(function, tmp_path, *layers: nn.Module, **options) -> MilProgram:
    named = {f"layer{i}": layer for i, layer in enumerate(layers)}
    return save(captured(Forward(function, **named), SHAPE), tmp_path, **options).mil


def test_half_precision_rounds_every_result_and_fp32_none(tmp_path):
    mil = program(lambda _, x: (x + 1 / 3).exp() * x.sin(), tmp_path)
    x = torch.randn(SHAPE)
    third = torch.tensor(1 / 3).half().float()
    (exact,) = Interpreter(mil)([x])
    torch.testing.assert_close(exact, (x + third).exp() * x.sin())
    h = x.half().float()
    steps = [(h + third).half().float().exp().half(), h.sin().half()]
    (rounded,) = Interpreter(mil, half=True)([x])
    assert torch.equal(rounded, (steps[0].float() * steps[1].float()).half().float())
    assert not torch.equal(rounded, exact)


def test_a_file_of_fp32_is_the_same_in_both_ways(tmp_path):
    mil = program(lambda m, x: m.layer0(x).softmax(-1), tmp_path, nn.Linear(8, 8), precision="fp32")
    x = torch.randn(SHAPE)
    assert torch.equal(Interpreter(mil)([x])[0], Interpreter(mil, half=True)([x])[0])


def test_what_the_file_casts_to_half_precision_is_rounded_in_an_fp32_file_too(tmp_path):
    mil = program(lambda _, x: x.half().float(), tmp_path, precision="fp32")
    x = torch.randn(SHAPE)
    assert torch.equal(Interpreter(mil, half=True)([x])[0], x.half().float())


def test_an_overflow_becomes_infinite_and_is_told_by_name(tmp_path):
    def overflows(m, x):
        return m.layer0(x * 300).relu() * x.abs() * 300

    mil = program(overflows, tmp_path, nn.Identity(), keep_fp32="")
    interpreter = Interpreter(mil, half=True)
    (out,) = interpreter([torch.full(SHAPE, 2.0)])
    assert torch.isinf(out).all()
    (op,) = interpreter.overflows
    assert op.type == "mul"
    assert interpreter.extremes[0] in {
        Extreme(o.name, o.type, float("inf")) for o in mil.ops if o.type in ("mul", "cast")
    }
    exact = Interpreter(mil)
    (out,) = exact([torch.full(SHAPE, 2.0)])
    assert torch.isfinite(out).all()
    assert exact.overflows == ()


def test_the_square_inside_a_layer_norm_overflows(tmp_path):
    mil = program(lambda m, x: m.layer0(x), tmp_path, nn.LayerNorm(8))
    large = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * 1000
    interpreter = Interpreter(mil, half=True)
    (out,) = interpreter([large])
    assert [op.name for op in interpreter.overflows] == ["logits_cast_fp16"] or [
        op.type for op in interpreter.overflows
    ] == ["layer_norm"]
    assert not torch.allclose(out, F.layer_norm(large, (8,)), atol=0.1)


def test_ops_kept_in_fp32_do_not_overflow(tmp_path):
    mil = program(lambda m, x: m.layer0(x), tmp_path, nn.LayerNorm(8), keep_fp32="layer_norm")
    large = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * 1000
    interpreter = Interpreter(mil, half=True)
    (out,) = interpreter([large])
    assert interpreter.overflows == ()
    torch.testing.assert_close(out, F.layer_norm(large, (8,)), atol=1e-2, rtol=1e-2)


def test_extremes_name_the_largest_result_of_the_last_run(tmp_path):
    mil = program(
        lambda m, x: m.layer1(m.layer0(x) * 100).tanh(),
        tmp_path,
        nn.Linear(8, 8),
        nn.Linear(8, 8),
        precision="fp32",
    )
    interpreter = Interpreter(mil)
    assert interpreter.extremes == ()
    x = torch.randn(SHAPE)
    interpreter([x * 1000])
    interpreter([x])
    largest = interpreter.extremes[0]
    assert largest.type in ("mul", "linear")
    assert [e.largest for e in interpreter.extremes] == sorted(
        (e.largest for e in interpreter.extremes), reverse=True
    )
    assert 1 < largest.largest < 1000
    assert interpreter.extremes[-1].largest <= 1


def test_not_a_number_counts_as_the_largest(tmp_path):
    mil = program(lambda _, x: x.log(), tmp_path, precision="fp32")
    interpreter = Interpreter(mil)
    interpreter([-torch.ones(SHAPE)])
    assert interpreter.extremes[0].largest == float("inf")
    assert interpreter.extremes[0].to_json()["max_abs"] is None


def test_an_unknown_op_is_told_by_name(tmp_path):
    mil = program(lambda _, x: x.exp(), tmp_path)
    (op,) = (o for o in mil.ops if o.type == "exp")
    unknown = [replace(o, type="of_tomorrow") if o is op else o for o in mil.ops]
    with pytest.raises(CannotVerifyError, match="does not know the Core ML ops of_tomorrow"):
        Interpreter(replace(mil, ops=tuple(unknown)))


def test_a_parameter_is_never_ignored(tmp_path):
    mil = program(lambda _, x: x.softmax(-1), tmp_path, precision="fp32")
    (op,) = mil.ops
    more = replace(op, arguments={**op.arguments, "temperature": op.arguments["axis"]})
    with pytest.raises(CannotVerifyError, match="op softmax has a parameter temperature"):
        Interpreter(replace(mil, ops=(more,)))
    fewer = replace(op, arguments={"axis": op.arguments["axis"]})
    with pytest.raises(CannotVerifyError, match="op softmax lacks its parameter x"):
        Interpreter(replace(mil, ops=(fewer,)))


def test_a_mode_of_tomorrow_is_refused(tmp_path):
    mil = program(lambda _, x: F.gelu(x), tmp_path, precision="fp32")
    slot = mil.ops[0].arguments["mode"]
    other = replace(mil, constants={**mil.constants, slot: "SMOOTHER"})
    with pytest.raises(CannotVerifyError, match="'SMOOTHER' is not implemented here"):
        Interpreter(other)


def test_a_result_of_another_shape_than_declared_is_an_error(tmp_path):
    mil = program(lambda _, x: x.exp(), tmp_path, precision="fp32")
    (op,) = mil.ops
    wrong = replace(op, types=(replace(op.types[0], shape=(1, 8, 6)),))
    with pytest.raises(VerificationError, match=r"exp logits declares shape \(1, 8, 6\)"):
        Interpreter(replace(mil, ops=(wrong,)))([torch.randn(SHAPE)])


def test_values_are_let_go_after_their_last_use(tmp_path):
    import gc

    mil = program(
        lambda _, x: x.exp().sin().cos().tan().exp().sin().cos().tan(), tmp_path, precision="fp32"
    )
    interpreter = Interpreter(mil)
    alive: list[int] = []
    step = type(interpreter._steps[0])
    original = step.arguments

    def counting(self, values):
        gc.collect()
        alive.append(sum(isinstance(v, torch.Tensor) and v.shape == SHAPE for v in values.values()))
        return original(self, values)

    step.arguments = counting
    try:
        interpreter([torch.randn(SHAPE)])
    finally:
        step.arguments = original
    assert len(alive) >= 8
    assert max(alive) == 1
