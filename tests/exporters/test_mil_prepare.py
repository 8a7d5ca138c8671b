"""What the converter gets wrong is mended before it, and verification notices where it is not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mil_kit import Forward, captured, save
from torch import nn

from exporters.mil import prepare

SHAPE = (1, 6, 8)


def tanh_gelu(_: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


WRONG_WITHOUT = {
    "tanh gelu": tanh_gelu,
    "add with a factor": lambda _, x: torch.add(x, x.exp(), alpha=2),
    "sub with a factor": lambda _, x: torch.sub(x, x.exp(), alpha=0.5),
    "reciprocal": lambda _, x: (x * x + 0.1).reciprocal(),
}


@pytest.mark.parametrize("name", WRONG_WITHOUT)
def test_what_the_converter_gets_wrong_is_noticed_when_it_is_not_mended(
    name, tmp_path, monkeypatch
):
    program = captured(Forward(WRONG_WITHOUT[name]), SHAPE)
    (mended,) = save(program, tmp_path, precision="fp32").verify()
    assert mended.status == "reference"
    assert mended.worst.relative < 1e-6
    monkeypatch.setattr(prepare, "DECOMPOSITIONS", {})
    (wrong,) = save(program, tmp_path, precision="fp32").verify()
    assert wrong.status == "mismatch"
    assert wrong.worst.relative > 1e-4


def test_a_tanh_gelu_stays_one_op(tmp_path):
    saved = save(captured(Forward(tanh_gelu), SHAPE), tmp_path, precision="fp32")
    (op,) = saved.mil.ops
    assert (op.type, saved.mil.constants[op.arguments["mode"]]) == ("gelu", "TANH_APPROXIMATION")


def test_an_exact_gelu_and_a_plain_sum_are_left_alone():
    program = captured(Forward(lambda _, x: F.gelu(x) + x), SHAPE)
    graph = prepare.prepared(program.exported).graph
    called = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert called == ["aten.gelu.default", "aten.add.Tensor"]


def test_nodes_that_change_no_value_are_taken_out():
    constant = torch.tensor([1.0, 2.0])
    program = captured(
        Forward(lambda _, x: (x.detach().mT.detach()[:, :2] + constant[:, None]).permute(0, 2, 1)),
        SHAPE,
    )
    graph = prepare.prepared(program.exported).graph
    assert not {node.target for node in graph.nodes} & set(prepare.PASSED_THROUGH)


def test_the_program_itself_is_not_touched(tmp_path):
    program = captured(Forward(tanh_gelu), SHAPE)
    before = program.fingerprint()
    names = [node.name for node in program.exported.graph.nodes]
    save(program, tmp_path)
    assert program.fingerprint() == before
    assert [node.name for node in program.exported.graph.nodes] == names


def test_ops_are_named_after_their_modules(tmp_path):
    inner = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    model = nn.Sequential(inner, nn.Linear(8, 8), nn.Linear(8, 8))
    saved = save(captured(model, SHAPE), tmp_path, precision="fp32")
    names = [op.name for op in saved.mil.ops]
    assert names == ["_0_0_linear", "_0_1_relu", "_1_linear", "logits"]
